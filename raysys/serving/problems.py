"""From exceptions to problem+json (RFC 9457): the one place that knows the HTTP status of an error."""

import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from raysys.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    Overloaded,
    RateLimited,
    RaysysError,
    SnapshotConflict,
    SnapshotDamaged,
    SnapshotError,
    SnapshotRefused,
    SnapshotTooNew,
    SnapshotUntrusted,
    Unauthenticated,
    Unavailable,
    UnknownItem,
    UnknownSnapshot,
)
from raysys.index.filters import MAX_NAME_CHARS, Condition, Filter, Range, error_path
from raysys.serving import schemas
from raysys.serving.schemas import EventsBody, FieldError, ItemsBody, Problem, UsersBody

# By what stands before a field of theirs in its path.
PARTS_OF_FILTERS: dict[str, type[BaseModel]] = {"filter": Filter, "condition": Condition, "range": Range}

# The first class that matches decides.
STATUS: list[tuple[type[Exception], int, str]] = [
    (Unauthenticated, 401, "unauthenticated"),
    (Forbidden, 403, "forbidden"),
    (UnknownItem, 404, "unknown_item"),
    (Conflict, 409, "conflict"),
    (InvalidInput, 422, "invalid_input"),
    (RateLimited, 429, "rate_limited"),
    (Overloaded, 429, "overloaded"),
    (Unavailable, 503, "unavailable"),
    (UnknownSnapshot, 404, "unknown_snapshot"),
    (SnapshotRefused, 409, "snapshot_refused"),
    (SnapshotDamaged, 409, "snapshot_damaged"),
    (SnapshotUntrusted, 409, "snapshot_untrusted"),
    (SnapshotTooNew, 409, "snapshot_too_new"),
    (SnapshotConflict, 409, "snapshot_conflict"),
    (SnapshotError, 503, "no_snapshot"),
]

BATCHES = {body.__name__ for body in (EventsBody, ItemsBody, UsersBody)}
MAX_ERRORS = 100  # named in one answer
CLIENT_CLOSED_REQUEST = 499  # as in nginx; only metrics see it

log = logging.getLogger(__name__)


class BodyTooLarge(Exception):
    """Raised while reading, before the whole body is in memory."""


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem+json response that carries the id of its request."""
    body = Problem(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        errors=[] if errors is None else errors,
        request_id=request.scope.get("raysys.request_id", ""),
    )
    content = orjson.dumps(body.model_dump(), default=str)
    return Response(content, status, headers, media_type="application/problem+json")


def on_invalid_body(request: Request, error: Exception) -> Response:
    """A body that does not fit its schema: every wrong value by its path; of a list, the first."""
    assert isinstance(error, ValidationError)  # noqa: S101  # registered for this class only
    errors = faults(error)
    status, code = _status_of(error.title, errors)
    return problem(request, status, code, "; ".join(f"{e.field}: {e.message}" for e in errors[:3]), errors)


def faults(error: ValidationError) -> list[FieldError]:
    """What is wrong, value by value; one fault that says how much, where to name it all takes seconds."""
    if error.error_count() > MAX_ERRORS:
        message = f"{error.error_count():,} fields are wrong or unknown here; /openapi.json says what there may be"
        return [FieldError(field="body", code="too_many_errors", message=message)]
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        FieldError(field=field_path(each["loc"]), code=each["type"], message=_message(error.title, each))
        for each in found
        if not (each["type"] == "too_short" and any(_is_inside(other["loc"], each["loc"]) for other in found))
    ]


def _message(body: str, error: ErrorDetails) -> str:
    """What is wrong; of a field of the body itself or of its filter that is not known, which are."""
    inside = error["loc"][:-1]
    model = PARTS_OF_FILTERS.get(str(inside[-1])) if inside else getattr(schemas, body, None)
    if error["type"] != "extra_forbidden" or model is None:
        return error["msg"].removeprefix("Value error, ").replace("Tuple", "List", 1)
    known = [field.alias or attribute for attribute, field in model.model_fields.items()]
    close = get_close_matches(str(error["loc"][-1])[:MAX_NAME_CHARS], known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"there is no such field; {hint}Known: {', '.join(known)}" if known else "this body has no fields"


def _is_inside(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    """A list whose only element is wrong is not empty, though pydantic says so too."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _status_of(body: str, errors: list[FieldError]) -> tuple[int, str]:
    if any(error.code == "json_invalid" for error in errors):
        return 400, "invalid_json"
    if body in BATCHES and any(error.code == "too_long" for error in errors):
        return 413, "batch_too_large"
    return 422, "invalid_input"


def on_raysys_error(request: Request, error: Exception) -> Response:
    """An error that Raysys raised on purpose."""
    status, code = next(((s, c) for kind, s, c in STATUS if isinstance(error, kind)), (500, "internal"))
    if status == 500:
        return on_anything(request, error)
    return problem(request, status, code, str(error), _field_errors(error, code), _headers(error))


def _field_errors(error: Exception, code: str) -> list[FieldError]:
    if isinstance(error, InvalidInput):
        return [FieldError(field=error.field, code=code, message=error.message)]
    if isinstance(error, SnapshotRefused):
        return [FieldError(field="snapshot_id", code=code, message=reason) for reason in error.reasons]
    return []


def _headers(error: Exception) -> dict[str, str]:
    """When to come back, or what to show: RFC 6750, section 3."""
    if isinstance(error, Unavailable | RateLimited):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'Bearer realm="raysys"' + (', error="invalid_token"' if error.was_given else "")}
    if isinstance(error, Forbidden):
        scope = " ".join(sorted(error.needed))
        return {"WWW-Authenticate": f'Bearer realm="raysys", error="insufficient_scope", scope="{scope}"'}
    return {}


def on_http_error(request: Request, error: Exception) -> Response:
    """A route that is not there, a method that is not allowed."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class only
    phrase = HTTPStatus(error.status_code).phrase
    return problem(
        request, error.status_code, phrase.lower().replace(" ", "_"), str(error.detail), headers=error.headers
    )


def on_large_body(request: Request, error: Exception) -> Response:
    """A body that was not read to its end."""
    return problem(request, 413, "body_too_large", str(error), headers={"Connection": "close"})


def on_gone(request: Request, error: Exception) -> Response:
    """A caller that hung up: nobody reads this."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def on_anything(request: Request, error: Exception) -> Response:
    """A bug of ours: logged with its trace, told without it."""
    log.error("unexpected error in request %s", request.scope.get("raysys.request_id"), exc_info=error)
    return problem(request, 500, "internal", "something went wrong here; the log has the details under this request_id")


def field_path(location: tuple[int | str, ...]) -> str:
    """``("events", 0, "type")`` -> ``events[0].type``; the body itself is ``body``."""
    return error_path(location, "").removeprefix(".") or "body"


def install(app: FastAPI) -> None:
    """Let every error of the app leave as problem+json."""
    app.add_exception_handler(ValidationError, on_invalid_body)
    app.add_exception_handler(RaysysError, on_raysys_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_anything)
