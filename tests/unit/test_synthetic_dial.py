"""The dial of the made-up world: with structure the recommender must find it, with the dial at noise it must not."""

from collections.abc import Sequence

import numpy as np
import pytest
from support import N_TOPICS, N_USERS, Shop, recommender

from raysys.types import Answer, Profile, Request

CHANCE = 1 / N_TOPICS


def share_of_topic(shop: Shop, topic: int, answer: Answer) -> float:
    """The share of the answer's items that belong to the topic."""
    topics = [shop.world.item_topics[int(item.item_id[5:])] for item in answer.items if item.item_id[:5] == "item-"]
    return float(np.mean(np.array(topics) == topic))


async def shares(shop: Shop, answers: Sequence[Answer]) -> float:
    return float(np.mean([share_of_topic(shop, t, a) for t, a in zip(shop.world.user_topics, answers, strict=True)]))


async def from_profiles(shop: Shop) -> float:
    path = recommender(shop.snapshot(2))
    return await shares(shop, [await path.recommend(Request(limit=10), shop.profile(u)) for u in range(N_USERS)])


async def from_text_alone(shop: Shop) -> float:
    """What people liked, asked as a query: behaviour has no part in it."""
    path, title = (
        recommender(shop.snapshot(2)),
        dict(zip(*shop.items.select(["item_id", "title"]).to_pydict().values(), strict=True)),
    )
    queries = [" ".join(title[i.item_id] for i in shop.profile(u).interactions[:3]) for u in range(N_USERS)]
    return await shares(shop, [await path.search(Request(limit=10, query=query)) for query in queries])


async def from_behaviour_alone(shop: Shop) -> float:
    """Only what the transition model put forward."""
    path, found = recommender(shop.snapshot(2)), []
    for user in range(N_USERS):
        answer = await path.recommend(Request(limit=100), shop.profile(user))
        items = sorted(answer.items, key=lambda item: -item.sources.get("transition", 0.0))[:10]
        found.append(share_of_topic(shop, int(shop.world.user_topics[user]), _with(answer, items)))
    return float(np.mean(found))


def _with(answer: Answer, items) -> Answer:
    return Answer(answer.snapshot_id, 0, tuple(items), False, True, (), (), {})


@pytest.mark.parametrize("way", [from_profiles, from_text_alone, from_behaviour_alone])
async def test_structure_is_found(shop: Shop, way) -> None:
    found = await way(shop)
    assert found > 3 * CHANCE, found


@pytest.mark.parametrize("way", [from_profiles, from_text_alone, from_behaviour_alone])
async def test_noise_is_not(noise: Shop, way) -> None:
    found = await way(noise)
    assert abs(found - CHANCE) < 0.5 * CHANCE, found


async def test_a_stranger_is_taken_for_nobody(shop: Shop) -> None:
    answer = await recommender(shop.snapshot(2)).recommend(Request(limit=60), Profile("u:nobody"))
    shares_of = [share_of_topic(shop, topic, answer) for topic in range(N_TOPICS)]
    assert max(shares_of) < 3 * CHANCE
