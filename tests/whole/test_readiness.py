"""When a gateway in front of tiers says that it is ready: with all shards at first, later as long as it can answer."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from snapshot_shelf import A, copy_of
from support import Shop
from tiered import FOLLOW, Tiered

from raysys.errors import Unavailable
from raysys.index.store import SnapshotStore
from raysys.serving.deployments import ShardReplica

N_SHARDS = 3
NAMES = [f"shard-{number:02d}" for number in range(N_SHARDS)]


@pytest.fixture
def store(shop: Shop, tmp_path: Path) -> SnapshotStore:
    """With one snapshot of three shards."""
    store = SnapshotStore(tmp_path / "index")
    copy_of(shop.snapshot(N_SHARDS), store, A)
    store.publish(A)
    return store


async def asked(tiered: Tiered) -> tuple[int, dict[str, Any]]:
    response = await tiered.http.get("/readyz")
    assert response.json()["ready"] == (response.status_code == 200)
    return response.status_code, response.json()


async def test_at_first_all_shards_are_waited_for(store: SnapshotStore, tmp_path: Path) -> None:
    tiered = Tiered(store, tmp_path / "state.sqlite3", N_SHARDS)
    tiered.handles[1].is_gone = True
    with pytest.raises(Unavailable, match="shard-01"):
        await tiered.gateway.reconfigure(FOLLOW)
    status, said = await asked(tiered)
    assert (status, said["snapshot_id"]) == (503, None)
    assert "error" in said["shards"]["shard-01"]
    tiered.handles[1].is_gone = False
    ready = await tiered.poll()
    assert (ready["ready"], ready["partial"], ready["coverage"], ready["away"]) == (True, False, 1.0, [])
    await tiered.close()


@pytest.mark.parametrize("min_coverage", [0.0, 0.5, 1.0])
async def test_later_it_is_ready_as_long_as_it_gives_lists(
    store: SnapshotStore, tmp_path: Path, min_coverage: float
) -> None:
    """Whichever shards are away: a load balancer takes out those gateways that would refuse, and no others."""
    tiered = Tiered(store, tmp_path / "state.sqlite3", N_SHARDS, min_coverage=min_coverage)
    await tiered.poll(tiered.encoder, *tiered.shards)
    seen = set()
    for gone in product((False, True), repeat=N_SHARDS):
        for handle, is_gone in zip(tiered.handles, gone, strict=True):
            handle.is_gone = is_gone
        status, said = await asked(tiered)
        answer = await tiered.http.post("/v1/search", json={"query": "bababa"})
        assert status == answer.status_code
        away = [name for name, is_gone in zip(NAMES, gone, strict=True) if is_gone]
        assert (said["away"], said["partial"]) == (away, bool(away))
        assert [name for name, shard in said["shards"].items() if "error" in shard] == away
        if status == 200:
            assert said["coverage"] == answer.json()["coverage"] >= min_coverage
        seen.add(status)
    assert seen == {200, 503}
    await tiered.close()


async def test_a_shard_that_has_another_snapshot_is_away(store: SnapshotStore, tmp_path: Path) -> None:
    tiered = Tiered(store, tmp_path / "state.sqlite3", N_SHARDS, min_coverage=1.0)
    await tiered.poll(tiered.encoder, *tiered.shards)
    fresh = ShardReplica(2, N_SHARDS, tiered.settings)  # as Serve starts another, which has loaded nothing yet
    tiered.handles[2].replica = fresh
    status, said = await asked(tiered)
    assert (status, said["away"]) == (503, ["shard-02"])
    await fresh.reconfigure(FOLLOW)
    assert (await asked(tiered))[0] == 200
    tiered.shards.append(fresh)
    await tiered.close()
