"""The stages of the path inside one serving process: what ``topology: fused`` is made of. Knows nothing of Ray."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.config import ProfileSettings, TierSettings
from raysys.encoder.batching import encode_each
from raysys.encoder.protocol import Encoder, Role
from raysys.errors import RaysysError, Unavailable
from raysys.index.store import SnapshotStore
from raysys.recommender import Ranker
from raysys.serving.coalescer import PATIENCE
from raysys.serving.deadline import DUE, FOR_TEXT, left_s
from raysys.serving.measured import Measured, Timed, timed
from raysys.serving.shard_host import Asked, ShardHost, recall_thread
from raysys.state.protocol import StateStore
from raysys.types import Candidates, RecallQuery, Vectors

MANY = 4  # requests: so many share a call well


class ThreadEncoder:
    """An encoder in a thread of this process; waiting texts are encoded together."""

    def __init__(self, encoder: Encoder, tier: TierSettings, deadline_s: float) -> None:
        self._encoder, self._deadline_s = encoder, deadline_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._coalescer: Measured[tuple[str, Role]] = Measured(
            "encoder", self._encode, tier.max_batch, max_in_flight=1, max_waiting=tier.max_queued_requests
        )

    async def _encode(self, texts: list[tuple[str, Role]]) -> Timed[Vectors]:
        return await timed(self._thread, time.perf_counter(), encode_each, self._encoder, texts)

    async def encode(self, text: str, role: Role) -> Vectors:
        """Raises Unavailable where it takes longer than the request may; outside of one it takes what it takes."""
        try:
            async with asyncio.timeout(None if DUE.get() is None else left_s(self._deadline_s, FOR_TEXT)):
                vector: Vectors = await self._coalescer.ask((text, role))
        except TimeoutError as error:
            raise Unavailable("the encoder did not answer in time; try again") from error
        return vector

    async def encode_in_time(self, text: str, role: Role) -> Vectors:
        """As ``encode``, for those who have a student to ask instead. Raises Unavailable early."""
        vector: Vectors = await self._coalescer.ask_within((text, role), PATIENCE * self._deadline_s)
        return vector


class HostedRecall:
    """All shards in this process, one after the other in one thread: two would fight over the interpreter.

    Requests that wait for the thread are answered together. deadline_s: of each; None = they wait.
    """

    def __init__(
        self,
        n_shards: int,
        store: SnapshotStore,
        state: StateStore,
        tier: TierSettings,
        profile: ProfileSettings,
        deadline_s: float | None = None,
    ) -> None:
        self._deadline_s = deadline_s
        thread = recall_thread(tier.threads)
        self._hosts = [ShardHost(number, n_shards, store, thread, state, profile) for number in range(n_shards)]
        self._coalescer: Measured[Asked] = Measured(  # whose call must not lead back here: nobody would let go of it
            "shards",
            partial(_recall, self._hosts, thread),
            tier.max_batch,
            max_in_flight=1,
            max_waiting=tier.max_queued_requests,
        )

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        """Raises Unavailable where it takes longer than the deadline; what still waits then is not looked for."""
        try:
            async with asyncio.timeout(None if self._deadline_s is None else left_s(self._deadline_s)):
                return await self._coalescer.ask((snapshot_id, query)), []
        except TimeoutError as error:
            raise Unavailable("no shard answered in time; try again") from error

    async def prepare(self, snapshot_id: str) -> None:
        for host in self._hosts:
            await host.prepare(snapshot_id)

    async def stop(self) -> None:
        for host in self._hosts:
            await host.stop()

    def status(self) -> dict[str, Any]:
        return {f"shard-{host.number:02d}": host.status() for host in self._hosts}


async def _recall(
    hosts: Sequence[ShardHost], thread: ThreadPoolExecutor, batch: list[Asked]
) -> Timed[list[Candidates] | Exception]:
    came_s = time.perf_counter()
    missing = [await host.hold({snapshot_id for snapshot_id, _ in batch}) for host in hosts]
    return await timed(thread, came_s, _answer, hosts, batch, missing)


def _answer(
    hosts: Sequence[ShardHost], batch: list[Asked], missing: Sequence[Mapping[str, RaysysError]]
) -> list[list[Candidates] | Exception]:
    answers = [host.answer(batch, gone) for host, gone in zip(hosts, missing, strict=True)]
    return [_all_or_error(of_one) for of_one in zip(*answers, strict=True)]


class NearRanker:
    """Scores right here, by the same code, for as long as few ask at once, and by the tier when many do.

    A call to the tier takes a lone request longer than its arithmetic; for many requests it is one call, which leaves
    the gateway's core to others. crowd: how many are on their way through the shards.
    """

    def __init__(self, here: Ranker, tier: Ranker, crowd: Callable[[], int]) -> None:
        self._here, self._tier, self._crowd = here, tier, crowd

    async def score(self, snapshot_id: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        ranker = self._tier if self._crowd() >= MANY else self._here
        return await ranker.score(snapshot_id, scores)


def _all_or_error(answers: Sequence[Candidates | Exception]) -> list[Candidates] | Exception:
    """The answers of all shards to one query, or what the first that could not answer says."""
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    return errors[0] if errors else [answer for answer in answers if isinstance(answer, Candidates)]
