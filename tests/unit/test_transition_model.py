"""The transition model: hand-worked counts, an oracle written per user, and the laws that let it be split."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import ConfigError, InvalidInput
from raysys.training.transition import PairCounts, count_pairs, merge, normalise, prune

EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), max_size=40)


def count(events, window=50, reverse=0.5):
    users, items, times = ([event[column] for event in events] for column in range(3))
    return count_pairs(
        np.array(users, np.int64), np.array(items, np.uint64), np.array(times, np.float64), window, reverse
    )


def pairs(source, target, weight):
    return PairCounts(np.array(source, np.uint64), np.array(target, np.uint64), np.array(weight, np.float64))


def as_dict(counts):
    entries = zip(counts.source.tolist(), counts.target.tolist(), counts.weight.tolist(), strict=True)
    return {(source, target): weight for source, target, weight in entries}


def by_hand(events, window, reverse):
    """The same sums with plain loops over each user's sequence."""
    sums = {}
    for user in {event[0] for event in events}:
        sequence = [item for _, item, _ in sorted((e for e in events if e[0] == user), key=lambda e: e[2])]
        for (i, earlier), (j, later) in itertools.combinations(enumerate(sequence), 2):
            if j - i <= window and earlier != later:
                sums[earlier, later] = sums.get((earlier, later), 0) + 1 / math.sqrt(j - i)
                if reverse > 0:
                    sums[later, earlier] = sums.get((later, earlier), 0) + reverse / math.sqrt(j - i)
    return sums


def test_three_events_worked_by_hand():
    counts = count([(1, 10, 0), (1, 20, 1), (1, 30, 2)])
    half, far = 0.5, 1 / math.sqrt(2)
    assert as_dict(counts) == pytest.approx(
        {(10, 20): 1, (10, 30): far, (20, 10): half, (20, 30): 1, (30, 10): half * far, (30, 20): half}
    )
    assert counts.source.tolist() == [10, 10, 20, 20, 30, 30]
    assert counts.target.tolist() == [20, 30, 10, 30, 10, 20]


def test_window_ends_the_pairs():
    assert as_dict(count([(1, 10, 0), (1, 20, 1), (1, 30, 2)], window=1, reverse=0)) == {(10, 20): 1, (20, 30): 1}


def test_users_do_not_mix():
    assert len(count([(1, 10, 0), (2, 20, 1)])) == 0


def test_events_are_ordered_by_time_and_equal_times_keep_the_order_of_the_input():
    assert as_dict(count([(1, 10, 5), (1, 20, 1)], reverse=0)) == {(20, 10): 1}
    assert as_dict(count([(1, 20, 3), (1, 10, 3)], reverse=0)) == {(20, 10): 1}


def test_an_item_met_twice_counts_at_both_positions_and_never_with_itself():
    assert as_dict(count([(1, 10, 0), (1, 20, 1), (1, 10, 2)], reverse=0)) == {(10, 20): 1, (20, 10): 1}


def test_keys_use_all_64_bits():
    big, bigger = 2**64 - 2, 2**64 - 1
    assert as_dict(count([(1, bigger, 0), (1, big, 1)])) == {(bigger, big): 1, (big, bigger): 0.5}


@pytest.mark.parametrize("events", [[], [(1, 10, 0)]])
def test_nothing_to_pair_gives_nothing(events):
    counts = count(events)
    assert len(counts) == 0
    assert counts.source.dtype == np.uint64
    assert counts.weight.dtype == np.float64


@pytest.mark.parametrize(("window", "reverse"), [(0, 0.5), (5, -0.1), (5, 1.1)])
def test_settings_out_of_range_are_refused(window, reverse):
    with pytest.raises(ConfigError, match="window must be >= 1"):
        count([(1, 10, 0)], window, reverse)


def test_columns_of_different_length_are_refused():
    with pytest.raises(InvalidInput, match="1, 2, 1"):
        count_pairs(np.zeros(1, np.int64), np.zeros(2, np.uint64), np.zeros(1), 5, 0.5)


@given(EVENTS, st.integers(1, 12), st.sampled_from([0.0, 0.25, 1.0]))
def test_counts_are_those_of_plain_loops(events, window, reverse):
    assert as_dict(count(events, window, reverse)) == pytest.approx(by_hand(events, window, reverse))


@given(EVENTS, st.integers(1, 4))
def test_parts_by_user_sum_to_the_whole(events, n_parts):
    whole = count(events)
    summed = merge([count([event for event in events if event[0] % n_parts == part]) for part in range(n_parts)])
    assert as_dict(summed) == pytest.approx(as_dict(whole))
    assert np.array_equal(np.lexsort((summed.target, summed.source)), np.arange(len(summed)))


def test_merge_sums_equal_pairs_and_sorts():
    merged = merge([pairs([2, 1], [1, 2], [1, 2]), pairs([1, 1], [2, 2], [4, 8])])
    assert as_dict(merged) == {(1, 2): 14, (2, 1): 1}
    assert merged.source.tolist() == [1, 2]


@pytest.mark.parametrize("parts", [[], [pairs([], [], [])]])
def test_merge_of_nothing_is_empty(parts):
    assert len(merge(parts)) == 0


def test_normalise_worked_by_hand():
    item_counts = np.array([1, 2], np.uint64), np.array([4, 9], np.float32)
    weights = normalise(pairs([1, 2], [2, 1], [3, 8]), item_counts, shrink=10)
    assert as_dict(weights) == pytest.approx({(1, 2): 3 / 16, (2, 1): 8 / 16})


def test_shrink_puts_a_chance_meeting_of_rare_items_below_a_habit():
    item_counts = np.array([1, 2, 3, 4], np.uint64), np.array([1, 1, 20, 20], np.float32)
    seen = pairs([1, 3], [2, 4], [1, 12])
    assert np.diff(normalise(seen, item_counts, shrink=0).weight) < 0
    assert np.diff(normalise(seen, item_counts, shrink=10).weight) > 0


@pytest.mark.parametrize("missing", [0, 3, 9])
def test_normalise_names_an_item_without_a_count(missing):
    item_counts = np.array([1, 2, 5], np.uint64), np.ones(3, np.float32)
    with pytest.raises(InvalidInput, match=f"no count for item key {missing}:"):
        normalise(pairs([1], [missing], [1]), item_counts, shrink=1)


def test_prune_keeps_the_strongest_of_each_source_and_the_smaller_key_of_equal_ones():
    kept = prune(pairs([1, 1, 1, 2, 3, 3, 3], [2, 3, 4, 1, 7, 8, 9], [1, 3, 2, 0.1, 5, 5, 5]), 2)
    assert as_dict(kept) == {(1, 3): 3, (1, 4): 2, (2, 1): 0.1, (3, 7): 5, (3, 8): 5}


@given(EVENTS, st.integers(1, 4))
def test_prune_leaves_no_stronger_target_out(events, targets_per_item):
    counts = count(events)
    kept, everything = as_dict(prune(counts, targets_per_item)), as_dict(counts)
    assert kept.items() <= everything.items()
    for source in set(counts.source.tolist()):
        mine = sorted((weight for pair, weight in everything.items() if pair[0] == source), reverse=True)
        left = sorted((weight for pair, weight in kept.items() if pair[0] == source), reverse=True)
        assert left == mine[:targets_per_item]
