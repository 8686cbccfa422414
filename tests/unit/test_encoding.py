"""The guards of the encode stage: its pace, its projected end and cost, and what the report says of it."""

import threading
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import FixedClock

from raysys.cli import with_workers
from raysys.config import BuildSettings, WorkerSettings, parse
from raysys.errors import ConfigError, OverBudget
from raysys.index.manifest import Manifest
from raysys.training import prices
from raysys.training.encoding import MIN_TEXTS_FOR_SPEED, Encoding, Turns, duration
from raysys.training.prices import MACHINES, usd_per_million
from raysys.training.report import Report, readable

NO_SHARDS = Manifest.model_construct(shards=[])

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=20)


class Paced:
    """Files that take turns, with a clock that only goes on when it is waited for, or told to."""

    def __init__(self, texts_per_s: float | None) -> None:
        self.clock = FixedClock(0.0)
        self.turns = Turns(texts_per_s, self.clock, self.go_on)

    def go_on(self, seconds: float) -> None:
        assert seconds > 0
        self.clock.at_s += seconds

    def begins_s(self, sizes: list[int], work_s: list[float]) -> list[float]:
        begins = []
        for size, seconds in zip(sizes, work_s, strict=True):
            with self.turns(size):
                begins.append(self.clock.at_s)
                self.clock.at_s += seconds
        return begins


@given(SIZES, st.floats(0.5, 100), st.data())
def test_no_more_texts_are_begun_than_the_rate_allows(sizes: list[int], rate: float, data: st.DataObject) -> None:
    work_s = data.draw(st.lists(st.floats(0, 3), min_size=len(sizes), max_size=len(sizes)))
    begins_s = Paced(rate).begins_s(sizes, work_s)
    for first in range(len(sizes)):
        for last in range(first + 1, len(sizes)):
            assert sum(sizes[first:last]) <= rate * (begins_s[last] - begins_s[first]) + 1e-6


@given(SIZES)
def test_slow_work_is_not_slowed_further(sizes: list[int]) -> None:
    work_s = [float(size) for size in sizes]  # one text a second, where ten are allowed
    for rate in (10.0, None):
        begins_s = Paced(rate).begins_s(sizes, work_s)
        assert begins_s == pytest.approx([0.0, *accumulate(work_s)][: len(sizes)])
        assert all(early < late for early, late in pairwise(begins_s))


def test_only_one_thread_has_its_turn() -> None:
    turns, inside, most = Turns(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns(1):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)


def test_a_turn_is_given_back_after_an_error() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns(1):
        raise ValueError("broken")
    with turns(1):
        pass


class Stage:
    """An encode stage told file by file. spent_s: of the build before it."""

    def __init__(self, todo: int, encoders: int = 1, spent_s: float = 0.0, **workers: Any) -> None:
        self.clock = FixedClock(1_000.0)
        self.encoding = Encoding(todo, encoders, WorkerSettings(**workers), spent_s, self.clock)

    def file(self, at_s: float, texts: int, seconds: float, late_s: float = 0.0) -> Encoding:
        """A file comes in so long after the beginning of the stage, on which an encoder worked for ``seconds``.

        late_s: since it was encoded; below 0 where the worker's clock is ahead.
        """
        self.clock.at_s = 1_000.0 + at_s
        begun_s = self.clock.now_s() - seconds - late_s
        self.encoding.add({"texts": texts, "seconds": seconds, "begun_s": begun_s})
        return self.encoding


def test_start_up_is_told_from_steady_work() -> None:
    stage = Stage(4_000, encoders=2)
    stage.file(30.0, 1_000, seconds=10.0)  # begun at 20 s
    stage.file(31.0, 1_000, seconds=10.0)
    stage.file(40.0, 1_000, seconds=10.0)
    encoding = stage.file(40.0, 1_000, seconds=8.0)
    figures = encoding.figures()
    assert (figures["start_up_s"], figures["steady_s"]) == (20.0, 20.0)
    assert figures["texts_per_s"] == 200.0
    assert (figures["unit"], figures["texts_per_unit_s"]) == ("core", 100.0)
    assert figures["busy_share"] == pytest.approx(38 / 40)
    assert figures["usd_up_to_here"] is None


def test_a_late_message_or_a_wrong_clock_does_not_hide_time() -> None:
    assert Stage(100).file(30.0, 100, seconds=5.0, late_s=10.0).start_up_s == 15.0
    assert Stage(100).file(30.0, 100, seconds=5.0, late_s=-1e6).start_up_s == 25.0
    assert Stage(100).file(30.0, 100, seconds=5.0, late_s=1e6).start_up_s == 0.0


def test_half_an_accelerator_counts_as_half() -> None:
    stage = Stage(2_000, encoders=4, gpus_per_encoder=0.5)
    figures = stage.file(10.0, 2_000, seconds=10.0).figures()
    assert (figures["unit"], figures["texts_per_unit_s"]) == ("accelerator", 100.0)
    assert figures["usd_per_million_texts"].keys() == {"g6.2xlarge"}


def test_a_few_texts_say_no_speed() -> None:
    few = MIN_TEXTS_FOR_SPEED - 1
    figures = Stage(few).file(10.0, few, seconds=5.0).figures()
    assert (figures["texts_per_s"], figures["texts_per_unit_s"], figures["usd_per_million_texts"]) == (None, None, {})


def test_nothing_to_encode_has_no_speed() -> None:
    figures = Stage(0).encoding.figures()
    assert (figures["steady_s"], figures["texts_per_s"], figures["busy_share"]) == (0.0, None, None)


def test_the_end_is_projected_by_all_encoders_before_all_have_delivered() -> None:
    """One file of four that are in hand has come: four times as many texts are nearly done."""
    stage = Stage(16_000, encoders=4)
    assert stage.file(10.0, 1_000, seconds=10.0).left_s() == pytest.approx(15_000 / 400)
    for n in range(1, 8):
        stage.file(10.0 + 2.5 * n, 1_000, seconds=10.0)
    assert stage.encoding.left_s() == pytest.approx(8_000 / (8_000 / 27.5))  # from here on as it was observed


def test_the_end_is_not_projected_faster_than_the_limit() -> None:
    stage = Stage(1_100, limit_rate=10.0)
    assert stage.file(1.0, 100, seconds=0.1).left_s() == pytest.approx(100.0)


def test_a_build_that_would_cost_too_much_is_stopped_early() -> None:
    stage = Stage(100_000, spent_s=100.0, usd_per_hour=36.0, max_cost=5.0)  # a cent a second
    stage.file(20.0, 1_000, seconds=20.0)  # projected at 21 dollars; too early to say
    with pytest.raises(OverBudget) as caught:
        stage.file(40.0, 1_000, seconds=20.0)
    message = str(caught.value)
    # 100 s before, and 100,000 texts at 50 a second
    assert "about $21.00" in message
    assert "max_cost is $5.00" in message
    assert "2,000 of 100,000 texts, which are kept" in message
    assert "$36.00 an hour" in message
    assert "--max-cost 23.10" in message


def test_a_tenth_of_the_texts_is_enough_to_project() -> None:
    stage = Stage(1_000, usd_per_hour=3_600.0, max_cost=5.0)
    stage.file(0.9, 90, seconds=0.9)
    with pytest.raises(OverBudget, match=r"about \$10\.00"):
        stage.file(1.0, 10, seconds=0.1)


def test_a_build_within_its_budget_goes_on() -> None:
    stage = Stage(10_000, spent_s=100.0, usd_per_hour=36.0, max_cost=2.5)
    for n in range(1, 11):
        encoding = stage.file(10.0 * n, 1_000, seconds=10.0)
    assert encoding.cost_usd() == pytest.approx(2.0)
    assert encoding.figures()["usd_up_to_here"] == pytest.approx(2.0)


def test_what_is_reached_stops_it_whatever_was_projected() -> None:
    stage = Stage(100_000, spent_s=1_000.0, usd_per_hour=36.0, max_cost=10.0)
    with pytest.raises(OverBudget, match=r"has cost \$10\.10 by now"):
        stage.file(10.0, 1_000, seconds=10.0)


def test_who_has_every_text_is_not_stopped() -> None:
    assert Stage(1_000, spent_s=1e6, usd_per_hour=36.0, max_cost=1.0).file(10.0, 1_000, seconds=1.0).is_done


def test_the_progress_line_says_time_and_cost() -> None:
    line = Stage(10_000, usd_per_hour=36.0).file(10.0, 1_000, seconds=10.0).text()
    assert line == (
        "encoded 1,000 of 10,000 texts in 10 s, start-up included; about 90 s to go; $0.10 up to now, about $1.00 then"
    )
    assert Stage(10_000).file(10.0, 1_000, seconds=10.0).text().endswith("about 90 s to go")
    assert Stage(1_000).file(10.0, 1_000, seconds=10.0).text().endswith("texts in 10 s, start-up included")


def test_durations_are_in_the_unit_that_people_would_use() -> None:
    assert [duration(s) for s in (3.2, 119.0, 600.0, 86_400.0)] == ["3 s", "119 s", "10 min", "24.0 h"]


def test_a_limit_without_a_price_is_refused_with_what_to_add() -> None:
    raw = {"catalog": {"path": "items.csv"}, "workers": {"max_cost": 5}}
    with pytest.raises(ConfigError, match="usd_per_hour"):
        parse(BuildSettings, raw, "test")
    settings = parse(BuildSettings, {"catalog": {"path": "items.csv"}, "workers": {"texts_per_file": 7}}, "test")
    with pytest.raises(ConfigError, match="--usd-per-hour"):
        with_workers(settings, {"max_cost": 5.0, "limit_rate": None})
    with pytest.raises(ConfigError, match="limit_rate"):
        with_workers(settings, {"limit_rate": -1.0})
    workers = with_workers(settings, {"max_cost": 5.0, "usd_per_hour": 2.0, "limit_rate": None}).workers
    assert (workers.max_cost, workers.usd_per_hour, workers.limit_rate, workers.texts_per_file) == (5.0, 2.0, None, 7)


def test_the_machines_of_the_cluster_are_in_the_table() -> None:
    cluster = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text(encoding="utf-8"))
    for name, node in cluster["available_node_types"].items():
        machine, resources = MACHINES[node["node_config"]["InstanceType"]], node["resources"]
        assert machine.accelerators == resources.get("GPU", 0), name
        assert resources["CPU"] in (0, machine.cores), name


def test_dollars_by_hand_and_by_a_price_of_ones_own() -> None:
    # 8 cores x 10 texts x 3,600 s = 288,000 texts an hour
    assert usd_per_million(10.0, "core", WorkerSettings())["r6i.2xlarge"] == pytest.approx(0.504 / 0.288)
    cheaper = WorkerSettings(prices={"r6i.2xlarge": 0.2})
    assert usd_per_million(10.0, "core", cheaper)["r6i.2xlarge"] == pytest.approx(0.2 / 0.288, abs=1e-4)
    assert usd_per_million(1_000.0, "accelerator", WorkerSettings()) == {
        "g6.2xlarge": pytest.approx(0.9776 / 3.6, abs=1e-4)
    }


def test_a_price_of_a_machine_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x9\.huge.*r6i\.2xlarge"):
        prices.check({"x9.huge": 1.0})


def test_tokens_that_were_not_encoded_are_told_by_those_that_were() -> None:
    report = Report(FixedClock())
    report.add({"unchanged": 900, "unchanged_chars": 30_000, "items": 1_000})
    assert report.as_dict()["unchanged_tokens_about"] is None
    assert "900 texts of 30,000 characters\n" in "\n".join(readable(report.as_dict(), NO_SHARDS)) + "\n"
    report.add_encoded({"texts": 100, "tokens": 500, "chars": 2_000, "bytes": 1, "begun_s": 0.0, "seconds": 1.0})
    assert report.as_dict()["unchanged_tokens_about"] == 7_500
    assert "about 7,500 tokens" in "\n".join(readable(report.as_dict(), NO_SHARDS))


def test_the_report_says_what_encoding_costs() -> None:
    report = Report(FixedClock())
    report.add({"items": 2_000})
    report.encoding = Stage(2_000, usd_per_hour=36.0).file(30.0, 2_000, seconds=20.0).figures()
    text = "\n".join(readable(report.as_dict(), NO_SHARDS))
    assert "start-up 10.0 s, then 20.0 s of 1 encoder(s): 100 texts/s, 100.0 a core-second" in text
    assert "an estimate by list prices" in text
    assert "r6i.2xlarge $0.17" in text
    assert "$0.30 up to the last text" in text
