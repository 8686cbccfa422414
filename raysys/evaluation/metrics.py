"""Metrics over ranks of one relevant item a user, where rank 1 is the best.

Ties are broken pessimistically: every other item with the target's score or a higher one stands before it, so a model
that gives all items the same score earns nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.evaluation.splits import Items

Ranks = NDArray[np.int64]

MISSED = np.iinfo(np.int64).max  # the rank of a target that is not in the list


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """What one user is shown. items: [m] int64 item indices, best first. scores: [m] float64, never increasing."""

    items: Items
    scores: NDArray[np.float64]

    def place(self, target: int) -> int:
        """Where the target stands in the list, from 1, or MISSED."""
        at = np.flatnonzero(self.items == target)
        return int(at[0]) + 1 if len(at) else MISSED

    def rank(self, target: int) -> int:
        """How many items of the list score at least what the target scores, itself included, or MISSED.

        Where equal scores go on beyond the end of the list, the rank is the length of the list. So a list of k + 1
        items is long enough for any metric at k.
        """
        place = self.place(target)
        return place if place == MISSED else int(np.count_nonzero(self.scores >= self.scores[place - 1]))


def hit_rate(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """HR@k of each user: 1 where the target is among the first k. [n] float64."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """NDCG@k of each user with one relevant item: 1 / log2(1 + rank), 0 beyond k. [n] float64."""
    return np.where(ranks <= k, 1 / np.log2(1.0 + ranks), 0.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean of a metric over users, its standard error, and a 95 % interval from resampled users."""

    mean: float
    standard_error: float
    low: float
    high: float


def estimate(values: NDArray[np.float64], rng: np.random.Generator, resamples: int = 1_000) -> Estimate:
    """Summarise per-user values, [n] float64. NaN throughout for no users; no error from one user alone."""
    if not len(values):
        return Estimate(*[float("nan")] * 4)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(values.mean()), float(error), float(low), float(high))
