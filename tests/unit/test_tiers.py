"""Calls to a tier: who is asked again when a replica dies or is slow, and who is not asked at all."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from ray.exceptions import ActorUnavailableError

from raysys.config import TierSettings
from raysys.errors import Unavailable
from raysys.serving.measured import Timed
from raysys.serving.tiers import MOST_CALLS, Tier, call, first_of_some

PATIENCE_S = 0.01
Replica = Callable[[], Awaitable[str]]


class Replicas:
    """Answer one after the other, each in its way. stuck: how many calls wait for ever now."""

    def __init__(self, *ways: str) -> None:
        self._ways, self.n_asked, self.stuck = ways, 0, 0

    async def __call__(self) -> str:
        way = self._ways[self.n_asked]
        self.n_asked += 1
        if way == "stuck":
            await self._wait()
        if way == "dead":
            raise ActorUnavailableError("it was killed", None)
        if way == "wrong":
            raise ValueError("a bug")
        return way

    async def _wait(self) -> None:
        self.stuck += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.stuck -= 1


@pytest.mark.parametrize(
    ("ways", "n_asked"),
    [
        (("fine",), 1),
        (("stuck", "fine"), 2),
        (("dead", "fine"), 2),
        (("dead", "dead", "fine"), 3),
        (("stuck", "dead", "fine"), 3),
        (("stuck", "stuck", "fine"), 3),
    ],
)
async def test_one_that_answers_is_enough(ways: tuple[str, ...], n_asked: int) -> None:
    replicas = Replicas(*ways)
    assert await first_of_some(replicas, PATIENCE_S) == "fine"
    await asyncio.sleep(0)
    assert (replicas.n_asked, replicas.stuck) == (n_asked, 0)


async def test_where_all_are_gone_that_is_raised() -> None:
    replicas = Replicas(*["dead"] * MOST_CALLS)
    with pytest.raises(ActorUnavailableError):
        await first_of_some(replicas, PATIENCE_S)
    assert replicas.n_asked == MOST_CALLS


async def test_what_is_wrong_is_not_tried_again() -> None:
    replicas = Replicas("wrong", "fine")
    with pytest.raises(ValueError, match="a bug"):
        await first_of_some(replicas, PATIENCE_S)
    assert replicas.n_asked == 1


async def test_the_deadline_ends_all_calls() -> None:
    replicas = Replicas(*["stuck"] * MOST_CALLS)
    with pytest.raises(Unavailable, match=r"shard-00 did not answer within 0\.05 s"):
        await call("shard-00", replicas, 0.05, PATIENCE_S)
    await asyncio.sleep(0)
    assert (replicas.n_asked, replicas.stuck) == (MOST_CALLS, 0)


@pytest.mark.parametrize(("n_replicas", "n_asked"), [(1, 1), (2, MOST_CALLS)])
async def test_a_lone_replica_that_is_slow_is_asked_once(n_replicas: int, n_asked: int) -> None:
    calls: list[object] = []

    async def send(batch: object) -> Timed[str]:
        calls.append(batch)
        await asyncio.Event().wait()
        raise AssertionError

    tier = Tier("shard-00", send, TierSettings(max_replicas=n_replicas), deadline_s=0.1)
    with pytest.raises(Unavailable):
        await tier.ask("q")
    assert len(calls) == n_asked


async def test_a_stuck_tier_is_not_waited_for_by_all() -> None:
    async def send(batch: object) -> Timed[str]:
        await asyncio.Event().wait()
        raise AssertionError

    tier = Tier("shard-00", send, TierSettings(), deadline_s=0.2)
    waiting = [asyncio.create_task(tier.ask("early"))]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(tier.ask("early")))
    await asyncio.wait(waiting, timeout=0.06)
    with pytest.raises(Unavailable, match="shard-00 is stuck"):
        async with asyncio.timeout(0.01):
            await tier.ask("late")
    assert not any(task.done() for task in waiting)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
