"""The suite of benchmarks: which ratios it finds, and what it says of two runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts beside each other, not a package

import suite
from figures import Spread
from suite import Compared, compare, page, ratios_in

RUN = {
    "machine": {"processor": "x", "cores": 2, "busy_before": 0.0, "measured_at": "2026-11-28T00:00:00"},
    "rows": [
        {
            "row": "text query",
            "clients": 32,
            "sides": {
                "peer": {
                    "requests_per_s": {"median": 60, "min": 50, "max": 70},
                    "last_over_this": {"median": 4.0, "min": 3.5, "max": 4.5},
                }
            },
        }
    ],
}


def test_it_finds_ratios_by_name_and_leaves_absolute_figures_out() -> None:
    assert dict(ratios_in(RUN)) == {"rows / text query 32 / sides / peer / last_over_this": Spread(4.0, 3.5, 4.5)}


def test_two_runs_differ_where_their_spreads_do_not_meet() -> None:
    def verdict(stored: Spread | None, measured: Spread) -> str:
        return Compared("x", stored, measured).verdict

    assert verdict(None, Spread(1, 1, 1)) == "new"
    assert verdict(Spread(4, 3, 5), Spread(5, 4.9, 6)) == "as before"
    assert verdict(Spread(4, 3, 5), Spread(6, 5.1, 7)) == "higher"
    assert verdict(Spread(4, 3, 5), Spread(2, 1, 2.9)) == "lower"
    assert [one.verdict for one in compare(RUN, RUN)] == ["as before"]
    assert [one.verdict for one in compare(None, RUN)] == ["new"]


def test_the_page_holds_every_ratio_and_fetches_nothing() -> None:
    drawn = page({"serving": compare(None, RUN)})
    assert "last_over_this" in drawn
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_every_step_is_a_benchmark_that_is_there() -> None:
    folder = suite.RESULTS.parent
    assert all(
        (folder / command[0]).is_file() for name, pair in suite.STEPS.items() if name != "index" for command in pair
    )
