"""A request has one deadline, whatever it waits for, and what is left of it is enough for what the others found."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support import Shop
from tiered import Tiered

from raysys.serving.deadline import DUE, due_in, left_s

DEADLINE_S = 1.0
LATE_S = 0.4  # on a busy machine


@pytest.fixture
async def tiered(shop: Shop, tmp_path: Path) -> AsyncIterator[Tiered]:
    tiered = Tiered(shop.store(2), tmp_path / "state.sqlite3", deadline_s=DEADLINE_S)
    await tiered.poll(tiered.encoder, *tiered.shards)
    yield tiered
    await tiered.close()


async def test_silent_parts_one_after_the_other_take_one_deadline(tiered: Tiered) -> None:
    tiered.encoder_handle.is_stuck = tiered.handles[1].is_stuck = True
    start_s = time.monotonic()
    answer = await tiered.http.post("/v1/recommendations", json={"query": "a blue lamp", "explain": "full"})
    took_s = time.monotonic() - start_s
    assert answer.status_code == 200
    assert {"encoder", "shard-01"} <= set(answer.json()["degraded"])
    assert "ranker" not in answer.json()["degraded"]
    assert answer.json()["items"]
    assert took_s < DEADLINE_S + LATE_S


async def test_what_cannot_be_answered_is_said_within_the_deadline(tiered: Tiered) -> None:
    tiered.encoder_handle.is_stuck = True
    for handle in tiered.handles:
        handle.is_stuck = True
    start_s = time.monotonic()
    answers = await asyncio.gather(
        *(tiered.http.post(path, json={"query": "tea"}) for path in ("/v1/search", "/v1/recommendations"))
    )
    assert [answer.status_code for answer in answers] == [503, 503]
    assert time.monotonic() - start_s < DEADLINE_S + LATE_S


async def test_a_part_gets_its_share_of_what_is_left_and_no_more_than_it_has_by_itself() -> None:
    assert left_s(2.0, 0.5) == 2.0  # outside of a request
    DUE.set(due_in(1.0))
    assert left_s(2.0) == pytest.approx(1.0, abs=0.1)
    assert left_s(2.0, 0.5) == pytest.approx(0.5, abs=0.1)
    assert left_s(0.25) == 0.25
    DUE.set(due_in(-1.0))
    assert left_s(2.0) == 0.0
