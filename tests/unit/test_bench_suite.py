"""The suite of benchmarks: which ratios it finds, what it says of two runs, and which bars are reached."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts beside each other, not a package

import pytest
import suite
from bars import BARS, MAY_LOSE, Bar, judged
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

# The run of twice the peak that is stored is from before these were written down.
NEW_FIGURES = ("n_failed", "memory_over_before")


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


def test_the_page_holds_every_ratio_and_bar_and_fetches_nothing() -> None:
    drawn = page({"serving": compare(None, RUN)}, [judged(BARS[0], None, RUN)])
    assert "last_over_this" in drawn
    assert BARS[0].what in drawn
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_the_worst_of_all_that_a_path_leads_to_counts() -> None:
    rows = {"rows": [{"name": "a", "x": 3}, {"name": "b", "x": 1}, {"name": "c", "x": None}, {"name": "d"}]}
    assert Bar("", "", "rows / * / x", least=2).figure(rows) == 1
    assert Bar("", "", "rows / * / x", most=2).figure(rows) == 3
    assert Bar("", "", "rows / a / x", least=2).figure(rows) == 3
    assert Bar("", "", "rows / z / x", least=2).figure(rows) is None
    assert Bar("", "", "rows / a / x", least=2).figure(None) is None


def test_a_bar_is_judged_by_this_run_or_else_by_what_is_stored() -> None:
    at_least, at_most = Bar("", "", "x", least=2), Bar("", "", "x", most=2)
    now, before, never = (judged(at_least, *runs) for runs in (({"x": 3}, {"x": 1}), ({"x": 3}, None), (None, None)))
    assert (now.measured, now.is_met, now.is_new) == (1, False, True)
    assert (before.measured, before.is_met, before.is_new) == (3, True, False)
    assert (never.measured, never.is_met, never.is_new) == (None, None, False)
    assert [judged(at_most, None, {"x": x}).is_met for x in (1, 2, 2.1)] == [True, True, False]
    assert [one.asked for one in (now, judged(at_most, None, None))] == [">= 2", "<= 2"]


def test_accuracy_is_held_against_what_is_stored() -> None:
    bar = Bar("", "", "ndcg")
    asked = [judged(bar, {"ndcg": 0.4}, {"ndcg": x}).is_met for x in (0.41, 0.4 - MAY_LOSE / 2, 0.4 - 2 * MAY_LOSE)]
    assert asked == [True, True, False]


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.what)
def test_every_bar_is_of_a_step_of_the_suite_and_of_what_that_stores(bar: Bar) -> None:
    assert bar.step in suite.steps(quick=False, cache=Path())
    path = suite.RESULTS / f"{bar.step}.json"
    assert bar.path.endswith(NEW_FIGURES) or bar.figure(json.loads(path.read_text())) is not None


def test_a_million_vectors_are_measured_where_the_graph_of_them_is_kept(tmp_path: Path) -> None:
    assert "100000" in suite.steps(False, tmp_path)["index"]
    (tmp_path / "hnswlib-1000000.json").touch()
    assert "1000000" in suite.steps(False, tmp_path)["index"]


def test_to_store_a_run_keeps_those_of_other_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    for folder, found in ((results, {"note": "n", "runs": {"1": "old", "2": "old"}}), (out, {"runs": {"2": "new"}})):
        folder.mkdir()
        (folder / "index.json").write_text(json.dumps(found))
    monkeypatch.setattr(suite, "RESULTS", results)
    suite.store("index", out)
    assert json.loads((results / "index.json").read_text()) == {"note": "n", "runs": {"1": "old", "2": "new"}}


def test_every_step_is_a_benchmark_that_is_there() -> None:
    folder = suite.RESULTS.parent
    commands = [command for quick in (True, False) for command in suite.steps(quick, Path()).values()]
    assert all((folder / command[0]).is_file() for command in commands)
