"""Requests that nobody means well: made to explode, to be read again and fail, or to be taken for something else."""

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from gateway import Gateway

from raysys.serving.edge import MAX_BODY_BYTES

# The worst that 4 MiB can do here took 96 s and 4.7 GB before lists stopped at their first fault; a calm machine
# needs 1.5 s now.
WORST_S = 15.0
ANSWER_BYTES = 1 << 20


def many(n: int, one: Callable[[int], bytes] | bytes) -> bytes:
    return b",".join(one if isinstance(one, bytes) else one(i) for i in range(n))


def nested(widths: tuple[int, ...], leaf: bytes) -> bytes:
    """A filter of filters, so many beside each other at each level."""
    for width in widths:
        leaf = b'{"must":[' + many(width, leaf) + b"]}"
    return b'{"filter":' + leaf + b"}"


def keys(n: int) -> bytes:
    return b"{" + many(n, lambda i: b'"k%d":1' % i) + b"}"


def lists(n: int, field: bytes, value: bytes) -> bytes:
    """A filter with so many conditions, each a list of 1,000 values."""
    condition = b'{"field":"%b","in":[%b]}' % (field, many(1_000, value))
    return b'{"filter":{"must":[' + many(n, condition) + b"]}}"


LISTS, EVENTS, USERS, WRITE = "/v1/recommendations", "/v1/events", "/v1/users", "/v1/items"
EXPLOSIVE: dict[str, tuple[str, int, bytes]] = {
    "wrong values in a tree": (LISTS, 422, nested((200, 256, 30), b"1")),
    "a tree of nothing": (LISTS, 422, nested((250, 256, 20), b"{}")),
    "a million clauses": (LISTS, 422, nested((1_000_000,), b"{}")),
    "deep": (LISTS, 422, nested((1,) * 90, b"{}")),
    "deeper than JSON is read": (LISTS, 400, nested((1,) * 5_000, b"{}")),
    "brackets": (LISTS, 400, b"[" * MAX_BODY_BYTES),
    "lists of numbers": (LISTS, 422, lists(256, b"year", b"1999")),
    "lists of large numbers": (LISTS, 422, lists(256, b"price", b"1.5e300")),
    "lists of texts": (LISTS, 422, lists(256, b"title", b'"x"')),
    "unknown fields": (LISTS, 422, keys(300_000)),
    "unknown fields of a filter": (LISTS, 422, b'{"filter":' + keys(300_000) + b"}"),
    "a field with a long name": (LISTS, 422, b'{"' + b"x" * 4_000_000 + b'":1}'),
    "a field over and over": (LISTS, 200, b"{" + many(400_000, b'"limit":3') + b"}"),
    "numbers for ids": (LISTS, 422, b'{"history":[' + many(1_900_000, b"1") + b"]}"),
    "empty ids": (LISTS, 422, b'{"history":[' + many(1_300_000, b'""') + b"]}"),
    "empty rules": (LISTS, 422, b'{"caps":[' + many(1_300_000, b"{}") + b"]}"),
    "a long number": (LISTS, 400, b'{"limit":' + b"1" * 4_000_000 + b"}"),
    "a long id": (LISTS, 422, b'{"user_id":"' + b"x" * 4_000_000 + b'"}'),
    "a long query": (LISTS, 422, b'{"query":"' + b"x" * 4_000_000 + b'"}'),
    "events that are none": (EVENTS, 422, b'{"events":[' + many(1_900_000, b"1") + b"]}"),
    "an event of unknown fields": (EVENTS, 200, b'{"events":[' + keys(300_000) + b"]}"),
    "an event of empty ids": (EVENTS, 200, b'{"events":[{"impressions":[' + many(1_300_000, b'""') + b"]}]}"),
    "an item of unknown fields": (WRITE, 200, b'{"items":[' + keys(300_000) + b"]}"),
    "items with long names of fields": (WRITE, 200, b'{"items":[' + many(1_000, b'{"%b":1}' % (b"x" * 4_000)) + b"]}"),
    "an item with too many tags": (
        WRITE,
        200,
        b'{"items":[{"item_id":"t","title":"t","tags":[' + many(450_000, lambda i: b'"%d"' % i) + b"]}]}",
    ),
    "a text of tags": (WRITE, 200, b'{"items":[{"item_id":"t","title":"' + b"<a '" * 900_000 + b'"}]}'),
    "a person of unknown fields": (USERS, 200, b'{"users":[' + keys(300_000) + b"]}"),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_what_is_made_to_explode_is_answered_soon_and_briefly(gateway: Gateway, name: str) -> None:
    path, status, body = EXPLOSIVE[name]
    assert len(body) <= MAX_BODY_BYTES
    start_s = time.perf_counter()
    response = gateway.post(path, body)
    assert response.status_code == status, response.text[:300]
    assert len(response.content) < ANSWER_BYTES
    assert time.perf_counter() - start_s < WORST_S
    assert gateway.post(LISTS, b"{}").status_code == 200


def says(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["detail"]
    return problem


BAD = {
    "NaN": b'{"limit": NaN}',
    "Infinity": b'{"diversity": Infinity}',
    "1e400": b'{"diversity": 1e400}',
    "a limit of 1e400": b'{"limit": 1e400}',
    "a huge limit": b'{"limit": 9223372036854775808}',
    "a negative limit": b'{"limit": -1}',
    "a limit as text": b'{"limit": "10"}',
    "a lone surrogate": b'{"user_id": "\\ud800"}',
    "half a pair": b'{"query": "\\udc00\\ud800"}',
    "an id of 10 kB": b'{"user_id": "' + b"x" * 10_240 + b'"}',
    "an id with NUL": b'{"user_id": "a\\u0000b"}',
    "no UTF-8": b'{"query": "\xff\xfe"}',
    "overlong UTF-8": b'{"query": "\xc0\x80"}',
    "UTF-16": '{"limit": 3}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "compressed": gzip.compress(b'{"limit": 3}'),
    "a form": b"limit=3&query=x",
    "XML": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
    "half a body": b'{"query": "x',
    "two bodies": b"{}{}",
    "a comment": b"{} // please",
    "a trailing comma": b'{"limit": 3,}',
    "nothing": b"",
    "null": b"null",
    "a text": b'"{}"',
    "__proto__": b'{"__proto__": {"limit": 3}}',
    "a filter in text": b'{"filter": "{}"}',
    "no such field": b'{"filter": {"must": [{"field": "price; DROP TABLE items", "exists": true}]}}',
    "a year 0": b'{"filter": {"must": [{"field": "available_from", "range": {"gte": "0000-01-01T00:00:00Z"}}]}}',
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("path", ["/v1/recommendations", "/v1/search", "/v1/users:get", "/v1/events"])
def test_what_is_wrong_is_a_problem_that_says_so(gateway: Gateway, path: str, name: str) -> None:
    says(gateway.post(path, BAD[name]), 400 if gateway.post(path, BAD[name]).status_code == 400 else 422)


IDS = [
    "a/b",
    "..",
    "../../etc/passwd",
    "😀",
    "007",
    "7",
    " ",
    "\n",
    "\x1b[31m",
    "\u202eabc",
    "%00",
    "\u00e9",
    "e\u0301",
]
IDS += ["x" * 256, "null"]


def test_ids_of_every_kind_stay_what_they_are(gateway: Gateway) -> None:
    items = [{"item_id": name, "title": f"odd {i}"} for i, name in enumerate(IDS)]
    assert gateway.post(WRITE, json.dumps({"items": items}).encode()).json()["accepted"] == IDS
    events = [{"event_id": name, "type": "like", "user_id": name[:200], "item_id": name} for name in IDS]
    answer = gateway.post(EVENTS, json.dumps({"events": events}).encode()).json()
    assert (answer["accepted"], answer["rejected"]) == (len(IDS), [])
    found = gateway.post("/v1/items:get", json.dumps({"item_ids": IDS}).encode()).json()
    assert {item["item_id"]: item["title"] for item in found["items"]} == {n: f"odd {i}" for i, n in enumerate(IDS)}
    for name in IDS:
        known = gateway.post("/v1/users:export", json.dumps({"user_id": name[:200]}).encode()).json()
        assert [event["item_id"] for event in known["events"]] == [name]


def test_of_a_field_that_comes_twice_the_last_counts(gateway: Gateway) -> None:
    assert len(gateway.post(LISTS, b'{"limit": 9, "limit": 2}').json()["items"]) == 2


POISON: list[dict[str, Any]] = [
    {"timestamp": "0001-01-01T00:00:00+14:00"},
    {"timestamp": "9999-12-31T23:59:59-14:00"},
    {"timestamp": "1969-12-31T23:59:59Z"},
    {"timestamp": -(2**63)},
    {"timestamp": 2**63 - 1},
    {"type": "rating", "value": 1e308},
    {"type": "rating", "value": -1e308},
    {"type": "dwell", "value": 5e-324},
    {"type": "\x00\n"},
    {"text": "\x00"},
    {"text": "‮" * 4_000},
    {"properties": {"a": json.loads("[" * 150 + "]" * 150)}},
    {"properties": {"\x00": -0.0, "": None}},
    {"recommendation_id": "..", "impressions": ["item-1"] * 1_000},
]


@pytest.mark.parametrize("changes", POISON, ids=lambda changes: str(changes)[:40])
def test_nothing_that_is_taken_keeps_the_rest_from_being_read(gateway: Gateway, changes: dict[str, Any]) -> None:
    user = f"poisoned by {str(changes)[:100]}"
    event = {"event_id": user, "type": "like", "user_id": user, "item_id": "item-1"} | changes
    good = {"event_id": f"{user} not", "type": "like", "user_id": user, "item_id": "item-2"}
    answer = gateway.post(EVENTS, json.dumps({"events": [event, good]}).encode()).json()
    assert answer["accepted"] + len(answer["rejected"]) == 2
    assert all(rejected["index"] == 0 for rejected in answer["rejected"])
    who = json.dumps({"user_id": user}).encode()
    for path in ("/v1/users:get", "/v1/users:export", "/v1/recommendations", "/v1/users:delete"):
        response = gateway.post(path, who)
        assert response.status_code == 200, response.text
        json.loads(response.content, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


HEADERS: list[list[tuple[bytes, bytes]]] = [
    [(b"content-type", b"text/xml")],
    [(b"content-type", b"application/json; charset=utf-16")],
    [(b"content-type", b"\xff\xfe")],
    [(b"content-type", b"a/b"), (b"content-type", b"application/json")],
    [(b"content-encoding", b"gzip")],
    [(b"x-request-id", b"a\r\nset-cookie: a=b")],
    [(b"x-request-id", b"\xf0\x9f\x98\x80" * 1_000)],
    [(b"traceparent", b"00-zz")],
    [(b"traceparent", b"x" * 100_000)],
    [(b"authorization", b"Bearer " + b"x" * 100_000)],
    [(b"authorization", b"Basic \xff")],
    [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
    [(b"cookie", b"a=b; " * 10_000)],
    [(b"x-forwarded-for", b"127.0.0.1, ::1, evil")],
    [(b"x-http-method-override", b"DELETE")],
    [(b"host", b"evil/..")],
    [(b"accept", b"image/png")],
    [(b"x%d" % i, b"y") for i in range(1_000)],
]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: str(headers[0])[:40])
def test_headers_change_no_answer_and_break_none(gateway: Gateway, headers: list[tuple[bytes, bytes]]) -> None:
    response = gateway.send("POST", "/v1/recommendations", b'{"limit": 2}', headers)
    assert response.status_code == 200, response.text
    assert len(response.json()["items"]) == 2
    assert "set-cookie" not in response.headers
    assert "\n" not in "".join(response.headers.values())


PATHS = ["/v1//events", "/v1/events/", "/V1/EVENTS", "/v1/events%00", "/v1/%2e%2e/metrics", "/v1", "/" * 5_000]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:20])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "TRACE", "BREW"])
def test_no_other_path_leads_anywhere(gateway: Gateway, path: str, method: str) -> None:
    response = gateway.send(method, f"http://test{path}", b"{}")
    assert response.status_code in (307, 404, 405), (path, response.text)
