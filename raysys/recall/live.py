"""The items of one shard that changed after its snapshot was built, in their latest state.

A shard's rows 0..n-1 are those of its snapshot, and row n + j is slot j of its live rows. Slots are only ever added: a
newer state of an item takes a new one and leaves the old one dead, until most are, and the rest is laid together. The
snapshot's row of a changed item is served no more; what behaviour says about the item passes on to its slot.

All of this belongs to the one thread that searches the shard.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.errors import EncoderError
from raysys.index.filters import Attributes
from raysys.index.shard_files import ShardFiles, rows_of
from raysys.index.vector_index import NORM_TOLERANCE
from raysys.keys import item_key
from raysys.recall.availability import Availability, Mask
from raysys.recall.fresh import Newest, since_s
from raysys.recall.live_table import add_rows, item_table
from raysys.types import ItemChange, Keys, Terms, Vectors
from raysys.words import item_terms

Rows = NDArray[np.integer]

NOWHERE = -1  # the row of what is not served
COMPACT_FROM_DEAD = 1_024
COMPARE_ALL_FROM_SHARE = 1 / 4  # of the slots wanted: comparing with all then costs less than a copy of these

_DERIVED = (
    "items",
    "_terms_by_slot",
    "attributes",
    "availability",
    "staying",
    "by_popularity",
    "newest",
    "_added",
    "placed",
)


@dataclass(frozen=True, slots=True, eq=False)
class LiveItem:
    """A change, and the vector of its text: [dim] float32, None = not encoded yet."""

    change: ItemChange
    vector: Vectors | None


class _Slots:
    """Arrays of one entry a slot. They have room for more than the ``count`` that are taken, and grow by doubling."""

    def __init__(self, dim: int, room: int = 64) -> None:
        self.count = 0
        self.keys = np.zeros(room, dtype=np.uint64)
        self.vectors = np.zeros((room, dim), dtype=np.float32)
        self.popularity = np.zeros(room, dtype=np.float32)
        self.main_rows = np.zeros(room, dtype=np.int64)
        self.since_s = np.zeros(room, dtype=np.float64)
        self.alive = np.zeros(room, dtype=np.bool_)
        self.has_text = np.zeros(room, dtype=np.bool_)

    def append(self, key: int, vector: Vectors, popularity: float, main_row: int, since_s: float) -> int:
        """The new slot."""
        slot = self.count
        if slot == len(self.keys):
            self._take(np.arange(slot), room=2 * slot)
        self.keys[slot], self.vectors[slot] = key, vector
        self.popularity[slot], self.main_rows[slot], self.since_s[slot] = popularity, main_row, since_s
        self.alive[slot], self.has_text[slot] = True, vector.any()
        self.count += 1
        return slot

    def keep(self, slots: NDArray[np.intp]) -> None:
        """Lay these slots together, ascending ones, and drop the others."""
        self._take(slots, room=max(2 * len(slots), 64))
        self.count = len(slots)

    def _take(self, slots: NDArray[np.intp], room: int) -> None:
        for name, old in vars(self).items():
            if name != "count":
                new = np.zeros((room, *old.shape[1:]), dtype=old.dtype)
                new[: len(slots)] = old[slots]
                setattr(self, name, new)


class LiveRows:
    """See the top of this module. ``version`` grows with every change that is taken in; at 0 there is nothing here.

    n_alive: items served from here. n_replaced: rows of the snapshot that are served no more. n_removed: items that
    were deleted.
    """

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self.n_main = len(files.keys)
        self.version = self.n_alive = self.n_replaced = self.n_removed = 0
        self._states: dict[int, tuple[int, int]] = {}  # item key -> (sequence, slot or NOWHERE)
        self._chunks: list[pa.Table] = []
        self._terms: list[Terms] = []  # of each slot

    def __len__(self) -> int:
        """How many slots there are, dead ones included."""
        return self._slots.count if self.version else 0

    # Taking changes in

    def apply(self, items: Sequence[LiveItem]) -> int:
        """Take in changes of items of this shard, oldest first; returns how many were news.

        A change whose sequence is not above that of the state held is passed over. An item that is not encoded yet
        keeps the vector it had; one that had none is not found by vectors. Raises EncoderError for a vector that does
        not fit those of the snapshot, and then has taken in nothing.
        """
        news = self._news(items)
        if not news:
            return 0
        self._check_vectors(news)
        shown = [item.change for item in news if not item.change.deleted]
        add_rows(self._chunks, item_table(shown, self._files.items.schema))
        keys = [item_key(item.change.item_id) for item in news]
        main_rows = rows_of(self._files.keys, np.array(keys, dtype=np.uint64))
        for key, item, main_row in zip(keys, news, main_rows.tolist(), strict=True):
            self._settle(key, item, main_row)
        self.version += 1
        self._forget_derived()
        self._compact()
        self._count()
        return len(news)

    def _news(self, items: Sequence[LiveItem]) -> list[LiveItem]:
        latest: dict[int, int] = {}
        news = []
        for item in items:
            key = item_key(item.change.item_id)
            held = latest.get(key, self._states.get(key, (-1, NOWHERE))[0])
            if item.change.sequence > held:
                latest[key] = item.change.sequence
                news.append(item)
        return news

    def _check_vectors(self, items: Sequence[LiveItem]) -> None:
        dim = self._files.vectors.shape[1]
        for item in items:
            if item.vector is None:
                continue
            if item.vector.shape != (dim,):
                raise EncoderError(f"the vector of {item.change.item_id!r} is {list(item.vector.shape)}, not [{dim}]")
            length = float(np.linalg.norm(item.vector))
            if not np.isfinite(length):
                raise EncoderError(f"the vector of {item.change.item_id!r} is not finite; encode the item again")
            if self._files.metric == "cosine" and length != 0 and abs(length - 1) > NORM_TOLERANCE:
                raise EncoderError(f"the vector of {item.change.item_id!r} has length {length:.4g}, not 1, for cosine")

    def _settle(self, key: int, item: LiveItem, main_row: int) -> None:
        _, old = self._states.get(key, (-1, NOWHERE))
        slot = NOWHERE
        if not item.change.deleted:
            is_new = main_row == NOWHERE
            popularity = 0.0 if is_new else float(self._files.popularity[main_row])
            since = math.floor(item.change.created_s) if is_new else float(self.main_since_s[main_row])
            slot = self._slots.append(key, self._vector(item, old, main_row), popularity, main_row, since)
            terms = item_terms(item.change.fields or {}, self._files.attribute_names)
            self._terms.append(self._files.vocabulary.weigh(terms))
        if old != NOWHERE:
            self._slots.alive[old] = False
        self._states[key] = (item.change.sequence, slot)
        if main_row != NOWHERE:
            self._moved[main_row] = slot if slot == NOWHERE else self.n_main + slot

    def _vector(self, item: LiveItem, slot: int, main_row: int) -> Vectors:
        if item.vector is not None:
            return item.vector
        held, at = (self._slots.vectors, slot) if slot != NOWHERE else (self._files.vectors, main_row)
        return np.zeros(held.shape[1], dtype=np.float32) if at == NOWHERE else np.asarray(held[at])

    def _compact(self) -> None:
        kept = np.flatnonzero(self.alive)
        n_dead = len(self) - len(kept)
        if n_dead < COMPACT_FROM_DEAD or n_dead <= len(kept):
            return
        self._chunks = [self.items.take(pa.array(kept)).combine_chunks()]
        self._slots.keep(kept)
        self._terms = [self._terms[slot] for slot in kept.tolist()]
        for slot, key in enumerate(self.keys.tolist()):
            self._states[key] = (self._states[key][0], slot)
        main_rows = self._slots.main_rows[: len(self)]
        replacing = np.flatnonzero(main_rows != NOWHERE)
        self._moved[main_rows[replacing]] = self.n_main + replacing
        self._forget_derived()

    def _count(self) -> None:
        self.n_alive = int(np.count_nonzero(self.alive))
        self.n_replaced = int(np.count_nonzero(~self.staying))
        self.n_removed = len(self._states) - self.n_alive

    def _forget_derived(self) -> None:
        for name in _DERIVED:
            self.__dict__.pop(name, None)

    # The slots, [len(self)] each

    @cached_property
    def _slots(self) -> _Slots:
        return _Slots(self._files.vectors.shape[1])

    @property
    def keys(self) -> Keys:
        return self._slots.keys[: len(self)]

    @property
    def popularity(self) -> NDArray[np.float32]:
        return self._slots.popularity[: len(self)]

    @property
    def since_s(self) -> NDArray[np.float64]:
        """Since when the item is there (``fresh.since_s``): a change of one of the snapshot makes it no newer."""
        return self._slots.since_s[: len(self)]

    @property
    def alive(self) -> Mask:
        return self._slots.alive[: len(self)]

    @property
    def has_text(self) -> Mask:
        """Which slots have a vector other than zero."""
        return self._slots.has_text[: len(self)]

    @cached_property
    def items(self) -> pa.Table:
        """The fields of every slot, in the columns of the snapshot's items."""
        return pa.concat_tables(self._chunks) if self._chunks else self._files.items.schema.empty_table()

    @cached_property
    def attributes(self) -> Attributes:
        return Attributes(self.items)

    @cached_property
    def availability(self) -> Availability:
        """By hidden and windows alone: dead slots are as available as they were."""
        return Availability(self.items)

    @cached_property
    def by_popularity(self) -> Rows:
        """The rows of the living slots, the most popular first, ties by key."""
        order = np.lexsort((self.keys, -self.popularity))
        rows: Rows = self.n_main + order[self.alive[order]]
        return rows

    @cached_property
    def newest(self) -> Newest:
        """The living slots by age."""
        return Newest(self.since_s, self.keys, self.alive)

    # The snapshot's rows

    @cached_property
    def main_since_s(self) -> NDArray[np.float64]:
        """[n_main] float64: since when each item of the snapshot is there (``fresh.since_s``)."""
        return since_s(self._files.items)

    @cached_property
    def _moved(self) -> NDArray[np.int32]:
        """[n_main + 1] int32: where the item of each row of the snapshot is now. NOWHERE, which is the last, stays."""
        return np.append(np.arange(self.n_main), NOWHERE).astype(np.int32)

    @cached_property
    def staying(self) -> Mask:
        """[n_main] bool: the rows of the snapshot that are still served."""
        stays: Mask = self._moved[:-1] == np.arange(self.n_main)
        return stays

    @cached_property
    def _added(self) -> tuple[Keys, Rows]:
        """Keys, ascending, and rows of the items that the snapshot does not hold."""
        slots = np.flatnonzero(self.alive & (self._slots.main_rows[: len(self)] == NOWHERE))
        slots = slots[np.argsort(self.keys[slots])]
        return self.keys[slots], self.n_main + slots

    def locate(self, keys: Keys) -> Rows:
        """[len(keys)]: the row that serves each item, NOWHERE where none does."""
        rows: Rows = self._moved[rows_of(self._files.keys, keys)]
        added_keys, added_rows = self._added
        if not len(added_keys):
            return rows
        at = rows_of(added_keys, keys)
        return np.where(at >= 0, added_rows[at], rows)

    def carry(self, rows: Rows, scores: NDArray[np.float32]) -> tuple[Rows, NDArray[np.float32]]:
        """Scores of rows of the snapshot, ascending, as scores of the rows that serve the items now, ascending."""
        moved = self._moved[rows]
        order = np.argsort(moved, kind="stable")  # fast for what is nearly sorted
        order = order[np.searchsorted(moved, 0, sorter=order) :]
        return moved[order], scores[order]

    # Vectors

    def compare(self, queries: Vectors, found: Mask | None) -> NDArray[np.float32]:
        """[q, len(self)] float32: the score of each slot for each query, as that of ``VectorIndex.search``.

        queries: [q, dim] float32. found: [len(self)] bool, None = all; the score of the others is minus infinity.
        """
        vectors = self._slots.vectors[: len(self)]
        if found is None:
            return self._compare(queries, vectors)
        if np.count_nonzero(found) >= COMPARE_ALL_FROM_SHARE * len(self):
            scores = self._compare(queries, vectors)
            scores[:, ~found] = -np.inf
            return scores
        scores = np.full((len(queries), len(self)), -np.inf, dtype=np.float32)
        scores[:, found] = self._compare(queries, vectors[found])
        return scores

    def score_slots(self, queries: Vectors, slots: Rows) -> NDArray[np.float32]:
        """[q, m] float32: as ``VectorIndex.score_rows`` of each query, [q, dim], which it has checked."""
        scores = self._compare(queries, self._slots.vectors[slots])
        if self._files.metric == "l2":
            scores[:, ~self._slots.has_text[slots]] = 0
            scores[~queries.any(axis=1)] = 0
        return scores

    @cached_property
    def placed(self) -> dict[int, tuple[Rows, Vectors]]:
        """(rows, ascending; [m, d] float32) of the items that the snapshot does not hold, by their texts.

        By one of ``types.SPACES``, of those whose models know new items.
        """
        rows = np.sort(self._added[1])
        rows = rows[self.has_text[rows - self.n_main]]
        text = self._slots.vectors[rows - self.n_main]
        return {source: (rows, model.items(text)) for source, model in self._files.item_models.items()}

    # Words

    def score_words(self, wanted: Terms) -> tuple[Rows, NDArray[np.float32]]:
        """(living slots, ascending; scores): those that hold any of these terms."""
        slots, keys, weights = self._terms_by_slot
        at = rows_of(wanted.keys, keys)
        held = at >= 0
        scores = np.bincount(slots[held], weights=weights[held] * wanted.weights[at[held]], minlength=len(self))
        found = np.flatnonzero((scores != 0) & self.alive)
        return found, scores[found].astype(np.float32)

    @cached_property
    def _terms_by_slot(self) -> tuple[Rows, Keys, NDArray[np.float32]]:
        """The slot, key and weight of each term of each slot."""
        keys = np.concatenate([np.empty(0, np.uint64), *(terms.keys for terms in self._terms)])
        weights = np.concatenate([np.empty(0, np.float32), *(terms.weights for terms in self._terms)])
        return np.repeat(np.arange(len(self)), [len(terms) for terms in self._terms]), keys, weights

    def _compare(self, queries: Vectors, vectors: Vectors) -> NDArray[np.float32]:
        if self._files.metric != "l2":
            return np.asarray(queries @ vectors.T)
        return np.stack([1 / (1 + np.linalg.norm(vectors - query, axis=1)) for query in queries])
