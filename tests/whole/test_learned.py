"""The learned ranking: trees against the library that fits them, the search, and that nothing judges itself."""

import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import RankingSettings
from raysys.errors import SnapshotError
from raysys.ranking.explain import without_each
from raysys.ranking.learned import FILE, LearnedRanker, LearnedRanking, NewItems, open_ranker
from raysys.ranking.linear import LinearRanker, weights_of
from raysys.ranking.trees import MOST_LEAVES, Trees
from raysys.training import asked, learn
from raysys.training.asked import KEPT, Lists, ndcg
from raysys.training.held_out import HeldOut
from raysys.training.learn import fit, search
from raysys.types import FRIENDS, POPULAR, PROFILE, QUERY, RIDGE, SOURCES, TRANSITION, WORDS

DEFAULTS = weights_of(RankingSettings())
LEAF: dict[str, Any] = {"value": 1.0}


def boosted(seed: int, leaves: int) -> tuple[lightgbm.Booster, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.linspace(-1, 1, 9), (400, 4)).astype(np.float32)  # many values that equal a threshold
    label = (rows[:, 0] * rows[:, 1] + rng.normal(0, 0.3, 400) > 0.2).astype(int)
    options = {"objective": "binary", "num_leaves": leaves, "min_data_in_leaf": 5, "num_threads": 1, "verbose": -1}
    return lightgbm.train(options, lightgbm.Dataset(rows, label), 20), rows


@given(st.integers(0, 1_000), st.integers(2, MOST_LEAVES))
@settings(max_examples=15, deadline=None)
def test_trees_score_as_the_library_that_fitted_them(seed: int, leaves: int) -> None:
    booster, rows = boosted(seed, leaves)
    trees = Trees.of([learn._nested(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]])
    expected = booster.predict(rows, raw_score=True, num_threads=1)
    assert np.allclose(trees.score(rows), expected, rtol=0, atol=1e-12)
    assert trees.least <= expected.min() + 1e-12


def test_a_tree_of_one_leaf_gives_its_value_and_too_large_a_tree_is_refused() -> None:
    assert Trees.of([LEAF, {"value": -0.5}]).score(np.zeros((3, 1), np.float32)).tolist() == [0.5] * 3
    for child, other in (("left", "right"), ("right", "left")):
        tree: dict[str, Any] = LEAF
        for _ in range(MOST_LEAVES):
            tree = {"feature": 0, "threshold": 0.0, child: tree, other: LEAF}
        with pytest.raises(ValueError, match="tree 0 has more than 8 leaves"):
            Trees.of([tree])


def a_ranking() -> LearnedRanking:
    tree = {"feature": 0, "threshold": 0.5, "left": {"value": -1.0}, "right": {"value": 2.0}}
    return LearnedRanking(weights={"ridge": 1.0}, columns=("ridge",), trees=(tree,), gain=0.5, floor=0.25)


def of_ridge(*scores: float) -> np.ndarray:
    rows = np.zeros((len(scores), len(SOURCES)), np.float32)
    rows[:, RIDGE] = scores
    return rows


def test_a_learned_ranking_adds_its_trees_from_the_floor_on() -> None:
    scores = LearnedRanker(a_ranking(), RankingSettings()).score([of_ridge(1.0, 0.5, 0.2), of_ridge()])
    assert scores[0].tolist() == pytest.approx([(1.0 + 1.0) / 2, (0.5 - 0.5) / 2, (0.2 - 0.5) / 2])
    assert len(scores[1]) == 0


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30))
def test_each_row_is_scored_for_itself_and_none_overtakes_from_below_the_floor(scores: list[float]) -> None:
    ranker = LearnedRanker(a_ranking(), RankingSettings())
    together = ranker.score([of_ridge(*scores)])[0]
    assert together.tolist() == [ranker.score([of_ridge(one)])[0][0] for one in scores]
    below = np.array(scores, np.float32) < np.float32(0.25)
    if below.any() and not below.all():
        assert together[below].max() <= together[~below].min()


def test_sources_that_were_not_learned_from_keep_the_weights_of_the_settings() -> None:
    rows = of_ridge(1.0, 1.0)
    rows[1, [QUERY, FRIENDS]] = 0.3
    ranker = LearnedRanker(a_ranking(), RankingSettings(query=2.0, friends=0.5, ridge=9.0))
    without, with_others = ranker.score([rows])[0]
    assert with_others - without == pytest.approx(0.3 * 2.0 + 0.3 * 0.5, abs=1e-6)


def test_what_is_saved_is_read_again_and_settings_decide_whether_it_ranks(tmp_path: Path) -> None:
    assert LearnedRanking.load(tmp_path) is None
    assert isinstance(open_ranker(RankingSettings(), tmp_path), LinearRanker)
    a_ranking().save(tmp_path)
    assert LearnedRanking.load(tmp_path) == a_ranking()
    assert isinstance(open_ranker(RankingSettings(), tmp_path), LearnedRanker)
    assert isinstance(open_ranker(RankingSettings(learned=False), tmp_path), LinearRanker)
    assert isinstance(open_ranker(RankingSettings(), None), LinearRanker)


@pytest.mark.parametrize("content", ["{", '{"weights": {"ridge": "much"}}', '{"weight": {}}'])
def test_a_damaged_ranking_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(SnapshotError, match=r"ranking\.json cannot be read"):
        LearnedRanking.load(tmp_path)


def some_lists(n: int, seed: int = 0, useful: int = TRANSITION) -> Lists:
    """Of each list one item was liked: mostly the one that the useful source scores highest. Others are noise."""
    rng = np.random.default_rng(seed)
    lists = Lists.empty(n)
    lists.there[:, :50] = True
    for column in (TRANSITION, RIDGE, PROFILE, POPULAR):
        lists.scores[:, :50, column] = rng.random((n, 50)) * 0.05
    noisy = lists.scores[:, :50, useful] + rng.random((n, 50)) * 0.01
    lists.relevant[np.arange(n), noisy.argmax(axis=1)] = True
    lists.fold[:] = np.arange(n) % asked.FOLDS
    return lists


def slow_ndcg(lists: Lists, scores: np.ndarray) -> list[float]:
    found = []
    for liked, of_list, best in zip(lists.relevant, scores, lists.best, strict=True):
        ranks = [sum(of_list >= of_list[at]) for at in np.flatnonzero(liked)]
        found.append(sum(1 / np.log2(1 + rank) for rank in ranks if rank <= asked.K) / best)
    return found


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_ndcg_is_what_its_definition_says_with_ties_against_us(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lists = some_lists(5, seed)
    lists.relevant[:] = (rng.random(lists.relevant.shape) < 0.05) & lists.there
    scores = np.where(lists.there, rng.integers(0, 9, lists.there.shape), -np.inf).astype(np.float32)
    assert ndcg(lists, scores).tolist() == pytest.approx(slow_ndcg(lists, scores))


def test_the_search_finds_the_source_that_tells_and_never_does_worse_than_its_start() -> None:
    lists = some_lists(300, useful=POPULAR)
    weights = search(lists, DEFAULTS)
    before, after = (ndcg(lists, lists.weighed(w)).mean() for w in (DEFAULTS, weights))
    assert weights[POPULAR] > 10 * DEFAULTS[POPULAR]
    assert after > 2 * before
    others = [c for c in range(len(SOURCES)) if c not in (TRANSITION, RIDGE, PROFILE, POPULAR)]
    assert weights[others].tolist() == DEFAULTS[others].tolist()
    assert (weights == DEFAULTS)[[TRANSITION, RIDGE, PROFILE, POPULAR]].any()  # one of them keeps the proportion


def test_what_is_learned_is_judged_by_others_and_kept_only_where_it_is_better() -> None:
    learned = fit(some_lists(900, useful=POPULAR), RankingSettings())
    assert learned is not None
    figures = learned.report["ndcg@10"]
    assert learned.report["chosen"] != "settings"
    assert figures[learned.report["chosen"]] == max(figures.values()) > figures["settings"]
    noise = some_lists(450, seed=1)
    rng = np.random.default_rng(2)
    noise.relevant[:] = False
    noise.relevant[np.arange(450), rng.integers(0, 50, 450)] = True
    of_noise = fit(noise, RankingSettings())
    assert of_noise is not None
    assert of_noise.report["ndcg@10"][of_noise.report["chosen"]] < 0.15  # 10 of 50 by chance: .09


def test_the_same_lists_give_the_same_ranking_to_the_last_bit() -> None:
    lists = some_lists(700)
    assert fit(lists, RankingSettings()) == fit(lists, RankingSettings())


def test_from_few_lists_nothing_is_learned_and_from_some_no_trees() -> None:
    assert fit(some_lists(learn.LEAST_LISTS - 1), RankingSettings()) is None
    learned = fit(some_lists(learn.LEAST_LISTS_FOR_TREES - 1, useful=POPULAR), RankingSettings())
    assert learned is not None
    assert set(learned.report["ndcg@10"]) == {"settings", "weights"}
    assert not learned.trees
    nothing = some_lists(300)
    nothing.relevant[:] = False
    assert fit(nothing, RankingSettings()) is None
    assert fit(Lists.empty(0), RankingSettings()) is None
    assert KEPT >= learn.SEEN_BY_TREES


@given(st.data())
def test_the_last_like_of_each_chosen_person_is_held_out_and_nothing_else(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 1_000)))
    users = rng.integers(0, 2**63, 6, dtype=np.uint64)[rng.integers(0, 6, n)]
    times_s, liked = rng.integers(0, 50, n).astype(float), rng.random(n) < 0.6
    held_out = HeldOut(None, 0.5, 50.0)
    held = held_out.rows(users, times_s, liked)
    for user in np.unique(users):
        mine = users == user
        wanted = bool(held_out.chosen(users[mine][:1])[0]) and (mine & liked).any()
        assert held[mine].sum() == int(wanted)
        if wanted:
            assert times_s[held & mine][0] == times_s[mine & liked].max()
    since = HeldOut(20.0, 1.0, 20.0)
    assert since.rows(users, times_s, liked).tolist() == (times_s >= 20).tolist()
    assert since.chosen(users).all()


def test_without_the_library_the_weights_are_learned_and_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    learn._why_no_trees.cache_clear()
    learned = fit(some_lists(learn.LEAST_LISTS_FOR_TREES + 100, useful=POPULAR), RankingSettings())
    learn._why_no_trees.cache_clear()
    assert learned is not None
    assert set(learned.report["ndcg@10"]) == {"settings", "weights"}
    assert "install the package libgomp1" in learned.report["without_trees"]


def texts_and_behaviour(n: int, seed: int = 0) -> Lists:
    """Behaviour tells of most items which one is liked, and texts tell of all, less clearly. Nobody met a tenth."""
    rng = np.random.default_rng(seed)
    lists = Lists.empty(n)
    lists.there[:, :50] = lists.by_text[:, :50] = True
    lists.part[:, :50] = rng.integers(0, asked.PARTS, 50)
    wish = rng.random((n, 50))
    lists.relevant[np.arange(n), wish.argmax(axis=1)] = True
    lists.scores[:, :50, TRANSITION] = wish + rng.random((n, 50)) * 0.01
    lists.scores[:, :50, POPULAR] = 1
    for column in (PROFILE, WORDS):
        lists.scores[:, :50, column] = wish + rng.random((n, 50)) * 0.1
    unmet = rng.random((n, 50)) < 0.1
    for column in (TRANSITION, POPULAR):
        lists.scores[:, :50, column][unmet] = 0
    lists.fold[:] = np.arange(n) % asked.FOLDS
    return lists


def test_new_items_come_in_where_their_texts_tell_and_others_stay_as_they_are() -> None:
    lists = texts_and_behaviour(600)
    learned = fit(lists, RankingSettings())
    assert learned is not None
    assert learned.new_items is not None
    figures = learned.report["new_items"]["ndcg@10"]
    assert figures["learned"] > figures["like all others"] + 0.05
    without = learned.model_copy(update={"new_items": None})
    others = texts_and_behaviour(300, seed=1)
    scores, before = (learn._scored(ranking, RankingSettings(), others) for ranking in (learned, without))
    is_new = others.there & (others.scores[..., POPULAR] == 0)
    assert np.array_equal(scores[~is_new], before[~is_new])
    liked_and_new = (others.relevant & is_new).any(axis=1)
    of_new = [ndcg(others, s)[liked_and_new].mean() for s in (before, scores)]
    assert of_new[1] > of_new[0] + 0.3


def test_where_texts_tell_nothing_new_items_are_not_put_in_front() -> None:
    lists = texts_and_behaviour(600)
    rng = np.random.default_rng(3)
    for column in (PROFILE, WORDS):
        lists.scores[:, :50, column] = rng.random((600, 50))
    noise = fit(lists, RankingSettings())
    assert noise is not None
    known = ndcg(lists, learn._scored(noise.model_copy(update={"new_items": None}), RankingSettings(), lists))
    assert ndcg(lists, learn._scored(noise, RankingSettings(), lists)).mean() > known.mean() - 0.02
    for column in (PROFILE, WORDS):
        lists.scores[..., column] = 0
    lists.by_text[:] = False
    silent = fit(lists, RankingSettings())
    assert silent is not None
    assert silent.new_items is None
    assert "say nothing" in silent.report["new_items"]["why_not"]


def test_an_item_that_somebody_met_never_passes_for_a_new_one_when_its_score_is_explained() -> None:
    learned = LearnedRanking(
        weights={"transition": 1.0, "popular": 0.1}, new_items=NewItems(weights={"profile": 1.0}, offset=5.0)
    )
    ranker = LearnedRanker(learned, RankingSettings())
    row = np.zeros((1, len(SOURCES)), np.float32)
    row[0, [PROFILE, TRANSITION, POPULAR]] = (0.5, 0.2, 1.0)
    total, parts = ranker.score([row])[0], ranker.score([without_each(row)])[0]
    lost = total[0] - parts
    assert lost[[TRANSITION, POPULAR]].tolist() == pytest.approx([0.2, 0.1], abs=1e-6)
    assert np.abs(np.delete(lost, [PROFILE, TRANSITION, POPULAR])).max() < 1e-6
    row[0, POPULAR] = 0
    assert ranker.score([row])[0].tolist() == pytest.approx([0.5 + 5.0])  # by its text alone
    row[0, PROFILE] = 0
    assert ranker.score([row])[0].tolist() == pytest.approx([0.2])  # which says nothing here
