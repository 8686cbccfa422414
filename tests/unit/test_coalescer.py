"""The coalescer, turn by turn of the loop: no timers here, and none in it."""

import asyncio
from collections.abc import Sequence

import pytest
from support import FixedClock

from raysys.errors import InvalidInput, Overloaded, Unavailable
from raysys.serving.coalescer import Coalescer


class Tier:
    """A tier that answers when it is told to, and remembers what it was asked."""

    def __init__(self, max_batch: int = 8, max_in_flight: int = 1, max_waiting: int = 100) -> None:
        self.batches: list[list[str]] = []
        self.gates: list[asyncio.Event] = []
        self.clock = FixedClock()
        self.coalescer: Coalescer[str, str] = Coalescer(self._call, max_batch, max_in_flight, max_waiting, self.clock)

    async def _call(self, batch: list[str]) -> Sequence[str | Exception]:
        gate = asyncio.Event()
        self.batches.append(batch)
        self.gates.append(gate)
        await gate.wait()
        return [self._answer(question) for question in batch]

    def _answer(self, question: str) -> str | Exception:
        return InvalidInput("query", "is wrong") if question == "wrong" else question.upper()

    def ask(self, *questions: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.coalescer.ask(question)) for question in questions]


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_a_lone_request_goes_at_once() -> None:
    tier = Tier()
    (task,) = tier.ask("a")
    await turns()
    assert tier.batches == [["a"]]
    tier.gates[0].set()
    assert await task == "A"


async def test_those_who_ask_in_one_turn_go_together() -> None:
    tier = Tier()
    tasks = tier.ask("a", "b", "c")
    await turns()
    assert tier.batches == [["a", "b", "c"]]
    tier.gates[0].set()
    assert await asyncio.gather(*tasks) == ["A", "B", "C"]


async def test_those_who_come_during_a_call_are_the_next_one() -> None:
    tier = Tier()
    first = tier.ask("a")
    await turns()
    later = tier.ask("b")
    await turns()
    later += tier.ask("c", "d")
    await turns()
    assert tier.batches == [["a"]]
    tier.gates[0].set()
    await turns()
    assert tier.batches == [["a"], ["b", "c", "d"]]
    tier.gates[1].set()
    assert await asyncio.gather(*first, *later) == ["A", "B", "C", "D"]


async def test_it_knows_how_many_are_asking_however_their_questions_end() -> None:
    tier = Tier(max_batch=2)
    tasks = tier.ask("a", "wrong", "c", "d")
    await turns()
    assert tier.coalescer.n_asking == 4
    tasks[3].cancel()
    tier.gates[0].set()
    await turns()
    assert tier.coalescer.n_asking == 1
    tier.gates[1].set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tier.coalescer.n_asking == 0


async def test_after_a_pause_the_next_request_goes_at_once_again() -> None:
    tier = Tier()
    for n, question in enumerate("abc"):
        (task,) = tier.ask(question)
        await turns()
        tier.gates[n].set()
        assert await task == question.upper()
    assert tier.batches == [["a"], ["b"], ["c"]]


async def test_a_batch_has_a_bound() -> None:
    tier = Tier(max_batch=2)
    tasks = tier.ask(*"abcde")
    for n in range(3):
        await turns()
        tier.gates[n].set()
    assert await asyncio.gather(*tasks) == list("ABCDE")
    assert tier.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_so_many_calls_run_at_a_time() -> None:
    tier = Tier(max_batch=1, max_in_flight=2)
    tasks = tier.ask(*"abcd")
    await turns()
    assert tier.batches == [["a"], ["b"]]
    tier.gates[1].set()
    await turns()
    assert tier.batches == [["a"], ["b"], ["c"]]
    assert tasks[1].done()
    assert not tasks[0].done()
    tier.gates[0].set()
    await turns()
    for gate in tier.gates:
        gate.set()
    assert await asyncio.gather(*tasks) == list("ABCD")


async def test_one_wrong_question_fails_alone() -> None:
    tier = Tier()
    tasks = tier.ask("a", "wrong", "b")
    await turns()
    tier.gates[0].set()
    good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
    assert (good, also_good) == ("A", "B")
    assert isinstance(bad, InvalidInput)


async def test_a_call_that_fails_fails_all_of_its_batch_and_no_other() -> None:
    async def call(batch: list[str]) -> list[str | Exception]:
        if "a" in batch:
            raise ConnectionError("gone")
        return list(batch)

    coalescer: Coalescer[str, str] = Coalescer(call, 2, 1, 10)
    answers = await asyncio.gather(*(coalescer.ask(q) for q in "abcd"), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["gone", "gone", "c", "d"]


async def test_a_tier_that_loses_an_answer_is_found_out() -> None:
    async def call(batch: list[str]) -> list[str | Exception]:
        return list(batch[1:])

    coalescer: Coalescer[str, str] = Coalescer(call, 8, 1, 10)
    for answer in await asyncio.gather(*(coalescer.ask(q) for q in "ab"), return_exceptions=True):
        assert isinstance(answer, RuntimeError)


async def test_who_goes_away_while_waiting_is_not_asked_for() -> None:
    tier = Tier()
    tasks = tier.ask("a")
    await turns()
    tasks += tier.ask("b", "c")
    await turns()
    tasks[1].cancel()
    await turns()
    tier.gates[0].set()
    await turns()
    assert tier.batches == [["a"], ["c"]]
    tier.gates[1].set()
    assert await asyncio.gather(tasks[0], tasks[2]) == ["A", "C"]


async def test_who_goes_away_during_the_call_hurts_nobody() -> None:
    tier = Tier()
    tasks = tier.ask("a", "wrong", "b")
    await turns()
    tasks[0].cancel()
    tasks[1].cancel()
    await turns()
    tier.gates[0].set()
    assert await tasks[2] == "B"


async def test_when_all_go_away_the_next_one_is_served() -> None:
    tier = Tier()
    for task in tier.ask("a", "b"):
        task.cancel()
    await turns()
    (task,) = tier.ask("c")
    await turns()
    assert tier.batches == [["c"]]
    tier.gates[0].set()
    assert await task == "C"


async def test_a_cancelled_turn_does_not_leave_the_next_one_waiting() -> None:
    tier = Tier()
    gone = tier.ask("a")
    await asyncio.sleep(0)
    gone[0].cancel()
    kept = tier.ask("b")
    await turns()
    assert tier.batches[-1][-1] == "b"
    for gate in tier.gates:
        gate.set()
    assert await kept[0] == "B"


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    tier = Tier(max_batch=1, max_waiting=2)
    tasks = tier.ask("a")
    await turns()
    tasks += tier.ask("b", "c")
    await turns()
    with pytest.raises(Overloaded, match="2 requests"):
        await tier.coalescer.ask("d")
    for n in range(3):
        tier.gates[n].set()
        await turns()
    assert await asyncio.gather(*tasks) == ["A", "B", "C"]
    assert "d" not in str(tier.batches)


async def test_those_who_went_away_do_not_count_as_waiting() -> None:
    tier = Tier(max_batch=1, max_waiting=2)
    tasks = tier.ask("a")
    await turns()
    for task in tier.ask("b", "c"):
        await turns()
        task.cancel()
    await turns()
    tasks += tier.ask("d")
    await turns()
    for gate in tier.gates:
        gate.set()
    await turns()
    for gate in tier.gates:
        gate.set()
    assert await asyncio.gather(*tasks) == ["A", "D"]


async def test_a_call_that_is_cut_off_leaves_nobody_waiting() -> None:
    async def call(batch: list[str]) -> list[str | Exception]:
        raise asyncio.CancelledError

    coalescer: Coalescer[str, str] = Coalescer(call, 8, 1, 10)
    with pytest.raises(Unavailable, match="cut off"):
        await asyncio.wait_for(coalescer.ask("a"), timeout=5)


async def call_of(tier: Tier, seconds: float) -> None:
    """One call that takes so long."""
    (task,) = tier.ask("a")
    await turns()
    tier.clock.at_s += seconds
    tier.gates[-1].set()
    await task


async def test_what_is_expected_is_the_time_of_a_call_times_the_rounds_to_come() -> None:
    tier = Tier(max_batch=2, max_in_flight=1)
    await call_of(tier, 2.0)
    assert tier.coalescer.expected_s() == 0.0  # nobody asks: the next question goes at once
    tier.ask("a")
    await turns()
    assert tier.coalescer.expected_s() == 4.0  # the call that is out, then ours
    tier.ask("b")
    await turns()
    assert tier.coalescer.expected_s() == 4.0  # there is room beside b
    tier.ask("c")
    await turns()
    assert tier.coalescer.expected_s() == 6.0


async def test_calls_side_by_side_take_no_longer() -> None:
    tier = Tier(max_batch=1, max_in_flight=2)
    await call_of(tier, 2.0)
    tier.ask("a")
    await turns()
    assert tier.coalescer.expected_s() == 2.0
    tier.ask("b")
    await turns()
    assert tier.coalescer.expected_s() == 4.0


async def test_the_latest_calls_count_most_and_one_that_hangs_more_than_all() -> None:
    tier = Tier(max_batch=1, max_in_flight=1)
    await call_of(tier, 10.0)
    await call_of(tier, 0.0)
    tier.ask("a")
    await turns()
    assert tier.coalescer.expected_s() == pytest.approx(2 * 7.0)
    tier.clock.at_s += 30.0
    assert tier.coalescer.expected_s() == pytest.approx(2 * 30.0)


async def test_who_would_wait_too_long_is_told_at_once_and_does_not_wait() -> None:
    tier = Tier(max_batch=1, max_in_flight=1)
    await call_of(tier, 2.0)
    patient = tier.ask("a")
    await turns()
    with pytest.raises(Unavailable, match=r"expected in 4 s, and wanted within 3\.5 s"):
        await tier.coalescer.ask_within("b", 3.5)
    within = asyncio.create_task(tier.coalescer.ask_within("c", 4.0))
    await turns()
    tier.gates[-1].set()
    await turns()
    tier.gates[-1].set()
    assert await asyncio.gather(*patient, within) == ["A", "C"]
    assert tier.batches == [["a"], ["a"], ["c"]]


async def test_an_answer_that_does_not_come_in_time_is_not_waited_for() -> None:
    tier = Tier()
    with pytest.raises(Unavailable, match=r"no answer within 0\.01 s"):
        await tier.coalescer.ask_within("a", 0.01)
    assert tier.batches == [["a"]]
