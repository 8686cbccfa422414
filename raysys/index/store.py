"""The folder of snapshots and the one pointer that says which is served.

<root>/CURRENT                      the id of the published snapshot; moved by one atomic rename
<root>/CANARY                       the snapshot that a share of the people get, and which share (``canary``)
<root>/HISTORY                      which was published when (``history``)
<root>/.lock                        locked while the pointer moves, a build begins, or something is collected
<root>/leases/<id>                  locked by whoever writes or serves this snapshot (``leases``)
<root>/refusals/<id>                why this snapshot was last refused (``refusals``)
<root>/embeddings/<fingerprint>/    vectors by text key, shared by all builds
<root>/snapshots/<id>/              one immutable snapshot; finished when its manifest is there (``signing``)
<root>/staging/<id>/                what a build keeps while it runs
<root>/trash/                       what is being deleted (``retention``)
"""

import contextlib
import logging
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from raysys.disk import replacing
from raysys.errors import SnapshotConflict, SnapshotDamaged, SnapshotError, UnknownSnapshot
from raysys.index import canary, history, leases, refusals
from raysys.index.canary import Canary
from raysys.index.history import By, Move
from raysys.index.leases import Lease
from raysys.index.manifest import (
    MANIFEST,
    Manifest,
    check_sizes,
    manifest_bytes,
    parse_manifest,
    read_manifest,
    verify_files,
)
from raysys.index.refusals import Refusal
from raysys.index.signing import SIGNATURE, Signers, read_signing_key

POINTER, HISTORY, CANARY, LOCK = "CURRENT", "HISTORY", "CANARY", ".lock"

log = logging.getLogger(__name__)


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, flush to disk, rename. A reader sees the old or the new, whole."""
    with replacing(path) as file:
        file.write(content)


def write_manifest(folder: Path, manifest: Manifest, signing_key: str | None = None) -> None:
    """Write the manifest of the snapshot in this folder, last of all its files: from now on it exists.

    signing_key: the file of the key that signs it; None = nobody does. Raises ConfigError for one that cannot.
    """
    content = manifest.model_dump_json(indent=2).encode()
    if signing_key is not None:
        write_atomically(folder / SIGNATURE, read_signing_key(signing_key).sign(content))
    write_atomically(folder / MANIFEST, content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class SnapshotStore:
    """Snapshots under one root folder."""

    def __init__(self, root: str | Path, public_keys: Sequence[str | Path] = ()) -> None:
        """public_keys: only snapshots that one of them has signed are opened and published; none = all are.

        Raises ConfigError for a key that cannot be read.
        """
        self.root = Path(root).expanduser()
        self.signers = Signers(public_keys) if public_keys else None

    def create(self, now_s: float) -> tuple[str, Path]:
        """A fresh snapshot id (sorts by time) and its empty folder."""
        stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%S")
        snapshot_id = f"{stamp}-{secrets.token_hex(3)}"
        folder = self.folder(snapshot_id)
        folder.mkdir(parents=True)
        return snapshot_id, folder

    def folder(self, snapshot_id: str) -> Path:
        """Where the snapshot of this id lives. Raises UnknownSnapshot for an id that could leave the root."""
        if not snapshot_id or not all(c.isalnum() or c == "-" for c in snapshot_id):
            raise UnknownSnapshot(f"{snapshot_id!r} is not a snapshot id")
        return self.root / "snapshots" / snapshot_id

    def staging(self, snapshot_id: str) -> Path:
        """Where the build of this snapshot keeps its intermediate files."""
        return self.root / "staging" / self.folder(snapshot_id).name

    def lease_path(self, snapshot_id: str) -> Path:
        """The file that is locked by whoever works with this snapshot."""
        return self.root / "leases" / self.folder(snapshot_id).name

    def lease(self, snapshot_id: str) -> Lease:
        """Keeps the snapshot from being collected until it is closed, or the process ends. Raises SnapshotError."""
        return leases.share(self.lease_path(snapshot_id))

    def locked(self) -> AbstractContextManager[None]:
        """Alone among all that move the pointer, begin a build, or collect; for an instant. Raises SnapshotError."""
        return leases.exclusively(self.root / LOCK)

    def refusal_path(self, snapshot_id: str) -> Path:
        """The file that says why this snapshot was last refused, where it was."""
        return self.root / "refusals" / self.folder(snapshot_id).name

    def publish(self, snapshot_id: str) -> None:
        """Verify every file of the snapshot, then move the pointer to it. Raises SnapshotError, pointer unmoved."""
        self.verify(snapshot_id)
        self.move(snapshot_id, "build")

    def verify(self, snapshot_id: str) -> Manifest:
        """The manifest, once every file was compared with it. Raises SnapshotError."""
        folder = self.folder(snapshot_id)
        manifest = read_manifest(folder, self.signers)
        verify_files(folder, manifest)
        return manifest

    def sign(self, snapshot_id: str, signing_key: str | Path) -> None:
        """Sign the snapshot as it is, once every file was compared with its manifest; an older signature goes.

        Raises SnapshotError, ConfigError.
        """
        key, folder = read_signing_key(signing_key), self.existing(snapshot_id)
        content = manifest_bytes(folder)
        manifest = parse_manifest(folder, content)
        if manifest.snapshot_id != snapshot_id:
            raise SnapshotDamaged(f"{folder} holds the manifest of {manifest.snapshot_id}, so it was not signed")
        verify_files(folder, manifest)
        write_atomically(folder / SIGNATURE, key.sign(content))

    def move(self, snapshot_id: str, by: By, forced: Sequence[str] = (), expected: str | None = None) -> None:
        """Put the pointer on a verified snapshot. expected: the one it must still be on; None = whichever.

        Raises SnapshotError, pointer unmoved.
        """
        with self.locked():
            if expected is not None and not self.is_published(expected):
                raise SnapshotConflict(
                    f"meanwhile {self.current_id()} was published in place of {expected}, which {snapshot_id} "
                    "was compared with; try again"
                )
            self.manifest(snapshot_id)  # it may have been collected since
            self._move(snapshot_id, by, forced)

    def rollback(self, expected: str | None = None) -> tuple[str, str]:
        """Put the pointer back on the snapshot that was published before. Returns (from, to).

        Its files are looked at, not read, so that it takes an instant. expected: the one to go back from, so that
        nobody who asks twice goes back twice; None = whichever. Raises SnapshotError, pointer unmoved.
        """
        with self.locked():
            current, before = self.current_id(), self.previous()
            if expected is not None and current != expected:
                raise SnapshotConflict(f"{current} is published, not {expected}, so nothing was rolled back")
            if before is None:
                raise SnapshotConflict(f"nothing was published before {current}, so there is nothing to go back to")
            try:
                check_sizes(self.folder(before), self.manifest(before))
            except SnapshotError as error:
                raise SnapshotDamaged(f"{before} was published before {current}, but {error}") from error
            self._move(before, "rollback")
        return current, before

    def canary(self) -> Canary | None:
        """The canary beside the published snapshot; None = there is none."""
        found = canary.read(self.root / CANARY)
        return found if found is not None and self.is_published(found.beside) else None

    def set_canary(self, snapshot_id: str, share: float, beside: str, forced: Sequence[str] = ()) -> Canary:
        """Give a share of the people this verified snapshot; of the one that is the canary already, another share.

        share: above 0, at most 1. beside: the snapshot that must still be published. What is so already stays as it is,
        with its time. Raises SnapshotError, and nothing changed.
        """
        with self.locked():
            self.manifest(snapshot_id)  # it may have been collected since
            self.check_free(snapshot_id, beside)
            running = self.canary()
            if running is not None and (running.share, running.forced) == (share, tuple(forced)):
                return running
            made = Canary(snapshot_id=snapshot_id, share=share, beside=beside, at=_now(), forced=tuple(forced))
            self._write(CANARY, made.model_dump_json().encode(), f"{snapshot_id} did not become the canary")
        return made

    def check_free(self, snapshot_id: str, beside: str) -> None:
        """Raises SnapshotConflict where this one cannot be the canary beside that one: see ``set_canary``."""
        current, running = self.current_id(), self.canary()
        if current == snapshot_id:
            raise SnapshotConflict(f"{snapshot_id} is published: everybody is answered from it")
        if current != beside:
            raise SnapshotConflict(f"meanwhile {current} was published in place of {beside}; try again")
        if running is not None and running.snapshot_id != snapshot_id:
            raise SnapshotConflict(f"{running.snapshot_id} is the canary; promote or withdraw it first")

    def withdraw(self, expected: str | None = None) -> Canary:
        """End the canary: everybody is answered from the published snapshot. Returns what it was.

        expected: the one that must be the canary; None = whichever. Raises SnapshotError, and nothing changed.
        """
        with self.locked():
            ended = self._running(expected)
            try:
                (self.root / CANARY).unlink()
            except OSError as error:
                raise SnapshotError(f"{ended.snapshot_id} is still the canary, {error}") from error
        return ended

    def promote(self, expected: str | None = None) -> tuple[str, str]:
        """Put the pointer on the canary. Returns (from, to). Its files are looked at, not read: servers hold it.

        expected: as for ``withdraw``. Raises SnapshotError, and nothing changed.
        """
        with self.locked():
            running = self._running(expected)
            check_sizes(self.folder(running.snapshot_id), self.manifest(running.snapshot_id))
            self._move(running.snapshot_id, "promote", running.forced)
        return running.beside, running.snapshot_id

    def _running(self, expected: str | None) -> Canary:
        running = self.canary()
        if running is None and expected is not None and self.is_published(expected):
            raise SnapshotConflict(f"{expected} is published already, and there is no canary")
        if running is None:
            raise SnapshotConflict("there is no canary; `raysys snapshots canary ID` starts one")
        if expected is not None and running.snapshot_id != expected:
            raise SnapshotConflict(f"{running.snapshot_id} is the canary, not {expected}, so nothing was changed")
        return running

    def _move(self, snapshot_id: str, by: By, forced: Sequence[str] = ()) -> None:
        moves = self.history()
        if moves and moves[-1].snapshot_id == snapshot_id:
            return
        moves.append(Move(at=_now(), snapshot_id=snapshot_id, by=by, forced=tuple(forced)))
        if self.canary() is None:  # one that an earlier move ended, and a kill left, must not come back with this one
            (self.root / CANARY).unlink(missing_ok=True)
        self._write(HISTORY, history.write(moves), f"{snapshot_id} was not published")
        self._write(POINTER, snapshot_id.encode(), f"{snapshot_id} was not published")
        with contextlib.suppress(OSError):  # it is published all the same
            (self.root / CANARY).unlink(missing_ok=True)
            self.refusal_path(snapshot_id).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes, otherwise: str) -> None:
        try:
            write_atomically(self.root / name, content)
        except OSError as error:
            raise SnapshotError(f"{otherwise}, {self.root} cannot be written: {error}") from error

    def refuse(self, snapshot_id: str, reasons: Sequence[str]) -> None:
        """Write down why the snapshot was refused. Raises nothing: what refuses it is what must be told."""
        path = self.refusal_path(snapshot_id)
        try:
            with self.locked():
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, Refusal(at=_now(), reasons=tuple(reasons)).model_dump_json().encode())
        except (SnapshotError, OSError) as error:
            log.warning("that %s was refused cannot be written down: %s", snapshot_id, error)

    def refusal(self, snapshot_id: str) -> Refusal | None:
        """Why the snapshot was last refused; None = it was not, or was published since."""
        return refusals.read(self.refusal_path(snapshot_id))

    def history(self) -> list[Move]:
        """Every move of the pointer, oldest first; the last one put it where it is."""
        path = self.root / HISTORY
        content = path.read_text(encoding="utf-8") if path.exists() else ""
        current = self.current_id() if (self.root / POINTER).exists() else None
        return history.settled(history.read(content), current, _now())

    def previous(self) -> str | None:
        """The snapshot that a rollback goes back to; None = there is none."""
        path = history.way(self.history())
        return path[-2] if len(path) > 1 else None

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
        """The manifest of a finished snapshot. Raises UnknownSnapshot, and as ``read_manifest``."""
        return read_manifest(self.existing(snapshot_id), self.signers)

    def existing(self, snapshot_id: str) -> Path:
        """The folder of a snapshot that is there, finished or not. Raises UnknownSnapshot."""
        folder = self.folder(snapshot_id)
        if not folder.is_dir():
            raise UnknownSnapshot(f"there is no snapshot {snapshot_id} under {self.root}; see `raysys snapshots list`")
        return folder

    def list(self) -> list[str]:
        """Ids of all finished snapshots, oldest first."""
        return sorted(path.parent.name for path in self.root.glob(f"snapshots/*/{MANIFEST}"))
