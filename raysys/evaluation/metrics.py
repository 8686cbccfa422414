"""Metrics of one batch of lists, user by user. Higher ranks are better places: rank 1 is the best.

Accuracy is counted from ``lists.pessimistic``: [n_users, length] bool, which places hold a relevant item when ties go
against us. The other metrics look at the list as it was shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.evaluation.lists import NOTHING, Mask
from raysys.evaluation.sequences import Items, Sequences

Floats = NDArray[np.float64]

MIXED_IN = 0.01  # of the history's categories in the list's, so that the divergence is always finite (Steck 2018)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean of a metric over users, its standard error, and a 95 % interval from resampled users."""

    mean: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class PerUser:
    """A metric of each user. values: [n_users] float32, 0 where undefined. defined: [n_users] bool."""

    values: NDArray[np.float32]
    defined: Mask

    @classmethod
    def of(cls, values: Floats, defined: Mask | None = None) -> "PerUser":
        is_defined = np.ones(len(values), dtype=np.bool_) if defined is None else defined
        return cls(np.where(is_defined, values, 0).astype(np.float32), is_defined)


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Categories of items as flat arrays; the labels of item i are ``labels[starts[i]:starts[i + 1]]``.

    starts: [n_items + 1] int64. labels: [m] int64 in ``range(n_labels)``.
    """

    starts: Items
    labels: Items
    n_labels: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]]) -> "Labels":
        """From the names of the categories of each item."""
        places: dict[str, int] = {}
        labels = [places.setdefault(name, len(places)) for row in rows for name in dict.fromkeys(row)]
        starts = np.concatenate([[0], np.cumsum([len(dict.fromkeys(row)) for row in rows], dtype=np.int64)])
        return cls(starts.astype(np.int64), np.array(labels, dtype=np.int64), len(places))


def accuracy(relevant: Mask, n_relevant: Items, k: int) -> dict[str, PerUser]:
    """HR, NDCG, MRR and Recall at k of each user, by name ("hr@10").

    n_relevant: [n_users] int64, relevant items of each user, shown or not; a user of none has no metric.
    HR: is one of them among the first k? MRR: 1 / rank of the first of them, 0 beyond k. Recall: the share of them
    among the first k. NDCG: gains of 1 discounted by log2(1 + rank), over those of the best list of k (Jarvelin and
    Kekalainen, TOIS 2002).
    """
    top = relevant[:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = np.concatenate([[1.0], np.cumsum(discounts)])[np.minimum(n_relevant, k)]
    hit, first = top.any(axis=1), top.argmax(axis=1)
    found = {
        "hr": hit.astype(np.float64),
        "ndcg": (top @ discounts[: top.shape[1]]) / best,
        "mrr": np.where(hit, 1 / (first + 1), 0.0),
        "recall": top.sum(axis=1) / np.maximum(n_relevant, 1),
    }
    return {f"{name}@{k}": PerUser.of(values, n_relevant > 0) for name, values in found.items()}


def self_information(counts: Items, n_users: int) -> Floats:
    """[n_items] float64 bits: -log2 of the share of users who had the item, one added to each count.

    Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 2010.
    """
    bits: Floats = -np.log2((counts + 1) / (n_users + 1))
    return bits


def novelty(shown: Items, information: Floats) -> PerUser:
    """Mean self-information of the items shown, in bits. shown: [n_users, k]. Undefined for an empty list."""
    there = shown != NOTHING
    n = there.sum(axis=1)
    return PerUser.of(np.where(there, information[shown], 0).sum(axis=1) / np.maximum(n, 1), n > 0)


def intra_list_similarity(shown: Items, vectors: NDArray[np.float32]) -> PerUser:
    """Mean cosine of the pairs of items shown. Undefined where fewer than two of them have a vector.

    vectors: [n_items, dim] float32, L2-normalised, zero where there is none. Ziegler et al., "Improving recommendation
    lists through topic diversification", WWW 2005. The sum over pairs is (|sum of v|^2 - n) / 2.
    """
    found = np.where((shown != NOTHING)[:, :, None], vectors[shown], 0).astype(np.float64)
    squares = np.square(found).sum(axis=2)
    n = np.count_nonzero(squares > 0, axis=1)
    doubled = np.square(found.sum(axis=1)).sum(axis=1) - squares.sum(axis=1)
    return PerUser.of(doubled / np.maximum(n * (n - 1), 1), n > 1)


def calibration(shown: Items, histories: Sequences, categories: Labels) -> PerUser:
    """KL divergence, in nats, of the categories shown from those of the history; 0 is the same mix.

    An item shares its weight among its categories. Undefined where history or list has none. Steck, "Calibrated
    recommendations", RecSys 2018.
    """
    there = shown != NOTHING
    users = np.repeat(np.arange(len(shown)), there.sum(axis=1))
    past = _mix(histories.owners, histories.items, len(shown), categories)
    now = _mix(users, shown[there], len(shown), categories)
    defined = np.logical_and(past.any(axis=1), now.any(axis=1))
    mixed = (1 - MIXED_IN) * now + MIXED_IN * past
    logs = np.log(np.divide(past, mixed, out=np.ones_like(past), where=past > 0))
    return PerUser.of(np.maximum((past * logs).sum(axis=1), 0), defined)


def _mix(users: Items, items: Items, n_users: int, categories: Labels) -> Floats:
    """[n_users, n_labels] float64: the share of each category, rows of sum 1, or 0 where there is none."""
    n = np.diff(categories.starts)[items]
    begins = np.concatenate([[0], np.cumsum(n)])
    at = np.arange(begins[-1]) + np.repeat(categories.starts[items] - begins[:-1], n)
    cells = np.repeat(users, n) * categories.n_labels + categories.labels[at]
    weights = np.repeat(1 / np.maximum(n, 1), n)
    sums = np.bincount(cells, weights, minlength=n_users * categories.n_labels).reshape(n_users, -1)
    return sums / np.where(sums.any(axis=1), sums.sum(axis=1), 1)[:, None]


def coverage(shown: Items) -> float:
    """The share of the catalogue that anybody was shown. shown: [n_items] int64, how often each was."""
    return float((shown > 0).mean()) if len(shown) else 0.0


def gini(shown: Items) -> float | None:
    """How unequally what was shown falls on the items: 0 = all alike, near 1 = few get all. None: nothing shown."""
    total, n = int(shown.sum()), len(shown)
    if not total:
        return None
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float((weights * np.sort(shown).astype(np.float64)).sum() / (n * total))
