"""Evaluation: hand-worked ranks, and the known ways to flatter a model kept out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raysys.errors import InvalidInput
from raysys.evaluation.metrics import estimate, hit_rate, ndcg, ranks, reciprocal_rank, remove, top
from raysys.evaluation.protocol import by_stratum, popularity_strata, rank_all, summarise
from raysys.evaluation.splits import Task, leave_last_out

NAN, INF = np.nan, np.inf
SCORES = arrays(np.float32, (3, 7), elements=st.sampled_from([-INF, -1, 0, 0.5, 1, 2]))


def rows(*values):
    return np.array(values, dtype=np.float32)


def items(*values):
    return np.array(values, dtype=np.int64)


def task(histories, targets):
    return Task([items(*history) for history in histories], items(*targets))


def test_leave_last_out_gives_fitting_no_sight_of_what_is_predicted():
    split = leave_last_out([items(1, 2, 3, 4), items(5, 6, 7)])
    assert [list(s) for s in split.train] == [[1, 2], [5]]
    assert [list(s) for s in split.train_and_validation] == [[1, 2, 3], [5, 6]]
    assert split.validation.histories is split.train
    assert split.test.histories is split.train_and_validation
    assert list(split.validation.targets) == [3, 6]
    assert list(split.test.targets) == [4, 7]


def test_leave_last_out_refuses_a_sequence_without_enough_items():
    with pytest.raises(InvalidInput, match=r"sequences\[1\]: 2 items"):
        leave_last_out([items(1, 2, 3), items(1, 2)])


def test_leave_last_out_of_nobody():
    assert len(leave_last_out([]).test) == 0


def test_rank_counts_the_items_that_score_more():
    assert ranks(rows([3, 1, 2, 0], [3, 1, 2, 0]), items(2, 3)).tolist() == [2, 4]


def test_equal_scores_stand_before_the_target():
    assert ranks(rows([1, 1, 1, 0]), items(0)).tolist() == [3]


def test_a_model_that_says_nothing_earns_nothing():
    found = rank_all(lambda histories: np.zeros((len(histories), 50), np.float32), task([[0], [1]], [2, 3]), 50)
    assert found.ranks.tolist() == [49, 49]  # all but the item seen
    assert hit_rate(found.ranks, 10).sum() == 0


def test_seen_items_and_nan_are_out_of_the_race_and_the_scores_given_stay_as_they_are():
    given_scores = rows([9, NAN, 5, 1])
    kept = remove(given_scores, [items(0)])
    assert kept.tolist() == [[-INF, -INF, 5, 1]]
    assert given_scores[0, 0] == 9
    assert ranks(kept, items(2)).tolist() == [1]


def test_removing_from_nobody_and_from_an_empty_history():
    assert remove(rows([1, 2]), [items()]).tolist() == [[1, 2]]
    assert remove(np.empty((0, 2), np.float32), []).shape == (0, 2)


@pytest.mark.parametrize("score", [NAN, -INF])
def test_a_target_without_a_score_comes_last(score):
    assert ranks(remove(rows([score, NAN, 1, 2]), [items()]), items(0)).tolist() == [4]


def test_a_target_already_seen_comes_last():
    assert ranks(remove(rows([9, 1, 2]), [items(0)]), items(0)).tolist() == [3]


def test_top_breaks_ties_by_index_and_leaves_removed_items_out():
    assert top(rows([1, 2, 1, 1], [-INF, -INF, 0, -INF]), 2).tolist() == [
        [True, True, False, False],
        [False, False, True, False],
    ]
    assert top(rows([1, 2]), 5).all()


@given(SCORES, st.integers(1, 9))
def test_top_is_the_head_of_a_stable_sort(scores, k):
    for row, chosen in zip(scores, top(scores, k), strict=True):
        best = [index for index in np.argsort(-row, kind="stable")[:k] if row[index] > -INF]
        assert sorted(best) == np.flatnonzero(chosen).tolist()


@given(SCORES, st.integers(0, 6))
def test_no_order_of_the_ties_ranks_a_target_lower(scores, target):
    found = ranks(scores, np.full(3, target, np.int64))
    for row, rank in zip(scores, found, strict=True):
        worst = sorted(range(7), key=lambda item: (-row[item], item == target)).index(target) + 1
        assert rank == worst


def test_metrics_worked_by_hand():
    found = items(1, 3, 10, 11)
    assert hit_rate(found, 10).tolist() == [1, 1, 1, 0]
    assert ndcg(found, 10).tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0])
    assert reciprocal_rank(found).tolist() == pytest.approx([1, 1 / 3, 0.1, 1 / 11])


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
    assert summarise(items(1, 5, 30))["hr@20"].mean == pytest.approx(2 / 3)


def test_coverage_counts_items_that_anybody_is_shown():
    one_for_all = rank_all(
        lambda histories: np.tile(rows([5, 4, 3, 2]), (len(histories), 1)), task([[3], [3]], [0, 1]), 4, k=2
    )
    assert one_for_all.coverage == 0.5
    assert one_for_all.shown.tolist() == [2, 2, 0, 0]


def test_batches_do_not_change_the_answer():
    rng = np.random.default_rng(3)
    table = rng.random((9, 12), dtype=np.float32)
    whole = task([[int(i)] for i in rng.integers(12, size=9)], rng.integers(12, size=9))

    def scorer(histories):
        return table[[int(history[0]) % 9 for history in histories]]

    found = [rank_all(scorer, whole, 12, k=3, batch=batch) for batch in (1, 4, 100)]
    for other in found[1:]:
        assert other.ranks.tolist() == found[0].ranks.tolist()
        assert other.shown.tolist() == found[0].shown.tolist()


def test_scores_of_another_shape_are_refused():
    with pytest.raises(InvalidInput, match=r"\(1, 3\), not \(1, 4\)"):
        rank_all(lambda histories: np.zeros((1, 3), np.float32), task([[0]], [1]), 4)


def test_nobody_to_evaluate():
    found = rank_all(lambda histories: np.zeros((0, 4), np.float32), task([], []), 4)
    assert len(found.ranks) == 0
    assert math.isnan(summarise(found.ranks)["mrr"].mean)


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
