"""The HTTP side of a gateway, whatever stands behind it: state, routes, and the snapshot in use."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys.clock import Clock, SystemClock
from raysys.config import ImpressionSettings, ServeSettings, TracingSettings
from raysys.errors import ConfigError, Unavailable
from raysys.index.canary import Canary
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.profile.reader import Profiles
from raysys.ranking.explore import TimesShown
from raysys.recommender import Encode, Ranker, Recall, Recommender
from raysys.serving import audit
from raysys.serving.admission import Admission
from raysys.serving.api import Health, Routes, create_app
from raysys.serving.background import end
from raysys.serving.brown_out import BrownOut
from raysys.serving.coverage import presence
from raysys.serving.current import Current, InUse, open_current
from raysys.serving.edge import Metrics
from raysys.serving.events import Events
from raysys.serving.experiments import Assignment
from raysys.serving.gauges import Gauges
from raysys.serving.guard import Guard, open_tokens
from raysys.serving.impressions import ImpressionLog
from raysys.serving.items import Items
from raysys.serving.logs import open_log
from raysys.serving.people import People
from raysys.serving.probe import Probe
from raysys.serving.query_cache import QueryCache
from raysys.serving.service import Service
from raysys.serving.snapshots import Snapshots
from raysys.serving.tenant import under
from raysys.state.open import open_state

if TYPE_CHECKING:  # OpenTelemetry is an option
    from raysys.serving.spans import Tracing

HOUSEKEEPING_S = 60.0

log = logging.getLogger(__name__)


class Front:
    """Made once a gateway replica; ``take`` puts it on a snapshot."""

    def __init__(self, settings: ServeSettings, clock: Clock | None = None) -> None:
        """Raises ConfigError where the settings ask for what is not installed."""
        self._settings, self._metrics = settings, Metrics(settings.tenant)
        self._clock = SystemClock() if clock is None else clock
        self._tracing = _open_tracing(settings.tracing, self._clock)
        open_log(settings.tenant)
        audit.open_log()
        tokens = open_tokens(settings.jwt, self._clock, settings.tenant)
        self._guard = Guard(settings.api_keys, self._clock, settings.rate_limit, tokens, settings.tenant)
        self.state = open_state(settings.state)
        self.in_use = InUse()
        self.admission = Admission(
            settings.deadline_s, self._clock, BrownOut(self._clock) if settings.brown_out else None
        )
        self._metrics.registry.register(Gauges(self.admission, self.in_use, self._clock, self._metrics.first_sources))
        self.impressions = _open_impressions(settings.impressions, self._clock, self._metrics)
        self._times_shown = TimesShown()  # of new items, whatever the snapshot
        self._queries = QueryCache(settings.cached_queries, self._metrics.query_vectors)
        self._housekeeping: asyncio.Task[None] | None = None
        self._on_promotion: Callable[[], None] = lambda: None
        self.probe = None
        if settings.probe_every_s is not None:
            self.probe = Probe(self.in_use, self.state, settings, self._metrics, self._clock)

    def app(self, health: Health) -> ASGIApp:
        """The HTTP API."""
        settings = self._settings
        profiles = Profiles(self.state, settings.profile, self._clock)
        is_alone = settings.gateway.max_replicas == 1
        routes = Routes(
            Service(
                self.in_use,
                profiles,
                self._metrics,
                self.impressions,
                Assignment(settings.experiments),
                settings.min_coverage,
            ),
            Items(self.in_use, self.state, self._clock),
            Events(self.in_use, self.state, settings.profile, self._metrics, self._clock),
            People(self.in_use, self.state, profiles, settings.profile, self._clock, self.impressions, is_alone),
            Snapshots(
                SnapshotStore(settings.index_root, settings.snapshot_public_keys),
                settings.impressions.folder,
                settings.state,
                self._clock,
            ),
            self._metrics,
            self.admission,
            self._guard,
        )
        app = self._closing_last(create_app(routes, health, self._tracing))
        return app if settings.tenant is None else under(f"/{settings.tenant}", app)

    async def take(
        self,
        catalogue: Catalogue,
        encode: Encode,
        shards: Recall,
        ranker: Ranker,
        encode_in_time: Encode | None = None,
    ) -> None:
        """Answer from this snapshot, and every change after it, from the next request on. Raises Unavailable.

        encode_in_time: raises Unavailable early, for queries that a student can encode; None = there is none such.
        """
        current = await self._opened(catalogue, encode, shards, ranker, encode_in_time)
        await self.in_use.replace(current)
        if self._housekeeping is None:
            self._housekeeping = asyncio.create_task(self._keep_house())
        self._probe_on(current, encode, shards, ranker)

    async def take_canary(
        self,
        canary: Canary,
        catalogue: Catalogue,
        encode: Encode,
        shards: Recall,
        ranker: Ranker,
        encode_in_time: Encode | None = None,
    ) -> None:
        """As ``take``, for the people of the canary; the others are answered as before."""
        current = await self._opened(catalogue, encode, shards, ranker, encode_in_time)
        await self.in_use.set_canary(current, canary)
        self._on_promotion = partial(self._probe_on, current, encode, shards, ranker)

    async def promote(self) -> None:
        """Answer everybody from the snapshot of the canary from the next request on."""
        await self.in_use.promote()
        self._on_promotion()

    def _probe_on(self, current: Current, encode: Encode, shards: Recall, ranker: Ranker) -> None:
        if self.probe is not None:
            self.probe.take(current.lookup, encode, shards, ranker)

    async def _opened(
        self, catalogue: Catalogue, encode: Encode, shards: Recall, ranker: Ranker, encode_in_time: Encode | None
    ) -> Current:
        gives_up = encode_in_time is not None and catalogue.student is not None and self._settings.student == "auto"
        return await open_current(
            catalogue,
            encode,
            shards,
            ranker,
            self._settings,
            self.state,
            self._metrics,
            self._clock,
            self._times_shown,
            self._queries,
            encode_in_time if gives_up else None,
            self.in_use.all() if self._housekeeping is not None else (),
        )

    def presence(self, shards: Mapping[str, dict[str, Any]]) -> tuple[bool, dict[str, Any]]:
        """Whether lists can be given from the shards that are there, from what each says of itself; and what is."""
        try:
            manifest = self.in_use.now().catalogue.manifest
        except Unavailable:
            return False, {}
        there = presence(manifest, shards)
        return len(there["away"]) < len(shards) and there["coverage"] >= self._settings.min_coverage, there

    async def apart(self, shards: Mapping[str, dict[str, Any]]) -> list[str]:
        """The shards that read another store than this gateway, from what each says of itself.

        With a file as store on several machines each has its own, and no change would ever reach those shards.
        """
        try:
            identity = await self.state.identity()
        except Unavailable:  # it is away for all alike
            return []
        return [name for name, status in shards.items() if status.get("state", identity) != identity]

    def on_refused(self) -> None:
        """Count that the wanted snapshot could not be taken, and the one in use stays."""
        self._metrics.refusals.inc()

    @property
    def recommender(self) -> Recommender:
        """The path over the snapshot in use. Raises Unavailable before the first."""
        return self.in_use.now().recommender

    async def close(self) -> None:
        """End what runs in the background, and let go of the store."""
        await end(self._housekeeping)
        if self.probe is not None:
            await self.probe.stop()
        await self.in_use.stop()
        await self._close_logs()
        await self.state.close()

    def _closing_last(self, app: ASGIApp) -> ASGIApp:
        """The app, which writes the last impressions and sends the last spans before it says that it has shut down."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_after_closing(message: Message) -> None:
                if message["type"] == "lifespan.shutdown.complete":
                    await self._close_logs()
                await send(message)

            await app(scope, receive, send_after_closing if scope["type"] == "lifespan" else send)

        return wrapped

    async def _close_logs(self) -> None:
        if self.impressions is not None:
            await asyncio.to_thread(self.impressions.close)
        if self._tracing is not None:
            await self._tracing.close()

    async def _keep_house(self) -> None:
        """Remove what has expired."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                await self.state.expire(self._clock.now_s())
            except Unavailable as error:
                log.warning("expired events stay for now: %s", error)


def _open_impressions(settings: ImpressionSettings, clock: Clock, metrics: Metrics) -> ImpressionLog | None:
    if settings.folder is None:
        return None
    dropped = Counter(
        "raysys_impressions_dropped", "Rows of the impression log that were lost", registry=metrics.registry
    )
    return ImpressionLog(settings.folder, settings, clock, dropped.inc)


def _open_tracing(settings: TracingSettings | None, clock: Clock) -> "Tracing | None":
    if settings is None:
        return None
    try:
        from raysys.serving.spans import Tracing
    except ImportError as error:
        raise ConfigError(
            f"tracing is on, but {error.name} is not installed: pip install 'raysys[tracing]', "
            "or take tracing out of the settings"
        ) from error
    return Tracing(settings, clock)
