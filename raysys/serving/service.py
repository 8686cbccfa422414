"""What the reading routes do, without HTTP: one method a route, over the recommender and the profiles."""

import time
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from raysys.errors import InvalidInput, Unavailable
from raysys.index.filters import check
from raysys.profile.reader import Profiles
from raysys.serving import schemas
from raysys.serving.brown_out import LEVEL
from raysys.serving.coverage import coverage
from raysys.serving.current import Current, InUse
from raysys.serving.edge import Metrics
from raysys.serving.experiments import Arms, Assignment
from raysys.serving.impressions import ImpressionLog, Route
from raysys.serving.sides import Side
from raysys.trace import note
from raysys.types import Answer, Cap, Profile, Promotion, Request, user_key


class Service:
    """Lists of items for people, texts and items."""

    def __init__(
        self,
        in_use: InUse,
        profiles: Profiles,
        metrics: Metrics,
        impressions: ImpressionLog | None = None,
        assignment: Assignment | None = None,
        min_coverage: float = 0.0,
    ) -> None:
        """impressions: None = nothing is logged. assignment: to arms of experiments, None = nobody is in any.

        min_coverage: lists that were chosen from less of the catalogue are refused (``serving.coverage``).
        """
        self._in_use, self._profiles, self._metrics = in_use, profiles, metrics
        self._impressions = impressions
        self._assignment = Assignment(()) if assignment is None else assignment
        self._min_coverage = min_coverage

    async def recommend(self, body: schemas.RecommendBody) -> dict[str, Any]:
        request = Request(limit=body.limit, filter=body.filter, exclude_seen=body.exclude_seen, **_person(body))
        side = self._in_use.side_of(request.user)
        current = self._in_use.on(side)
        if body.filter is not None:
            check(body.filter, current.catalogue.schema)
        request = replace(request, **_rules(body), explain=body.explain, language=body.language)
        request = replace(request, recommendation_id=uuid.uuid4().hex, pressure=LEVEL.get())
        arms = self._assignment.arms(request.user)
        current.check(request, arms)
        return await self._on_side(side, self._for_person("recommendations", current, request, arms))

    async def rank(self, body: schemas.RankBody) -> dict[str, Any]:
        request = Request(limit=len(set(body.items)), only=body.items, pressure=LEVEL.get(), **_person(body))
        side = self._in_use.side_of(request.user)
        return await self._on_side(side, self._for_person("rank", self._in_use.on(side), request, ()))

    async def search(self, body: schemas.SearchBody) -> dict[str, Any]:
        request = Request(limit=body.limit, query=body.query, filter=body.filter, pressure=LEVEL.get())
        return await self._search("search", request)

    async def similar(self, body: schemas.SimilarBody) -> dict[str, Any]:
        request = Request(limit=body.limit, positive=(body.item_id,), filter=body.filter)
        return await self._search("similar", request)

    async def _on_side(self, side: Side | None, answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        """The answer, counted for this side."""
        if side is None:
            return await answer
        start_s = time.perf_counter()
        try:
            given = await answer
        except Exception as error:
            if not isinstance(error, InvalidInput):  # which is the caller's
                self._metrics.sides.failed(side)
            raise
        took_s = time.perf_counter() - start_s
        self._metrics.sides.answered(side, took_s, not given["items"], bool(given["degraded"]))
        return given

    async def _for_person(self, route: Route, current: Current, request: Request, arms: Arms) -> dict[str, Any]:
        profile, degraded = await self._profile(request.user)
        friends, has_all = await self._profiles.friends.of(profile)
        degraded += [] if has_all else ["friends"]
        answer = await current.recommend(request, profile, friends, arms)
        answer = replace(answer, experiments=self._assignment.exposures(arms)) if arms else answer
        return self._list(route, request, current, answer, current.recommender.unknown(request), degraded)

    async def _search(self, route: Route, request: Request) -> dict[str, Any]:
        current = self._in_use.now()
        if request.filter is not None:
            check(request.filter, current.catalogue.schema)
        return self._list(route, request, current, await current.recommender.search(request), [], [])

    async def _profile(self, user: str | None) -> tuple[Profile, list[str]]:
        if user is None:
            return Profile(""), []
        try:
            return await self._profiles.of(user), []
        except Unavailable:
            return Profile(user), ["profile"]

    def _list(
        self,
        route: Route,
        request: Request,
        current: Current,
        answer: Answer,
        unknown: Sequence[str],
        degraded: Sequence[str],
    ) -> dict[str, Any]:
        for stage, milliseconds in answer.timings_ms.items():
            self._metrics.stage(stage).observe(milliseconds / 1e3)
        missing = [*degraded, *answer.degraded]
        note(answer.snapshot_id, missing)
        for part in missing:
            self._metrics.degraded.labels(part).inc()
        covered = self._covered(current, missing)
        if answer.items:
            self._metrics.first_sources.update(answer.items[0].sources.keys())
        recommendation_id = uuid.uuid4().hex if request.recommendation_id is None else request.recommendation_id
        if self._impressions is not None:
            self._impressions.add(recommendation_id, route, request.user, answer, missing)
        return {
            "recommendation_id": recommendation_id,
            "snapshot_id": answer.snapshot_id,
            "profile_version": answer.profile_version,
            "items": answer.items,
            "underfilled": answer.underfilled,
            "exact": answer.exact,
            "coverage": covered,
            "degraded": missing,
            "reasons": answer.reasons,
            "unmet": answer.unmet,
            "unknown_items": unknown,
            "experiments": answer.experiments,
            "timings_ms": answer.timings_ms,
        }

    def _covered(self, current: Current, missing: Sequence[str]) -> float:
        """The share of the catalogue that was looked through. Raises Unavailable where it is less than may be."""
        covered = coverage(current.catalogue.manifest, missing)
        if covered < self._min_coverage:
            found = f"{covered:.0%} of the items could be looked through, and min_coverage is {self._min_coverage:g}"
            raise Unavailable(f"{found}: {', '.join(missing)} did not answer; try again")
        return covered


def _person(body: schemas.Person) -> dict[str, Any]:
    return {
        "user": user_key(body.user_id, body.session_id),
        "query": body.query,
        "history": body.history,
        "positive": body.positive,
        "negative": body.negative,
    }


def _rules(body: schemas.RecommendBody) -> dict[str, Any]:
    """What the request says of the list as a whole."""
    return {
        "diversity": body.diversity,
        "calibration": body.calibration,
        "caps": tuple(Cap(cap.field, cap.most) for cap in body.caps),
        "one_per": body.one_per,
        "promotions": tuple(Promotion(p.item_id, p.slot, p.label) for p in body.promotions),
        "explore": body.explore,
    }
