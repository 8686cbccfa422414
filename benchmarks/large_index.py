"""Ten million vectors in lists of RaBitQ codes, in the memory of this machine: recall, queries/s, seconds to build.

    python benchmarks/large_index.py --folder FOLDER [--n 10000000] [--kind ivf_rabitq] [--rounds 5] [--json FILE]

As one shard would hold them: the vectors (``clustered.py``) are a mapped file in FOLDER, 1.5 kB each, of which the
index keeps codes and reads the rows that it compares again. The file is made once; half of the queries choose the
effort, the other half are measured. All cores build, one thread searches.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from clustered import clustered
from figures import Spread, busy_share, machine
from index import DIM, WANTED, Side, of_ours, one_by_one, recall, say, set_effort, timed
from rich.console import Console

from raysys.index.kinds import KINDS, bytes_of
from raysys.index.vector_index import build, set_threads
from raysys.types import Vectors

N_QUERIES = 200
BLOCK_ROWS = 250_000

console = Console(width=120, highlight=False)


def mapped(folder: Path, n: int) -> tuple[Vectors, Vectors]:
    """The vectors, mapped, and the queries, both made where they are not there."""
    path, asked = folder / f"vectors-{n}.npy", folder / f"queries-{n}.npy"
    if not asked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = np.lib.format.open_memmap(path, "w+", np.float32, (n + N_QUERIES, DIM))
        _, queries = clustered(n, DIM, N_QUERIES, out=made)
        np.save(asked, queries)
    return np.load(path, mmap_mode="r")[:n], np.load(asked)


def nearest(queries: Vectors, vectors: Vectors, k: int) -> np.ndarray:
    """[q, k] the rows of highest inner product, some rows at a time."""
    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = np.ascontiguousarray(vectors[start : start + BLOCK_ROWS])
        scores, rows = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, rows + start)
    best.finalize()
    return np.asarray(best.I)


def measure(vectors: Vectors, queries: Vectors, kind: str, rounds: int) -> dict[str, Any]:
    set_threads(os.cpu_count() or 1)
    index, build_s = timed(lambda: build(vectors, kind, "cosine", 1))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"built {kind} in {build_s:.0f} s; most memory so far {peak_mib:,.0f} MiB, mapped pages included")
    truth, truth_s = timed(lambda: nearest(queries, vectors, 100))
    say(f"compared all in {truth_s:.0f} s")
    set_threads(1)
    side: Side = of_ours(index, kind, bytes_of(index.kind, len(vectors), DIM), build_s)
    half = len(queries) // 2
    set_effort(side, queries[:half], truth[:half])
    asked = queries[half:]
    found = [side.search(asked, k, side.effort) for k in (10, 100)]
    speeds = [one_by_one(side, asked, 10, side.effort)[1] for _ in range(rounds)]
    return {
        "n": len(vectors),
        "kind": kind,
        "effort": f"breadth {side.effort.breadth}, refined {side.effort.refined}",
        "wanted": WANTED,
        "recall@10": round(recall(found[0], truth[half:], 10), 4),
        "recall@100": round(recall(found[1], truth[half:], 100), 4),
        "queries_per_s": Spread.of(speeds).as_dict(),
        "bytes": side.n_bytes,
        "build_s": round(build_s, 1),
        "peak_mib": round(peak_mib),
        "compare_all_ms": round(truth_s / len(queries) * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the vectors: 15.4 GB for ten million")
    parser.add_argument("--n", type=int, default=10_000_000)
    parser.add_argument("--kind", choices=KINDS, default="ivf_rabitq")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    given = parser.parse_args()
    busy = busy_share()
    start_s = time.perf_counter()
    vectors, queries = mapped(given.folder, given.n)
    say(f"vectors after {time.perf_counter() - start_s:.0f} s")
    found = measure(vectors, queries, given.kind, given.rounds)
    console.print(found)
    if given.json is not None:
        whole = {"benchmark": "large index", "machine": machine(busy), **found}
        given.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
