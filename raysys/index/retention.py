"""Removes what nobody needs any more: old snapshots, and what killed builds have left.

A folder is first renamed into ``trash`` and then deleted, so that a snapshot is there whole or not at all, whenever
this is killed. Processes that have mapped its files keep them until they let go.
"""

import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysys.encoder.vectors import EmbeddingStore, keys_of
from raysys.errors import SnapshotError
from raysys.index import inventory, leases
from raysys.index.catalogue import Catalogue
from raysys.index.inventory import Snapshot, readable_bytes
from raysys.index.store import CANARY, HISTORY, POINTER, SnapshotStore
from raysys.types import TextKeys

GRACE_S = 600.0  # a server that was killed comes back to its snapshot within this time


@dataclass(frozen=True)
class Removal:
    """Something that goes, or would go. path: relative to the root of the index."""

    path: str
    size_bytes: int
    why: str


def collect(
    store: SnapshotStore, keep: int | None, embeddings: bool = False, dry_run: bool = False, now_s: float | None = None
) -> list[Removal]:
    """Remove what may go. keep: of the complete snapshots so many stay, the newest; None = all.

    Whatever ``keep`` is, these stay: the published one, the one before it, the canary, newer ones, those that a process
    holds or a server used in the last ``GRACE_S``, and those of a newer format. embeddings: also the files of vectors
    that no snapshot needs, unless a build runs. dry_run: only say what would go. Raises SnapshotError, OSError.
    """
    now_s = time.time() if now_s is None else now_s
    with store.locked():
        removals = [
            *_old_trash(store),
            *_temporary(store),
            *_snapshots(store, keep, now_s),
            *_staged(store),
            *(_embeddings(store, keep, now_s) if embeddings else ()),
        ]
        gone = removals if dry_run else [removal for removal in removals if _take_away(store, removal)]
        if not dry_run:
            _forget_leases(store)
            _forget_refusals(store)
    if not dry_run:
        _empty_trash(store)
    return gone


def freed_bytes(removals: Sequence[Removal]) -> int:
    return sum(removal.size_bytes for removal in removals)


def old_ones(
    found: Sequence[Snapshot], keep: int | None, current: str | None, needed: Collection[str | None], now_s: float
) -> Iterator[tuple[Snapshot, str]]:
    """Those of these snapshots, oldest first, that may go, and why. current: the published one. needed: also stay."""
    complete = [snapshot.snapshot_id for snapshot in found if snapshot.state == "complete"]
    newest = set(complete if keep is None or current not in complete else complete[-keep:])
    for snapshot in found:
        if snapshot.is_held or snapshot.snapshot_id in (current, *needed) or snapshot.state == "too new":
            continue
        if snapshot.state == "unfinished":
            yield snapshot, "its build was killed"
        elif current in complete and snapshot.snapshot_id < str(current) and snapshot.used_s < now_s - GRACE_S:
            if snapshot.state == "damaged":
                yield snapshot, "damaged"
            elif snapshot.snapshot_id not in newest:
                yield snapshot, f"not among the newest {keep}"


def _snapshots(store: SnapshotStore, keep: int | None, now_s: float) -> Iterator[Removal]:
    for snapshot, why in old_ones(inventory.snapshots(store), keep, *_in_use(store), now_s):
        yield Removal(f"snapshots/{snapshot.snapshot_id}", snapshot.size_bytes, why)


def _in_use(store: SnapshotStore) -> tuple[str | None, tuple[str | None, ...]]:
    """The published snapshot; the one before it and the canary."""
    if not (store.root / POINTER).exists():
        return None, ()
    canary = store.canary()
    return store.current_id(), (store.previous(), None if canary is None else canary.snapshot_id)


def _staged(store: SnapshotStore) -> Iterator[Removal]:
    for left in inventory.staged(store):
        if not left.is_held:
            yield Removal(f"staging/{left.path.name}", left.size_bytes, "its build was killed")


def _old_trash(store: SnapshotStore) -> Iterator[Removal]:
    for left in inventory.trash(store):
        yield Removal(f"trash/{left.path.name}", left.size_bytes, "left by an earlier collection")


def _temporary(store: SnapshotStore) -> Iterator[Removal]:
    """Whoever writes these holds the lock, so now they belong to nobody."""
    for name in (POINTER, HISTORY, CANARY):
        for path in sorted(store.root.glob(f".{name}.*.tmp")):
            yield Removal(path.name, path.stat().st_size, "left by a killed process")


def _embeddings(store: SnapshotStore, keep: int | None, now_s: float) -> Iterator[Removal]:
    found = inventory.snapshots(store)
    going = {snapshot.snapshot_id for snapshot, _ in old_ones(found, keep, *_in_use(store), now_s)}
    staying = [snapshot for snapshot in found if snapshot.snapshot_id not in going]
    try:
        needed = _needed(store, staying)
    except SnapshotError:  # what a damaged one needs cannot be known
        return
    if any(left.is_held for left in inventory.staged(store)):
        return  # a build counts on them
    for folder in sorted((store.root / "embeddings").glob("*")):
        if folder.name not in needed:
            size = inventory.size_bytes(folder)
            yield Removal(f"embeddings/{folder.name}", size, "of an encoder that no snapshot has")
            continue
        dim, keys = needed[folder.name]
        for path in EmbeddingStore(store.root, folder.name, dim).files_without(np.concatenate(keys)):
            name = path.relative_to(store.root).as_posix()
            yield Removal(name, path.stat().st_size, "no snapshot has these texts")


def _needed(store: SnapshotStore, staying: Sequence[Snapshot]) -> dict[str, tuple[int, list[TextKeys]]]:
    """Fingerprint of an encoder -> (dimensions of its vectors, keys of the texts in each shard of these snapshots)."""
    needed: dict[str, tuple[int, list[TextKeys]]] = {}
    for snapshot in staying:
        identity = store.manifest(snapshot.snapshot_id).encoder_identity
        _, keys = needed.setdefault(identity.fingerprint(), (identity.dim, []))
        shards = Catalogue(store.folder(snapshot.snapshot_id)).shards
        keys += [keys_of(shard.items["text_key"]) for shard in shards]
    return needed


def _take_away(store: SnapshotStore, removal: Removal) -> bool:
    """Whether it is gone. A snapshot that somebody has taken up since it was looked at stays."""
    path, kind = store.root / removal.path, Path(removal.path).parts[0]
    if kind == "trash":
        return True  # the end of ``collect`` deletes it
    if kind not in ("snapshots", "staging"):
        return _into_trash(store, path)
    lease = leases.alone(store.lease_path(path.name))
    if lease is None:
        return False
    with lease:
        return _into_trash(store, path)


def _into_trash(store: SnapshotStore, path: Path) -> bool:
    folder = store.root / "trash"
    folder.mkdir(exist_ok=True)
    path.rename(folder / f"{path.parent.name}-{path.name}-{time.time_ns()}")
    return True


def _empty_trash(store: SnapshotStore) -> None:
    """Without the lock, as it may take long; another collection may do the same at once."""
    for path in (store.root / "trash").glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _forget_leases(store: SnapshotStore) -> None:
    """Remove the lease files of what is not there any more."""
    for path in (store.root / "leases").glob("*"):
        if not store.folder(path.name).exists() and not store.staging(path.name).exists():
            leases.forget(path)


def _forget_refusals(store: SnapshotStore) -> None:
    """Remove why snapshots were refused that are not there any more. Whoever writes these holds the lock."""
    for path in (store.root / "refusals").glob("*"):
        if not inventory.is_id(path.name) or not store.folder(path.name).exists():
            path.unlink(missing_ok=True)


def said(removals: Sequence[Removal], dry_run: bool = False) -> str:
    """In one line, for people."""
    if not removals:
        return "nothing to remove"
    size = readable_bytes(freed_bytes(removals))
    return f"{len(removals)} would go, {size}" if dry_run else f"{len(removals)} removed, {size} freed"
