"""A canary of another encoder on a real head: each side is answered by its own snapshot, and no replica restarts."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import DEADLINE_S, poll, settings_of, world_settings

from raysys.client import Client
from raysys.index.store import SnapshotStore
from raysys.publishing.activate import start_canary
from raysys.serving.deploy import replica_pids
from raysys.serving.session import LocalService
from raysys.snapshots import wait_for
from raysys.training.local import build_here

pytestmark = pytest.mark.ray

PEOPLE = [f"p{number}" for number in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary")


@pytest.fixture(scope="module")
def snapshots(folder: Path) -> tuple[SnapshotStore, str, str]:
    """The store, the published snapshot, and one of the same items by an encoder of other dimensions."""
    old = build_here(settings_of(world_settings(folder))).snapshot_id
    raw = world_settings(folder, encoder={"kind": "hash", "dim": 96})
    new = build_here(settings_of({**raw, "index": {**raw["index"], "publish": False}})).snapshot_id
    store = SnapshotStore(raw["index"]["root"])
    assert store.current_id() == old
    return store, old, new


@pytest.fixture(scope="module")
def api(service: LocalService, snapshots: tuple[SnapshotStore, str, str], folder: Path, port: int) -> Iterator[Client]:
    args = {"index_root": str(snapshots[0].root), "state": str(folder / "state.sqlite3")}
    with Client(service.serve(args, port)) as client:
        yield client


def sides(api: Client) -> dict[str, str]:
    """Which snapshot each of the people is answered from, by text too."""
    return {user: api.recommend(user_id=user, query="bababa", limit=5)["snapshot_id"] for user in PEOPLE}


def test_a_canary_of_another_encoder_is_started_promoted_rolled_back_and_withdrawn(
    service: LocalService, api: Client, snapshots: tuple[SnapshotStore, str, str]
) -> None:
    store, old, new = snapshots
    before = replica_pids(service.head.dashboard_url, service.token)
    complaints: list[object] = []
    done = threading.Event()

    def ask() -> None:
        with Client(api.url) as client:
            for user in itertools.takewhile(lambda _: not done.is_set(), itertools.cycle(PEOPLE)):
                try:
                    answer = client.recommend(user_id=user, query="bababa", limit=5)
                    if answer["degraded"] or not answer["items"] or answer["snapshot_id"] not in (old, new):
                        complaints.append(answer)
                except Exception as error:
                    complaints.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        canary = start_canary(store, new, 0.5, force=True, n_asked=20).canary
        expected = {user: new if canary.has(f"u:{user}") else old for user in PEOPLE}
        poll("the canary is taken up", lambda: api.get("/readyz")["canary"] is not None)
        assert sides(api) == expected
        assert set(expected.values()) == {old, new}
        api.promote_canary(canary=new)
        wait_for(api.url, new, DEADLINE_S)
        assert set(sides(api).values()) == {new}
        api.rollback_snapshot(published=new)
        wait_for(api.url, old, DEADLINE_S)
        assert set(sides(api).values()) == {old}
        store.set_canary(new, 0.5, old)
        poll("the canary is taken up again", lambda: api.get("/readyz")["canary"] is not None)
        assert sides(api) == expected
        api.withdraw_canary()
        poll("the canary has ended", lambda: api.get("/readyz")["canary"] is None)
        assert set(sides(api).values()) == {old}
    finally:
        done.set()
        asking.join()
    assert not complaints
    assert replica_pids(service.head.dashboard_url, service.token) == before
