"""Snapshots on disk: the pointer, the manifest, and that nothing damaged or half-built is ever published or opened."""

import json
import shutil
from pathlib import Path

import pytest
from support import NOW_S, Shop

from raysys.encoder.hashing import HashEncoder
from raysys.errors import SnapshotError, SnapshotMismatch
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import FORMAT_VERSION, MANIFEST, Manifest, file_record, read_manifest, verify_files
from raysys.index.store import POINTER, SnapshotStore, write_atomically, write_manifest


@pytest.fixture
def store(shop: Shop, tmp_path: Path) -> SnapshotStore:
    """A copy that a test may damage."""
    shutil.copytree(shop.store(2).root, tmp_path / "index")
    return SnapshotStore(tmp_path / "index")


@pytest.fixture
def folder(store: SnapshotStore) -> Path:
    return store.folder(store.current_id())


def rewrite_manifest(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(raw))


def test_the_manifest_names_every_file_and_they_are_whole(folder: Path) -> None:
    manifest = read_manifest(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest.files) == there - {MANIFEST}
    verify_files(folder, manifest)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flip, truncate, append, Path.unlink])
def test_any_damaged_file_is_named_and_the_pointer_stays(store: SnapshotStore, folder: Path, damage) -> None:
    manifest = read_manifest(folder)
    (store.root / POINTER).write_text("before")
    for name in manifest.files:
        path = folder / name
        content = path.read_bytes()
        if not content and damage in (flip, truncate):
            continue
        damage(path)
        with pytest.raises(SnapshotError, match=name):
            store.publish(manifest.snapshot_id)
        path.write_bytes(content)
    assert store.current_id() == "before"
    store.publish(manifest.snapshot_id)
    assert store.current_id() == manifest.snapshot_id


def test_a_half_built_snapshot_cannot_be_published_listed_or_opened(store: SnapshotStore) -> None:
    published = store.current_id()
    half, folder = store.create(NOW_S)
    shutil.copytree(store.folder(published) / "shard-00000", folder / "shard-00000")
    with pytest.raises(SnapshotError, match="not a finished snapshot"):
        store.publish(half)
    with pytest.raises(SnapshotError, match="not a finished snapshot"):
        Catalogue(folder)
    assert store.list() == [published]
    assert store.current_id() == published


def test_the_manifest_makes_a_snapshot_exist(store: SnapshotStore) -> None:
    manifest = store.manifest(store.current_id())
    new, folder = store.create(NOW_S + 60)
    write_manifest(store.folder(new), manifest.model_copy(update={"snapshot_id": new, "files": {}}))
    assert store.list() == [manifest.snapshot_id, new]
    assert store.manifest(new).n_items == manifest.n_items
    assert [path.name for path in folder.iterdir()] == [MANIFEST]  # no temporary file stays behind


def test_a_newer_format_is_refused(folder: Path) -> None:
    rewrite_manifest(folder, format_version=FORMAT_VERSION + 1)
    with pytest.raises(SnapshotError, match=rf"format {FORMAT_VERSION + 1}.*upgrade"):
        read_manifest(folder)


def test_a_newer_format_with_new_fields_is_still_called_newer(folder: Path) -> None:
    rewrite_manifest(folder, format_version=FORMAT_VERSION + 1, invented_later={"x": 1})
    with pytest.raises(SnapshotError, match="upgrade"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"format_version": 1}', b"\xff\xfe", b'"x"'])
def test_a_damaged_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_manifest(folder)


def test_a_manifest_that_names_a_file_outside_is_refused(store: SnapshotStore, folder: Path) -> None:
    outside = store.root / "outside.txt"
    outside.write_text("x")
    record = file_record(outside).model_dump()
    rewrite_manifest(folder, files={"../../outside.txt": record})
    with pytest.raises(SnapshotError, match="outside"):
        store.publish(folder.name)


@pytest.mark.parametrize(
    "snapshot_id", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\0b", "a b", "~", "a\nb", "current/.."]
)
def test_ids_that_could_leave_the_root_are_refused(store: SnapshotStore, snapshot_id: str) -> None:
    for use in (store.folder, store.manifest, store.publish):
        with pytest.raises(SnapshotError, match="not a snapshot id"):
            use(snapshot_id)


def test_nothing_published_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="raysys build"):
        SnapshotStore(tmp_path).current_id()
    assert SnapshotStore(tmp_path).list() == []


def test_current_is_the_pointer_and_other_ids_stay(store: SnapshotStore) -> None:
    assert store.resolve("current") == store.current_id()
    assert store.resolve("20260101T000000-abcdef") == "20260101T000000-abcdef"


def test_ids_sort_by_time_and_differ_in_the_same_second(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    first, second, later = (store.create(at)[0] for at in (NOW_S, NOW_S, NOW_S + 1))
    assert first != second
    assert max(first, second) < later


def test_an_atomic_write_leaves_the_old_file_whole_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_another_encoder_is_refused_and_the_difference_named(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest.check_encoder(HashEncoder(dim=64).identity)
    with pytest.raises(SnapshotMismatch, match=r"query_prompt: '' != 'query: '"):
        manifest.check_encoder(HashEncoder(dim=64, query_prompt="query: ").identity)


def test_recall_is_the_mean_by_items(folder: Path) -> None:
    manifest = read_manifest(folder)
    shard = manifest.shards[0]
    shards = [
        shard.model_copy(update={"n_items": 1, "recall_at_10": 0.5}),
        shard.model_copy(update={"n_items": 3, "recall_at_10": 0.9}),
        shard.model_copy(update={"n_items": 0, "recall_at_10": None}),
    ]
    assert manifest.model_copy(update={"shards": shards}).recall_at_10 == pytest.approx(0.8)
    assert manifest.model_copy(update={"shards": shards[2:]}).recall_at_10 is None


def test_a_manifest_survives_writing_and_reading(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
