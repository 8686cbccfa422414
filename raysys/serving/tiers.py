"""The stages of the path as thin adapters over Serve handles. Each gathers waiting requests into one call."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from raysys.config import TierSettings
from raysys.encoder.protocol import Role
from raysys.errors import Overloaded, Unavailable
from raysys.recommender import Encode
from raysys.serving.coalescer import PATIENCE
from raysys.serving.deadline import FOR_SHARDS, FOR_TEXT, left_s
from raysys.serving.measured import Measured, Timed
from raysys.types import Candidates, RecallQuery, Vectors

A = TypeVar("A")
GONE = (ActorDiedError, ActorUnavailableError, RayActorError, DeploymentUnavailableError)
MOST_CALLS = 3
# The share of a deadline above which a shard is not waited for where another one answers. Those who waited would still
# be in when others come, and make admission send them away.
WORTH_WAITING = 0.5


async def call(tier: str, send: Callable[[], Awaitable[A]], deadline_s: float, patience_s: float | None = None) -> A:
    """One call to a tier. Where its replica dies under it, it is tried once more: every verb only reads.

    patience_s: as for ``first_of_some``; None = whoever is slow is waited for. Raises Unavailable when the tier does
    not answer in time, Overloaded when its queue is full.
    """
    try:
        async with asyncio.timeout(deadline_s):
            try:
                return await (send() if patience_s is None else first_of_some(send, patience_s))
            except GONE:
                return await send()
    except TimeoutError as error:
        raise Unavailable(f"{tier} did not answer within {deadline_s:g} s") from error
    except BackPressureError as error:
        raise Overloaded(f"{tier} has more requests than it can take") from error
    except (RayError, RayServeException) as error:
        raise Unavailable(f"{tier} failed: {type(error).__name__}") from error


async def first_of_some(send: Callable[[], Awaitable[A]], patience_s: float) -> A:
    """The first answer of up to ``MOST_CALLS`` calls. One more goes out where the replica of one is gone, and each time
    that nothing has come for ``patience_s``: Serve prefers replicas with less to do, so not one that is stuck.

    Who is late is cancelled. Raises what goes wrong otherwise, and what says that a replica is gone where all are.
    """

    async def once() -> A:
        return await send()

    n, waiting = 0, set[asyncio.Task[A]]()
    try:
        while True:
            if n < MOST_CALLS:
                waiting.add(asyncio.create_task(once()))
                n += 1
            more_s = patience_s if n < MOST_CALLS else None
            done, waiting = await asyncio.wait(waiting, timeout=more_s, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                is_gone = isinstance(one.exception(), GONE)
                if not is_gone or (n == MOST_CALLS and not waiting):
                    return one.result()
    finally:
        for one in waiting:
            one.cancel()


def plain(handle: DeploymentHandle) -> DeploymentHandle:
    """The handle without cloudpickle, which is for code: values between our own replicas take a third of the time."""
    return handle.options(request_serialization="pickle", response_serialization="pickle")


class Tier:
    """Questions to one deployment, gathered into calls. Each is answered within the deadline, waiting included, and
    within ``share`` of what is left of that of its request.

    patience_s: as for ``call``. For calls that take far less by nature: who is asked again does the work again.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Any], Awaitable[Timed[Any]]],
        settings: TierSettings,
        deadline_s: float,
        share: float = 1.0,
        patience_s: float | None = None,
    ) -> None:
        async def send_batch(batch: list[Any]) -> Timed[Any]:
            return await call(name, lambda: send(batch), deadline_s, patience_s)

        self.name, self._deadline_s, self._share = name, deadline_s, share
        self._coalescer: Measured[Any] = Measured(
            name, send_batch, settings.max_batch, settings.max_in_flight, settings.max_queued_requests, is_remote=True
        )

    @property
    def n_asking(self) -> int:
        """How many wait for this tier or for their answer."""
        return self._coalescer.n_asking

    @property
    def is_stuck(self) -> bool:
        """Whether an answer is expected after more than ``WORTH_WAITING`` of the deadline."""
        return self._coalescer.expected_s() > WORTH_WAITING * self._deadline_s

    async def ask_in_time(self, question: Any) -> Any:
        """As ``ask``. Raises Unavailable where it takes more than ``PATIENCE`` of the deadline, or would."""
        return await self._coalescer.ask_within(question, PATIENCE * self._deadline_s)

    async def ask(self, question: Any) -> Any:
        """Raises Unavailable, Overloaded, or what the tier answered this question with."""
        seconds = left_s(self._deadline_s, self._share)
        try:
            async with asyncio.timeout(seconds):
                return await self._coalescer.ask(question)
        except TimeoutError as error:
            raise Unavailable(f"{self.name} did not answer within {seconds:.3g} s") from error


class RemoteEncoder:
    """The encoder tier."""

    def __init__(self, handle: DeploymentHandle, settings: TierSettings, deadline_s: float) -> None:
        self._tier = Tier("encoder", plain(handle).encode.remote, settings, deadline_s, FOR_TEXT)

    def of(self, snapshot_id: str) -> tuple[Encode, Encode]:
        """What encodes as this snapshot was encoded. The second is for those who have a student to ask instead: it
        raises Unavailable early."""

        async def encode(text: str, role: Role) -> Vectors:
            vector: Vectors = await self._tier.ask((text, role, snapshot_id))
            return vector

        async def encode_in_time(text: str, role: Role) -> Vectors:
            vector: Vectors = await self._tier.ask_in_time((text, role, snapshot_id))
            return vector

        return encode, encode_in_time


class RemoteRanker:
    """The ranker tier."""

    def __init__(self, handle: DeploymentHandle, settings: TierSettings, deadline_s: float) -> None:
        self._tier = Tier("ranker", plain(handle).score.remote, settings, deadline_s)

    async def score(self, snapshot_id: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        ranked: NDArray[np.float32] = await self._tier.ask((snapshot_id, scores))
        return ranked


class RemoteRecall:
    """All shards, side by side. A shard that does not answer is named, and the others' answers count."""

    def __init__(self, handles: Sequence[DeploymentHandle], settings: TierSettings, deadline_s: float) -> None:
        self._handles = handles
        self._deadline_s = deadline_s
        self._names = [f"shard-{number:02d}" for number in range(len(handles))]
        patience_s = PATIENCE * deadline_s if settings.max_replicas > 1 else None  # alone, it would be asked twice
        self._tiers = [
            Tier(name, plain(handle).recall.remote, settings, deadline_s, FOR_SHARDS, patience_s)
            for name, handle in zip(self._names, handles, strict=True)
        ]

    @property
    def n_asking(self) -> int:
        """How many requests are with the shards, or wait for them."""
        return max((tier.n_asking for tier in self._tiers), default=0)

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        """Raises InvalidInput when the query itself is wrong, Overloaded when no shard has room for it."""
        asked = [tier for tier in self._tiers if not tier.is_stuck] or self._tiers  # all of them: it may be us
        answers = await asyncio.gather(*(tier.ask((snapshot_id, query)) for tier in asked), return_exceptions=True)
        found = [answer for answer in answers if isinstance(answer, Candidates)]
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for failure in failures:
            if not isinstance(failure, Unavailable) or (not found and isinstance(failure, Overloaded)):
                raise failure
        answered = {tier.name for tier, answer in zip(asked, answers, strict=True) if isinstance(answer, Candidates)}
        return found, [name for name in self._names if name not in answered]

    async def prepare(self, snapshot_id: str, deadline_s: float, is_canary: bool = False) -> None:
        """Have every shard hold this snapshot. Raises what the first shard that cannot says."""

        def send(handle: DeploymentHandle) -> Callable[[], Awaitable[None]]:
            return lambda: handle.prepare.remote(snapshot_id, is_canary)

        pairs = zip(self._names, self._handles, strict=True)
        await asyncio.gather(*(call(name, send(handle), deadline_s) for name, handle in pairs))

    async def status(self, deadline_s: float) -> dict[str, Any]:
        """What each shard holds, or why it does not say."""

        async def one(name: str, handle: DeploymentHandle) -> Any:
            try:
                return await call(name, lambda: handle.status.remote(), deadline_s)
            except Unavailable as error:
                return {"error": str(error)}

        pairs = list(zip(self._names, self._handles, strict=True))
        answers = await asyncio.gather(*(one(name, handle) for name, handle in pairs))
        return dict(zip(self._names, answers, strict=True))
