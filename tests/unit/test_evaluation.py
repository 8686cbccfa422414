"""Evaluation: hand-worked ranks, and the known ways to flatter a recommender kept out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import InvalidInput
from raysys.evaluation.metrics import MISSED, Listed, estimate, hit_rate, ndcg
from raysys.evaluation.protocol import LIST_LENGTH, by_stratum, popularity_strata, rank_lists, summarise
from raysys.evaluation.splits import Task, leave_last_out


def items(*values):
    return np.array(values, dtype=np.int64)


def listed(scores_by_item):
    """A list in the order given: item -> score."""
    return Listed(items(*scores_by_item), np.array(list(scores_by_item.values()), dtype=np.float64))


def task(histories, targets):
    return Task([items(*history) for history in histories], items(*targets))


def best_first(scores, history, length):
    """The list that exact scoring gives: seen items out, equal scores by index."""
    order = [item for item in np.argsort(-scores, kind="stable") if item not in history]
    return listed({int(item): float(scores[item]) for item in order[:length]})


def test_leave_last_out_gives_fitting_no_sight_of_what_is_predicted():
    split = leave_last_out([items(1, 2, 3, 4), items(5, 6, 7)])
    assert [list(s) for s in split.train] == [[1, 2], [5]]
    assert split.validation.histories is split.train
    assert [list(s) for s in split.test.histories] == [[1, 2, 3], [5, 6]]
    assert list(split.validation.targets) == [3, 6]
    assert list(split.test.targets) == [4, 7]


def test_leave_last_out_refuses_a_sequence_without_enough_items():
    with pytest.raises(InvalidInput, match=r"sequences\[1\]: 2 items"):
        leave_last_out([items(1, 2, 3), items(1, 2)])


def test_leave_last_out_of_nobody():
    assert len(leave_last_out([]).test) == 0


def test_rank_is_the_place_where_no_scores_are_equal():
    shown = listed({7: 0.9, 3: 0.5, 1: 0.1})
    assert [shown.rank(item) for item in (7, 3, 1)] == [1, 2, 3]
    assert [shown.place(item) for item in (7, 3, 1)] == [1, 2, 3]


def test_equal_scores_stand_before_the_target():
    shown = listed({4: 2, 5: 1, 6: 1, 7: 1, 8: 0})
    assert [shown.rank(item) for item in (4, 5, 6, 7, 8)] == [1, 4, 4, 4, 5]
    assert shown.place(5) == 2


def test_what_is_not_shown_is_missed():
    for shown in (listed({4: 2, 5: 1}), listed({})):
        assert shown.rank(9) == shown.place(9) == MISSED
    assert hit_rate(items(MISSED), 10**6).tolist() == [0]
    assert ndcg(items(MISSED), 10**6).tolist() == [0]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=12), st.integers(1, 5), st.data())
def test_a_list_one_longer_than_k_shows_every_tie_that_matters(scores, k, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    row = np.array(scores)
    true_rank = int((row >= row[target]).sum())
    found = best_first(row, (), k + 1).rank(target)
    assert (found <= k) == (true_rank <= k)
    assert found == true_rank or found > k


def test_a_recommender_that_says_nothing_earns_nothing():
    def lister(histories):
        return [best_first(np.zeros(50), history, LIST_LENGTH) for history in histories]

    found = rank_lists(lister, task([[0], [1]], [1, 3]), 50)
    assert hit_rate(found.ranks, 20).sum() == 0
    assert found.places.tolist() == [1, 3]  # places as shown would have called these hits
    assert found.lost_to_ties == 2


def test_metrics_worked_by_hand():
    found = items(1, 3, 10, 11)
    assert hit_rate(found, 10).tolist() == [1, 1, 1, 0]
    assert ndcg(found, 10).tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0])


def test_an_estimate_brackets_the_mean_as_theory_says():
    values = (np.arange(400) % 4 == 0).astype(np.float64)
    found = estimate(values, np.random.default_rng(1))
    assert found.mean == 0.25
    assert found.standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 399))
    assert found.low == pytest.approx(0.25 - 1.96 * found.standard_error, abs=0.005)
    assert found.high == pytest.approx(0.25 + 1.96 * found.standard_error, abs=0.005)


def test_an_estimate_of_nobody_is_not_zero():
    assert math.isnan(estimate(np.empty(0), np.random.default_rng(0)).mean)
    assert math.isnan(estimate(np.ones(1), np.random.default_rng(0)).standard_error)


def test_a_summary_is_repeatable():
    assert summarise(items(1, 5, 30)) == summarise(items(1, 5, 30))
    assert summarise(items(1, 5, MISSED))["hr@20"].mean == pytest.approx(2 / 3)


def test_coverage_counts_items_that_anybody_is_shown():
    one_for_all = rank_lists(
        lambda histories: [listed({0: 5, 1: 4, 2: 3}) for _ in histories], task([[3], [3]], [0, 1]), 4, k=2
    )
    assert one_for_all.coverage == 0.5
    assert one_for_all.shown.tolist() == [2, 2, 0, 0]


def test_batches_do_not_change_the_answer():
    rng = np.random.default_rng(3)
    table = rng.random((9, 12))
    whole = task([[int(i)] for i in rng.integers(12, size=9)], rng.integers(12, size=9))

    def lister(histories):
        return [best_first(table[history[0] % 9], history, 5) for history in histories]

    found = [rank_lists(lister, whole, 12, k=3, batch=batch) for batch in (1, 4, 100)]
    for other in found[1:]:
        assert other.ranks.tolist() == found[0].ranks.tolist()
        assert other.shown.tolist() == found[0].shown.tolist()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([], "0 lists for 1 users"),
        ([listed({1: 0.1, 2: 0.2})], "must be best first"),
        ([listed({2: 0.3, 0: 0.2})], "shows item 0, which is in the history"),
    ],
)
def test_lists_that_cannot_be_judged_are_refused(lists, message):
    with pytest.raises(InvalidInput, match=message):
        rank_lists(lambda histories: lists, task([[0]], [1]), 4)


def test_nobody_to_evaluate():
    found = rank_lists(lambda histories: [], task([], []), 4)
    assert len(found.ranks) == 0
    assert math.isnan(summarise(found.ranks)["hr@10"].mean)


def test_strata_hold_a_third_of_the_events_each():
    counts = items(0, 1, 1, 1, 1, 1, 1, 3, 3, 6)
    assert popularity_strata(counts).tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 2, 3]


def test_items_of_equal_popularity_share_a_stratum():
    assert popularity_strata(items(2, 2, 2)).tolist() == [2, 2, 2]
    assert popularity_strata(items(0, 0)).tolist() == [0, 0]


def test_hits_by_stratum_of_the_target():
    found = by_stratum(items(1, 50, 2, 3), items(0, 1, 9, 9), items(0, 1, 1, 1, 1, 1, 1, 3, 3, 6), k=10)
    assert found["unseen"] == (1, 1.0)
    assert found["tail"] == (1, 0.0)
    assert found["head"] == (2, 1.0)
    assert found["middle"][0] == 0
    assert math.isnan(found["middle"][1])
