"""Spans of requests, as a collector receives them over HTTP."""

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send
from support import NOW_S, FixedClock, Served, Shop, raising, serve_here

from raysys.clock import SystemClock
from raysys.config import ServeSettings, TracingSettings
from raysys.errors import ConfigError, Unavailable
from raysys.serving import spans as spans_module
from raysys.serving.front import Front
from raysys.serving.spans import NowAndThen, Tracing
from raysys.trace import Call, Trace, note, record

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
WORDS = [f"{what}zzyzx" for what in ("user", "session", "query", "item", "path", "state", "request", "METHOD", "field")]


class Collector:
    """An OTLP receiver: HTTP and protobuf, as a real one."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> list[Span]:
        scopes = [s for request in self.requests() for r in request.resource_spans for s in r.scope_spans]
        return [span for scope in scopes for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.stop()


@pytest_asyncio.fixture
async def traced(shop: Shop, tmp_path: Path, collector: Collector) -> AsyncIterator[Served]:
    """A gateway that traces everything, unless the caller says otherwise."""
    tracing = {"endpoint": collector.endpoint, "share": 1.0}
    made = await serve_here(shop.store(2), tmp_path / "state.sqlite3", SystemClock(), tracing=tracing)
    yield made
    await made.stop()


def attributes(span: Span) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {entry.key: plain(entry.value) for entry in span.attributes}


def children(spans: list[Span], parent: Span) -> list[Span]:
    return sorted((s for s in spans if s.parent_span_id == parent.span_id), key=lambda s: s.start_time_unix_nano)


def names(spans: list[Span], parent: Span) -> list[str]:
    return [span.name for span in children(spans, parent)]


async def post(served: Served, path: str, body: Any, **headers: str) -> httpx.Response:
    return await served.client().post(path, content=json.dumps(body), headers=headers)


async def test_a_request_is_a_span_in_the_callers_trace(traced: Served, collector: Collector) -> None:
    before_ns = time.time_ns()
    body = {"user_id": "ann", "query": "quasar zeppelin"}
    answer = (await post(traced, "/v1/recommendations", body, traceparent=SAMPLED)).json()
    after_ns = time.time_ns()
    await traced.stop()
    found = collector.spans()
    (server,) = (span for span in found if span.kind == Span.SPAN_KIND_SERVER)
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert {span.trace_id.hex() for span in found} == {TRACE}
    assert (server.name, attributes(server)) == (
        "POST /v1/recommendations",
        {
            "http.request.method": "POST",
            "http.route": "/v1/recommendations",
            "http.response.status_code": 200,
            "raysys.snapshot_id": answer["snapshot_id"],
            "raysys.degraded": [],
        },
    )
    assert before_ns - 1_000 <= server.start_time_unix_nano
    assert server.end_time_unix_nano <= after_ns + 1_000_000  # the two clocks of a machine are read one after the other
    stages = {span.name: span for span in children(found, server)}
    assert list(stages) == ["encode", "profile", "recall", "rank", "present"]
    assert {name: names(found, span) for name, span in stages.items()} == {
        "encode": ["encoder"],
        "profile": [],
        "recall": ["shards"],
        "rank": ["ranker"],
        "present": [],
    }
    for name, stage in stages.items():
        took_ms = (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6
        assert took_ms == pytest.approx(answer["timings_ms"][name], abs=0.002)
        for call in children(found, stage):
            assert attributes(call) == {"raysys.batch_size": 1}
            assert names(found, call) == ["queue", "compute"]
    assert_nested(found)


def assert_nested(spans: list[Span]) -> None:
    """Every span lies within its parent."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        parent = by_id.get(span.parent_span_id)
        if parent is not None:
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano


async def test_a_call_to_another_process_lies_where_it_was(collector: Collector) -> None:
    """Given times, in 1/1024 s: 2 of queue here, 3 of network each way, 4 of queue there, 16 of work."""
    clock = FixedClock()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(clock)
        record(Call("shard-00", NOW_S, NOW_S + 2 / 1024, NOW_S + 28 / 1024, 4 / 1024, 16 / 1024, 7, is_remote=True))
        clock.at_s = NOW_S + 32 / 1024
        trace.mark("recall")
        note("snapshot-1", ["shard-01"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    tracing = Tracing(TracingSettings(endpoint=collector.endpoint, share=1.0), clock)
    scope = {"type": "http", "method": "POST", "path": "/v1/rank", "headers": []}
    await tracing.around(app, frozenset({"/v1/rank"}))(scope, nothing, to_nobody)
    await tracing.close()
    found = collector.spans()
    (server,) = (span for span in found if span.kind == Span.SPAN_KIND_SERVER)
    assert attributes(server)["raysys.degraded"] == ["shard-01"]
    at = {(s.name, by_name(found, s.parent_span_id)): since(s) for s in found}
    assert at == {
        ("POST /v1/rank", None): (0, 32),
        ("recall", "POST /v1/rank"): (0, 32),
        ("shard-00", "recall"): (0, 28),
        ("queue", "shard-00"): (0, 2),
        ("call", "shard-00"): (2, 28),
        ("queue", "call"): (5, 9),
        ("compute", "call"): (9, 25),
    }
    (call,) = (span for span in found if span.name == "call")
    assert attributes(call) == {"raysys.network_ms": round(6 / 1024 * 1e3, 3)}


def by_name(spans: list[Span], span_id: bytes) -> str | None:
    return next((span.name for span in spans if span.span_id == span_id), None)


def since(span: Span) -> tuple[float, float]:
    """When it began and ended, in 1/1024 s after ``NOW_S``."""
    start_ns, end_ns = (ns - round(NOW_S * 1e9) for ns in (span.start_time_unix_nano, span.end_time_unix_nano))
    return round(start_ns * 1024 / 1e9, 4), round(end_ns * 1024 / 1e9, 4)


async def nothing() -> Message:
    return {"type": "http.request", "body": b""}


async def to_nobody(message: Message) -> None:
    pass


async def test_nothing_that_a_caller_wrote_is_in_any_byte(traced: Served, collector: Collector) -> None:
    user, session, query, item, path, state, request_id, method, field = WORDS
    known = {"user_id": "known-zzyzx", "items": [{"item_id": "item-0"}]}
    bodies = [
        ("/v1/recommendations", {"user_id": user, "query": query, "history": [item, "item-1"], "explain": "full"}),
        ("/v1/recommendations", {"session_id": session, "query": query, "positive": ["item-2"]}),
        ("/v1/rank", {"user_id": user, "items": [item, "item-0"]}),
        ("/v1/search", {"query": query}),
        ("/v1/similar", {"item_id": item}),
        ("/v1/similar", {"item_id": "item-0"}),
        ("/v1/users", {"users": [{"user_id": user, "description": query}]}),
        ("/v1/recommendations", {field: known}),
        (f"/v1/{path}?{query}", {}),
    ]
    headers = {"traceparent": SAMPLED, "tracestate": f"vendor={state}", "x-request-id": request_id}
    statuses = [(await post(traced, path, body, **headers)).status_code for path, body in bodies]
    assert statuses == [200, 200, 200, 200, 404, 200, 200, 422, 404]
    await traced.client().request(method, f"/{path}", headers={"baggage": f"user={user}"})
    await traced.stop()
    servers = [span for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER]
    assert sorted(attributes(span)["http.response.status_code"] for span in servers) == sorted([*statuses, 404])
    assert "_OTHER other" in [span.name for span in servers]
    everything = b"".join(collector.bodies)
    for word in [*WORDS, "known-zzyzx", *(f"item-{n}" for n in range(10))]:
        assert word.encode() not in everything, word


@pytest.mark.parametrize(
    ("share", "headers", "n_spans"),
    [
        (1.0, {"traceparent": NOT_SAMPLED}, 0),
        (0.0, {"traceparent": SAMPLED}, 1),
        (0.0, {}, 0),
        (1.0, {}, 1),
        (1.0, {"traceparent": "not one"}, 1),
    ],
)
async def test_the_caller_says_what_is_sampled_or_else_the_share(
    collector: Collector, share: float, headers: dict[str, str], n_spans: int
) -> None:
    tracing = Tracing(TracingSettings(endpoint=collector.endpoint, share=share, service_name="shop"), SystemClock())
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    for path in ("/v1/rank", "/livez", "/metrics"):  # nobody wants to see those that look after us
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
        await tracing.around(app, frozenset({"/v1/rank"}))(scope, nothing, to_nobody)
    await tracing.close()
    found = collector.spans()
    assert [span.name for span in found] == ["POST /v1/rank"] * n_spans
    for request in collector.requests():
        (resource,) = request.resource_spans
        assert {"service.name": "shop"}.items() <= attributes(resource.resource).items()


async def test_what_fails_is_an_error_with_the_stages_that_it_reached(
    traced: Served, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced.recommender._shards, "recall", raising(Unavailable("no shard answered in time")))
    answer = await post(traced, "/v1/recommendations", {"query": "quasar"})
    assert answer.status_code == 503
    await traced.stop()
    found = collector.spans()
    (server,) = (span for span in found if span.kind == Span.SPAN_KIND_SERVER)
    assert server.status.code == Status.STATUS_CODE_ERROR
    assert (server.status.message, list(server.events)) == ("", [])
    assert names(found, server) == ["encode", "profile"]


async def test_a_server_that_shuts_down_sends_the_last_spans_first(traced: Served, collector: Collector) -> None:
    await post(traced, "/v1/search", {"query": "quasar"})
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[tuple[str, bool]] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append((message["type"], bool(collector.spans())))

    await traced.app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == [("lifespan.startup.complete", False), ("lifespan.shutdown.complete", True)]


@pytest.fixture
def silent() -> Iterator[str]:
    """Where one may connect and is never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces"


@pytest.fixture
def dead() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1/traces"


@pytest.mark.parametrize("collector_is", ["silent", "dead"])
async def test_without_a_collector_requests_are_answered_and_the_end_comes_soon(
    collector_is: str,
    request: pytest.FixtureRequest,
    shop: Shop,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans_module, "CLOSE_S", 0.1)
    monkeypatch.setattr(spans_module, "EXPORT_TIMEOUT_S", 60.0)
    tracing = {"endpoint": request.getfixturevalue(collector_is), "share": 1.0}
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", SystemClock(), tracing=tracing)
    answers = await asyncio.gather(*(post(served, "/v1/search", {"query": "quasar"}) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    start_s = time.perf_counter()
    await served.stop()
    assert time.perf_counter() - start_s < 20  # the machine may be busy
    assert "the collector did not take the last spans within 0.1 s; they are lost" in caplog.text


def test_a_collector_that_is_away_is_said_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("one that nobody else has")
    log.addFilter(NowAndThen())
    for _ in range(50):
        log.warning("Failed to export spans batch")
    assert len(caplog.records) == 1
    monkeypatch.setattr(spans_module, "QUIET_S", 0.0)
    log.warning("Failed again")
    assert len(caplog.records) == 2


def test_who_has_not_installed_it_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "raysys.serving.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    settings = ServeSettings(state=str(tmp_path / "state.sqlite3"), tracing=TracingSettings())
    with pytest.raises(ConfigError, match=r"opentelemetry.* is not installed: pip install 'raysys\[tracing\]'"):
        Front(settings)


async def test_off_is_what_nobody_asked_for(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "raysys.serving.spans", None)  # whoever imports it fails
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    assert (await post(served, "/v1/search", {"query": "quasar"}, traceparent=SAMPLED)).status_code == 200
    await served.stop()


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "grpc://collector:4317"])
def test_an_endpoint_is_a_whole_url(endpoint: str) -> None:
    with pytest.raises(ValidationError, match=r"such as http://127\.0\.0\.1:4318/v1/traces"):
        TracingSettings(endpoint=endpoint)
