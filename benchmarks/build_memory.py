"""How much memory each task of the indexing job takes, and what it grows with.

    python benchmarks/build_memory.py [--n 100000 400000] [--shards 4 16] [--dim 64] [--json FILE]

Made-up catalogues of short texts, and the stages of ``raysys.training`` as the job runs them, each task in a process
of its own: reading one split, settling one shard, encoding, finishing one shard. Two catalogues with shards of the same
size show what grows with the whole catalogue; two with the same number of shards what grows with the shard. The hash
encoder makes the vectors of the first files, random numbers those of the rest, as only memory is asked here.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from figures import busy_share, machine
from rich.console import Console
from rich.table import Table

from raysys.config import BuildSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.edges import unit_rows
from raysys.training import behaviour, finish, items, memory, words
from raysys.training.encoding import Turns
from raysys.training.plan import BuildPlan, planned

WORDS, ROW_GROUP = 50_000, 50_000
TEXT_WORDS = (4, 12)
ENCODED_FILES = 12

console = Console(width=150, highlight=False)


@dataclass(frozen=True)
class Peak:
    """One task. base_mib: held once everything is imported; peak_mib: the most it ever held; asked_mib: what the job
    asks Ray for, None = nothing."""

    task: str
    items: int
    shards: int
    base_mib: float
    peak_mib: float
    asked_mib: float | None


def write_catalogue(path: Path, n: int) -> Path:
    """item_id, title, categories: n rows in row groups of 50,000, each a split of its own."""
    chance = random.Random(0)
    words = [f"w{number:05d}" for number in range(WORDS)]
    schema = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("categories", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n, ROW_GROUP):
            rows = range(start, min(start + ROW_GROUP, n))
            titles = [" ".join(chance.choices(words, k=chance.randint(*TEXT_WORDS))) for _ in rows]
            columns = [[f"item-{row}" for row in rows], titles, [f"c{row % 50}" for row in rows]]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))
    return path


def measured(task: Callable[..., Any], *given: Any) -> tuple[float, float, Any]:
    """(memory before, peak, what it returned) of a task in a process of its own, in MiB."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_watched, task, given).result()


def _watched(task: Callable[..., Any], given: tuple[Any, ...]) -> tuple[float, float, Any]:
    before = _status_mib("VmRSS")
    result = task(*given)
    return before, _status_mib("VmHWM"), result


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def encode_files(plan: BuildPlan, paths: list[Path]) -> None:
    """What a worker of the pool does, file after file."""
    encoder, turns = build_encoder(plan.settings.encoder), Turns()
    for path in paths:
        items.encode_file(plan, path, encoder, turns)


def fill(plan: BuildPlan, paths: list[Path]) -> None:
    """Random vectors for the texts of these files."""
    identity = build_encoder(plan.settings.encoder).identity
    store, chance = plan.embeddings(identity), np.random.default_rng(0)
    for path in paths:
        keys = pq.read_table(path, columns=["text_key"])["text_key"].to_pylist()
        store.write(keys, unit_rows(chance.standard_normal((len(keys), identity.dim), dtype=np.float32)))


def peaks(settings: BuildSettings, n: int) -> Iterator[Peak]:
    """The tasks of one build, in their order. Settling is measured twice: over an empty store and a full one."""
    with planned(settings, 0.0) as plan:
        identity = build_encoder(settings.encoder).identity

        def peak(name: str, asked: int | None, task: Callable[..., Any], *given: Any) -> Peak:
            before, most, _ = measured(task, *given)
            asked_mib = None if asked is None else round(asked / 2**20, 1)
            return Peak(name, n, plan.n_shards, round(before, 1), round(most, 1), asked_mib)

        yield peak("read and clean one split", None, items.stage_items, plan, 0)
        n_bytes = sum(items.stage_items(plan, number)["kept_bytes"] for number in range(len(plan.inputs.items)))
        items.stage_changes(plan)
        settle = memory.settle_bytes(n_bytes, plan.n_shards)
        yield peak("settle one shard, all new", settle, items.settle_shard, plan, 0, identity)
        settled = items.settle_shard(plan, 0, identity)
        for number in range(1, plan.n_shards):
            items.settle_shard(plan, number, identity)
        words.count_all(plan)
        paths = items.todo_files(plan)
        yield peak(f"encode {ENCODED_FILES} files", None, encode_files, plan, paths[:ENCODED_FILES])
        fill(plan, paths[ENCODED_FILES:])
        yield peak("settle one shard, all known", settle, items.settle_shard, plan, 0, identity)
        for part in range(plan.n_shards):
            behaviour.count_part(plan, part, 0.0)
        for part in range(plan.n_shards):
            behaviour.weigh_part(plan, part)
        behaviour.fit_ridge(plan)
        shard = memory.shard_bytes(settled["items"], settled["item_bytes"], identity.dim)
        yield peak("build one shard", shard, finish.finish_shard, plan, 0, identity)


def settings_of(folder: Path, n: int, shards: int, dim: int) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "catalog": {"path": str(write_catalogue(folder / "items.parquet", n)), "template": "{title}"},
            "encoder": {"kind": "hash", "dim": dim},
            "index": {"root": str(folder / "index"), "shards": shards},
            "learning": {"people": 0},
        }
    )


def table(found: list[Peak]) -> Table:
    drawn = Table(
        "task", "items", "shards", "items a shard", "at start, MiB", "peak, MiB", "above start, MiB", "asked for"
    )
    for one in found:
        figures = (f"{one.base_mib:.0f}", f"{one.peak_mib:.0f}", f"{one.peak_mib - one.base_mib:.0f}")
        asked = "" if one.asked_mib is None else f"{one.asked_mib:.0f}"
        drawn.add_row(one.task, f"{one.items:,}", str(one.shards), f"{one.items // one.shards:,}", *figures, asked)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[100_000, 400_000], help="items of each catalogue")
    parser.add_argument("--shards", type=int, nargs="+", default=[4, 16], help="shards of each catalogue")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    given = parser.parse_args()
    busy, found = busy_share(), []
    for n, shards in zip(given.n, given.shards, strict=True):
        console.print(f"[dim]{n:,} items in {shards} shards ...[/]")
        with tempfile.TemporaryDirectory(prefix="raysys-memory-") as folder:
            found += peaks(settings_of(Path(folder), n, shards, given.dim), n)
    console.print(table(found))
    if given.json is not None:
        report = {"benchmark": "build_memory", "machine": machine(busy), "peaks": [asdict(one) for one in found]}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
