"""How far a number may be off because other test images could have been drawn.

n test items, G groups, R resamples.
"""

import numpy as np

from ..data.philox import uniform

RESAMPLES = 400  # the standard error itself is then known to about 4 %
CHUNK = 20  # resamples at a time


def standard_error(values: np.ndarray, groups: list[str] | None = None, *, seed: int = 0) -> float:
    """Standard error of the mean of ``values`` (n,) over resamples of the test items, with replacement.

    With ``groups`` (n strings) whole groups are drawn, since images of one patient or video err together; the
    error is 0 if there is only one. Deterministic: the same seed and n draw the same items.
    """
    group = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, size = np.bincount(group, weights=values), np.bincount(group)  # (G,) both
    means = []
    for start in range(0, RESAMPLES, CHUNK):
        draws = uniform(seed, "bootstrap", 0, np.arange(start, start + CHUNK), len(size))  # (CHUNK, G)
        drawn = (draws * np.float64(len(size))).astype(np.int64)
        means.append(total[drawn].sum(1) / size[drawn].sum(1))
    return float(np.concatenate(means).std())
