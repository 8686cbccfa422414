"""The HTTP API over the path in this process: every route, and every wrong request answered as problem+json."""

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from support import EXPIRED, N_ITEMS, NOW_S, ODD, SILENT, FixedClock, Health, Served, Shop, raising, serve_here

from raysys.config import ServeSettings
from raysys.errors import Overloaded, SnapshotError, Unavailable
from raysys.serving.edge import MAX_BODY_BYTES
from raysys.serving.front import Front

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW_MS = round(NOW_S * 1_000)
ITEMS = ("/v1/items", "/v1/items:patch", "/v1/items:get", "/v1/items:delete", "/v1/items:hide", "/v1/items:unhide")
USERS = tuple(f"/v1/users{verb}" for verb in ("", ":get", ":edit", ":merge", ":delete", ":export"))
ACTS = (":verify", ":activate", ":rollback", ":canary", ":promote", ":withdraw", ":gc")
SNAPSHOTS = tuple(f"/v1/admin/snapshots{act}" for act in ("", *ACTS))
POSTS = ("/v1/recommendations", "/v1/similar", "/v1/search", "/v1/rank", "/v1/events", *ITEMS, *USERS)
MINIMAL: dict[str, dict[str, Any]] = {
    "/v1/recommendations": {},
    "/v1/similar": {"item_id": "item-0"},
    "/v1/search": {"query": "bababa"},
    "/v1/rank": {"items": ["item-1", "item-2"]},
    "/v1/events": {"events": [{"event_id": "e1", "type": "view", "user_id": "ann", "item_id": "item-1"}]},
    "/v1/items": {"items": [{"item_id": "new-1", "title": "bababa"}]},
    "/v1/items:patch": {"items": [{"item_id": "item-1", "price": 5.0}]},
    **{path: {"item_ids": ["item-1"]} for path in ITEMS[2:]},
    "/v1/users": {"users": [{"user_id": "ann", "description": "likes trains"}]},
    **{path: {"user_id": "ann"} for path in USERS[1:]},
    "/v1/users:edit": {"user_id": "ann", "action": "mute", "evidence": ["item-1"]},
    "/v1/users:merge": {"user_id": "ann", "session_id": "s1"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One gateway for all requests of this module that change nothing."""
    made = await serve_here(shop.store(2), tmp_path_factory.mktemp("state") / "state.sqlite3")
    yield made
    await made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def written(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One gateway for all tests that write no more than events of a user whom no other test knows."""
    made = await serve_here(shop.store(2), tmp_path_factory.mktemp("written") / "state.sqlite3")
    yield made
    await made.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def served(shop: Shop, tmp_path: Path) -> AsyncIterator[Served]:
    """A gateway of the test's own."""
    made = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    yield made
    await made.stop()


@pytest.fixture
def reader(shared: Served) -> httpx.AsyncClient:
    """For requests that change nothing."""
    return shared.client()


@pytest.fixture
def writer(written: Served) -> httpx.AsyncClient:
    """For events of somebody new."""
    return written.client()


@pytest.fixture
def somebody() -> str:
    """A name that no other test has."""
    return uuid4().hex


@pytest.fixture
def client(served: Served) -> httpx.AsyncClient:
    return served.client()


def strict_json(response: httpx.Response) -> Any:
    """The body, which may hold no NaN and no infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {response.text}")

    return json.loads(response.content, parse_constant=refuse)


async def post(client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(path, content=content, headers={"content-type": "application/json"})


async def good(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    response = await post(client, path, body)
    assert response.status_code == 200, response.text
    return strict_json(response)


def assert_problem(response: httpx.Response, status: int, code: str, *fields: str) -> dict[str, Any]:
    body = strict_json(response)
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    for field in fields:
        assert field in [error["field"] for error in body["errors"]], body
    return body


async def list_ids(client: httpx.AsyncClient, body: Any, path: str = "/v1/recommendations") -> list[str]:
    return [item["item_id"] for item in (await good(client, path, body))["items"]]


# What each route gives


async def test_a_recommendation(reader: httpx.AsyncClient, shop: Shop) -> None:
    body = await good(reader, "/v1/recommendations", {"user_id": "nobody", "query": "quasar zeppelin", "limit": 3})
    assert [item["rank"] for item in body["items"]] == [1, 2, 3]
    assert body["items"][0]["item_id"] == ODD
    assert body["items"][0]["metadata"]["price"] == 1.0
    assert body["snapshot_id"] == shop.snapshot(2).name
    assert body["exact"] is True
    assert (body["underfilled"], body["degraded"], body["unknown_items"]) == (False, [], [])
    stages = {name for name in body["timings_ms"] if "." not in name}
    assert stages == {"profile", "encode", "recall", "rank", "present", "total"}
    assert {f"{stage}.{part}" for stage in ("recall", "rank") for part in ("queue", "compute")} < set(
        body["timings_ms"]
    )
    assert len(body["recommendation_id"]) == 32


async def test_ten_are_given_where_no_limit_is(reader: httpx.AsyncClient) -> None:
    assert len(await list_ids(reader, {})) == 10


async def test_an_unknown_user_is_normal(reader: httpx.AsyncClient) -> None:
    for who in ({"user_id": "never seen"}, {"session_id": "s-1"}, {}):
        body = await good(reader, "/v1/recommendations", who)
        assert (body["reasons"], body["profile_version"], len(body["items"])) == (["cold_start"], 0, 10)


async def test_similar(reader: httpx.AsyncClient) -> None:
    found = await list_ids(reader, {"item_id": "item-0", "limit": 5}, "/v1/similar")
    assert len(found) == 5
    assert "item-0" not in found
    assert_problem(await post(reader, "/v1/similar", {"item_id": "nope"}), 404, "unknown_item", "item_id")
    assert_problem(await post(reader, "/v1/similar", {"item_id": SILENT}), 404, "unknown_item", "item_id")


async def test_search(reader: httpx.AsyncClient) -> None:
    body = await good(reader, "/v1/search", {"query": "zeppelin", "limit": 1})
    assert [item["item_id"] for item in body["items"]] == [ODD]
    assert body["items"][0]["score"] == pytest.approx(body["items"][0]["sources"]["query"])


async def test_rank_orders_what_it_knows_and_names_what_it_does_not(reader: httpx.AsyncClient) -> None:
    body = await good(reader, "/v1/rank", {"query": "zeppelin", "items": ["item-1", "nope", ODD, "item-1", EXPIRED]})
    assert [item["item_id"] for item in body["items"]] == [ODD, "item-1"]
    assert body["unknown_items"] == ["nope"]
    assert body["underfilled"] is True


async def test_items_by_id(reader: httpx.AsyncClient) -> None:
    body = await good(reader, "/v1/items:get", {"item_ids": [ODD, "nope", "item-1", ODD]})
    assert [item["item_id"] for item in body["items"]] == [ODD, "item-1"]
    assert body["items"][0]["title"] == "quasar zeppelin"
    assert body["unknown_items"] == ["nope"]


async def test_times_are_rfc_3339(reader: httpx.AsyncClient) -> None:
    (item,) = (await good(reader, "/v1/items:get", {"item_ids": [EXPIRED]}))["items"]
    assert item["available_until"].endswith("+00:00")


async def test_unknown_items_of_a_recommendation_are_named(reader: httpx.AsyncClient) -> None:
    body = await good(reader, "/v1/recommendations", {"history": ["a"], "positive": ["item-1"], "negative": ["b"]})
    assert body["unknown_items"] == ["a", "b"]


async def test_a_filter_and_a_limit_hold(reader: httpx.AsyncClient) -> None:
    wanted = {"must": [{"field": "price", "range": {"lte": 10}}]}
    for path, body in (("/v1/recommendations", {"query": "bababa"}), ("/v1/search", {"query": "bababa"})):
        answer = await good(reader, path, {**body, "filter": wanted, "limit": 500})
        assert answer["items"]
        assert answer["underfilled"] is True
        assert all(item["metadata"]["price"] <= 10 for item in answer["items"])


# Events


def event(event_id: Any = "e1", **changes: Any) -> dict[str, Any]:
    made = {"event_id": event_id, "type": "view", "user_id": "ann", "item_id": "item-1", "timestamp": NOW_MS}
    return {name: value for name, value in (made | changes).items() if value is not None}


async def send(client: httpx.AsyncClient, *events: Any) -> Any:
    return await good(client, "/v1/events", {"events": events})


async def test_an_event_changes_the_very_next_answer(client: httpx.AsyncClient) -> None:
    before = await good(client, "/v1/recommendations", {"user_id": "ann", "limit": 500})
    top = before["items"][0]["item_id"]
    answer = await send(client, event(item_id=top, type="purchase"))
    assert answer == {"accepted": 1, "duplicates": 0, "rejected": [], "profile_versions": {"ann": 1}}
    after = await good(client, "/v1/recommendations", {"user_id": "ann", "limit": 500})
    assert after["profile_version"] == 1
    assert after["reasons"] == []
    assert top not in [item["item_id"] for item in after["items"]]
    assert [i["item_id"] for i in after["items"]] != [i["item_id"] for i in before["items"]][1:]
    other = await good(client, "/v1/recommendations", {"user_id": "bob", "limit": 500})
    assert [i["item_id"] for i in other["items"]] == [i["item_id"] for i in before["items"]]


async def test_a_session_is_never_taken_for_a_user_of_that_name(client: httpx.AsyncClient) -> None:
    await send(client, event(user_id=None, session_id="ann"))
    assert (await good(client, "/v1/recommendations", {"user_id": "ann"}))["profile_version"] == 0
    assert (await good(client, "/v1/recommendations", {"session_id": "ann"}))["profile_version"] == 1


async def test_a_user_and_a_session_of_one_name_in_one_batch_keep_their_versions(client: httpx.AsyncClient) -> None:
    answer = await send(client, event("e1"), event("e2"), event("e3", user_id=None, session_id="bob"))
    assert answer["profile_versions"] == {"ann": 2, "bob": 3}  # one sequence numbers all writes


async def test_hidden_and_disliked_items_never_come_back(client: httpx.AsyncClient) -> None:
    await send(client, event("e1", type="hide", item_id="item-5"), event("e2", type="dislike", item_id="item-6"))
    found = await list_ids(client, {"user_id": "ann", "limit": 500, "exclude_seen": False})
    assert not {"item-5", "item-6"} & set(found)


async def test_one_bad_event_among_good_ones(client: httpx.AsyncClient) -> None:
    answer = await send(client, event("e1"), event("e2", type=None), event("e3", item_id="item-2"), {})
    assert (answer["accepted"], answer["duplicates"]) == (2, 0)
    assert [(r["index"], r["code"]) for r in answer["rejected"]] == [(1, "invalid"), (3, "invalid")]
    assert answer["rejected"][0]["message"].startswith("type: ")
    assert answer["profile_versions"] == {"ann": 2}


async def test_duplicates_count_once(client: httpx.AsyncClient) -> None:
    first = await send(client, event("e1"), event("e1"), event("e2"))
    assert (first["accepted"], first["duplicates"]) == (2, 1)
    again = await send(client, event("e1"), event("e2"))
    assert again == {"accepted": 0, "duplicates": 2, "rejected": [], "profile_versions": {"ann": 2}}


BAD_EVENTS = [
    ({"timestamp": NOW_MS + 3_600_000}, "in_future", "timestamp"),
    ({"timestamp": "2023-11-14T22:13:20"}, "invalid", "timestamp"),
    ({"timestamp": "yesterday"}, "invalid", "timestamp"),
    ({"timestamp": 1_700_000_000}, "invalid", "timestamp"),  # seconds
    ({"timestamp": 1.5e12}, "invalid", "timestamp"),
    ({"timestamp": True}, "invalid", "timestamp"),
    ({"timestamp": "0001-01-01T00:00:00+14:00"}, "invalid", "timestamp"),  # cannot be said in UTC
    ({"timestamp": "1970-01-20T16:13:20Z"}, "invalid", "timestamp"),  # seconds taken for milliseconds
    ({"timestamp": 10**30}, "invalid", "event"),
    ({"timestamp": 10**18}, "in_future", "timestamp"),
    ({"timestamp": -(10**15)}, "invalid", "timestamp"),
    ({"user_id": None}, "invalid", "user_id or session_id"),
    ({"session_id": "s"}, "invalid", "user_id or session_id"),
    ({"user_id": ""}, "invalid", "user_id"),
    ({"user_id": 7}, "invalid", "user_id"),
    ({"event_id": ""}, "invalid", "event_id"),
    ({"event_id": "x" * 257}, "invalid", "event_id"),
    ({"event_id": None}, "invalid", "event_id"),
    ({"item_id": "a\0b"}, "invalid", "item_id"),
    ({"item_id": ["item-1"]}, "invalid", "item_id"),
    ({"type": ""}, "invalid", "type"),
    ({"type": 5}, "invalid", "type"),
    ({"type": "a\0b"}, "invalid", "type"),
    ({"value": "5"}, "invalid", "value"),
    ({"value": True}, "invalid", "value"),
    ({"properties": {str(i): i for i in range(51)}}, "invalid", "properties"),
    ({"properties": []}, "invalid", "properties"),
    ({"impressions": "item-1"}, "invalid", "impressions"),
    ({"colour": "red"}, "invalid", "colour"),
    ({"text": "x" * 4_001}, "invalid", "text"),
]


@pytest.mark.parametrize(("changes", "code", "field"), BAD_EVENTS, ids=lambda v: str(v)[:30])
async def test_a_bad_event_is_rejected_by_name(
    writer: httpx.AsyncClient, somebody: str, changes, code: str, field: str
) -> None:
    bad, good = {"event_id": "bad", "user_id": somebody} | changes, event(f"good-{somebody}", user_id=somebody)
    answer = await send(writer, event(**bad), good)
    assert answer["accepted"] == 1
    (rejected,) = answer["rejected"]
    assert (rejected["index"], rejected["code"]) == (0, code)
    assert field in rejected["message"]


@pytest.mark.parametrize(
    "timestamp", [NOW_MS, "2023-11-14T22:13:20Z", "2023-11-15T00:13:20.123456+02:00", None, NOW_MS + 200_000, 10**11]
)
async def test_times_that_are_taken(writer: httpx.AsyncClient, somebody: str, timestamp) -> None:
    assert (await send(writer, event(somebody, user_id=somebody, timestamp=timestamp)))["accepted"] == 1


@pytest.mark.parametrize(
    ("name", "weight"),
    [("view_item", 1.0), ("add_to_cart", 2.0), ("purchase", 3.0), ("add_to_wishlist", 2.0), ("hide", -3.0)],
)
async def test_names_of_google_analytics_are_taken(written: Served, somebody: str, name, weight) -> None:
    assert (await send(written.client(), event(somebody, user_id=somebody, type=name)))["accepted"] == 1
    assert [i.weight for i in (await written.profile(f"u:{somebody}")).interactions] == [weight]


async def test_an_unknown_kind_of_event_is_kept_as_a_weak_signal(written: Served, somebody: str) -> None:
    assert (await send(written.client(), event(somebody, user_id=somebody, type="blinked_at")))["accepted"] == 1
    assert [i.weight for i in (await written.profile(f"u:{somebody}")).interactions] == [0.5]


async def test_an_event_about_an_unknown_item_is_kept(writer: httpx.AsyncClient, somebody: str) -> None:
    assert (await send(writer, event(somebody, user_id=somebody, item_id="comes-tomorrow")))["accepted"] == 1
    assert len(await list_ids(writer, {"user_id": somebody})) == 10


async def test_odd_values_inside_properties_are_kept(writer: httpx.AsyncClient, somebody: str) -> None:
    deep: Any = "x"
    for _ in range(20):
        deep = {"a": [deep, None, 1.5, "🎈"]}
    odd = event(somebody, user_id=somebody, properties={"deep": deep, "big": 2**63}, impressions=["item-1"])
    assert (await send(writer, odd))["accepted"] == 1


# Wrong requests

BAD_LIMITS = [0, -1, 1.5, "10", 10**9, 10**30, True, None, [], {}]


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/similar", "/v1/search"])
@pytest.mark.parametrize("limit", BAD_LIMITS, ids=str)
async def test_a_bad_limit_is_named(reader: httpx.AsyncClient, path: str, limit: Any) -> None:
    assert_problem(await post(reader, path, MINIMAL[path] | {"limit": limit}), 422, "invalid_input", "limit")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "1e3", "01", "1_0"])
async def test_a_limit_that_is_no_json_integer_is_refused(reader: httpx.AsyncClient, literal: str) -> None:
    response = await post(reader, "/v1/recommendations", b'{"limit": %s}' % literal.encode())
    assert response.status_code in (400, 422)
    assert strict_json(response)["code"] in ("invalid_json", "invalid_input")


@pytest.mark.parametrize("path", POSTS)
async def test_an_unknown_field_is_named(reader: httpx.AsyncClient, path: str) -> None:
    assert_problem(await post(reader, path, MINIMAL[path] | {"lmit": 5}), 422, "invalid_input", "lmit")


async def test_a_misspelt_field_is_told_what_it_may_mean(reader: httpx.AsyncClient) -> None:
    error = strict_json(await post(reader, "/v1/recommendations", {"user": "ann"}))["errors"][0]
    assert error["message"].startswith("there is no such field; did you mean 'user_id'? Known: ")
    assert error["message"].endswith(", explore")
    error = strict_json(await post(reader, "/v1/search", {"query": "b", "zzz": 1}))["errors"][0]
    assert error["message"].startswith("there is no such field; Known: query, ")


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"musst": []}, "filter.musst", "did you mean 'must'? Known: must, should, must_not"),
        ({"must": [{"field": "year", "matches": 1}]}, "filter.must[0].matches", "did you mean 'match'? Known: field,"),
        ({"must": [{"field": "year", "equals": 1}]}, "filter.must[0].equals", "Known: field, match, range, in, exists"),
        ({"must": [{"field": "year", "range": {"ge": 1}}]}, "filter.must[0].range.ge", "Known: gte, gt, lt, lte"),
    ],
)
async def test_a_misspelt_part_of_a_filter_is_told_what_it_may_mean(
    served: Served, given: dict[str, Any], path: str, message: str
) -> None:
    async with served.client() as client:
        answer = await client.post("/v1/recommendations", json={"filter": given})
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["field"]) == (422, path)
    assert message in error["message"]


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/search", "/v1/rank"])
@pytest.mark.parametrize("query", ["", "   ", "\n\t", "x" * 100_000, 5, True, [], {}])
async def test_a_bad_query_is_named(reader: httpx.AsyncClient, path: str, query: Any) -> None:
    assert_problem(await post(reader, path, MINIMAL[path] | {"query": query}), 422, "invalid_input", "query")


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/search"])
async def test_a_lone_surrogate_never_breaks_anything(reader: httpx.AsyncClient, path: str) -> None:
    response = await post(reader, path, b'{"query": "a \\ud83c b"}')
    assert response.status_code in (200, 400, 422)
    strict_json(response)


@pytest.mark.parametrize("field", ["user_id", "session_id", "history", "positive", "negative"])
@pytest.mark.parametrize("value", ["", "\0", "x" * 257, 5, True, {}, [5], [""], "\ud83c", ["\ud83c"]], ids=ascii)
async def test_a_bad_id_is_named(reader: httpx.AsyncClient, field: str, value: Any) -> None:
    response = await post(reader, "/v1/recommendations", {field: value})
    body = strict_json(response)
    assert response.status_code in (400, 422)
    if response.status_code == 422:
        assert body["errors"][0]["field"].startswith(field)


async def test_of_a_body_that_is_wrong_all_over_not_every_fault_is_named(reader: httpx.AsyncClient) -> None:
    response = await post(reader, "/v1/recommendations", {f"k{i}": 1 for i in range(101)})
    body = assert_problem(response, 422, "invalid_input", "body")
    assert "101 fields are wrong" in body["detail"]
    response = await post(reader, "/v1/recommendations", {"history": ["", ""], "x" * 1_000: 1})
    assert [error["field"] for error in response.json()["errors"]] == ["history[0]", "x" * 256 + "…"]


async def test_too_many_ids_are_refused(reader: httpx.AsyncClient) -> None:
    many = [f"item-{i}" for i in range(1_001)]
    assert_problem(await post(reader, "/v1/recommendations", {"history": many}), 422, "invalid_input", "history")
    assert_problem(await post(reader, "/v1/rank", {"items": many}), 422, "invalid_input", "items")
    assert_problem(await post(reader, "/v1/items:get", {"item_ids": many}), 422, "invalid_input", "item_ids")
    assert_problem(
        await post(reader, "/v1/events", {"events": [event(str(i)) for i in range(1_001)]}),
        413,
        "batch_too_large",
        "events",
    )


async def test_two_identities_are_refused(reader: httpx.AsyncClient) -> None:
    body = {"user_id": "ann", "session_id": "s"}
    assert "not both" in assert_problem(await post(reader, "/v1/recommendations", body), 422, "invalid_input")["detail"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1,", b"\xff\xfe", b"{'a': 1}", b"hello", b"{}{}", b"\0", b"{" * 100_000]
)
async def test_what_is_no_json_is_said_to_be_none(reader: httpx.AsyncClient, path: str, body: bytes) -> None:
    assert_problem(await post(reader, path, body), 400, "invalid_json")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [b"null", b"[]", b"5", b'"x"', b"true"])
async def test_json_that_is_no_object_is_refused(reader: httpx.AsyncClient, path: str, body: bytes) -> None:
    assert_problem(await post(reader, path, body), 422, "invalid_input", "body")


@pytest.mark.parametrize("path", [p for p in POSTS if p not in ("/v1/recommendations", *USERS[1:])])
async def test_what_is_required_is_named(reader: httpx.AsyncClient, path: str) -> None:
    required = next(iter(MINIMAL[path]))
    assert_problem(await post(reader, path, {}), 422, "invalid_input", required)


@pytest.mark.parametrize("path", POSTS)
async def test_a_body_of_five_megabytes_is_refused(reader: httpx.AsyncClient, path: str) -> None:
    assert_problem(await post(reader, path, b" " * 5_000_000), 413, "body_too_large")


async def test_a_body_is_refused_before_all_of_it_is_read(reader: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 1 << 20
            yield b" " * (1 << 20)

    response = await reader.post("/v1/search", content=chunks())
    assert_problem(response, 413, "body_too_large")
    assert sent <= MAX_BODY_BYTES + (2 << 20)


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"field": "price", "exists": True}
    for _ in range(depth):
        made = {"must": [made]}
    return made


BAD_FILTERS = [
    (nested(6), "filter"),
    (nested(100), "filter"),
    ({"must": [{"field": "colour", "match": "red"}]}, "filter.must[0].field"),
    ({"must": [{"field": "text_key", "exists": True}]}, "filter.must[0].field"),
    ({"must": [{"field": "price", "match": "cheap"}]}, "filter.must[0].match"),
    ({"must": [{"field": "price", "range": {}}]}, "filter.must[0].range"),
    ({"must": [{"field": "price"}]}, "filter.must[0]"),
    ({"must": [{"field": "title", "range": {"gt": "a"}}]}, "filter.must[0].range"),
    ({"must": {"field": "price", "exists": True}}, "filter.must"),
    ({"mst": []}, "filter.mst"),
    ([], "filter"),
    ("price < 5", "filter"),
    ({"must": [{"field": "price", "in": [{}]}]}, "filter.must[0].in[0]"),
    ({"must": [{"field": "price", "match": 10**30}]}, "filter.must[0].match"),
    ({"must": [{"field": "title", "match": "\ud83c"}]}, "filter"),
    ({"must": [{"field": "price", "exists": True}] * 300}, "filter"),
]


@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/search", "/v1/similar"])
@pytest.mark.parametrize(("raw", "field"), BAD_FILTERS, ids=lambda v: ascii(v)[:40])
async def test_a_bad_filter_is_named(reader: httpx.AsyncClient, path: str, raw: Any, field: str) -> None:
    response = await post(reader, path, MINIMAL[path] | {"filter": raw})
    body = strict_json(response)
    assert response.status_code in (400, 422), body
    if body["code"] != "invalid_json":  # a lone surrogate is not even JSON
        assert body["errors"][0]["field"].startswith(field), body


async def test_nan_and_infinity_in_a_filter_are_refused(reader: httpx.AsyncClient) -> None:
    for literal in (b"NaN", b"Infinity", b"1e999"):
        body = b'{"filter": {"must": [{"field": "price", "match": %s}]}}' % literal
        response = await post(reader, "/v1/recommendations", body)
        assert response.status_code in (400, 422), response.text
        strict_json(response)


async def test_a_route_that_is_not_there(reader: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/recommendation", "/v2/recommendations", "/v1/recommendations/x", "/%00", "/v1/..%2f"):
        assert_problem(await reader.post(path, content=b"{}"), 404, "not_found")


async def test_a_method_that_is_not_allowed(reader: httpx.AsyncClient) -> None:
    for path in POSTS:
        response = await reader.get(path)
        assert_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"
    assert_problem(await reader.post("/livez"), 405, "method_not_allowed")


# When a part does not answer


async def test_before_a_snapshot_is_loaded_one_is_told_to_try_again(tmp_path: Path) -> None:
    front = Front(ServeSettings(state=str(tmp_path / "state.sqlite3"), impressions={"folder": None}), FixedClock())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(front.app(Health())), base_url="http://test")
    for path in POSTS:
        if path in ("/v1/events", "/v1/users", "/v1/users:merge", "/v1/users:edit"):  # these need none
            continue
        response = await post(client, path, MINIMAL[path])
        assert_problem(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) >= 1
    assert (await send(client, event()))["accepted"] == 1
    await front.close()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("full", 2.5), 429, "overloaded"),
        (Unavailable("gone"), 503, "unavailable"),
        (SnapshotError("damaged"), 503, "no_snapshot"),
        (RuntimeError("secret /etc/passwd"), 500, "internal"),
        (ZeroDivisionError("secret"), 500, "internal"),
    ],
)
async def test_what_goes_wrong_inside(
    reader: httpx.AsyncClient,
    shared: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    code: str,
) -> None:
    monkeypatch.setattr(shared.recommender, "search", raising(error))
    response = await post(reader, "/v1/search", {"query": "private words"})
    body = assert_problem(response, status, code)
    assert "secret" not in response.text
    logged = caplog.text
    assert ("secret" in logged) == (status == 500)
    assert "private words" not in logged  # a log with local variables would tell what people asked
    if status == 429:
        assert response.headers["retry-after"] == "3"
        assert body["detail"] == "full"


async def test_without_the_store_a_list_still_comes_and_says_so(client: httpx.AsyncClient, served: Served) -> None:
    await served.front.state.close()  # from here on it raises Unavailable, as one that is away does
    body = await good(client, "/v1/recommendations", {"user_id": "ann"})
    assert (body["degraded"], len(body["items"])) == (["profile"], 10)
    for path in ("/v1/events", "/v1/items"):
        response = await post(client, path, MINIMAL[path])
        assert_problem(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) >= 1
    assert 'raysys_degraded_total{part="profile"} 1.0' in (await client.get("/metrics")).text


# Around the routes


async def test_the_request_id_and_the_trace_come_back(reader: httpx.AsyncClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-request-id": "abc-123", "traceparent": trace}
    for response in (
        await reader.post("/v1/search", json={"query": "x"}, headers=headers),
        await reader.post("/v1/search", json={}, headers=headers),
        await reader.get("/nowhere", headers=headers),
        await reader.get("/livez", headers=headers),
        await reader.post("/v1/search", content=b" " * 5_000_000, headers=headers),
    ):
        assert response.headers["x-request-id"] == "abc-123"
        assert response.headers["traceparent"] == trace
        if response.is_error:
            assert strict_json(response)["request_id"] == "abc-123"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "ü"])
async def test_a_request_id_that_is_none_is_replaced(reader: httpx.AsyncClient, given: str) -> None:
    response = await reader.get("/livez", headers=[(b"x-request-id", given.encode())])
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32


async def test_live_and_ready(client: httpx.AsyncClient, served: Served) -> None:
    assert (await client.get("/livez")).json() == {"alive": True}
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "shards": {}})
    other = httpx.AsyncClient(
        transport=httpx.ASGITransport(served.front.app(Health(ready=False))), base_url="http://test"
    )
    assert (await other.get("/readyz")).status_code == 503


async def test_metrics_parse_and_count(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/search", {"query": "x"})
    await post(client, "/v1/search", {})
    await client.get("/made/up/by/the/caller")
    await send(client, event("e1"), event("e1"), {})
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["raysys_requests_total", "/v1/search", "200"] == 1
    assert samples["raysys_requests_total", "/v1/search", "422"] == 1
    assert samples["raysys_requests_total", "404", "other"] == 1
    assert samples["raysys_request_seconds_count", "/v1/search"] == 2
    for stage in ("recall", "recall.queue", "recall.compute"):
        assert samples["raysys_stage_seconds_count", stage] == 1
    assert [samples["raysys_events_total", o] for o in ("accepted", "duplicate", "rejected")] == [1, 1, 1]


async def test_the_openapi_document_names_every_route_and_resolves(reader: httpx.AsyncClient) -> None:
    document = (await reader.get("/openapi.json")).json()
    assert set(document["paths"]) == {*POSTS, *SNAPSHOTS, "/livez", "/readyz", "/metrics"}
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(schemas)
    for path in POSTS:
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["required"] is True
        assert {"200", "400", "404", "413", "422", "429", "503"} <= set(operation["responses"])
    assert "EventBody" in schemas


async def test_every_number_that_leaves_is_finite_and_every_row_is_an_item(reader: httpx.AsyncClient) -> None:
    body = await good(reader, "/v1/recommendations", {"query": "bababa", "history": ["item-1"], "limit": 500})
    assert len(body["items"]) == N_ITEMS + 1
    for item in body["items"]:
        assert item["item_id"] not in ("", "-1")
        assert all(math.isfinite(score) for score in (item["score"], *item["sources"].values()))


async def test_the_document_page_is_there(reader: httpx.AsyncClient) -> None:
    assert (await reader.get("/docs")).status_code == 200


async def test_a_caller_that_hangs_up_is_no_error_of_ours(shared: Served, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/search", "headers": [], "query_string": b""}
    await shared.app(scope, receive, keep)  # type: ignore[arg-type]
    assert sent[0]["status"] == 499
    assert "unexpected" not in capsys.readouterr().out
