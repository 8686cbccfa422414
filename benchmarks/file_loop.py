"""The peer of ``steady.py``: the job's own files of texts, encoded by loops in plain processes, without Ray.

    python benchmarks/file_loop.py SETTINGS.yaml PROCESSES

Settles the catalogue as the job does. Then each process loads the encoder of the settings with one thread, waits until
all have, takes file after file from one queue, encodes it and saves the vectors with numpy. The last line of the output
is a JSON object: texts, the seconds from the first text of any process to the last one of all, and the share of them
that the processes spent in the encoder.
"""

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raysys.config import BuildSettings, EncoderSettings, load
from raysys.encoder.build import build_encoder
from raysys.training import items
from raysys.training.plan import planned

NICENESS = 19  # that of the job's encoders: Ray's workers are at 15, and they go down further themselves


def encode(settings: EncoderSettings, paths: Any, ready: Barrier, folder: Path, results: Any) -> None:
    """One process: (begin_s, end_s, busy_s, texts) goes into the results."""
    os.nice(NICENESS)
    encoder = build_encoder(settings, threads=1)
    encoder.encode(["a first text"], "item")
    ready.wait()
    begin_s, busy_s, n = time.time(), 0.0, 0
    while (path := paths.get()) is not None:
        texts = pq.read_table(path)["text"].to_pylist()
        start_s = time.perf_counter()
        vectors = encoder.encode(texts, "item")
        busy_s += time.perf_counter() - start_s
        np.save(folder / path.stem, vectors, allow_pickle=False)
        n += len(texts)
    results.put((begin_s, time.time(), busy_s, n))


def loop(settings: EncoderSettings, files: list[Path], n_processes: int, folder: Path) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    paths, results, ready = context.Queue(), context.Queue(), context.Barrier(n_processes)
    for path in [*files, *[None] * n_processes]:
        paths.put(path)
    given = (settings, paths, ready, folder, results)
    processes = [context.Process(target=encode, args=given) for _ in range(n_processes)]
    for process in processes:
        process.start()
    spans = [results.get() for _ in processes]
    for process in processes:
        process.join()
    begins_s, ends_s, busy_s, texts = zip(*spans, strict=True)
    steady_s = max(ends_s) - min(begins_s)
    return {"texts": sum(texts), "steady_s": steady_s, "busy_share": sum(busy_s) / (steady_s * n_processes)}


def main() -> None:
    settings = load(BuildSettings, Path(sys.argv[1]))
    identity = build_encoder(settings.encoder).identity
    with planned(settings, time.time()) as plan:
        for number in range(len(plan.inputs.items)):
            items.stage_items(plan, number)
        for number in range(plan.n_shards):
            items.settle_shard(plan, number, identity)
        print(json.dumps(loop(settings.encoder, items.todo_files(plan), int(sys.argv[2]), plan.staged("vectors"))))


if __name__ == "__main__":
    main()
