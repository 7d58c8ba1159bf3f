"""How far a number may be off because other test images could have been drawn.

n test items, G groups, R resamples, S numbers.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ..data.philox import uniform

RESAMPLES = 400  # the standard error itself is then known to about 4 %
CHUNK = 20  # resamples at a time


def standard_error(values: np.ndarray, groups: list[str] | None = None, *, seed: int = 0) -> float:
    """Standard error of the mean of ``values`` (n,) over resamples of the test items, with replacement.

    With ``groups`` (n strings) whole groups are drawn, since images of one patient or video err together; the
    error is 0 if there is only one. Deterministic: the same seed and n draw the same items.
    """
    group = group_of(len(values), groups)
    total, size = np.bincount(group, weights=values), np.bincount(group)  # (G,) both
    return float(np.concatenate([total[drawn].sum(1) / size[drawn].sum(1) for drawn in draw(len(size), seed)]).std())


def errors_of(statistic: Callable[..., np.ndarray], *samples: tuple[int, list[str] | None], seed: int = 0) -> list[float | None]:
    """Standard errors of S numbers that are no plain means, or of several at once.

    Args:
        statistic: the (S,) numbers for weights (n,) float64 of the items, one array a sample: how often each was drawn.
        samples: the number of items and their groups, or None; samples are drawn independently of each other.

    Returns:
        One error a number; None for one that is not finite in more than half of the resamples.
    """
    streams = [weights(count, groups, seed=seed, name="bootstrap" if i == 0 else f"bootstrap {i}")
               for i, (count, groups) in enumerate(samples)]
    table = np.array([statistic(*drawn) for drawn in zip(*streams, strict=True)])  # (R, S)
    found: list[float | None] = []
    for column in table.T:
        finite = column[np.isfinite(column)]
        found.append(float(finite.std()) if 2 * len(finite) >= RESAMPLES else None)
    return found


def weights(count: int, groups: list[str] | None = None, *, seed: int = 0, name: str = "bootstrap") -> Iterator[np.ndarray]:
    """How often each of ``count`` items is drawn, (count,) float64, for each resample."""
    group = group_of(count, groups)
    num_groups = int(group.max()) + 1
    for drawn in draw(num_groups, seed, name):
        for row in drawn:
            yield np.bincount(row, minlength=num_groups)[group].astype(np.float64)


def draw(num_groups: int, seed: int, name: str = "bootstrap") -> Iterator[np.ndarray]:
    """Which groups each resample holds, (CHUNK, G) int64 at a time."""
    for start in range(0, RESAMPLES, CHUNK):
        draws = uniform(seed, name, 0, np.arange(start, start + CHUNK), num_groups)
        yield (draws * np.float64(num_groups)).astype(np.int64)


def group_of(count: int, groups: list[str] | None) -> np.ndarray:
    """The number of each item's group, (count,); without groups each item is its own."""
    return np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
