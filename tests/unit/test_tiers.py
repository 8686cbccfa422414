"""Calls to a tier: who is asked again when a replica dies or is slow, and who is not asked at all."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError

from raysys.config import TierSettings
from raysys.errors import Unavailable
from raysys.serving.measured import Timed
from raysys.serving.tiers import MOST_CALLS, RemoteRecall, call, first_of_some
from raysys.types import SOURCES, Candidates, RecallQuery

PATIENCE_S = 0.01
NO_KEYS, NO_WEIGHTS = np.empty(0, np.uint64), np.empty(0, np.float32)
QUERY = RecallQuery(None, None, None, NO_KEYS, NO_WEIGHTS, NO_KEYS, None, 0.0, 10)
NO_ROWS = np.empty(0, np.int32)
NOTHING = Candidates(NO_ROWS, NO_ROWS, NO_KEYS, np.empty((0, len(SOURCES)), np.float32), np.empty(0, np.uint16))
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


class Shards:
    """As many handles of shards, of which some never answer. asked: how often each was."""

    def __init__(self, n: int, stuck: Collection[int], n_replicas: int = 1) -> None:
        self.asked, self._stuck, self._settings = [0] * n, stuck, TierSettings(max_replicas=n_replicas)

    def handle(self, number: int) -> Any:
        async def remote(batch: list[Any]) -> Timed[Candidates]:
            self.asked[number] += 1
            if number in self._stuck:
                await asyncio.Event().wait()
            return Timed([NOTHING] * len(batch), 0.0, 0.0)

        handle = SimpleNamespace(recall=SimpleNamespace(remote=remote))
        handle.options = lambda **_: handle
        return handle

    def recall(self, deadline_s: float) -> RemoteRecall:
        return RemoteRecall([self.handle(number) for number in range(len(self.asked))], self._settings, deadline_s)


async def waited_for(recall: RemoteRecall, deadline_s: float) -> list[asyncio.Task[Any]]:
    """Two who ask, one after the other, and have waited for more than half of the deadline in all."""
    waiting = []
    for _ in range(2):
        waiting.append(asyncio.create_task(recall.recall("a", QUERY)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.wait(waiting, timeout=0.3 * deadline_s)
    return waiting


async def test_a_stuck_shard_is_not_waited_for_by_all() -> None:
    shards = Shards(2, stuck={1})
    recall = shards.recall(deadline_s=0.2)
    waiting = await waited_for(recall, 0.2)
    async with asyncio.timeout(0.02):
        found, missing = await recall.recall("a", QUERY)
    assert (len(found), missing) == (1, ["shard-01"])
    assert shards.asked == [3, 2]
    assert not any(task.done() for task in waiting)
    assert [missing for _, missing in await asyncio.gather(*waiting)] == [["shard-01"]] * 2


async def test_where_all_seem_stuck_all_are_asked() -> None:
    shards = Shards(2, stuck={0, 1})
    recall = shards.recall(deadline_s=0.2)
    waiting = await waited_for(recall, 0.2)
    late = asyncio.create_task(recall.recall("a", QUERY))
    await asyncio.wait([late], timeout=0.02)
    assert not late.done()
    assert [missing for _, missing in await asyncio.gather(late, *waiting)] == [["shard-00", "shard-01"]] * 3


@pytest.mark.parametrize(("n_replicas", "n_asked"), [(1, 1), (2, MOST_CALLS)])
async def test_only_where_there_are_others_is_a_slow_shard_asked_again(n_replicas: int, n_asked: int) -> None:
    shards = Shards(2, stuck={1}, n_replicas=n_replicas)
    _, missing = await shards.recall(deadline_s=0.1).recall("a", QUERY)
    assert (missing, shards.asked) == (["shard-01"], [1, n_asked])
