"""The built-in probe: it measures, nobody meets its canaries, and an outage does not end it."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from redis_server import RedisServer, require_redis
from support import DIM, Health, Served, Shop, serve_here

from raysys.config import EncoderTierSettings, ProfileSettings, RankingSettings, ServeSettings, TierSettings
from raysys.encoder.hashing import HashEncoder
from raysys.in_process import LocalRanker
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.serving import probe
from raysys.serving.front import Front
from raysys.serving.local_stages import HostedRecall, ThreadEncoder

DEADLINE_S = 20.0
OFTEN_S, NEVER_S = 0.01, 3_600.0
MEASURED = ("probe_event_to_effect", "probe_item_to_live", "probe_delete_to_gone")


async def until(is_so: Callable[[], Awaitable[bool]], what: str) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not await is_so():
        assert time.monotonic() < end_s, what
        await asyncio.sleep(0.01)


async def counts(client: httpx.AsyncClient, pattern: str) -> dict[str, float]:
    """Label -> value of the metrics whose name and label match."""
    text = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(rf'^{pattern}{{what="(\w+)"}} (\S+)$', text, re.M)}


async def measured(client: httpx.AsyncClient) -> list[float]:
    """How often each of MEASURED was."""
    found = await counts(client, "raysys_freshness_seconds_count")
    return [found.get(what, 0) for what in MEASURED]


async def failures(client: httpx.AsyncClient) -> dict[str, float]:
    return await counts(client, "raysys_probe_failures_total")


@pytest_asyncio.fixture
async def resting(shop: Shop, tmp_path: Path) -> AsyncIterator[Served]:
    """A gateway whose probe does what the test tells it, and nothing by itself."""
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", probe_every_s=NEVER_S)
    yield served
    await served.stop()


async def test_what_is_written_and_removed_is_measured_again_and_again(shop: Shop, tmp_path: Path) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", probe_every_s=OFTEN_S)
    client = served.client()

    async def thrice() -> bool:
        return min(await measured(client)) >= 3

    await until(thrice, "the probe measures nothing")
    assert await failures(client) == {"event_to_effect": 0, "item_to_live": 0, "delete_to_gone": 0}
    await served.stop()


async def test_there_is_no_probe_unless_asked_for(shop: Shop, tmp_path: Path) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    assert served.front.probe is None
    assert "probe" not in (await served.client().get("/metrics")).text
    await served.stop()


async def test_nobody_meets_the_canary(resting: Served, tmp_path: Path) -> None:
    client, canary = resting.client(), resting.front.probe
    assert canary is not None
    await canary.publish()
    await until(canary.is_found, "the canary is not found in its window")
    known = (await client.post("/v1/items:get", json={"item_ids": [canary.item_id]})).json()
    title = known["items"][0]["title"]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/search", {"query": title, "limit": 500}),
        ("/v1/search", {"query": title, "filter": {"must": [{"field": "item_id", "match": canary.item_id}]}}),
        ("/v1/similar", {"item_id": canary.item_id, "limit": 500}),
        ("/v1/recommendations", {"query": title, "limit": 500}),
        ("/v1/recommendations", {"user_id": "stranger", "limit": 500}),
        ("/v1/recommendations", {"user_id": probe.USER, "limit": 500, "exclude_seen": False}),
        ("/v1/recommendations", {"positive": ["item-1"], "limit": 500}),
        ("/v1/recommendations", {"positive": [canary.item_id], "limit": 500, "exclude_seen": False}),
        ("/v1/rank", {"items": [canary.item_id, "item-1"], "query": title}),
    ]
    for path, body in asked:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        ids = [item["item_id"] for item in answer.json()["items"]]
        assert (len(ids) > 0) == ("filter" not in body)
        assert not [i for i in ids if i.startswith(probe.NAME)], (path, body)
    await canary.delete()
    assert not await canary.is_found()
    await until_written(resting)
    shown = pq.read_table(tmp_path / "impressions")
    assert not [i for i in shown["item_id"].to_pylist() if i.startswith(probe.NAME)]


async def until_written(served: Served) -> None:
    """Every impression is in a file when this returns."""
    assert served.front.impressions is not None
    await asyncio.to_thread(served.front.impressions.close)


async def test_rounds_leave_no_heap_behind_and_no_impressions(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FORGET_AFTER", 2)
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", probe_every_s=OFTEN_S)
    client = served.client()

    async def six_rounds() -> bool:
        return min(await measured(client)) >= 6

    await until(six_rounds, "the probe measures nothing")
    assert served.front.probe is not None
    await served.front.probe.stop()
    assert (await served.front.state.size())["vectors"] <= 3
    assert (await served.front.state.size())["items"] == 1
    events = [event for _, event in await served.front.state.events_after(0, 100)]
    assert {event.user for event in events} == {f"u:{probe.USER}"}
    assert await served.front.state.expire(max(event.expires_s or float("inf") for event in events)) == len(events)
    assert await served.front.state.erased() == {}  # each of those has a SQLite file written anew
    await served.stop()
    assert list((tmp_path / "impressions").rglob("*.parquet")) == []


async def test_a_store_that_is_gone_is_counted_and_people_are_served_on(shop: Shop, tmp_path: Path) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", probe_every_s=OFTEN_S)
    client = served.client()
    await served.front.state.close()

    async def all_failed_twice() -> bool:
        found = await failures(client)
        return len(found) == 3 and min(found.values()) >= 2

    await until(all_failed_twice, "the probe has ended")
    answer = await client.post("/v1/recommendations", json={"user_id": "ann", "limit": 3})
    assert (answer.status_code, len(answer.json()["items"])) == (200, 3)
    await served.stop()


async def test_it_measures_again_when_the_store_is_back(shop: Shop, tmp_path: Path) -> None:
    require_redis()
    redis = RedisServer(tmp_path / "redis").start()
    front, shards = await serve_over(shop.store(2), redis.url)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(front.app(Health())), base_url="http://test")

    async def measures() -> bool:
        return min(await measured(client)) >= wanted

    async def fails() -> bool:
        return (await failures(client))["event_to_effect"] > 0

    try:
        wanted = 1.0
        await until(measures, "the probe measures nothing")
        redis.kill()
        await until(fails, "a dead store is not noticed")
        redis.start()
        wanted = 2 + max(await measured(client))
        await until(measures, "the probe has ended")
    finally:
        await shards.stop()
        await front.close()
        redis.kill()


async def serve_over(store: SnapshotStore, state: str) -> tuple[Front, HostedRecall]:
    """The published snapshot over this state, with the probe on."""
    settings = ServeSettings.model_validate(
        {"index_root": str(store.root), "state": state, "impressions": {"folder": None}, "probe_every_s": OFTEN_S}
    )
    front, catalogue = Front(settings), Catalogue(store.folder(store.current_id()))
    shards = HostedRecall(len(catalogue.shards), store, front.state, TierSettings(), ProfileSettings())
    await shards.prepare(catalogue.snapshot_id)
    encoder = ThreadEncoder(HashEncoder(DIM), EncoderTierSettings(), settings.deadline_s)
    await front.take(catalogue, encoder.encode, shards, LocalRanker(RankingSettings()))
    return front, shards
