"""The live catalogue over HTTP: what is put on sale, changed, hidden or removed counts in the next request."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import EXPIRED, HIDDEN, NOW_S, FixedClock, Shop, post, serve_here

from raysys.encoder.hashing import HashEncoder

DEADLINE_S = 5.0
WORDS = "quokka wombat numbat"  # no item of the shop has them


async def upsert(client: httpx.AsyncClient, *items: dict[str, Any]) -> dict[str, Any]:
    return await post(client, "/v1/items", items=list(items))


async def found(client: httpx.AsyncClient, query: str = WORDS, **more: Any) -> list[str]:
    answer = await post(client, "/v1/search", query=query, **more)
    return [item["item_id"] for item in answer["items"]]


async def until_first(client: httpx.AsyncClient, item_id: str, query: str = WORDS) -> None:
    """Ask until the item is the best answer to the query."""
    end_s = time.monotonic() + DEADLINE_S
    while (await found(client, query))[:1] != [item_id]:
        assert time.monotonic() < end_s, f"{item_id} is not found by its text"
        await asyncio.sleep(0.01)


async def test_a_new_item_is_found_by_its_text(client: httpx.AsyncClient) -> None:
    new = {"item_id": "new/1 №", "title": WORDS, "price": 7.5, "year": 1999, "categories": ["topic 1"]}
    assert await upsert(client, new) == {"accepted": ["new/1 №"], "rejected": []}
    await until_first(client, "new/1 №")
    (first, *_) = (await post(client, "/v1/search", query=WORDS))["items"]
    assert first["metadata"] == {"title": WORDS, "price": 7.5, "year": 1999, "categories": ["topic 1"]}
    assert (await post(client, "/v1/items:get", item_ids=["new/1 №"]))["items"] == [new]


async def test_a_changed_text_counts_and_the_old_one_does_not(client: httpx.AsyncClient) -> None:
    old = (await post(client, "/v1/items:get", item_ids=["item-3"]))["items"][0]["title"]
    await post(client, "/v1/items:patch", items=[{"item_id": "item-3", "title": WORDS}])
    await until_first(client, "item-3")
    assert "item-3" not in (await found(client, old))[:1]


async def test_items_that_share_a_text_are_all_found(client: httpx.AsyncClient) -> None:
    twins = [f"twin-{n}" for n in range(5)]
    await upsert(client, *({"item_id": twin, "title": WORDS} for twin in twins))
    end_s = time.monotonic() + DEADLINE_S
    while set((await found(client))[: len(twins)]) != set(twins):
        assert time.monotonic() < end_s, "not all of them are found"
        await asyncio.sleep(0.01)


async def test_a_new_item_is_similar_to_others_and_can_be_a_taste(client: httpx.AsyncClient) -> None:
    await upsert(client, {"item_id": "new-1", "title": WORDS}, {"item_id": "new-2", "title": WORDS + " quoll"})
    await until_first(client, "new-1")
    similar = await post(client, "/v1/similar", item_id="new-1", limit=1)
    assert [item["item_id"] for item in similar["items"]] == ["new-2"]
    taste = await post(client, "/v1/recommendations", positive=["new-1"], limit=1)
    assert [item["item_id"] for item in taste["items"]] == ["new-2"]
    assert taste["unknown_items"] == []


async def test_an_event_about_an_item_counts_when_the_item_appears(client: httpx.AsyncClient) -> None:
    event = {"event_id": "e1", "type": "purchase", "user_id": "ann", "item_id": "soon"}
    assert (await post(client, "/v1/events", events=[event]))["accepted"] == 1
    assert "raysys_pending_events_total 1.0" in (await client.get("/metrics")).text
    await upsert(client, {"item_id": "soon", "title": WORDS}, {"item_id": "like it", "title": WORDS + " quoll"})
    await until_first(client, "soon")
    answer = await post(client, "/v1/recommendations", user_id="ann", limit=1)
    assert [item["item_id"] for item in answer["items"]] == ["like it"]


@pytest.mark.parametrize("verb", ["delete", "hide"])
async def test_what_is_removed_is_gone_from_the_next_request(client: httpx.AsyncClient, verb: str) -> None:
    title = (await post(client, "/v1/items:get", item_ids=["item-3"]))["items"][0]["title"]
    assert (await found(client, title))[0] == "item-3"
    assert (await post(client, f"/v1/items:{verb}", item_ids=["item-3"]))["accepted"] == ["item-3"]
    for body in ({"query": title}, {"positive": ["item-4"]}, {"user_id": "stranger", "limit": 500}):
        answer = await post(client, "/v1/recommendations", **body)
        assert "item-3" not in [item["item_id"] for item in answer["items"]]
    ranked = await post(client, "/v1/rank", items=["item-3", "item-4"])
    assert [item["item_id"] for item in ranked["items"]] == ["item-4"]
    known = await post(client, "/v1/items:get", item_ids=["item-3"])
    assert len(known["items"]) == (verb == "hide")


async def test_a_hidden_item_comes_back(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/items:unhide", item_ids=[HIDDEN])
    title = (await post(client, "/v1/items:get", item_ids=[HIDDEN]))["items"][0]["title"]
    end_s = time.monotonic() + DEADLINE_S
    while HIDDEN not in await found(client, title):
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)


async def test_a_deleted_item_is_unknown_until_it_is_written_again(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/items:delete", item_ids=["item-3"])
    assert (await post(client, "/v1/items:delete", item_ids=["item-3", "nothing"]))["unknown_items"] == [
        "item-3",
        "nothing",
    ]
    assert (await client.post("/v1/similar", json={"item_id": "item-3"})).status_code == 404
    rejected = (await post(client, "/v1/items:patch", items=[{"item_id": "item-3", "price": 1.0}]))["rejected"]
    assert [(r["index"], r["field"]) for r in rejected] == [(0, "item_id")]
    await upsert(client, {"item_id": "item-3", "title": WORDS})
    await until_first(client, "item-3")


async def test_only_a_changed_text_is_encoded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = HashEncoder.encode

    def count(self: HashEncoder, texts: Any, role: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, role)

    monkeypatch.setattr(HashEncoder, "encode", count)
    await post(client, "/v1/items:patch", items=[{"item_id": "item-3", "price": 123.0, "year": 1950}])
    cheap = {"must": [{"field": "price", "match": 123.0}]}
    end_s = time.monotonic() + DEADLINE_S
    while await ids(client, filter=cheap) != ["item-3"]:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)
    assert encoded == []
    await post(client, "/v1/items:patch", items=[{"item_id": "item-3", "title": WORDS}])
    await until_first(client, "item-3")
    assert sum(WORDS in text and text != WORDS for text in encoded) == 1  # the item's text, but for the queries


async def ids(client: httpx.AsyncClient, **body: Any) -> list[str]:
    return [item["item_id"] for item in (await post(client, "/v1/recommendations", **body))["items"]]


async def test_a_patch_takes_away_what_is_null_and_leaves_the_rest(client: httpx.AsyncClient) -> None:
    before = (await post(client, "/v1/items:get", item_ids=["item-3"]))["items"][0]
    await post(client, "/v1/items:patch", items=[{"item_id": "item-3", "price": None, "tags": ["rare"]}])
    (after,) = (await post(client, "/v1/items:get", item_ids=["item-3"]))["items"]
    assert after == {**{k: v for k, v in before.items() if k != "price"}, "tags": ["rare"]}


async def test_a_window_of_availability_opens(shop: Shop, tmp_path: Path) -> None:
    clock = FixedClock()
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", clock)
    client = served.client()
    tomorrow_ms = round((NOW_S + 86_400) * 1e3)
    await upsert(client, {"item_id": "new-1", "title": WORDS, "available_from": tomorrow_ms})
    await asyncio.sleep(0.2)  # long enough for it to be found, if it could be
    assert "new-1" not in await found(client)
    clock.at_s += 2 * 86_400
    await until_first(client, "new-1")
    await served.stop()


BAD_ITEMS: list[tuple[dict[str, Any], str]] = [
    ({"title": WORDS}, "item_id"),
    ({"item_id": "", "title": WORDS}, "item_id"),
    ({"item_id": 5, "title": WORDS}, "item_id"),
    ({"item_id": "a\0b", "title": WORDS}, "item_id"),
    ({"item_id": "x" * 257, "title": WORDS}, "item_id"),
    ({"item_id": "a"}, "title"),
    ({"item_id": "a", "title": "   "}, "title"),
    ({"item_id": "a", "title": WORDS, "price": "cheap"}, "price"),
    ({"item_id": "a", "title": WORDS, "price": -1}, "price"),
    ({"item_id": "a", "title": WORDS, "prise": 1}, "prise"),
    ({"item_id": "a", "title": WORDS, "year": 1.5}, "year"),
    ({"item_id": "a", "title": WORDS, "hidden": "maybe"}, "hidden"),
    ({"item_id": "a", "title": WORDS, "available_from": "2026-01-01T00:00:00"}, "available_from"),
    ({"item_id": "a", "title": WORDS, "available_from": 5}, "available_from"),
    ({"item_id": "a", "title": {"x": 1}}, "title"),
    ({"item_id": "a", "title": WORDS, "text_key": "x"}, "text_key"),
]


@pytest.mark.parametrize(("bad", "field"), BAD_ITEMS, ids=lambda v: str(v)[:40])
async def test_a_bad_item_is_rejected_by_name_and_the_one_beside_it_is_taken(
    client: httpx.AsyncClient, bad: dict[str, Any], field: str
) -> None:
    answer = await upsert(client, bad, {"item_id": "good", "title": WORDS})
    assert answer["accepted"] == ["good"]
    (rejected,) = answer["rejected"]
    assert (rejected["index"], rejected["field"]) == (0, field)
    assert rejected["message"]


async def test_a_misspelt_field_gets_a_suggestion(client: httpx.AsyncClient) -> None:
    answer = await upsert(client, {"item_id": "a", "titel": WORDS})
    assert "did you mean 'title'?" in answer["rejected"][0]["message"]


async def test_the_last_of_two_states_in_one_batch_counts(client: httpx.AsyncClient) -> None:
    await upsert(client, {"item_id": "a", "title": "numbat"}, {"item_id": "a", "title": WORDS})
    assert (await post(client, "/v1/items:get", item_ids=["a"]))["items"] == [{"item_id": "a", "title": WORDS}]


async def test_too_many_at_once_are_refused_with_the_limit(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/items", json={"items": [{"item_id": str(i)} for i in range(1_001)]})
    assert (response.status_code, response.json()["code"]) == (413, "batch_too_large")
    assert "1000" in response.json()["detail"]
    events = [{"event_id": str(i), "type": "view", "user_id": "ann"} for i in range(10_000)]
    assert (await client.post("/v1/events", json={"events": events})).status_code == 413


async def test_edits_at_once_all_count(client: httpx.AsyncClient) -> None:
    changes = [{"price": 3.0}, {"tags": ["a"]}, {"language": "fr"}, {"owner_id": "me"}]
    await asyncio.gather(
        *(post(client, "/v1/items:patch", items=[{"item_id": "item-3", **change}]) for change in changes)
    )
    (item,) = (await post(client, "/v1/items:get", item_ids=["item-3"]))["items"]
    assert {k: item[k] for c in changes for k in c} == {k: v for c in changes for k, v in c.items()}


async def test_another_gateway_sees_it_and_so_does_one_that_starts_later(
    client: httpx.AsyncClient, shop: Shop, tmp_path: Path
) -> None:
    other = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    await upsert(client, {"item_id": "new-1", "title": WORDS})
    await post(client, "/v1/items:delete", item_ids=["item-3"])
    await until_first(other.client(), "new-1")
    assert "item-3" not in await ids(other.client(), limit=500)
    await other.stop()
    later = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    assert (await found(later.client()))[0] == "new-1"
    assert EXPIRED not in await ids(later.client(), limit=500)
    assert "item-3" not in await ids(later.client(), limit=500)
    await later.stop()


async def test_a_text_that_nobody_encoded_is_encoded_by_who_comes_next(shop: Shop, tmp_path: Path) -> None:
    """The gateway that took an item dies before it has encoded it."""
    clock = FixedClock()
    first = await serve_here(shop.store(2), tmp_path / "state.sqlite3", clock)
    await first.front.in_use.now().texts.stop()
    await upsert(first.client(), {"item_id": "new-1", "title": WORDS})
    await first.stop()
    clock.at_s += 3
    second = await serve_here(shop.store(2), tmp_path / "state.sqlite3", clock)
    await until_first(second.client(), "new-1")
    await second.stop()
