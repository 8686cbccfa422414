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
from raysys.recommender import Encode
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

    def cached(self, size: int) -> Encode:
        return QueryCache(size, self.metrics.query_vectors).before(self.encode, "an encoder")

    def outcomes(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("raysys_query_vectors_total", {"outcome": outcome}) or 0.0


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 6))
def test_it_is_the_encoder_with_a_list_of_the_latest_texts(texts: list[str], size: int) -> None:
    counted, latest, misses = Counted(), list[str](), list[str]()
    encode = counted.cached(size)
    for text in texts:
        vector = asyncio.run(encode(text, "query"))
        np.testing.assert_array_equal(vector, asyncio.run(ENCODER.encode(text, "query")))
        if text not in latest:
            misses.append(text)
        latest = [*(one for one in latest if one != text), text][-size:]
    assert [text for text, _ in counted.asked] == misses
    assert (counted.outcomes("miss"), counted.outcomes("hit")) == (len(misses), len(texts) - len(misses))


async def test_a_role_is_part_of_the_name() -> None:
    counted = Counted()
    encode = counted.cached(10)
    await encode("sea", "query")
    await encode("sea", "item")
    assert counted.asked == [("sea", "query"), ("sea", "item")]


async def test_nobody_can_write_over_a_vector_of_others() -> None:
    vector = await Counted().cached(10)("sea", "query")
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


async def test_a_failure_is_not_remembered() -> None:
    counted, away = Counted(), [True]

    async def unsteady(text: str, role: Role) -> Vectors:
        if away.pop():
            raise Unavailable("the encoder is away")
        return await counted.encode(text, role)

    encode = QueryCache(10, counted.metrics.query_vectors).before(unsteady, "an encoder")
    with pytest.raises(Unavailable):
        await encode("sea", "query")
    away.append(False)
    assert (await encode("sea", "query")).any()


async def test_what_one_encoder_said_is_for_all_its_snapshots_and_for_no_other_encoder() -> None:
    before, after, other = Counted(), Counted(), Counted()
    cache = QueryCache(10, before.metrics.query_vectors)
    await cache.before(before.encode, "one")("sea", "query")
    await cache.before(after.encode, "one")("sea", "query")
    await cache.before(other.encode, "another")("sea", "query")
    assert [len(counted.asked) for counted in (before, after, other)] == [1, 0, 1]


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
