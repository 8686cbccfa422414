"""From where the change log is applied: a snapshot that folded it is news only of what came after, of that store."""

import asyncio
from pathlib import Path

import pytest
from support import FixedClock, Served, Shop, serve_here

from raysys.index.manifest import Manifest
from raysys.index.store import SnapshotStore
from raysys.state.position import first_position
from raysys.state.sqlite import SqliteState
from raysys.training.local import build_here
from raysys.types import ItemDraft


@pytest.fixture
def manifest(shop: Shop) -> Manifest:
    store = shop.store(2)
    return store.manifest(store.current_id())


async def test_what_was_folded_in_is_passed_over_for_its_own_store_only(manifest: Manifest, tmp_path: Path) -> None:
    one, other = SqliteState(tmp_path / "one"), SqliteState(tmp_path / "other")
    assert await first_position(one, manifest) == 0
    folded = manifest.model_copy(update={"change_sequence": 7, "change_store": await one.identity()})
    assert await first_position(one, folded) == 7
    assert await first_position(other, folded) == 0
    await one.close()
    await other.close()


async def test_shards_that_read_another_store_are_named(shop: Shop, tmp_path: Path) -> None:
    served: Served = await serve_here(shop.store(2), tmp_path / "state.sqlite3")
    own = await served.front.state.identity()
    shards = {"shard-00": {"state": own}, "shard-01": {"state": "another"}, "shard-02": {"error": "gone"}}
    assert await served.front.apart(shards) == ["shard-01"]
    await served.stop()
    assert await served.front.apart(shards) == []  # a store that is away is away for all alike


async def test_a_snapshot_served_with_another_store_gets_all_of_its_changes(shop: Shop, tmp_path: Path) -> None:
    """The sequences of the store that was folded in are higher than those of the one that serves."""
    state = SqliteState(tmp_path / "folded.sqlite3")
    await state.change_items([ItemDraft(f"new-{i}", {"title": "quokka"}, "quokka") for i in range(20)], 1.0)
    await state.close()
    settings = shop.settings(2, tmp_path / "index").model_copy(update={"state": str(tmp_path / "folded.sqlite3")})
    await asyncio.to_thread(build_here, settings, FixedClock())
    served = await serve_here(SnapshotStore(tmp_path / "index"), tmp_path / "another.sqlite3")
    async with served.client() as client:
        gone = await client.post("/v1/items:delete", json={"item_ids": ["item-3", "new-1"]})
        assert gone.json()["accepted"] == ["item-3", "new-1"]
        found = await client.post("/v1/items:get", json={"item_ids": ["item-3", "new-1", "new-2"]})
        assert found.json()["unknown_items"] == ["item-3", "new-1"]
    await served.stop()
