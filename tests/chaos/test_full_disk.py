"""A real disk of a few MB that runs full: under a build, a publish, and everything that a gateway writes."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos_tools import GatewayProcess, SmallDisk, event_of, is_told, until
from snapshot_shelf import A, B, C, copy_of, swap
from support import FixedClock, Shop

from raysys.errors import RaysysError, SnapshotError
from raysys.index.store import SnapshotStore
from raysys.training.local import build_here

RECOVERY_S = 10.0
CLI = [sys.executable, "-c", "from raysys.cli import main; main()"]


def files_under(root: Path) -> set[str]:
    """All but locks, which are empty."""
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and file.stat().st_size}


def test_a_build_says_so_and_leaves_the_published_one(shop: Shop, disk: SmallDisk) -> None:
    settings = shop.settings(2, root=disk.seen / "index")
    first = build_here(settings, FixedClock())
    store = SnapshotStore(settings.index.root)
    before = files_under(store.root)
    used_bytes = sum((store.root / name).stat().st_size for name in before)
    shutil.rmtree(store.root / "embeddings")
    stopped = []
    for share in (0.0, 0.1, 0.3, 0.6, 0.9):  # of what the first took, so that another stage is met each time
        disk.fill(leave_bytes=int(share * used_bytes))
        with pytest.raises(RaysysError) as caught:
            build_here(settings, FixedClock())
        stopped.append(str(caught.value))
        assert store.current_id() == first.snapshot_id
        assert store.list() == [first.snapshot_id]
        assert not [name for name in files_under(store.root) - before if not name.startswith("embeddings/")]
        assert not list(store.root.rglob("*.tmp"))
        disk.free()
    assert all("No space left" in said or "cannot be written" in said or " written" in said for said in stopped)
    store.verify(first.snapshot_id)
    second = build_here(settings, FixedClock())
    assert store.current_id() == second.snapshot_id
    print("\n".join(f"build: {said[:160]}" for said in stopped))


def test_what_a_build_prints_is_no_traceback(shop: Shop, disk: SmallDisk, tmp_path: Path) -> None:
    """By the way that `raysys build` goes for every error, without the cluster that it starts."""
    settings = shop.settings(2, root=disk.path / "index")
    (tmp_path / "build.json").write_text(settings.model_dump_json(exclude_unset=True))
    script = """
import sys
import raysys.cli as cli
from raysys.config import BuildSettings, load
from raysys.training.local import build_here

cli.app = lambda: build_here(load(BuildSettings, sys.argv[1]))
cli.main()
"""
    disk.fill(leave_bytes=100_000)
    done = run(disk.within([sys.executable, "-c", script, str(tmp_path / "build.json")]))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    print(f"build: {done.stderr.strip()}")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_nothing_is_half_published(shop: Shop, disk: SmallDisk) -> None:
    store = SnapshotStore(disk.seen / "index")
    for snapshot_id in (A, B):
        copy_of(shop.snapshot(2), store, snapshot_id)
    store.publish(A)
    before = files_under(store.root)
    history = store.history()
    disk.fill()
    root = ["--root", str(disk.path / "index"), "--state", "none", "--impressions", "none"]
    done = run(disk.within([*CLI, "snapshots", "activate", B, *root]))
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith(f"error: {B} was not published")
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert (store.current_id(), store.history(), files_under(store.root)) == (A, history, before)
    disk.free()
    store.publish(B)
    disk.fill()
    with pytest.raises(SnapshotError, match="No space left"):
        store.rollback()
    assert store.current_id() == B
    disk.free()
    assert store.rollback() == (B, A)
    print(f"publish: {done.stderr.strip()}")


def test_a_refusal_that_finds_no_room_is_told_all_the_same(shop: Shop, disk: SmallDisk) -> None:
    store = SnapshotStore(disk.seen / "index")
    for snapshot_id in (A, C):
        copy_of(shop.snapshot(2), store, snapshot_id)
    store.publish(A)
    swap(store.folder(C) / "shard-00000/vectors.npy", lambda content: content[:-1] + b"\x77")
    disk.fill()
    done = run(disk.within([*CLI, "snapshots", "activate", C, "--root", str(disk.path / "index")]))
    assert done.returncode == 1
    assert "its SHA-256" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((store.root).rglob("*.tmp"))
    disk.free()
    with pytest.raises(SnapshotError, match="its SHA-256"):
        store.publish(C)
    assert store.current_id() == A


def shown(gateway: GatewayProcess, user: str) -> list[dict[str, Any]]:
    return list(gateway.post("/v1/users:export", user_id=user).json()["impressions"])


def dropped_rows(gateway: GatewayProcess) -> float:
    lines = gateway.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("raysys_impressions_dropped_total"))


def written_until_full(gateway: GatewayProcess) -> list[str]:
    """Events until one is told that there is no room. What SQLite has in hand already may take a few."""
    acknowledged: list[str] = []
    while True:
        name = f"e{len(acknowledged)}"
        answer = gateway.post("/v1/events", events=[event_of(name, f"something about {name} " * 100)])
        if answer.status_code != 200:
            assert is_told(answer), answer.text[:500]
            return acknowledged
        acknowledged.append(name)
        assert len(acknowledged) < 2_000


def test_a_gateway_goes_on_and_takes_writes_again(
    shop: Shop, disk: SmallDisk, tmp_path: Path, start_gateway: Callable[..., GatewayProcess]
) -> None:
    impressions = {"folder": str(disk.path / "impressions"), "seconds_per_file": 0.2}
    gateway = start_gateway(
        within=disk.within,
        stderr=disk.seen / "stderr",
        index_root=shop.store(2).root,
        state=disk.path / "state.sqlite3",
        impressions=impressions,
    )
    new = {"item_id": "new-1", "title": "quokka zeppelin"}
    assert gateway.post("/v1/items", items=[new]).json()["accepted"] == ["new-1"]
    gateway.recommend("bob")
    assert shown(gateway, "bob")
    disk.fill(leave_bytes=200_000)
    acknowledged = written_until_full(gateway)
    disk.fill()
    long = "quokka " * 300
    for answer in (
        gateway.post("/v1/events", events=[event_of(f"told-{n}", long) for n in range(200)]),
        gateway.post("/v1/items", items=[new | {"item_id": f"new-{n}", "text": long} for n in range(2, 202)]),
        gateway.post("/v1/users", users=[{"user_id": f"u{n}", "description": long} for n in range(200)]),
    ):
        assert is_told(answer), answer.text[:500]
    # a small write may find room in the file as it is; this one is in the audit log, which finds none
    erased = gateway.post("/v1/users:delete", user_id="bob")
    assert erased.status_code == 200 or is_told(erased)
    list_ = gateway.recommend()
    assert list_["degraded"] == []
    assert list_["profile_version"] > 0
    until(lambda: dropped_rows(gateway) > 0, RECOVERY_S)
    assert gateway.http.get("/livez").status_code == 200

    disk.free()
    back_s = until(lambda: gateway.event("after").status_code == 200, RECOVERY_S)
    exported = gateway.post("/v1/users:export", user_id="ann").json()
    assert {event["event_id"] for event in exported["events"]} == {*acknowledged, "after"}
    assert gateway.post("/v1/items", items=[new | {"item_id": "new-2"}]).json()["accepted"] == ["new-2"]
    found_s = until(lambda: "new-2" in ids_of(gateway.post("/v1/search", query="quokka zeppelin")), RECOVERY_S)
    gateway.recommend("eve")
    assert shown(gateway, "eve")
    assert gateway.post("/v1/users:delete", user_id="bob").status_code == 200
    gateway.kill()
    log = gateway.log.read_text()
    assert '"act":"/v1/users:delete","status":200' in log
    assert "Traceback" not in log
    gateway.start()
    assert {e["event_id"] for e in gateway.post("/v1/users:export", user_id="ann").json()["events"]} == {
        *acknowledged,
        "after",
    }
    print(
        f"gateway: {len(acknowledged)} events kept, back {back_s:.2f} s after, a new item found {found_s:.2f} s after"
    )


def ids_of(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def test_a_store_that_cannot_be_opened_for_want_of_room_is_explained(disk: SmallDisk) -> None:
    script = """
import sys
import raysys.cli as cli
from raysys.state.sqlite import SqliteState

cli.app = lambda: SqliteState(sys.argv[1])
cli.main()
"""
    command = disk.within([sys.executable, "-c", script, str(disk.path / "state.sqlite3")])
    disk.fill()
    done = run(command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot use {disk.path}/state.sqlite3 as state store: ")
    assert "Traceback" not in done.stderr
    disk.free()
    assert run(command).returncode == 0
    print(f"state: {done.stderr.strip()}")


def test_keys_are_as_they_were_where_one_more_finds_no_room(disk: SmallDisk) -> None:
    file = disk.path / "keys.json"
    create = disk.within([*CLI, "keys", "create", "--scope", "read", "--file", str(file), "--name"])
    assert run([*create, "first"]).returncode == 0
    content = (disk.seen / "keys.json").read_bytes()
    disk.fill()
    done = run([*create, "second"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: cannot write the keys in {file}: No space left")
    assert files_under(disk.seen) == {"keys.json", "ballast"}
    assert (disk.seen / "keys.json").read_bytes() == content


def test_any_other_command_says_it_in_one_line(disk: SmallDisk) -> None:
    script = """
import sys
from pathlib import Path
import raysys.cli as cli

cli.app = lambda: Path(sys.argv[1]).write_text("x" * 10_000)
cli.main()
"""
    disk.fill()
    done = run(disk.within([sys.executable, "-c", script, str(disk.path / "report.json")]))
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")
