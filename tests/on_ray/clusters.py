"""What the ray tests share: a made-up world as files, and waiting with a deadline."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from raysys.config import BuildSettings, parse
from raysys.data.synthetic import make_world

DEADLINE_S = 60.0


def poll(what: str, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of the condition. Fails when the deadline passes."""
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    pytest.fail(f"not within {deadline_s:.0f} s: {what}")


def world_settings(
    folder: Path, n_items: int = 400, seed: int = 0, n_users: int = 60, **changes: Any
) -> dict[str, Any]:
    """Build settings over a synthetic world written into the folder; the hash encoder, two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(n_items=n_items, n_users=n_users, n_topics=6, structure=1.0, seed=seed)
    pq.write_table(world.items, folder / "items.parquet", row_group_size=1_024)
    pq.write_table(world.events, folder / "events.parquet")
    return {
        "catalog": {"path": str(folder / "items.parquet"), "attributes": {"year": "year"}},
        "events": {"path": str(folder / "events.parquet"), "columns": {"timestamp": "timestamp_s"}},
        "encoder": {"kind": "hash"},
        "index": {"root": str(folder / "index"), "shards": 2},
        **changes,
    }


def settings_of(raw: dict[str, Any]) -> BuildSettings:
    return parse(BuildSettings, raw, "test")


def write_settings(raw: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(raw))
    return path
