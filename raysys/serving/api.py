"""The HTTP routes: parse the body, call the service, write the answer. Nothing is decided here."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import generate_latest
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from raysys import __version__
from raysys.serving import schemas
from raysys.serving.admission import Admission
from raysys.serving.edge import Edge, Metrics
from raysys.serving.events import Events
from raysys.serving.guard import DETAILS, NEEDED, Guard
from raysys.serving.items import Items
from raysys.serving.people import People
from raysys.serving.problems import install
from raysys.serving.service import Service
from raysys.serving.snapshots import Snapshots

LISTS = frozenset({"/v1/recommendations", "/v1/similar", "/v1/search", "/v1/rank"})
REFUSALS: dict[int | str, str] = {401: "No key, or none that is known", 403: "The key lacks the scope"}
PROBLEMS: dict[int | str, str] = {
    400: "Not JSON",
    **REFUSALS,
    404: "Unknown item, unknown snapshot",
    408: "The body did not come in time",
    409: "Contradicts what was settled before, or the snapshot was refused",
    413: "Body too large",
    422: "A value is wrong",
    429: "Too many requests, of all or of this key",
    503: "Try again",
}
REF = "#/components/schemas/{model}"
# Each of a batch is read on its own, so what is sent may be any object; this is what it should be.
ENTRIES = {"EventsBody": ("events", "EventBody"), "UsersBody": ("users", "UserEntry")}


class Health(Protocol):
    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests can be answered, and the state of each part."""
        ...


@dataclass(frozen=True)
class Routes:
    """What stands behind the routes."""

    lists: Service
    items: Items
    events: Events
    people: People
    snapshots: Snapshots
    metrics: Metrics
    admission: Admission
    guard: Guard


class Around(Protocol):
    def around(self, app: ASGIApp, routes: frozenset[str]) -> ASGIApp:
        """The app with something around it. routes: the paths of the app."""
        ...


def create_app(routes: Routes, health: Health, tracing: Around | None = None) -> ASGIApp:
    """The whole HTTP API, as an ASGI app. tracing: what makes spans (``serving.spans``), None = nothing does."""
    app = FastAPI(title="Raysys", version=__version__, description=__doc__, docs_url="/docs", redoc_url=None)
    install(app)
    _add_lists(app, routes.lists)
    _add_writes(app, routes.items, routes.events)
    _add_people(app, routes.people)
    _add_snapshots(app, routes.snapshots)
    _add_operations(app, routes.metrics, health, routes.guard)
    _describe(app)
    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    edge = Edge(app, routes.metrics, paths, LISTS, routes.admission, routes.guard)
    return edge if tracing is None else tracing.around(edge, paths)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def _add_lists(app: FastAPI, lists: Service) -> None:
    _route(app, "/v1/recommendations", schemas.RecommendBody, schemas.ListAnswer, lists.recommend, "Recommend")
    _route(app, "/v1/similar", schemas.SimilarBody, schemas.ListAnswer, lists.similar, "Items like an item")
    _route(app, "/v1/search", schemas.SearchBody, schemas.ListAnswer, lists.search, "Items by text")
    _route(app, "/v1/rank", schemas.RankBody, schemas.ListAnswer, lists.rank, "Order given items")


def _add_writes(app: FastAPI, items: Items, events: Events) -> None:
    _route(app, "/v1/events", schemas.EventsBody, schemas.EventsAnswer, events.take, "Report what people did")
    ids, many, written = schemas.ItemIdsBody, schemas.ItemsBody, schemas.WrittenAnswer
    _route(app, "/v1/items", many, written, items.upsert, "Write whole items")
    _route(app, "/v1/items:patch", many, written, items.patch, "Change fields of items")
    _route(app, "/v1/items:get", ids, schemas.ItemsAnswer, items.get, "Items by id")
    _route(app, "/v1/items:delete", ids, written, items.delete, "Remove items for good")
    _route(app, "/v1/items:hide", ids, written, items.hide, "Take items out of every list")
    _route(app, "/v1/items:unhide", ids, written, items.unhide, "Show hidden items again")


def _add_people(app: FastAPI, people: People) -> None:
    one, believed = schemas.UserBody, schemas.UserAnswer
    _route(app, "/v1/users", schemas.UsersBody, schemas.UsersAnswer, people.upsert, "Write who people are")
    _route(app, "/v1/users:get", one, believed, people.get, "What is believed of a person")
    _route(app, "/v1/users:edit", schemas.UserEditBody, believed, people.edit, "Correct what is believed of a person")
    _route(app, "/v1/users:merge", schemas.UserMergeBody, schemas.UserMergeAnswer, people.merge, "Sessions to users")
    _route(app, "/v1/users:export", one, schemas.ExportAnswer, people.export, "Everything kept of a person")
    _route(app, "/v1/users:delete", one, schemas.ErasureAnswer, people.delete, "Remove a person wholly")


def _add_snapshots(app: FastAPI, snapshots: Snapshots) -> None:
    path, name = "/v1/admin/snapshots", "Which snapshots there are"

    async def listed() -> Response:
        return _json(await snapshots.list())

    responses = _responses(schemas.SnapshotsAnswer)
    app.add_api_route(path, listed, summary=name, operation_id=_operation_id(path), responses=responses)
    verify, activate = schemas.SnapshotVerifyBody, schemas.SnapshotActivateBody
    rollback, gc = schemas.SnapshotRollbackBody, schemas.SnapshotGcBody
    _route(app, f"{path}:verify", verify, schemas.SnapshotVerifyAnswer, snapshots.verify, "Look through a snapshot")
    _route(app, f"{path}:activate", activate, schemas.SnapshotActivateAnswer, snapshots.activate, "Publish a snapshot")
    _route(
        app, f"{path}:rollback", rollback, schemas.SnapshotRollbackAnswer, snapshots.rollback, "Back to the last one"
    )
    canary, running = schemas.SnapshotCanaryBody, schemas.SnapshotRunningBody
    _route(app, f"{path}:canary", canary, schemas.SnapshotCanaryAnswer, snapshots.canary, "A snapshot for some people")
    _route(app, f"{path}:promote", running, schemas.SnapshotRollbackAnswer, snapshots.promote, "Publish the canary")
    _route(app, f"{path}:withdraw", running, schemas.SnapshotWithdrawAnswer, snapshots.withdraw, "End the canary")
    _route(app, f"{path}:gc", gc, schemas.SnapshotGcAnswer, snapshots.collect, "Remove old snapshots")


def _route(
    app: FastAPI,
    path: str,
    body: type[BaseModel],
    answer: type[BaseModel],
    verb: Callable[[Any], Awaitable[dict[str, Any]]],
    summary: str,
) -> None:
    """One POST route. The body is checked straight from its bytes: once, strictly, and faster than via json.loads."""

    async def endpoint(request: Request) -> Response:
        asked = request.scope["raysys.asked"] = body.model_validate_json(await request.body())
        return _json(await verb(asked))

    content = {"application/json": {"schema": {"$ref": REF.format(model=body.__name__)}}}
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        operation_id=_operation_id(path),
        responses=_responses(answer),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


def _operation_id(path: str) -> str:
    return path.removeprefix("/v1/").replace(":", "_").replace("/", "_")


def _responses(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answer, and what every route may say instead."""
    return {200: {"model": answer}} | {status: _problem(text) for status, text in PROBLEMS.items()}


def _problem(text: str) -> dict[str, Any]:
    schema = {"$ref": REF.format(model="Problem")}
    return {"description": text, "content": {"application/problem+json": {"schema": schema}}}


def _add_operations(app: FastAPI, metrics: Metrics, health: Health, guard: Guard) -> None:
    refusals = {status: _problem(text) for status, text in REFUSALS.items()}

    @app.get("/livez", summary="Is this process alive?", responses={200: {"model": schemas.AliveAnswer}})
    async def livez() -> Response:
        return _json({"alive": True})

    states: dict[int | str, dict[str, Any]] = {
        200: {"model": schemas.ReadyAnswer},
        503: {"model": schemas.ReadyAnswer, "description": "Not yet, or not now"},
    }

    @app.get("/readyz", summary="Can requests be answered?", responses=states | refusals)
    async def readyz(request: Request) -> Response:
        ready, state = await health.ready()
        details = {**state, **guard.status()} if guard.tells_details(request.scope) else {}
        return _json({"ready": ready, **details}, 200 if ready else 503)

    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get(
        "/metrics", summary="Prometheus metrics of this replica", responses=text | refusals, response_class=Response
    )
    async def export() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")


def _describe(app: FastAPI) -> None:
    """Add the body models to the OpenAPI document: FastAPI does not see them, as it does not parse the bodies."""
    bodies = (
        schemas.RecommendBody,
        schemas.SimilarBody,
        schemas.SearchBody,
        schemas.RankBody,
        schemas.EventsBody,
        schemas.EventBody,
        schemas.ItemIdsBody,
        schemas.ItemsBody,
        schemas.UsersBody,
        schemas.UserEntry,
        schemas.UserBody,
        schemas.UserEditBody,
        schemas.UserMergeBody,
        schemas.SnapshotVerifyBody,
        schemas.SnapshotActivateBody,
        schemas.SnapshotRollbackBody,
        schemas.SnapshotCanaryBody,
        schemas.SnapshotRunningBody,
        schemas.SnapshotGcBody,
        schemas.Problem,
    )
    document = app.openapi

    def with_bodies() -> dict[str, Any]:
        described = document()
        _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
        named = described.setdefault("components", {}).setdefault("schemas", {})
        named.update(definitions["$defs"])
        for body, (field, entry) in ENTRIES.items():
            named[body]["properties"][field]["items"] = {
                "anyOf": [{"$ref": REF.format(model=entry)}, {"type": "object"}]
            }
        _secure(described)
        return described

    app.openapi = with_bodies  # type: ignore[method-assign]


def _secure(document: dict[str, Any]) -> None:
    """Say what each operation needs where there are keys: one of these, and ``{}`` = it also answers without."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        scopes = NEEDED.get(path, DETAILS.get(path, frozenset()))
        either = [{scheme: [scope]} for scheme in ("bearer", "api_key") for scope in sorted(scopes)]
        for operation in operations.values():
            operation["security"] = either if path in NEEDED else [{}, *either]
