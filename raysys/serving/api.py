"""The HTTP routes: parse the body, call the service, write the answer. Nothing is decided here."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import generate_latest
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from raysys import __version__
from raysys.serving import schemas
from raysys.serving.edge import Edge
from raysys.serving.problems import install
from raysys.serving.service import Service

REF = "#/components/schemas/{model}"


class Health(Protocol):
    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests can be answered, and the state of each part."""
        ...


def create_app(service: Service, health: Health) -> ASGIApp:
    """The whole HTTP API over a service, as an ASGI app."""
    app = FastAPI(title="Raysys", version=__version__, description=__doc__, docs_url="/docs", redoc_url=None)
    install(app)
    _add_reads_and_writes(app, service)
    _add_operations(app, service, health)
    _describe(app)
    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    return Edge(app, service.metrics, paths)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


def _add_reads_and_writes(app: FastAPI, service: Service) -> None:
    _route(app, "/v1/recommendations", schemas.RecommendBody, schemas.ListAnswer, service.recommend, "Recommend")
    _route(app, "/v1/similar", schemas.SimilarBody, schemas.ListAnswer, service.similar, "Items like an item")
    _route(app, "/v1/search", schemas.SearchBody, schemas.ListAnswer, service.search, "Items by text")
    _route(app, "/v1/rank", schemas.RankBody, schemas.ListAnswer, service.rank, "Order given items")
    _route(app, "/v1/events", schemas.EventsBody, schemas.EventsAnswer, service.events, "Report what people did")
    _route(app, "/v1/items:get", schemas.ItemsGetBody, schemas.ItemsAnswer, service.items, "Items by id")


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
        return _json(await verb(body.model_validate_json(await request.body())))

    content = {"application/json": {"schema": {"$ref": REF.format(model=body.__name__)}}}
    problems: dict[int | str, dict[str, Any]] = {
        status: {
            "description": text,
            "content": {"application/problem+json": {"schema": {"$ref": REF.format(model="Problem")}}},
        }
        for status, text in {
            400: "Not JSON",
            404: "Unknown item",
            413: "Body too large",
            422: "A value is wrong",
            429: "Too many requests",
            503: "Try again",
        }.items()
    }
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        operation_id=verb.__name__,
        responses={200: {"model": answer}, **problems},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


def _add_operations(app: FastAPI, service: Service, health: Health) -> None:
    @app.get("/livez", summary="Is this process alive?")
    async def livez() -> Response:
        return _json({"alive": True})

    @app.get("/readyz", summary="Can requests be answered?")
    async def readyz() -> Response:
        ready, state = await health.ready()
        return _json({"ready": ready, **state}, 200 if ready else 503)

    @app.get("/metrics", summary="Prometheus metrics of this replica")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4")


def _describe(app: FastAPI) -> None:
    """Add the body models to the OpenAPI document: FastAPI does not see them, as it does not parse the bodies."""
    bodies = (
        schemas.RecommendBody,
        schemas.SimilarBody,
        schemas.SearchBody,
        schemas.RankBody,
        schemas.EventsBody,
        schemas.EventBody,
        schemas.ItemsGetBody,
        schemas.Problem,
    )
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    document = app.openapi

    def with_bodies() -> dict[str, Any]:
        described = document()
        described.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return described

    app.openapi = with_bodies  # type: ignore[method-assign]
