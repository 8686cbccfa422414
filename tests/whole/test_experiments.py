"""Experiments: arms that are stable, even and independent; looks that may be taken any time without harm."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, kstest, norm, ttest_ind

from raysys.config import ServeSettings, parse
from raysys.errors import InvalidInput
from raysys.evaluation.experiments import (
    EXPOSURE_SCHEMA,
    Experiment,
    SequentialPlan,
    confidence_radius,
    e_value_of_counts,
    exposure_rows,
    first_exposures,
    log_likelihood_ratio,
    look,
    mismatch_p_value,
    outcomes,
)
from raysys.evaluation.shown import event_batch
from raysys.keys import point_of
from raysys.types import Event

ROOT = Path(__file__).parents[2]
PEOPLE = [f"u:{number}" for number in range(30_000)]
HALVES = Experiment("trial", {"a": 1, "b": 1})


def arms(experiment: Experiment, people: list[str] = PEOPLE) -> list[str]:
    return [experiment.arm_of(user) for user in people]


# Who sees which


def test_an_arm_is_the_same_in_another_process_and_another_release() -> None:
    """The arms stand here: people must not change sides because we changed the code."""
    code = (
        "from raysys.evaluation.experiments import Experiment\n"
        "trial = Experiment('trial', {'a': 1, 'b': 1})\n"
        "print(''.join(trial.arm_of(f'u:{number}') for number in range(40)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "".join(arms(HALVES, PEOPLE[:40])) == "bbabaabaababaababaabaaaababbbaaaaababbba"


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 0.9, "b": 0.1}, {"a": 1, "b": 2, "c": 3, "d": 94}])
def test_arms_hold_their_shares(weights: Mapping[str, float]) -> None:
    experiment = Experiment("shares", weights)
    found = arms(experiment)
    counts = [found.count(arm) for arm in weights]
    assert sum(counts) == len(PEOPLE)
    assert chisquare(counts, experiment.shares * len(PEOPLE)).pvalue > 0.001


@pytest.mark.parametrize(("one", "other"), [("x", "y"), ("exp-1", "exp-2"), ("exp-1", "exp-11"), ("a", "aa")])
def test_experiments_do_not_know_of_each_other(one: str, other: str) -> None:
    weights = {"a": 1, "b": 1, "c": 2}
    pairs = list(zip(arms(Experiment(one, weights)), arms(Experiment(other, weights)), strict=True))
    table = [[pairs.count((first, second)) for second in weights] for first in weights]
    assert chi2_contingency(table).pvalue > 0.001


def test_people_with_numbers_in_a_row_are_as_good_as_drawn() -> None:
    points = [point_of(HALVES.name, user) for user in PEOPLE]
    assert kstest(points, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(points[:-1], points[1:])[0, 1]) < 4 / math.sqrt(len(points))


def test_a_name_and_a_person_are_not_run_together() -> None:
    assert point_of("a", "bc") != point_of("ab", "c")


@given(st.text(min_size=1), st.text(), st.dictionaries(st.text(), st.floats(1e-6, 1e6), min_size=2, max_size=6))
def test_everybody_has_an_arm_and_only_ratios_matter(name: str, user: str, weights: dict[str, float]) -> None:
    if any("\ud800" <= char <= "\udfff" for char in name + user):
        return
    arm = Experiment(name, weights).arm_of(user)
    assert arm in weights
    assert Experiment(name, {key: 2 * weight for key, weight in weights.items()}).arm_of(user) == arm


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("", {"a": 1, "b": 1}, "experiment.name: is empty"),
        ("x", {"a": 1}, "1 arm; an experiment compares two or more"),
        ("x", {"a": 1, "b": 0}, "experiment.weights.b: 0 is not a number above 0"),
        ("x", {"a": 1, "b": math.nan}, "experiment.weights.b: nan"),
        ("x", {"a": 1, "b": math.inf}, "experiment.weights.b: inf"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(name: str, weights: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Experiment(name, weights)


# Exposures and outcomes


def exposed(*rows: tuple[str, str, str, float]) -> pa.RecordBatch:
    """experiment, arm, user, time in seconds."""
    values = [
        {"experiment": name, "arm": arm, "user": user, "timestamp": round(at_s * 1e6), "recommendation_id": "r"}
        for name, arm, user, at_s in rows
    ]
    return pa.RecordBatch.from_pylist(values, schema=EXPOSURE_SCHEMA)


def bought(user: str, at_s: float, kind: str = "purchase") -> Event:
    return Event(f"{user}-{at_s}", kind, user, "tea", at_s)


def test_an_exposure_is_a_row_of_each_experiment() -> None:
    other = Experiment("other", {"x": 1, "y": 3})
    rows = exposure_rows([HALVES, other], "u:ann", "r1", 12.5)
    assert rows.schema == EXPOSURE_SCHEMA
    assert rows["experiment"].to_pylist() == ["trial", "other"]
    assert rows["arm"].to_pylist() == [HALVES.arm_of("u:ann"), other.arm_of("u:ann")]
    assert {time.timestamp() for time in rows["timestamp"].to_pylist()} == {12.5}
    assert len(exposure_rows([], "u:ann", "r1", 12.5)) == 0


def test_the_first_exposure_counts_in_whatever_order_they_come() -> None:
    rows = [
        ("trial", "a", "u:1", 30.0),
        ("trial", "a", "u:1", 10.0),
        ("other", "z", "u:1", 1.0),
        ("trial", "b", "u:2", 5.0),
    ]
    for order in itertools.permutations(rows):
        found = first_exposures([exposed(*order[:2]), exposed(*order[2:])], HALVES).sort_by("user").to_pylist()
        assert [(row["user"], row["first"].timestamp(), row["arm"]) for row in found] == [
            ("u:1", 10, "a"),
            ("u:2", 5, "b"),
        ]
    assert len(first_exposures([], HALVES)) == 0
    with pytest.raises(InvalidInput, match="'c' is not in trial: a, b"):
        first_exposures([exposed(("trial", "c", "u:1", 1.0))], HALVES)


def test_what_people_do_in_their_window_counts_and_nothing_else() -> None:
    first = first_exposures(
        [exposed(*[("trial", arm, f"u:{number}", 100.0) for number, arm in enumerate("aabb")])], HALVES
    )
    events = [
        bought("u:0", 99.9),  # before
        bought("u:0", 100.0),  # at once
        bought("u:0", 109.9),
        bought("u:1", 110.0),  # too late
        bought("u:2", 105.0, "click"),
        bought("u:2", 105.0, "view"),  # worth nothing
        bought("u:9", 105.0),  # never exposed
    ]
    worth = {"purchase": 5.0, "click": 1.0}
    for cut in range(len(events) + 1):
        batches = [event_batch(events[:cut]), event_batch(events[cut:])]
        found = outcomes(first, batches, worth, HALVES, window_s=10, now_s=110)
        assert {arm: values.tolist() for arm, values in found.values.items()} == {"a": [10, 0], "b": [1, 0]}
        assert (found.n_open, found.n_mixed) == (0, 0)


def test_open_windows_wait_and_people_of_two_arms_are_left_out() -> None:
    rows = [
        ("trial", "a", "u:1", 0.0),
        ("trial", "a", "u:2", 95.0),
        ("trial", "b", "u:3", 1.0),
        ("trial", "a", "u:3", 2.0),
    ]
    first = first_exposures([exposed(*rows)], HALVES)
    events = [event_batch([bought(f"u:{number}", 3.0) for number in (1, 2, 3)])]
    found = outcomes(first, events, {"purchase": 1.0}, HALVES, window_s=10, now_s=100)
    assert {arm: values.tolist() for arm, values in found.values.items()} == {"a": [1], "b": []}
    assert (found.n_open, found.n_mixed) == (1, 1)


def test_columns_that_are_not_there_are_named() -> None:
    wrong = pa.record_batch({"user": ["u:1"], "type": ["click"]})
    with pytest.raises(InvalidInput, match="no column experiment, timestamp, arm; there are user, type"):
        first_exposures([wrong], HALVES)
    with pytest.raises(InvalidInput, match="no column kind, timestamp"):
        outcomes(first_exposures([], HALVES), [wrong], {"click": 1.0}, HALVES, 10, 100)


# Looks


def draw(rng: np.random.Generator, what: str, n: int) -> np.ndarray:
    if what == "amounts":  # one in five buys, some of them a lot
        return (rng.random(n) < 0.2) * rng.lognormal(0, 1, size=n)
    return (rng.random(n) < float(what)).astype(np.float64)


def arriving(
    rng: np.random.Generator, what: str, share: float = 0.5, treatment: str | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """People come one by one and fall into the arms; control and treatment as they stand at each of 40 looks."""
    n = 6_000
    treated = rng.random(n) < share
    values = np.where(treated, draw(rng, treatment or what, n), draw(rng, what, n))
    for end in range(150, n + 1, 150):
        yield values[:end][~treated[:end]], values[:end][treated[:end]]


def p_of_t_test(control: np.ndarray, treatment: np.ndarray) -> float:
    return float(ttest_ind(treatment, control, equal_var=False).pvalue)


@pytest.mark.parametrize(
    ("what", "share", "effect"),
    [("0.1", 0.5, 0.02), ("0.1", 0.5, 0.2), ("0.1", 0.1, 0.02), ("0.01", 0.1, 0.01), ("amounts", 0.3, 0.1)],
)
def test_equal_arms_are_told_apart_at_most_once_in_twenty_however_often_one_looks(
    what: str, share: float, effect: float
) -> None:
    rng = np.random.default_rng(1)
    plan = SequentialPlan(effect)
    wrong = sum(
        any(look(*arms, plan).verdict in ("better", "worse") for arms in arriving(rng, what, share)) for _ in range(300)
    )
    assert wrong / 300 <= 0.05


def test_the_simulation_would_notice_a_test_that_is_made_for_one_look() -> None:
    rng = np.random.default_rng(2)
    wrong = [any(p_of_t_test(*arms) < 0.05 for arms in arriving(rng, "0.1")) for _ in range(60)]
    assert np.mean(wrong) > 0.15


def test_a_small_arm_that_met_nothing_rare_yet_is_not_certain() -> None:
    """One person in 200 has an outcome: an arm of 300 may have none, and its own variance is 0 then."""
    control = (np.arange(3_000) % 100 == 0).astype(np.float64)
    nobody = np.zeros(300)
    assert look(control, nobody, SequentialPlan(0.01)).verdict == "undecided"
    assert p_of_t_test(control, nobody) < 1e-6
    assert look(control[:2_000], nobody, SequentialPlan(0.01)).verdict == "too few"


@pytest.mark.parametrize(("treatment", "verdict"), [("0.15", "better"), ("0.05", "worse"), ("0", "worse")])
def test_a_real_difference_is_found_and_mostly_before_the_end(treatment: str, verdict: str) -> None:
    rng = np.random.default_rng(3)
    plan = SequentialPlan(0.05)
    ended = []
    for _ in range(60):
        found = [look(*arms, plan).verdict for arms in arriving(rng, "0.1", treatment=treatment)]
        assert ({"better", "worse"} - {verdict}).isdisjoint(found)
        ended.append(found.index(verdict) if verdict in found else len(found))
    assert np.mean([end < 40 for end in ended]) > 0.95
    assert np.median(ended) < 20


def test_the_interval_holds_the_truth_at_all_looks_together() -> None:
    rng = np.random.default_rng(4)
    plan = SequentialPlan(0.02)
    missed = 0
    for _ in range(200):
        looks = [look(*arms, plan) for arms in arriving(rng, "0.1", share=0.3, treatment="0.13")]
        missed += any(not one.low <= 0.03 <= one.high for one in looks)
    assert missed / 200 <= 0.05
    assert looks[-1].high - looks[-1].low < (looks[2].high - looks[2].low) / 2


@given(st.floats(-5, 5), st.floats(1e-4, 10), st.floats(1e-3, 10), st.floats(0.001, 0.2))
def test_interval_and_p_value_are_of_one_mind(difference: float, variance: float, effect: float, alpha: float) -> None:
    outside = abs(difference) > float(confidence_radius(variance, effect, alpha)) * (1 + 1e-9)
    inside = abs(difference) < float(confidence_radius(variance, effect, alpha)) * (1 - 1e-9)
    log_ratio = float(log_likelihood_ratio(difference, variance, effect))
    if outside:
        assert log_ratio > math.log(1 / alpha)
    if inside:
        assert log_ratio < math.log(1 / alpha)


@given(st.floats(-3, 3), st.floats(0.01, 4), st.floats(0.05, 3))
def test_the_mixture_is_what_its_definition_says(difference: float, variance: float, effect: float) -> None:
    """Integrated numerically: the likelihood ratio of each difference, averaged over the normal mixture."""
    truths = np.linspace(-40, 40, 160_001)
    ratio = norm.pdf(difference, truths, math.sqrt(variance)) / norm.pdf(difference, 0, math.sqrt(variance))
    integral = float((ratio * norm.pdf(truths, 0, effect)).sum() * (truths[1] - truths[0]))
    assert float(log_likelihood_ratio(difference, variance, effect)) == pytest.approx(math.log(integral), abs=1e-6)


def test_too_few_people_give_no_verdict_however_large_the_difference() -> None:
    plan = SequentialPlan(0.1, min_per_arm=300)
    rng = np.random.default_rng(5)
    few, many = rng.normal(9, 1, size=299), rng.normal(0, 1, size=5_000)
    found = look(many, few, plan)
    assert (found.verdict, found.p_value, found.low, found.high) == ("too few", 1.0, -math.inf, math.inf)
    assert math.isnan(found.difference)
    assert look(many, rng.normal(9, 1, size=300), plan).verdict == "better"


def test_outcomes_that_are_all_alike_or_rest_on_a_few_give_no_verdict() -> None:
    plan = SequentialPlan(0.1)
    assert look(np.zeros(5_000), np.zeros(5_000), plan).verdict == "too few"
    whales = np.zeros(5_000)
    whales[:3] = 1_000.0
    found = look(np.zeros(5_000), whales, plan)
    assert found.verdict == "too few"
    assert found.n_telling == pytest.approx(3, rel=0.01)


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="treatment: holds an outcome that is not a finite number"):
        look(np.zeros(300), np.array([math.nan] * 300), SequentialPlan(0.1))
    for settings in ({"effect": 0}, {"effect": 0.1, "alpha": 1}, {"effect": 0.1, "min_per_arm": 1}):
        with pytest.raises(InvalidInput):
            SequentialPlan(**settings)


# Counts


def test_the_e_value_is_the_beta_binomial_of_its_definition() -> None:
    found = e_value_of_counts((7, 3), (0.25, 0.75), concentration=4)
    assert found == pytest.approx(math.exp(_log_beta(1 + 7, 3 + 3) - _log_beta(1, 3)) / (0.25**7 * 0.75**3))
    assert e_value_of_counts((0, 0), (0.5, 0.5), 10) == 1
    assert math.isfinite(e_value_of_counts((10**6, 0), (0.5, 0.5), 10))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@given(st.floats(0.5, 50), st.lists(st.integers(0, 30), min_size=3, max_size=3))
def test_one_more_count_is_a_fair_game(concentration: float, counts: list[int]) -> None:
    """Where the shares are as expected, the e-value to come is on average the one of now: what makes looking free."""
    shares = (0.2, 0.3, 0.5)
    after = 0.0
    for arm, share in enumerate(shares):
        more = [count + (place == arm) for place, count in enumerate(counts)]
        after += share * e_value_of_counts(more, shares, concentration)
    assert after == pytest.approx(e_value_of_counts(counts, shares, concentration), rel=1e-6)


def test_lost_people_are_noticed_and_chance_is_not() -> None:
    experiment = Experiment("x", {"a": 2, "b": 1, "c": 1})
    assert mismatch_p_value(experiment, {"a": 20_050, "b": 9_980, "c": 9_970}) > 0.5
    assert mismatch_p_value(experiment, {"a": 20_000, "b": 10_000, "c": 9_300}) < 0.001
    assert mismatch_p_value(experiment, {"a": 300, "b": 150}) < 0.001  # nobody in c
    assert mismatch_p_value(experiment, {}) == 1
    with pytest.raises(InvalidInput, match="'z' is not in x"):
        mismatch_p_value(experiment, {"z": 1})


def test_looking_at_the_sample_ratio_each_day_cries_wolf_at_most_once_in_a_thousand() -> None:
    rng = np.random.default_rng(6)
    alarms = 0
    for _ in range(1_000):
        days = rng.binomial(500, 0.5, size=30).cumsum()
        alarms += any(mismatch_p_value(HALVES, {"a": a, "b": 500 * day - a}) < 0.001 for day, a in enumerate(days, 1))
    assert alarms <= 3


# The page


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(block, names)
    said = capsys.readouterr().out
    assert said.startswith("the log holds no rows\n")
    assert "prefers=None" in said
    assert "verdict='better'" in said


def test_the_settings_of_the_page_are_settings() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    served = [parse(ServeSettings, yaml.safe_load(block), "the page") for block in blocks]
    assert [len(one.experiments) for one in served] == [0, 1, 1]
    assert served[0].ranking.explore.enabled
