"""Where the time of a request went: stages, and queue, compute and network of the tiers in them."""

import asyncio
import pickle
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import DIM, NOW_S, FixedClock, Shop, plain_query

from raysys.clock import SystemClock
from raysys.config import TierSettings
from raysys.encoder.hashing import HashEncoder
from raysys.errors import InvalidInput
from raysys.serving.measured import Measured, Timed, timed
from raysys.serving.shard_host import ShardHost, recall_thread
from raysys.serving.tiers import Tier
from raysys.state.sqlite import SqliteState
from raysys.trace import Call, Trace, note, record, watching
from raysys.types import Candidates, RecallQuery

SECONDS = st.floats(0, 10)


def call_of(queue_s: float, network_s: float, waited_s: float, compute_s: float, is_remote: bool = True) -> Call:
    answered_s = queue_s + network_s + waited_s + compute_s
    return Call("shard-00", 0.0, queue_s, answered_s, waited_s, compute_s, 3, is_remote)


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_the_parts_of_a_call_are_the_call(queue_s: float, network_s: float, waited_s: float, compute_s: float) -> None:
    call = call_of(queue_s, network_s, waited_s, compute_s)
    assert call.queue_s == pytest.approx(queue_s + waited_s)
    assert call.network_s == pytest.approx(network_s, abs=1e-9)
    assert call.queue_s + call.compute_s + call.network_s == pytest.approx(call.answered_s - call.asked_s)


def test_a_stage_has_the_parts_of_the_call_that_it_waited_for_last() -> None:
    clock = FixedClock()
    trace = Trace(clock)
    record(call_of(0.001, 0.002, 0.003, 0.004))
    record(call_of(0.01, 0.02, 0.03, 0.04))
    record(call_of(0.002, 0.001, 0.003, 0.004))
    clock.at_s += 0.125
    trace.mark("recall")
    assert trace.timings_ms == {"recall": 125.0, "recall.queue": 40.0, "recall.compute": 40.0, "recall.network": 20.0}
    assert [len(stage.calls) for stage in trace.stages] == [3]


def test_in_one_process_there_is_no_network() -> None:
    trace = Trace(FixedClock())
    record(call_of(0.001, 0.002, 0.003, 0.004, is_remote=False))
    trace.mark("rank")
    assert trace.timings_ms == {"rank": 0.0, "rank.queue": 4.0, "rank.compute": 4.0}


def test_a_stage_without_a_call_has_no_parts_and_none_of_the_stage_before() -> None:
    trace = Trace(FixedClock())
    record(call_of(1, 1, 1, 1))
    trace.mark("explain")  # asks many times, one after the other
    trace.mark("recall")
    assert trace.finish() == {"explain": 0.0, "recall": 0.0, "total": 0.0}


def test_stages_follow_each_other_and_add_up() -> None:
    clock = FixedClock()
    trace = Trace(clock)
    for stage, seconds in (("encode", 0.5), ("recall", 0.25), ("rank", 0.125)):
        record(call_of(0.01, 0.01, 0.01, 0.01))
        clock.at_s += seconds
        trace.mark(stage)
    timings_ms = trace.finish()
    assert sum(ms for name, ms in timings_ms.items() if "." not in name and name != "total") == timings_ms["total"]
    assert [(stage.start_s - NOW_S, stage.end_s - NOW_S) for stage in trace.stages] == [
        (0, 0.5),
        (0.5, 0.75),
        (0.75, 0.875),
    ]


def test_what_answers_after_the_request_does_not_count_for_it() -> None:
    trace = Trace(FixedClock())
    trace.finish()
    record(call_of(1, 1, 1, 1))
    trace.mark("recall")
    assert "recall.queue" not in trace.timings_ms


def test_what_is_tried_within_a_request_does_not_take_its_calls() -> None:
    trace = Trace(FixedClock())
    tried = Trace(FixedClock(), is_request=False)
    record(call_of(0.0, 0.0, 0.0, 1.0))
    tried.mark("recall")
    trace.mark("recall")
    assert "recall.compute" not in tried.timings_ms
    assert trace.timings_ms["recall.compute"] == 1_000


async def test_who_watches_sees_the_requests_within_and_no_others() -> None:
    async def request() -> Trace:
        return Trace(FixedClock())

    Trace(FixedClock())
    with watching() as watched:
        both = await asyncio.gather(request(), request())  # as for a list made of two
        note("snapshot-1", ["ranker"])
    Trace(FixedClock())
    note("snapshot-2", [])
    assert watched.traces == both
    assert (watched.snapshot_id, watched.degraded) == ("snapshot-1", ["ranker"])


class Replica:
    """Answers when it is told to, and says how long that took."""

    def __init__(self) -> None:
        self.gates: list[asyncio.Event] = []

    async def answer(self, batch: list[str]) -> Timed[str | Exception]:
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        answers = [InvalidInput("query", "is wrong") if asked == "wrong" else asked.upper() for asked in batch]
        return Timed(answers, 0.25, 0.5)


async def asking(coalescer: Measured[str], question: str) -> tuple[str, Trace]:
    """The answer to a question of a request, whose only stage it is."""
    trace = Trace(SystemClock())
    answer = await coalescer.ask(question)
    trace.mark("encode")
    return answer, trace


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_each_request_gets_the_call_that_answered_it() -> None:
    replica = Replica()
    coalescer: Measured[str] = Measured("encoder", replica.answer, 8, 1, 100, is_remote=True)
    first = asyncio.create_task(asking(coalescer, "a"))
    await turns()
    before_s = time.perf_counter()
    later = [asyncio.create_task(asking(coalescer, question)) for question in ("b", "wrong", "c")]
    await turns()
    opened_s = time.perf_counter()
    replica.gates[0].set()
    await turns()
    replica.gates[1].set()
    answered = await asyncio.gather(first, *later, return_exceptions=True)
    assert isinstance(answered[2], InvalidInput)
    (a, of_a), (b, of_b), (c, of_c) = (one for one in answered if not isinstance(one, BaseException))
    assert (a, b, c) == ("A", "B", "C")
    calls = [trace.stages[0].calls for trace in (of_a, of_b, of_c)]
    assert [[call.batch_size for call in one] for one in calls] == [[1], [3], [3]]
    assert {(call.tier, call.waited_s, call.compute_s) for one in calls for call in one} == {("encoder", 0.25, 0.5)}
    for (call,) in calls[1:]:
        assert before_s <= call.asked_s <= opened_s <= call.sent_s <= call.answered_s
    assert of_b.timings_ms["encode.queue"] >= round((opened_s - calls[1][0].asked_s + 0.25) * 1e3, 3)
    assert of_b.timings_ms["encode.compute"] == 500


async def test_a_batch_that_waits_for_the_thread_says_for_how_long() -> None:
    gate, begun = threading.Event(), threading.Event()

    def doubled(numbers: Sequence[int]) -> list[int]:
        begun.set()
        return [2 * number for number in numbers]

    with ThreadPoolExecutor(1) as thread:
        thread.submit(gate.wait)
        came_s = time.perf_counter()
        task = asyncio.create_task(timed(thread, came_s, doubled, [1, 2]))
        await turns()
        assert not begun.is_set()
        held_s = time.perf_counter() - came_s
        gate.set()
        answers, waited_s, compute_s = await task
    assert answers == [2, 4]
    assert held_s <= waited_s <= waited_s + compute_s <= time.perf_counter() - came_s


async def test_a_tier_before_a_shard(shop: Shop, tmp_path: Path) -> None:
    """What a shard replica answers, as it travels, and what becomes of it."""
    store, state = shop.store(2), SqliteState(tmp_path / "state.sqlite3")
    host = ShardHost(1, 2, store, recall_thread(1), state)

    async def remote(batch: list[tuple[str, RecallQuery]]) -> Timed[Candidates | Exception]:
        answers: Timed[Candidates | Exception] = pickle.loads(pickle.dumps(await host.recall(batch)))
        return answers

    await host.prepare(store.current_id())
    tier, trace = Tier("shard-01", remote, TierSettings(), 30.0), Trace(SystemClock())
    query = plain_query(query=HashEncoder(DIM).encode(["bababa"], "query")[0], k=5)
    found = await asyncio.gather(*(tier.ask((store.current_id(), query)) for _ in range(2)))
    trace.mark("recall")
    await host.stop()
    await state.close()
    assert all(isinstance(candidates, Candidates) for candidates in found)
    assert [call.batch_size for call in trace.stages[0].calls] == [2, 2]
    parts_ms = [trace.timings_ms[f"recall.{part}"] for part in ("queue", "compute", "network")]
    assert min(parts_ms) > 0
    assert sum(parts_ms) <= trace.timings_ms["recall"] + 0.002  # each is rounded
