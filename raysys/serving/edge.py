"""The edge of the gateway as plain ASGI: request ids, keys, admission, a bound on the body, metrics, no bare 500."""

import asyncio
import collections
import re
import time
import uuid
from functools import cache
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys.access import Caller, Key
from raysys.errors import Forbidden, Overloaded, RateLimited, RaysysError, Unauthenticated
from raysys.pressure import LEFT_OUT
from raysys.serving.admission import Admission
from raysys.serving.audit import AUDITED, record
from raysys.serving.brown_out import LEVEL
from raysys.serving.deadline import DUE, due_in
from raysys.serving.guard import Guard
from raysys.serving.logs import CURRENT_ID
from raysys.serving.problems import (
    CLIENT_CLOSED_REQUEST,
    BodyTooLarge,
    on_gone,
    on_http_error,
    on_large_body,
    on_raysys_error,
)
from raysys.serving.sides import SideMetrics
from raysys.serving.tenant import LabelledRegistry

MAX_BODY_BYTES = 4 << 20
BODY_S = 10.0  # for all of a body
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

# Why a request is sent away at the edge; further in it is a queue that is full.
CAUSES: dict[type[RaysysError], str] = {
    Overloaded: "admission",
    RateLimited: "key_limit",
    Unauthenticated: "no_key",
    Forbidden: "scope",
}
QUEUE = "queue"


class Metrics:
    """What one gateway replica counts. Each replica exports its own."""

    def __init__(self, tenant: str | None = None) -> None:
        """tenant: stands as a label on all of them."""
        self.registry = CollectorRegistry() if tenant is None else LabelledRegistry(tenant)
        self.requests = Counter(
            "raysys_requests", "HTTP requests by route and status", ["route", "status"], registry=self.registry
        )
        self.latency_s = Histogram(
            "raysys_request_seconds", "Time to answer, by route", ["route"], buckets=BUCKETS_S, registry=self.registry
        )
        self.stage_s = Histogram(
            "raysys_stage_seconds",
            "Time in a stage of the path, or in a part of one: recall, recall.queue, recall.compute, recall.network",
            ["stage"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        # By its name, of which there are few; to look it up costs as much again.
        self.stage = cache(self.stage_s.labels)
        self.degraded = Counter("raysys_degraded", "Answers given without a part", ["part"], registry=self.registry)
        for part in LEFT_OUT:  # from 0 on, so that the first one is seen as a rise
            self.degraded.labels(part)
        self.fresh_s = Histogram(
            "raysys_freshness_seconds",
            "From a write to its effect: event_to_effect, text_to_effect, item_to_live, delete_to_gone",
            ["what"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.pending_events = Counter(
            "raysys_pending_events", "Events about items that the catalogue does not hold yet", registry=self.registry
        )
        self.query_vectors = Counter(
            "raysys_query_vectors",
            "Texts of queries whose vector was at hand (hit) or not (miss)",
            ["outcome"],
            registry=self.registry,
        )
        self.rate_limited = Counter(
            "raysys_rate_limited", "Requests beyond the limit of their key", ["key"], registry=self.registry
        )
        self.events = Counter("raysys_events", "Events by outcome", ["outcome"], registry=self.registry)
        for outcome in ("accepted", "duplicate", "rejected"):  # from 0 on, so that the first one is seen as a rise
            self.events.labels(outcome)
        self.sent_away = Counter(
            "raysys_sent_away",
            "Requests refused whatever they ask: it would be late, a queue is full, no key that counts, not its scope",
            ["cause"],
            registry=self.registry,
        )
        for cause in (*CAUSES.values(), QUEUE):
            self.sent_away.labels(cause)
        self.refusals = Counter(
            "raysys_snapshot_refusals", "Tries to take the wanted snapshot that failed", registry=self.registry
        )
        self.sides = SideMetrics(self.registry)
        self.first_sources = collections.Counter[str]()  # exported by ``Gauges``: a lock a source would cost more

    def freshness(self, what: str, seconds: float) -> None:
        """How long something written took to count."""
        self.fresh_s.labels(what).observe(max(seconds, 0.0))


class Edge:
    """Wraps the app. Echoes X-Request-ID and traceparent, asks for the key, reads the body, times the request.

    routes: those of the app. admitted: those of them for which ``admission`` says who comes in. That, and before it
    whose key it is, is asked here, as sending somebody away must cost next to nothing. A place is held from when the
    body is there until the answer is, so that nobody holds one by sending or reading slowly.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        routes: frozenset[str],
        admitted: frozenset[str],
        admission: Admission,
        guard: Guard,
    ) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._admitted, self._admission, self._guard = admitted, admission, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        echoed = self._identify(scope)
        named = CURRENT_ID.set(scope["raysys.request_id"])
        status, finished = 500, False
        cause: str | None = None

        async def send_echoing(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                more = scope.get("raysys.rate_limit", ())
                message["headers"] = [*message.get("headers", []), *echoed, *more]
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            cause = await self._answer(scope, receive, send_echoing)
        except asyncio.CancelledError:
            status = status if finished else CLIENT_CLOSED_REQUEST
            raise
        except Exception:
            # Starlette raises again what it has logged and answered already (``problems.on_anything``).
            if not finished:
                raise
        finally:
            self._count(scope, status, time.perf_counter() - start, cause)
            if scope["path"] in AUDITED:
                record(scope, status, self._guard.tenant)
            CURRENT_ID.reset(named)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> str | None:
        """Why the request was sent away right here, None where it was not."""
        is_admitted = scope["path"] in self._admitted
        try:
            self._guard.check(scope)
            if is_admitted:
                self._admission.check()
            body = await read_body(receive)
            level = self._admission.enter() if is_admitted else 0
        except RaysysError as error:
            if isinstance(error, RateLimited):
                self._metrics.rate_limited.labels(_label(scope["raysys.key"])).inc()
            if isinstance(error, Overloaded | RateLimited):
                await asyncio.sleep(self._admission.hold_s())
            await on_raysys_error(Request(scope), error)(scope, receive, send)
            return CAUSES.get(type(error))
        except (HTTPException, BodyTooLarge, ClientDisconnect) as error:
            await _refusal(scope, error)(scope, receive, send)
            return None
        await self._inside(scope, _with(body, receive), send, level, is_admitted)
        return None

    async def _inside(self, scope: Scope, receive: Receive, send: Send, level: int, has_place: bool) -> None:
        async def send_without_place(message: Message) -> None:
            nonlocal has_place
            if has_place:
                has_place = False
                self._admission.leave()
            await send(message)

        browned_out = LEVEL.set(level)
        due = DUE.set(due_in(self._admission.deadline_s) if has_place else None)
        try:
            await self._app(scope, receive, send_without_place)
        finally:
            LEVEL.reset(browned_out)
            DUE.reset(due)
            if has_place:
                self._admission.leave()

    def _count(self, scope: Scope, status: int, seconds: float, cause: str | None) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"  # callers must not make up label values
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.latency_s.labels(route).observe(seconds)
        if cause is None and status == HTTPStatus.TOO_MANY_REQUESTS:
            cause = QUEUE
        if cause is not None:
            self._metrics.sent_away.labels(cause).inc()

    def _identify(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope["raysys.request_id"] = request_id.decode()
        echoed = [(b"x-request-id", request_id)]
        if b"traceparent" in headers:
            echoed.append((b"traceparent", headers[b"traceparent"]))
        return echoed


def _label(caller: Caller) -> str:
    """Of tokens all the same: their subjects are many, and may be people."""
    return caller.name if isinstance(caller, Key) else caller.id


async def read_body(receive: Receive) -> bytes:
    """All of it. Raises BodyTooLarge as soon as it is, HTTPException where it does not come in time, and
    ClientDisconnect."""
    chunks, size_bytes = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunks.append(message.get("body", b""))
                size_bytes += len(chunks[-1])
                if size_bytes > MAX_BODY_BYTES:
                    raise BodyTooLarge(f"a body may hold {MAX_BODY_BYTES:,} bytes")
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError as error:
        detail = f"only {size_bytes:,} bytes of the body came within {BODY_S:g} s; send all of it at once"
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, {"Connection": "close"}) from error


def _refusal(scope: Scope, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return on_http_error(Request(scope), error)
    return on_large_body(Request(scope), error) if isinstance(error, BodyTooLarge) else on_gone(Request(scope), error)


def _with(body: bytes, receive: Receive) -> Receive:
    """What receives a body that was read, and then whatever comes."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
