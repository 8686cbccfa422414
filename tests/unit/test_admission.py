"""Admission against a simulated gateway: a first-in-first-out server of a known capacity, in simulated time."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import FixedClock, Shop, raising, serve_here

from raysys.errors import Overloaded
from raysys.serving.admission import LEAST_PER_S, LONGEST_HOLD_S, SENT_AWAY_PER_S, Admission

DEADLINE_S = 2.0
ALWAYS_IN = int(DEADLINE_S * LEAST_PER_S)


class Simulated:
    """Requests arrive at random and are answered one after the other, in batches of any size."""

    def __init__(self, capacity_per_s: float, batch: int = 1, seed: int = 0, deadline_s: float = DEADLINE_S) -> None:
        self.clock = FixedClock(0.0)
        self.admission = Admission(deadline_s, self.clock)
        self._batch, self._batch_s = batch, batch / capacity_per_s
        self._in: list[float] = []  # when each came
        self._next_s, self._goes_on_s = float("inf"), 0.0
        self._rng = np.random.default_rng(seed)
        self.latencies_s: list[float] = []
        self.told_to_wait_s: list[float] = []

    def run(self, per_s: float, seconds: float) -> None:
        end_s, arrives_s = self.clock.at_s + seconds, self.clock.at_s
        while arrives_s < end_s:
            while self._next_s <= arrives_s:
                self._answer()
            self.clock.at_s = arrives_s
            self._arrive()
            arrives_s += self._rng.exponential(1 / per_s)

    def stall(self, seconds: float) -> None:
        """Nothing is answered for so long from now on; requests come all the same."""
        self._goes_on_s = self.clock.at_s + seconds
        self._next_s = max(self._next_s, self._goes_on_s)

    def _arrive(self) -> None:
        try:
            self.admission.enter()
        except Overloaded as error:
            self.told_to_wait_s.append(error.retry_after_s)
            return
        if not self._in:
            self._next_s = max(self.clock.at_s, self._goes_on_s) + self._batch_s
        self._in.append(self.clock.at_s)

    def _answer(self) -> None:
        self.clock.at_s = self._next_s
        for came_s in self._in[: self._batch]:
            self.admission.leave()
            self.latencies_s.append(self.clock.at_s - came_s)
        self._in = self._in[self._batch :]
        self._next_s = self.clock.at_s + self._batch_s if self._in else float("inf")


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("capacity_per_s", [20.0, 300.0])
def test_at_twice_the_capacity_the_answers_are_as_many_as_can_be_and_in_time(capacity_per_s: float, batch: int) -> None:
    server = Simulated(capacity_per_s, batch)
    server.run(2 * capacity_per_s, 60.0)
    assert len(server.latencies_s) > 0.95 * 60 * capacity_per_s
    assert np.quantile(server.latencies_s, 0.99) < DEADLINE_S
    assert server.told_to_wait_s
    assert min(server.told_to_wait_s) >= 1.0  # whole seconds on the wire


@pytest.mark.parametrize("capacity_per_s", [20.0, 300.0])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
def test_with_room_for_all_nobody_is_sent_away(capacity_per_s: float, share: float) -> None:
    server = Simulated(capacity_per_s)
    server.run(share * capacity_per_s, 120.0)
    assert not server.told_to_wait_s


@pytest.mark.parametrize("deadline_s", [2.0, 10.0])
def test_who_waits_for_a_part_that_is_replaced_is_no_queue(deadline_s: float) -> None:
    server = Simulated(100.0, deadline_s=deadline_s)
    server.run(0.8 * LEAST_PER_S, 30.0)
    server.stall(0.9 * deadline_s)
    server.run(0.8 * LEAST_PER_S, 30.0)
    assert not server.told_to_wait_s
    assert max(server.latencies_s) < deadline_s


@pytest.mark.parametrize("deadline_s", [2.0, 20.0])
def test_who_waited_for_a_start_is_let_in_and_for_how_long_nobody_is_answered_is_seen(deadline_s: float) -> None:
    clock = FixedClock(0.0)
    admission = Admission(deadline_s, clock)
    for _ in range(20 * admission.always_in):
        admission.enter()
    clock.at_s += admission.patience_s + 0.001
    with pytest.raises(Overloaded):
        admission.enter()


def test_after_an_idle_hour_or_a_slow_start_a_burst_is_let_in() -> None:
    server = Simulated(300.0)
    server.run(0.01, 3_600.0)
    server.run(250.0, 20.0)
    assert not server.told_to_wait_s


def test_while_nothing_is_answered_only_a_few_wait_and_then_it_goes_on() -> None:
    clock = FixedClock(0.0)
    admission = Admission(DEADLINE_S, clock)

    def arrive() -> bool:
        try:
            admission.enter()
        except Overloaded:
            return False
        return True

    assert arrive()
    clock.at_s += 5.0  # stuck
    assert [arrive() for _ in range(ALWAYS_IN + 5)].count(True) == ALWAYS_IN - 1
    for _ in range(ALWAYS_IN):
        admission.leave()
    assert admission.expected_s() == 0.0
    assert arrive()


def test_who_asks_again_and_again_is_sent_away_at_a_pace_and_a_few_at_once() -> None:
    clock = FixedClock(0.0)
    admission = Admission(DEADLINE_S, clock)
    for _ in range(50):  # well below the pace
        assert admission.hold_s() == 0.0
        clock.at_s += 2 / SENT_AWAY_PER_S
    for _ in range(10 * int(SENT_AWAY_PER_S)):
        held_s = admission.hold_s()
    assert held_s == LONGEST_HOLD_S  # nobody is held for longer, however many there are
    clock.at_s += 2 * LONGEST_HOLD_S
    assert admission.hold_s() == 0.0
    away_at_s = [clock.at_s + admission.hold_s() for _ in range(int(SENT_AWAY_PER_S * LONGEST_HOLD_S))]
    assert np.diff(away_at_s).min() == pytest.approx(1 / SENT_AWAY_PER_S)


async def test_who_would_be_late_is_told_when_to_come_back_and_the_others_are_answered(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, opened, n_in = FixedClock(), asyncio.Event(), 0
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", clock)
    search = served.recommender.search

    async def slow(request: Any) -> Any:
        nonlocal n_in
        n_in += 1
        await opened.wait()
        return await search(request)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/search", json={"query": "tea"})

    monkeypatch.setattr(served.recommender, "search", slow)
    async with served.client() as client:
        waiting = [asyncio.create_task(ask(client)) for _ in range(ALWAYS_IN)]
        async with asyncio.timeout(10):
            while n_in < ALWAYS_IN:
                await asyncio.sleep(0.001)
        clock.at_s += 30
        waiting.append(asyncio.create_task(ask(client)))  # one more, without what can be left out
        async with asyncio.timeout(10):
            while n_in == ALWAYS_IN:
                await asyncio.sleep(0.001)
        refused = await ask(client)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert "would be late" in refused.json()["detail"]
        start_s = time.monotonic()
        assert {(await ask(client)).status_code for _ in range(10)} == {429}
        assert time.monotonic() - start_s >= sum(range(1, 11)) / SENT_AWAY_PER_S  # by a clock that stands
        assert (await client.get("/livez")).status_code == 200  # what is no list is never refused
        opened.set()
        assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}
        monkeypatch.setattr(served.recommender, "search", raising(RuntimeError("broken")))
        for _ in range(2 * ALWAYS_IN):  # a place is given back however a request ends
            assert (await ask(client)).status_code == 500
        clock.at_s += 30
        assert (await client.post("/v1/search", content=b"{")).status_code == 400
    await served.stop()
