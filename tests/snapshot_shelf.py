"""Stores with several snapshots: small ones of one file, or copies of one that was built, under ids of their own."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from raysys.config import EncoderSettings
from raysys.encoder.hashing import HashEncoder
from raysys.index.manifest import MANIFEST, Manifest, ShardRecord, file_record, writers
from raysys.index.store import SnapshotStore, write_manifest

IDS = [f"2026010{day}T000000-aaaaaa" for day in range(1, 6)]
A, B, C, D, E = IDS
FILE = "shard-00000/items.arrow"
N_ITEMS = 7


def put(store: SnapshotStore, snapshot_id: str) -> Path:
    """A small snapshot of this id, complete and not published. Its file is no shard."""
    folder = store.folder(snapshot_id)
    (folder / FILE).parent.mkdir(parents=True)
    (folder / FILE).write_text(f"the items of {snapshot_id}")
    manifest = Manifest(
        snapshot_id=snapshot_id,
        created_at="2026-01-01T00:00:00+00:00",
        encoder=EncoderSettings(kind="hash"),
        identity=asdict(HashEncoder().identity),
        metric="cosine",
        n_items=N_ITEMS,
        shards=[ShardRecord(folder="shard-00000", n_items=N_ITEMS, index_kind="flat")],
        files={FILE: file_record(folder / FILE)},
        data_hash="",
        template_hash="",
        written_by=writers(),
    )
    write_manifest(folder, manifest)
    return folder


def shelf(root: Path, n: int, publish: bool = True) -> SnapshotStore:
    """n small snapshots, published one after the other."""
    store = SnapshotStore(root)
    for snapshot_id in IDS[:n]:
        put(store, snapshot_id)
        if publish:
            store.publish(snapshot_id)
    return store


def copy_of(built: Path, store: SnapshotStore, snapshot_id: str) -> Path:
    """A copy of a built snapshot under this id, not published."""
    folder = store.folder(snapshot_id)
    shutil.copytree(built, folder)
    change_manifest(folder, snapshot_id=snapshot_id)
    return folder


def change_manifest(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(raw))


def unfinished(store: SnapshotStore, snapshot_id: str) -> None:
    """What a killed build leaves."""
    for folder in (store.folder(snapshot_id), store.staging(snapshot_id)):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x" * 100)


def swap(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace the content of a file in place."""
    path.write_bytes(change(path.read_bytes()))
