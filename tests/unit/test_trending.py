"""What is trending: counts that decay, whatever the order of events, and that nobody can drive up alone."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.recall import trending
from raysys.recall.trending import FAST_HALF_LIFE_S, KEEP_S, SLOW_HALF_LIFE_S, Trends

NOW_S = 1_700_000_000.0  # 13 minutes and 20 seconds after a full hour
HOUR_S = 3_600.0
DAY_S = 86_400.0

Event = tuple[int, str, float, float]  # key, user, weight, at_s


def trends_of(*events: Event) -> Trends:
    trends = Trends()
    for event in events:
        trends.add(*event)
    return trends


def scores_of(trends: Trends, now_s: float = NOW_S) -> dict[int, float]:
    keys, scores = trends.scores(now_s)
    assert keys.dtype == np.uint64
    assert scores.dtype == np.float32
    return dict(zip(keys.tolist(), scores.tolist(), strict=True))


def score(*worth: tuple[float, float]) -> float:
    """The formula, from the (weight, age in seconds) of what counts."""
    fast = sum(weight * 0.5 ** (age_s / FAST_HALF_LIFE_S) for weight, age_s in worth)
    slow = sum(weight * 0.5 ** (age_s / SLOW_HALF_LIFE_S) for weight, age_s in worth)
    return (fast / (fast + 10) + slow / (slow + 100)) / 2


def test_nothing_is_trending_at_first() -> None:
    assert scores_of(Trends()) == {}
    assert len(Trends()) == 0


def test_a_score_is_that_of_the_formula_and_decays() -> None:
    trends = trends_of((1, "u:a", 1.0, NOW_S), (1, "u:b", 3.0, NOW_S - 600), (2, "u:a", 1.0, NOW_S - 7_200))
    for later_s in (0, 1, 1_800, 43_200, 100_000):
        expected = {1: score((1, later_s), (3, later_s + 600)), 2: score((1, later_s + 7_200))}
        assert scores_of(trends, NOW_S + later_s) == pytest.approx(expected, rel=1e-5)


def test_ten_views_now_are_half_of_the_first_part_and_a_hundred_of_the_second() -> None:
    ten = scores_of(trends_of(*((1, f"u:{n}", 1.0, NOW_S) for n in range(10))))
    assert ten[1] == pytest.approx((1 / 2 + 10 / 110) / 2, rel=1e-6)
    hundred = scores_of(trends_of(*((1, f"u:{n}", 1.0, NOW_S) for n in range(100))))
    assert hundred[1] == pytest.approx((100 / 110 + 1 / 2) / 2, rel=1e-6)


def test_scores_stay_below_one() -> None:
    trends = trends_of(*((1, f"u:{n}", 3.0, NOW_S) for n in range(20_000)))
    assert 0.99 < scores_of(trends)[1] <= 1


def test_what_just_began_is_ahead_of_as_much_from_this_morning() -> None:
    events = [(1, f"u:{n}", 1.0, NOW_S - 60) for n in range(20)] + [
        (2, f"u:{n}", 1.0, NOW_S - 21_600) for n in range(20)
    ]
    found = scores_of(trends_of(*events))
    assert found[1] > 3 * found[2] > 0


# Who counts


def test_one_person_cannot_push_an_item() -> None:
    alone = trends_of(*((1, "u:a", 1.0, NOW_S - n / 10) for n in range(1_000)))
    assert scores_of(alone)[1] == pytest.approx(score((1, 0)), rel=1e-5)
    by_many = trends_of(*((1, f"u:{n}", 1.0, NOW_S) for n in range(1_000)))
    assert scores_of(by_many)[1] > 10 * scores_of(alone)[1]


def test_a_person_counts_once_an_hour_with_the_strongest_event_and_the_latest_of_equals() -> None:
    trends = trends_of(
        (1, "u:a", 1.0, NOW_S),
        (1, "u:a", 3.0, NOW_S - 100),
        (1, "u:a", 3.0, NOW_S - 50),
        (1, "u:a", 2.0, NOW_S - 10),
        (1, "u:a", 1.0, NOW_S - HOUR_S),
        (2, "u:a", 1.0, NOW_S),
    )
    expected = {1: score((3, 50), (1, HOUR_S)), 2: score((1, 0))}
    assert scores_of(trends) == pytest.approx(expected, rel=1e-5)


def test_a_stronger_event_replaces_what_was_counted_long_before_it_came() -> None:
    trends = trends_of((1, "u:a", 1.0, NOW_S))
    assert scores_of(trends)[1] == pytest.approx(score((1, 0)), rel=1e-5)
    trends.add(1, "u:a", 3.0, NOW_S - 300)
    assert scores_of(trends, NOW_S + 60)[1] == pytest.approx(score((3, 360)), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, -2.0, float("nan")])
def test_what_says_nothing_good_counts_nothing(weight: float) -> None:
    assert scores_of(trends_of((1, "u:a", weight, NOW_S))) == {}


# When


def test_a_late_event_counts_with_its_own_age() -> None:
    trends = trends_of((1, "u:a", 1.0, NOW_S))
    scores_of(trends)
    trends.add(1, "u:b", 1.0, NOW_S - DAY_S)
    assert scores_of(trends)[1] == pytest.approx(score((1, 0), (1, DAY_S)), rel=1e-5)


def test_an_event_that_is_two_days_old_counts_nothing_however_it_got_old() -> None:
    assert scores_of(trends_of((1, "u:a", 1.0, NOW_S - KEEP_S))) == {}
    trends = trends_of((1, "u:a", 1.0, NOW_S), (2, "u:a", 1.0, NOW_S - 1))
    assert scores_of(trends, NOW_S + KEEP_S - 2).keys() == {1, 2}
    assert scores_of(trends, NOW_S + KEEP_S - 1).keys() == {1}
    assert scores_of(trends, NOW_S + KEEP_S) == {}
    trends.add(2, "u:a", 1.0, NOW_S + KEEP_S)
    assert scores_of(trends, NOW_S + KEEP_S)[2] == pytest.approx(score((1, 0), (1, KEEP_S + 1)), rel=1e-5)


def test_an_event_in_the_future_counts_nothing_and_one_a_little_ahead_as_soon_as_its_time_comes() -> None:
    trends = trends_of((1, "u:a", 1.0, NOW_S + 60), (2, "u:a", 1.0, NOW_S + 301), (3, "u:a", 1.0, NOW_S + 1e9))
    assert scores_of(trends) == {}
    assert scores_of(trends, NOW_S + 59) == {}
    assert scores_of(trends, NOW_S + 60) == pytest.approx({1: score((1, 0))}, rel=1e-5)
    assert scores_of(trends, NOW_S + 400) == pytest.approx({1: score((1, 340))}, rel=1e-5)


def test_an_event_of_this_second_counts_at_once() -> None:
    assert scores_of(trends_of((1, "u:a", 1.0, NOW_S + 0.7)), NOW_S + 0.2).keys() == {1}


def test_time_only_goes_on() -> None:
    trends = trends_of((1, "u:a", 1.0, NOW_S - 600))
    now = scores_of(trends)
    assert scores_of(trends, NOW_S - 3_000) == now
    assert scores_of(trends, 0.0) == now


def test_scores_are_made_again_only_when_a_second_passed_or_something_came() -> None:
    trends = trends_of((1, "u:a", 1.0, NOW_S))
    held = trends.scores(NOW_S)
    assert trends.scores(NOW_S + 0.9) is held
    assert trends.scores(NOW_S + 1) is not held
    held = trends.scores(NOW_S + 1)
    trends.add(1, "u:b", 0.0, NOW_S)
    assert trends.scores(NOW_S + 1) is held
    trends.add(1, "u:b", 1.0, NOW_S)
    assert trends.scores(NOW_S + 1) is not held


# Order


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["u:a", "u:b", "s:c"]),
        st.sampled_from([-1.0, 0.5, 1.0, 3.0]),
        st.integers(-5_000, 400).map(lambda offset_s: NOW_S + offset_s) | st.just(NOW_S - KEEP_S),
    ),
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.integers(0, 30))
def test_the_order_of_events_and_of_questions_does_not_matter(
    events: list[Event], shuffler: random.Random, asked_after: int
) -> None:
    expected = scores_of(trends_of(*events), NOW_S)
    shuffled = shuffler.sample(events, len(events))
    # Whether these count is the same at both times.
    first = [event for event in shuffled[:asked_after] if NOW_S - KEEP_S < event[3] <= NOW_S + 50]
    trends = trends_of(*first)
    scores_of(trends, NOW_S - 250)
    for event in shuffled:
        trends.add(*event)
    assert scores_of(trends, NOW_S) == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(EVENTS)
def test_scores_are_those_of_the_rules(events: list[Event]) -> None:
    strongest: dict[tuple[int, str, int], tuple[float, float]] = {}
    for key, user, weight, at_s in events:
        if weight > 0 and 0 <= NOW_S - at_s < KEEP_S:
            at = (key, user, int(at_s // HOUR_S))
            strongest[at] = max(strongest.get(at, (0.0, 0.0)), (weight, at_s))
    worth: dict[int, list[tuple[float, float]]] = {}
    for (key, _, _), (weight, at_s) in strongest.items():
        worth.setdefault(key, []).append((weight, NOW_S - at_s))
    assert scores_of(trends_of(*events)) == pytest.approx(
        {key: score(*its_worth) for key, its_worth in worth.items()}, rel=1e-5
    )


def test_items_of_one_shard_score_as_in_another() -> None:
    """A shard holds some of the items, and scores them as if it held all."""
    shuffler = random.Random(1)
    events = [(shuffler.randrange(9), f"u:{shuffler.randrange(50)}", 1.0, NOW_S - n) for n in range(500)]
    parts = [trends_of(*(event for event in events if event[0] % 3 == shard)) for shard in range(3)]
    joined = {key: value for part in parts for key, value in scores_of(part).items()}
    assert joined == pytest.approx(scores_of(trends_of(*events)), rel=1e-6)
    assert list(trends_of(*events).scores(NOW_S)[0]) == list(range(9))


# Bounds


def test_beyond_the_bound_the_coldest_items_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trending, "MAX_ITEMS", 100)
    monkeypatch.setattr(trending, "KEPT_ITEMS", 90)
    trends = trends_of(*((key, "u:a", 1.0, NOW_S - key) for key in range(100)))
    assert len(scores_of(trends)) == 100
    trends.add(500, "u:a", 1.0, NOW_S)
    assert scores_of(trends).keys() == {500, *range(89)}
    for key in range(1_000, 3_000):
        trends.add(key, "u:a", 1.0, NOW_S)
        assert len(scores_of(trends)) <= 100
    assert len(trends) <= 100
    trends.add(7, "u:b", 1.0, NOW_S)
    assert scores_of(trends)[7] == pytest.approx(score((1, 0)), rel=1e-5)


def test_what_waits_is_bounded_and_the_latest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trending, "MAX_WAITING", 10)
    trends = trends_of(*((key, "u:a", 1.0, NOW_S) for key in range(100)))
    assert scores_of(trends).keys() == set(range(90, 100))


def test_beyond_the_bound_of_what_is_remembered_the_oldest_hours_may_count_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trending, "MAX_COUNTED", 50)
    trends = trends_of((1, "u:a", 1.0, NOW_S - 5 * HOUR_S), *((2, f"u:{n}", 1.0, NOW_S) for n in range(50)))
    found = scores_of(trends)
    for event in ((1, "u:a", 1.0, NOW_S - 5 * HOUR_S), (2, "u:0", 1.0, NOW_S)):
        trends.add(*event)
    again = scores_of(trends)
    assert again[1] == pytest.approx(score((1, 5 * HOUR_S), (1, 5 * HOUR_S)), rel=1e-5)
    assert again[2] == found[2]


def test_who_counted_is_forgotten_with_the_events() -> None:
    trends = Trends()
    for day in range(10):
        for n in range(100):
            trends.add(1, f"u:{n}", 1.0, NOW_S + day * DAY_S)
        scores_of(trends, NOW_S + day * DAY_S)
    assert sum(map(len, trends._counted.values())) <= 300
