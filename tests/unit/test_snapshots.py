"""The history of the pointer and the way back, what is there, and what may go."""

import fcntl
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from snapshot_shelf import FILE, N_ITEMS, A, B, C, D, E, change_manifest, copy_of, put, shelf, swap, unfinished
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


# Killed at every step, and several at once


def killed_everywhere(prepare: Callable[[], SnapshotStore], act: Callable[[SnapshotStore], object], check) -> int:
    """Run ``act`` in a process that is killed before its n-th access to a file, for every n, until it comes through.

    Each time ``check`` looks at what is left. Returns how many times it was killed.
    """
    n = 0
    while True:
        store = prepare()
        pid = os.fork()
        if pid == 0:
            kill_at(n)
            try:
                act(store)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        check(store)
        if os.WIFEXITED(status):
            return n
        n += 1


def kill_at(n: int) -> None:
    import signal
    import sys

    left = n

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "shutil.rmtree"}:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], SnapshotStore]:
    """The same three published snapshots, anew each time."""
    shelf(tmp_path / "made", 3)

    def copy() -> SnapshotStore:
        shutil.rmtree(tmp_path / "used", ignore_errors=True)
        shutil.copytree(tmp_path / "made", tmp_path / "used", copy_function=os.link)
        for name in (POINTER, HISTORY):  # links would share what is written in place
            swap_link(tmp_path / "used" / name)
        return SnapshotStore(tmp_path / "used")

    return copy


def swap_link(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def test_killed_at_any_step_of_a_move_it_is_the_old_or_the_new(fresh) -> None:
    seen = set()

    def check(store: SnapshotStore) -> None:
        current = store.current_id()
        seen.add(current)
        assert current in (C, A)
        assert store.previous() == (C if current == A else B)
        store.publish(B)  # and nothing is in the way of the next
        assert store.rollback() == (B, current)

    n = killed_everywhere(fresh, lambda store: store.move(A, "activate"), check)
    assert n > 5
    assert seen == {A, C}


def test_killed_at_any_step_of_a_rollback_it_is_the_old_or_the_new(fresh) -> None:
    seen = set()

    def check(store: SnapshotStore) -> None:
        seen.add((store.current_id(), store.previous()))

    assert killed_everywhere(fresh, lambda store: store.rollback(), check) > 5
    assert seen == {(C, B), (B, A)}


@pytest.fixture
def with_canary(fresh) -> Callable[[], SnapshotStore]:
    """As ``fresh``, with a canary beside the published one."""

    def prepare() -> SnapshotStore:
        store = fresh()
        store.set_canary(A, 0.5, C)
        return store

    return prepare


def test_killed_at_any_step_of_a_promotion_it_is_the_old_or_the_new_and_no_canary_comes_back(with_canary) -> None:
    seen = set()

    def check(store: SnapshotStore) -> None:
        canary = store.canary()
        seen.add((store.current_id(), None if canary is None else canary.snapshot_id))
        if canary is None:
            assert store.rollback() == (A, C)
            assert store.canary() is None

    assert killed_everywhere(with_canary, lambda store: store.promote(), check) > 5
    assert seen == {(C, A), (A, None)}


def test_killed_at_any_step_of_the_start_or_end_of_a_canary_it_is_there_whole_or_not_at_all(fresh, with_canary) -> None:
    seen = set()

    def check(store: SnapshotStore) -> None:
        canary = store.canary()
        seen.add(None if canary is None else canary.share)
        assert store.current_id() == C
        collect(store, keep=None)  # what was half written goes
        assert not list(store.root.glob(".CANARY.*"))

    assert killed_everywhere(fresh, lambda store: store.set_canary(A, 0.5, C), check) > 3
    assert killed_everywhere(with_canary, lambda store: store.set_canary(A, 0.9, C), check) > 3
    assert killed_everywhere(with_canary, lambda store: store.withdraw(), check) > 1
    assert seen == {None, 0.5, 0.9}


def test_killed_at_any_step_of_a_refusal_nothing_is_published_and_it_is_said_whole_or_not_at_all(fresh) -> None:
    seen = set()

    def check(store: SnapshotStore) -> None:
        assert store.current_id() == C
        refusal = store.refusal(A)
        seen.add(None if refusal is None else refusal.reasons)
        collect(store, keep=None)  # what was half written goes
        assert {path.name for path in (store.root / "refusals").glob("*")} <= {A}

    assert killed_everywhere(fresh, lambda store: store.refuse(A, ["too few"]), check) > 3
    assert seen == {None, ("too few",)}


def test_killed_at_any_step_of_a_collection_every_snapshot_is_whole_or_gone(fresh) -> None:
    counts = set()

    def prepare() -> SnapshotStore:
        store = fresh()
        unfinished(store, D)
        return store

    def check(store: SnapshotStore) -> None:
        found = inventory.snapshots(store)
        counts.add(len(found))
        assert {one.state for one in found if one.snapshot_id != D} == {"complete"}
        assert {B, C} <= {one.snapshot_id for one in found}
        collect(store, keep=1)  # the next one finishes it
        assert ids_of(store) == [B, C]
        assert list((store.root / "trash").iterdir()) == list((store.root / "staging").iterdir()) == []
        assert list((store.root / "leases").iterdir()) == []

    assert killed_everywhere(prepare, lambda store: collect(store, keep=1), check) > 20
    assert counts == {2, 3, 4}


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2)
    ready, wait = os.pipe()
    pid = os.fork()
    if pid == 0:
        with store.locked(), store.lease(A):
            os.write(wait, b"x")
            os.read(os.pipe()[0], 1)  # for ever
    os.read(ready, 1)
    with (tmp_path / ".lock").open("ab") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert leases.is_held(store.lease_path(A))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert not leases.is_held(store.lease_path(A))
    assert store.rollback() == (B, A)


def _publish_and_collect(root: str, number: int) -> None:
    store = SnapshotStore(root)
    for turn in range(6):
        snapshot_id = f"20270101T0000{turn:02d}-{number:06d}"
        with store.lease(snapshot_id):
            put(store, snapshot_id)
            store.publish(snapshot_id)
        collect(store, keep=2)


def _activate_and_roll_back(root: str) -> None:
    store = SnapshotStore(root)
    for _ in range(12):
        for snapshot_id in store.list():
            try:
                with store.lease(snapshot_id):
                    store.verify(snapshot_id)
                    store.move(snapshot_id, "activate")
                store.rollback()
            except SnapshotError:  # collected between the list and the lease, or nothing is before it
                continue


def test_builds_collections_and_activations_at_once_leave_a_whole_snapshot_published(
    tmp_path: Path,
) -> None:
    store = shelf(tmp_path / "index", 2)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_publish_and_collect, args=(str(store.root), number)) for number in range(2)]
    workers += [context.Process(target=_activate_and_roll_back, args=(str(store.root),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        with store.locked():
            store.verify(store.current_id())  # whenever one looks, what is published is whole
        workers[0].join(0.001)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    store.verify(store.current_id())
    moves = (store.root / HISTORY).read_text().splitlines()
    assert history.read("\n".join(moves)) == store.history()  # every line can be read, and the last one came true
    assert len(moves) == len(store.history()) > 12
    collect(store, keep=2)
    assert {one.state for one in inventory.snapshots(store)} == {"complete"}
