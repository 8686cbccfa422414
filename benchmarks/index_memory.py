"""What an index costs a machine on which two replicas hold it: private memory and shared pages of two processes.

    python benchmarks/index_memory.py [--n 30000] [--json FILE]

Both map the same file and search all of it. Of each, less what a process has that opened nothing: MiB that are its own,
and its share of the pages that both map.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from clustered import clustered
from rich.console import Console

from raysys.index.kinds import KINDS, Effort
from raysys.index.vector_index import VectorIndex, build, set_threads

DIM, QUERIES = 384, 50
EVERYTHING = Effort(1 << 20, 32)
console = Console(width=120, highlight=False)


def hold(folder: Path, kind: str) -> None:
    """Open and search an index, say so, and wait until standard input ends. Kind ``none`` opens nothing."""
    set_threads(1)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    if kind != "none":
        index = VectorIndex.load(folder / f"{kind}.faiss", np.asarray(vectors), kind, "cosine", EVERYTHING)
        index.search(queries, 10)
    print("ready", flush=True)
    sys.stdin.read()


def memory_mib(pid: int) -> dict[str, float]:
    """own: anonymous. mapped: this process's share of mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return {"own": kib["Pss_Anon"] / 1_024, "mapped": kib["Pss_File"] / 1_024}


def two_hold(folder: Path, kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--hold", str(folder), kind]
    held = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for process in held:
            assert process.stdout is not None
            process.stdout.readline()
        return memory_mib(held[0].pid)
    finally:
        for process in held:
            process.communicate()


def measure(n: int) -> dict[str, Any]:
    vectors, queries = clustered(n, DIM, QUERIES)
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "queries.npy", queries)
        nothing = two_hold(folder, "none")
        for kind in KINDS:
            build(vectors, kind, "cosine", flat_below=1).save(folder / f"{kind}.faiss")
            held = two_hold(folder, kind)
            rows[kind] = {
                "file_mib": round((folder / f"{kind}.faiss").stat().st_size / 2**20, 1),
                **{f"{part}_mib": round(held[part] - nothing[part], 1) for part in held},
            }
            console.print(kind, rows[kind])
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--hold"]:
        hold(Path(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=30_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure(given.n)
    if given.json:
        given.json.write_text(json.dumps({"n": given.n, "dim": DIM, "each_of_two": rows}, indent=1))


if __name__ == "__main__":
    main()
