"""How much of the catalogue an answer was chosen from, and what is refused for being chosen from too little."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Served, Shop, serve_here

from raysys.index.catalogue import Catalogue
from raysys.recommender import Recall
from raysys.serving.coverage import coverage
from raysys.types import Candidates, RecallQuery

N_SHARDS = 3
NAMES = [f"shard-{number:02d}" for number in range(N_SHARDS)]


class Without:
    """Shards of which the first does not answer."""

    def __init__(self, shards: Recall) -> None:
        self._shards = shards

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        answers, missing = await self._shards.recall(snapshot_id, query)
        return answers[1:], [NAMES[0], *missing]


@given(missing=st.lists(st.sampled_from([*NAMES, "encoder", "profile"])))
def test_it_is_the_share_of_the_items(shop: Shop, missing: list[str]) -> None:
    catalogue = Catalogue(shop.snapshot(N_SHARDS))
    kept = sum(len(shard.keys) for name, shard in zip(NAMES, catalogue.shards, strict=True) if name not in missing)
    everything = sum(len(shard.keys) for shard in catalogue.shards)
    assert coverage(catalogue.manifest, missing) == pytest.approx(kept / everything)


async def without_a_shard(shop: Shop, tmp_path: Path, **settings: Any) -> Served:
    served = await serve_here(shop.store(N_SHARDS), tmp_path / "state.sqlite3", **settings)
    served.recommender._shards = Without(served.recommender._shards)
    return served


BODIES = [("/v1/recommendations", {"limit": 5}), ("/v1/search", {"query": "bababa"})]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_partial_answer_says_of_how_much(shop: Shop, tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    served = await without_a_shard(shop, tmp_path)
    answer = (await served.client().post(path, json=body)).json()
    assert answer["degraded"] == [NAMES[0]]
    assert answer["coverage"] == coverage(Catalogue(shop.snapshot(N_SHARDS)).manifest, [NAMES[0]])
    assert 0 < answer["coverage"] < 1
    await served.stop()


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_less_than_may_be_is_refused(shop: Shop, tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    served = await without_a_shard(shop, tmp_path, min_coverage=0.9)
    answer: httpx.Response = await served.client().post(path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "min_coverage is 0.9: shard-00 did not answer" in answer.json()["detail"]
    assert "retry-after" in answer.headers
    await served.stop()
