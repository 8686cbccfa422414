"""One call for many waiting requests.

While a call to a tier is in flight, requests that arrive are gathered and sent on as one call. There is no timer, so
a lone request never waits: it goes out at once. A hop costs about the same for 64 requests as for one.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from raysys.clock import Clock, SystemClock
from raysys.errors import Overloaded, Unavailable

Q = TypeVar("Q")
A = TypeVar("A")

# The share of a deadline after which a query is encoded otherwise; admission is to refuse later than that.
PATIENCE = 0.15
LATEST = 0.3  # the weight of the last call in the mean time of a call


class Coalescer(Generic[Q, A]):
    """Turns single questions into batched calls.

    ``call`` gets up to ``max_batch`` questions and returns as many answers in their order; an answer that is an
    exception is raised to its own asker only. At most ``max_in_flight`` calls run at a time and ``max_waiting``
    questions wait; one more raises Overloaded at once. ``n_asking``: those whose answer is not there yet.
    """

    def __init__(
        self,
        call: Callable[[list[Q]], Awaitable[Sequence[A | Exception]]],
        max_batch: int,
        max_in_flight: int,
        max_waiting: int,
        clock: Clock | None = None,
    ) -> None:
        self._call = call
        self._max_batch, self._max_in_flight, self._max_waiting = max_batch, max_in_flight, max_waiting
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._calls: dict[asyncio.Task[None], float] = {}  # and when each began
        self._clock = SystemClock() if clock is None else clock
        self._call_s: float | None = None
        self.n_asking = 0

    async def ask(self, question: Q) -> A:
        """The answer to one question. Raises what the call raises, or Overloaded."""
        if self._is_full():
            raise Overloaded(f"{len(self._waiting)} requests are waiting already; try again in a moment")
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if len(self._waiting) == 1:  # send in this turn of the loop, but after all who ask in it
            asyncio.get_running_loop().call_soon(self._send)
        self.n_asking += 1
        try:
            return await future
        finally:
            self.n_asking -= 1

    async def ask_within(self, question: Q, seconds: float) -> A:
        """As ``ask``. Raises Unavailable when the answer is not there in time, and at once where it would not be."""
        expected_s = self.expected_s()
        if expected_s > seconds:
            raise Unavailable(f"the answer is expected in {expected_s:.3g} s, and wanted within {seconds:g} s")
        try:
            async with asyncio.timeout(seconds):
                return await self.ask(question)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {seconds:g} s") from error

    def expected_s(self) -> float:
        """In how many seconds one more question would be answered: what calls took lately, times the rounds to come.

        A call that has taken longer already says more than those before it. 0 while nothing is asked: whatever was the
        matter, the next question finds out.
        """
        if not self._calls and not self._waiting:
            return 0.0
        now_s = self._clock.monotonic_s()
        longest_s = now_s - min(self._calls.values(), default=now_s)
        call_s = max(longest_s, 0.0 if self._call_s is None else self._call_s)
        calls = len(self._calls) + 1 + len(self._waiting) // self._max_batch
        return call_s * -(-calls // self._max_in_flight)

    def _is_full(self) -> bool:
        if len(self._waiting) >= self._max_waiting:  # those who went away do not count
            self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        return len(self._waiting) >= self._max_waiting

    def _send(self) -> None:
        while self._waiting and len(self._calls) < self._max_in_flight:
            batch = self._next_batch()
            if batch:
                task = asyncio.create_task(self._run(batch))
                self._calls[task] = self._clock.monotonic_s()
                task.add_done_callback(self._finished)

    def _next_batch(self) -> list[tuple[Q, asyncio.Future[A]]]:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        while self._waiting and len(batch) < self._max_batch:
            question, future = self._waiting.popleft()
            if not future.done():  # a caller that went away has cancelled its future
                batch.append((question, future))
        return batch

    def _finished(self, task: asyncio.Task[None]) -> None:
        took_s = self._clock.monotonic_s() - self._calls.pop(task)
        self._call_s = took_s if self._call_s is None else self._call_s + LATEST * (took_s - self._call_s)
        self._send()

    async def _run(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers: Sequence[A | Exception] = await self._call([question for question, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} questions got {len(answers)} answers")
        except Exception as error:
            answers = [error] * len(batch)
        except asyncio.CancelledError:  # of the call, not of a caller: those must not wait for ever
            answers = [Unavailable("the call was cut off; try again")] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
