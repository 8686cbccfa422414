"""What people do, taken in: each event is checked on its own, and durable when the call returns."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from raysys.clock import Clock
from raysys.config import ProfileSettings
from raysys.errors import InvalidInput, Unavailable
from raysys.profile.fold import canonical_kind, expires_s
from raysys.serving import schemas
from raysys.serving.current import InUse
from raysys.serving.edge import Metrics
from raysys.serving.problems import faults
from raysys.state.protocol import StateStore
from raysys.types import Event, user_key


class Events:
    """The intake of events, over HTTP or from a stream."""

    def __init__(
        self, in_use: InUse, state: StateStore, settings: ProfileSettings, metrics: Metrics, clock: Clock
    ) -> None:
        self._in_use, self._state, self._settings = in_use, state, settings
        self._metrics, self._clock = metrics, clock

    async def take(self, body: schemas.EventsBody) -> dict[str, Any]:
        """Take in what can be taken in. Raises Unavailable, and then nothing was."""
        start_s = self._clock.monotonic_s()
        events, rejected = self._read(body.events)
        outcomes = await self._state.append(events) if events else []
        versions = await self._state.versions(list({event.user for event in events}))
        self._metrics.freshness("event_to_effect", self._clock.monotonic_s() - start_s)
        accepted = [event for event, outcome in zip(events, outcomes, strict=True) if outcome == "accepted"]
        self._in_use.read_soon(event.text for event in accepted if event.text)
        self._count(accepted, len(events) - len(accepted), len(rejected))
        return {
            "accepted": len(accepted),
            "duplicates": len(events) - len(accepted),
            "rejected": rejected,
            "profile_versions": {user[2:]: version for user, version in versions.items()},
        }

    def _read(self, raws: Sequence[dict[str, Any]]) -> tuple[list[Event], list[dict[str, Any]]]:
        now_s = self._clock.now_s()
        events, rejected = [], []
        for index, raw in enumerate(raws):
            try:
                events.append(read_event(raw, self._settings, now_s))
            except InvalidInput as error:
                rejected.append({"index": index, "code": error.field, "message": error.message})
        return events, rejected

    def _count(self, accepted: Sequence[Event], duplicates: int, rejected: int) -> None:
        for outcome, n in (("accepted", len(accepted)), ("duplicate", duplicates), ("rejected", rejected)):
            self._metrics.events.labels(outcome).inc(n)
        self._metrics.pending_events.inc(self._n_pending(accepted))
        sides = (self._in_use.side_of(event.user) for event in accepted if event.recommendation_id is not None)
        self._metrics.sides.followed(side for side in sides if side is not None)

    def _n_pending(self, events: Sequence[Event]) -> int:
        """How many are about an item that the catalogue does not hold yet; they count as soon as it does."""
        items = [event.item_id for event in events if event.item_id is not None]
        try:
            unknown = set(self._in_use.now().lookup.unknown(items))
        except Unavailable:
            return 0
        return sum(item_id in unknown for item_id in items)


def read_event(raw: Mapping[str, Any], settings: ProfileSettings, now_s: float) -> Event:
    """One event from plain JSON values. Raises InvalidInput whose ``field`` is the code that the caller sees."""
    try:
        body = schemas.EventBody.model_validate_json(orjson.dumps(raw))
    except ValidationError as error:
        first = faults(error)[0]
        raise InvalidInput("invalid", f"{first.field}: {first.message}") from error
    except orjson.JSONEncodeError as error:  # a whole number of more than 64 bits, a lone surrogate
        raise InvalidInput("invalid", f"event: {error}") from error
    timestamp_s = body.timestamp_s(now_s)
    if timestamp_s > now_s + settings.clock_error_s:
        raise InvalidInput(
            "in_future", f"timestamp: lies {timestamp_s - now_s:.0f} s ahead; is the sender's clock right?"
        )
    user = user_key(body.user_id, body.session_id)
    assert user is not None  # noqa: S101  # the schema wants exactly one of the two
    kind = canonical_kind(body.type)
    return Event(
        event_id=body.event_id,
        kind=kind,
        user=user,
        item_id=body.item_id,
        timestamp_s=timestamp_s,
        value=body.value,
        text=body.text,
        recommendation_id=body.recommendation_id,
        properties={**body.properties, **({"impressions": list(body.impressions)} if body.impressions else {})},
        expires_s=expires_s(kind, timestamp_s, settings),
    )
