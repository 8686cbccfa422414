"""The protocol of record: full ranking of the whole catalogue, no sampled negatives, one evaluator for every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation.metrics import (
    Estimate,
    Ranks,
    Scores,
    estimate,
    hit_rate,
    ndcg,
    ranks,
    reciprocal_rank,
    remove,
    top,
)
from raysys.evaluation.splits import Items, Task

# Histories of a batch of users, oldest item first -> scores [len(histories), n_items], higher is better.
Scorer = Callable[[Sequence[Items]], Scores]

STRATA = ("unseen", "tail", "middle", "head")


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What a scorer did on a task.

    ranks: [n_users] int64 of the targets, seen items removed, ties pessimistic.
    shown: [n_items] int64, how many users had the item among their first k.
    """

    ranks: Ranks
    shown: NDArray[np.int64]
    k: int

    @property
    def coverage(self) -> float:
        """The share of the catalogue that anybody had among their first k."""
        return float((self.shown > 0).mean())


def rank_all(scorer: Scorer, task: Task, n_items: int, k: int = 10, batch: int = 256) -> Ranking:
    """Rank every item for every user, a batch of users at a time: memory is batch * n_items.

    Raises InvalidInput when the scorer answers in another shape.
    """
    shown = np.zeros(n_items, dtype=np.int64)
    found: list[Ranks] = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(task), batch):
        histories = task.histories[start : start + batch]
        raw = scorer(histories)
        if raw.shape != (len(histories), n_items):
            raise InvalidInput("scorer", f"gave scores of shape {raw.shape}, not {(len(histories), n_items)}")
        scores = remove(raw, histories)
        found.append(ranks(scores, task.targets[start : start + batch]))
        shown += top(scores, k).sum(axis=0)
    return Ranking(np.concatenate(found), shown, k)


def summarise(found: Ranks, ks: Sequence[int] = (10, 20), seed: int = 0) -> dict[str, Estimate]:
    """HR and NDCG at each k, and MRR, by name ("hr@10", "ndcg@10", "mrr")."""
    rng = np.random.default_rng(seed)
    values = {f"{name}@{k}": metric(found, k) for k in ks for name, metric in (("hr", hit_rate), ("ndcg", ndcg))}
    return {name: estimate(users, rng) for name, users in (values | {"mrr": reciprocal_rank(found)}).items()}


def popularity_strata(counts: NDArray[np.int64]) -> NDArray[np.int8]:
    """The stratum of each item as an index into ``STRATA``: [n_items] int8.

    counts: [n_items], events of each item in what the model was fitted on. "unseen" has none; the others are cut
    from the least to the most popular item so that each holds about a third of the events, and items of equal count
    stay together.
    """
    levels, position, items = np.unique(counts, return_inverse=True, return_counts=True)
    events = levels * items
    twice_middle = 2 * np.cumsum(events) - events  # a level that straddles a cut goes where most of it lies
    stratum = 1 + 3 * twice_middle // max(2 * int(events.sum()), 1)
    return np.where(levels == 0, 0, stratum).astype(np.int8)[position]


def by_stratum(found: Ranks, targets: Items, counts: NDArray[np.int64], k: int = 10) -> dict[str, tuple[int, float]]:
    """For each stratum of the target's popularity: (users, HR@k). HR is NaN where there are no users."""
    stratum = popularity_strata(counts)[targets]
    hits = hit_rate(found, k)
    groups = {name: hits[stratum == i] for i, name in enumerate(STRATA)}
    return {name: (len(group), float(group.mean()) if len(group) else float("nan")) for name, group in groups.items()}
