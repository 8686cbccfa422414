"""Items by id, over a snapshot and what changed after it was built: for ids in a request and for the n winners."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysys.errors import Unavailable
from raysys.index.catalogue import Catalogue
from raysys.index.words import NO_TERMS
from raysys.keys import term_key
from raysys.types import Candidates, Keys, Terms, Vectors
from raysys.words import item_terms, text_terms


class Live(Protocol):
    """What changed after the snapshot was built, and the vectors of what people wrote."""

    @property
    def position(self) -> int:
        """Grows with every change."""
        ...

    def states(self, keys: Keys) -> dict[int, bool]:
        """For those of these items that changed: whether they may still be shown."""
        ...

    async def vectors(self, item_ids: Sequence[str]) -> dict[str, Vectors]:
        """The vectors of those of these items that changed and are encoded."""
        ...

    async def fields(self, keys: Keys) -> dict[int, tuple[str, Mapping[str, Any]]]:
        """Id and fields, plain JSON values, of those of these items that changed and are not deleted."""
        ...

    async def sayings(self, texts: Sequence[str]) -> list[Vectors | None]:
        """The vector of each text; None for one that is not encoded yet, which happens now, beside the requests."""
        ...


class NothingLive:
    """A snapshot on its own."""

    position = 0

    def states(self, keys: Keys) -> dict[int, bool]:
        return {}

    async def vectors(self, item_ids: Sequence[str]) -> dict[str, Vectors]:
        return {}

    async def fields(self, keys: Keys) -> dict[int, tuple[str, Mapping[str, Any]]]:
        return {}

    async def sayings(self, texts: Sequence[str]) -> list[Vectors | None]:
        return [None] * len(texts)


class Lookup:
    """The catalogue as it is now."""

    def __init__(self, catalogue: Catalogue, live: Live) -> None:
        self.catalogue, self.live = catalogue, live

    def unknown(self, item_ids: Sequence[str]) -> list[str]:
        """Those of these ids that the catalogue does not hold."""
        given = list(dict.fromkeys(item_ids))
        found = self.catalogue.find(given)
        states = self.live.states(found.keys)
        known = zip(given, found.keys.tolist(), found.known.tolist(), strict=True)
        return [item_id for item_id, key, in_snapshot in known if not states.get(key, in_snapshot)]

    async def vectors(self, item_ids: Sequence[str]) -> tuple[Vectors, NDArray[np.bool_]]:
        """([n_known, dim] float32 in the order of the ids, [n] bool which ids these are). Changed items by their new
        text; those removed or not encoded yet by what the snapshot has of them."""
        found = self.catalogue.find(item_ids)
        states = self.live.states(found.keys)
        if not states:
            return self.catalogue.vectors(found), found.known
        changed = [i for i, key in zip(item_ids, found.keys.tolist(), strict=True) if key in states]
        newer = await self.live.vectors(changed)
        known = found.known | np.fromiter((i in newer for i in item_ids), dtype=np.bool_)
        old = iter(self.catalogue.vectors(found))
        rows = []
        for item_id, in_snapshot in zip(item_ids, found.known.tolist(), strict=True):
            vector = next(old) if in_snapshot else None
            vector = newer.get(item_id, vector)
            if vector is not None:
                rows.append(vector)
        dim = self.catalogue.manifest.encoder_identity.dim
        return np.stack(rows) if rows else np.empty((0, dim), dtype=np.float32), known

    async def terms(self, item_ids: Sequence[str]) -> list[Terms]:
        """The terms of each item, of changed ones by their new fields; none of one that the catalogue does not hold."""
        found = self.catalogue.find(item_ids)
        known = iter(self.catalogue.terms(found))
        terms = [next(known) if in_snapshot else NO_TERMS for in_snapshot in found.known.tolist()]
        states = self.live.states(found.keys)
        changed = await self.live.fields(np.array(list(states), dtype=np.uint64)) if states else {}
        for at, key in enumerate(found.keys.tolist()):
            if key in changed:
                terms[at] = self.named_terms(changed[key][1])[1]
        return terms

    def named_terms(self, fields: Mapping[str, Any]) -> tuple[dict[int, str], Terms]:
        """(What each term of an item with these fields says, by key; the terms)."""
        counts = item_terms(fields, self.catalogue.shards[0].attribute_names)
        return {term_key(term): term for term in counts}, self.catalogue.vocabulary.weigh(counts)

    def text_terms(self, text: str) -> Terms:
        """What a text asks for by its terms."""
        vocabulary = self.catalogue.vocabulary
        return vocabulary.wanted(vocabulary.weigh(Counter(text_terms(text))))

    def hide_removed(self, candidates: Candidates, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores, with minus infinity for what was removed a moment ago, before every shard knows of it."""
        removed = [key for key, shown in self.live.states(candidates.key).items() if not shown]
        if not removed:
            return scores
        gone = np.isin(candidates.key, np.array(removed, dtype=np.uint64))
        return np.where(gone, np.float32(-np.inf), scores)

    async def describe(
        self, candidates: Candidates, at: NDArray[np.intp]
    ) -> tuple[list[tuple[int, str, Mapping[str, Any]]], bool]:
        """((position, id, fields) of the candidates at these positions, in their order; whether all could be read).

        One that went away while the request was under way is left out, and changed ones while the store is away.
        """
        keys = candidates.key[at]
        changed = self.live.states(keys)
        is_live = np.array([self._is_live(candidates, int(i)) for i in at], dtype=np.bool_)
        fields, is_complete = await self._fields(keys) if changed or is_live.any() else ({}, True)
        described = []
        for i, key, live in zip(at.tolist(), keys.tolist(), is_live.tolist(), strict=True):
            shard, row = int(candidates.shard[i]), int(candidates.row[i])
            if key in fields:
                described.append((i, *fields[key]))
            elif not live and key not in changed:
                described.append((i, self.catalogue.item_id(shard, row), self.catalogue.metadata(shard, row)))
        return described, is_complete

    async def _fields(self, keys: Keys) -> tuple[dict[int, tuple[str, Mapping[str, Any]]], bool]:
        try:
            return await self.live.fields(keys), True
        except Unavailable:
            return {}, False

    def _is_live(self, candidates: Candidates, i: int) -> bool:
        """Whether the shard found it among its live rows, which stand behind those of the snapshot."""
        return int(candidates.row[i]) >= len(self.catalogue.shards[int(candidates.shard[i])].keys)

    async def items(self, item_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Fields of those of these items that the catalogue holds, hidden ones included."""
        found = self.catalogue.find(item_ids)
        changed = await self.live.fields(found.keys)
        states = self.live.states(found.keys)
        items: dict[str, Mapping[str, Any]] = {}
        places = zip(item_ids, found.keys.tolist(), found.shard.tolist(), found.row.tolist(), strict=True)
        for item_id, key, shard, row in places:
            if key in changed:
                items[item_id] = changed[key][1]
            elif row >= 0 and key not in states:
                items[item_id] = self.catalogue.metadata(shard, row)
        return items
