"""What people write counts in their next answers: as soon as it is encoded, beside what they did."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import ODD, FixedClock, Served, Shop, post, serve_here

WORDS = "quasar zeppelin"  # the title of ODD, and of nothing else
DEADLINE_S = 5.0


async def write(client: httpx.AsyncClient, event_id: str, text: str, kind: str = "chat", **more: Any) -> None:
    event = {"event_id": event_id, "type": kind, "user_id": "ann", "text": text, **more}
    assert (await post(client, "/v1/events", events=[event]))["accepted"] == 1


async def until(client: httpx.AsyncClient, counts: Any, **body: Any) -> dict[str, Any]:
    """Ask until the answer is as wanted."""
    end_s = time.monotonic() + DEADLINE_S
    while not counts(answer := await post(client, "/v1/recommendations", **{"user_id": "ann", "limit": 5} | body)):
        assert time.monotonic() < end_s, answer["items"]
        await asyncio.sleep(0.01)
    return answer


def first_is_odd(answer: dict[str, Any]) -> bool:
    return [item["item_id"] for item in answer["items"]][:1] == [ODD]


@pytest.mark.parametrize("kind", ["chat", "search", "comment", "asked_support"])
async def test_a_sentence_counts(client: httpx.AsyncClient, kind: str) -> None:
    await write(client, "e1", f"  {WORDS} ", kind)
    answer = await until(client, first_is_odd)
    assert answer["items"][0]["sources"]["said"] > 0.8  # its text has a category besides
    assert answer["reasons"] == []
    assert 'raysys_freshness_seconds_count{what="text_to_effect"} 1.0' in (await client.get("/metrics")).text


async def test_a_good_review_draws_and_a_bad_one_does_not(client: httpx.AsyncClient) -> None:
    await write(client, "e1", WORDS, "review", item_id="item-1", value=1.0)
    await write(client, "e2", "bababa", "chat")
    answer = await until(client, lambda a: any("said" in item["sources"] for item in a["items"]))
    assert not first_is_odd(answer)
    await write(client, "e3", WORDS, "review", item_id="item-2", value=5.0)
    await until(client, lambda a: ODD in [item["item_id"] for item in a["items"]])


async def test_a_description_counts_until_it_is_replaced(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": WORDS}])
    await until(client, first_is_odd)
    await post(client, "/v1/users", users=[{"user_id": "ann", "description": "bababa"}])
    await until(client, lambda answer: not first_is_odd(answer))


async def test_what_a_visitor_wrote_is_the_users_after_login(client: httpx.AsyncClient) -> None:
    event = {"event_id": "e1", "type": "chat", "session_id": "s1", "text": WORDS}
    await post(client, "/v1/events", events=[event])
    for _ in range(2):  # retried, it is merged once
        await post(client, "/v1/users:merge", session_id="s1", user_id="ann")
    await until(client, first_is_odd)


async def test_a_text_is_read_once_and_known_after_a_restart(
    client: httpx.AsyncClient, served: Served, shop: Shop, tmp_path: Path
) -> None:
    await write(client, "e1", WORDS)
    await until(client, first_is_odd)
    later = await serve_here(shop.store(2), tmp_path / "state.sqlite3", FixedClock())
    answer = await post(later.client(), "/v1/recommendations", user_id="ann", limit=5)
    assert first_is_odd(answer)  # in the first answer: the vector is in the store
    await later.stop()


async def test_a_text_that_was_not_encoded_is_when_it_is_asked_for(
    client: httpx.AsyncClient, served: Served, shop: Shop, tmp_path: Path
) -> None:
    """The gateway that took the event died before it encoded the text."""
    await served.front.in_use.now().texts.stop()
    await write(client, "e1", WORDS)
    other = await serve_here(shop.store(2), tmp_path / "state.sqlite3", FixedClock())
    await until(other.client(), first_is_odd)
    await other.stop()


async def test_tastes_are_worked_out_again_when_anything_changed(client: httpx.AsyncClient) -> None:
    """They are kept between requests: an event, an edit of the profile or of an item must not meet old ones."""

    async def profile_scores() -> dict[str, float]:
        items = (await post(client, "/v1/recommendations", user_id="ann", limit=200))["items"]
        return {item["item_id"]: item["sources"].get("profile", 0.0) for item in items}

    like = {"event_id": "e1", "type": "like", "user_id": "ann", "item_id": "item-1"}
    await post(client, "/v1/events", events=[like])
    first = await profile_scores()
    assert await profile_scores() == first
    await post(client, "/v1/events", events=[{**like, "event_id": "e2", "item_id": "item-7"}])
    second = await profile_scores()
    assert second != first
    await post(client, "/v1/users:edit", user_id="ann", action="mute", evidence=["item-7"])
    assert (await profile_scores())["item-3"] == pytest.approx(first["item-3"], abs=1e-6)
    await post(client, "/v1/items:patch", items=[{"item_id": "item-1", "title": WORDS}])
    end_s = time.monotonic() + DEADLINE_S
    while (await profile_scores()).get(ODD, 0.0) < 0.5:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)
