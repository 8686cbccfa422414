"""What /metrics says of a gateway as it is now, and of those who were sent away."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from support import DIM, FixedClock, Health, Served, Shop, post, raising, serve_here

from raysys.access import KeyFile, make_key
from raysys.config import ServeSettings
from raysys.encoder.hashing import HashEncoder
from raysys.errors import Overloaded
from raysys.serving.front import Front

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def clock() -> FixedClock:
    return FixedClock()


@pytest_asyncio.fixture
async def served(shop: Shop, tmp_path: Path, clock: FixedClock) -> AsyncIterator[Served]:
    made = await serve_here(shop.store(2), tmp_path / "state.sqlite3", clock)
    yield made
    await made.stop()


async def read(client: httpx.AsyncClient, **headers: str) -> dict[Any, float]:
    """The value of each sample, by its name, or by name and label values."""
    text = (await client.get("/metrics", headers=headers)).text
    return {
        (sample.name, *sample.labels.values()) if sample.labels else sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_without_a_snapshot_nothing_is_said_of_one(tmp_path: Path) -> None:
    front = Front(ServeSettings(index_root=str(tmp_path), state=str(tmp_path / "state.sqlite3")), FixedClock())
    transport = httpx.ASGITransport(front.app(Health(ready=False)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        found = await read(client)
    await front.close()
    assert found["raysys_requests_in_progress"] == found["raysys_expected_wait_seconds"] == 0
    assert not [name for name in found if "raysys_snapshot_info" in name or "age" in name or "log" in name]


async def test_the_snapshot_in_use_with_its_age(served: Served, clock: FixedClock) -> None:
    manifest = served.recommender.catalogue.manifest
    clock.at_s = datetime.fromisoformat(manifest.created_at).timestamp() + 86_400
    async with served.client() as client:
        found = await read(client)
        assert found["raysys_snapshot_info", manifest.snapshot_id] == 1
        assert found["raysys_snapshot_age_seconds"] == pytest.approx(86_400)


async def test_the_lag_grows_until_the_log_is_read_to_its_end(served: Served, clock: FixedClock) -> None:
    async with served.client() as client:
        await post(client, "/v1/items", items=[{"item_id": "new-1", "title": "bababa"}])
        live = served.front.in_use.now().live
        await live.catch_up()
        (change,) = (await served.front.state.items(["new-1"])).values()
        assert (await read(client))["raysys_change_log_position"] >= change.sequence
        await served.front.state.close()  # as one that is away
        while True:  # what was asked before it closed is answered
            clock.at_s += 30
            if (found := (await read(client))["raysys_change_log_lag_seconds"]) >= 60:
                break
        clock.at_s += 5
        assert live.lag_s() == found + 5


async def test_writes_about_people_are_no_lag(served: Served) -> None:
    async with served.client() as client:
        events = [{"event_id": str(n), "type": "view", "user_id": "ann", "item_id": "item-1"} for n in range(50)]
        await post(client, "/v1/events", events=events)
    live = served.front.in_use.now().live
    await live.catch_up()
    assert live.lag_s() == 0
    assert await served.front.state.last_sequence() >= live.position + 50


async def test_who_is_in_and_what_they_wait(served: Served, clock: FixedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, n_in, search = asyncio.Event(), 0, served.recommender.search
    most = served.front.admission.always_in

    async def slow(request: Any) -> Any:
        nonlocal n_in
        n_in += 1
        await opened.wait()
        return await search(request)

    async with served.client() as client:
        monkeypatch.setattr(served.recommender, "search", slow)
        waiting = [asyncio.create_task(post(client, "/v1/search", query="tea")) for _ in range(most)]
        while n_in < most:
            await asyncio.sleep(0)
        clock.at_s += 1
        found = await read(client)
        assert found["raysys_requests_in_progress"] == most
        assert found["raysys_expected_wait_seconds"] == 1.0  # as far as one can tell: nobody was answered yet
        assert (await client.post("/v1/search", json={"query": "tea"})).status_code == 429
        opened.set()
        await asyncio.gather(*waiting)
        found = await read(client)
    assert (found["raysys_requests_in_progress"], found["raysys_expected_wait_seconds"]) == (0, 0)
    assert [found["raysys_sent_away_total", cause] for cause in ("admission", "queue")] == [1, 0]


async def test_why_requests_were_sent_away(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, text = make_key("shop", {"read", "metrics"})
    file.add(key)
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", api_keys=str(file.path))
    async with served.client() as client:
        for headers in ({}, {"x-api-key": "rs_wrong"}):
            assert (await client.post("/v1/search", headers=headers, json={"query": "tea"})).status_code == 401
        known = {"x-api-key": text}
        assert (await client.post("/v1/users:delete", headers=known, json={"user_id": "a"})).status_code == 403
        monkeypatch.setattr(served.recommender, "search", raising(Overloaded("full")))
        assert (await client.post("/v1/search", headers=known, json={"query": "tea"})).status_code == 429
        assert (await client.post("/v1/search", headers=known, json={})).status_code == 422  # asked for something wrong
        found = await read(client, **known)
    await served.stop()
    causes = {name[1]: value for name, value in found.items() if name[0] == "raysys_sent_away_total"}
    assert causes == {"no_key": 2, "scope": 1, "queue": 1, "admission": 0, "key_limit": 0}


class Fragile(HashEncoder):
    """Raises what no encoder should, for as long as it is broken."""

    is_broken = True

    def encode(self, texts: Any, role: Any) -> Any:
        if self.is_broken:
            raise RuntimeError("broken")
        return super().encode(texts, role)


async def test_texts_wait_while_the_encoder_fails_and_are_encoded_then(shop: Shop, tmp_path: Path) -> None:
    model = Fragile(DIM)
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", model=model)
    async with served.client() as client, asyncio.timeout(10):
        users = [{"user_id": str(number), "description": f"tea {number}"} for number in range(3)]
        await post(client, "/v1/users", users=users)
        assert (await read(client))["raysys_texts_waiting"] == 3
        texts = served.front.in_use.now().texts
        with pytest.raises(RuntimeError, match="broken"):
            await texts._round()
        model.is_broken = False
        while (await read(client))["raysys_texts_waiting"]:
            await asyncio.sleep(0.01)
        assert all(v is not None for v in await texts.vectors([user["description"] for user in users], "query"))
    await served.stop()


async def test_the_sources_of_first_items(served: Served) -> None:
    async with served.client() as client:
        lists = [await post(client, "/v1/search", query="quasar zeppelin") for _ in range(2)]
        lists.append(await post(client, "/v1/search", query="bababa", filter={"must": [{"field": "year", "match": 1}]}))
        found = await read(client)
    assert not lists[-1]["items"]
    expected = dict.fromkeys(lists[0]["items"][0]["sources"], 2.0)
    assert {name[1]: n for name, n in found.items() if name[0] == "raysys_first_item_sources_total"} == expected


async def test_refused_snapshots_are_counted(served: Served) -> None:
    served.front.on_refused()
    async with served.client() as client:
        assert (await read(client))["raysys_snapshot_refusals_total"] == 1
