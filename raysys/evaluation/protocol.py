"""The protocol of record: lists from the whole catalogue, no sampled negatives, one evaluator for every recommender."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation.metrics import MISSED, Estimate, Listed, Ranks, estimate, hit_rate, ndcg
from raysys.evaluation.splits import Items, Task

# Histories of a batch of users, oldest item first -> what each is shown.
Lister = Callable[[Sequence[Items]], Sequence[Listed]]

KS = (10, 20)
LIST_LENGTH = max(KS) + 1  # one more than is looked at, so that ties at the cut are seen
STRATA = ("unseen", "tail", "middle", "head")


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What a recommender did on a task.

    ranks: [n_users] int64 of the targets, ties pessimistic. places: [n_users] int64, where the targets stood as
    shown. Both are MISSED where the target was not shown. shown: [n_items] int64, how many users had the item among
    their first k.
    """

    ranks: Ranks
    places: Ranks
    shown: NDArray[np.int64]

    @property
    def coverage(self) -> float:
        """The share of the catalogue that anybody had among their first k."""
        return float((self.shown > 0).mean())

    @property
    def lost_to_ties(self) -> int:
        """Users whose target was shown, but ranks lower than it stood because others have its score."""
        return int(np.count_nonzero(self.ranks > self.places))


def rank_lists(lister: Lister, task: Task, n_items: int, k: int = 10, batch: int = 256) -> Ranking:
    """Ask for the list of every user, a batch of users at a time, and find the targets in them.

    Lists of ``LIST_LENGTH`` serve every metric at ``KS``. Raises InvalidInput when there is not one list a user,
    a list is not best first, or it shows what is in the history.
    """
    ranks, places = np.full(len(task), MISSED), np.full(len(task), MISSED)
    shown = np.zeros(n_items, dtype=np.int64)
    for start in range(0, len(task), batch):
        histories = task.histories[start : start + batch]
        lists = lister(histories)
        if len(lists) != len(histories):
            raise InvalidInput("lister", f"gave {len(lists)} lists for {len(histories)} users")
        for user, (listed, history) in enumerate(zip(lists, histories, strict=True), start):
            _check(listed, history, user)
            target = int(task.targets[user])
            ranks[user], places[user] = listed.rank(target), listed.place(target)
            shown[listed.items[:k]] += 1
    return Ranking(ranks, places, shown)


def _check(listed: Listed, history: Items, user: int) -> None:
    if (listed.scores[1:] > listed.scores[:-1]).any():
        raise InvalidInput(f"lists[{user}]", "a score rises along the list; it must be best first")
    if np.isin(listed.items, history).any():
        seen = listed.items[np.isin(listed.items, history)][0]
        raise InvalidInput(f"lists[{user}]", f"shows item {seen}, which is in the history")


def summarise(found: Ranks, ks: Sequence[int] = KS, seed: int = 0) -> dict[str, Estimate]:
    """HR and NDCG at each k, by name ("hr@10", "ndcg@10")."""
    rng = np.random.default_rng(seed)
    metrics = (("hr", hit_rate), ("ndcg", ndcg))
    return {f"{name}@{k}": estimate(metric(found, k), rng) for k in ks for name, metric in metrics}


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
