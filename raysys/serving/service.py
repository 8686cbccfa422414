"""What the HTTP routes do, without HTTP: one method a route, over the recommender and the profile store."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from raysys.clock import Clock, SystemClock
from raysys.config import ServeSettings
from raysys.errors import InvalidInput, Unavailable
from raysys.index.filters import check
from raysys.profile.fold import canonical_kind
from raysys.profile.store import ProfileStore, user_key
from raysys.recommender import Recommender
from raysys.serving import schemas
from raysys.serving.edge import Metrics
from raysys.serving.problems import field_path
from raysys.types import Answer, Event, Profile, Request


class Service:
    """Answers the routes. ``recommender`` is replaced as a whole when a new snapshot is taken into use."""

    def __init__(self, settings: ServeSettings, store: ProfileStore, clock: Clock | None = None) -> None:
        self.settings, self.store = settings, store
        self.clock = SystemClock() if clock is None else clock
        self.metrics = Metrics()
        self.recommender: Recommender | None = None

    def current(self) -> Recommender:
        """The recommender of the snapshot in use. Each request takes it once. Raises Unavailable before the first."""
        if self.recommender is None:
            raise Unavailable("no snapshot is loaded yet; try again in a moment")
        return self.recommender

    async def recommend(self, body: schemas.RecommendBody) -> dict[str, Any]:
        recommender = self.current()
        if body.filter is not None:
            check(body.filter, recommender.catalogue.schema)
        request = Request(limit=body.limit, filter=body.filter, exclude_seen=body.exclude_seen, **_person(body))
        profile, degraded = self._profile(request.user)
        answer = await recommender.recommend(request, profile)
        return self._list(answer, recommender.unknown(request), degraded)

    async def rank(self, body: schemas.RankBody) -> dict[str, Any]:
        recommender = self.current()
        request = Request(limit=len(set(body.items)), only=body.items, **_person(body))
        profile, degraded = self._profile(request.user)
        answer = await recommender.recommend(request, profile)
        return self._list(answer, recommender.unknown(request), degraded)

    async def search(self, body: schemas.SearchBody) -> dict[str, Any]:
        return await self._search(Request(limit=body.limit, query=body.query, filter=body.filter))

    async def similar(self, body: schemas.SimilarBody) -> dict[str, Any]:
        return await self._search(Request(limit=body.limit, positive=(body.item_id,), filter=body.filter))

    async def _search(self, request: Request) -> dict[str, Any]:
        recommender = self.current()
        if request.filter is not None:
            check(request.filter, recommender.catalogue.schema)
        return self._list(await recommender.search(request), [], [])

    async def items(self, body: schemas.ItemsGetBody) -> dict[str, Any]:
        catalogue = self.current().catalogue
        wanted = tuple(dict.fromkeys(body.item_ids))
        found = catalogue.find(wanted)
        items = [
            {"item_id": item_id, **catalogue.metadata(int(shard), int(row))}
            for item_id, shard, row in zip(wanted, found.shard, found.row, strict=True)
            if row >= 0
        ]
        unknown = [item_id for item_id, known in zip(wanted, found.known, strict=True) if not known]
        return {"snapshot_id": catalogue.snapshot_id, "items": items, "unknown_items": unknown}

    async def events(self, body: schemas.EventsBody) -> dict[str, Any]:
        """Take in what can be taken in; durable when this returns."""
        now_s = self.clock.now_s()
        events, rejected = [], []
        for index, raw in enumerate(body.events):
            try:
                events.append(self._event(raw, now_s))
            except InvalidInput as error:
                rejected.append({"index": index, "code": error.field, "message": error.message})
        outcomes = await asyncio.to_thread(self.store.append, events) if events else []
        accepted = outcomes.count("accepted")
        self._count_events(accepted, len(outcomes) - accepted, len(rejected))
        return {
            "accepted": accepted,
            "duplicates": len(outcomes) - accepted,
            "rejected": rejected,
            "profile_versions": {user[2:]: self.store.profile(user).version for user in {e.user for e in events}},
        }

    def _event(self, raw: dict[str, Any], now_s: float) -> Event:
        """Raises InvalidInput whose ``field`` is the code that the caller sees."""
        try:
            body = schemas.EventBody.model_validate_json(orjson.dumps(raw))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise InvalidInput("invalid", f"{field_path(first['loc'])}: {first['msg']}") from error
        except orjson.JSONEncodeError as error:  # a whole number of more than 64 bits, a lone surrogate
            raise InvalidInput("invalid", f"event: {error}") from error
        timestamp_s = body.timestamp_s(now_s)
        if timestamp_s > now_s + self.settings.profile.clock_error_s:
            raise InvalidInput(
                "in_future", f"timestamp: lies {timestamp_s - now_s:.0f} s ahead; is the sender's clock right?"
            )
        user = user_key(body.user_id, body.session_id)
        assert user is not None  # noqa: S101  # the schema wants exactly one of the two
        return Event(
            event_id=body.event_id,
            kind=canonical_kind(body.type),
            user=user,
            item_id=body.item_id,
            timestamp_s=timestamp_s,
            value=body.value,
            text=body.text,
            recommendation_id=body.recommendation_id,
            properties={**body.properties, **({"impressions": list(body.impressions)} if body.impressions else {})},
        )

    def _profile(self, user: str | None) -> tuple[Profile, list[str]]:
        if user is None:
            return Profile(""), []
        try:
            return self.store.profile(user), []
        except Unavailable:
            return Profile(user), ["profile"]

    def _list(self, answer: Answer, unknown: Sequence[str], degraded: Sequence[str]) -> dict[str, Any]:
        for stage, milliseconds in answer.timings_ms.items():
            self.metrics.stage_s.labels(stage).observe(milliseconds / 1e3)
        for part in (*degraded, *answer.degraded):
            self.metrics.degraded.labels(part).inc()
        return {
            "recommendation_id": uuid.uuid4().hex,
            "snapshot_id": answer.snapshot_id,
            "profile_version": answer.profile_version,
            "items": answer.items,
            "underfilled": answer.underfilled,
            "exact": answer.exact,
            "degraded": [*degraded, *answer.degraded],
            "reasons": answer.reasons,
            "unknown_items": unknown,
            "timings_ms": answer.timings_ms,
        }

    def _count_events(self, accepted: int, duplicates: int, rejected: int) -> None:
        for outcome, n in (("accepted", accepted), ("duplicate", duplicates), ("rejected", rejected)):
            self.metrics.events.labels(outcome).inc(n)


def _person(body: schemas.Person) -> dict[str, Any]:
    return {
        "user": user_key(body.user_id, body.session_id),
        "query": body.query,
        "history": body.history,
        "positive": body.positive,
        "negative": body.negative,
    }
