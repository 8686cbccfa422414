"""Accuracy on public purchase histories: leave-last-out, full ranking, seen items removed, pessimistic ties.

    python benchmarks/accuracy.py [--data ../shared/data] [--dataset beauty] [--json FILE]

Everything is fitted on the training sequences only (each without its last two items). The settings below were chosen
by the validation column; the test column is there to be read, not to be tuned on. The data is not part of this
project: where it is absent the benchmark says so and ends well.

A caveat of this data: it has no times, and purchases of one day seem to be sorted by product number, which any model
of order profits from. Compare rows with each other before comparing them with figures from elsewhere.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from raysys.config import DEFAULT_HOME, EncoderSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.vectors import EmbeddingStore
from raysys.evaluation.protocol import Scorer, by_stratum, rank_all, summarise
from raysys.evaluation.splits import Items, LeaveLastOut, Task, leave_last_out
from raysys.keys import text_key
from raysys.training.popularity import count_items
from raysys.training.transition import count_pairs, normalise, prune
from raysys.types import Vectors

WINDOW, REVERSE, SHRINK, TARGETS_PER_ITEM = 50, 0.25, 30.0, 200
STEP_DECAY, HISTORY = 0.7, 50
RIDGE = 1.0
TITLE_WEIGHT = 0.12
PLAIN_TITLE_WEIGHT = 0.1

Matrix = Any  # scipy.sparse.csr_matrix: scipy comes without types


def read_sequences(folder: Path) -> list[Items]:
    """Items of each user in time order, as indices from 0. The file has one line a user: user item item ..."""
    lines = (folder / "sequences.txt").read_text().splitlines()
    return [np.array(line.split()[1:], dtype=np.int64) - 1 for line in lines]


def read_titles(folder: Path, n_items: int) -> list[str] | None:
    """The title of each item, blank where there is none; None for a data set without titles."""
    path = folder / "titles.csv"
    if not path.is_file():
        return None
    titles = [""] * n_items
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            titles[int(row["item"]) - 1] = row["title"].strip()
    return titles


def title_vectors(titles: Sequence[str], cache: Path, threads: int) -> Vectors:
    """[n_items, dim] float32 of the default encoder; each text is encoded once and kept under ``cache``."""
    encoder = build_encoder(EncoderSettings(), threads)
    fingerprint = encoder.identity.fingerprint()
    store = EmbeddingStore(cache.expanduser(), fingerprint, encoder.identity.dim)
    keys = [text_key(fingerprint, title) for title in titles]
    known = store.keys()
    missing = {key: title for key, title in zip(keys, titles, strict=True) if key not in known}
    if missing:
        store.write(list(missing), encoder.encode(list(missing.values()), "item"))
    return store.load(keys)


def history_weights(histories: Sequence[Items], n_items: int) -> Matrix:
    """[len(histories), n_items] sparse float32: the last item weighs 1, each one before it STEP_DECAY times that."""
    recent = [history[-HISTORY:] for history in histories]
    rows = np.repeat(np.arange(len(recent)), [len(h) for h in recent])
    weights = np.concatenate([STEP_DECAY ** np.arange(len(h) - 1, -1, -1, dtype=np.float32) for h in recent])
    return sp.csr_matrix((weights, (rows, np.concatenate(recent))), shape=(len(recent), n_items))


def popularity_scorer(train: Sequence[Items], n_items: int) -> Scorer:
    """The same scores for everybody: how often each item was bought. No times are known, so nothing decays."""
    items = np.concatenate(train).astype(np.uint64)
    counted = count_items(items, np.zeros(len(items)), np.ones(len(items), np.float32), 0.0, 1.0)
    scores = np.zeros(n_items, dtype=np.float32)
    scores[counted.keys] = counted.popularity
    return lambda histories: np.broadcast_to(scores, (len(histories), n_items))


def transition_scorer(train: Sequence[Items], n_items: int) -> Scorer:
    """Decayed history times the transition weights. Item indices serve as keys."""
    items = np.concatenate(train).astype(np.uint64)
    users = np.repeat(np.arange(len(train)), [len(sequence) for sequence in train])
    keys, counts = np.unique(items, return_counts=True)
    pairs = count_pairs(users, items, np.arange(len(items), dtype=np.float64), WINDOW, REVERSE)
    pairs = prune(normalise(pairs, (keys, counts.astype(np.float32)), SHRINK), TARGETS_PER_ITEM)
    where = (pairs.source.astype(np.int64), pairs.target.astype(np.int64))
    matrix = sp.csr_matrix((pairs.weight.astype(np.float32), where), shape=(n_items, n_items))
    return lambda histories: (history_weights(histories, n_items) @ matrix).toarray()


def cosine_scorer(vectors: Vectors) -> Scorer:
    """Cosine between each item and the decayed mean of the history."""
    return lambda histories: _unit(history_weights(histories, len(vectors)) @ vectors) @ vectors.T


def contrast_scorer(vectors: Vectors) -> Scorer:
    """As ``cosine_scorer``, but along the direction that sets the history apart from the rest of the catalogue.

    It is that of linear discriminant analysis, (covariance + ridge)^-1 (history - mean): the directions in which the
    titles of the whole catalogue vary most count least. The item vectors, and so the index, stay as they are.
    Hariharan, Malik, Ramanan: Discriminative decorrelation for clustering and classification, ECCV 2012.
    """
    with_text = vectors[np.linalg.norm(vectors, axis=1) > 0]
    mean = with_text.mean(axis=0)
    covariance = np.cov(with_text, rowvar=False, bias=True)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    inverse = np.linalg.inv(covariance + ridge * np.eye(len(covariance))).astype(np.float32)

    def score(histories: Sequence[Items]) -> NDArray[np.float32]:
        likes = _unit(history_weights(histories, len(vectors)) @ vectors)
        return _unit((likes - mean) @ inverse) @ vectors.T

    return score


def blend(behaviour: Scorer, titles: Scorer, weight: float) -> Scorer:
    return lambda histories: behaviour(histories) + np.float32(weight) * titles(histories)


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9))


def scorers(train: Sequence[Items], vectors: Vectors | None, n_items: int) -> dict[str, Scorer]:
    """The rows of the table, by name."""
    transition = transition_scorer(train, n_items)
    rows = {"popularity": popularity_scorer(train, n_items), "transition": transition}
    if vectors is None:
        return rows
    plain, contrast = cosine_scorer(vectors), contrast_scorer(vectors)
    return rows | {
        "titles, mean": plain,
        "titles, contrast": contrast,
        "transition + titles, mean": blend(transition, plain, PLAIN_TITLE_WEIGHT),
        "transition + titles, contrast": blend(transition, contrast, TITLE_WEIGHT),
    }


def measure(scorer: Scorer, task: Task, counts: Items) -> dict[str, Any]:
    start = time.perf_counter()
    ranking = rank_all(scorer, task, len(counts))
    seconds = time.perf_counter() - start
    metrics = {name: asdict(value) for name, value in summarise(ranking.ranks).items()}
    strata = {
        s: {"users": users, "hr@10": hr} for s, (users, hr) in by_stratum(ranking.ranks, task.targets, counts).items()
    }
    return {"metrics": metrics, "coverage@10": ranking.coverage, "strata": strata, "seconds": round(seconds, 1)}


def run(split: LeaveLastOut, vectors: Vectors | None, n_items: int) -> dict[str, Any]:
    """Every row on validation and on test."""
    counts = np.bincount(np.concatenate(split.train), minlength=n_items)
    return {
        name: {
            part: measure(scorer, task, counts)
            for part, task in (("validation", split.validation), ("test", split.test))
        }
        for name, scorer in scorers(split.train, vectors, n_items).items()
    }


def table(rows: dict[str, Any], title: str) -> Table:
    columns = ("validation HR@10", "test HR@10", "95 %", "NDCG@10", "HR@20", "NDCG@20", "MRR", "coverage@10")
    strata = ("unseen", "tail", "middle", "head")
    drawn = Table("fitted on train only", *columns, *strata, title=title, caption="strata: test HR@10")
    for name, row in rows.items():
        test = row["test"]["metrics"]
        hr, others = test["hr@10"], [test[m]["mean"] for m in ("ndcg@10", "hr@20", "ndcg@20", "mrr")]
        figures = [row["validation"]["metrics"]["hr@10"]["mean"], hr["mean"], None, *others, row["test"]["coverage@10"]]
        figures += [row["test"]["strata"][stratum]["hr@10"] for stratum in strata]
        interval = f"{hr['low']:.4f}-{hr['high']:.4f}"
        drawn.add_row(name, *(interval if figure is None else f"{figure:.4f}" for figure in figures))
    return drawn


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds the data sets")
    parser.add_argument("--dataset", default="beauty", help="its folder in there: beauty, sports or toys")
    parser.add_argument("--cache", type=Path, default=Path(DEFAULT_HOME) / "index", help="where title vectors are kept")
    parser.add_argument("--threads", type=int, default=2, help="of the encoder")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    folder = given.data / given.dataset
    if not (folder / "sequences.txt").is_file():
        print(f"skipped: there is no {folder / 'sequences.txt'}; --data names the folder that holds the data sets")
        return 0
    sequences = read_sequences(folder)
    n_items = 1 + max(int(sequence.max()) for sequence in sequences)
    titles = read_titles(folder, n_items)
    vectors = None if titles is None else title_vectors(titles, given.cache, given.threads)
    rows = run(leave_last_out(sequences), vectors, n_items)
    Console(width=200).print(table(rows, f"{given.dataset}: {len(sequences):,} users, {n_items:,} items"))
    if given.json is not None:
        settings = {n.lower(): v for n, v in globals().items() if n.isupper() and isinstance(v, int | float)}
        found = {
            "dataset": given.dataset,
            "users": len(sequences),
            "items": n_items,
            "settings": settings,
            "rows": rows,
        }
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
