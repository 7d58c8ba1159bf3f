"""The two ways in which a command ends badly: bad input, and a run that failed."""


class Refused(Exception):
    """Bad input: one sentence with what was seen, what was expected, the nearest fix, the file. Exit code 2."""


class Failed(Exception):
    """A run that began and could not go on, in one sentence. Exit code 1."""


def nearest(name: str, known: list[str]) -> str:
    """Return ``; did you mean X?`` for the closest of ``known``, or the list of what is known."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
