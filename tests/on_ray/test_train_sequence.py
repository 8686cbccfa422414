"""The sequence model by Ray Train: two workers do what one does, and one that is killed costs an epoch at most.

The kill is a test of the night; that a fit which goes on from a checkpoint ends as if it had never stopped is seen in
``tests/unit/test_sequence_model.py``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import settings_of, world_settings, write_settings

from raysys.index.catalogue import Catalogue
from raysys.index.sequence import SequenceEncoder
from raysys.index.store import SnapshotStore
from raysys.serving.session import LocalService
from raysys.training.local import build_here
from raysys.types import SEQUENCE

pytestmark = pytest.mark.ray

# Without dropout two workers compute what one does, but for the order in which floats are summed.
SMALL = {
    "dim": 16, "dropout": 0.0, "drift_left_out": 0.0, "negatives": 32, "batch": 16, "warm_up_steps": 5, "patience": 100,
    "epochs": 20,
}  # fmt: skip


@pytest.mark.nightly
def test_two_workers_of_which_one_is_killed_do_what_one_alone_does(tmp_path: Path) -> None:
    """In a process of its own: what a head needs in the environment must not leak into other tests."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, str(Path(__file__).with_name("sequence_runs.py")), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-4_000:] + run.stderr[-4_000:]
    seen: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    alone, together = seen["alone"], seen["together"]
    assert len(together["resumed"]) == 1
    assert 0 < together["resumed"][0] < 80
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-3)
    assert alone["losses"][-1] < 0.7 * alone["losses"][0]
    assert (together["epochs"], together["steps"]) == (alone["epochs"], alone["steps"])
    assert seen["greatest_difference"] < 0.02


def test_the_training_job_publishes_the_sequence_model_that_one_process_fits(
    service: LocalService, tmp_path: Path
) -> None:
    student = {"queries": 400, "dim": 64}
    raw = world_settings(tmp_path, behaviour={"sequence": {**SMALL, "workers": 2}}, student=student)
    lines = list(service.submit(write_settings(raw, tmp_path / "train.yaml"), job="jobs/train.py"))
    store = SnapshotStore(raw["index"]["root"])
    manifest = store.manifest(store.current_id())
    said = [line for line in lines if line.startswith("sequence model over ")]
    assert len(said) == 1, lines
    assert said[0].endswith("of 20 epochs")
    assert {"shard-00000/spaces/sequence.npy", "shard-00001/spaces/sequence.npy"} <= set(manifest.files)
    model = Catalogue(store.folder(manifest.snapshot_id)).models[SEQUENCE]
    assert isinstance(model, SequenceEncoder)
    assert model.shape.dim == 16

    # In as many shards: their order is that of the items, from which the fit draws.
    alone = {**raw, "behaviour": {"sequence": SMALL}, "index": {**raw["index"], "root": str(tmp_path / "alone")}}
    build_here(settings_of(alone))
    together, one = (vectors_of(root) for root in (raw["index"]["root"], alone["index"]["root"]))
    assert together.keys() == one.keys()
    for key, vector in one.items():
        assert together[key] == pytest.approx(vector, abs=0.02)  # an epoch more or less is .035


def vectors_of(root: str) -> dict[int, np.ndarray]:
    """Item key -> its vector of the sequence model in the published snapshot."""
    store = SnapshotStore(root)
    shards = Catalogue(store.folder(store.current_id())).shards
    return {int(key): v for files in shards for key, v in zip(files.keys, files.spaces[SEQUENCE], strict=True)}
