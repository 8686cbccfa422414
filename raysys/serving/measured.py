"""How long questions to a tier wait, and how long it computes on them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from raysys.serving.coalescer import Coalescer
from raysys.trace import Call, record

P = ParamSpec("P")
Q = TypeVar("Q")
A = TypeVar("A")


class Timed(NamedTuple, Generic[A]):
    """The answers of a replica to a batch: how long that waited there until it was begun, and how long it took then."""

    answers: Sequence[A]
    waited_s: float
    compute_s: float


async def timed(
    thread: Executor | None,
    came_s: float,
    answer: Callable[P, Sequence[A]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Timed[A]:
    """The answers to a batch that came at ``came_s``, by ``perf_counter``, made in a thread; None = any."""

    def run() -> Timed[A]:
        start_s = time.perf_counter()
        answers = answer(*args, **kwargs)
        return Timed(answers, start_s - came_s, time.perf_counter() - start_s)

    return await asyncio.get_running_loop().run_in_executor(thread, run)


class Measured(Coalescer[Q, Any]):
    """A coalescer that says of each question how it was answered, to the trace of the request that asked it.

    call: as for ``Coalescer``, with its times. is_remote: whether it goes to another process.
    """

    def __init__(
        self,
        tier: str,
        call: Callable[[list[Q]], Awaitable[Timed[Any]]],
        max_batch: int,
        max_in_flight: int,
        max_waiting: int,
        is_remote: bool = False,
    ) -> None:
        async def send(batch: list[Q]) -> list[Any]:
            sent_s = time.perf_counter()
            answers, *took_s = await call(batch)
            times = (sent_s, *took_s, len(batch))
            return [answer if isinstance(answer, Exception) else (answer, times) for answer in answers]

        super().__init__(send, max_batch, max_in_flight, max_waiting)
        self._tier, self._is_remote = tier, is_remote

    async def ask(self, question: Q) -> Any:
        """As ``Coalescer.ask``."""
        asked_s = time.perf_counter()
        answer, (sent_s, waited_s, compute_s, batch_size) = await super().ask(question)
        now_s = time.perf_counter()
        record(Call(self._tier, asked_s, sent_s, now_s, waited_s, compute_s, batch_size, self._is_remote))
        return answer
