"""The encoder on a GPU against ``SentenceTransformer.encode``: the same weights, texts and GPU.

    python benchmarks/encoder_gpu.py [--n 50000] [--rounds 5] [--json FILE] [--quick] [--device cuda]

Each side is a process of its own that has loaded its model; they take turns, so never do two compute at once. A run is
from texts to float32 vectors of length one in the memory of the CPU. The peer is told to use the batch size that is
fastest for it, of ``BATCH_SIZES``, tried on a tenth of the texts before the clock starts; it sorts texts by length and
tokenises in parallel. Ours chooses for itself; it runs once over all texts in one call, and once in calls of as many
texts as a file of the build job holds.

Texts are random words: as many as titles have, or as paragraphs have. --quick with --device cpu shows that it runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from figures import Spread, busy_share, machine, ratios, warn_if_busy
from rich.console import Console
from rich.table import Table
from texts import texts, vocabulary

from raysys.encoder.models import find_model, minilm_folder
from raysys.types import Vectors

WORDS = {"titles": (3, 12), "paragraphs": (60, 180)}
BATCH_SIZES = (128, 512, 2_048)
CALL_TEXTS = 1_024  # workers.texts_per_file of the build job
COMPARED_TEXTS = 1_000
QUICK_TEXTS = 64

Encode = Callable[[list[str], int | None], Vectors]  # texts, batch size of the peer

console = Console(width=150, highlight=False)


@dataclass(frozen=True)
class Side:
    """One of the things that take turns. dtype: as each library calls it. call_texts: None = all in one call."""

    name: str
    ours: bool
    dtype: str
    call_texts: int | None = None


SIDES = (
    Side("sentence-transformers float32", False, "float32"),
    Side("sentence-transformers bfloat16", False, "bfloat16"),
    Side("raysys float32", True, "float32"),
    Side("raysys auto", True, "auto"),
    Side(f"raysys auto, calls of {CALL_TEXTS:,}", True, "auto", CALL_TEXTS),
)


class Worker:
    """What a side's process holds: its model, and the texts of each kind."""

    def __init__(self, side: Side, device: str, given: dict[str, list[str]]) -> None:
        self._side, self.given = side, given
        self._encode = _ours(side, device) if side.ours else _peer(side, device)
        self._batch_sizes: dict[str, int] = {}

    def prepare(self, kind: str) -> int | None:
        """Warm up on a tenth of the texts. Returns the peer's fastest batch size for them."""
        few = self.given[kind][: max(len(self.given[kind]) // 10, 1)]
        if self._side.ours:
            self.encode(few, kind)
            return None
        seconds = {size: min(self._trial_s(few, size) for _ in range(2)) for size in BATCH_SIZES}
        self._batch_sizes[kind] = min(seconds, key=seconds.__getitem__)
        return self._batch_sizes[kind]

    def _trial_s(self, few: list[str], batch_size: int) -> float:
        start_s = time.perf_counter()
        self._encode(few, batch_size)
        return time.perf_counter() - start_s

    def encode(self, given: list[str], kind: str) -> Vectors:
        batch_size = self._batch_sizes.get(kind)
        step = len(given) if self._side.call_texts is None else self._side.call_texts
        return np.concatenate([self._encode(given[at : at + step], batch_size) for at in range(0, len(given), step)])


def _ours(side: Side, device: str) -> Encode:
    from raysys.encoder.transformer import TransformerEncoder

    encoder = TransformerEncoder(find_model("minilm", None), dtype=side.dtype, device=device)  # type: ignore[arg-type]
    return lambda given, _: encoder.encode(given, "item")


def _peer(side: Side, device: str) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = getattr(torch, side.dtype)
    model = SentenceTransformer(str(minilm_folder()), device=device, model_kwargs={"dtype": dtype})
    assert next(model.parameters()).dtype is dtype
    return lambda given, batch_size: model.encode(
        given, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
    )


_worker: Worker  # of a side's process


def start_worker(*arguments: Any) -> None:
    global _worker
    _worker = Worker(*arguments)


def prepare(kind: str) -> int | None:
    return _worker.prepare(kind)


def run(kind: str) -> float:
    """Seconds for all texts of a kind."""
    start_s = time.perf_counter()
    _worker.encode(_worker.given[kind], kind)
    return time.perf_counter() - start_s


def vectors(kind: str) -> Vectors:
    return _worker.encode(_worker.given[kind][:COMPARED_TEXTS], kind).astype(np.float32)


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


@dataclass(frozen=True)
class Measured:
    """One kind of text. seconds, batch_size, min_cosine: by side; cosines are to the first side's vectors."""

    kind: str
    n: int
    seconds: dict[str, list[float]]
    batch_size: dict[str, int | None]
    min_cosine: dict[str, float]

    def speed(self, side: Side) -> Spread:
        """Texts/s."""
        return Spread.of([self.n / seconds for seconds in self.seconds[side.name]])

    def ratio(self, side: Side, peer: Side) -> Spread:
        """How many times as fast as the peer."""
        return ratios(self.seconds[peer.name], self.seconds[side.name])


def measure(kind: str, n: int, rounds: int, workers: dict[str, ProcessPoolExecutor]) -> Measured:
    """The sides in turn, ``rounds`` times over."""
    batch_size = {name: worker.submit(prepare, kind).result() for name, worker in workers.items()}
    found = {name: worker.submit(vectors, kind).result() for name, worker in workers.items()}
    reference = found[SIDES[0].name]
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        console.print(f"[dim]{kind}: round {number + 1} of {rounds} ...[/]")
        for name, worker in workers.items():
            seconds[name].append(worker.submit(run, kind).result())
    return Measured(kind, n, seconds, batch_size, {name: min_cosine(reference, found[name]) for name in workers})


def min_cosine(left: Vectors, right: Vectors) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.min((left * right).sum(axis=1) / norms))


def measured(n: int, rounds: int, device: str) -> tuple[str, list[Measured]]:
    """The name of the device, and the figures of each kind of text."""
    words = vocabulary()
    given = {kind: list(islice(texts(words, n_words, kind), n)) for kind, n_words in WORDS.items()}
    with ExitStack() as stack:
        workers = {
            side.name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), start_worker, (side, device, given))
            )
            for side in SIDES
        }
        names = [worker.submit(device_name, device) for worker in workers.values()]  # all load at once
        name, *_ = [future.result() for future in names]
        return name, [measure(kind, n, rounds, workers) for kind in WORDS]


def table(one: Measured, device: str) -> Table:
    peers = [side for side in SIDES if not side.ours]
    title = f"{one.n:,} {one.kind} of {WORDS[one.kind][0]} to {WORDS[one.kind][1]} words, {device}"
    drawn = Table("", "batch size", "texts/s", *(f"over {peer.name}" for peer in peers), "min cosine", title=title)
    for side in SIDES:
        batch_size = "" if one.batch_size[side.name] is None else f"{one.batch_size[side.name]:,}"
        over = [one.ratio(side, peer).text(2) for peer in peers]
        drawn.add_row(side.name, batch_size, one.speed(side).text(0), *over, f"{one.min_cosine[side.name]:.5f}")
    return drawn


def report(device: str, found: Sequence[Measured], rounds: int, busy: float) -> dict[str, Any]:
    """Everything as plain values."""
    peers = [side for side in SIDES if not side.ours]
    return {
        "benchmark": "encoder_gpu",
        "machine": machine(busy) | {"gpu": device},
        "parameters": {"rounds": rounds, "words": WORDS, "batch_sizes": BATCH_SIZES},
        "kinds": [
            {
                **asdict(one),
                "texts_per_s": {side.name: one.speed(side).as_dict() for side in SIDES},
                "over": {
                    peer.name: {side.name: one.ratio(side, peer).as_dict() for side in SIDES if side.ours}
                    for peer in peers
                },
            }
            for one in found
        ],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000, help="texts of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument(
        "--quick", action="store_true", help=f"a smoke run: {QUICK_TEXTS} texts of each kind, one round"
    )
    return parser.parse_args()


def main() -> int:
    given = arguments()
    n, rounds = (QUICK_TEXTS, 1) if given.quick else (given.n, given.rounds)
    busy = busy_share()
    warn_if_busy(busy)
    device, found = measured(n, rounds, given.device)
    for one in found:
        console.print(table(one, device))
    console.print("median (smallest-largest) of the rounds; cosines are to the vectors of the first line")
    if given.json is not None:
        given.json.write_text(json.dumps(report(device, found, rounds, busy), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
