"""The protocol of record: lists from the whole catalogue, no sampled negatives, one evaluator for every recommender.

Users are asked in batches, so memory is that of one batch, of the catalogue, and of some 300 bytes of results a user.
Parts of the users may be evaluated on different machines and put together by ``concatenate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation import lists as listing
from raysys.evaluation import metrics
from raysys.evaluation.lists import Lister, Lists, Mask
from raysys.evaluation.metrics import Labels, PerUser
from raysys.evaluation.sequences import Items, Sequences, counts_of
from raysys.evaluation.splits import Task

KS = (10, 20)
LIST_LENGTH = max(KS) + 1  # one more than is looked at, so that ties at the cut are seen
K = KS[0]  # of slices, and of what is not accuracy
STRATA = ("unseen", "tail", "middle", "head")


@dataclass(frozen=True, slots=True, eq=False)
class ItemFacts:
    """What is known of the catalogue when lists are judged; all of it from what the fold is fitted on.

    counts: [n_items] int64, training events of each item. n_train_users: who had any. vectors: [n_items, dim] float32,
    L2-normalised texts, zero where there is none. slices: name -> [n_items] bool, relevant items to judge apart.
    """

    counts: Items
    n_train_users: int
    vectors: NDArray[np.float32] | None = None
    categories: Labels | None = None
    slices: Mapping[str, Mask] = field(default_factory=dict)

    @property
    def n_items(self) -> int:
        return len(self.counts)


def facts_of(
    train: Sequences,
    n_items: int,
    vectors: NDArray[np.float32] | None = None,
    categories: Labels | None = None,
) -> ItemFacts:
    """Facts with the slices of record: by popularity in train, and warm and cold items (``cold``: not in train)."""
    counts = counts_of(train, n_items)
    stratum = popularity_strata(counts)
    slices = {name: stratum == i for i, name in enumerate(STRATA)} | {"warm": counts > 0, "cold": counts == 0}
    return ItemFacts(counts, int(np.count_nonzero(train.lengths)), vectors, categories, slices)


def popularity_strata(counts: Items) -> NDArray[np.int8]:
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


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a recommender did on a task, row by row of it.

    users, history_lengths: [n] int64. metrics: by name. slices: slice -> metric -> values, of relevant items of the
    slice alone. shown: [n_items] int64, how many users had the item among their first ``K``. lost_to_ties: users whose
    relevant items rank lower than they stood because others have their score. showed_seen: users who were shown what
    is in their history; such an item is never relevant, so it only takes a place away.
    """

    users: Items
    history_lengths: Items
    metrics: Mapping[str, PerUser]
    slices: Mapping[str, Mapping[str, PerUser]]
    shown: Items
    lost_to_ties: int
    showed_seen: int

    def __len__(self) -> int:
        return len(self.users)


def evaluate(lister: Lister, task: Task, facts: ItemFacts, batch: int = 256) -> Evaluation:
    """Ask for the list of every user, a batch of users at a time, and judge them.

    Lists need ``LIST_LENGTH`` places. Raises InvalidInput for a task of nobody, and as ``lists.check`` does.
    """
    if not len(task):
        raise InvalidInput("task", "asks nobody, so there is nothing to evaluate")
    shown, parts = np.zeros(facts.n_items, dtype=np.int64), []
    for start in range(0, len(task), batch):
        part = _judge(lister, task.take(np.arange(start, min(start + batch, len(task)))), facts)
        shown += part.shown
        parts.append(replace(part, shown=shown[:0]))  # one array of the catalogue's size is enough
    return replace(concatenate(parts), shown=shown)


def concatenate(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of several: of other users, or of the same ones in other windows."""
    if not parts:
        raise InvalidInput("parts", "there are none to put together")
    return Evaluation(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.history_lengths for part in parts]),
        _joined([part.metrics for part in parts]),
        {name: _joined([part.slices[name] for part in parts]) for name in parts[0].slices},
        np.sum([part.shown for part in parts], axis=0),
        sum(part.lost_to_ties for part in parts),
        sum(part.showed_seen for part in parts),
    )


def _joined(parts: Sequence[Mapping[str, PerUser]]) -> dict[str, PerUser]:
    return {
        name: PerUser(
            np.concatenate([part[name].values for part in parts]),
            np.concatenate([part[name].defined for part in parts]),
        )
        for name in parts[0]
    }


def _judge(lister: Lister, task: Task, facts: ItemFacts) -> Evaluation:
    """One batch of users."""
    lists = lister(task.histories)
    listing.check(lists, len(task), facts.n_items, LIST_LENGTH)
    shown = lists.items[:, :K]
    relevant = listing.holds(task.targets, lists.items)
    judged = listing.pessimistic(lists, relevant)
    found = {name: value for k in KS for name, value in metrics.accuracy(judged, task.targets.lengths, k).items()}
    return Evaluation(
        task.users,
        task.histories.lengths,
        found | _beyond_accuracy(shown, task.histories, facts),
        {name: _slice(lists, relevant, task.targets, mask) for name, mask in facts.slices.items()},
        np.bincount(shown[shown != listing.NOTHING], minlength=facts.n_items).astype(np.int64),
        int(np.count_nonzero((judged != relevant).any(axis=1))),
        int(np.count_nonzero(listing.holds(task.histories, shown).any(axis=1))),
    )


def _beyond_accuracy(shown: Items, histories: Sequences, facts: ItemFacts) -> dict[str, PerUser]:
    information = metrics.self_information(facts.counts, facts.n_train_users)
    found = {f"novelty@{K}": metrics.novelty(shown, information)}
    if facts.vectors is not None:
        found[f"similarity@{K}"] = metrics.intra_list_similarity(shown, facts.vectors)
    if facts.categories is not None:
        found[f"miscalibration@{K}"] = metrics.calibration(shown, histories, facts.categories)
    return found


def _slice(lists: Lists, relevant: Mask, targets: Sequences, mask: Mask) -> dict[str, PerUser]:
    """Accuracy at ``K`` where only relevant items of the slice count; users of none have no metric."""
    judged = listing.pessimistic(lists, relevant & mask[lists.items])
    n_relevant = np.bincount(targets.owners[mask[targets.items]], minlength=len(targets)).astype(np.int64)
    return metrics.accuracy(judged, n_relevant, K)
