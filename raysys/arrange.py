"""From ranked candidates to the list as a whole: what the rules of ``ranking.rerank`` need to know is read here.

The rules are those of the settings, and of the request where it says more. They look at the best few hundred
candidates and at what is promoted, which comes in only where it may be shown: recall has checked it like any other.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.config import RankingSettings
from raysys.errors import ConfigError, InvalidInput, Unavailable, UnknownField
from raysys.index.catalogue import Found
from raysys.keys import item_keys, seed_of
from raysys.lookup import Lookup
from raysys.ranking.diversify import Likeness
from raysys.ranking.explore import Room, TimesShown, explore, may_stand
from raysys.ranking.groups import Groups
from raysys.ranking.rerank import CALIBRATION, PROMOTION, Listing, Mix, Move, Pool, Rules, rerank
from raysys.ranking.select import top_n
from raysys.recall.fresh import younger_than
from raysys.types import FRESH, Candidates, Cap, Promotion, Request, Vectors

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Arranged:
    """at: [<= limit] positions of the candidates in the list. moves: by position. labels: of the promoted positions,
    which may have none. unmet: as in ``Answer``. is_complete: whether what changed could be read.
    propensities: by position, of each item of a list that explores; explored: the positions of those that were drawn.
    """

    at: Indices
    moves: Mapping[int, Sequence[Move]] = field(default_factory=dict)
    labels: Mapping[int, str | None] = field(default_factory=dict)
    unmet: tuple[Mapping[str, str | None], ...] = ()
    is_complete: bool = True
    propensities: Mapping[int, float] = field(default_factory=dict)
    explored: Collection[int] = ()


class Arranger:
    """Arranges lists over one snapshot and what changed since. Raises ConfigError for settings that do not fit it.

    times_shown: of new items, to be counted here.
    """

    def __init__(self, lookup: Lookup, settings: RankingSettings, times_shown: TimesShown) -> None:
        self._lookup, self._settings, self._times_shown = lookup, settings, times_shown
        fields = {f"ranking.caps.{name}": name for name in settings.caps}
        fields |= {"ranking.one_per": settings.one_per} if settings.one_per is not None else {}
        fields |= {"ranking.calibration_field": settings.calibration_field} if settings.calibration else {}
        for path, name in fields.items():
            try:
                self._check_field(name, path)
            except InvalidInput as error:
                raise ConfigError(str(error)) from error

    def check(self, request: Request) -> None:
        """Raises UnknownField, or InvalidInput that names the field, for rules that cannot be applied."""
        for i, cap in enumerate(request.caps):
            self._check_field(cap.field, f"caps[{i}].field")
            if cap.field in [other.field for other in request.caps[:i]]:
                raise InvalidInput(f"caps[{i}].field", f"{cap.field!r} has a cap already; give one a field")
        if request.one_per is not None:
            self._check_field(request.one_per, "one_per")
        if request.calibration:
            self._check_field(self._settings.calibration_field, "calibration")
        for i, promotion in enumerate(request.promotions):
            _check_promotion(promotion, request.promotions[:i], request.limit, f"promotions[{i}]")

    def for_stranger(self, request: Request) -> Request:
        """The request of somebody of whom nothing is known."""
        diversity = self._settings.cold_diversity
        return request if diversity is None or request.diversity is not None else replace(request, diversity=diversity)

    def explores(self, request: Request) -> bool:
        """Whether places of the list are left to chance."""
        asked = self._settings.explore.enabled if request.explore is None else request.explore
        return asked and request.recommendation_id is not None

    def has_rules(self, request: Request) -> bool:
        """Whether any rule applies; without one, the list is the ``limit`` best."""
        return bool(request.promotions or self.rules(request).names())

    def rules(self, request: Request) -> Rules:
        """The rules for this request, promotions not among them: where they are is known after recall."""
        settings = self._settings
        most = settings.caps | {cap.field: cap.most for cap in request.caps}
        caps = {f"cap:{name}": Cap(name, count) for name, count in most.items()}
        one_per = settings.one_per if request.one_per is None else request.one_per
        if one_per is not None:
            caps[f"one_per:{one_per}"] = Cap(one_per, 1)
        return Rules(
            diversity=settings.diversity if request.diversity is None else request.diversity,
            method=settings.diversity_method,
            calibration=settings.calibration if request.calibration is None else request.calibration,
            caps=caps,
        )

    async def arrange(
        self, request: Request, liked: Sequence[str], candidates: Candidates, n_found: int, scores: NDArray[np.float32]
    ) -> Arranged:
        """The list for this request.

        liked: the items of the person's mix, each of which counts once.
        candidates: those found, ``n_found`` of them, then those that promotions bring in. scores: [n] float32, not
        finite for what may not be shown.
        """
        rules = self.rules(request)
        n_pool = max(self._settings.rerank_candidates, 2 * request.limit)
        best = top_n(scores[:n_found], candidates.key[:n_found], n_pool)
        promoted = _promoted(request.promotions, candidates, scores)
        at = np.concatenate([best, np.setdiff1d(np.array([*promoted.values()], dtype=np.intp), best)])
        place = {position: i for i, position in enumerate(at.tolist())}
        rules = replace(rules, pins={promotion.slot: place[position] for promotion, position in promoted.items()})
        reader = _Reader(self._lookup)
        pool, rules = await self._pool(reader, rules, liked, candidates, at, scores[best])
        listing = rerank(pool, rules, request.limit)
        unmet = [*_unmet_promotions(request.promotions, promoted, listing, at), *_short(listing, request.limit)]
        if pool.mix is None and self.rules(request).calibration:
            unmet.append(_unmet(CALIBRATION, f"nothing is known of their {self._settings.calibration_field}"))
        return _arranged(listing, at, promoted, unmet, reader.is_complete)

    async def explore(
        self, request: Request, candidates: Candidates, n_found: int, scores: NDArray[np.float32], arranged: Arranged
    ) -> Arranged:
        """The list with places given to new items. Each of its items comes with its propensity from here on."""
        assert request.recommendation_id is not None  # noqa: S101  # see explores
        settings = self._settings.explore
        is_new = younger_than(settings.days, candidates.scores[:, FRESH])
        new = self._new(candidates, np.where(is_new, scores, -np.inf)[:n_found], arranged.at)
        used, n = np.concatenate([arranged.at, new]), len(arranged.at)  # from here on positions are those in here
        room, is_complete = await self._room(request, _places(candidates, used), n)
        promoted = {place for place, at in enumerate(arranged.at.tolist()) if at in arranged.labels}
        staying = {*range(settings.from_place - 1), *promoted}
        standing = may_stand(range(n), range(n, len(used)), staying, settings.one_in, room)
        rng = np.random.default_rng(seed_of(request.recommendation_id))
        drawn = explore(range(n), standing, settings.one_in, rng)
        at = used[np.array(drawn.order, dtype=np.intp)]
        self._times_shown.add(candidates.key[at[is_new[at]]])
        return replace(
            arranged,
            at=at,
            is_complete=arranged.is_complete and is_complete,
            propensities=dict(zip(at.tolist(), drawn.propensities, strict=True)),
            explored=frozenset(at[list(drawn.explored)].tolist()),
        )

    def _new(self, candidates: Candidates, scores: NDArray[np.float32], listed: Indices) -> Indices:
        """Positions of the new items that the list does not have, the best first. scores: not finite for all others."""
        settings = self._settings.explore
        new = np.flatnonzero(np.isfinite(scores))
        new = new[~np.isin(candidates.key[new], candidates.key[listed])]
        new = new[self._times_shown.below(candidates.key[new], settings.most_shown)]
        return new[top_n(scores[new], candidates.key[new], settings.pool)]

    async def _room(self, request: Request, places: Found, n_listed: int) -> tuple[Room, bool]:
        """What caps leave room for in a list of the first of these places, and whether what changed could be read."""
        caps = [cap for cap in self.rules(request).caps.values() if len(places.keys) > n_listed]
        reader = _Reader(self._lookup)
        groups = {cap.field: Groups.of(await reader.column(places, cap.field)) for cap in caps}
        return Room(range(n_listed), [(cap.most, groups[cap.field]) for cap in caps]), reader.is_complete

    async def _pool(
        self,
        reader: "_Reader",
        rules: Rules,
        liked: Sequence[str],
        candidates: Candidates,
        at: Indices,
        scores: NDArray[np.float32],
    ) -> tuple[Pool, Rules]:
        """The pool, and the rules less a calibration that has nothing to go by."""
        places = _places(candidates, at)
        groups = {cap.field: Groups.of(await reader.column(places, cap.field)) for cap in rules.caps.values()}
        mix = await self._mix(reader, liked, places) if rules.calibration else None
        if mix is None:
            rules = rules.without(CALIBRATION)
        likeness = await self._likeness(reader, places) if rules.diversity else None
        return Pool(scores, len(at), groups, likeness, mix), rules

    async def _mix(self, reader: "_Reader", liked: Sequence[str], places: Found) -> Mix | None:
        """The person's mix and the pool's groups, by the same numbers."""
        mine = self._lookup.catalogue.find(liked)
        both = Found(*(np.concatenate(pair) for pair in zip(_parts(places), _parts(mine), strict=True)))
        groups = Groups.of(await reader.column(both, self._settings.calibration_field))
        n_pool = len(places.keys)
        wanted = groups.mix(np.arange(len(both.keys)) >= n_pool)
        return None if wanted is None else Mix(wanted, groups.first(n_pool))

    async def _likeness(self, reader: "_Reader", places: Found) -> Likeness:
        vectors = await reader.vectors(places)
        contrast = self._lookup.catalogue.contrast
        return Likeness(vectors, np.zeros(vectors.shape[1], np.float32) if contrast is None else contrast.mean)

    def _check_field(self, name: str, path: str) -> None:
        """Whether items can be counted by the values of this field."""
        schema = self._lookup.catalogue.schema
        if name not in schema.names:
            fields = ", ".join(sorted(schema.names))
            raise UnknownField(path, f"there is no field {name!r}; the catalogue has: {fields}")
        kind = schema.field(name).type
        element = kind.value_type if pa.types.is_list(kind) else kind
        if not (pa.types.is_string(element) or pa.types.is_integer(element) or pa.types.is_boolean(element)):
            raise InvalidInput(path, f"field {name!r} ({kind}) has no values to count by; use one of text or integers")


class _Reader:
    """Vectors and fields of items at places of the snapshot, and of those that changed since.

    is_complete: whether the store could be read. What could not counts as without vector and value.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup, self._catalogue = lookup, lookup.catalogue
        self.is_complete = True

    async def vectors(self, places: Found) -> Vectors:
        """[n, dim] float32, zero for what has none."""
        vectors = np.zeros((len(places.keys), self._catalogue.manifest.encoder_identity.dim), dtype=np.float32)
        changed = self._changed(places)
        for number, mine in self._by_shard(places, ~changed):
            vectors[mine] = self._catalogue.shards[number].vectors[places.row[mine]]
        live = await self._live_fields(places, changed)
        if live:
            vectors[list(live)] = await self._live_vectors([item_id for item_id, _ in live.values()])
        return vectors

    async def column(self, places: Found, name: str) -> pa.Array:
        """[n] values of one field, null for what has none."""
        kind = self._catalogue.schema.field(name).type
        changed = self._changed(places)
        parts, order = [], []
        for number, mine in self._by_shard(places, ~changed):
            parts += self._catalogue.shards[number].items[name].take(pa.array(places.row[mine])).chunks
            order.append(mine)
        live = await self._live_fields(places, changed)
        at = np.flatnonzero(changed)
        parts.append(pa.array([live[i][1].get(name) if i in live else None for i in at.tolist()], kind))
        order.append(at)
        return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(order))))

    def _changed(self, places: Found) -> NDArray[np.bool_]:
        """[n] bool: those that the snapshot does not have, or no longer as they are."""
        sizes = np.array([len(shard.keys) for shard in self._catalogue.shards])
        changed: NDArray[np.bool_] = (places.row < 0) | (places.row >= sizes[places.shard])
        states = self._lookup.live.states(places.keys)
        return changed | np.isin(places.keys, np.array(list(states), dtype=np.uint64)) if states else changed

    def _by_shard(self, places: Found, wanted: NDArray[np.bool_]) -> list[tuple[int, Indices]]:
        shards = np.unique(places.shard[wanted]).tolist()
        return [(number, np.flatnonzero(wanted & (places.shard == number))) for number in shards]

    async def _live_fields(
        self, places: Found, changed: NDArray[np.bool_]
    ) -> dict[int, tuple[str, Mapping[str, object]]]:
        """Position -> (id, fields) of those that changed and are not deleted."""
        if not changed.any():
            return {}
        try:
            found = await self._lookup.live.fields(places.keys[changed])
        except Unavailable:
            self.is_complete = False
            return {}
        keys = places.keys.tolist()
        return {int(i): found[keys[i]] for i in np.flatnonzero(changed) if keys[i] in found}

    async def _live_vectors(self, item_ids: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(item_ids), self._catalogue.manifest.encoder_identity.dim), dtype=np.float32)
        try:
            found, known = await self._lookup.vectors(item_ids)
            vectors[known] = found
        except Unavailable:
            self.is_complete = False
        return vectors


def _check_promotion(promotion: Promotion, before: Sequence[Promotion], limit: int, path: str) -> None:
    if promotion.slot > limit:
        raise InvalidInput(f"{path}.slot", f"slot {promotion.slot} is beyond the limit of {limit}")
    if promotion.slot in [other.slot for other in before]:
        raise InvalidInput(f"{path}.slot", f"slot {promotion.slot} is given twice")
    if promotion.item_id in [other.item_id for other in before]:
        raise InvalidInput(f"{path}.item_id", f"item {promotion.item_id!r} is promoted twice")


def _promoted(
    promotions: Sequence[Promotion], candidates: Candidates, scores: NDArray[np.float32]
) -> dict[Promotion, int]:
    """The first position of each promoted item that may be shown."""
    if not promotions:
        return {}
    shown = np.flatnonzero(np.isfinite(scores))[::-1]
    places = dict(zip(candidates.key[shown].tolist(), shown.tolist(), strict=True))  # of two, the first stays
    keys = item_keys([promotion.item_id for promotion in promotions]).tolist()
    return {promotion: places[key] for promotion, key in zip(promotions, keys, strict=True) if key in places}


def _unmet_promotions(
    promotions: Sequence[Promotion], promoted: Mapping[Promotion, int], listing: Listing, at: Indices
) -> list[Mapping[str, str | None]]:
    """What became of promotions that do not stand at their slot."""
    slots = {int(at[place]): rank for rank, place in enumerate(listing.order, start=1)}
    refused = {int(at[place]): cap for place, cap in listing.refused.items()}
    unmet = []
    for promotion in promotions:
        position = promoted.get(promotion)
        if position is None:
            why = "it is unknown, or may not be shown here: removed, hidden, not available, filtered out or seen"
        elif position in refused:
            why = f"{refused[position]} allows no more of its kind"
        elif slots[position] != promotion.slot:
            why = f"the list ends before slot {promotion.slot}; it stands at {slots[position]}"
        else:
            continue
        unmet.append(_unmet(PROMOTION, why, promotion.item_id))
    return unmet


def _places(candidates: Candidates, at: Indices) -> Found:
    return Found(candidates.key[at], candidates.shard[at].astype(np.int64), candidates.row[at].astype(np.int64))


def _parts(found: Found) -> tuple[NDArray[np.generic], ...]:
    return found.keys, found.shard, found.row


def _unmet(rule: str, why: str, item_id: str | None = None) -> Mapping[str, str | None]:
    return {"rule": rule, "item_id": item_id, "why": why}


def _short(listing: Listing, limit: int) -> list[Mapping[str, str | None]]:
    why = f"the list has {len(listing.order)} of {limit} items, and what is left has too many of its kind in it"
    return [_unmet(rule, why) for rule in listing.short_by]


def _arranged(
    listing: Listing,
    at: Indices,
    promoted: Mapping[Promotion, int],
    unmet: Sequence[Mapping[str, str | None]],
    is_complete: bool,
) -> Arranged:
    positions = at[np.array(listing.order, dtype=np.intp)]
    moves = dict(zip(positions.tolist(), listing.moves, strict=True))
    refused = {int(at[place]) for place in listing.refused}
    labels = {position: promotion.label for promotion, position in promoted.items() if position not in refused}
    return Arranged(positions, moves, labels, tuple(unmet), is_complete)
