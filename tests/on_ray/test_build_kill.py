"""The indexing job is hit in mid-build, by a kill of an encoder or the end of its budget: what was encoded is kept."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clusters import poll, settings_of, world_settings, write_settings

from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.publishing.verify import failed, look_through
from raysys.serving.local_head import LocalHead, descendants, end_all
from raysys.serving.session import LocalService
from raysys.training.local import build_here

pytestmark = pytest.mark.ray

TEXTS_PER_FILE = 20
START_S = 140.0  # until two encoders are at work, on a machine that does much else
# Slow enough that the encoder dies with most of the texts ahead of it.
WORKERS = {"encoders": 2, "texts_per_file": TEXTS_PER_FILE, "limit_rate": 50}


def encoder_pids(parent: int) -> list[int]:
    """The processes of the pool, by the name that Ray gives them."""
    return [pid for pid in descendants(parent) if "MapBatches(_Encoder)" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def building(raw: dict[str, Any], folder: Path, head: LocalHead | None, *options: str) -> subprocess.Popen[str]:
    """`raysys build` in a process of its own, on this head or on one of its own."""
    settings = write_settings(raw, folder / "build.yaml")
    command = [str(Path(sys.executable).with_name("raysys")), "build", str(settings), *options]
    command += [] if head is None else ["--address", head.environment["RAY_ADDRESS"]]
    environment = {**(os.environ if head is None else head.environment), "HOME": str(folder)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stored_keys(root: Path) -> list[bytes]:
    """The key of every stored vector, as often as it is stored."""
    files = root.glob("embeddings/*/*.parquet")
    return [key for file in files for key in pq.read_table(file, columns=["text_key"])["text_key"].to_pylist()]


def test_an_encoder_that_is_killed_costs_one_file_at_most(service: LocalService, tmp_path: Path) -> None:
    raw: dict[str, Any] = world_settings(tmp_path, workers=WORKERS, events=None)
    root = Path(raw["index"]["root"])
    with building(raw, tmp_path, service.head) as build:
        try:
            poll("vectors of both encoders", lambda: len(stored_keys(root)) >= 3 * TEXTS_PER_FILE, START_S)
            killed = poll("two encoders", lambda: encoder_pids(service.head.pid))
            before = set(stored_keys(root))
            os.kill(killed[0], signal.SIGKILL)
            output, _ = build.communicate(timeout=2 * START_S)
        finally:
            end_all([build.pid, *descendants(build.pid)])
    assert build.returncode == 0, output[-4_000:]
    store = SnapshotStore(root)
    folder = store.folder(store.current_id())
    report = json.loads((folder / "report.json").read_text())
    keys = stored_keys(root)
    assert len(before) < report["todo"], "it was killed too late to say anything"
    assert report["texts"] == report["todo"] == len(set(keys))
    assert before <= set(keys)
    assert len(keys) <= len(set(keys)) + TEXTS_PER_FILE
    assert sum(len(shard.keys) for shard in Catalogue(folder).shards) == report["items"] == 400


@pytest.mark.nightly
def test_a_build_that_would_cost_too_much_stops_and_the_next_goes_on(service: LocalService, tmp_path: Path) -> None:
    raw: dict[str, Any] = world_settings(tmp_path, workers=WORKERS | {"limit_rate": None}, events=None)
    root = Path(raw["index"]["root"])
    # A dime a second: at two texts a second the last one would come after 200 s.
    budget = ("--limit-rate", "2", "--usd-per-hour", "360", "--max-cost", "15")
    with building(raw, tmp_path, service.head, *budget) as build:
        try:
            output, _ = build.communicate(timeout=START_S)
        finally:
            end_all([build.pid, *descendants(build.pid)])
    assert build.returncode == 1, output[-4_000:]
    assert "would cost about $" in output
    assert "which are kept" in output
    assert not list(root.glob("snapshots/*"))
    assert not list(root.glob("staging/*"))
    kept = set(stored_keys(root))
    assert kept
    manifest = build_here(settings_of(raw))
    report = json.loads((SnapshotStore(root).folder(manifest.snapshot_id) / "report.json").read_text())
    assert (report["unchanged"], report["unchanged"] + report["texts"]) == (len(kept), len(set(stored_keys(root))))


@pytest.mark.nightly
def test_a_killed_driver_leaves_what_is_served_and_the_next_build_goes_on(tmp_path: Path) -> None:
    raw: dict[str, Any] = world_settings(tmp_path, n_items=60, workers=WORKERS, events=None)
    store = SnapshotStore(raw["index"]["root"])
    served = build_here(settings_of(raw)).snapshot_id
    files = {file: file.read_bytes() for file in store.folder(served).rglob("*") if file.is_file()}
    before = len(stored_keys(store.root))
    world_settings(tmp_path, seed=1)  # another catalogue in the same place
    below: list[int] = []
    with building(raw, tmp_path, None) as build:
        try:
            poll("some vectors", lambda: len(stored_keys(store.root)) >= before + 2 * TEXTS_PER_FILE, START_S)
            below = descendants(build.pid)
            build.kill()
            build.wait()
        finally:
            end_all([build.pid, *below, *descendants(build.pid)])
    kept = stored_keys(store.root)
    assert store.current_id() == served
    assert {file: file.read_bytes() for file in files} == files
    again = build_here(settings_of(raw)).snapshot_id
    report = json.loads((store.folder(again) / "report.json").read_text())
    keys = stored_keys(store.root)
    assert (store.current_id(), report["items"]) == (again, 400)
    assert len(keys) == len(set(keys))
    assert set(kept) <= set(keys)
    assert report["texts"] == len(keys) - len(kept) > 0
    assert report["unchanged"] >= 2 * TEXTS_PER_FILE
    assert not failed(list(look_through(store, again)))
