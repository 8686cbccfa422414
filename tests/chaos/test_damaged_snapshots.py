"""Every file of a snapshot damaged in every way, under a gateway that serves from another one.

What ``tests/unit`` has of this is not repeated: that ``publish`` names each damaged file, and what ``verify`` says of
files that do not fit together.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from snapshot_shelf import A, B, C, change_manifest, copy_of
from support import Shop

from raysys.config import EncoderSettings, ServeSettings
from raysys.errors import SnapshotError
from raysys.index.manifest import FORMAT_VERSION, MANIFEST, read_manifest
from raysys.index.store import HISTORY, POINTER, SnapshotStore
from raysys.publishing.activate import activate
from raysys.publishing.verify import checks
from raysys.serving.alone import Alone


class Gateway:
    """A gateway in this process that follows a store, whose polls the test makes."""

    def __init__(self, store: SnapshotStore, state: Path) -> None:
        settings = ServeSettings(index_root=str(store.root), state=str(state), impressions={"folder": None})
        encoder = store.manifest(store.current_id()).encoder
        self.alone = Alone(settings, EncoderSettings.model_validate(encoder.model_dump()))
        transport = httpx.ASGITransport(self.alone.app())
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def told_of(self, store: SnapshotStore, snapshot_id: str) -> tuple[str, str | None]:
        """(the snapshot that answers, why another one was refused) after the pointer was put there, by whomever."""
        (store.root / POINTER).write_text(snapshot_id)
        await self.alone.follow("current")  # as a poll does
        answer = await self.http.post("/v1/recommendations", json={"user_id": "ann", "query": "quasar", "limit": 3})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["items"]) == 3
        ready = await self.http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["snapshot_id"] == answer.json()["snapshot_id"]
        return answer.json()["snapshot_id"], ready.json()["refused"]


@pytest.fixture
def store(shop: Shop, tmp_path: Path) -> SnapshotStore:
    """A is published; B and C have the same content."""
    store = SnapshotStore(tmp_path / "index")
    for snapshot_id in (A, B, C):
        copy_of(shop.snapshot(2), store, snapshot_id)
    store.publish(A)
    return store


@pytest_asyncio.fixture
async def gateway(store: SnapshotStore, tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(store, tmp_path / "state.sqlite3")
    await gateway.alone.follow("current")
    yield gateway
    await gateway.http.aclose()
    await gateway.alone.close()


def contents(store: SnapshotStore) -> list[bytes]:
    """Pointer and history."""
    return [(store.root / name).read_bytes() for name in (POINTER, HISTORY)]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def half_written(content: bytes) -> bytes:
    """The length is there and the end is not: what a power cut leaves of a file that was not synced."""
    return content[: len(content) // 2].ljust(len(content), b"\0")


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": flipped,
    "truncated": lambda content: content[:-1],
    "empty": lambda _: b"",
    "half written": half_written,
    "too long": lambda content: content + b"\0",
    "missing": lambda _: None,
}


def damaged(path: Path, damage: Callable[[bytes], bytes | None]) -> bool:
    """Whether the file is another one now: not all damages can be done to all files."""
    content = path.read_bytes()
    if not content and damage is flipped:
        return False
    changed = damage(content)
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return changed != content


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_damaged_file_is_named_refused_and_never_served(
    store: SnapshotStore, gateway: Gateway, what: str
) -> None:
    folder, before = store.folder(B), contents(store)
    n_tasks, n_damaged = len(asyncio.all_tasks()), 0
    for name in read_manifest(folder).files:
        content = (folder / name).read_bytes()
        if damaged(folder / name, DAMAGES[what]):
            n_damaged += 1
            assert [check.file for check in checks(folder) if check.level == "fail"] == [name]
            with pytest.raises(SnapshotError, match=name):
                activate(store, B, force=True)
            assert contents(store) == before
            answers, refused = await gateway.told_of(store, B)
            assert answers == A, f"{what}: {name} was taken up"
            assert name in str(refused)
            (store.root / POINTER).write_bytes(before[0])
        (folder / name).write_bytes(content)
    assert n_damaged > 20
    assert len(asyncio.all_tasks()) == n_tasks  # nothing of what was refused goes on in the background
    assert await gateway.told_of(store, C) == (C, None)
    assert await gateway.told_of(store, B) == (B, None)


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda folder: (folder / MANIFEST).unlink(),
    "empty": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "not JSON": lambda folder: (folder / MANIFEST).write_bytes(b"\x00\xff not JSON"),
    "half written": lambda folder: (folder / MANIFEST).write_bytes(half_written((folder / MANIFEST).read_bytes())),
    "another JSON": lambda folder: (folder / MANIFEST).write_text(json.dumps({"snapshots": []})),
    "of the future": lambda folder: change_manifest(folder, format_version=FORMAT_VERSION + 1),
}


@pytest.mark.parametrize("what", MANIFESTS)
async def test_a_manifest_that_is_none_is_refused(store: SnapshotStore, gateway: Gateway, what: str) -> None:
    before = contents(store)
    MANIFESTS[what](store.folder(B))
    assert [(check.what, check.file) for check in checks(store.folder(B))] == [("manifest", MANIFEST)]
    with pytest.raises(SnapshotError, match=B):
        activate(store, B, force=True)
    assert contents(store) == before
    answers, refused = await gateway.told_of(store, B)
    assert (answers, B in str(refused)) == (A, True)
    assert await gateway.told_of(store, C) == (C, None)


async def test_one_of_another_model_is_refused(store: SnapshotStore, gateway: Gateway) -> None:
    identity = read_manifest(store.folder(B)).identity
    change_manifest(store.folder(B), identity=identity | {"name": "another"})
    assert [check.what for check in checks(store.folder(B)) if check.level == "fail"] == ["encoder"]
    await asyncio.to_thread(activate, store, B)  # only who loads the encoder can tell
    answers, refused = await gateway.told_of(store, B)
    assert answers == A
    assert "another encoder" in str(refused)
    assert await gateway.told_of(store, C) == (C, None)


async def test_one_whose_folder_is_gone_is_refused(store: SnapshotStore, gateway: Gateway) -> None:
    shutil.rmtree(store.folder(B))
    answers, refused = await gateway.told_of(store, B)
    assert (answers, B in str(refused)) == (A, True)
    assert await gateway.told_of(store, C) == (C, None)
