"""The runtimes of the transformer encoder on a CPU, side by side in one process: texts/s, a lone query, cosines.

    python benchmarks/encoder.py [--n 1000] [--rounds 5] [--threads 1] [--json FILE] [--quick]

Every side encodes the same texts with the weights of MiniLM, and they take turns within a round, in which ratios are
taken. The first line is the peer: ``SentenceTransformer.encode`` in float32 with its defaults. Cosines are to its
vectors. Beside the clock the time of the processor is shown: it is the one to read where others use the machine too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from embedding import film_texts
from figures import Spread, busy_share, machine, ratios, warn_if_busy
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from texts import QUERY_WORDS, texts, vocabulary

from raysys.encoder.models import find_model, minilm_folder
from raysys.encoder.transformer import TransformerEncoder
from raysys.types import Vectors

PEER = "sentence-transformers float32"
# runtime, dtype
OURS = [
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
]
PARAGRAPH_WORDS = (60, 60)
QUERIES = 40
QUICK_TEXTS, QUICK_QUERIES = 24, 3
WARM_UP_TEXTS = 50

Encode = Callable[[list[str]], Vectors]
console = Console(width=150, highlight=False)


@dataclass(frozen=True)
class Taken:
    """Seconds of one side in one round: of the clock and of the processor."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Measured:
    """One kind of texts. taken: by side, one a round. min_cosine: to the peer."""

    kind: str
    n: int
    taken: dict[str, list[Taken]]
    min_cosine: dict[str, float]

    def speed(self, side: str) -> Spread:
        return Spread.of([self.n / one.wall_s for one in self.taken[side]])

    def over_peer(self, side: str, clock: str) -> Spread:
        """How many times as fast as the peer, by ``wall_s`` or ``cpu_s``."""
        times = [[getattr(one, clock) for one in self.taken[name]] for name in (PEER, side)]
        return ratios(*times)


def open_sides(threads: int) -> dict[str, Encode]:
    torch.set_num_threads(threads)
    peer = SentenceTransformer(str(minilm_folder()), device="cpu")
    sides: dict[str, Encode] = {PEER: lambda given: peer.encode(given, normalize_embeddings=True)}
    for runtime, dtype in OURS:
        encoder = TransformerEncoder(
            find_model("minilm", None), dtype=dtype, device="cpu", threads=threads, runtime=runtime
        )
        sides[f"{runtime} {dtype}"] = lambda given, encoder=encoder: encoder.encode(given, "item")
    return sides


def bulk(kind: str, given: list[str], sides: dict[str, Encode], rounds: int) -> Measured:
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    vectors: dict[str, Vectors] = {}
    for encode in sides.values():
        encode(given[:WARM_UP_TEXTS])
    for _ in range(rounds):
        for name, encode in sides.items():
            vectors[name], seconds = timed(encode, given)
            taken[name].append(seconds)
    cosines = {name: float((vectors[name] * vectors[PEER]).sum(axis=1).min()) for name in sides}
    return Measured(kind, len(given), taken, cosines)


def lone(queries: Sequence[str], sides: dict[str, Encode]) -> dict[str, Taken]:
    """Medians of one query at a time, the sides in turn."""
    took: dict[str, list[Taken]] = {name: [] for name in sides}
    for query in queries:
        for name, encode in sides.items():
            took[name].append(timed(encode, [query])[1])
    return {
        name: Taken(median(one.wall_s for one in times), median(one.cpu_s for one in times))
        for name, times in took.items()
    }


def timed(encode: Encode, given: list[str]) -> tuple[Vectors, Taken]:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    vectors = encode(given)
    return vectors, Taken(time.perf_counter() - start_s, time.process_time() - start_cpu_s)


def table(found: Sequence[Measured], alone: dict[str, Taken]) -> Table:
    drawn = Table("")
    for one in found:
        for column in (f"{one.kind}/s", "over peer", "by CPU time", "cosine"):
            drawn.add_column(column)
    drawn.add_column("lone query, ms (CPU)")
    for side in alone:
        cells = [
            cell
            for one in found
            for cell in (
                f"{one.speed(side).median:,.0f}",
                one.over_peer(side, "wall_s").text(2),
                one.over_peer(side, "cpu_s").text(2),
                f"{one.min_cosine[side]:.5f}",
            )
        ]
        drawn.add_row(side, *cells, f"{1000 * alone[side].wall_s:.1f} ({1000 * alone[side].cpu_s:.1f})")
    return drawn


def report(found: Sequence[Measured], alone: dict[str, Taken], given: dict[str, Any], busy: float) -> dict[str, Any]:
    """Everything as plain values."""
    kinds = [
        asdict(one)
        | {
            "texts_per_s": {side: one.speed(side).as_dict() for side in alone},
            "over_peer": {side: one.over_peer(side, "wall_s").as_dict() for side in alone},
            "over_peer_by_cpu_time": {side: one.over_peer(side, "cpu_s").as_dict() for side in alone},
        }
        for one in found
    ]
    lone_query = {side: asdict(taken) for side, taken in alone.items()}
    return {
        "benchmark": "encoder",
        "machine": machine(busy),
        "parameters": given,
        "kinds": kinds,
        "lone_query": lone_query,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000, help="titles; a quarter as many paragraphs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of each side; 1 is what a worker of a build has")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--quick", action="store_true", help=f"a smoke run: {QUICK_TEXTS} titles, one round")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    n, rounds, n_queries = (QUICK_TEXTS, 1, QUICK_QUERIES) if given.quick else (given.n, given.rounds, QUERIES)
    busy = busy_share()
    warn_if_busy(busy)
    with tempfile.TemporaryDirectory() as folder:
        films = film_texts(Path(folder))
    titles = [films[row] for row in np.linspace(0, len(films) - 1, n).astype(int)]
    paragraphs = list(islice(texts(vocabulary(), PARAGRAPH_WORDS, "paragraphs"), max(n // 4, 1)))
    sides = open_sides(given.threads)
    found = [bulk("titles", titles, sides, rounds), bulk("paragraphs", paragraphs, sides, rounds)]
    alone = lone(list(islice(texts(vocabulary(), QUERY_WORDS, "queries"), n_queries)), sides)
    console.print(table(found, alone))
    parameters = {"titles": n, "paragraphs": len(paragraphs), "rounds": rounds, "threads": given.threads}
    if given.json is not None:
        given.json.write_text(json.dumps(report(found, alone, parameters, busy), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
