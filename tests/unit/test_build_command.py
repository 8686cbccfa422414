"""What the command line says about the index wins over the settings, and nonsense is refused before anything starts."""

import errno
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from support import NOW_S, Shop
from typer.testing import CliRunner

from raysys.cli import app, with_index
from raysys.config import BuildSettings, parse
from raysys.errors import ConfigError, SnapshotError
from raysys.training.plan import planned

SETTINGS = parse(
    BuildSettings, {"catalog": {"path": "x.csv"}, "index": {"shards": 3, "memory": "1GB", "recall": 0.9}}, "test"
)


def test_memory_and_recall_win_over_the_settings_and_the_rest_stays() -> None:
    assert with_index(SETTINGS, None, None) == SETTINGS
    index = with_index(SETTINGS, "4GB", 0.99).index
    assert (index.memory, index.recall, index.shards) == (4_000_000_000, 0.99, 3)
    assert with_index(SETTINGS, None, 0.8).index.memory == 1_000_000_000


@pytest.mark.parametrize("option", [["--memory", "much"], ["--recall", "2"]])
def test_nonsense_is_refused_before_anything_starts(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1,one\n")
    result = CliRunner().invoke(app, ["build", str(tmp_path / "items.csv"), *option])
    assert isinstance(result.exception, ConfigError)
    assert "the command line is not valid" in str(result.exception)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers_is_said_at_once(tmp_path: Path, address: str) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1,one\n")
    result = CliRunner().invoke(app, ["build", str(tmp_path / "items.csv"), "--address", address])
    assert isinstance(result.exception, ConfigError)
    assert f"no Ray cluster answers at {address}" in str(result.exception)


def test_what_a_worker_of_a_cluster_finds_full_is_one_line(shop: Shop, tmp_path: Path) -> None:
    """Ray raises it again as an error whose message is the traceback of the worker."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(SnapshotError) as caught, planned(shop.settings(1, root=tmp_path), NOW_S):
        raise RayTaskError("stage", "Traceback (most recent call last):\n  File x\nOSError", full).as_instanceof_cause()
    assert "what was published stays published: [Errno 28] No space left on device (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name.startswith("20")]
