"""What the people and owners that somebody follows bring into their list, over HTTP and along the path."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from support import N_ITEMS, ODD, Shop, post, recommender

from raysys.keys import item_keys
from raysys.profile import follows
from raysys.profile.follows import SHRINK, STEP_DECAY
from raysys.types import FriendLikes, Profile, RankedItem, Request

ONE, TWO = 1 + SHRINK, 2 + SHRINK  # what one friend, or two, are divided by
DEADLINE_S = 5.0
RARE = "krokodil"  # a word of no item of the shop


async def ask(client: httpx.AsyncClient, user_id: str = "ann", **more: Any) -> dict[str, Any]:
    return await post(client, "/v1/recommendations", **{"user_id": user_id, "limit": 10} | more)


async def until(client: httpx.AsyncClient, counts: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for Ann until the answer is as wanted: the shards follow the log of items."""
    end_s = time.monotonic() + DEADLINE_S
    while not counts(answer := await ask(client)):
        assert time.monotonic() < end_s, answer["items"]
        await asyncio.sleep(0.01)
    return answer


async def put(client: httpx.AsyncClient, user_id: str, *ids: str) -> None:
    assert (await post(client, "/v1/users", users=[{"user_id": user_id, "follows": ids}]))["accepted"] == [user_id]


async def send(client: httpx.AsyncClient, user_id: str, item_id: str, kind: str = "purchase", **more: Any) -> None:
    event = {"event_id": f"{user_id}-{item_id}-{kind}", "type": kind, "user_id": user_id, "item_id": item_id, **more}
    assert (await post(client, "/v1/events", events=[event]))["accepted"] == 1


def shares(answer: dict[str, Any]) -> dict[str, float]:
    """Items of an answer with the score that their friends gave them."""
    items = answer["items"]
    return {i["item_id"]: pytest.approx(i["sources"]["friends"]) for i in items if "friends" in i["sources"]}


async def test_a_friends_purchase_is_in_the_next_list(client: httpx.AsyncClient) -> None:
    before = await ask(client)
    assert before["reasons"] == ["cold_start"]
    assert ODD not in [item["item_id"] for item in before["items"]]
    await put(client, "ann", "user:bob", "user:cid")
    await send(client, "bob", ODD)
    answer = await ask(client)
    assert shares(answer) == {ODD: 1 / ONE}
    assert answer["items"][0]["item_id"] == ODD
    assert (answer["reasons"], answer["degraded"]) == ([], [])
    await send(client, "cid", "item-3", "like")
    assert shares(await ask(client)) == {ODD: 1 / TWO, "item-3": 2 / 3 / TWO}
    assert shares(await ask(client, "dan")) == {}


async def test_ranking_given_items_counts_friends_too(client: httpx.AsyncClient) -> None:
    await put(client, "ann", "user:bob")
    await send(client, "bob", "item-7")
    answer = await post(client, "/v1/rank", user_id="ann", items=["item-5", "item-6", "item-7"])
    assert shares(answer) == {"item-7": 1 / ONE}
    assert answer["items"][0]["item_id"] == "item-7"


async def test_what_friends_look_at_and_write_stays_theirs(client: httpx.AsyncClient) -> None:
    await put(client, "ann", "user:bob")
    alone = await ask(client)
    await send(client, "bob", "item-3", "view")
    await send(client, "bob", "item-4", "dislike")
    await send(client, "bob", ODD, "chat", text="quasar zeppelin")
    await post(client, "/v1/users", users=[{"user_id": "bob", "description": "quasar zeppelin"}])
    assert (await ask(client))["items"] == alone["items"]


async def test_a_friend_who_mutes_or_is_erased_is_silent_at_once(client: httpx.AsyncClient) -> None:
    await put(client, "ann", "user:bob", "user:cid")
    await send(client, "bob", "item-3")
    await send(client, "cid", "item-4")
    assert shares(await ask(client)) == {"item-3": 1 / TWO, "item-4": 1 / TWO}
    await post(client, "/v1/users:edit", user_id="bob", action="mute", evidence=["item-3"])
    assert shares(await ask(client)) == {"item-4": 1 / ONE}
    receipt = await post(client, "/v1/users:delete", user_id="cid")
    assert receipt["verified"]
    assert shares(await ask(client)) == {}


async def test_what_one_has_seen_or_dislikes_does_not_come_back_by_friends(client: httpx.AsyncClient) -> None:
    await put(client, "ann", "user:bob")
    for item_id in ("item-3", "item-4", "item-5"):
        await send(client, "bob", item_id)
    await send(client, "ann", "item-3", "view")
    await send(client, "ann", "item-4", "dislike")
    of_one = 2 / (2 + SHRINK)  # bob stands for himself and the item that both like
    assert shares(await ask(client, limit=200)) == {"item-5": of_one}
    with_seen = await ask(client, limit=200, exclude_seen=False)
    assert shares(with_seen) == {"item-3": STEP_DECAY**2 * of_one, "item-5": of_one}


async def test_a_new_item_that_a_friend_bought_is_found(client: httpx.AsyncClient) -> None:
    await put(client, "ann", "user:bob")
    await send(client, "bob", "new-1")  # an event about an item that is not there yet
    assert shares(await ask(client)) == {}
    await post(client, "/v1/items", items=[{"item_id": "new-1", "title": RARE}])
    await until(client, lambda answer: shares(answer) == {"new-1": 1 / ONE})


async def test_friends_that_are_slow_to_read_are_told(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"friend-{n}" for n in range(15)]
    await put(client, "ann", *(f"user:{name}" for name in names))
    for name in names:
        await send(client, name, "item-3")
    monkeypatch.setattr(follows, "DEADLINE_S", 0.0)
    first, second = await ask(client), await ask(client)
    assert first["degraded"] == ["friends"]
    assert second["degraded"] == []
    assert (shares(first), shares(second)) == ({"item-3": 10 / (10 + SHRINK)}, {"item-3": 15 / (15 + SHRINK)})


async def test_followed_owners_bring_their_items(client: httpx.AsyncClient) -> None:
    items = [{"item_id": f"new-{n}", "title": f"thing {n}", "owner_id": "ACME" if n % 2 else "Other"} for n in range(6)]
    await post(client, "/v1/items", items=items)
    await put(client, "ann", "acme")  # as in all terms, capitals say nothing
    answer = await until(client, lambda answer: of_words(answer) == {"new-1", "new-3", "new-5"})
    assert answer["reasons"] == []
    assert {item["item_id"] for item in answer["items"][:3]} == {"new-1", "new-3", "new-5"}
    assert of_words(await ask(client, "bob")) == set()


def of_words(answer: dict[str, Any]) -> set[str]:
    return {item["item_id"] for item in answer["items"] if "words" in item["sources"]}


# Along the path


def friends_of(random: np.random.Generator) -> FriendLikes:
    keys = np.unique(item_keys(f"item-{n}" for n in random.integers(N_ITEMS, size=40)))
    return FriendLikes(keys, random.random(len(keys)).astype(np.float32))


def scored(items: tuple[RankedItem, ...]) -> list[tuple[str, float]]:
    return [(item.item_id, pytest.approx(item.score, abs=1e-5)) for item in items]


@pytest.mark.parametrize("seed", range(6))
async def test_any_number_of_shards_gives_the_same_list(shop: Shop, seed: int) -> None:
    likes, profile = friends_of(np.random.default_rng(seed)), shop.profile(seed)
    answers = []
    for n_shards in (1, 2, 3):
        path = recommender(shop.snapshot(n_shards))
        answers.append((await path.recommend(Request(limit=20), profile, likes)).items)
    assert scored(answers[0]) == scored(answers[1]) == scored(answers[2])
    assert any("friends" in item.sources for item in answers[0])


async def test_likes_of_items_that_are_nowhere_change_nothing(shop: Shop) -> None:
    path = recommender(shop.snapshot(3))
    nowhere = FriendLikes(np.sort(item_keys(["gone-1", "gone-2"])), np.ones(2, np.float32))
    with_them = await path.recommend(Request(limit=10), Profile("u:nobody"), nowhere)
    without = await path.recommend(Request(limit=10), Profile("u:nobody"))
    assert with_them.items == without.items
