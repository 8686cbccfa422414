"""Popularity with decay: half as much after a half-life, and parts that add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import ConfigError, InvalidInput
from raysys.training.popularity import DAY_S, ItemCounts, count_items, merge

NOW_S = 1_700_000_000.0
EVENTS = st.lists(st.tuples(st.integers(0, 5), st.floats(-5, 400), st.floats(-3, 3, width=32)), max_size=30)


def counted(events, half_life_days=30.0):
    """events: (item, age in days, weight)."""
    items = np.array([item for item, _, _ in events], np.uint64)
    times_s = NOW_S - DAY_S * np.array([age for _, age, _ in events], np.float64)
    return count_items(items, times_s, np.array([w for _, _, w in events], np.float32), NOW_S, half_life_days)


def test_an_event_counts_half_after_a_half_life():
    counts = counted([(7, 0, 1), (7, 30, 1), (3, 60, 2)])
    assert counts.keys.tolist() == [3, 7]
    assert counts.count.tolist() == [1, 2]
    assert counts.popularity.tolist() == pytest.approx([0.5, 1.5])


def test_a_clock_ahead_of_ours_earns_nothing_extra():
    assert counted([(1, -365, 1)]).popularity.tolist() == [1]


def test_dislikes_are_counted_and_add_no_popularity():
    counts = counted([(1, 0, -3), (1, 0, 2), (2, 0, -1)])
    assert counts.count.tolist() == [2, 1]
    assert counts.popularity.tolist() == [2, 0]


def test_a_trend_overtakes_a_classic():
    classic, trend = counted([(1, 365, 1)] * 20 + [(2, 1, 1)] * 2).popularity
    assert trend > classic


def test_no_events_give_no_items():
    counts = counted([])
    assert len(counts) == len(merge([])) == 0
    assert (counts.keys.dtype, counts.count.dtype, counts.popularity.dtype) == (np.uint64, np.float32, np.float32)


@pytest.mark.parametrize("half_life_days", [0.0, -1.0, float("nan")])
def test_a_half_life_that_is_none_is_refused(half_life_days):
    with pytest.raises(ConfigError, match="popularity_half_life_days"):
        counted([(1, 0, 1)], half_life_days)


def test_columns_of_different_length_are_refused():
    with pytest.raises(InvalidInput, match="2, 1, 1"):
        count_items(np.zeros(2, np.uint64), np.zeros(1), np.zeros(1, np.float32), NOW_S, 30)


@given(EVENTS, st.integers(1, 4))
def test_parts_sum_to_the_whole(events, n_parts):
    whole, summed = counted(events), merge([counted(events[part::n_parts]) for part in range(n_parts)])
    assert isinstance(summed, ItemCounts)
    assert summed.keys.tolist() == whole.keys.tolist()
    assert summed.count.tolist() == whole.count.tolist()
    assert summed.popularity == pytest.approx(whole.popularity, rel=1e-5)
