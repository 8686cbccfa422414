"""What is under the root of the index: snapshots, whole or not, and what builds have left."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raysys.errors import SnapshotError, SnapshotTooNew
from raysys.index import leases
from raysys.index.manifest import MANIFEST, Manifest, check_sizes, read_manifest
from raysys.index.store import SnapshotStore

State = Literal["complete", "damaged", "unfinished", "too new"]


@dataclass(frozen=True)
class Snapshot:
    """One folder of the snapshots.

    state: complete = every file that the manifest names is there, of its size; unfinished = it has no manifest; too
    new = of a format that this version does not read. problem: what is wrong with it, "" = nothing. size_bytes: on
    the disk. is_held: a process writes or serves it now. used_s: when a server last used it, in epoch seconds, 0 =
    never. manifest: None where there is none that can be read.
    """

    snapshot_id: str
    state: State
    problem: str
    size_bytes: int
    written_s: float
    is_held: bool
    used_s: float
    manifest: Manifest | None


@dataclass(frozen=True)
class Leftover:
    """Something that is no snapshot: the staging folder of a build, or what was about to be deleted."""

    path: Path
    size_bytes: int
    is_held: bool


def snapshots(store: SnapshotStore) -> list[Snapshot]:
    """All of them, oldest first."""
    folders = (path for path in (store.root / "snapshots").glob("*") if path.is_dir() and is_id(path.name))
    return [_look_at(store, folder) for folder in sorted(folders)]


def staged(store: SnapshotStore) -> list[Leftover]:
    """The staging folders of builds; those that run hold theirs."""
    folders = sorted(path for path in (store.root / "staging").glob("*") if path.is_dir() and is_id(path.name))
    return [Leftover(path, size_bytes(path), leases.is_held(store.lease_path(path.name))) for path in folders]


def trash(store: SnapshotStore) -> list[Leftover]:
    """What a collection that was killed has not deleted yet."""
    return [Leftover(path, size_bytes(path), False) for path in sorted((store.root / "trash").glob("*"))]


def is_id(name: str) -> bool:
    """Whether a folder of this name could be a snapshot of ours."""
    return all(c.isalnum() or c == "-" for c in name)


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; of those that go away meanwhile, nothing."""
    files = [path] if not path.is_dir() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    return sum(map(_size_bytes, files))


def _size_bytes(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def readable_bytes(n: float) -> str:
    """As in "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1_000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1_000
    return f"{n:.1f} TB"


def _look_at(store: SnapshotStore, folder: Path) -> Snapshot:
    state, problem, manifest = _state_of(folder)
    lease = store.lease_path(folder.name)
    written_s = folder.stat().st_mtime
    size, is_held = size_bytes(folder), leases.is_held(lease)
    return Snapshot(folder.name, state, problem, size, written_s, is_held, leases.used_s(lease), manifest)


def _state_of(folder: Path) -> tuple[State, str, Manifest | None]:
    if not (folder / MANIFEST).exists():
        return "unfinished", f"it has no {MANIFEST}", None
    manifest = None
    try:
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
    except SnapshotTooNew as error:
        return "too new", str(error), None
    except SnapshotError as error:
        return "damaged", str(error), manifest
    return "complete", "", manifest
