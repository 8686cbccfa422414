"""Figures of an evaluation as plain values for JSON. A figure that nothing was measured for is None, never NaN."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from raysys.errors import InvalidInput
from raysys.evaluation import intervals
from raysys.evaluation.lists import Mask
from raysys.evaluation.metrics import PerUser, coverage, gini
from raysys.evaluation.protocol import Evaluation, K
from raysys.evaluation.sequences import Items

HISTORY_LENGTHS = (0, 1, 2, 5, 10, 20, 50)  # the last of each group; there is one more group beyond
OF_GROUPS = (f"hr@{K}", f"ndcg@{K}", f"mrr@{K}", f"recall@{K}")


def summarise(evaluation: Evaluation, seed: int = 0) -> dict[str, Any]:
    """Every metric with its interval: of all, by slice of the relevant items, and by length of the history."""
    rng = np.random.default_rng(seed)
    users = evaluation.users
    everyone = np.ones(len(evaluation), dtype=np.bool_)
    return {
        "users": len(np.unique(users)),
        "lists": len(evaluation),
        "metrics": _estimates(users, evaluation.metrics, everyone, rng),
        f"coverage@{K}": coverage(evaluation.shown),
        f"gini@{K}": gini(evaluation.shown),
        "lost_to_ties": evaluation.lost_to_ties,
        "showed_seen": evaluation.showed_seen,
        "slices": {
            name: _group(users, found, found[OF_GROUPS[0]].defined, rng) for name, found in evaluation.slices.items()
        },
        "history": {
            name: _group(users, {metric: evaluation.metrics[metric] for metric in OF_GROUPS}, mask, rng)
            for name, mask in by_history(evaluation.history_lengths).items()
        },
    }


def by_history(lengths: Items) -> dict[str, Mask]:
    """Which rows have a history of this length: "0", "1", "2", "3-5", ..., "51+". lengths: [n] int64."""
    firsts = (0, *(last + 1 for last in HISTORY_LENGTHS))
    group = np.searchsorted(HISTORY_LENGTHS, lengths)
    named = zip(firsts, HISTORY_LENGTHS, strict=False)
    names = [str(last) if first == last else f"{first}-{last}" for first, last in named]
    return {name: group == i for i, name in enumerate([*names, f"{firsts[-1]}+"])}


def compare(first: Evaluation, second: Evaluation, metric: str = f"ndcg@{K}", seed: int = 0) -> dict[str, Any] | None:
    """The paired test of two recommenders that answered the same tasks. None for fewer than two users.

    Raises InvalidInput where they answered others.
    """
    if not np.array_equal(first.users, second.users):
        raise InvalidInput("compare", "the recommenders did not answer the same users in the same order")
    one, other = (intervals.by_person(part.users, part.metrics[metric]) for part in (first, second))
    result = intervals.paired(one, other, np.random.default_rng(seed))
    return None if result is None else {"metric": metric, **asdict(result)}


def _group(users: Items, metrics: Mapping[str, PerUser], mask: Mask, rng: np.random.Generator) -> dict[str, Any]:
    return {"users": len(np.unique(users[mask])), "metrics": _estimates(users, metrics, mask, rng)}


def _estimates(
    users: Items, metrics: Mapping[str, PerUser], mask: Mask, rng: np.random.Generator
) -> dict[str, dict[str, float] | None]:
    found = {}
    for name, metric in metrics.items():
        values = intervals.by_person(users, PerUser(metric.values, metric.defined & mask))
        estimate = intervals.estimate(values, rng)
        found[name] = None if estimate is None else asdict(estimate)
    return found
