"""The history of the pointer and the way back, what is there, and what may go."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from snapshot_shelf import FILE, N_ITEMS, A, B, C, D, E, change_manifest, copy_of, shelf, swap, unfinished
from support import DIM, NOW_S, FixedClock, Shop

from raysys.encoder.hashing import HashEncoder
from raysys.encoder.vectors import KEY, EmbeddingStore, keys_of
from raysys.errors import SnapshotError
from raysys.index import history, inventory, leases, retention
from raysys.index.catalogue import Catalogue
from raysys.index.history import Move
from raysys.index.manifest import FORMAT_VERSION, MANIFEST
from raysys.index.retention import GRACE_S, Removal, collect, freed_bytes
from raysys.index.store import HISTORY, POINTER, SnapshotStore
from raysys.serving.follower import Follower
from raysys.training.local import build_here
from raysys.training.plan import planned


def ids_of(store: SnapshotStore) -> list[str]:
    return [snapshot.snapshot_id for snapshot in inventory.snapshots(store)]


def gone(removals: list[Removal]) -> list[str]:
    return sorted(removal.path for removal in removals)


# The way back


def move(snapshot_id: str, by: history.By = "build") -> Move:
    return Move(at="2026-01-01T00:00:00+00:00", snapshot_id=snapshot_id, by=by)


@pytest.mark.parametrize(
    ("moves", "way"),
    [
        ([], []),
        ([move("a")], ["a"]),
        ([move("a"), move("b"), move("c")], ["a", "b", "c"]),
        ([move("a"), move("b"), move("c"), move("b", "rollback")], ["a", "b"]),
        ([move("a"), move("b"), move("c"), move("b", "rollback"), move("a", "rollback")], ["a"]),
        ([move("a"), move("b"), move("a", "rollback"), move("d")], ["a", "d"]),
        ([move("a"), move("b"), move("a", "activate")], ["a", "b", "a"]),
        ([move("a"), move("b"), move("a", "activate"), move("c"), move("a", "rollback")], ["a", "b", "a"]),
        ([move("z", "rollback"), move("a")], ["z", "a"]),
    ],
)
def test_the_way_back(moves: list[Move], way: list[str]) -> None:
    assert history.way(moves) == way


def test_the_pointer_alone_says_what_is_published() -> None:
    a, b, c = move("a"), move("b"), move("c")
    assert history.settled([a, b], "b", "now") == [a, b]
    assert history.settled([a, b], "a", "now") == [a]  # killed before the pointer moved to b
    assert history.settled([a], None, "now") == []
    by_hand = history.settled([a, b], "c", "now")
    assert by_hand == [a, b, Move(at="now", snapshot_id="c", by="another way")]
    assert history.settled([a, b, c], "a", "now")[-1].snapshot_id == "a"
    assert history.read(history.write([a, b]).decode()) == [a, b]


def test_a_line_that_cannot_be_read_costs_that_line(caplog: pytest.LogCaptureFixture) -> None:
    content = history.write([move("a")]).decode() + '{"at": "x"' + "\n" + history.write([move("b")]).decode()
    with caplog.at_level(logging.WARNING):
        assert history.read(content) == [move("a"), move("b")]
    assert "line 2" in caplog.text


def test_rollback_goes_back_twice_and_no_further(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    assert store.previous() == B
    assert store.rollback() == (C, B)
    assert store.rollback() == (B, A)
    with pytest.raises(SnapshotError, match=f"nothing was published before {A}"):
        store.rollback()
    assert store.current_id() == A
    assert [(m.snapshot_id, m.by) for m in store.history()][2:] == [(C, "build"), (B, "rollback"), (A, "rollback")]
    store.publish(C)
    assert store.previous() == A


@pytest.mark.parametrize("what", ["folder", "file", "truncated", "manifest"])
def test_rollback_to_what_is_gone_or_damaged_is_refused(tmp_path: Path, what: str) -> None:
    store = shelf(tmp_path, 2)
    folder = store.folder(A)
    if what == "folder":
        shutil.rmtree(folder)
    elif what == "truncated":
        swap(folder / FILE, lambda content: content[:-1])
    else:
        (folder / (MANIFEST if what == "manifest" else FILE)).unlink()
    content = (tmp_path / HISTORY).read_bytes()
    with pytest.raises(SnapshotError, match=f"{A} was published before {B}, but"):
        store.rollback()
    assert store.current_id() == B
    assert (tmp_path / HISTORY).read_bytes() == content


def test_a_pointer_from_before_there_was_a_history_is_gone_back_to(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2, publish=False)
    (tmp_path / POINTER).write_text(A)
    store.publish(B)
    assert store.rollback() == (B, A)


def test_a_pointer_that_has_moved_meanwhile_stays(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    with pytest.raises(SnapshotError, match=f"meanwhile {C} was published in place of {B}"):
        store.move(A, "activate", expected=B)
    assert store.current_id() == C
    store.move(A, "activate", expected=C, forced=["a reason"])
    assert (store.current_id(), store.history()[-1].forced) == (A, ("a reason",))


def test_publishing_what_is_published_is_no_move(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2)
    store.publish(B)
    assert len(store.history()) == 2


# What is there


def test_every_state_is_told_apart(shop: Shop, tmp_path: Path) -> None:
    store = shelf(tmp_path, 4)
    swap(store.folder(B) / FILE, lambda content: content[:-4])
    change_manifest(store.folder(C), format_version=FORMAT_VERSION + 1)
    unfinished(store, E)
    found = {one.snapshot_id: one for one in inventory.snapshots(store)}
    states = {snapshot_id: one.state for snapshot_id, one in found.items()}
    assert states == {A: "complete", B: "damaged", C: "too new", D: "complete", E: "unfinished"}
    assert FILE in found[B].problem
    assert found[A].manifest == store.manifest(A)
    assert found[A].manifest.n_items == N_ITEMS
    total = sum(path.stat().st_size for path in store.folder(A).rglob("*") if path.is_file())
    assert found[A].size_bytes == total
    assert [(left.path.name, left.size_bytes, left.is_held) for left in inventory.staged(store)] == [(E, 100, False)]


def test_readable_sizes() -> None:
    assert [inventory.readable_bytes(n) for n in (0, 999, 1_500, 2_340_000, 5e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.3 MB",
        "5.0 TB",
    ]


# What may go


def test_the_newest_stay_and_what_is_freed_is_said(tmp_path: Path) -> None:
    store = shelf(tmp_path, 5)
    sizes = {one.snapshot_id: one.size_bytes for one in inventory.snapshots(store)}
    assert gone(collect(store, keep=9)) == []
    assert gone(collect(store, keep=None)) == []
    foreseen = collect(store, keep=3, dry_run=True)
    assert ids_of(store) == [A, B, C, D, E]
    removed = collect(store, keep=3)
    assert removed == foreseen
    assert gone(removed) == [f"snapshots/{A}", f"snapshots/{B}"]
    assert freed_bytes(removed) == sizes[A] + sizes[B]
    assert ids_of(store) == [C, D, E]
    assert list((tmp_path / "trash").iterdir()) == []
    assert collect(store, keep=3) == []


def test_published_before_and_newer_ones_stay_whatever_is_kept(tmp_path: Path) -> None:
    store = shelf(tmp_path, 5)
    store.move(C, "activate")
    assert store.previous() == E
    store.move(B, "activate")
    removed = collect(store, keep=1)
    assert gone(removed) == [f"snapshots/{A}"]
    assert store.rollback() == (B, C)


def test_what_is_damaged_does_not_take_the_place_of_what_is_whole(tmp_path: Path) -> None:
    store = shelf(tmp_path, 5)
    swap(store.folder(C) / FILE, lambda content: content[:-4])
    assert gone(collect(store, keep=3)) == [f"snapshots/{A}", f"snapshots/{C}"]
    assert ids_of(store) == [B, D, E]


@pytest.mark.parametrize("pointer", [None, "20250101T000000-000000", E])
def test_without_a_whole_published_one_no_snapshot_goes(tmp_path: Path, pointer: str | None) -> None:
    store = shelf(tmp_path, 5, publish=False)
    if pointer is not None:
        (tmp_path / POINTER).write_text(pointer)
    if pointer == E:
        (store.folder(E) / FILE).unlink()
    assert collect(store, keep=1) == []
    assert ids_of(store) == [A, B, C, D, E]


def test_one_of_a_newer_format_stays(tmp_path: Path) -> None:
    store = shelf(tmp_path, 4)
    manifest = store.folder(A) / MANIFEST
    manifest.write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    assert gone(collect(store, keep=1)) == [f"snapshots/{B}"]


def test_folders_that_are_none_of_ours_stay(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2)
    (tmp_path / "snapshots" / "my notes.txt").mkdir()
    (tmp_path / "notes").write_text("x")
    assert collect(store, keep=1, embeddings=True) == []
    assert (tmp_path / "snapshots" / "my notes.txt").exists()


def test_what_killed_builds_left_goes_and_a_running_one_keeps_its_own(shop: Shop, tmp_path: Path) -> None:
    store = shelf(tmp_path, 1)
    unfinished(store, B)
    settings = shop.settings(2, root=tmp_path)
    with planned(settings, NOW_S) as plan:
        (plan.snapshot / "half").write_text("x")
        assert gone(collect(store, keep=1)) == [f"snapshots/{B}", f"staging/{B}"]
        assert (plan.snapshot / "half").exists()
        assert plan.staging.exists()
        (tmp_path / ".CURRENT.0123.tmp").write_text("x")
        assert gone(collect(store, keep=1)) == [".CURRENT.0123.tmp"]
    assert ids_of(store) == [A]
    assert list((tmp_path / "leases").iterdir()) == []
    assert collect(store, keep=1) == []


async def test_what_a_server_uses_stays_and_a_while_longer(tmp_path: Path) -> None:
    store = shelf(tmp_path, 5)

    async def take(snapshot_id: str) -> None:
        store.verify(snapshot_id)

    follower = Follower(store, take)
    await follower.follow(A)  # pinned
    assert [one.snapshot_id for one in inventory.snapshots(store) if one.is_held] == [A]
    assert gone(collect(store, keep=2)) == [f"snapshots/{B}", f"snapshots/{C}"]
    await follower.stop()
    used_s = leases.used_s(store.lease_path(A))
    assert used_s > 0
    assert collect(store, keep=2, now_s=used_s + GRACE_S - 1) == []  # it may have been killed and come back
    assert gone(collect(store, keep=2, now_s=used_s + GRACE_S + 1)) == [f"snapshots/{A}"]


async def test_a_refused_snapshot_is_let_go(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2)

    async def take(snapshot_id: str) -> None:
        if snapshot_id == A:
            raise SnapshotError("no")

    follower = Follower(store, take)
    await follower.follow("current")
    await follower.follow(A)
    assert follower.refused is not None
    assert [one.snapshot_id for one in inventory.snapshots(store) if one.is_held] == [B]
    await follower.stop()
    assert not any(one.is_held for one in inventory.snapshots(store))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_may_only_be_read_is_served(tmp_path: Path) -> None:
    store = shelf(tmp_path, 1)
    tmp_path.chmod(0o500)
    leases.share_if_possible(store.lease_path(A)).close()
    tmp_path.chmod(0o700)


def test_embeddings_that_no_snapshot_needs_go_when_asked(shop: Shop, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    copy_of(shop.snapshot(2), store, A)
    store.publish(A)
    shutil.copytree(shop.store(2).root / "embeddings", tmp_path / "embeddings")
    of_other = tmp_path / "embeddings" / "0123456789abcdef"
    of_other.mkdir()
    (of_other / "x.parquet").write_bytes(b"x" * 10)
    encoder = HashEncoder(dim=DIM)
    embedded = EmbeddingStore(tmp_path, encoder.identity.fingerprint(), DIM)
    needed = np.concatenate([keys_of(shard.items["text_key"]) for shard in Catalogue(store.folder(A)).shards])
    new = embedded.write([b"k" * 32], encoder.encode(["some text"], "item"))
    assert collect(store, keep=1) == []
    with store.lease(B):
        unfinished(store, B)
        assert collect(store, keep=1, embeddings=True) == []  # a build counts on them
    assert gone(collect(store, keep=1, embeddings=True)) == [
        "embeddings/0123456789abcdef",
        f"embeddings/{encoder.identity.fingerprint()}/{new.name}",
        f"snapshots/{B}",
        f"staging/{B}",
    ]
    assert embedded.holds(needed).all()
    assert not embedded.holds(np.array([b"k" * 32], dtype=KEY)).any()
    (store.folder(A) / "shard-00000/items.arrow").write_bytes(b"damaged")
    assert collect(store, keep=1, embeddings=True) == []  # what it needs cannot be known


def test_a_build_retires_old_snapshots(shop: Shop, tmp_path: Path) -> None:
    settings = shop.settings(1, root=tmp_path, keep=2)
    plain = settings.model_copy(update={"events": None})
    built = [build_here(plain, FixedClock(NOW_S + number)).snapshot_id for number in range(3)]
    store = SnapshotStore(tmp_path)
    assert ids_of(store) == built[1:]
    assert store.current_id() == built[2]
    beside = plain.model_copy(update={"index": settings.index.model_copy(update={"publish": False})})
    unpublished = build_here(beside, FixedClock(NOW_S + 10)).snapshot_id
    assert ids_of(store) == [*built[1:], unpublished]
    assert store.current_id() == built[2]
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_failed_collection_does_not_fail_the_build(shop: Shop, tmp_path: Path, monkeypatch) -> None:
    settings = shop.settings(1, root=tmp_path, keep=1).model_copy(update={"events": None})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(retention, "collect", full)
    assert build_here(settings, FixedClock()).snapshot_id == SnapshotStore(tmp_path).current_id()
