"""Metrics over ranks of one relevant item a user, where rank 1 is the best.

Ties are broken pessimistically: every other item with the target's score or a higher one stands before it, so a model
that gives all items the same score earns nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Ranks = NDArray[np.int64]


def remove(scores: Scores, histories: Sequence[NDArray[np.int64]]) -> Scores:
    """A copy of scores, [n, n_items], with NaN and each row's seen items at -inf."""
    kept = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    rows = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    kept[rows, np.concatenate(histories) if len(histories) else rows] = -np.inf
    return kept


def ranks(scores: Scores, targets: NDArray[np.int64]) -> Ranks:
    """[n] int64: 1 + how many other items score at least what the target scores.

    scores: [n, n_items] without NaN, removed items at -inf. targets: [n] int64.
    A target that was removed itself comes last.
    """
    target = np.take_along_axis(scores, targets[:, None], axis=1)
    at_least: Ranks = (scores >= target).sum(axis=1, dtype=np.int64)  # the target counts itself: that is the 1
    return at_least


def top(scores: Scores, k: int) -> NDArray[np.bool_]:
    """[n, n_items] bool: the k best items of each row, of equal ones those with the smaller index.

    Items at -inf are never among them, so a row may hold fewer than k.
    """
    k = min(k, scores.shape[1])
    threshold = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above = scores > threshold
    level = (scores == threshold) & (scores > -np.inf)
    free = k - above.sum(axis=1, keepdims=True)
    best: NDArray[np.bool_] = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= free))
    return best


def hit_rate(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """HR@k of each user: 1 where the target is among the first k. [n] float64."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """NDCG@k of each user with one relevant item: 1 / log2(1 + rank), 0 beyond k. [n] float64."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def reciprocal_rank(ranks: Ranks) -> NDArray[np.float64]:
    """1 / rank of each user; the mean is MRR. [n] float64."""
    return 1 / ranks.astype(np.float64)


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
