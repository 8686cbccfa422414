"""Metrics and intervals, against hand-worked values and against plain loops."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import InvalidInput
from raysys.evaluation import intervals, metrics
from raysys.evaluation.lists import NOTHING
from raysys.evaluation.metrics import Labels, PerUser
from raysys.evaluation.sequences import Sequences


def array(*values):
    return np.array(values, dtype=np.int64)


def mask(*rows):
    return np.array([[character == "x" for character in row] for row in rows])


def test_accuracy_with_one_relevant_item_worked_by_hand():
    found = metrics.accuracy(mask("x...", "..x.", "...x", "...."), array(1, 1, 1, 1), 3)
    assert found["hr@3"].values.tolist() == [1, 1, 0, 0]
    assert found["recall@3"].values.tolist() == [1, 1, 0, 0]
    assert found["mrr@3"].values.tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert found["ndcg@3"].values.tolist() == pytest.approx([1, 0.5, 0, 0])


def test_accuracy_with_several_relevant_items_worked_by_hand():
    found = metrics.accuracy(mask(".xx.", "xxx."), array(5, 3), 3)
    best = 1 + 1 / math.log2(3) + 0.5
    assert found["recall@3"].values.tolist() == pytest.approx([0.4, 1])
    assert found["mrr@3"].values.tolist() == [0.5, 1]
    assert found["ndcg@3"].values.tolist() == pytest.approx([(1 / math.log2(3) + 0.5) / best, 1])


def test_who_has_nothing_relevant_has_no_metric():
    found = metrics.accuracy(mask("....", "x..."), array(0, 1), 3)
    assert found["ndcg@3"].defined.tolist() == [False, True]
    assert np.isfinite(found["ndcg@3"].values).all()


def test_novelty_is_the_surprise_of_an_item():
    information = metrics.self_information(array(7, 0, 3), 7)
    assert information.tolist() == [0, 3, 1]
    found = metrics.novelty(array([0, 1], [2, NOTHING], [NOTHING, NOTHING]), information)
    assert found.values.tolist() == [1.5, 1, 0]
    assert found.defined.tolist() == [True, True, False]


def test_similarity_is_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[8] = 0
    shown = array([0, 1, 2, 3], [4, 8, 5, NOTHING], [8, 6, NOTHING, NOTHING])
    found = metrics.intra_list_similarity(shown, vectors)
    expected = [np.mean([vectors[a] @ vectors[b] for a, b in combinations(row, 2)]) for row in ([0, 1, 2, 3], [4, 5])]
    assert found.values[:2].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.defined.tolist() == [True, True, False]


def test_calibration_worked_by_hand():
    genres = Labels.of([["drama"], ["comedy"], ["drama", "comedy"], []])
    histories = Sequences.of([array(0, 1), array(0), array(3), array()])
    shown = array([2, NOTHING], [1, NOTHING], [0, 1], [0, 1])
    found = metrics.calibration(shown, histories, genres)
    assert found.values[0] == pytest.approx(0, abs=1e-9)  # half and half, as the history
    assert found.values[1] == pytest.approx(math.log(1 / metrics.MIXED_IN), rel=1e-6)
    assert found.defined.tolist() == [True, True, False, False]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_gini_is_half_the_relative_mean_difference(shown):
    counts = np.array(shown)
    found = metrics.gini(counts)
    if not counts.sum():
        assert found is None
        return
    difference = np.abs(counts[:, None] - counts).mean()
    assert found == pytest.approx(difference / (2 * counts.mean()), abs=1e-12)


def test_coverage_counts_items_that_anybody_is_shown():
    assert metrics.coverage(array(2, 2, 0, 0)) == 0.5
    assert metrics.coverage(array()) == 0


def test_an_estimate_brackets_the_mean_as_theory_says():
    values = (np.arange(400) % 4 == 0).astype(np.float64)
    found = intervals.estimate(values, np.random.default_rng(1))
    assert found.mean == 0.25
    assert found.standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 399))
    assert found.low == pytest.approx(0.25 - 1.96 * found.standard_error, abs=0.005)
    assert found.high == pytest.approx(0.25 + 1.96 * found.standard_error, abs=0.005)


@pytest.mark.parametrize("n", [300, 5_000])
def test_drawing_levels_is_drawing_users(n):
    """The interval from a multinomial over distinct values against one from users drawn one by one."""
    values = np.random.default_rng(2).gamma(0.5, size=n)
    found = intervals.estimate(values, np.random.default_rng(3), resamples=4_000)
    rng = np.random.default_rng(4)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(4_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.2 * found.standard_error)
    assert found.high == pytest.approx(high, abs=0.2 * found.standard_error)


def test_fewer_than_two_users_are_no_estimate():
    rng = np.random.default_rng(0)
    assert intervals.estimate(np.empty(0), rng) is None
    assert intervals.estimate(np.ones(1), rng) is None
    assert intervals.paired(np.ones(1), np.zeros(1), rng) is None


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(5)
    found = [intervals.estimate((rng.random(200) < 0.3).astype(float), rng, resamples=400) for _ in range(300)]
    assert 0.90 <= np.mean([one.low <= 0.3 <= one.high for one in found]) <= 0.99


def test_a_paired_test_agrees_with_every_sign_tried_out():
    difference = np.array([0.5, 0.5, -0.25, 1.0, 0.125, 0.25, 0.5, -0.5])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = np.mean(np.abs(difference @ signs) >= abs(difference.sum()))
    found = intervals.paired(difference, np.zeros(8), np.random.default_rng(0), flips=40_000)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found.difference.mean == pytest.approx(difference.mean())
    assert found.users == 8


def test_equal_recommenders_are_not_told_apart_and_unequal_ones_are():
    rng = np.random.default_rng(1)
    base = rng.random(500)
    assert intervals.paired(base, base, rng).p == 1
    noise = rng.normal(0, 0.1, 500)
    assert intervals.paired(base + noise - noise.mean(), base, rng).p > 0.9
    assert intervals.paired(base + noise + 0.02, base, rng).p < 0.01


def test_a_paired_test_of_other_users_is_refused():
    with pytest.raises(InvalidInput, match="compares 2 users with 3"):
        intervals.paired(np.ones(2), np.ones(3), np.random.default_rng(0))


def test_many_tests_cost_each_of_them():
    found = intervals.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9})
    assert intervals.holm({}) == {}


def test_a_person_in_several_windows_is_one_person():
    metric = PerUser(np.array([1, 0, 0.5, 1], np.float32), np.array([True, True, False, True]))
    assert intervals.by_person(array(7, 7, 3, 9), metric).tolist() == [0.5, 1]
