"""The highest of many scores, without looking at most of them twice."""

import numpy as np
from numpy.typing import NDArray

BLOCK = 64


def highest(scores: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Positions, ascending, of all [m] scores, none NaN, as high as the n-th highest; all where there are fewer.

    The n-th highest of the maxima of blocks is a floor below it, and hardly any score lies above that: one pass over
    the scores, where ``np.partition`` takes several. n: 1 or more.
    """
    if len(scores) <= n:
        return np.arange(len(scores))
    if len(scores) < n * BLOCK:  # too few blocks to say anything
        return np.flatnonzero(scores >= _nth_highest(scores, n))
    at = np.flatnonzero(scores >= _floor(scores, n))
    few = scores[at]
    return at[few >= _nth_highest(few, n)]


def _floor(scores: NDArray[np.float32], n: int) -> np.float32:
    """At most the n-th highest score: n blocks, of those that there are, have a maximum that is as high."""
    whole = len(scores) // BLOCK * BLOCK
    return _nth_highest(scores[:whole].reshape(-1, BLOCK).max(axis=1), n)


def _nth_highest(scores: NDArray[np.float32], n: int) -> np.float32:
    nth: np.float32 = np.partition(scores, len(scores) - n)[len(scores) - n]
    return nth
