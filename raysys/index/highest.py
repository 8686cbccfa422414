"""The highest of many scores, without looking at most of them twice."""

import numpy as np
from numpy.typing import NDArray

GROUPS_PER_WANTED = 4
LEAST_GROUPS = 256


def highest(scores: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Positions, ascending, of all [m] scores, none NaN, as high as the n-th highest; all where there are fewer.

    The n-th highest of the maxima of groups is a floor below it, and hardly any score lies above that: one pass over
    the scores, where ``np.partition`` takes several. n: 1 or more.
    """
    if len(scores) <= n:
        return np.arange(len(scores))
    n_groups = max(GROUPS_PER_WANTED * n, LEAST_GROUPS)
    if len(scores) < 2 * n_groups:  # too few scores a group to save anything
        return np.flatnonzero(scores >= _nth_highest(scores, n))
    at = np.flatnonzero(scores >= _floor(scores, n, n_groups))
    few = scores[at]
    return at[few >= _nth_highest(few, n)]


def _floor(scores: NDArray[np.float32], n: int, n_groups: int) -> np.float32:
    """At most the n-th highest score: n groups, of those that there are, have a maximum that is as high.

    The members of a group lie ``n_groups`` apart: so the maxima of all groups are taken side by side.
    """
    size = len(scores) // n_groups
    return _nth_highest(scores[: size * n_groups].reshape(size, n_groups).max(axis=0), n)


def _nth_highest(scores: NDArray[np.float32], n: int) -> np.float32:
    nth: np.float32 = np.partition(scores, len(scores) - n)[len(scores) - n]
    return nth
