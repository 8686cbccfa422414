"""What is shown to a batch of users, and the judgement of which of it is relevant."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation.sequences import Items, Sequences

Mask = NDArray[np.bool_]
Scores = NDArray[np.float32]

NOTHING = -1  # fills a list that has fewer items than places


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """One list a user, best first.

    items: [n_users, length] int64 item indices, ``NOTHING`` behind the last. scores: [n_users, length] float64, never
    rising, -inf where there is no item.
    """

    items: Items
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.items)


# Histories of a batch of users -> what each is shown, without what is in the history.
Lister = Callable[[Sequences], Lists]
# Histories of a batch of users -> [n_users, n_items] float32, higher is better; what is no finite number is not shown.
Scorer = Callable[[Sequences], Scores]


def padded(rows: list[tuple[Items, NDArray[np.float64]]], length: int) -> Lists:
    """From items and scores of each user; what is longer than ``length`` is cut."""
    lists = _empty(len(rows), length)
    for user, (items, scores) in enumerate(rows):
        n = min(len(items), length)
        lists.items[user, :n], lists.scores[user, :n] = items[:n], scores[:n]
    return lists


def by_score(scorer: Scorer, length: int) -> Lister:
    """A lister that shows the best by these scores, without what the history holds."""

    def lister(histories: Sequences) -> Lists:
        scores = scorer(histories).astype(np.float64)
        scores[histories.owners, histories.items] = -np.inf
        return best(np.where(np.isfinite(scores), scores, -np.inf), length)

    return lister


def best(scores: NDArray[np.float64], length: int) -> Lists:
    """The best items of each row of [n_users, n_items]; -inf is not shown. Equal ones in the list go by index."""
    lists = _empty(len(scores), length)
    n = min(length, scores.shape[1])
    kept = np.sort(np.argpartition(-scores, n - 1, axis=1)[:, :n], axis=1) if n else np.empty((len(scores), 0), int)
    found = np.take_along_axis(scores, kept, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    lists.scores[:, :n] = found
    lists.items[:, :n] = np.where(np.isfinite(found), np.take_along_axis(kept, order, axis=1), NOTHING)
    return lists


def filled(lister: Lister, fallback: Lister) -> Lister:
    """Where the first has nothing at all for a user, the list of the second."""

    def both(histories: Sequences) -> Lists:
        lists = lister(histories)
        silent = np.flatnonzero(lists.items[:, 0] == NOTHING)
        if len(silent):
            other = fallback(histories.take(silent))
            lists.items[silent], lists.scores[silent] = other.items, other.scores
        return lists

    return both


def check(lists: Lists, n_users: int, n_items: int, needed: int) -> None:
    """Raises InvalidInput for lists that cannot be judged, or that flatter a recommender."""
    if lists.items.shape != (n_users, lists.items.shape[-1]) or lists.items.shape[-1] < needed:
        raise InvalidInput(
            "lists",
            f"are of shape {lists.items.shape} for {n_users} users; {needed} places are needed, so that ties at"
            f" the cut are seen; fill shorter lists up with {NOTHING}",
        )
    there = lists.items != NOTHING
    if ((lists.items < NOTHING) | (lists.items >= n_items)).any():
        raise InvalidInput("lists", f"item {int(lists.items.max())} is none of the {n_items} of the catalogue")
    if np.isnan(lists.scores).any() or (lists.scores[there] == np.inf).any():
        raise InvalidInput("lists", "a score is no finite number")
    with np.errstate(invalid="ignore"):
        rises = (lists.scores[:, 1:] > lists.scores[:, :-1]) | (there[:, 1:] & ~there[:, :-1])
    _refuse(rises, "a score rises along the list, or nothing stands before an item; it must be best first")
    ordered = np.sort(lists.items, axis=1)
    _refuse((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOTHING), "an item is shown twice")


def _refuse(wrong: Mask, message: str) -> None:
    if wrong.any():
        raise InvalidInput(f"lists[{int(wrong.any(axis=1).argmax())}]", message)


def holds(sequences: Sequences, items: Items) -> Mask:
    """Which of ``items`` [n_users, length] are in the sequence of the user of the row. [n_users, length] bool."""
    if not len(sequences.items):
        return np.zeros(items.shape, dtype=np.bool_)
    width = 1 + max(int(sequences.items.max()), int(items.max(initial=0)))
    held = np.sort(sequences.owners * width + sequences.items)
    keys = np.arange(len(items))[:, None] * width + items
    at = np.minimum(np.searchsorted(held, keys), len(held) - 1)
    found: Mask = (held[at] == keys) & (items != NOTHING)
    return found


def pessimistic(lists: Lists, relevant: Mask) -> Mask:
    """Which places hold a relevant item when ties go against us. [n_users, length] bool.

    Of equal scores the relevant items come last. Where equal scores reach the end of a full list they may go on
    beyond it, so relevant items among them count for nothing: a list one longer than k shows every tie that matters
    for a metric at k.
    """
    order = np.lexsort((relevant, -lists.scores), axis=1)
    full = lists.items[:, -1:] != NOTHING
    open_ended = full & (lists.scores == lists.scores[:, -1:])
    judged: Mask = np.take_along_axis(relevant, order, axis=1) & ~open_ended
    return judged


def _empty(n_users: int, length: int) -> Lists:
    return Lists(np.full((n_users, length), NOTHING, dtype=np.int64), np.full((n_users, length), -np.inf))
