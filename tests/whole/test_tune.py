"""`raysys tune`: the search on made-up objectives, then the whole command on a made-up shop."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from support import NOW_S, FixedClock, Shop
from typer.testing import CliRunner

from raysys import cli
from raysys.config import BehaviourSettings, BuildSettings, LearningSettings, load
from raysys.data.synthetic import make_world
from raysys.errors import ConfigError
from raysys.index.store import LOCK, SnapshotStore
from raysys.training import local, log, tune
from raysys.training.finish import REPORT
from raysys.training.local import build_here
from raysys.training.plan import BuildPlan, planned
from raysys.training.report import Report
from raysys.training.tune import GRID, MADE_BY, Search, Trial, Tuned, paired

Objective = Callable[[Mapping[str, float]], np.ndarray]
N_PEOPLE = 50


def searched(
    start: Mapping[str, float], grid: Mapping[str, tuple[float, ...]], objective: Objective, most: int = 10**6
):
    """(the search, all values that were judged in their order)."""
    search, asked = Search(start, objective(start), grid), [dict(start)]
    for name, value in search.proposals():
        if len(search.trials) == most:
            break
        asked.append(search.best | {name: value})
        search.tell(name, value, objective(asked[-1]))
    return search, asked


def table_of(seed: int, noise: float) -> Objective:
    """Any values are worth something of their own, which is the same whenever they are asked for."""

    def objective(values: Mapping[str, float]) -> np.ndarray:
        mine = np.random.default_rng([seed, *(int(10 * values[name]) for name in sorted(values))])
        return mine.random() + noise * mine.normal(size=N_PEOPLE)

    return objective


grids = st.dictionaries(
    st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True).map(sorted), min_size=1
)


@given(grids, st.integers(0, 10_000), st.sampled_from([0.0, 0.5]), st.data())
@how(max_examples=30, deadline=None)
def test_a_search_ends_where_no_neighbour_is_better_and_tries_nothing_twice(grid, seed, noise, data) -> None:
    start = {name: data.draw(st.integers(0, 9)) for name in grid}  # on the grid or off it
    objective = table_of(seed, noise)
    search, asked = searched(start, grid, objective)
    assert all(asked.count(values) == 1 for values in asked)
    assert search.judged.tolist() == objective(search.best).tolist()
    means = [float(objective(values).mean()) for values in asked]
    assert search.judged.mean() >= means[0]
    for name, values in grid.items():
        above = [v for v in values if v > search.best[name]][:1]
        below = [v for v in values if v < search.best[name]][-1:]
        for value in above + below:
            neighbour = search.best | {name: value}
            assert neighbour in asked
            if noise == 0:
                assert objective(neighbour).mean() <= search.judged.mean()


@given(grids, st.integers(0, 10_000), st.integers(0, 6), st.data())
@how(max_examples=30, deadline=None)
def test_what_is_taken_gained_more_than_its_error_and_makes_the_best_values(grid, seed, most, data) -> None:
    start = {name: data.draw(st.integers(0, 9)) for name in grid}
    search, asked = searched(start, grid, table_of(seed, 0.5), most)
    assert len(search.trials) == len(asked) - 1 <= most
    assert all(trial.taken == (trial.gain > trial.standard_error) for trial in search.trials)
    taken = {trial.name: trial.value for trial in search.trials if trial.taken}
    assert search.best == {**start, **taken}


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
@how(max_examples=30, deadline=None)
def test_the_top_of_a_hill_is_found(top: int, start: int, other: int) -> None:
    grid = {"a": tuple(range(9)), "b": tuple(range(9))}
    search, _ = searched(
        {"a": start, "b": other}, grid, lambda v: np.full(N_PEOPLE, -((v["a"] - top) ** 2) - abs(v["b"] - 4))
    )
    assert search.best == {"a": top, "b": 4}


def test_a_gain_within_its_error_is_not_taken_and_an_equal_one_neither() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    noise -= noise.mean()
    error = noise.std() / 20
    for gain, is_taken in ((0.9 * error, False), (1.1 * error, True), (-2 * error, False)):
        search = Search({"a": 1}, np.zeros(400), {"a": (1, 2)})
        assert search.tell("a", 2, noise + gain).taken is is_taken
    assert not Search({"a": 1}, np.ones(9), {"a": (1, 2)}).tell("a", 2, np.ones(9)).taken


def test_people_are_compared_with_themselves() -> None:
    before = np.linspace(0, 1, 100)
    assert paired(before + 0.01, before) == (pytest.approx(0.01), pytest.approx(0, abs=1e-12))
    trial = Search({"a": 1}, before, {"a": (1, 2)}).tell("a", 2, before + 0.01)
    assert trial == Trial("a", 1, 2, pytest.approx(0.51), pytest.approx(0.01), pytest.approx(0, abs=1e-12), True)
    assert str(trial) == "NDCG@10 0.51000, +0.01000 (standard error 0.00000): taken"


def test_every_value_of_the_grid_is_one_that_the_settings_take() -> None:
    for name, values in GRID.items():
        assert list(values) == sorted(values)
        for value in values:
            given = BehaviourSettings.model_validate({name: value})
            assert type(getattr(given, name)) is type(value)
    assert {name for names in MADE_BY.values() for name in names} <= set(GRID)


class TickingClock(FixedClock):
    """Each look at it takes ten seconds, so that a budget is a number of trials."""

    def monotonic_s(self) -> float:
        self.at_s += 10
        return self.at_s


class BigShop(Shop):
    """With enough people to judge by, and times within a week, so that what is held out is what each liked last."""

    @cached_property
    def world(self):
        return make_world(80, 260, 6, 0.9, seed=3, events_per_user=8)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> BigShop:
    return BigShop(tmp_path_factory.mktemp("big"), behaviour={"factors": "always", "factors_iterations": 2})


def yaml_of(shop: Shop, folder: Path, **changes: Any) -> Path:
    settings = shop.settings(2, folder / "index").model_dump(mode="json", exclude_unset=True)
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def left(root: Path) -> list[str]:
    """All that is under an index root."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_what_a_change_does_not_touch_is_as_if_it_were_fitted_again(big: BigShop, tmp_path: Path) -> None:
    settings = big.settings(2, tmp_path)
    with planned(settings, NOW_S) as plan:
        report = Report(FixedClock())
        identity, latest_s = local.stage(plan, report)
        held_out = log.hold_out(plan, latest_s)
        assert held_out is not None
        again = tune._Fits(plan, held_out, identity, report)
        files_of(again._fitted({}))
        for name, values in GRID.items():
            value = next(value for value in values if value != again.start()[name])
            fresh = tune._Fits(replace(plan, staging=tmp_path / "fresh"), held_out, identity, report)
            for folder in ("events", "settled", "words", "vocabulary"):
                shutil.copytree(plan.staged(folder), tmp_path / "fresh" / folder)
            reused, fitted = (files_of(fits._fitted({name: value})) for fits in (again, fresh))
            shutil.rmtree(tmp_path / "fresh")
            assert reused == fitted, name


def files_of(plan: BuildPlan) -> dict[str, bytes]:
    """What was fitted, as it stands in the snapshot."""
    names = [path for path in sorted(plan.snapshot.rglob("*")) if path.is_file() and path.suffix != ".json"]
    return {path.relative_to(plan.snapshot).as_posix(): path.read_bytes() for path in names}


def test_a_search_on_a_shop_leaves_only_vectors_which_are_used_again(big: BigShop, tmp_path: Path) -> None:
    settings = big.settings(2, tmp_path)
    said: list[str] = []
    tuned = tune.tune(settings, 1.6, said.append, TickingClock())
    assert [(t.name, t.before, t.value) for t in tuned.trials][:1] == [("ridge_words", 2.0, 3.0)]
    assert (tuned.people >= 100, tuned.is_complete, len(tuned.trials)) == (True, False, 2)
    assert len(said) == 2 + 2 * 2
    assert "ridge_words 3 instead of 2 ..." in said[2]
    assert 0.1 < tuned.ndcg_before <= tuned.ndcg_after < 1
    assert tuned.gain == pytest.approx(tuned.ndcg_after - tuned.ndcg_before)
    vectors = [name for name in left(tmp_path) if name != LOCK]
    assert all(name.startswith("embeddings/") for name in vectors)
    manifest = build_here(settings.model_copy(update={"learning": LearningSettings(people=0)}), FixedClock())
    folder = SnapshotStore(tmp_path).folder(manifest.snapshot_id)
    assert json.loads((folder / REPORT).read_text())["todo"] == 0
    assert [name for name in left(tmp_path) if name.startswith("embeddings/")] == vectors


def test_the_command_judges_what_is_given_as_a_build_does_and_what_is_published_stays(
    big: BigShop, tmp_path: Path
) -> None:
    path = yaml_of(big, tmp_path)
    before, store = path.read_text(), SnapshotStore(tmp_path / "index")
    folder = store.folder(build_here(load(BuildSettings, path), FixedClock()).snapshot_id)
    learned, published = json.loads((folder / REPORT).read_text())["ranking"], left(store.root)
    answer = CliRunner().invoke(cli.app, ["tune", str(path), "--minutes", "0", "--write"])
    assert answer.exit_code == 0, answer.output
    assert "nothing that was tried is clearly better" in answer.output
    assert "the time is up" in answer.output
    report = json.loads((tmp_path / "shop.tuning.json").read_text())
    assert report["people"] == learned["people"] >= 100
    assert round(report["ndcg_before"], 5) == learned["ndcg@10"][learned["chosen"]]
    assert (report["changes"], report["trials"], report["gain"]) == ({}, [], 0)
    assert (path.read_text(), (tmp_path / "shop.tuned.yaml").exists()) == (before, False)
    assert left(store.root) == published


def test_changes_are_written_into_a_copy_and_all_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "books.yaml"
    raw = {"catalog": {"path": "bücher.csv", "columns": {"item_id": "isbn"}}, "behaviour": {"window": 9, "shrink": 3.5}}
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    written = yaml.safe_load(tune.with_changes(path, {"window": 20, "ridge_words": 3.0}))
    assert written == raw | {"behaviour": {"window": 20, "shrink": 3.5, "ridge_words": 3.0}}
    assert list(written) == list(raw)
    assert BuildSettings.model_validate(written).behaviour.ridge_words == 3.0
    path.write_text("catalog: {path: a.csv}\n")
    assert yaml.safe_load(tune.with_changes(path, {"window": 5}))["behaviour"] == {"window": 5}
    assert tune.beside(path, ".tuned.yaml") == tmp_path / "books.tuned.yaml"
    with pytest.raises(ConfigError, match=r"cannot write .*put a copy of the settings"):
        tune.beside(tmp_path / "nowhere" / "books.yaml", ".tuned.yaml")


def test_the_table_says_what_was_tried_and_what_came_of_it() -> None:
    trials = (Trial("ridge_words", 2, 3, 0.5, 0.1, 0.01, True), Trial("shrink", 100, 300, 0.4, -0.1, 0.01, False))
    table = cli.trials_table(Tuned(200, {"ridge_words": 3}, 0.4, 0.5, 0.1, 0.01, True, trials))
    assert [list(column.cells) for column in table.columns] == [
        ["ridge_words", "shrink"],
        ["2", "100"],
        ["3", "300"],
        ["0.50000", "0.40000"],
        ["+0.10000", "-0.10000"],
        ["0.01000", "0.01000"],
        ["yes", ""],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": None}, "the settings have no `events`"),
        ({"learning": {"people": 40}}, "learning.people is 40, but values cannot be judged by fewer than 60 people"),
        ({"behavior": {}}, "there is no such setting; did you mean 'behaviour'"),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_the_reason(big: BigShop, tmp_path: Path, changes, message: str) -> None:
    path = yaml_of(big, tmp_path, **changes)
    answer = CliRunner().invoke(cli.app, ["tune", str(path)])
    assert isinstance(answer.exception, ConfigError)
    assert message in str(answer.exception)
    assert not (tmp_path / "shop.tuning.json").exists()
    assert not [name for name in left(tmp_path) if name.startswith(("index/snapshots", "index/staging"))]


def test_too_few_people_are_refused(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"too few people to judge by: fewer than {log.LEAST_PEOPLE}"):
        tune.tune(shop.settings(2, tmp_path), 1)


def test_the_help_names_the_options_and_a_negative_time_is_refused() -> None:
    answer = CliRunner().invoke(cli.app, ["tune", "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert all(word in answer.output for word in ("--minutes", "--write", "Publishes nothing"))
    assert CliRunner().invoke(cli.app, ["tune", "x.yaml", "--minutes", "-1"]).exit_code == 2
