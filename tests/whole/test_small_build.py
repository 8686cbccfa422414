"""`raysys build` of a small catalogue: without Ray, and without a model where every text has its vector."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import NOW_S, FixedClock, Shop

from raysys.config import BuildSettings
from raysys.index.store import SnapshotStore
from raysys.training.distributed import on_this_machine
from raysys.training.distributed.on_this_machine import build_on_this_machine, is_small
from raysys.training.local import build_here
from raysys.training.plan import planned

BUILD = """
import sys
from raysys.cli import app
try:
    app(sys.argv[1:])
finally:
    print(sorted({"ray", "torch", "transformers"} & sys.modules.keys()))
"""
ROWS = [{"item_id": str(n), "title": f"a book about topic {n % 7}, volume {n}"} for n in range(40)]


def command(folder: Path, rows: list[dict[str, str]], **changes: Any) -> str:
    """What `raysys build` over these rows says, in a process of its own; the last line: the heavy packages in it."""
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {"catalog": {"path": str(folder / "items.jsonl")}, "index": {"root": str(folder / "index")}, **changes}
    (folder / "build.yaml").write_text(json.dumps(raw))  # JSON is YAML
    run = [sys.executable, "-c", BUILD, "build", str(folder / "build.yaml")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report_of(folder: Path) -> dict[str, Any]:
    store = SnapshotStore(folder / "index")
    report: dict[str, Any] = json.loads((store.folder(store.current_id()) / "report.json").read_text())
    return report


@pytest.mark.model
def test_a_model_is_loaded_for_new_texts_alone_and_ray_is_not(tmp_path: Path) -> None:
    encoder = {"model": "minilm", "runtime": "torch"}
    assert command(tmp_path, ROWS, encoder=encoder).splitlines()[-1] == "['torch', 'transformers']"
    assert report_of(tmp_path)["texts"] == len(ROWS)
    said = command(tmp_path, ROWS[1:], encoder=encoder)
    assert said.splitlines()[-1] == "[]"
    assert f"texts encoded 0 (0 tokens); unchanged {len(ROWS) - 1}" in said
    command(tmp_path, [*ROWS[1:], {"item_id": "new", "title": "quite another book"}], encoder=encoder)
    assert (report_of(tmp_path)["texts"], report_of(tmp_path)["items"]) == (1, len(ROWS))


def test_it_is_the_build_of_one_process(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda by: by)  # or all tests after this one are slow
    said: list[str] = []
    manifest, report = build_on_this_machine(shop.settings(2, tmp_path / "a"), said.append, FixedClock())
    expected = build_here(shop.settings(2, tmp_path / "b"), FixedClock())
    assert {n: r for n, r in manifest.files.items() if "shard" in n} == {
        n: r for n, r in expected.files.items() if "shard" in n
    }
    assert report["texts"] == report["todo"] > 0
    assert [line for line in said if line.startswith("encoded")]
    assert {"read and clean", "settle", "encode", "behaviour", "build shards", "publish"} <= report["stages_s"].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": {"encoders": 1}},
        {"workers": {"gpus_per_encoder": 0.5}},
        {"behaviour": {"sequence": {}}},
    ],
)
def test_who_asks_for_a_pool_gets_one(shop: Shop, tmp_path: Path, changes: dict[str, Any]) -> None:
    raw = shop.settings(1, tmp_path).model_dump(mode="json")
    with planned(BuildSettings.model_validate(raw), NOW_S) as plan:
        assert is_small(plan)
    with planned(BuildSettings.model_validate(raw | changes), NOW_S) as plan:
        assert not is_small(plan)


@pytest.mark.parametrize("limit", ["SMALL_CATALOGUE_BYTES", "SMALL_EVENTS_BYTES"])
def test_large_files_are_not_small(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(on_this_machine, limit, 100)
    with planned(shop.settings(1, tmp_path), NOW_S) as plan:
        assert not is_small(plan)
