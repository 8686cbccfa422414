"""The OpenAPI document against the app: whatever it allows or forbids, no answer fails or is not in the document."""

from typing import Any

import pytest
import requests
import schemathesis
from gateway import Gateway
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from support import EXPIRED, HIDDEN, ODD, SILENT

from raysys.serving.schemas import ID_SCHEMA

ITEMS = ("items", "items:patch", "items:get", "items:delete", "items:hide", "items:unhide")
USERS = tuple(f"users{verb}" for verb in ("", ":get", ":edit", ":merge", ":delete", ":export"))
LISTS = ("recommendations", "similar", "search", "rank")
SNAPSHOTS = tuple(
    f"admin/snapshots:{act}" for act in ("verify", "activate", "rollback", "canary", "promote", "withdraw", "gc")
)
PATHS = [f"/v1/{name}" for name in (*LISTS, "events", *ITEMS, *USERS, *SNAPSHOTS)]
GETS = ["/livez", "/readyz", "/metrics", "/v1/admin/snapshots"]
CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)
EXAMPLES = 60  # of each route and kind: some 2,000 in all
# JSON Schema takes 7.0 for an integer and counts characters, where the API wants integers and counts bytes; it cannot
# bound a tree; and what a catalogue or a person has is not in the document.
BEYOND_THE_DOCUMENT = {"int_type", "bad_id", "bad_value", "filter_too_large", "invalid_input"}

# Few enough names that what was written is read again, in every odd state that writing can leave it in.
NAMES = [*(f"item-{i}" for i in range(8)), HIDDEN, EXPIRED, SILENT, ODD, "a/b", "..", "😀", "007", "7", "\x1b[31m", " "]
NAME = {"anyOf": [{"enum": NAMES}, ID_SCHEMA]}
ITEM = {
    "type": "object",
    "required": ["item_id"],
    "properties": {
        "item_id": NAME,
        "title": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "price": {"type": "number"},
        "year": {"type": "integer"},
        "available_from": {"type": "string", "format": "date-time"},
        "available_until": {"type": "string", "format": "date-time"},
        "hidden": {"type": "boolean"},
    },
}

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
    phases=[Phase.generate],
)


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> dict[str, Any]:
    return gateway.send("GET", "/openapi.json").json()


@pytest.fixture(scope="module")
def api(document: dict[str, Any]) -> Any:
    return schemathesis.openapi.from_dict(document)


@pytest.fixture(scope="module")
def narrow(gateway: Gateway, document: dict[str, Any]) -> Any:
    """The document with names that mean something: of items and people, and of the fields of the catalogue."""
    narrowed = _with_names(document)
    schemas = narrowed["components"]["schemas"]
    fields = gateway.served.recommender.lookup.catalogue.schema.names
    schemas["Condition"]["properties"]["field"] = {"enum": fields}
    schemas["ItemsBody"]["properties"]["items"]["items"] = {"anyOf": [ITEM, {"type": "object"}]}
    return schemathesis.openapi.from_dict(narrowed)


def _with_names(value: Any) -> Any:
    if isinstance(value, dict):
        is_id = value.get("type") == "string" and value.get("pattern") == ID_SCHEMA["pattern"]
        return NAME if is_id else {key: _with_names(inner) for key, inner in value.items()}
    return [_with_names(inner) for inner in value] if isinstance(value, list) else value


def _answer(gateway: Gateway, case: Case) -> Response:
    asked = case.as_transport_kwargs(base_url="http://test")
    known = ("method", "url", "headers", "params", "json", "data", "cookies", "files")
    ready = requests.Request(**{name: asked[name] for name in known if name in asked}).prepare()
    body = ready.body.encode() if isinstance(ready.body, str) else ready.body
    answer = gateway.send(ready.method, ready.url, body or b"", list(ready.headers.items()))
    assert "Traceback" not in answer.text
    return Response.from_httpx(answer, verify=False)


@pytest.mark.parametrize("path", PATHS)
@many
@given(data=st.data())
def test_whatever_the_document_allows_is_answered_as_it_says(gateway: Gateway, narrow, path: str, data) -> None:
    case = data.draw(narrow[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    response = _answer(gateway, case)
    case.validate_response(response, checks=CHECKS)
    if response.status_code in (400, 422):
        assert {error["code"] for error in response.json()["errors"]} <= BEYOND_THE_DOCUMENT, response.text


@pytest.mark.parametrize("path", PATHS)
@many
@given(data=st.data())
def test_whatever_the_document_forbids_is_refused_as_it_says(gateway: Gateway, api, path: str, data) -> None:
    try:
        case = data.draw(api[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    except RecursionError:  # schemathesis 4.32 does not come to an end with some contradictions of a nested filter
        reject()
    response = _answer(gateway, case)
    refused = () if response.status_code == 413 else (negative_data_rejection,)  # to which 413 is no refusal
    case.validate_response(response, checks=(*CHECKS, *refused))


@pytest.mark.parametrize("path", GETS)
def test_what_operators_ask_is_answered_as_the_document_says(gateway: Gateway, api, path: str) -> None:
    case = api[path]["GET"].Case()
    case.validate_response(_answer(gateway, case), checks=CHECKS)


def test_every_route_is_here(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {*PATHS, *GETS}
