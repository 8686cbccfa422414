"""The OpenAPI document against the app: whatever it allows or forbids, no answer fails or is not in the document."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from snapshot_shelf import A, copy_of
from support import Shop, server_of

from raysys.index.store import SnapshotStore

ITEMS = ("items", "items:patch", "items:get", "items:delete", "items:hide", "items:unhide")
SNAPSHOTS = tuple(f"admin/snapshots:{act}" for act in ("verify", "activate", "rollback", "gc"))
PATHS = [f"/v1/{name}" for name in ("recommendations", "similar", "search", "rank", "events", *ITEMS, *SNAPSHOTS)]
CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)


@pytest.fixture(scope="module")
def api(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("schema")
    store = SnapshotStore(folder / "index")
    copy_of(shop.snapshot(2), store, A)
    store.publish(A)
    with server_of(store, folder / "state.sqlite3") as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.name)
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(data=st.data())
def test_whatever_the_document_allows_or_forbids(api, path: str, mode: GenerationMode, data) -> None:
    case = data.draw(api[path]["POST"].as_strategy(generation_mode=mode))
    response = case.call()
    case.validate_response(response, checks=CHECKS)
