"""Recommenders of others behind one thin adapter: fitted and asked in a process of their own environment.

Their lists come back as files and go through the same evaluator as everybody's. The environment is described in
benchmarks/peers/requirements.txt; without it these rows are left out, and the report says so.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from raysys.evaluation.lists import Lister, Lists
from raysys.evaluation.protocol import LIST_LENGTH
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import Fold

PROCESS = Path(__file__).parent / "peers" / "process.py"


@dataclass(frozen=True)
class Peer:
    """model: a name of ``peers/process.py``. tried: the settings to choose from on validation."""

    model: str
    tried: Sequence[Mapping[str, Any]]


_SASREC = {"n_blocks": 2, "n_heads": 2, "n_factors": 64, "batch_size": 64, "session_max_len": 100, "loss": "softmax"}
PEERS = {
    "iALS (implicit)": Peer(
        "iALS",
        [{"factors": 64, "regularization": l2, "alpha": alpha} for l2 in (0.1, 10.0) for alpha in (1.0, 10.0)],
    ),
    "ItemKNN (LensKit)": Peer("ItemKNN", [{"k": 20}, {"k": 100}]),
    "EASE (RecTools)": Peer("EASEModel", [{"regularization": 250.0}, {"regularization": 1_000.0}]),
    "SASRec (RecTools)": Peer(
        "SASRecModel",
        [{**_SASREC, "epochs": epochs} for epochs in (10, 30)],
    ),
    "BERT4Rec (RecTools)": Peer("BERT4RecModel", [{**_SASREC, "epochs": epochs} for epochs in (10, 30)]),
}


@dataclass(frozen=True)
class PeerLister:
    """Fits once a call, so it is asked for all users at once.

    python: of the environment of the peers. Raises subprocess.CalledProcessError with what the peer said.
    """

    python: Path
    model: str
    settings: Mapping[str, Any]
    fold: Fold
    n_items: int
    threads: int
    seed: int = 0
    process: Path = PROCESS

    def __call__(self, histories: Sequences) -> Lists:
        with TemporaryDirectory() as name:
            folder = Path(name)
            ask = {"model": self.model, "settings": dict(self.settings), "n_items": self.n_items}
            ask |= {"length": LIST_LENGTH, "threads": self.threads, "seed": self.seed}
            (folder / "ask.json").write_text(json.dumps(ask))
            for part, sequences in (("train", self.fold.train), ("histories", histories)):
                np.savez(folder / f"{part}.npz", starts=sequences.starts, items=sequences.items)
            # Logs of training and checkpoints, if a peer writes any, go with the folder.
            subprocess.run([self.python.absolute(), self.process, folder], cwd=folder, check=True, capture_output=True)
            found = np.load(folder / "lists.npz")
            return Lists(found["items"], found["scores"])


def remembered(lister: Lister, histories: Sequences) -> Lister:
    """Ask for everybody once, and answer the same people batch by batch, in their order."""
    lists, at = lister(histories), 0

    def answer(batch: Sequences) -> Lists:
        nonlocal at
        part = slice(at, at + len(batch))
        at += len(batch)
        return Lists(lists.items[part], lists.scores[part])

    return answer
