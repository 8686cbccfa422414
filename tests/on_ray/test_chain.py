"""The main job from end to end on a real head: submit, serve, ask, write, swap, break, and compare with the oracle."""

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from clusters import DEADLINE_S, poll, settings_of, world_settings, write_settings
from doors import all_doors, open_to_others

from raysys.client import ApiError, Client
from raysys.config import ProfileSettings, RankingSettings, ServeSettings
from raysys.encoder.build import build_encoder
from raysys.in_process import LocalEncoder, LocalRanker, LocalRecall, open_shards
from raysys.index import inventory
from raysys.index.catalogue import Catalogue
from raysys.index.retention import collect
from raysys.index.store import SnapshotStore
from raysys.lookup import Lookup, NothingLive
from raysys.publishing.activate import activate
from raysys.ranking.learned import LearnedRanking
from raysys.recommender import STUDENT, Recommender
from raysys.serving.deploy import replica_pids
from raysys.serving.session import LocalService
from raysys.snapshots import wait_for
from raysys.training.local import build_here
from raysys.types import FACTORS, Profile, Request

pytestmark = pytest.mark.ray

FILTER = {"must": [{"field": "year", "range": {"gte": 1990}}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def raw(folder: Path) -> dict[str, Any]:
    """Of enough people that the ranking is learned, and enough texts for a student."""
    fitted = {"behaviour": {"factors": "always", "factors_dim": 16}, "student": {"queries": 400, "dim": 64}}
    return world_settings(folder, n_users=400, **fitted)


@pytest.fixture(scope="module")
def job_log(service: LocalService, raw: dict[str, Any], folder: Path) -> list[str]:
    return list(service.submit(write_settings(raw, folder / "build.yaml")))


@pytest.fixture(scope="module")
def args(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "index_root": raw["index"]["root"],
        "state": str(folder / "state.sqlite3"),
        "impressions": {"folder": str(folder / "impressions")},
        "ranking": {"trending": 0.0},  # it changes with every second, and the tests here compare answers
        "experiments": [{"name": "x", "arms": [{"name": "a"}, {"name": "b", "ranking": {"popular": 0, "words": 1}}]}],
    }


@pytest.fixture(scope="module")
def api(service: LocalService, job_log: list[str], args: dict[str, Any], port: int) -> Iterator[Client]:
    with Client(service.serve(args, port)) as client:
        yield client


def oracle(root: str) -> Recommender:
    """The same path over the same snapshot, as plain objects in this process."""
    store = SnapshotStore(root)
    catalogue = Catalogue(store.folder(store.current_id()))
    shards = LocalRecall(open_shards(catalogue.folder))
    encoder = LocalEncoder(build_encoder(catalogue.manifest.encoder))
    ranker, k = LocalRanker(RankingSettings(), catalogue.folder), ServeSettings().candidates_per_source
    return Recommender(Lookup(catalogue, NothingLive()), encoder.encode, shards, ranker, ProfileSettings(), k)


def some_requests(recommender: Recommender) -> list[dict[str, Any]]:
    ids = [recommender.catalogue.item_id(shard, row) for shard in (0, 1) for row in (0, 5, 9)]
    title = recommender.catalogue.metadata(0, 3)["title"]
    return [
        {"limit": 10},
        {"limit": 10, "query": title},
        {"limit": 7, "positive": ids[:2]},
        {"limit": 7, "history": ids[:3], "negative": ids[3:], "query": title},
        {"limit": 500, "history": ids},
        {"limit": 5, "history": ids[:3], "query": title, "explain": "full", "language": "zh"},
    ]


def texts(items: Iterable[dict[str, Any]]) -> list[list[str]]:
    """What is said of each item."""
    return [[reason["text"] for reason in item["reasons"]] for item in items]


def test_the_job_publishes_a_snapshot_and_reports(job_log: list[str], raw: dict[str, Any]) -> None:
    store = SnapshotStore(raw["index"]["root"])
    manifest = store.manifest(store.current_id())
    assert manifest.n_items == 400
    assert [line for line in job_log if line.startswith("items 400 in 2 shard(s), recall@10 1.000")]
    assert {"report.json", "quarantine.jsonl"} <= set(manifest.files)
    learned = LearnedRanking.load(store.folder(manifest.snapshot_id))
    assert learned is not None
    assert [line for line in job_log if line.startswith(f"ranking by {learned.report['chosen']}: NDCG@10 of settings")]
    assert "student/student.json" in manifest.files
    assert [line for line in job_log if line.startswith("student of the encoder, from ")]
    assert not (store.root / "staging" / manifest.snapshot_id).exists()


def test_the_job_fits_the_factors_that_one_process_fits(
    job_log: list[str], raw: dict[str, Any], tmp_path: Path
) -> None:
    """Ray tasks over two blocks against three blocks in this process."""
    here = settings_of({**raw, "index": {"root": str(tmp_path), "shards": 3}})
    build_here(here)
    one, other = (space_of(root) for root in (raw["index"]["root"], str(tmp_path)))
    assert any(vector.any() for vector in one.values())
    assert one.keys() == other.keys()
    for key, vector in one.items():
        assert vector == pytest.approx(other[key], abs=1e-4)


def space_of(root: str) -> dict[int, np.ndarray]:
    """Item key -> its factors in the published snapshot."""
    store = SnapshotStore(root)
    shards = Catalogue(store.folder(store.current_id())).shards
    return {int(key): v for files in shards for key, v in zip(files.keys, files.spaces[FACTORS], strict=True)}


def test_a_second_build_encodes_nothing_again(
    service: LocalService, job_log: list[str], raw: dict[str, Any], folder: Path
) -> None:
    texts_only = {**raw, "index": {**raw["index"], "publish": False}, "events": None, "student": None}
    lines = list(service.submit(write_settings(texts_only, folder / "again.yaml")))
    assert "every text has been encoded by an earlier build" in lines


def test_a_wrong_column_fails_with_its_name(service: LocalService, raw: dict[str, Any], folder: Path) -> None:
    wrong = {**raw, "catalog": {**raw["catalog"], "columns": {"title": "titel"}}}
    with pytest.raises(Exception, match="titel"):
        list(service.submit(write_settings(wrong, folder / "wrong.yaml")))


def test_every_socket_is_on_loopback_or_allowed(service: LocalService, api: Client, port: int) -> None:
    head = service.head
    found = all_doors(head, {port, head.ports.proxy_metrics, head.ports.proxy_stats})
    assert len([door for door in found if door.kind == "tcp"]) > 10
    wrong = open_to_others(found)
    assert not wrong, "\n".join(map(str, wrong))
    assert httpx.get(f"{head.dashboard_url}/api/version", timeout=10).status_code == 401  # without the token


def test_remote_answers_equal_local_ones(api: Client, raw: dict[str, Any]) -> None:
    recommender = oracle(raw["index"]["root"])
    for body in some_requests(recommender):
        remote = api.recommend(**body)
        request = Request(**{k: tuple(v) if isinstance(v, list) else v for k, v in body.items()})
        local = asyncio.run(recommender.recommend(request, Profile("")))
        assert [item["item_id"] for item in remote["items"]] == [item.item_id for item in local.items]
        assert [item["score"] for item in remote["items"]] == pytest.approx([i.score for i in local.items], abs=1e-5)
        assert texts(remote["items"]) == texts(map(asdict, local.items))
        assert remote["degraded"] == []
        assert_parted(remote["timings_ms"])


def assert_parted(timings_ms: dict[str, float]) -> None:
    """The shards, and whatever else is asked over the network, have parts that take no longer than the stage."""
    remote = {name.removesuffix(".network") for name in timings_ms if name.endswith(".network")}
    assert {"recall"} <= remote <= {"encode", "recall", "rank"}
    for stage in remote:
        parts = [timings_ms[f"{stage}.{part}"] for part in ("queue", "compute", "network")]
        assert min(parts[1:]) > 0
        assert sum(parts) <= timings_ms[stage] + 0.002  # each is rounded


def test_every_route_answers(api: Client) -> None:
    found = api.recommend(limit=3)["items"]
    ids = [item["item_id"] for item in found]
    title = found[0]["metadata"]["title"]
    assert api.search(title, limit=1)["items"][0]["metadata"]["title"] == title
    assert ids[0] not in [item["item_id"] for item in api.similar(ids[0], limit=5)["items"]]
    ranked = api.rank([*ids, "no such item"], query=title)
    assert sorted(item["item_id"] for item in ranked["items"]) == sorted(ids)
    assert ranked["unknown_items"] == ["no such item"]
    assert [item["item_id"] for item in api.items(ids)["items"]] == ids
    assert all(item["metadata"]["year"] >= 1990 for item in api.recommend(filter=FILTER)["items"])
    with pytest.raises(ApiError, match="404 unknown_item"):
        api.similar("no such item")


def test_an_event_changes_the_very_next_answer(api: Client) -> None:
    user = uuid.uuid4().hex
    before = api.recommend(user_id=user, limit=5)
    assert before["reasons"] == ["cold_start"]
    liked = before["items"][0]["item_id"]
    event = {"event_id": uuid.uuid4().hex, "type": "like", "user_id": user, "item_id": liked}
    assert api.send([event])["profile_versions"] == {user: 1}
    after = api.recommend(user_id=user, limit=5)
    assert after["profile_version"] == 1
    assert liked not in [item["item_id"] for item in after["items"]]
    assert after["items"] != before["items"]
    assert api.send([event])["duplicates"] == 1


def test_what_a_friend_buys_is_in_the_very_next_answer(api: Client) -> None:
    user, friend = uuid.uuid4().hex, uuid.uuid4().hex
    api.post("/v1/users", {"users": [{"user_id": user, "follows": [f"user:{friend}"]}]})
    bought = api.recommend(user_id=user, limit=50)["items"][-1]["item_id"]
    api.send([{"event_id": uuid.uuid4().hex, "type": "purchase", "user_id": friend, "item_id": bought}])
    answer = api.recommend(user_id=user, limit=5)
    assert [item["item_id"] for item in answer["items"] if "friends" in item["sources"]] == [bought]
    assert answer["degraded"] == answer["reasons"] == []


def test_the_student_answers_for_a_dead_encoder(service: LocalService, api: Client, raw: dict[str, Any]) -> None:
    title = oracle(raw["index"]["root"]).catalogue.metadata(0, 3)["title"]
    (pid,) = replica_pids(service.head.dashboard_url, service.token)["encoder"]
    os.kill(pid, signal.SIGKILL)
    # Each query is new: the vector of one that was asked before is kept.
    answers = [api.recommend(query=f"{title} {uuid.uuid4().hex}", limit=5) for _ in range(5)]
    assert all(any("query" in item["sources"] for item in answer["items"]) for answer in answers)
    assert all(answer["degraded"] in ([], [STUDENT]) for answer in answers)
    poll("the encoder is back", lambda: api.recommend(query=f"{title} {uuid.uuid4().hex}", limit=5)["degraded"] == [])
    poll(
        "the new replica is listed alone",
        lambda: (
            len({*replica_pids(service.head.dashboard_url, service.token)["encoder"]} - {pid}) == 1
            and pid not in replica_pids(service.head.dashboard_url, service.token)["encoder"]
        ),
    )


def test_a_new_snapshot_is_taken_up_without_a_restart_or_a_failed_request(
    service: LocalService, api: Client, raw: dict[str, Any], folder: Path
) -> None:
    before = replica_pids(service.head.dashboard_url, service.token)
    old = api.recommend(limit=1)["snapshot_id"]
    answers: list[str] = []
    failures: list[Exception] = []
    done = threading.Event()

    def ask() -> None:
        with Client(api.url) as client:
            while not done.is_set():
                try:
                    answers.append(client.recommend(limit=5)["snapshot_id"])
                except Exception as error:
                    failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        new = build_here(settings_of(world_settings(folder, n_items=420, seed=1))).snapshot_id
        poll("the new snapshot answers", lambda: answers and answers[-1] == new)
    finally:
        done.set()
        asking.join()
    assert not failures
    assert answers == sorted(answers, key=[old, new].index), "once on the new snapshot, never back"
    assert replica_pids(service.head.dashboard_url, service.token) == before


def test_a_rollback_is_taken_up_and_what_the_replicas_hold_is_not_collected(
    service: LocalService, api: Client, raw: dict[str, Any]
) -> None:
    before = replica_pids(service.head.dashboard_url, service.token)
    store = SnapshotStore(raw["index"]["root"])
    new, old = store.rollback()
    wait_for(api.url, old, DEADLINE_S)
    assert api.recommend(limit=1)["snapshot_id"] == old
    poll("every replica holds the old one", lambda: held(store) == {old})
    collect(store, keep=1)
    assert {old, new} <= set(store.list())  # the one in use, and one that is newer
    done = activate(store, new, force=True)  # of another world: the answers have little in common
    assert done.comparison is not None
    wait_for(api.url, new, DEADLINE_S)
    assert api.recommend(limit=1)["snapshot_id"] == new
    assert replica_pids(service.head.dashboard_url, service.token) == before


def held(store: SnapshotStore) -> set[str]:
    """The snapshots that some process holds."""
    return {one.snapshot_id for one in inventory.snapshots(store) if one.is_held}


def test_a_dead_shard_is_named_and_comes_back(service: LocalService, api: Client) -> None:
    (pid,) = replica_pids(service.head.dashboard_url, service.token)["shard-01"]
    os.kill(pid, signal.SIGKILL)
    answers = [api.recommend(limit=5) for _ in range(3)]
    assert all(answer["items"] for answer in answers)
    assert all(answer["degraded"] in ([], ["shard-01"]) for answer in answers)
    ready = api.get("/readyz")  # not 503: the others answer
    assert (ready["away"], ready["partial"]) in (([], False), (["shard-01"], True))
    poll("the shard is back", lambda: api.recommend(limit=5)["degraded"] == [])
    (new_pid,) = poll(
        "the new replica is listed",
        lambda: [p for p in replica_pids(service.head.dashboard_url, service.token)["shard-01"] if p != pid],
    )
    assert new_pid != pid


def test_fused_answers_equal_tiered_ones(
    service: LocalService, api: Client, args: dict[str, Any], raw: dict[str, Any], port: int
) -> None:
    bodies = some_requests(oracle(raw["index"]["root"]))
    bodies += [{**bodies[2], "user_id": f"p{number}"} for number in range(8)]  # who are in arms of an experiment
    tiered = [api.recommend(**body) for body in bodies]
    service.serve({**args, "topology": "fused"}, port)
    fused = [api.recommend(**body) for body in bodies]
    assert not any(name.endswith(".network") for answer in fused for name in answer["timings_ms"])
    assert [one["experiments"] for one in fused] == [one["experiments"] for one in tiered]
    assert {one["arm"] for answer in fused for one in answer["experiments"]} == {"a", "b"}
    arms = [[item["item_id"] for item in answer["items"]] for answer in fused[len(bodies) - 8 :]]
    assert len(set(map(tuple, arms))) == 2
    for ours, theirs in zip([one["items"] for one in fused], [one["items"] for one in tiered], strict=True):
        assert [item["item_id"] for item in ours] == [item["item_id"] for item in theirs]
        assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], abs=1e-5)
        assert texts(ours) == texts(theirs)
