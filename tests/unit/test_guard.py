"""Keys over HTTP: every route of the document against every kind of key, a changing file, and what is never told."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import NOW_S, FixedClock, Served, Shop, serve_here

from raysys.access import SCOPES, KeyFile, make_key
from raysys.errors import ConfigError, Unauthenticated
from raysys.serving.api import LISTS
from raysys.serving.audit import AUDITED
from raysys.serving.guard import CHECK_EVERY_S, DETAILS, NEEDED, OPEN, Guard

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = datetime.fromtimestamp(NOW_S, UTC)
# What each route is for, said once more and by hand: a new route must be given its scope here as well.
EXPECTED = {
    "read": {"recommendations", "similar", "search", "rank", "items:get", "users:get"},
    "write": {"events", "items", "items:patch", "items:delete", "items:hide", "items:unhide"}
    | {"users", "users:edit", "users:merge"},
    "admin": {"users:export", "users:delete", "admin/snapshots"}
    | {f"admin/snapshots:{act}" for act in ("verify", "activate", "rollback", "canary", "promote", "withdraw", "gc")},
}
SCOPE_OF = {f"/v1/{name}": {scope} for scope, names in EXPECTED.items() for name in names}
SCOPE_OF |= {"/metrics": {"admin", "metrics"}, "/readyz": set(), "/livez": set()}


class Keys:
    """The keys of a test: their texts by name, in a file."""

    def __init__(self, path: Path) -> None:
        self.file = KeyFile(path)
        self.texts: dict[str, str] = {}
        for scope in SCOPES:
            self.make(scope, {scope})
        self.make("all", set(SCOPES))
        self.make("expired", set(SCOPES), NOW)
        self.make("revoked", set(SCOPES))
        self.file.revoke("revoked")
        self.texts["unknown"] = make_key("unknown", set(SCOPES))[1]
        self.texts["bad"] = self.texts["all"][:-1] + ("A" if self.texts["all"][-1] != "A" else "B")

    def make(self, name: str, scopes: set[str], expires_at: datetime | None = None) -> None:
        key, self.texts[name] = make_key(name, scopes, expires_at, NOW - timedelta(days=9))
        self.file.add(key)

    def secrets(self) -> list[str]:
        return [text[12:] for text in self.texts.values()]

    def hashes(self) -> list[str]:
        return [key["hash"] for key in json.loads(self.file.path.read_bytes())["keys"]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shop: Shop, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    state = tmp_path_factory.mktemp("state") / "state.sqlite3"
    made = await serve_here(shop.store(2), state, api_keys=str(keys.file.path))
    yield made
    await made.stop()


@pytest.fixture
def client(shared: Served) -> httpx.AsyncClient:
    return shared.client()


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def operations(client: httpx.AsyncClient) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of everything in the document."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    return [(method.upper(), path, what) for path, methods in paths.items() for method, what in methods.items()]


async def test_the_document_says_what_each_route_needs(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert schemes["api_key"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    told = {path: what["security"] for _, path, what in await operations(client)}
    assert told.keys() == SCOPE_OF.keys(), "a route has no scope: give it one in guard.NEEDED, and here"
    for path, scopes in SCOPE_OF.items():
        either = [{scheme: [scope]} for scheme in schemes for scope in sorted(scopes)]
        if path not in {"/livez", "/readyz"}:
            assert told[path] == either
        else:
            assert {} in told[path]


async def test_every_path_of_the_app_is_decided_about(shared: Served, client: httpx.AsyncClient) -> None:
    documented = {path for _, path, _ in await operations(client)}
    assert documented | {"/openapi.json", "/docs", "/docs/oauth2-redirect"} == NEEDED.keys() | DETAILS.keys() | OPEN
    assert NEEDED.keys() >= AUDITED | LISTS


@pytest.mark.parametrize("scheme", ["bearer", "x-api-key"])
async def test_every_route_with_every_kind_of_key(client: httpx.AsyncClient, keys: Keys, scheme: str) -> None:
    for method, path, _ in await operations(client):
        for name in (None, *keys.texts):
            text = keys.texts.get(name or "")
            headers = {} if text is None else bearer(text) if scheme == "bearer" else {"X-API-Key": text}
            response = await client.request(method, path, headers=headers, content=b"{")
            case = (path, name, response.status_code, response.text)
            if not SCOPE_OF[path]:
                assert response.status_code == 200, case
            elif name in (None, "bad", "unknown", "expired", "revoked"):
                assert (response.status_code, response.json()["code"]) == (401, "unauthenticated"), case
                given = "" if name is None else ', error="invalid_token"'
                assert response.headers["www-authenticate"] == f'Bearer realm="raysys"{given}'
            elif name != "all" and name not in SCOPE_OF[path]:
                assert (response.status_code, response.json()["code"]) == (403, "forbidden"), case
                needed = " ".join(sorted(SCOPE_OF[path]))
                assert f'error="insufficient_scope", scope="{needed}"' in response.headers["www-authenticate"]
                assert all(scope in response.json()["detail"] for scope in SCOPE_OF[path])
            else:  # let in: the body is no JSON
                assert response.status_code == (400 if method == "POST" else 200), case


async def test_problems_carry_the_request_id_and_no_secret(client: httpx.AsyncClient, keys: Keys) -> None:
    for name in ("bad", "expired", "read"):
        response = await client.post("/v1/users:delete", headers={**bearer(keys.texts[name]), "x-request-id": "r1"})
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"] == "r1"
        told = response.text + repr(response.headers)
        assert not [secret for secret in [*keys.secrets(), *keys.hashes()] if secret in told]


@pytest.mark.parametrize("path", ["/", "/v2/search", "/v1/users:delete/", "//v1/search", "/v1/search%00", "/-/routes"])
async def test_a_path_that_is_no_route_is_for_those_with_a_key_and_there_is_nothing(
    client: httpx.AsyncClient, keys: Keys, path: str
) -> None:
    assert (await client.post(path)).status_code == 401
    response = await client.post(path, headers=bearer(keys.texts["read"]))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_a_prefix_that_the_app_would_strip_opens_nothing(shared: Served, keys: Keys) -> None:
    transport = httpx.ASGITransport(shared.app, root_path="/v1")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as prefixed:
        body = {"user_id": "ann"}
        response = await prefixed.post("/v1/v1/users:delete", headers=bearer(keys.texts["read"]), json=body)
    assert response.status_code == 404


async def test_readiness_is_for_all_and_its_details_for_operators(client: httpx.AsyncClient, keys: Keys) -> None:
    for name in (None, "bad", "expired", "read", "write"):
        ready = await client.get("/readyz", headers={} if name is None else bearer(keys.texts[name]))
        assert ready.json() == {"ready": True}
    for name in ("admin", "metrics"):
        ready = await client.get("/readyz", headers=bearer(keys.texts[name]))
        assert ready.json() == {"ready": True, "shards": {}, "api_keys": {"in_use": 6, "refused": None}}


async def test_two_keys_in_one_request(client: httpx.AsyncClient, keys: Keys) -> None:
    read, write = keys.texts["read"], keys.texts["write"]
    both = {**bearer(read), "x-api-key": write}
    assert (await client.post("/v1/search", headers=both, json={"query": "x"})).status_code == 401
    twice = [("authorization", f"Bearer {read}"), ("authorization", f"Bearer {write}")]
    assert (await client.post("/v1/search", headers=twice, json={"query": "x"})).status_code == 401
    same = {**bearer(read), "x-api-key": read}
    assert (await client.post("/v1/search", headers=same, json={"query": "x"})).status_code == 200
    proxied = {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": read}  # the password of a proxy is none of ours
    assert (await client.post("/v1/search", headers=proxied, json={"query": "x"})).status_code == 200
    assert (
        await client.post("/v1/search", headers={"authorization": f"bEARER  {read} "}, json={"query": "x"})
    ).is_success


async def test_nothing_of_a_body_is_read_and_no_place_taken_without_a_key(shared: Served) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/recommendations", "headers": [(b"content-length", b"9")]}
    for headers in ([], [(b"x-api-key", b"rs_00000000_" + b"A" * 43)]):
        await shared.app({**scope, "headers": [*scope["headers"], *headers], "query_string": b""}, receive, keep)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [401, 401]


NAMES = st.sampled_from([b"authorization", b"x-api-key", b"cookie", b"x-request-id"])
PREFIXES = st.sampled_from([b"", b"Bearer ", b"bearer rs_", b"Bearer rs_00000000_", b"Basic "])
HEADERS = st.lists(st.tuples(NAMES, st.builds(bytes.__add__, PREFIXES, st.binary(max_size=80))), max_size=4)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(HEADERS)
async def test_whatever_stands_in_the_headers_nobody_gets_in_and_nothing_breaks(
    client: httpx.AsyncClient, headers: list[tuple[bytes, bytes]]
) -> None:
    response = await client.post("/v1/events", headers=headers, content=b"{}")
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "value", [b"", b"Bearer", b"Bearer ", b"Bearer \xff\xfe", b"\x00", b"Bearer rs_" + b"a" * 60_000]
)
async def test_odd_headers_over_the_whole_app_are_401(client: httpx.AsyncClient, value: bytes) -> None:
    for name in (b"authorization", b"x-api-key"):
        response = await client.post("/v1/events", headers=[(name, value)], content=b"{}")
        assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


# While it runs


class Running:
    """A guard over keys of its own, and its clock."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.clock = Keys(folder / "keys.json"), FixedClock()
        self.guard = Guard(str(self.keys.file.path), self.clock)

    def lets_in(self, name: str, after_s: float = 0.0) -> bool:
        self.clock.at_s += after_s
        text = self.keys.texts[name].encode()
        try:
            self.guard.check({"path": "/v1/search", "headers": [(b"x-api-key", text)]})
        except Unauthenticated:
            return False
        return True

    def refused(self) -> str | None:
        status: Any = self.guard.status()["api_keys"]
        return status["refused"]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


async def test_keys_change_while_it_runs(running: Running) -> None:
    running.keys.make("new", {"read"})
    assert not running.lets_in("new")
    assert running.lets_in("new", CHECK_EVERY_S)
    assert running.lets_in("read")  # old and new side by side: that is how keys are rotated
    running.keys.file.revoke("read")
    assert running.lets_in("read")
    assert not running.lets_in("read", CHECK_EVERY_S)
    assert running.lets_in("new")


async def test_a_key_expires_while_it_runs(running: Running) -> None:
    running.keys.make("short", {"read"}, NOW + timedelta(seconds=60))
    assert running.lets_in("short", 59)
    assert not running.lets_in("short", 1)


async def test_the_file_is_looked_at_once_a_second(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    stamp = KeyFile.stamp

    def counted(file: KeyFile) -> Any:
        nonlocal looks
        looks += 1
        return stamp(file)

    monkeypatch.setattr(KeyFile, "stamp", counted)
    for _ in range(1_000):
        assert running.lets_in("read", 0.01)
    assert 9 <= looks <= 10


def _breaks(*, content: bytes | None = None, mode: int | None = None) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        if content is not None:
            path.write_bytes(content)
        if mode is not None:
            path.chmod(mode)

    return act


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (_breaks(content=b"{"), "holds no keys"),
        (_breaks(content=b""), "holds no keys"),
        (_breaks(mode=0o644), "chmod 600"),
        (Path.unlink, "cannot read"),
    ],
    ids=["half a file", "empty", "public", "gone"],
)
async def test_a_broken_file_leaves_the_old_keys_and_says_so_once(
    running: Running, breaks: Callable[[Path], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = running.keys.file.path
    whole = path.read_bytes()
    breaks(path)
    with caplog.at_level(logging.ERROR):
        assert all(running.lets_in("read", CHECK_EVERY_S) for _ in range(3))
    (line,) = [record.getMessage() for record in caplog.records]
    assert why in line
    assert why in (running.refused() or "")
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(whole)
    assert running.lets_in("read", CHECK_EVERY_S)
    assert running.refused() is None


async def test_a_file_that_goes_and_comes_back_as_it_was_is_in_use_again(running: Running) -> None:
    path = running.keys.file.path
    away = path.with_suffix(".away")
    path.rename(away)
    assert running.lets_in("read", CHECK_EVERY_S)
    assert "cannot read" in (running.refused() or "")
    away.rename(path)
    assert running.lets_in("read", CHECK_EVERY_S)
    assert running.refused() is None


@pytest.mark.parametrize("breaks", [Path.unlink, _breaks(mode=0o640), _breaks(content=b"[]")])
async def test_nothing_starts_over_a_file_that_cannot_be_used(tmp_path: Path, breaks: Callable[[Path], None]) -> None:
    path = Keys(tmp_path / "keys.json").file.path
    breaks(path)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        Guard(str(path), FixedClock())


# What is told


async def test_acts_that_cannot_be_undone_are_in_the_audit_log_with_the_name_of_the_key(
    client: httpx.AsyncClient, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raysys.audit")
    asked = {"/v1/users:export": "admin", "/v1/users:delete": "admin", "/v1/items:delete": "write"}
    for path, name in asked.items():
        body = {"item_ids": ["nothing"]} if "items" in path else {"user_id": "nobody"}
        assert (await client.post(path, headers=bearer(keys.texts[name]), json=body)).status_code == 200
    await client.post("/v1/users:delete", headers=bearer(keys.texts["read"]), json={"user_id": "ann"})
    await client.post("/v1/users:delete", headers={"x-request-id": "r9"}, json={"user_id": "ann"})
    await client.post("/v1/search", headers=bearer(keys.texts["read"]), json={"query": "x"})
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "raysys.audit"]
    told = [(line["act"], line["status"], line["key"]) for line in lines]
    refused = [("/v1/users:delete", 403, "read"), ("/v1/users:delete", 401, None)]
    assert told == [*((path, 200, name) for path, name in asked.items()), *refused]
    assert lines[-1]["request_id"] == "r9"
    assert datetime.fromisoformat(lines[0]["audit"]).tzinfo is not None


async def test_secrets_are_in_no_log_no_metric_and_no_answer(
    shared: Served, client: httpx.AsyncClient, keys: Keys, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    for method, path, _ in await operations(client):
        for text in keys.texts.values():
            for headers in (bearer(text), {"x-api-key": text}, {**bearer(text), "x-api-key": text + "x"}):
                response = await client.request(method, path, headers=headers, content=b"{")
                told += [response.text, repr(response.headers)]
    told.append((await client.get("/metrics", headers=bearer(keys.texts["metrics"]))).text)
    told += [caplog.text, *capfd.readouterr()]
    assert "raysys_requests_total" in told[-4]
    for hidden in (*keys.secrets(), *keys.hashes()):
        assert not [text for text in told if hidden in text]


# Without keys


async def test_without_keys_all_is_open(shop: Shop, tmp_path: Path, keys: Keys) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    async with served.client() as client:
        for headers in ({}, bearer(keys.texts["bad"])):
            assert (await client.post("/v1/users:export", headers=headers, json={"user_id": "ann"})).status_code == 200
            assert (await client.get("/metrics", headers=headers)).status_code == 200
            assert (await client.get("/readyz", headers=headers)).json() == {"ready": True, "shards": {}}
    await served.stop()
