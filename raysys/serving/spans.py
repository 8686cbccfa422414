"""Spans of requests for an OpenTelemetry collector. Imported only where ``tracing`` stands in the settings.

Spans are made when a request has been answered, of what its trace says, and sent by a thread. They hold names, times
and numbers: nothing that a caller wrote.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys import __version__
from raysys.clock import Clock
from raysys.config import TracingSettings
from raysys.trace import Call, Stage, Watched, watching

MAX_WAITING_SPANS = 8_192  # those beyond it are dropped
EXPORT_TIMEOUT_S = 5.0
CLOSE_S = 2.0  # the last spans are given up after so long
QUIET_S = 60.0  # between two lines in the log about a collector that does not answer
OPERATIONS = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json", "/docs"})
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | Sequence[str]]


class _Begun(NamedTuple):
    """The span of a request, and the moment when it began on both clocks."""

    span: Span
    epoch_ns: int
    monotonic_s: float

    def at_ns(self, monotonic_s: float) -> int:
        return self.epoch_ns + round((monotonic_s - self.monotonic_s) * 1e9)


class Tracing:
    """Makes the spans of one gateway, and sends them."""

    def __init__(self, settings: TracingSettings, clock: Clock) -> None:
        self._clock = clock
        self._exporter = OTLPSpanExporter(settings.endpoint, timeout=EXPORT_TIMEOUT_S)
        self._now_and_then = NowAndThen()
        logging.getLogger(EXPORTER_LOG).addFilter(self._now_and_then)
        self._processor = BatchSpanProcessor(self._exporter, MAX_WAITING_SPANS)
        resource = Resource.create({"service.name": settings.service_name, "service.version": __version__})
        provider = TracerProvider(ParentBasedTraceIdRatio(settings.share), resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("raysys", __version__)
        self._parents = TraceContextTextMapPropagator()

    def around(self, app: ASGIApp, routes: frozenset[str]) -> ASGIApp:
        """The app, with a span for each request that is sampled. routes: those of the app, by which spans are named."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            begun = self._begin(scope, routes) if scope["type"] == "http" and scope["path"] not in OPERATIONS else None
            if begun is None:
                await app(scope, receive, send)
                return
            status = 500

            async def send_noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            with watching() as watched:
                try:
                    await app(scope, receive, send_noting)
                finally:
                    self._end(begun, watched, status)

        return traced

    async def close(self) -> None:
        """Send what is there, for ``CLOSE_S`` at most."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("the collector did not take the last spans within %g s; they are lost", CLOSE_S)
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
        logging.getLogger(EXPORTER_LOG).removeFilter(self._now_and_then)

    def _begin(self, scope: Scope, routes: frozenset[str]) -> _Begun | None:
        """None where the request is not sampled. Of the caller's headers only ``traceparent`` counts."""
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        route = scope["path"] if scope["path"] in routes else "other"
        given = {"traceparent": dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")}
        now_ns, now_s = round(self._clock.now_s() * 1e9), self._clock.monotonic_s()
        span = self._tracer.start_span(
            f"{method} {route}",
            self._parents.extract(given, Context()),
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route},
            start_time=now_ns,
        )
        return _Begun(span, now_ns, now_s) if span.is_recording() else None

    def _end(self, begun: _Begun, watched: Watched, status: int) -> None:
        span = begun.span
        span.set_attribute("http.response.status_code", status)
        if watched.snapshot_id is not None:
            span.set_attribute("raysys.snapshot_id", watched.snapshot_id)
            span.set_attribute("raysys.degraded", list(watched.degraded))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        of_request = set_span_in_context(span, Context())
        for stage in (stage for trace in watched.traces for stage in trace.stages):
            self._add_stage(begun, of_request, stage)
        span.end(begun.at_ns(self._clock.monotonic_s()))

    def _add_stage(self, begun: _Begun, parent: Context, stage: Stage) -> None:
        of_stage = self._add(begun, parent, stage.name, stage.start_s, stage.end_s)
        for call in stage.calls:
            self._add_call(begun, of_stage, call)

    def _add_call(self, begun: _Begun, parent: Context, call: Call) -> None:
        """Clocks of machines differ, so the way back from a replica is taken to be as long as the way there."""
        size = {"raysys.batch_size": call.batch_size}
        of_call = self._add(begun, parent, call.tier, call.asked_s, call.answered_s, size)
        came_s, within = call.sent_s, of_call
        if call.is_remote:
            self._add(begun, of_call, "queue", call.asked_s, call.sent_s)
            network = {"raysys.network_ms": round(call.network_s * 1e3, 3)}
            within = self._add(begun, of_call, "call", call.sent_s, call.answered_s, network)
            came_s += call.network_s / 2
        start_s = came_s + call.waited_s
        self._add(begun, within, "queue", came_s if call.is_remote else call.asked_s, start_s)
        self._add(begun, within, "compute", start_s, start_s + call.compute_s)

    def _add(
        self,
        begun: _Begun,
        parent: Context,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Attributes | None = None,
    ) -> Context:
        """A span within another. Returns the context of those within it."""
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=begun.at_ns(start_s))
        span.end(begun.at_ns(end_s))
        return set_span_in_context(span, parent)


class NowAndThen(logging.Filter):
    """Lets a line through once in a while: a collector that is away is said, and not with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s = -QUIET_S

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s - self._last_s < QUIET_S:
            return False
        self._last_s = now_s
        return True
