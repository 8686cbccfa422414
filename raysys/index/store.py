"""The folder of snapshots and the one pointer that says which is served.

<root>/CURRENT                      the id of the published snapshot; moved by one atomic rename
<root>/embeddings/<fingerprint>/    vectors by text key, shared by all builds
<root>/snapshots/<id>/              one immutable snapshot; finished when its manifest is there
"""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from raysys.errors import SnapshotError
from raysys.index.manifest import MANIFEST, Manifest, read_manifest, verify_files

POINTER = "CURRENT"


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, flush to disk, rename. A reader sees the old or the new, whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the snapshot in this folder, last of all its files: from now on it exists."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())


class SnapshotStore:
    """Snapshots under one root folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def create(self, now_s: float) -> tuple[str, Path]:
        """A fresh snapshot id (sorts by time) and its empty folder."""
        stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%S")
        snapshot_id = f"{stamp}-{secrets.token_hex(3)}"
        folder = self.folder(snapshot_id)
        folder.mkdir(parents=True)
        return snapshot_id, folder

    def folder(self, snapshot_id: str) -> Path:
        """Where the snapshot of this id lives. Raises SnapshotError for an id that could leave the root."""
        if not snapshot_id or not all(c.isalnum() or c == "-" for c in snapshot_id):
            raise SnapshotError(f"{snapshot_id!r} is not a snapshot id")
        return self.root / "snapshots" / snapshot_id

    def publish(self, snapshot_id: str) -> None:
        """Verify every file of the snapshot, then move the pointer to it. Raises SnapshotError, pointer unmoved."""
        folder = self.folder(snapshot_id)
        verify_files(folder, read_manifest(folder))
        write_atomically(self.root / POINTER, snapshot_id.encode())

    def current_id(self) -> str:
        """The id of the published snapshot. Raises SnapshotError when nothing was published."""
        try:
            return (self.root / POINTER).read_text().strip()
        except FileNotFoundError as error:
            raise SnapshotError(
                f"no snapshot is published under {self.root}: run `raysys build` with `index.root: {self.root}` first"
            ) from error

    def is_published(self, snapshot_id: str) -> bool:
        """Whether the pointer names this snapshot."""
        pointer = self.root / POINTER
        return pointer.exists() and self.current_id() == snapshot_id

    def resolve(self, snapshot_id: str) -> str:
        """``current`` becomes the published id; any other id stays."""
        return self.current_id() if snapshot_id == "current" else snapshot_id

    def manifest(self, snapshot_id: str) -> Manifest:
        """The manifest of a finished snapshot. Raises SnapshotError."""
        return read_manifest(self.folder(snapshot_id))

    def list(self) -> list[str]:
        """Ids of all finished snapshots, oldest first."""
        return sorted(path.parent.name for path in self.root.glob(f"snapshots/*/{MANIFEST}"))
