"""A build that began in one process and found too much to encode: Ray goes on from there, with the same result."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clusters import settings_of, write_settings

from raysys.index.manifest import Manifest
from raysys.index.store import SnapshotStore
from raysys.training.distributed.on_this_machine import FEW_CHARS
from raysys.training.local import build_here

pytestmark = pytest.mark.ray


def shards_of(manifest: Manifest) -> dict[str, Any]:
    return {name: record for name, record in manifest.files.items() if name.startswith("shard")}


def test_ray_goes_on_from_what_is_settled(tmp_path: Path) -> None:
    rows = [{"item_id": str(n), "title": "long " * 100 + str(n)} for n in range(FEW_CHARS // 500)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {"catalog": {"path": str(tmp_path / "items.jsonl")}, "encoder": {"kind": "hash", "dim": 16}}
    ray_root, here_root = ({"root": str(tmp_path / name), "shards": 2} for name in ("ray", "here"))
    settings = write_settings({**raw, "index": ray_root}, tmp_path / "build.yaml")
    command = [str(Path(sys.executable).with_name("raysys")), "build", str(settings)]
    # A cluster that is not ours, and is not there: a build on this machine has nothing to do with it.
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    store = SnapshotStore(tmp_path / "ray")
    manifest = store.manifest(store.current_id())
    report = json.loads((store.folder(manifest.snapshot_id) / "report.json").read_text())
    assert (report["texts"], report["items"]) == (len(rows), len(rows))
    assert report["encoding"]["encoders"] == min(os.cpu_count() or 1, 2)  # a file of each shard
    assert shards_of(manifest) == shards_of(build_here(settings_of({**raw, "index": here_root})))
