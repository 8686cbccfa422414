"""Run by test_train_sequence.py: a fit alone in this process, and the same by two workers on a head of their own.

One of the workers is killed. Prints what came of both as one JSON line.
"""

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from clusters import poll

from raysys.config import SequenceSettings
from raysys.training.distributed.train_sequence import fit_together
from raysys.training.sequence.examples import FITTED, FITTED_VECTORS, HeldOut, Histories, Windows
from raysys.training.sequence.fit import Alone, all_items, fit

EPOCHS = 80
# Without dropout two workers compute what one does, but for the order in which floats are summed.
SMALL: dict[str, Any] = {
    "dim": 16, "dropout": 0.0, "drift_left_out": 0.0, "negatives": 32, "batch": 32, "max_history": 8,
    "warm_up_steps": 5, "patience": 100, "epochs": EPOCHS,
}  # fmt: skip
N_ITEMS, N_TOPICS, N_USERS = 60, 6, 90


def histories() -> Histories:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.arange(user % N_TOPICS, N_ITEMS, N_TOPICS))[:8] for user in range(N_USERS)]
    topics = rng.normal(size=(N_TOPICS, 12))
    text = topics[np.arange(N_ITEMS) % N_TOPICS] + 0.3 * rng.normal(size=(N_ITEMS, 12))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Histories(starts, np.concatenate(rows).astype(np.int32), text.astype(np.float32))


def killing(folder: Path) -> dict[str, Any]:
    """The fit by two workers, of which one is killed as soon as there is a checkpoint to go on from."""
    killer = threading.Thread(target=kill_one, args=(folder,))
    killer.start()
    found, settings = Histories.load(folder), SequenceSettings(**SMALL, workers=2)
    n_windows = len(Windows.of(found, HeldOut.of(found, settings.seed), settings.max_history))
    progress = asdict(fit_together(folder, settings, n_windows))
    killer.join()
    return progress


def kill_one(folder: Path) -> None:
    registered = folder / "runs" / "checkpoint_manager_snapshot.json"  # what is not yet in there is not gone on from
    poll("a checkpoint", lambda: registered.is_file() and "checkpoint_2" in registered.read_text(), deadline_s=200)
    os.kill(worker_pids()[-1], signal.SIGKILL)


def worker_pids() -> list[int]:
    """Of this head, found by what they inherit from this process: asking Ray takes longer than the fit."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title, inherited = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if b"RayTrainWorker" in title and f"HOME={os.environ['HOME']}".encode() in inherited:
            found.append(int(process.name))
    return found


def main(folder: Path) -> dict[str, Any]:
    histories().save(folder)
    alone, progress = fit(Histories.load(folder), SequenceSettings(**SMALL), Alone())
    together = killing(folder)
    difference = np.abs(
        np.load(folder / FITTED / FITTED_VECTORS) - all_items(alone, histories()).detach().numpy()
    ).max()
    return {"alone": asdict(progress), "together": together, "greatest_difference": float(difference)}


if __name__ == "__main__":
    ray.init(num_cpus=4, log_to_driver=False, logging_level="warning")
    try:
        seen = main(Path(sys.argv[1]))
    finally:
        ray.shutdown()
    print(json.dumps(seen))
