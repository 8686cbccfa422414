"""Three snapshots, one of them published."""

from pathlib import Path

import pytest
from snapshot_shelf import A, B, C, copy_of
from support import Shop

from raysys.index.store import SnapshotStore


@pytest.fixture
def store(shop: Shop, tmp_path: Path) -> SnapshotStore:
    """A is published, B has the same content, C one shard instead of two."""
    store = SnapshotStore(tmp_path / "index")
    for snapshot_id in (A, B):
        copy_of(shop.snapshot(2), store, snapshot_id)
    copy_of(shop.snapshot(1), store, C)
    store.publish(A)
    return store
