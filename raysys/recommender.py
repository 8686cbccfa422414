"""The path of a request, from what is known of a person to ranked items. The drawing in the README is this file.

    profile -> vectors of history and text -> recall in every shard -> merge -> score -> arrange -> present

The stages are protocols. On a cluster they are thin adapters over Serve handles (``serving/tiers.py``), in one
process plain objects (``in_process.py``); the path is the same and so are the answers.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysys.arrange import Arranged, Arranger
from raysys.clock import Clock, SystemClock
from raysys.config import ProfileSettings, RankingSettings
from raysys.encoder.protocol import Role
from raysys.errors import Unavailable, UnknownItem
from raysys.keys import item_keys
from raysys.lookup import Lookup
from raysys.profile.seeds import Seeds, decayed_mean, seeds
from raysys.ranking.select import top_n
from raysys.recall.merge import concatenate, merge, sources_of
from raysys.tastes import KnownTastes, Tastes, tastes
from raysys.types import QUERY, Answer, Candidates, Profile, RankedItem, RecallQuery, Request, Terms, Vectors

LEAST_SHARE = 0.01  # of the weight of what counts most in a history; what counts less changes no list

# [dim] float32 for one text, as a query or as an item. Raises Unavailable.
Encode = Callable[[str, Role], Awaitable[Vectors]]


class Recall(Protocol):
    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        """The candidates of every shard that answered, and the names of those that did not."""
        ...


class Ranker(Protocol):
    async def score(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n] float32 from [n, len(SOURCES)] float32. Raises Unavailable."""
        ...


class Trace:
    """Milliseconds spent in each stage of one request, and what did not answer."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._start = clock, clock.monotonic_s()
        self._last = self._start
        self.timings_ms: dict[str, float] = {}
        self.degraded: list[str] = []

    def mark(self, stage: str) -> None:
        now = self._clock.monotonic_s()
        self.timings_ms[stage] = round((now - self._last) * 1e3, 3)
        self._last = now

    def finish(self) -> Mapping[str, float]:
        self.timings_ms["total"] = round((self._clock.monotonic_s() - self._start) * 1e3, 3)
        return self.timings_ms


class Recommender:
    """Answers requests over one snapshot.

    ranking: the rules of the list as a whole; None = the defaults. Raises ConfigError where the snapshot does not have
    their fields.
    """

    def __init__(
        self,
        lookup: Lookup,
        encode: Encode,
        shards: Recall,
        ranker: Ranker,
        settings: ProfileSettings,
        k: int,
        clock: Clock | None = None,
        ranking: RankingSettings | None = None,
    ) -> None:
        self.lookup, self.catalogue = lookup, lookup.catalogue
        self._encode_text, self._shards, self._ranker = encode, shards, ranker
        self._settings, self._k = settings, k
        self._arranger = Arranger(lookup, RankingSettings() if ranking is None else ranking)
        self._known_tastes = KnownTastes()
        self._clock = SystemClock() if clock is None else clock

    async def recommend(self, request: Request, profile: Profile) -> Answer:
        """The ``limit`` best items for this person and request, of all sources, ranked, by the rules of the list.

        The rules do not apply where ``only`` says what is to be ranked.
        """
        trace = Trace(self._clock)
        known = seeds(profile, self._settings, request.history, request.positive, request.negative)
        taste = await self._taste(request, profile, known, trace)
        trace.mark("profile")
        text = await self._encode(request.query, trace)
        words = None if request.query is None else self.lookup.text_terms(request.query)
        query = self._recall_query(request, known, _unwanted(request, profile, known), text, taste, words)
        candidates, n_found = await self._recall(query, [p.item_id for p in request.promotions], trace)
        scores = self.lookup.hide_removed(candidates, await self._score(candidates, trace))
        arranged = await self._arrange(request, known.items, candidates, n_found, scores, trace)
        items = await self._present(candidates, scores, arranged, trace)
        unknown = text is None and taste.said is None and not known.items
        reasons = ("cold_start",) if unknown else ()
        return self._answer(request, items, candidates, trace, profile.version, reasons, arranged.unmet)

    async def search(self, request: Request) -> Answer:
        """The items whose vectors are nearest to the query text, or to the mean of the ``positive`` items.

        Scores are plain similarities. Raises UnknownItem, and Unavailable when the text cannot be encoded.
        """
        trace = Trace(self._clock)
        vector = await self._target(request)
        trace.mark("encode")
        nothing = seeds(Profile(""), self._settings)
        query = self._recall_query(request, nothing, {*request.positive}, vector, Tastes())
        candidates, _ = await self._recall(query, (), trace)
        found = np.flatnonzero(candidates.found_by & (1 << QUERY))
        scores = np.full(len(candidates), -np.inf, dtype=np.float32)
        scores[found] = candidates.scores[found, QUERY]
        best = top_n(self.lookup.hide_removed(candidates, scores), candidates.key, request.limit)
        items = await self._present(candidates, scores, Arranged(best), trace)
        return self._answer(request, items, candidates, trace, 0, ())

    def unknown(self, request: Request) -> list[str]:
        """The item ids of the request that the catalogue does not hold; they are passed over."""
        promoted = (promotion.item_id for promotion in request.promotions)
        given = (*request.history, *request.positive, *request.negative, *(request.only or ()), *promoted)
        return self.lookup.unknown(given)

    def check(self, request: Request) -> None:
        """Raises InvalidInput that names the field, for a rule of the list that cannot be applied to this catalogue."""
        self._arranger.check(request)

    async def _target(self, request: Request) -> Vectors:
        if request.query is not None:
            return await self._encode_text(request.query, "query")
        for item_id in self.lookup.unknown(request.positive):
            raise UnknownItem("item_id", f"the catalogue holds no item {item_id!r}")
        vectors, _ = await self.lookup.vectors(request.positive)
        mean = decayed_mean(vectors, np.ones(len(vectors), np.float32), vectors[:0], np.empty(0, np.float32))
        if mean is None:
            raise UnknownItem(
                "item_id", f"item {request.positive[0]!r} has no encoded text, so nothing is similar to it"
            )
        return mean

    async def _taste(self, request: Request, profile: Profile, known: Seeds, trace: Trace) -> Tastes:
        is_plain = profile.version > 0 and not (request.history or request.positive or request.negative)
        position = self.lookup.live.position
        found = self._known_tastes.get(profile, position) if is_plain else None
        if found is not None:
            return found
        try:
            found = await tastes(known, self.lookup, self._settings, self._clock.now_s())
            if is_plain:
                self._known_tastes.put(profile, position, found)
            return found
        except Unavailable:  # what changed after the snapshot cannot be read now
            trace.degraded.append("live")
            return Tastes()

    async def _encode(self, text: str | None, trace: Trace) -> Vectors | None:
        if text is None:
            return None
        try:
            return await self._encode_text(text, "query")
        except Unavailable:
            trace.degraded.append("encoder")
            return None
        finally:
            trace.mark("encode")

    def _recall_query(
        self,
        request: Request,
        known: Seeds,
        unwanted: set[str],
        text: Vectors | None,
        taste: Tastes,
        words: Terms | None = None,
    ) -> RecallQuery:
        counting = known.weights >= LEAST_SHARE * known.weights.max(initial=0)
        return RecallQuery(
            query=text,
            profile=taste.liked,
            said=taste.said,
            history_keys=item_keys(itertools.compress(known.items, counting)),
            history_weights=known.weights[counting],
            exclude_keys=item_keys(unwanted if request.only is None else ()),
            filter=request.filter,
            now_s=self._clock.now_s(),
            k=max(self._k, request.limit),
            only=None if request.only is None else item_keys(request.only),
            query_words=words,
            words=taste.words,
            placed=taste.placed,
        )

    async def _recall(self, query: RecallQuery, promoted: Sequence[str], trace: Trace) -> tuple[Candidates, int]:
        """The candidates, and how many of them were found; behind those is what of the promoted items may be shown."""
        asked = [query, replace(query, only=item_keys(promoted))] if promoted else [query]
        answered = await asyncio.gather(*(self._shards.recall(self.catalogue.snapshot_id, one) for one in asked))
        trace.degraded.extend(dict.fromkeys(name for _, missing in answered for name in missing))
        answers = answered[0][0]
        if not answers:
            raise Unavailable("no shard answered in time; try again")
        found = merge(answers, query.k) if query.only is None else concatenate(answers)
        trace.mark("recall")
        extra = [part for parts, _ in answered[1:] for part in parts]
        return concatenate([found, *extra]) if extra else found, len(found)

    async def _score(self, candidates: Candidates, trace: Trace) -> NDArray[np.float32]:
        try:
            return await self._ranker.score(candidates.scores)
        except Unavailable:
            trace.degraded.append("ranker")
            total: NDArray[np.float32] = candidates.scores.sum(axis=1)
            return total
        finally:
            trace.mark("rank")

    async def _arrange(
        self,
        request: Request,
        liked: Sequence[str],
        candidates: Candidates,
        n_found: int,
        scores: NDArray[np.float32],
        trace: Trace,
    ) -> Arranged:
        if request.only is not None or not self._arranger.has_rules(request):
            return Arranged(top_n(scores, candidates.key, request.limit))
        arranged = await self._arranger.arrange(request, liked, candidates, n_found, scores)
        trace.mark("arrange")
        return arranged

    async def _present(
        self, candidates: Candidates, scores: NDArray[np.float32], arranged: Arranged, trace: Trace
    ) -> tuple[RankedItem, ...]:
        described, is_complete = await self.lookup.describe(candidates, arranged.at)
        if not (is_complete and arranged.is_complete):
            trace.degraded.append("live")
        trace.mark("present")
        return tuple(
            RankedItem(
                item_id,
                float(scores[at]),
                rank,
                sources_of(candidates, at),
                metadata,
                tuple({"rule": move.rule, "from": move.rank} for move in arranged.moves.get(at, ())),
                at in arranged.labels,
                arranged.labels.get(at),
            )
            for rank, (at, item_id, metadata) in enumerate(described, start=1)
        )

    def _answer(
        self,
        request: Request,
        items: tuple[RankedItem, ...],
        candidates: Candidates,
        trace: Trace,
        profile_version: int,
        reasons: tuple[str, ...],
        unmet: tuple[Mapping[str, str | None], ...] = (),
    ) -> Answer:
        return Answer(
            snapshot_id=self.catalogue.snapshot_id,
            profile_version=profile_version,
            items=items,
            underfilled=len(items) < request.limit,
            exact=candidates.exact,
            degraded=tuple(trace.degraded),
            reasons=reasons,
            timings_ms=trace.finish(),
            unmet=unmet,
        )


def _unwanted(request: Request, profile: Profile, known: Seeds) -> set[str]:
    """Items that must not come back. All dislikes count here, not only the latest that shape the taste."""
    disliked = {i.item_id for i in profile.interactions if i.weight < 0}
    seen = known.seen if request.exclude_seen else ()
    return disliked.union(request.negative, request.positive, seen)
