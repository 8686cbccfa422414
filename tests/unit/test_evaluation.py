"""The evaluator: known ways to flatter a recommender kept out, and every way of asking gives the same figures."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import InvalidInput
from raysys.evaluation import protocol
from raysys.evaluation.lists import NOTHING, Lists, best, by_score, filled, padded, pessimistic
from raysys.evaluation.metrics import Labels
from raysys.evaluation.protocol import LIST_LENGTH, concatenate, evaluate, facts_of, popularity_strata
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import Task
from raysys.evaluation.summary import by_history, compare, summarise

N_ITEMS = 40


def array(*values):
    return np.array(values, dtype=np.int64)


def task(histories, targets):
    rows = [Sequences.of([array(*row) for row in side]) for side in (histories, targets)]
    return Task(np.arange(len(targets)), *rows)


def world(seed=3, n_users=31):
    """Histories, targets and a table of scores, all by chance; some users have no history."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(N_ITEMS) for _ in range(n_users)]
    cut = rng.integers(0, 9, n_users)
    asked = task(
        [d[:c] for d, c in zip(drawn, cut, strict=True)],
        [d[c : c + 1 + c % 3] for d, c in zip(drawn, cut, strict=True)],
    )
    train = Sequences.of([d[:c] for d, c in zip(drawn, cut, strict=True)])
    return asked, train, rng.integers(0, 12, (N_ITEMS, N_ITEMS)).astype(np.float32)


def table_lister(table):
    """Scores by the last item of the history; who has none gets row 0."""

    def scorer(histories):
        last = [row[-1] if len(row) else 0 for row in histories]
        return table[last]

    return by_score(scorer, LIST_LENGTH)


def judged(scores, *relevant):
    """The relevance after ties went against us, of one list in the order given."""
    lists = padded([(np.arange(len(scores)), np.array(scores, dtype=np.float64))], max(len(scores) + 1, 6))
    return np.flatnonzero(pessimistic(lists, np.isin(lists.items, relevant))[0]).tolist()


def test_rank_is_the_place_where_no_scores_are_equal():
    assert [judged([9, 5, 1], item) for item in range(3)] == [[0], [1], [2]]


def test_equal_scores_stand_before_what_is_relevant():
    assert [judged([2, 1, 1, 1, 0], item) for item in range(5)] == [[0], [3], [3], [3], [4]]
    assert judged([2, 1, 1, 1, 0], 1, 3) == [2, 3]


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=12),
    st.integers(1, 5),
    st.data(),
)
def test_a_list_one_longer_than_k_shows_every_tie_that_matters(scores, k, data):
    """Against all scores in the worst order that they allow."""
    relevant = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
    row = np.array([scores])
    is_relevant = np.isin(np.arange(len(scores)), list(relevant))
    worst = is_relevant[np.lexsort((is_relevant, -row[0]))][:k]
    lists = best(row, k + 1)
    found = pessimistic(lists, np.isin(lists.items, list(relevant)))[0][:k]
    assert found.sum() <= worst.sum()  # several relevant ones in an open end may all be taken away
    if len(relevant) == 1 and len(scores) > k + 1:
        assert found.tolist() == worst.tolist()


def test_a_recommender_that_says_nothing_earns_nothing():
    asked, train, _ = world()
    found = evaluate(
        by_score(lambda h: np.zeros((len(h), N_ITEMS), np.float32), LIST_LENGTH), asked, facts_of(train, N_ITEMS)
    )
    assert found.metrics["hr@20"].values.sum() == 0
    assert found.lost_to_ties > 0


def test_who_knows_the_targets_is_perfect():
    asked, train, _ = world()

    def knowing(histories):
        scores = np.zeros((len(histories), N_ITEMS), np.float32)
        scores[asked.targets.owners, asked.targets.items] = 1 + np.arange(len(asked.targets.items)) % 3
        return scores

    found = evaluate(by_score(knowing, LIST_LENGTH), asked, facts_of(train, N_ITEMS), batch=10**6)
    assert all(found.metrics[f"{name}@10"].values.min() == 1 for name in ("hr", "ndcg", "mrr", "recall"))


def test_batches_and_parts_do_not_change_the_answer():
    asked, train, table = world()
    facts = facts_of(train, N_ITEMS, categories=Labels.of([[str(i % 4)] for i in range(N_ITEMS)]))
    found = [evaluate(table_lister(table), asked, facts, batch) for batch in (1, 4, 100)]
    halves = [
        evaluate(table_lister(table), asked.take(rows), facts) for rows in np.array_split(np.arange(len(asked)), 2)
    ]
    for other in (*found[1:], concatenate(halves)):
        assert other.shown.tolist() == found[0].shown.tolist()
        assert other.users.tolist() == found[0].users.tolist()
        assert other.lost_to_ties == found[0].lost_to_ties
        for name, metric in found[0].metrics.items():
            assert other.metrics[name].values.tolist() == pytest.approx(metric.values.tolist(), abs=1e-6)


def test_slices_split_the_recall_of_a_user():
    asked, train, table = world()
    found = evaluate(table_lister(table + np.arange(N_ITEMS) / 100), asked, facts_of(train, N_ITEMS))
    hits = {name: np.zeros(len(asked)) for name in ("warm", "cold")}
    counts = facts_of(train, N_ITEMS).counts
    for name, is_in in (("warm", counts > 0), ("cold", counts == 0)):
        n = np.bincount(asked.targets.owners[is_in[asked.targets.items]], minlength=len(asked))
        assert found.slices[name]["recall@10"].defined.tolist() == (n > 0).tolist()
        hits[name] = found.slices[name]["recall@10"].values * n
    total = found.metrics["recall@10"].values * asked.targets.lengths
    assert (hits["warm"] + hits["cold"]).tolist() == pytest.approx(total.tolist(), abs=1e-5)


def shows(items, scores):
    row = padded([(array(*items), np.array(scores, dtype=np.float64))], LIST_LENGTH)
    return lambda histories: row


@pytest.mark.parametrize(
    ("lister", "message"),
    [
        (lambda h: padded([], LIST_LENGTH), "for 1 users"),
        (lambda h: padded([(array(1), np.ones(1))], 10), "21 places are needed"),
        (shows([1, 2], [0.1, 0.2]), "must be best first"),
        (shows([2, 2], [0.3, 0.2]), "shown twice"),
        (shows([2, 9], [0.3, 0.2]), "item 9 is none of the 4"),
        (shows([2, 3], [0.3, np.nan]), "no finite number"),
        (
            lambda h: Lists(np.r_[NOTHING, 1, [NOTHING] * 19][None], np.r_[2.0, 1.0, [-np.inf] * 19][None]),
            "nothing stands before",
        ),
    ],
)
def test_lists_that_cannot_be_judged_are_refused(lister, message):
    with pytest.raises(InvalidInput, match=message):
        evaluate(lister, task([[0]], [[1]]), facts_of(Sequences.of([array(0)]), 4))


def test_what_was_seen_takes_a_place_and_is_counted():
    asked = task([[0]], [[1]])
    found = evaluate(shows([0, 1], [0.3, 0.2]), asked, facts_of(Sequences.of([array(0)]), 4))
    assert found.showed_seen == 1
    assert found.metrics["mrr@10"].values.tolist() == [0.5]


def test_nobody_to_evaluate_is_refused():
    with pytest.raises(InvalidInput, match="task: asks nobody"):
        evaluate(shows([1], [1]), task([], []), facts_of(Sequences.of([]), 4))


def test_a_score_that_is_no_number_is_not_shown():
    asked = task([[0], []], [[1], [2]])
    scores = np.array([[9, np.nan, 3, 1], [np.inf, 1, -np.inf, 2]], np.float32)
    found = by_score(lambda histories: scores, 5)(asked.histories)
    assert found.items.tolist() == [[2, 3, NOTHING, NOTHING, NOTHING], [3, 1, NOTHING, NOTHING, NOTHING]]


def test_who_gets_nothing_gets_the_fallback():
    silent = by_score(lambda h: np.where(h.lengths[:, None] > 0, 1.0, np.nan) * np.ones(4, np.float32), 3)
    popular = by_score(lambda h: np.tile(np.arange(4, dtype=np.float32), (len(h), 1)), 3)
    found = filled(silent, popular)(task([[0], []], [[1], [2]]).histories)
    assert found.items.tolist() == [[1, 2, 3], [3, 2, 1]]


@given(st.integers(0, 5), st.integers(1, 12))
def test_the_best_are_those_of_a_full_sort(seed, length):
    scores = np.random.default_rng(seed).random((3, 8))
    found = best(scores, length)
    expected = np.argsort(-scores, axis=1)[:, :length]
    assert found.items[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (found.items[:, 8:] == NOTHING).all()


def test_strata_hold_a_third_of_the_events_each():
    assert popularity_strata(array(0, 1, 1, 1, 1, 1, 1, 3, 3, 6)).tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 2, 3]


def test_items_of_equal_popularity_share_a_stratum():
    assert popularity_strata(array(2, 2, 2)).tolist() == [2, 2, 2]
    assert popularity_strata(array(0, 0)).tolist() == [0, 0]


def test_histories_fall_into_groups_of_their_length():
    found = by_history(array(0, 1, 2, 3, 5, 6, 10, 11, 20, 21, 50, 51, 900))
    assert {name: int(rows.sum()) for name, rows in found.items()} == {
        "0": 1, "1": 1, "2": 1, "3-5": 2, "6-10": 2, "11-20": 2, "21-50": 2, "51+": 2,
    }  # fmt: skip
    assert (np.sum(list(found.values()), axis=0) == 1).all()


def test_a_summary_is_plain_repeatable_and_never_nan():
    asked, train, table = world(n_users=3)
    vectors = np.zeros((N_ITEMS, 4), np.float32)  # no item has a text: no list has a similarity
    found = evaluate(table_lister(table), asked, facts_of(train, N_ITEMS, vectors))
    text = json.dumps(summarise(found), allow_nan=False)
    assert json.dumps(summarise(found), allow_nan=False) == text
    assert summarise(found)["metrics"][f"similarity@{protocol.K}"] is None
    assert summarise(found)["history"]["51+"] == {
        "users": 0,
        "metrics": dict.fromkeys(["hr@10", "ndcg@10", "mrr@10", "recall@10"]),
    }


def test_people_count_once_however_many_windows_ask_them():
    asked, train, table = world()
    found = evaluate(table_lister(table), asked, facts_of(train, N_ITEMS))
    twice = summarise(concatenate([found, found]))
    assert (twice["users"], twice["lists"]) == (31, 62)
    once = summarise(found)["metrics"]["ndcg@10"]
    assert twice["metrics"]["ndcg@10"]["mean"] == pytest.approx(once["mean"])
    assert twice["metrics"]["ndcg@10"]["standard_error"] == pytest.approx(once["standard_error"])


def test_recommenders_are_compared_on_the_same_people_only():
    asked, train, table = world()
    facts = facts_of(train, N_ITEMS)
    one = evaluate(table_lister(table), asked, facts)
    other = evaluate(table_lister(-table), asked, facts)
    found = compare(one, other)
    expected = one.metrics["ndcg@10"].values.mean() - other.metrics["ndcg@10"].values.mean()
    assert found["difference"]["mean"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InvalidInput, match="did not answer the same users"):
        compare(one, evaluate(table_lister(table), asked.take(np.arange(5)), facts))
