"""What the command line says about the index wins over the settings, and nonsense is refused before anything starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys.cli import app, with_index
from raysys.config import BuildSettings, parse
from raysys.errors import ConfigError

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
