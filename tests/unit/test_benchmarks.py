"""The parts of the benchmarks that decide what a figure means: ratios, percentiles, the load generator's parsing."""

import asyncio
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import http_load
from contests import Contest, Plan, Side, take_turns
from embedding import Round, Run, figures
from figures import Spread, ratios
from http_load import Load, complaint, parse, percentile, requests
from processes import child, pss_kib
from steady import SteadyRound, steady_lines

WORDS = ["river", "stone", "light", "forest", "engine", "letter"]


def text_load(seed: str) -> Load:
    return Load(port=1, path="/search", asks="text", clients=1, seconds=1.0, ramp_s=0.0, seed=seed)


def test_a_ratio_is_taken_within_a_round() -> None:
    # The second round ran at half speed on both sides: the ratio does not see it.
    assert ratios([40.0, 20.0, 44.0], [10.0, 5.0, 10.0]) == Spread(4.0, 4.0, 4.4)


def test_rounds_that_were_not_all_run_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.50) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) == math.inf


def test_an_answer_is_parsed_once_it_is_whole() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    assert [parse(whole[:n]) for n in range(len(whole))] == [None] * len(whole)
    assert parse(whole) == (200, b"hello")


def test_an_answer_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_only_a_good_answer_counts() -> None:
    assert complaint(200, b'{"degraded":[]}', b'"degraded":[]') is None
    assert complaint(200, b'{"degraded":["encoder"]}', b'"degraded":[]') is not None
    assert complaint(503, b'{"degraded":[]}', b'"degraded":[]') == "status 503"


def test_both_sides_get_the_same_texts_in_a_round_and_others_in_the_next() -> None:
    def first(seed: str, client: int) -> list[bytes]:
        made = requests(text_load(seed), client, WORDS)
        return [next(made) for _ in range(20)]

    assert first("round-1", 0) == first("round-1", 0)
    assert not set(first("round-1", 0)) & set(first("round-2", 0))
    assert not set(first("round-1", 0)) & set(first("round-1", 1))


async def test_a_measurement_counts_answers_and_errors() -> None:
    """A server that answers every third request with 503."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
            await reader.readexactly(length)
            asked += 1
            status = b"503 no" if asked % 3 == 0 else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")

    async def until_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    server = await asyncio.start_server(until_gone, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        load = Load(port, "/search", "text", clients=2, seconds=0.3, ramp_s=0.0, seed="s")
        measured = await http_load.measure(load, WORDS)
    assert measured.requests > 10
    assert measured.errors.keys() == {"status 503"}
    assert measured.errors["status 503"] == pytest.approx(measured.requests / 2, abs=2)
    assert 0 < measured.p50_ms <= measured.p99_ms <= measured.max_ms


async def test_a_server_that_is_not_there_is_an_error_and_no_figure() -> None:
    load = Load(1, "/search", "text", clients=1, seconds=0.1, ramp_s=0.0, seed="s")
    measured = await http_load.measure(load, WORDS)
    assert measured.requests == 0
    assert measured.p50_ms == math.inf
    assert measured.errors


class ReplayedLoad:
    """Stands in for the load generator: each port answers with its own speed, and every call is noted."""

    def __init__(self, speeds: dict[int, float]) -> None:
        self.speeds, self.asked = speeds, list[Load]()

    def measure(self, load: Load) -> http_load.Measured:
        self.asked.append(load)
        speed = self.speeds[load.port]
        return http_load.Measured(int(speed), speed, 1e3 / max(speed, 1), 2e3 / max(speed, 1), 9.0, 0.1)


PLAN = Plan(rounds=3, seconds=1.0, ramp_s=0.0, clients=(1,))
CONTEST = Contest(
    "text", (Side("peer", 1, "/search", "text"), Side("ours", 2, "/v1", "text")), 1, "requests_per_s", ">= 4"
)


def test_sides_take_turns_over_the_same_requests() -> None:
    load = ReplayedLoad({1: 50.0, 2: 200.0})
    outcome = take_turns(CONTEST, PLAN, load, ())
    assert [one.port for one in load.asked] == [1, 2] * 4  # a round to warm up, then three
    seeds = [one.seed for one in load.asked]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 4
    row = outcome.as_dict()
    assert row["sides"]["peer"]["last_over_this"] == {"median": 4.0, "min": 4.0, "max": 4.0}
    assert row["sides"]["peer"]["last_over_this_p99"]["median"] == 0.25
    assert row["sides"]["ours"]["last_over_this"] is None
    assert row["sides"]["ours"]["requests"] == 600


def test_a_side_that_never_answers_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="ours gave no good answer"):
        take_turns(CONTEST, PLAN, ReplayedLoad({1: 50.0, 2: 0.0}), ())


def test_a_child_and_what_it_started_are_gone_afterwards() -> None:
    with child(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        process.stdout.close()
    assert process.returncode is not None
    assert pss_kib(grandchild) == 0


def one_round(peer_s: float, ours_s: float) -> Round:
    """Both start up in 10 s; the second run of ours takes 11 s."""
    runs = [Run(seconds, 100.0, {}) for seconds in (10.0, 10.0, peer_s, ours_s, 11.0)]
    return Round(*runs, min_cosine=1.0)


def test_start_up_is_told_apart_from_speed() -> None:
    rows = {row.name: row for row in figures([one_round(peer_s=110.0, ours_s=60.0)], n=1_064)}
    speed = rows["without start-up, texts/s"]
    assert (speed.left.median, speed.right.median) == (10.0, 20.0)
    assert speed.ratio == Spread.of([2.0])
    assert rows["end to end, texts/s"].ratio == Spread.of([110 / 60])


def test_int8_is_compared_with_the_same_loop_and_start_up() -> None:
    with_int8 = replace(one_round(peer_s=110.0, ours_s=60.0), int8=Run(35.0, 100.0, {}))
    rows = {row.name: row for row in figures([with_int8], n=1_064)}
    assert rows["int8, without start-up, texts/s"].ratio == Spread.of([4.0])
    assert rows["without start-up, texts/s"].ratio == Spread.of([2.0])


def test_a_run_shorter_than_start_up_shows_no_speed() -> None:
    rows = {row.name for row in figures([one_round(peer_s=110.0, ours_s=9.0)], n=1_064)}
    assert "without start-up, texts/s" not in rows


def test_the_steady_state_is_compared_within_a_round() -> None:
    rounds = [SteadyRound(100.0, 98.0, 0.99, 0.97, 5.0, 0.1), SteadyRound(50.0, 48.0, 0.98, 0.96, 6.0, 0.2)]
    speed, ratio, rest = steady_lines(rounds)
    assert "loops without Ray 75.0 (50.0-100.0), the job 73.0 (48.0-98.0)" in speed
    assert ratio.startswith("ratio 0.970 (0.960-0.980)")
    assert "0.985 (0.980-0.990) and 0.965 (0.960-0.970) of the time" in rest
