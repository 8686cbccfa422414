"""A build learns its ranking from what is held out, and from nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import DAY_S, DIM, NOW_S, FixedClock

from raysys.config import BuildSettings, ProfileSettings, RankingSettings
from raysys.data.synthetic import make_world
from raysys.encoder.hashing import HashEncoder
from raysys.in_process import LocalEncoder, LocalRanker, LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import Manifest
from raysys.index.store import SnapshotStore
from raysys.keys import item_keys
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import fold
from raysys.ranking.learned import FILE, LearnedRanking
from raysys.recommender import Recommender
from raysys.training import asked, behaviour, learn, local, log
from raysys.training.finish import REPORT
from raysys.training.held_out import HeldOut
from raysys.training.local import build_here
from raysys.training.plan import BuildPlan, planned
from raysys.training.report import Report, readable
from raysys.types import SOURCES, Event, Request

N_ITEMS, N_USERS, N_TOPICS = 150, 260, 6
NO_SHARDS = Manifest.model_construct(shards=[])
SPANS_DAYS = {"times": 90.0, "an order": 0.01}  # of the log


def settings_of(folder: Path, span: str, people: int = 8_000, n_users: int = N_USERS) -> BuildSettings:
    """A made-up shop whose log spans so many days."""
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(N_ITEMS, n_users, N_TOPICS, 0.9, seed=3)
    pq.write_table(world.items, folder / "items.parquet")
    given = world.events["timestamp_s"].to_numpy()
    place = (given - given.min()) / (given.max() - given.min())
    times_s = NOW_S - SPANS_DAYS[span] * DAY_S * (1 - place)
    time = pa.array((times_s * 1_000).astype(np.int64))
    events = world.events.drop_columns("timestamp_s").append_column("timestamp", time)
    pq.write_table(events, folder / "events.parquet")
    return BuildSettings.model_validate(
        {
            "catalog": {"path": str(folder / "items.parquet")},
            "events": {"path": str(folder / "events.parquet")},
            "encoder": {"kind": "hash", "dim": DIM},
            "index": {"root": str(folder / "index"), "shards": 2},
            "learning": {"people": people},
        }
    )


@pytest.fixture(scope="module", params=SPANS_DAYS)
def span(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def plan(span: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildPlan]:
    """Of a build that has fitted nothing yet."""
    settings = settings_of(tmp_path_factory.mktemp("plan"), span)
    with planned(settings, NOW_S) as plan:
        local.stage(plan, Report(FixedClock()))
        yield plan


@pytest.fixture(scope="module")
def snapshot(span: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = settings_of(tmp_path_factory.mktemp("built"), span)
    manifest = build_here(settings, FixedClock())
    assert FILE in manifest.files
    return SnapshotStore(settings.index.root).folder(manifest.snapshot_id)


def events_of(plan: BuildPlan) -> list[tuple[int, int, float]]:
    """(user, item, time) of every event."""
    found = []
    for part in range(plan.n_shards):
        table = log.read_part(plan, part)
        assert table is not None
        found += zip(*(table[name].to_pylist() for name in ("user", "item", "timestamp_s")), strict=True)
    return found


def test_what_is_held_out_is_what_came_last(plan: BuildPlan, span: str) -> None:
    held_out = log.hold_out(plan, NOW_S)
    assert held_out is not None
    events, left = events_of(plan), []
    for part in range(plan.n_shards):
        liked = log.liked(plan.without(held_out), part)
        assert liked is not None
        left += zip(liked.user.tolist(), liked.item.tolist(), liked.time_s.tolist(), strict=True)
    held = set(events) - set(left)
    if span == "times":
        assert {event for event in events if event[2] >= held_out.since_s} == held
        assert 0.05 < len(held) / len(events) < 0.4
        assert held_out.now_s == held_out.since_s
    else:
        latest = {user: max(time for u, _, time in events if u == user) for user, _, _ in events}
        assert all(time == latest[user] for user, _, time in held)
        assert len(held) == len({user for user, _, _ in held})
        assert 0.35 < len(held) / len(latest) < 0.65
        assert held_out.now_s == NOW_S


def test_no_model_sees_what_is_held_out(plan: BuildPlan) -> None:
    """The counts of items are those of the log without it, and so are the pairs."""
    held_out = log.hold_out(plan, NOW_S)
    assert held_out is not None
    earlier = plan.without(held_out)
    for part in range(plan.n_shards):
        behaviour.count_part(earlier, part, held_out.now_s)
    counts = behaviour.item_counts(earlier)
    expected: dict[int, int] = {}
    for part in range(plan.n_shards):
        liked = log.liked(earlier, part)
        assert liked is not None
        for item in liked.item.tolist():
            expected[item] = expected.get(item, 0) + 1
    assert dict(zip(counts.keys.tolist(), counts.count.astype(int).tolist(), strict=True)) == expected
    assert sum(expected.values()) < len(events_of(plan))
    assert earlier.fitted() != plan.fitted()


def test_few_people_or_none_wanted_hold_nothing_out(plan: BuildPlan) -> None:
    for people in (0, log.LEAST_PEOPLE - 1):
        learning = plan.settings.learning.model_copy(update={"people": people})
        unwilling = replace(plan, settings=plan.settings.model_copy(update={"learning": learning}))
        assert log.hold_out(unwilling, NOW_S) is None


@pytest.mark.parametrize("n_users", [log.ENOUGH_PEOPLE - 10, log.LEAST_PEOPLE - 10])
def test_of_a_small_log_more_is_held_out_and_of_a_tiny_one_nothing(n_users: int, tmp_path: Path) -> None:
    with planned(settings_of(tmp_path, "times", n_users=n_users), NOW_S) as plan:
        local.stage(plan, Report(FixedClock()))
        held_out, times_s = log.hold_out(plan, NOW_S), [time_s for _, _, time_s in events_of(plan)]
    if n_users < log.LEAST_PEOPLE:
        assert held_out is None
    else:
        assert held_out is not None
        assert held_out.since_s is not None
        assert np.mean(np.array(times_s) >= held_out.since_s) == pytest.approx(log.RECENT_SHARES[-1], abs=0.05)


def test_people_are_asked_as_they_were_for_what_they_did_next(plan: BuildPlan) -> None:
    held_out = log.hold_out(plan, NOW_S)
    assert held_out is not None
    earlier = plan.without(held_out, "asked")
    local.count(earlier, held_out.now_s)
    local.complete(earlier, HashEncoder(DIM).identity, Report(FixedClock()))
    questions = asked.questions(earlier)
    assert len(questions) >= log.LEAST_PEOPLE
    ids = {int(key): item_id for item_id in (f"item-{n}" for n in range(N_ITEMS)) for key in item_keys([item_id])}
    events = events_of(plan)
    for question in questions[:20]:
        mine = [(ids[item], time) for user, item, time in events if user == question.user]
        before = {item for item, time in mine if not _is_held(held_out, time, [t for _, t in mine])}
        after = {item for item, _ in mine} - before
        assert {i.item_id for i in question.profile.interactions} == before
        assert {ids[int(key)] for key in question.targets} == after
    lists = asked.lists_of(earlier, questions[:50], 0.7)
    assert len(lists) == 50
    assert (lists.relevant <= lists.there).all()
    assert lists.relevant.any()


def _is_held(held_out: HeldOut, time_s: float, times_s: list[float]) -> bool:
    return time_s == max(times_s) if held_out.since_s is None else time_s >= held_out.since_s


def test_the_report_says_what_was_learned_and_the_snapshot_ranks_by_it(snapshot: Path) -> None:
    learned = LearnedRanking.load(snapshot)
    report = json.loads((snapshot / REPORT).read_text())["ranking"]
    assert learned is not None
    assert report == learned.report
    assert report["ndcg@10"][report["chosen"]] == max(report["ndcg@10"].values())
    assert set(learned.weights) <= set(SOURCES)
    assert learned.step_decay in learn.STEP_DECAYS


async def test_served_by_settings_or_as_learned(snapshot: Path) -> None:
    learned = LearnedRanking.load(snapshot)
    assert learned is not None
    profile = fold(
        "u:x", [Event(str(n), "purchase", "u:x", f"item-{n}", NOW_S - n) for n in range(8)], ProfileSettings()
    )
    lookup, recall = Lookup(Catalogue(snapshot), NothingLive()), LocalRecall(open_shards(snapshot))
    encode = LocalEncoder(HashEncoder(DIM)).encode
    for ranking, decay in ((RankingSettings(), learned.step_decay), (RankingSettings(learned=False), None)):
        ranker = LocalRanker(ranking, snapshot)
        path = Recommender(lookup, encode, recall, ranker, ProfileSettings(), 40, FixedClock(), ranking)
        assert path.settings.step_decay == decay
        found = await path.candidates(Request(limit=1), profile)
        answer = await path.recommend(Request(limit=10), profile)
        expected = await ranker.score("", found.scores)
        best = found.key[np.lexsort((found.key, -expected))[:10]].tolist()
        assert [int(item_keys([item.item_id])[0]) for item in answer.items] == best
    given = Recommender(lookup, encode, recall, ranker, ProfileSettings(step_decay=0.5), 40, FixedClock())
    assert given.settings.step_decay == 0.5


def test_a_build_that_learns_nothing_says_why(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "times")
    with planned(settings, NOW_S) as plan:
        report = Report(FixedClock())
        report.learned = learn.save(None, plan)
        said = [line for line in readable(report.as_dict(), NO_SHARDS) if line.startswith("ranking by the settings")]
    assert len(said) == 1
    assert f"fewer than {learn.LEAST_LISTS} people" in said[0]
    assert not (plan.snapshot / FILE).exists()
