"""The built-in probe: writes canaries now and then, as a caller would, and measures when they count.

Nobody may meet a canary. The item is on sale for one day, two hundred years ahead, and the probe asks as of then: it
takes the path of every search, through the encoder and every shard, and the rule that keeps items out of their window
from everybody else is the one that all items obey. The event is about no item and has no text, so nothing can be
learned from it. What the probe is shown is not logged as an impression.

What stays behind: one deleted item a gateway process, as item ids are its own, and the version of one user. Events
expire, and the vectors of old titles go many at a time. Neither counts as the erasure of a person, for which a
SQLite file is written anew: done every round, that would hold up the writes of everybody.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import Counter

from raysys.clock import Clock
from raysys.config import ProfileSettings, ServeSettings
from raysys.errors import Unavailable
from raysys.index.filters import Condition, Filter
from raysys.lookup import Lookup
from raysys.profile.reader import Profiles
from raysys.recommender import Encode, Ranker, Recall, Recommender
from raysys.serving import schemas
from raysys.serving.background import end
from raysys.serving.current import InUse
from raysys.serving.edge import Metrics
from raysys.serving.events import Events
from raysys.serving.items import Items
from raysys.serving.service import Service
from raysys.state.protocol import StateStore
from raysys.types import Request

NAME = "raysys-probe-"
USER = f"{NAME}user"
EVENT_KIND = "probe"
EVENT_DAYS = 1 / 1_440  # a minute: housekeeping removes it
OPENS, THEN, CLOSES = (datetime(2222, 2, 2, hour, tzinfo=UTC) for hour in (0, 12, 23))
POLL_S = 0.02
TIMEOUT_S = 10.0
FORGET_AFTER = 1_000  # titles; 1.5 MB of vectors at 384 dimensions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Then:
    """A clock that stands in the canary's window; durations are those of the gateway's."""

    clock: Clock

    def now_s(self) -> float:
        return THEN.timestamp()

    def monotonic_s(self) -> float:
        return self.clock.monotonic_s()


class Probe:
    """Measures the freshness of one gateway, every ``settings.probe_every_s`` seconds.

    Observes ``probe_event_to_effect``, ``probe_item_to_live`` and ``probe_delete_to_gone``. What has no effect in
    TIMEOUT_S, or cannot be written, is counted in ``raysys_probe_failures_total``.
    """

    def __init__(
        self, in_use: InUse, state: StateStore, settings: ServeSettings, metrics: Metrics, clock: Clock
    ) -> None:
        self.item_id = f"{NAME}{uuid.uuid4().hex}"
        self._in_use, self._state, self._settings, self._metrics, self._clock = in_use, state, settings, metrics, clock
        profile = settings.profile
        self._events = Events(in_use, state, _short_lived(profile), metrics, clock)
        self._items = Items(in_use, state, clock)
        self._lists = Service(in_use, Profiles(state, profile, clock), metrics)
        self._failures = Counter(
            "raysys_probe_failures", "Canaries that had no effect in time", ["what"], registry=metrics.registry
        )
        for what in ("event_to_effect", "item_to_live", "delete_to_gone"):  # from 0 on, so that the first one is seen
            self._failures.labels(what)
        self._version, self._title = 0, ""
        self._texts: list[str] = []
        self._view: Recommender | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, lookup: Lookup, encode: Encode, shards: Recall, ranker: Ranker) -> None:
        """Look at this snapshot from the next round on; the first one starts the rounds."""
        self._view = Recommender(lookup, encode, shards, ranker, self._settings.profile, 1, _Then(self._clock))
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        await end(self._task)

    async def _run(self) -> None:
        every_s = self._settings.probe_every_s
        assert every_s is not None  # noqa: S101  # there is no probe without it
        while True:
            await asyncio.sleep(every_s)
            await self._measure("event_to_effect", self._send, self._has_counted)
            await self._measure("item_to_live", self.publish, self.is_found)
            await self._measure("delete_to_gone", self.delete, self._is_gone)
            await self._forget_titles()

    async def _measure(
        self, what: str, write: Callable[[], Awaitable[None]], has_effect: Callable[[], Awaitable[bool]]
    ) -> None:
        start_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await write()
                while not await has_effect():
                    await asyncio.sleep(POLL_S)
        except Exception as error:  # whatever it is, the rounds must not end
            self._failures.labels(what).inc()
            log.warning("the probe saw no %s: %s: %s", what, type(error).__name__, error)
        else:
            self._metrics.freshness(f"probe_{what}", self._clock.monotonic_s() - start_s)

    async def _send(self) -> None:
        event = {"event_id": f"{NAME}{uuid.uuid4().hex}", "type": EVENT_KIND, "user_id": USER}
        answer = await self._events.take(schemas.EventsBody(events=(event,)))
        self._version = answer["profile_versions"][USER]

    async def _has_counted(self) -> bool:
        answer = await self._lists.recommend(schemas.RecommendBody(user_id=USER, limit=1))
        counted: bool = answer["profile_version"] >= self._version
        return counted

    async def publish(self) -> None:
        """Put the canary on sale, by a title that nobody has encoded. Raises Unavailable."""
        self._title = f"{NAME}title {uuid.uuid4().hex}"
        window = {"available_from": OPENS.isoformat(), "available_until": CLOSES.isoformat()}
        item = {"item_id": self.item_id, "title": self._title, **window}
        self._texts.append(self._in_use.now().entry.draft(item).text)
        await self._items.upsert(schemas.ItemsBody(items=(item,)))

    async def is_found(self) -> bool:
        """Whether a search finds the canary in its window. Raises Unavailable."""
        assert self._view is not None  # noqa: S101  # it comes before the first round
        only_it = Filter(must=(Condition(field="item_id", match=self.item_id),))
        answer = await self._view.search(Request(limit=1, query=self._title, filter=only_it))
        if answer.degraded:
            raise Unavailable(f"{', '.join(answer.degraded)} did not answer")
        return bool(answer.items)

    async def delete(self) -> None:
        """Take the canary away again. Raises Unavailable."""
        written = await self._items.delete(schemas.ItemIdsBody(item_ids=(self.item_id,)))
        if not written["accepted"]:
            raise Unavailable("the canary was never there")

    async def _is_gone(self) -> bool:
        return not await self.is_found()

    async def _forget_titles(self) -> None:
        if len(self._texts) < FORGET_AFTER:
            return
        try:
            texts = self._in_use.now().texts
            keys = [texts.key(text, "item") for text in self._texts]
            texts.forget(keys)
            await self._state.forget(f"u:{USER}", [], keys)
        except Unavailable as error:
            log.warning("the vectors of old canaries stay for now: %s", error)
        else:
            self._texts.clear()


def _short_lived(settings: ProfileSettings) -> ProfileSettings:
    """The settings, by which a canary's events expire."""
    return settings.model_copy(update={"ttl_days": {**settings.ttl_days, EVENT_KIND: EVENT_DAYS}})
