"""SIGTERM and Ctrl-C as a note instead of an end."""

import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def caught(note: Callable[[int], None]) -> Iterator[None]:
    """Call ``note`` with the number of each SIGINT or SIGTERM that comes meanwhile.

    In a thread that is not the main one nothing is caught: there the caller handles signals.
    """
    before = {}
    with contextlib.suppress(ValueError):
        before = {number: signal.signal(number, lambda n, _: note(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
