"""The path of a request, from what is known of a person to ranked items. The drawing in the README is this file.

    profile -> vectors of history and text -> recall in every shard -> merge -> score -> arrange -> present

The stages are protocols. On a cluster they are thin adapters over Serve handles (``serving/tiers.py``), in one
process plain objects (``in_process.py``); the path is the same and so are the answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysys.arrange import Arranged, Arranger
from raysys.clock import Clock, SystemClock
from raysys.config import ProfileSettings, RankingSettings, UseOfStudent
from raysys.encoder.protocol import Encoder, Role
from raysys.errors import Unavailable, UnknownItem
from raysys.explain import Asked, Explainer, Ranks
from raysys.keys import item_keys
from raysys.lookup import Lookup
from raysys.pressure import (
    NO_ENCODER,
    NO_SOURCES,
    WITH_FEWER_SOURCES,
    WITH_STUDENT,
    with_fewer_sources,
    without_extras,
)
from raysys.profile.seeds import Seeds, decayed_mean, seeds
from raysys.ranking.explore import TimesShown
from raysys.ranking.learned import profile_settings
from raysys.ranking.select import top_n
from raysys.recall.merge import concatenate, merge, sources_of
from raysys.tastes import Known, KnownPeople, Tastes, tastes
from raysys.trace import Trace
from raysys.types import (
    QUERY,
    Answer,
    Candidates,
    Cap,
    Cause,
    FriendLikes,
    Keys,
    Profile,
    RankedItem,
    RecallQuery,
    Request,
    Terms,
    Vectors,
)

STUDENT = "encoder: student"  # what ``degraded`` says of a query that it encoded

# [dim] float32 for one text, as a query or as an item. Raises Unavailable.
Encode = Callable[[str, Role], Awaitable[Vectors]]


class Recall(Protocol):
    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        """The candidates of every shard that answered, and the names of those that did not."""
        ...


class Ranker(Protocol):
    async def score(self, snapshot_id: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n] float32 from [n, len(SOURCES)] float32, by what this snapshot has learned. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """A list before it is read: scores, [n] float32, of the candidates, and which of them stand where."""

    candidates: Candidates
    scores: NDArray[np.float32]
    arranged: Arranged


class Recommender:
    """Answers requests over one snapshot. ``settings``: of profiles, with what they leave to the snapshot.

    ranking: the rules of the list as a whole; None = the defaults. Raises ConfigError where the snapshot does not have
    their fields. times_shown: of new items, where several recommenders explore together. use_student: where the
    snapshot has one, ``auto`` = where ``encode`` raises Unavailable, ``always`` = instead of it.
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
        times_shown: TimesShown | None = None,
        use_student: UseOfStudent = "auto",
    ) -> None:
        self.lookup, self.catalogue = lookup, lookup.catalogue
        self._student = None if use_student == "never" else self.catalogue.student
        self._always_student = use_student == "always"
        self._encode_text, self._shards, self._ranker = encode, shards, ranker
        self._given_settings, self._k = settings, k
        self._times_shown = TimesShown() if times_shown is None else times_shown
        self._rank_as(RankingSettings() if ranking is None else ranking)
        self._explainer = Explainer(lookup, shards.recall)
        self._clock = SystemClock() if clock is None else clock

    def ranked_by(self, ranking: RankingSettings, ranker: Ranker) -> "Recommender":
        """The same path to lists by other rules and another ranker. Raises ConfigError as a new one does."""
        other = copy(self)
        other._ranker = ranker
        other._rank_as(ranking)
        return other

    def _rank_as(self, ranking: RankingSettings) -> None:
        self._arranger = Arranger(self.lookup, ranking, self._times_shown)
        self.settings = profile_settings(self._given_settings, ranking, self.catalogue.folder)
        self._known_people = KnownPeople(self.settings)

    async def recommend(self, request: Request, profile: Profile, friends: FriendLikes | None = None) -> Answer:
        """The ``limit`` best items for this person and request, of all sources, ranked, by the rules of the list.

        friends: what the people that they follow like.
        The rules do not apply where ``only`` says what is to be ranked.
        """
        trace = Trace(self._clock)
        if request.pressure:
            request, left_out = without_extras(request, request.only is None and self._arranger.explores(request))
            trace.degraded.extend(left_out)
        text = await self._encode(request, trace)
        asked = await self._asked(request, profile, friends, text, self._clock.now_s(), trace)
        ranked = await self._rank(asked, trace)
        items = await self._present(ranked.candidates, ranked.scores, ranked.arranged, trace)
        if request.explain:
            items = await self._explain(asked, items, trace)
        reasons = ("cold_start",) if asked.is_stranger else ()
        return self._answer(request, items, ranked.candidates, trace, profile.version, reasons, ranked.arranged.unmet)

    async def candidates(self, request: Request, profile: Profile) -> Candidates:
        """What recall finds for this person, scored by every source and not ranked."""
        trace = Trace(self._clock, is_request=False)
        asked = await self._asked(request, profile, None, None, self._clock.now_s(), trace)
        return (await self._recall(asked.query, (), trace))[0]

    async def search(self, request: Request) -> Answer:
        """The items whose vectors are nearest to the query text, or to the mean of the ``positive`` items.

        Scores are plain similarities. Raises UnknownItem, and Unavailable when the text cannot be encoded.
        """
        trace = Trace(self._clock)
        vector = await self._target(request, trace)
        trace.mark("encode")
        nothing = seeds(Profile(""), self.settings)
        unwanted = item_keys(request.positive)
        query = self._recall_query(request, nothing, unwanted, vector, Tastes(), self._clock.now_s())
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

    def caps(self, request: Request) -> Mapping[str, Cap]:
        """The caps on the list of this request, by their names in the answer."""
        return self._arranger.rules(request).caps

    async def _asked(
        self,
        request: Request,
        profile: Profile,
        friends: FriendLikes | None,
        text: Vectors | None,
        now_s: float,
        trace: Trace,
    ) -> Asked:
        """What the shards are asked by a request whose query is encoded, at this time."""
        person = self._known(request, profile)
        taste = await self._taste(person, now_s, trace)
        trace.mark("profile")
        words = None if request.query is None else self.lookup.text_terms(request.query)
        unwanted = _unwanted(request, person.seeds)
        query = self._recall_query(request, person.seeds, unwanted, text, taste, now_s, words, friends)
        return Asked(request, profile, person.seeds, taste, query)

    async def _rank(self, asked: Asked, trace: Trace) -> _Ranked:
        """The list, of which nothing is read yet."""
        request = self._arranger.for_stranger(asked.request) if asked.is_stranger else asked.request
        query = asked.query
        if request.pressure >= WITH_FEWER_SOURCES:
            query = self._with_fewer_sources(query, trace)
        candidates, n_found = await self._recall(query, [p.item_id for p in request.promotions], trace)
        scores = self.lookup.hide_removed(candidates, await self._score(candidates, trace))
        arranged = await self._arrange(request, asked.known.items, candidates, n_found, scores, trace)
        return _Ranked(candidates, scores, arranged)

    def _with_fewer_sources(self, query: RecallQuery, trace: Trace) -> RecallQuery:
        fewer = with_fewer_sources(query, self.catalogue.has_behaviour)
        if fewer is not query:
            trace.degraded.append(NO_SOURCES)
        return fewer

    async def _target(self, request: Request, trace: Trace) -> Vectors:
        if request.query is not None:
            return await self._vector(request.query, trace, request.pressure)
        for item_id in self.lookup.unknown(request.positive):
            raise UnknownItem("item_id", f"the catalogue holds no item {item_id!r}")
        vectors, _ = await self.lookup.vectors(request.positive)
        mean = decayed_mean(vectors, np.ones(len(vectors), np.float32), vectors[:0], np.empty(0, np.float32))
        if mean is None:
            raise UnknownItem(
                "item_id", f"item {request.positive[0]!r} has no encoded text, so nothing is similar to it"
            )
        return mean

    def _known(self, request: Request, profile: Profile) -> Known:
        """What the profile says, with the examples of the request where there are any."""
        is_plain = not (request.history or request.positive or request.negative)
        if is_plain and profile.version > 0:
            return self._known_people.of(profile)
        return Known(profile, seeds(profile, self.settings, request.history, request.positive, request.negative))

    async def _taste(self, person: Known, now_s: float, trace: Trace) -> Tastes:
        position = self.lookup.live.position
        if person.tastes is not None and person.position == position:
            return person.tastes
        try:
            found = await tastes(person.seeds, self.lookup, self.settings, now_s)
        except Unavailable:  # what changed after the snapshot cannot be read now
            trace.degraded.append("live")
            return Tastes()
        if found.is_final:
            person.tastes, person.position = found, position
        return found

    async def _encode(self, request: Request, trace: Trace) -> Vectors | None:
        if request.query is None:
            return None
        try:
            return await self._vector(request.query, trace, request.pressure)
        except Unavailable:
            trace.degraded.append("encoder")
            return None
        finally:
            trace.mark("encode")

    async def _vector(self, query: str, trace: Trace, pressure: int) -> Vectors:
        """That of the encoder, or of its student, where there is one. Raises Unavailable where there is none."""
        if self._student is not None and self._always_student:
            return _alone(self._student, query)
        if self._student is not None and pressure >= WITH_STUDENT:
            trace.degraded.append(NO_ENCODER)
            return _alone(self._student, query)
        try:
            return await self._encode_text(query, "query")
        except Unavailable:
            if self._student is None:
                raise
            trace.degraded.append(STUDENT)
            return _alone(self._student, query)

    def _recall_query(
        self,
        request: Request,
        known: Seeds,
        unwanted: Keys,
        text: Vectors | None,
        taste: Tastes,
        now_s: float,
        words: Terms | None = None,
        friends: FriendLikes | None = None,
    ) -> RecallQuery:
        keys, weights = known.history
        return RecallQuery(
            query=text,
            profile=taste.liked,
            said=taste.said,
            history_keys=keys,
            history_weights=weights,
            exclude_keys=unwanted if request.only is None else unwanted[:0],
            filter=request.filter,
            now_s=now_s,
            k=max(self._k, request.limit),
            only=None if request.only is None else item_keys(request.only),
            query_words=words,
            words=taste.words,
            placed=taste.placed,
            friends=friends,
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
            return await self._ranker.score(self.catalogue.snapshot_id, candidates.scores)
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
        has_rules, explores = self._arranger.has_rules(request), self._arranger.explores(request)
        if request.only is not None or not (has_rules or explores):
            return Arranged(top_n(scores, candidates.key, request.limit))
        if has_rules:
            arranged = await self._arranger.arrange(request, liked, candidates, n_found, scores)
        else:
            arranged = Arranged(top_n(scores, candidates.key, request.limit))
        if explores:
            arranged = await self._arranger.explore(request, candidates, n_found, scores, arranged)
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
                explored=at in arranged.explored,
                propensity=arranged.propensities.get(at),
            )
            for rank, (at, item_id, metadata) in enumerate(described, start=1)
        )

    async def _explain(self, asked: Asked, items: tuple[RankedItem, ...], trace: Trace) -> tuple[RankedItem, ...]:
        """The items with their reasons. What would be without a cause is only tried where all parts answered."""
        is_tried = asked.request.explain == "full" and not trace.degraded

        async def ranks_without(cause: Cause) -> Ranks:
            return await self._ranks(*asked.without(cause), asked.query)

        items, is_complete = await self._explainer.explain(
            asked,
            items,
            None if "ranker" in trace.degraded else partial(self._ranker.score, self.catalogue.snapshot_id),
            ranks_without if is_tried else None,
        )
        if not is_complete:
            trace.degraded.append("explain")
        trace.mark("explain")
        return items

    async def _ranks(self, request: Request, profile: Profile, like: RecallQuery) -> Ranks:
        """Where the items stand in the list of this request, with the encoded query and at the time of another.

        With rules, of the items of the list; without, of as many as a source looks for: that many could be asked for,
        and would stand so. Raises Unavailable where a part did not answer.
        """
        trace = Trace(self._clock, is_request=False)
        plain = replace(request, explore=False)  # what would be does not hang on a draw, and is shown to nobody
        asked = await self._asked(plain, profile, like.friends, like.query, like.now_s, trace)
        ranked = await self._rank(asked, trace)
        if trace.degraded:
            raise Unavailable(f"{', '.join(trace.degraded)} did not answer")
        has_rules = request.only is None and self._arranger.has_rules(request)
        n = request.limit if has_rules else like.k
        at = ranked.arranged.at if has_rules else top_n(ranked.scores, ranked.candidates.key, n)
        return Ranks({key: rank for rank, key in enumerate(ranked.candidates.key[at].tolist(), start=1)}, n)

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


def _alone(encoder: Encoder, query: str) -> Vectors:
    vector: Vectors = encoder.encode([query], "query")[0]
    return vector


def _unwanted(request: Request, known: Seeds) -> Keys:
    """The keys of items that must not come back, [n] uint64."""
    unwanted = [known.seen_keys] if request.exclude_seen else [known.disliked_keys]
    if request.negative or request.positive:
        unwanted.append(item_keys((*request.negative, *request.positive)))
    return np.concatenate(unwanted)
