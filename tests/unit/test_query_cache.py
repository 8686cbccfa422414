"""Vectors of queries by their text: bounded, counted, and no other than the encoder's."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Shop, serve_here

from raysys.encoder.hashing import HashEncoder
from raysys.encoder.protocol import Role
from raysys.errors import Unavailable
from raysys.in_process import LocalEncoder
from raysys.serving.edge import Metrics
from raysys.serving.query_cache import QueryCache
from raysys.types import Vectors

ENCODER = LocalEncoder(HashEncoder(16))


class Counted:
    """The hash encoder, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Role]] = []
        self.metrics = Metrics()

    async def encode(self, text: str, role: Role) -> Vectors:
        self.asked.append((text, role))
        return await ENCODER.encode(text, role)

    def cache(self, size: int) -> QueryCache:
        return QueryCache(self.encode, size, self.metrics.query_vectors)

    def outcomes(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("raysys_query_vectors_total", {"outcome": outcome}) or 0.0


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 6))
def test_it_is_the_encoder_with_a_list_of_the_latest_texts(texts: list[str], size: int) -> None:
    counted, latest, misses = Counted(), list[str](), list[str]()
    cache = counted.cache(size)
    for text in texts:
        vector = asyncio.run(cache.encode(text, "query"))
        np.testing.assert_array_equal(vector, asyncio.run(ENCODER.encode(text, "query")))
        if text not in latest:
            misses.append(text)
        latest = [*(one for one in latest if one != text), text][-size:]
    assert [text for text, _ in counted.asked] == misses
    assert (counted.outcomes("miss"), counted.outcomes("hit")) == (len(misses), len(texts) - len(misses))


async def test_a_role_is_part_of_the_name() -> None:
    counted = Counted()
    cache = counted.cache(10)
    await cache.encode("sea", "query")
    await cache.encode("sea", "item")
    assert counted.asked == [("sea", "query"), ("sea", "item")]


async def test_nobody_can_write_over_a_vector_of_others() -> None:
    vector = await Counted().cache(10).encode("sea", "query")
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


async def test_a_failure_is_not_remembered() -> None:
    counted, away = Counted(), [True]

    async def encode(text: str, role: Role) -> Vectors:
        if away.pop():
            raise Unavailable("the encoder is away")
        return await counted.encode(text, role)

    cache = QueryCache(encode, 10, counted.metrics.query_vectors)
    with pytest.raises(Unavailable):
        await cache.encode("sea", "query")
    away.append(False)
    assert (await cache.encode("sea", "query")).any()


@pytest.mark.parametrize(("size", "hits"), [(10, 1.0), (0, None)])
async def test_a_gateway_answers_the_same_with_it_and_without(
    shop: Shop, tmp_path: Path, size: int, hits: float | None
) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", cached_queries=size)
    body = {"query": "a blue lamp", "limit": 5}
    async with served.client() as client:
        first, second = [(await client.post("/v1/recommendations", json=body)).json()["items"] for _ in range(2)]
        found = [line for line in (await client.get("/metrics")).text.splitlines() if 'outcome="hit"' in line]
    await served.stop()
    assert first == second
    assert [float(line.split()[-1]) for line in found if "query_vectors_total" in line] == (
        [] if hits is None else [hits]
    )
