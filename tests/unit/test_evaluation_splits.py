"""Splits and cleaning: nothing of what is predicted is ever fitted on, and every kind of bad input has its count."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import InvalidInput
from raysys.evaluation.cleaning import RawEvents, clean
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import (
    global_temporal,
    held_out_at_random,
    leave_last_out,
    shortened,
    without_items,
)

RAW = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 40).map(float), st.sampled_from([1.0, 3.0, 5.0])),
    min_size=1,
    max_size=60,
)


def array(*values):
    return np.array(values, dtype=np.int64)


def sequences(*rows):
    return Sequences.of([array(*row) for row in rows])


def cleaned(events, n_items=10):
    users, items, times_s, grades = zip(*events, strict=True)
    return clean(RawEvents(users, items, times_s, grades), range(n_items)).sequences


def pairs(rows, users=None):
    """(user, item) of every event."""
    owners = rows.owners if users is None else users[rows.owners]
    return set(zip(owners.tolist(), rows.items.tolist(), strict=True))


def rows_of(found):
    return [row.tolist() for row in found]


def test_leave_last_out_gives_fitting_no_sight_of_what_is_predicted():
    split = leave_last_out(sequences([1, 2, 3, 4], [5, 6, 7]), "a set")
    (validation,), (test, refitted) = split.validation, split.test
    assert rows_of(validation.train) == rows_of(validation.task.histories) == [[1, 2], [5]]
    assert rows_of(validation.task.targets) == [[3], [6]]
    assert rows_of(test.train) == [[1, 2], [5]]
    assert rows_of(test.task.histories) == [[1, 2, 3], [5, 6]]
    assert rows_of(test.task.targets) == [[4], [7]]
    assert (refitted.fitted_on, rows_of(refitted.train)) == ("train + validation", [[1, 2, 3], [5, 6]])


def test_users_of_too_few_events_are_trained_on_and_not_asked():
    split = leave_last_out(sequences([1, 2, 3], [7], [8, 9], [], [4, 5, 6]), "a set")
    assert split.counts["short_users"] == 3
    assert split.validation[0].task.users.tolist() == [0, 4]
    assert rows_of(split.validation[0].train) == [[1], [7], [8, 9], [], [4]]


def test_targets_that_nobody_met_in_train_are_counted():
    split = leave_last_out(sequences([1, 2, 3], [2, 1, 3], [3, 9, 1]), "a set")
    assert split.counts["validation_targets_not_in_train"] == 1


def test_users_whose_last_events_share_a_time_are_counted():
    both = [array(1, 2, 3), array(4, 5, 6)]
    tied = Sequences.of(both, times_s=np.array([1.0, 2, 2, 1, 2, 3]))
    assert leave_last_out(tied, "a set").counts["tied_users"] == 1


@pytest.mark.parametrize("rows", [[], [[1, 2]], [[1, 2, 3], [1]]])
def test_a_set_too_small_to_split_is_refused_by_name(rows):
    with pytest.raises(InvalidInput, match="tiny: is too small to split"):
        leave_last_out(sequences(*rows), "tiny")


@given(RAW)
def test_leave_last_out_loses_nothing_and_shares_nothing(events):
    whole = cleaned(events)
    try:
        split = leave_last_out(whole, "drawn")
    except InvalidInput:
        return
    for fold in (*split.validation, *split.test):
        users = fold.task.users
        targets = pairs(fold.task.targets, users)
        assert not targets & pairs(fold.train)
        assert not targets & pairs(fold.task.histories, users)
        assert len(targets) == len(users)
    validation, test = split.validation[0].task, split.test[0].task
    assert pairs(split.validation[0].train) | pairs(validation.targets, validation.users) | pairs(
        test.targets, test.users
    ) == pairs(whole)


def test_a_point_in_time_cuts_every_user_at_once():
    whole = cleaned([(0, 1, 0, 5), (0, 2, 95, 5), (1, 3, 50, 5), (1, 4, 90, 5), (2, 5, 99, 5), (0, 6, 100, 5)])
    split = global_temporal(whole, "films", [0.9])
    (fold,) = split.test
    assert fold.now_s == 90
    assert rows_of(fold.train) == [[1], [3], []]
    assert rows_of(fold.task.histories) == [[1], [3], []]
    assert rows_of(fold.task.targets) == [[2, 6], [4], [5]]  # the event at the very time of the cut is the future
    assert split.counts["test_users_without_history"] == 1
    assert not split.validation


def test_what_is_not_liked_is_no_target_and_stays_in_histories():
    whole = cleaned([(0, 1, 0, 1), (0, 2, 95, 1), (0, 3, 96, 4), (1, 3, 97, 4), (1, 5, 100, None)])
    split = global_temporal(whole, "films", [0.5], liked_above=2.5)
    assert rows_of(split.test[0].task.targets) == [[3], [3, 5]]
    assert rows_of(split.test[0].task.histories) == [[1], []]
    assert split.counts["not_liked"] == 2


@given(RAW, st.lists(st.sampled_from([0.2, 0.4, 0.5, 0.7, 0.9]), min_size=1, max_size=3, unique=True))
def test_windows_in_time_never_look_ahead(events, points):
    whole = cleaned(events)
    try:
        split = global_temporal(whole, "drawn", sorted(points))
    except InvalidInput:
        return
    assert len(split.validation) == len(points) - 1
    for fold in (*split.validation, *split.test):
        assert (fold.train.times_s < fold.now_s).all()
        assert (fold.task.histories.times_s < fold.now_s).all()
        assert (fold.task.targets.times_s >= fold.now_s).all()
        assert not pairs(fold.task.targets, fold.task.users) & pairs(fold.train)


def test_windows_without_users_and_points_that_are_none_are_refused():
    whole = cleaned([(0, 1, 0, 5), (0, 2, 100, 5)])
    with pytest.raises(InvalidInput, match="films: is too small to split: 1 users"):
        global_temporal(whole, "films", [0.5])
    with pytest.raises(InvalidInput, match="points"):
        global_temporal(whole, "films", [0.9, 0.5])
    with pytest.raises(InvalidInput, match="films: holds no events, so there is nothing"):
        global_temporal(sequences([]), "films", [0.5])


def test_events_without_times_are_held_out_at_random():
    whole = sequences(range(20), range(20), [1, 2])
    split = held_out_at_random(whole, "listens", 0.1, np.random.default_rng(0))
    assert split.counts["short_users"] == 1
    for fold in (*split.validation, *split.test):
        assert fold.task.targets.lengths.tolist() == [2, 2]
        assert not pairs(fold.task.targets, fold.task.users) & pairs(fold.train)
    validation, test = split.validation[0].task.targets, split.test[0].task.targets
    assert not pairs(validation) & pairs(test)
    assert rows_of(held_out_at_random(whole, "listens", 0.1, np.random.default_rng(0)).test[0].train) == rows_of(
        split.test[0].train
    )


def test_new_items_leave_no_trace_but_as_targets():
    fold = leave_last_out(sequences([1, 2, 3, 0], [3, 2, 1, 0], [2, 1, 3, 0]), "a set").validation[0]
    cold = without_items(fold, np.arange(4) == 3, "a set")
    assert 3 not in cold.train.items
    assert 3 not in cold.task.histories.items
    assert rows_of(cold.task.targets) == rows_of(fold.task.targets)
    with pytest.raises(InvalidInput, match="a set: 0 of 3 targets are new"):
        without_items(fold, np.zeros(4, dtype=bool), "a set")


def test_a_fold_that_is_fitted_on_what_it_asks_for_is_refused():
    fold = leave_last_out(sequences([1, 2, 3], [4, 5, 6]), "a set").validation[0]
    with pytest.raises(InvalidInput, match="fold: 1 targets are in what it is fitted on"):
        replace(fold, train=sequences([1, 2], [4]))
    replace(fold, train=sequences([1, 5], [4, 2]))  # what others met may be asked for


def test_histories_are_shortened_to_their_last_events():
    task = leave_last_out(sequences([1, 2, 3, 4, 5], [6, 7, 8]), "a set").validation[0].task
    assert [rows_of(shortened(task, n).histories) for n in (0, 1, 2)] == [[[], []], [[3], [6]], [[2, 3], [6]]]


def test_each_kind_of_bad_event_has_a_rule_and_a_count():
    raw = RawEvents(
        users=["a", "a", "a", "b", "b", "b", "b", "c", "c", "d"],
        items=["x", "y", "x", "x", "y", "z", "nowhere", "x", "y", "z"],
        times_s=[1, "soon", 3, 1, 2, 2, 4, 5, 6, float("inf")],
        grades=[5, 5, 4, "five", float("nan"), 3, 3, -1, 1e12, 3],
    )
    found = clean(raw, ["x", "y", "z"], scale=(0.5, 5))
    assert dict(found.counts) == {
        "bad_time": 2,
        "bad_grade": 2,
        "grade_out_of_range": 2,
        "unknown_item": 1,
        "repeated": 1,
        "equal_times": 0,
        "users_of_one_event": 2,
    }
    assert found.users == ["a", "b", "c", "d"]
    assert rows_of(found.sequences) == [[0], [2], [], []]
    assert found.sequences.values.tolist() == [5, 3]  # the first grade of a pair stays


def test_equal_times_keep_the_order_of_the_file_and_times_that_fall_are_sorted():
    found = clean(RawEvents([0] * 4, [3, 1, 2, 0], [9, 7, 7, 7]), range(4))
    assert rows_of(found.sequences) == [[1, 2, 0, 3]]
    assert found.counts["equal_times"] == 2


def test_an_event_without_a_grade_is_not_a_bad_one():
    found = clean(RawEvents([0, 0], [0, 1], [1, 2], [None, 4.0]), range(2), scale=(1, 5))
    assert found.counts["bad_grade"] == 0
    assert np.isnan(found.sequences.values[0])


def test_columns_of_other_lengths_and_no_events_at_all():
    with pytest.raises(InvalidInput, match="events: columns differ in length: 2, 1, 2"):
        clean(RawEvents([0, 0], [0], [1, 2]), range(2))
    nothing = clean(RawEvents([], [], []), range(2))
    assert len(nothing.sequences) == 0


@given(RAW)
def test_sequences_are_slices_of_the_same_events(events):
    whole = cleaned(events)
    rows = rows_of(whole)
    order = np.random.default_rng(0).permutation(len(whole))
    assert rows_of(whole.take(order)) == [rows[user] for user in order]
    assert rows_of(whole.latest(2)) == [row[-2:] for row in rows]
    assert rows_of(Sequences.of(list(whole))) == rows
    assert (np.diff(whole.times_s)[np.diff(whole.owners) == 0] >= 0).all()
