"""The manifest: what a snapshot is made of, and by what. Written last; nothing it does not name is ever opened."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from raysys import __version__
from raysys.config import EncoderSettings, ItemRules, Settings
from raysys.encoder.protocol import EncoderIdentity
from raysys.errors import SnapshotDamaged, SnapshotMismatch, SnapshotTooNew, SnapshotUntrusted
from raysys.index.kinds import Effort
from raysys.index.signing import Signers

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HASH_BLOCK_BYTES = 1 << 20


class FileRecord(Settings):
    """One file of the snapshot, by its path relative to the snapshot's folder."""

    size_bytes: int
    sha256: str


class ShardRecord(Settings):
    """One shard: its folder, its item count, and how its vectors are indexed.

    effort: how hard it is searched; None = by the kind, as before this was measured. tried: what was measured for it,
    ``index.choose.Trial``.
    """

    folder: str
    n_items: int
    index_kind: str
    effort: Effort | None = None
    recall_at_10: float | None = None  # against exact search, on a sample; None for an empty shard
    recall_at_100: float | None = None
    index_bytes: int | None = None
    tried: tuple[dict[str, Any], ...] = ()


class Manifest(Settings):
    """Everything a reader must know before it opens a file."""

    format_version: int = FORMAT_VERSION
    snapshot_id: str
    created_at: str
    encoder: EncoderSettings
    identity: dict[str, Any]
    metric: str
    n_items: int
    shards: list[ShardRecord]
    files: dict[str, FileRecord]
    has_contrast: bool = False
    data_hash: str
    template_hash: str
    item_rules: ItemRules = ItemRules()
    change_sequence: int = 0  # of the live changes, those up to here are folded in
    change_store: str = ""  # the identity of the state store that numbered them
    written_by: dict[str, str]

    @property
    def encoder_identity(self) -> EncoderIdentity:
        return EncoderIdentity(**self.identity)

    @property
    def recall_at_10(self) -> float | None:
        """Mean recall of the shards' indexes by items; None when nothing was measured."""
        measured = [(s.recall_at_10, s.n_items) for s in self.shards if s.recall_at_10 is not None]
        total = sum(n for _, n in measured)
        return sum(recall * n for recall, n in measured) / total if total else None

    def check_encoder(self, identity: EncoderIdentity) -> None:
        """Raises SnapshotMismatch that names each part in which the encoder differs from the one that wrote this."""
        theirs = asdict(self.encoder_identity)
        differing = [
            f"{name}: {theirs[name]!r} != {value!r}"
            for name, value in asdict(identity).items()
            if theirs[name] != value
        ]
        if differing:
            raise SnapshotMismatch(
                f"snapshot {self.snapshot_id} was made by another encoder ({'; '.join(differing)}). "
                "Serve it with the encoder that made it, or build a new snapshot."
            )


def writers() -> dict[str, str]:
    """Versions of what writes the files."""
    packages = {"faiss": "faiss-cpu", "pyarrow": "pyarrow", "numpy": "numpy"}
    return {"raysys": __version__, **{name: version(package) for name, package in packages.items()}}


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def read_manifest(folder: Path, signers: Signers | None = None) -> Manifest:
    """The manifest in this folder. Raises SnapshotDamaged when it is missing or damaged, SnapshotTooNew.

    With ``signers``, SnapshotUntrusted where none of them has signed it for this folder.
    """
    content = manifest_bytes(folder)
    if signers is not None:
        signers.check(folder, content)  # before anything of it is looked at
    manifest = parse_manifest(folder, content)
    if signers is not None and manifest.snapshot_id != folder.name:
        signed = f"signed as that of {manifest.snapshot_id}, not of {folder.name}"
        raise SnapshotUntrusted(f"{folder / MANIFEST} was {signed}")
    return manifest


def manifest_bytes(folder: Path) -> bytes:
    """The manifest in this folder as it is. Raises SnapshotDamaged when it is missing."""
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise SnapshotDamaged(f"{folder} holds no {MANIFEST}: it is not a finished snapshot") from error


def parse_manifest(folder: Path, content: bytes) -> Manifest:
    """What these bytes of the manifest in the folder say. Raises SnapshotDamaged, SnapshotTooNew."""
    path = folder / MANIFEST
    try:
        raw = json.loads(content)
        _refuse_newer(path, raw)
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise SnapshotDamaged(f"{path} cannot be read: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise SnapshotDamaged(f"{path} cannot be read: {error}") from error
    _refuse_paths_outside(path, manifest)
    return manifest


def _refuse_newer(path: Path, raw: Any) -> None:
    """Before anything else is looked at: a newer format may differ in every other field."""
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise SnapshotTooNew(f"{path} has format {found}, this version reads up to {FORMAT_VERSION}: upgrade raysys")


def _refuse_paths_outside(path: Path, manifest: Manifest) -> None:
    for name in (*manifest.files, *(shard.folder for shard in manifest.shards)):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SnapshotDamaged(f"{path} names {name!r}, which lies outside of its own folder")


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its record. Raises SnapshotDamaged that names the first one that differs."""
    for _, problem in file_problems(folder, manifest, contents=True):
        raise SnapshotDamaged(problem)


def verify_shard(folder: Path, manifest: Manifest, number: int) -> None:
    """As ``verify_files``, the files of one shard only."""
    inside = f"{manifest.shards[number].folder}/"
    _verify(folder, manifest, lambda name: name.startswith(inside))


def verify_common(folder: Path, manifest: Manifest) -> None:
    """As ``verify_files``, the files that belong to no shard."""
    shards = tuple(f"{shard.folder}/" for shard in manifest.shards)
    _verify(folder, manifest, lambda name: not name.startswith(shards))


def _verify(folder: Path, manifest: Manifest, is_wanted: Callable[[str], bool]) -> None:
    files = {name: record for name, record in manifest.files.items() if is_wanted(name)}
    verify_files(folder, manifest.model_copy(update={"files": files}))


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Whether every file is there with its size, which takes an instant. Raises SnapshotDamaged as ``verify_files``."""
    for _, problem in file_problems(folder, manifest, contents=False):
        raise SnapshotDamaged(problem)


def file_problems(folder: Path, manifest: Manifest, contents: bool) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each file that is not as the manifest says; of its contents only where asked for."""
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield name, f"{path} is missing, though the manifest names it"
        elif path.stat().st_size != record.size_bytes:
            yield name, f"{path} is damaged: {path.stat().st_size} bytes, {record.size_bytes} in the manifest"
        elif contents and file_record(path) != record:
            yield name, f"{path} is damaged: its SHA-256 is not the one in the manifest"
