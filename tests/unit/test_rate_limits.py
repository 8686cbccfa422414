"""How often a key may ask: the bucket against an exact one, and over HTTP before anything of a request is read."""

import json
import logging
import math
import re
from collections.abc import AsyncIterator
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from support import FixedClock, Served, Shop, serve_here
from typer.testing import CliRunner

from raysys.access import SCOPES, KeyFile, make_key
from raysys.cli import app
from raysys.config import RateLimit, ServeSettings, parse
from raysys.errors import ConfigError, RateLimited
from raysys.serving.bucket import Bucket
from raysys.serving.guard import CHECK_EVERY_S, NEEDED, Guard


def limit(requests_per_s: float, burst: int) -> RateLimit:
    return RateLimit(requests_per_s=requests_per_s, burst=burst)


# The bucket. Rates in 1/64 and times in 1/1024: sums of these are exact in floats.

RATES = st.integers(1, 64 * 50).map(lambda n: n / 64)
BURSTS = st.integers(1, 20)
TIMES = st.lists(st.integers(0, 3_000), max_size=60).map(lambda gaps: [at / 1024 for at in accumulate(gaps)])


def passed(bucket: Bucket, times_s: list[float]) -> list[float]:
    """When requests were let through, of those that came at these times."""
    return [at_s for at_s in times_s if bucket.take(at_s)]


@given(RATES, BURSTS, TIMES)
def test_of_no_window_more_than_the_burst_and_the_rate_are_let_through(rate: float, burst: int, times_s) -> None:
    let_in = passed(Bucket(limit(rate, burst), 0.0), times_s)
    for first, start_s in enumerate(let_in):
        for last, end_s in enumerate(let_in[first:], start=first):
            assert last - first + 1 <= burst + Fraction(rate) * (Fraction(end_s) - Fraction(start_s))


@given(RATES, BURSTS, TIMES)
def test_it_decides_as_an_exact_bucket_does(rate: float, burst: int, times_s: list[float]) -> None:
    tokens, before, expected = Fraction(burst), Fraction(0), []
    for at in map(Fraction, times_s):
        tokens, before = min(tokens + Fraction(rate) * (at - before), Fraction(burst)), at
        if tokens >= 1:
            tokens -= 1
            expected.append(at)
    assert passed(Bucket(limit(rate, burst), 0.0), times_s) == expected


@given(st.floats(1e-3, 1e6), st.integers(1, 1_000_000), st.floats(0, 1e9), st.lists(st.floats(0, 1e3), max_size=60))
def test_whatever_the_rate_and_the_clock(rate: float, burst: int, start_s: float, gaps_s: list[float]) -> None:
    times_s = [start_s, *(start_s + at_s for at_s in accumulate(gaps_s))]
    let_in = passed(Bucket(limit(rate, burst), start_s), times_s)
    assert let_in[0] == start_s
    assert len(let_in) <= burst + rate * (times_s[-1] - start_s) * (1 + 1e-6) + 1e-6


@given(st.floats(1e-3, 1e6), BURSTS, st.floats(0, 1e6), st.lists(st.floats(0, 2), max_size=30))
def test_who_waits_as_long_as_was_said_is_let_through(
    rate: float, burst: int, start_s: float, gaps_s: list[float]
) -> None:
    bucket, now_s = Bucket(limit(rate, burst), start_s), start_s
    for gap_s in gaps_s:
        now_s += gap_s
        if not bucket.take(now_s):
            now_s += math.ceil(bucket.wait_s())  # whole seconds on the wire
            assert bucket.take(now_s)


@given(RATES, BURSTS, TIMES)
def test_the_headers_say_how_many_pass_at_once_and_when_it_is_full(rate: float, burst: int, times_s) -> None:
    bucket, now_s = Bucket(limit(rate, burst), 0.0), ([0.0, *times_s])[-1]
    passed(bucket, times_s)
    fields = dict(bucket.headers())
    left, full_s = re.fullmatch(rb'"key";r=(\d+);t=(\d+)', fields[b"ratelimit"]).groups()  # type: ignore[union-attr]
    assert len(passed(bucket, [now_s] * (burst + 1))) == int(left)
    assert len(passed(bucket, [now_s + int(full_s) + burst / rate] * (burst + 1))) == burst


@pytest.mark.parametrize(
    ("rate", "burst", "policy"),
    [
        (50.0, 100, b'"key";q=100;w=2'),
        (50.0, 1, b'"key";q=50;w=1'),  # one at a time, and still 50 a second
        (0.5, 1, b'"key";q=1;w=2'),
        (0.001, 1_000_000, b'"key";q=1000000;w=1000000000'),
        (1e6, 1, b'"key";q=1000000;w=1'),
    ],
)
def test_the_policy(rate: float, burst: int, policy: bytes) -> None:
    assert dict(Bucket(limit(rate, burst), 0.0).headers())[b"ratelimit-policy"] == policy


# Over HTTP


class Shown:
    """Keys in a file, their texts by name, and the clock of the gateway."""

    def __init__(self, path: Path) -> None:
        self.file, self.clock, self.texts = KeyFile(path), FixedClock(), {}

    def make(self, name: str, of_its_own: RateLimit | None = None, scopes: frozenset[str] = frozenset(SCOPES)) -> None:
        key, self.texts[name] = make_key(name, scopes, rate_limit=of_its_own)
        self.file.add(key)

    def headers(self, name: str) -> dict[str, str]:
        return {"x-api-key": self.texts[name]}


@pytest.fixture
def keys(tmp_path: Path) -> Shown:
    keys = Shown(tmp_path / "keys.json")
    keys.make("plain")
    keys.make("other")
    keys.make("quick", limit(100, 1_000))
    keys.make("slow", limit(0.25, 1))
    keys.make("reader", scopes=frozenset({"read"}))
    return keys


@pytest_asyncio.fixture
async def served(shop: Shop, tmp_path: Path, keys: Shown) -> AsyncIterator[Served]:
    made = await serve_here(
        shop.store(2),
        tmp_path / "state.sqlite3",
        keys.clock,
        api_keys=str(keys.file.path),
        rate_limit={"requests_per_s": 0.5, "burst": 3},
    )
    yield made
    await made.stop()


async def search(client: httpx.AsyncClient, keys: Shown, name: str) -> httpx.Response:
    return await client.post("/v1/search", headers=keys.headers(name), json={"query": "bababa", "limit": 1})


async def test_beyond_the_burst_it_is_429_until_the_time_that_was_said(client: httpx.AsyncClient, keys: Shown) -> None:
    for left, full_s in ((2, 2), (1, 4), (0, 6)):
        response = await search(client, keys, "plain")
        assert response.status_code == 200
        assert response.headers["ratelimit"] == f'"key";r={left};t={full_s}'
        assert response.headers["ratelimit-policy"] == '"key";q=3;w=6'
    keys.clock.at_s += 0.5
    refused = await search(client, keys, "plain")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == "the key 'plain' may send 0.5 requests a second, 3 at once; wait a little"
    assert refused.headers["retry-after"] == "2"  # 1.5 s
    assert refused.headers["ratelimit"] == '"key";r=0;t=6'
    assert refused.headers["ratelimit-policy"] == '"key";q=3;w=6'
    assert (await search(client, keys, "other")).status_code == 200
    keys.clock.at_s += 1.5
    assert (await search(client, keys, "plain")).status_code == 200
    assert (await search(client, keys, "plain")).status_code == 429


async def test_a_limit_of_its_own_goes_before_that_of_the_settings(client: httpx.AsyncClient, keys: Shown) -> None:
    assert {(await search(client, keys, "quick")).status_code for _ in range(10)} == {200}
    assert [(await search(client, keys, "slow")).status_code for _ in range(2)] == [200, 429]
    assert (await search(client, keys, "slow")).headers["retry-after"] == "4"


async def test_nothing_of_a_body_is_read_of_one_that_is_sent_away(served: Served, client, keys: Shown) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    async def keep(message: Any) -> None:
        sent.append(message)

    await search(client, keys, "slow")
    headers = [(b"x-api-key", keys.texts["slow"].encode())]
    for path in NEEDED:
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        await served.app(scope, receive, keep)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert [start["status"] for start in starts] == [429] * len(NEEDED)
    assert all({b"retry-after", b"ratelimit", b"x-request-id"} <= dict(start["headers"]).keys() for start in starts)


async def test_what_a_key_may_not_do_counts_as_well(client: httpx.AsyncClient, keys: Shown) -> None:
    shown = keys.headers("reader")
    for path, status in (("/v1/users:delete", 403), ("/v1/nowhere", 404), ("/v1/search", 422), ("/v1/events", 429)):
        response = await client.post(path, headers=shown, json={})
        assert response.status_code == status
        assert "ratelimit" in response.headers


async def test_what_is_open_to_all_is_never_counted(client: httpx.AsyncClient, keys: Shown) -> None:
    await search(client, keys, "slow")
    for path in ("/livez", "/readyz", "/openapi.json"):
        for _ in range(3):
            response = await client.get(path, headers=keys.headers("slow"))
            assert response.status_code == 200
            assert "ratelimit" not in response.headers
    assert "api_keys" in (await client.get("/readyz", headers=keys.headers("slow"))).json()


async def test_who_is_sent_away_is_counted_by_key_and_audited(
    client: httpx.AsyncClient, keys: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raysys.audit")
    for _ in range(3):
        await client.post("/v1/users:delete", headers=keys.headers("slow"), json={"user_id": "ann"})
    metrics = (await client.get("/metrics", headers=keys.headers("quick"))).text
    assert 'raysys_rate_limited_total{key="slow"} 2.0' in metrics
    assert 'raysys_requests_total{route="/v1/users:delete",status="429"} 2.0' in metrics
    told = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(line["status"], line["key"]) for line in told] == [(200, "slow"), (429, "slow"), (429, "slow")]


async def test_without_limits_there_are_no_headers(shop: Shop, tmp_path: Path, keys: Shown) -> None:
    served = await serve_here(shop.store(2), tmp_path / "other.sqlite3", api_keys=str(keys.file.path))
    async with served.client() as client:
        response = await search(client, keys, "plain")
        assert (response.status_code, "ratelimit" in response.headers) == (200, False)
        assert [(await search(client, keys, "slow")).status_code for _ in range(2)] == [200, 429]
    await served.stop()


def test_when_the_file_changes_the_buckets_of_others_stay_as_full_as_they_are(keys: Shown) -> None:
    guard = Guard(str(keys.file.path), keys.clock, limit(1e-3, 2))

    def passes(name: str) -> bool:
        try:
            guard.check({"path": "/v1/search", "headers": [(b"x-api-key", keys.texts[name].encode())]})
        except RateLimited:
            return False
        return True

    assert [passes("plain") for _ in range(3)] == [True, True, False]
    assert [passes("other") for _ in range(3)] == [True, True, False]
    (other,) = [key for key in keys.file.read() if key.name == "other"]
    keys.file.revoke("other")
    keys.file.add(other.model_copy(update={"rate_limit": limit(1e-3, 5)}))
    keys.clock.at_s += CHECK_EVERY_S
    assert not passes("plain")
    assert [passes("other") for _ in range(6)] == [True] * 5 + [False]


# Settings, the file and the command


def test_a_limit_without_keys_is_refused() -> None:
    raw = {"rate_limit": {"requests_per_s": 5, "burst": 5}}
    with pytest.raises(ConfigError, match="api_keys"):
        parse(ServeSettings, raw, "settings")
    assert parse(ServeSettings, raw | {"api_keys": "keys.json"}, "settings").rate_limit == limit(5, 5)


@pytest.mark.parametrize(
    "wrong", [{"requests_per_s": 0}, {"requests_per_s": float("nan")}, {"burst": 0}, {"burst": 1.5}]
)
def test_limits_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse(RateLimit, {"requests_per_s": 5, "burst": 5} | wrong, "settings")


def test_a_file_without_limits_is_one_that_older_versions_read(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    made = [make_key("a", {"read"})[0], make_key("b", {"read"}, rate_limit=limit(2.5, 7))[0]]
    for key in made:
        file.add(key)
    assert file.read() == tuple(made)
    first, second = json.loads(file.path.read_bytes())["keys"]
    assert "rate_limit" not in first
    assert second["rate_limit"] == {"requests_per_s": 2.5, "burst": 7}


def test_the_command_takes_and_shows_a_limit(tmp_path: Path) -> None:
    place = ("--file", str(tmp_path / "keys.json"))
    create = ("keys", "create", "--name", "shop", "--scope", "read")
    runner = CliRunner()
    made = runner.invoke(app, [*create, "--per-second", "50", "--burst", "100", *place])
    assert made.exit_code == 0, made.output
    assert KeyFile(place[1]).read()[0].rate_limit == limit(50, 100)
    listed = runner.invoke(app, ["keys", "list", *place]).output.replace("│", " ").split()  # however wide the table is
    assert "50 requests a second, 100 at once" in " ".join(listed)
    for half in (("--per-second", "50"), ("--burst", "5"), ("--per-second", "0", "--burst", "5")):
        refused = runner.invoke(app, [*create, *half, *place])
        assert isinstance(refused.exception, ConfigError)
    assert len(KeyFile(place[1]).read()) == 1
