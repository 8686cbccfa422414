"""An encoder of the indexing job is killed in mid-build: the job goes on, and what was encoded is not lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clusters import poll, world_settings, write_settings

from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.serving.local_head import descendants

pytestmark = pytest.mark.ray

TEXTS_PER_FILE = 20
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


def stored_keys(root: Path) -> list[bytes]:
    """The key of every stored vector, as often as it is stored."""
    files = root.glob("embeddings/*/*.parquet")
    return [key for file in files for key in pq.read_table(file, columns=["text_key"])["text_key"].to_pylist()]


def test_an_encoder_that_is_killed_costs_one_file_at_most(tmp_path: Path) -> None:
    raw: dict[str, Any] = world_settings(tmp_path, workers=WORKERS, events=None)
    root = Path(raw["index"]["root"])
    command = [str(Path(sys.executable).with_name("raysys")), "build", str(write_settings(raw, tmp_path / "b.yaml"))]
    environment = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as build:
        try:
            poll("vectors of both encoders", lambda: len(stored_keys(root)) >= 3 * TEXTS_PER_FILE)
            killed = poll("two encoders", lambda: encoder_pids(build.pid))
            before = set(stored_keys(root))
            os.kill(killed[0], signal.SIGKILL)
            output, _ = build.communicate(timeout=120)
        finally:
            build.kill()
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
