"""Off-policy estimates: right on a bandit whose answer is known, silent where the log cannot answer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.impressions import IMPRESSION_SCHEMA, ImpressionFolder
from raysys.errors import InvalidInput
from raysys.evaluation.off_policy import (
    Limits,
    Logged,
    PolicyValue,
    Predicted,
    concatenate,
    doubly_robust,
    effective_size,
    ips,
    snips,
)
from raysys.evaluation.shown import event_batch, read_rewards, read_shown
from raysys.types import Event

N_CONTEXTS, N_ACTIONS = 4, 5
QUICK = Limits(resamples=300)
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def policy(rng: np.random.Generator, sharpness: float) -> np.ndarray:
    """[contexts, actions]: chances that differ, none of them tiny."""
    scores = np.exp(sharpness * rng.normal(size=(N_CONTEXTS, N_ACTIONS)))
    return 0.9 * scores / scores.sum(axis=1, keepdims=True) + 0.1 / N_ACTIONS


@dataclass
class Bandit:
    """People come a few times, some of them happier than others with whatever they see."""

    world: int = 6
    n_users: int = 400
    visits: int = 3

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.world)
        self.old, self.new = policy(rng, 0.8), policy(rng, 0.8)
        self.rewards = rng.normal(1, 1, size=(N_CONTEXTS, N_ACTIONS))
        self.truth = float((self.new * self.rewards).sum(axis=1).mean())

    def log(self, seed: int, model_error: float = 0.3) -> tuple[Logged, Predicted]:
        """What the old policy saw, and a model that knows the reward of each pair but for an error."""
        rng = np.random.default_rng(seed)
        n = self.n_users * self.visits
        users = np.repeat(np.arange(self.n_users, dtype=np.uint64), self.visits)
        context = rng.integers(N_CONTEXTS, size=n)
        action = (self.old.cumsum(axis=1)[context] < rng.random((n, 1))).sum(axis=1)
        mood = np.repeat(rng.normal(0, 0.5, size=self.n_users), self.visits)
        rewards = self.rewards[context, action] + mood + rng.normal(0, 0.3, size=n)
        model = self.rewards + np.random.default_rng(1).normal(0, model_error, size=self.rewards.shape)
        predicted = Predicted(model[context, action], (self.new * model).sum(axis=1)[context])
        return Logged(users, self.old[context, action], self.new[context, action], rewards), predicted


def means(values: Sequence[PolicyValue]) -> np.ndarray:
    assert all(value.value is not None for value in values), [value.refused for value in values]
    return np.array([value.value.mean for value in values if value.value])


def error_of(found: np.ndarray, truth: float) -> float:
    """How many standard errors the mean of many estimates is from the truth."""
    return abs(found.mean() - truth) / (found.std(ddof=1) / math.sqrt(len(found)))


@pytest.fixture(scope="module")
def many() -> dict[str, list[PolicyValue]]:
    bandit = Bandit()
    found: dict[str, list[PolicyValue]] = {"ips": [], "snips": [], "doubly_robust": []}
    for seed in range(200):
        logged, predicted = bandit.log(seed)
        rng = np.random.default_rng(seed)
        found["ips"].append(ips(logged, rng, QUICK))
        found["snips"].append(snips(logged, rng, QUICK))
        found["doubly_robust"].append(doubly_robust(logged, predicted, rng, QUICK))
    return found


# Right on average, and as sure as it says


@pytest.mark.parametrize("method", ["ips", "snips", "doubly_robust"])
def test_estimates_centre_on_the_truth_and_intervals_hold_it_19_times_in_20(
    many: dict[str, list[PolicyValue]], method: str
) -> None:
    truth = Bandit().truth
    assert error_of(means(many[method]), truth) < 3.5
    held = [value.value.low <= truth <= value.value.high for value in many[method] if value.value]
    assert 0.89 < np.mean(held) < 0.99  # 200 logs: a standard error of .016


def test_the_rewards_of_the_log_alone_are_far_from_the_truth() -> None:
    bandit = Bandit()
    naive = np.array([bandit.log(seed)[0].rewards.mean() for seed in range(100)])
    assert error_of(naive, bandit.truth) > 20


def test_each_method_is_surer_than_the_one_before(many: dict[str, list[PolicyValue]]) -> None:
    spread = {method: means(values).std() for method, values in many.items()}
    assert spread["doubly_robust"] < 0.9 * spread["snips"] < 0.9 * spread["ips"]
    for method, values in many.items():
        said = np.mean([value.value.standard_error for value in values if value.value])
        assert said == pytest.approx(spread[method], rel=0.1)


def test_people_are_resampled_not_rows() -> None:
    """Each row once more tells nothing new, and the interval must not shrink."""
    logged, _ = Bandit().log(1)
    once = ips(logged, np.random.default_rng(2), QUICK)
    twice = ips(concatenate([logged, logged]), np.random.default_rng(2), QUICK)
    assert once.value is not None
    assert twice.value is not None
    assert twice.value.low == pytest.approx(once.value.low)
    assert twice.value.high == pytest.approx(once.value.high)
    assert twice.weighting.effective_users == pytest.approx(once.weighting.effective_users)
    assert twice.weighting.effective_rows == pytest.approx(2 * once.weighting.effective_rows)


def test_doubly_robust_needs_only_one_of_its_two_to_be_right() -> None:
    bandit = Bandit(n_users=400, visits=1)
    bent, saved, nonsense = [], [], []
    for seed in range(100):
        logged, exact = bandit.log(seed, model_error=0)
        rng = np.random.default_rng(seed)
        too_low = replace(logged, propensities=0.95 * logged.propensities)
        bent.append(ips(too_low, rng, QUICK))
        saved.append(doubly_robust(too_low, exact, rng, QUICK))
        threes = np.full(len(logged), 3.0)
        nonsense.append(doubly_robust(logged, Predicted(threes, threes), rng, QUICK))
    assert error_of(means(bent), bandit.truth) > 5  # wrong propensities do harm without a model
    assert error_of(means(saved), bandit.truth) < 3.5
    assert error_of(means(nonsense), bandit.truth) < 3.5


# Identities


def even(n: int, propensity: float = 0.5, target: float = 0.5) -> Logged:
    """A row a person; every other one earns 1."""
    rewards = (np.arange(n) % 2).astype(np.float64)
    return Logged(np.arange(n, dtype=np.uint64), np.full(n, propensity), np.full(n, target), rewards)


def test_worked_by_hand() -> None:
    """Half of the rows weigh 1.6 and earn 3, half weigh 0.4 and earn 1."""
    n = 1_000
    half = np.arange(n) % 2 == 0
    logged = Logged(np.arange(n, dtype=np.uint64), np.full(n, 0.5), np.where(half, 0.8, 0.2), np.where(half, 3.0, 1.0))
    rng = np.random.default_rng(0)
    whole = ips(logged, rng)
    assert whole.value is not None
    assert whole.value.mean == pytest.approx((1.6 * 3 + 0.4 * 1) / 2)
    assert whole.weighting.effective_rows == pytest.approx(n * 1 / ((1.6**2 + 0.4**2) / 2))
    assert whole.weighting.mean_weight == pytest.approx(1)
    assert whole.weighting.clipped_rows == whole.weighting.clipped_weight == 0

    cut = Limits(max_weight=1.5)
    assert ips(logged, rng, cut).value.mean == pytest.approx((1.5 * 3 + 0.4 * 1) / 2)
    assert snips(logged, rng, cut).value.mean == pytest.approx((1.5 * 3 + 0.4 * 1) / 1.9)
    of_two = Predicted(np.full(n, 2.0), np.full(n, 2.5))
    assert doubly_robust(logged, of_two, rng, cut).value.mean == pytest.approx(2.5 + (1.5 * 1 - 0.4 * 1) / 2)
    weighting = snips(logged, rng, cut).weighting
    assert weighting.clipped_rows == 0.5
    assert weighting.clipped_weight == pytest.approx(0.1 / 2)
    assert weighting.mean_weight == pytest.approx(1)  # of what was not cut


def test_the_old_policy_itself_is_worth_the_mean_reward_and_every_row_counts() -> None:
    logged, _ = Bandit().log(3)
    same = replace(logged, target=logged.propensities)
    for method in (ips, snips):
        found = method(same, np.random.default_rng(0))
        assert found.value.mean == pytest.approx(logged.rewards.mean())
        assert found.weighting.effective_rows == pytest.approx(len(logged))
        assert found.weighting.effective_users == pytest.approx(400)


@given(st.floats(-5, 5))
def test_a_constant_added_to_every_reward_is_added_to_snips(constant: float) -> None:
    logged, _ = Bandit(n_users=200).log(4)
    shifted = replace(logged, rewards=logged.rewards + constant)
    before, after = (snips(log, np.random.default_rng(0), QUICK).value for log in (logged, shifted))
    assert after.mean == pytest.approx(before.mean + constant)
    assert after.low == pytest.approx(before.low + constant)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_effective_size_is_between_one_and_all_and_knows_no_scale(weights: list[float], scale: float) -> None:
    size = effective_size(np.array(weights))
    assert 1 - 1e-9 <= size <= len(weights) + 1e-9
    assert effective_size(scale * np.array(weights)) == pytest.approx(size)
    assert effective_size(np.append(weights, 0.0)) == pytest.approx(size)


def test_estimates_are_repeatable() -> None:
    logged, predicted = Bandit().log(5)
    first, second = (doubly_robust(logged, predicted, np.random.default_rng(9), QUICK) for _ in range(2))
    assert first == second


# Refusals


def refusal(logged: Logged, limits: Limits = QUICK) -> str:
    """Why IPS does not answer; the others must not either, for the same reason."""
    rng = np.random.default_rng(0)
    zeros = np.zeros(len(logged))
    found = [ips(logged, rng, limits), snips(logged, rng, limits)]
    found.append(doubly_robust(logged, Predicted(zeros, zeros), rng, limits))
    assert [value.value for value in found] == [None] * 3
    assert len({value.refused for value in found}) == 1
    return str(found[0].refused)


def changed(column: str, at: int, value: float) -> Logged:
    logged = even(1_000)
    values = getattr(logged, column).copy()
    values[at] = value
    return replace(logged, **{column: values})


@pytest.mark.parametrize(
    ("logged", "why"),
    [
        (concatenate([]), "the log holds no rows"),
        (even(1_000, propensity=math.nan), "1000 of 1000 rows have no propensity"),
        (changed("propensities", 7, math.nan), "1 of 1000 rows have no propensity"),
        (changed("propensities", 7, 0.0), "1 of 1000 propensities are not above 0 and up to 1, the first: 0.0"),
        (changed("propensities", 7, 1.5), "the first: 1.5"),
        (changed("propensities", 7, -0.1), "the first: -0.1"),
        (changed("propensities", 7, math.inf), "the first: inf"),
        (even(1_000, propensity=1.0), "never explored"),
        (replace(even(1_000), rewards=np.zeros(1_000)), "every reward is 0.0"),
        (even(99), "worth 99.0 rows of 99.0 people, and 100 of each are wanted"),
        (even(1_000, target=0.0), "worth 0.0 rows"),
        (replace(even(1_000), users=np.zeros(1_000, np.uint64)), "worth 1000.0 rows of 1.0 people"),
        (even(1_000, target=0.3), "the mean weight is 0.600 where 1 is expected"),
        (even(1_000, target=0.9), "the mean weight is 1.800 where 1 is expected"),
    ],
)
def test_a_log_that_cannot_answer_is_told_apart_from_a_bad_policy(logged: Logged, why: str) -> None:
    assert why in refusal(logged)


def test_one_row_with_nearly_all_the_weight_is_no_evidence() -> None:
    logged = even(5_000)
    propensities = np.where(np.arange(5_000) == 1, 1e-7, 0.5)
    assert "worth 1.0 rows of 1.0 people" in refusal(replace(logged, propensities=propensities))


def test_cutting_most_of_the_weight_is_refused_however_many_rows_there_are() -> None:
    n = 10_000
    rare = np.arange(n) % 5 == 0
    logged = replace(even(n), propensities=np.where(rare, 0.125, 0.5), target=np.where(rare, 0.5, 0.125))
    assert ips(logged, np.random.default_rng(0)).value is not None
    assert "more than 10%: raise max_weight" in refusal(logged, Limits(max_weight=2.0))


def test_what_the_old_policy_never_showed_is_noticed() -> None:
    """The new one prefers an arm that has no chance in the log; the rest of it looks perfectly healthy."""
    bandit = Bandit(n_users=2_000)
    logged, _ = bandit.log(6)
    away = replace(logged, target=0.7 * logged.target)  # the other 0.3 go to what is not in the log
    assert ips(logged, np.random.default_rng(0), QUICK).value is not None
    assert "no chance to show" in refusal(away)


def test_healthy_logs_are_hardly_ever_refused(many: dict[str, list[PolicyValue]]) -> None:
    assert not any(value.refused for values in many.values() for value in values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: changed("target", 3, 1.2), r"target\[3\]: 1.2 is no chance"),
        (lambda: changed("target", 3, math.nan), r"target\[3\]: nan is not a finite number"),
        (lambda: changed("rewards", 3, math.inf), r"rewards\[3\]: inf is not a finite number"),
        (lambda: replace(even(10), rewards=np.zeros(9)), r"rewards: has the shape \(9,\) for 10 rows"),
        (lambda: Predicted(np.zeros(3), np.array([0, math.nan, 0])), r"of_target\[1\]"),
        (lambda: Limits(max_weight=0), "max_weight: 0 would leave no weight"),
        (lambda: Limits(min_effective=3), "min_effective: 3 is below 10"),
        (
            lambda: doubly_robust(even(9), Predicted(np.zeros(8), np.zeros(8)), np.random.default_rng(0)),
            r"predicted: has the shape \(8,\) for 9 rows",
        ),
    ],
)
def test_what_a_caller_got_wrong_is_an_error(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


# The log joined with events


def impressions(
    lists: Sequence[tuple[str, str | None, Sequence[str], Sequence[float | None]]], at: datetime
) -> pa.Table:
    """Rows of these lists: recommendation id, user, items, propensities."""
    rows = [
        {
            "recommendation_id": recommendation_id,
            "timestamp": at,
            "route": "recommendations",
            "user": user,
            "snapshot_id": "s",
            "profile_version": 0,
            "position": place,
            "item_id": item_id,
            "score": 1.0 / place,
            "sources": [],
            "propensity": propensity,
            "degraded": [],
        }
        for recommendation_id, user, items, propensities in lists
        for place, (item_id, propensity) in enumerate(zip(items, propensities, strict=True), 1)
    ]
    return pa.Table.from_pylist(rows, schema=IMPRESSION_SCHEMA)


def event(number: int, kind: str, item_id: str | None, recommendation_id: str | None) -> Event:
    return Event(f"e{number}", kind, "u:ann", item_id, NOON.timestamp(), recommendation_id=recommendation_id)


@given(st.data())
def test_every_row_gets_what_its_own_list_and_item_earned(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    ids, kinds = st.sampled_from(["a", "b", "ab", "ü/1", ""]), st.sampled_from(["click", "purchase", "hide", "view"])
    optional = st.one_of(st.none(), ids)
    told = data.draw(st.lists(st.tuples(kinds, optional, optional), max_size=30))
    worth = {"click": 1.0, "purchase": 5.0, "hide": -2.0}
    events = [event(number, *parts) for number, parts in enumerate(told)]
    cut = data.draw(st.integers(0, len(events)))
    rewards = read_rewards([event_batch(events[:cut]), event_batch(events[cut:])], worth)

    folder = ImpressionFolder(tmp_path_factory.mktemp("shown"))
    everything = ["a", "b", "ab", "ü/1", ""]
    lists = [(list_id, None, everything, [0.5] * len(everything)) for list_id in everything]
    folder.write(impressions(lists[:2], NOON), date(2026, 11, 25), "one")
    folder.write(impressions(lists[2:], NOON), date(2026, 11, 26), "two")
    earned = {(kind, item, list_id) for kind, item, list_id in told if kind in worth}
    n_rows = 0
    for shown in read_shown(folder.folder, rewards):
        for row, reward in zip(shown.rows.to_pylist(), shown.rewards, strict=True):
            n_rows += 1
            pair = (row["item_id"], row["recommendation_id"])
            assert reward == sum(worth[kind] for kind, *rest in earned if tuple(rest) == pair)
    assert n_rows == 25


def test_people_are_told_apart_and_lists_for_nobody_each_stand_alone(tmp_path: Path) -> None:
    lists = [("r1", "u:ann", "xy", [0.5, None]), ("r2", None, "xy", [0.25, 1]), ("r3", None, "x", [0.5])]
    ImpressionFolder(tmp_path).write(impressions([*lists, ("r4", "u:ann", "z", [0.5])], NOON), NOON.date(), "f")
    (shown,) = read_shown(tmp_path, read_rewards([], {"click": 1.0}))
    users = dict(zip(shown.rows["recommendation_id"].to_pylist(), shown.users.tolist(), strict=True))
    assert users["r1"] == users["r4"]
    assert len(set(users.values())) == 3
    assert shown.propensities[:1].tolist() == [0.5]
    assert math.isnan(shown.propensities[1])
    assert shown.rewards.tolist() == [0.0] * 6
    (explored,) = read_shown(tmp_path, read_rewards([], {}), pads.field("propensity").is_valid())
    assert explored.propensities.tolist() == [0.5, 0.25, 1, 0.5, 0.5]


def test_days_can_be_chosen_and_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    for day in (24, 25, 26):
        rows = impressions([(f"r{day}", "u:ann", "x", [0.5])], NOON)
        ImpressionFolder(tmp_path).write(rows, date(2026, 11, day), "f")
    rewards = read_rewards([], {"click": 1.0})
    found = read_shown(tmp_path, rewards, pads.field("day") <= "2026-11-25")
    assert sorted(shown.rows["recommendation_id"][0].as_py() for shown in found) == ["r24", "r25"]
    assert list(read_shown(tmp_path / "absent", rewards)) == []


def test_events_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(InvalidInput, match="events: no column kind; there are recommendation_id, item_id, type"):
        read_rewards([pa.record_batch({name: ["x"] for name in ("recommendation_id", "item_id", "type")})], {"x": 1})
    with pytest.raises(InvalidInput, match=r"worth\.click: nan"):
        read_rewards([], {"click": math.nan})


def test_the_log_is_read_a_piece_at_a_time(tmp_path: Path) -> None:
    n_files, n_rows = 24, 20_000
    one = impressions([(f"r{number}", f"u:{number}", "abcdefghij", [0.1] * 10) for number in range(2_000)], NOON)
    for number in range(n_files):
        ImpressionFolder(tmp_path).write(one, (NOON + timedelta(days=number)).date(), f"f{number}")
    rewards = read_rewards([event_batch([event(1, "click", "c", "r7")])], {"click": 1.0})
    before, most, seen, earned = pa.total_allocated_bytes(), 0, 0, 0.0
    for shown in read_shown(tmp_path, rewards):
        most = max(most, pa.total_allocated_bytes() - before)
        seen, earned = seen + len(shown.rows), earned + shown.rewards.sum()
    assert seen == n_files * n_rows
    assert earned == n_files
    assert most < one.nbytes * n_files / 3


def test_from_folder_to_verdict(tmp_path: Path) -> None:
    """A bandit's log goes through files and events, and comes out as the estimate of its arrays."""
    bandit = Bandit(n_users=500, visits=2)
    logged, _ = bandit.log(8)
    clicked = logged.rewards > 1
    lists = [(f"r{row}", f"u:{user}", [f"i{row}"], [logged.propensities[row]]) for row, user in enumerate(logged.users)]
    folder = ImpressionFolder(tmp_path)
    folder.write(impressions(lists[:600], NOON), NOON.date(), "a")
    folder.write(impressions(lists[600:], NOON), NOON.date(), "b")
    clicks = [event(row, "click", f"i{row}", f"r{row}") for row in np.flatnonzero(clicked)]
    target_of = {f"r{row}": target for row, target in enumerate(logged.target)}
    parts = []
    for shown in read_shown(tmp_path, read_rewards([event_batch(clicks)], {"click": 1.0})):
        target = np.array([target_of[list_id] for list_id in shown.rows["recommendation_id"].to_pylist()])
        parts.append(Logged(shown.users, shown.propensities, target, shown.rewards))
    found = snips(concatenate(parts), np.random.default_rng(0))
    wanted = snips(replace(logged, rewards=clicked.astype(np.float64)), np.random.default_rng(0))
    assert found.value is not None
    assert (found.n_rows, found.n_users) == (1_000, 500)
    assert found.value.mean == pytest.approx(wanted.value.mean)
    assert found.value.standard_error == pytest.approx(wanted.value.standard_error, rel=0.1)


def test_todays_log_which_explores_nothing_is_refused(tmp_path: Path) -> None:
    ImpressionFolder(tmp_path).write(impressions([("r1", "u:ann", "xy", [None, None])], NOON), NOON.date(), "f")
    (shown,) = read_shown(tmp_path, read_rewards([event_batch([event(1, "click", "x", "r1")])], {"click": 1.0}))
    logged = Logged(shown.users, shown.propensities, np.ones(2), shown.rewards)
    assert "2 of 2 rows have no propensity" in refusal(logged)
