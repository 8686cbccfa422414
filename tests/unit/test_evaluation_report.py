"""The report: whole, self-contained and free of NaN; and the runs that are tracked can be read again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from raysys.evaluation.charts import Axes, Point, lines, scatter
from raysys.evaluation.lists import by_score
from raysys.evaluation.protocol import LIST_LENGTH, evaluate, facts_of
from raysys.evaluation.report import page, write_report
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import leave_last_out
from raysys.evaluation.summary import compare, summarise
from raysys.evaluation.tracking import tracker

N_ITEMS = 30


def report():
    rng = np.random.default_rng(0)
    rows = [rng.permutation(N_ITEMS)[: rng.integers(3, 12)] for _ in range(40)]
    fold = leave_last_out(Sequences.of(rows), "<set>").validation[0]
    facts = facts_of(fold.train, N_ITEMS)
    listers = {
        "popular & <old>": by_score(lambda h: np.tile(facts.counts.astype(np.float32), (len(h), 1)), LIST_LENGTH),
        "by chance": by_score(lambda h: rng.random((len(h), N_ITEMS)).astype(np.float32), LIST_LENGTH),
    }
    found = {name: evaluate(lister, fold.task, facts) for name, lister in listers.items()}
    test = compare(*found.values())
    return {
        "dataset": "<set>",
        "split": "leave-last-out",
        "counts": {"repeated": 3},
        "users": 40,
        "items": N_ITEMS,
        "parts": {"validation": {"fitted_on": "train", "lists": 40}},
        "rows": {
            name: {"about": "a test", "chosen": {}, "tried": [{}], "parts": {"validation": summarise(one)}}
            for name, one in found.items()
        },
        "paired": {"validation": {"by chance": {**test, "p_holm": test["p"]}}},
        "curve": {name: {"0": None, "1": summarise(one)["metrics"]["ndcg@10"]} for name, one in found.items()},
        "learning": {"a model": [[1, 0.5], [2, 0.25]]},
    }


def test_a_report_is_written_as_json_and_as_a_page_that_fetches_nothing(tmp_path: Path):
    written = report()
    json_path, html_path = write_report(written, tmp_path / "new", "accuracy-set")
    assert json.loads(json_path.read_text()) == written
    html = html_path.read_text()
    assert not re.search(r"(src|href)=|<script|https?://|@import|url\(", html)
    assert "<set>" not in html
    assert html.count("<svg") == 4  # by history, coverage, curve, learning
    assert "NaN" not in html.replace("N_", "")


def test_every_figure_of_a_row_is_on_the_page():
    written = report()
    html = page(written)
    for row in written["rows"].values():
        assert f"{row['parts']['validation']['metrics']['ndcg@10']['mean']:.4f}" in html


def test_a_report_with_nan_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report({**report(), "speed": float("nan")}, tmp_path, "bad")
    assert not list(tmp_path.iterdir())


def test_charts_are_xml_and_put_points_where_they_belong():
    drawn = ElementTree.fromstring(lines(Axes("a < b", "x", "y"), {"one": [Point(0, 1), Point(10, 2, 1, 3)]}))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in drawn.iter("circle")]
    assert circles[0][0] < circles[1][0]
    assert circles[0][1] > circles[1][1]  # higher values stand higher, and y grows downwards
    assert len(list(drawn.iter("polyline"))) == 1
    assert not list(ElementTree.fromstring(scatter(Axes("t", "x", "y"), {"one": [Point(3, 0)]})).iter("polyline"))
    assert lines(Axes("t", "x", "y"), {"one": []}) == ""


def test_tensorboard_keeps_every_figure(tmp_path: Path):
    event_file_loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    with tracker("tensorboard", tmp_path, "run", {"seed": 1}) as to:
        for step, value in enumerate([0.5, 0.25]):
            to.metric("loss", value, step)
    (path,) = (tmp_path / "run").iterdir()
    events = list(event_file_loader.EventFileLoader(str(path)).Load())
    kept = [(v.tag, e.step, v.tensor.float_val[0]) for e in events for v in e.summary.value if v.tag == "loss"]
    assert kept == [("loss", 0, 0.5), ("loss", 1, 0.25)]


def test_nothing_is_kept_where_nothing_is_asked_for(tmp_path: Path):
    with tracker(None, tmp_path, "run", {}) as to:
        to.metric("loss", 1, 0)
    assert not list(tmp_path.iterdir())


ONE_RUN = """
import sys
from pathlib import Path
from raysys.evaluation.tracking import tracker
with tracker("wandb", Path(sys.argv[1]), "a-run", {"seed": 1}) as to:
    to.metric("ndcg@10", 0.125, 0)
"""


def test_wandb_keeps_a_run_offline(tmp_path: Path):
    """In a process of its own: what is written is whole once that has ended."""
    pytest.importorskip("wandb")
    private = {name: str(tmp_path) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | private
    subprocess.run(
        [sys.executable, "-c", ONE_RUN, tmp_path], env=environment, check=True, capture_output=True, timeout=120
    )
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"ndcg@10" in run.read_bytes()
