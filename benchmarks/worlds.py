"""The catalogue that ``serving.py`` serves, films with ratings or a made-up one, prepared for both sides."""

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.config import BuildSettings, EventsSettings, parse
from raysys.data.films import write_films
from raysys.data.synthetic import make_world
from raysys.index.manifest import Manifest
from raysys.index.shard_files import ShardFiles
from raysys.index.store import SnapshotStore
from raysys.profile.imports import import_into
from raysys.training.local import build_here

SHARDS = 1  # as by default
USERS, TOPICS, STRUCTURE, EVENTS_PER_USER = 671, 40, 0.8, 100


@dataclass(frozen=True)
class Prepared:
    """What both sides need. peer: the folder with the same vectors and items for ``peer_server.py``."""

    name: str
    manifest: Manifest
    index_root: Path
    state: Path
    peer: Path
    users: tuple[str, ...]


def films(folder: Path) -> BuildSettings:
    """9,066 films and 100,004 ratings. Raises ConfigError where the ``demo`` extra is not installed."""
    files = write_films(folder)
    settings: dict[str, Any] = {
        "catalog": {"path": files.catalog, "columns": {"categories": "genres"}, "attributes": {"year": "year"}},
        "events": {"path": files.events, "columns": {"value": "rating"}, "default_kind": "rating"},
        "behaviour": {"popularity_half_life_days": 1_000},
    }
    return _settings(folder, settings)


def synthetic(folder: Path, n_items: int, shards: int = SHARDS) -> BuildSettings:
    """A made-up world of this many items."""
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(n_items, USERS, min(TOPICS, n_items), STRUCTURE, seed=1, events_per_user=EVENTS_PER_USER)
    pq.write_table(world.items, folder / "items.parquet")
    pq.write_table(world.events, folder / "events.parquet")
    events = {"path": folder / "events.parquet", "columns": {"timestamp": "timestamp_s"}}
    return _settings(folder, {"catalog": {"path": folder / "items.parquet"}, "events": events}, shards)


def _settings(folder: Path, given: dict[str, Any], shards: int = SHARDS) -> BuildSettings:
    return parse(BuildSettings, given | {"index": {"root": folder / "index", "shards": shards}}, "benchmark settings")


def prepare(name: str, folder: Path, settings: BuildSettings) -> Prepared:
    """Build and publish the snapshot, fill the profile store, and write the peer's files. Reuses encoded vectors."""
    manifest = build_here(settings)
    events = settings.events
    assert events is not None  # both worlds have them
    state = folder / "state.sqlite3"
    users = import_profiles(events, state)
    peer = folder / "peer"
    write_peer_files(SnapshotStore(settings.index.root).folder(manifest.snapshot_id), manifest, peer)
    return Prepared(name, manifest, Path(settings.index.root), state, peer, users)


def import_profiles(events: EventsSettings, state: Path) -> tuple[str, ...]:
    """Past events into the profile store, unless it is there from an earlier run. Returns the user ids."""
    if not state.exists():
        import_into(str(state), events, say=lambda _: None)
    return tuple(sorted(set(pq.read_table(events.path, columns=["user_id"])["user_id"].to_pylist())))


def copy_state(source: Path, target: Path) -> None:
    """The profile store as a file of its own, so that what a benchmark writes stays in no other's way."""
    with sqlite3.connect(source) as original, sqlite3.connect(target) as copy:
        original.backup(copy)


def write_peer_files(snapshot: Path, manifest: Manifest, folder: Path) -> None:
    """vectors.npy, [n, dim] float32 normalised, and items.json, in the same order: the snapshot's own."""
    shards = [ShardFiles.of(snapshot, shard, manifest.metric) for shard in manifest.shards]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "vectors.npy", np.concatenate([shard.vectors for shard in shards]), allow_pickle=False)
    items = pa.concat_tables([shard.items.select(["item_id", "title"]) for shard in shards])
    (folder / "items.json").write_text(json.dumps(items.to_pylist()), encoding="utf-8")
