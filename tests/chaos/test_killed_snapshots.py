"""The commands over snapshots, killed before each access to a file, and several of them at once."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from snapshot_shelf import A, B, C, D, put, shelf, unfinished

from raysys.errors import SnapshotError
from raysys.index import history, inventory, leases
from raysys.index.retention import collect
from raysys.index.store import HISTORY, POINTER, SnapshotStore


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
        assert [one.snapshot_id for one in inventory.snapshots(store)] == [B, C]
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
