"""Accuracy on public purchase histories, through the path that serves: job, snapshot, recall, ranking.

    python benchmarks/accuracy.py [--data ../shared/data/beauty] [--test] [--json FILE]

The titles and the training sequences (each without its last two items) are written as a catalogue and an event file,
the indexing job builds a snapshot of them, and every user's history becomes a profile that is asked for a list.
All settings are the defaults of the package; those were chosen by the validation column. The test column is measured
only with --test: it is there to be read, not to be tuned on. The data is not part of this project: where it is absent
the benchmark says so and ends well. The protocol and a caveat about this data are in docs/evaluation.md.
"""

import argparse
import asyncio
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from figures import machine
from rich.console import Console
from rich.table import Table

from raysys.config import (
    BuildSettings,
    CatalogSettings,
    EventsSettings,
    IndexSettings,
    ProfileSettings,
    RankingSettings,
    ServeSettings,
)
from raysys.encoder.build import build_encoder
from raysys.evaluation.metrics import Listed
from raysys.evaluation.protocol import LIST_LENGTH, by_stratum, rank_lists, summarise
from raysys.evaluation.splits import Items, Task, leave_last_out
from raysys.in_process import LocalEncoder, LocalRanker, LocalRecall
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.index.vector_index import set_threads
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import fold
from raysys.recall.shard import Shard
from raysys.recommender import Encode, Recall, Recommender
from raysys.serving.coalescer import Coalescer
from raysys.training.local import build_here
from raysys.types import Answer, Candidates, Event, Profile, RecallQuery, Request

# The data has an order but no times, so positions serve as seconds. Popularity hardly decays within minutes.
FIRST_EVENT_S = 1_400_000_000
BATCH = 256
SAMPLE = 500  # users asked both in batches and alone


@dataclass(frozen=True)
class Row:
    """One line of the table: how profiles are made, and how their candidates are ranked."""

    ranking: RankingSettings
    profile: ProfileSettings


PROFILE = ProfileSettings()
ROWS = {
    # An event without a weight says only "seen", so nothing is known of the user and popularity fills the list.
    "popularity": Row(RankingSettings(query=0, profile=0, transition=0), ProfileSettings(event_weights={})),
    "behaviour alone": Row(RankingSettings(profile=0, popular=0), PROFILE),
    "titles alone": Row(RankingSettings(transition=0, popular=0), PROFILE),
    "the default": Row(RankingSettings(), PROFILE),
}


def read_sequences(folder: Path) -> list[Items]:
    """Items of each user in time order, as indices from 0. The file has one line a user: user item item ..."""
    lines = (folder / "sequences.txt").read_text().splitlines()
    return [np.array(line.split()[1:], dtype=np.int64) - 1 for line in lines]


def write_catalogue(folder: Path, path: Path) -> None:
    """Ids and titles as Parquet. The id of an item is its index."""
    with (folder / "titles.csv").open(encoding="utf-8", newline="") as file:
        rows = [(str(int(row["item"]) - 1), row["title"]) for row in csv.DictReader(file)]
    pq.write_table(pa.table(dict(zip(("item_id", "title"), zip(*rows, strict=True), strict=True))), path)


def write_events(sequences: Sequence[Items], path: Path) -> None:
    """One view a purchase, as Parquet. Times are integer milliseconds."""
    lengths = [len(sequence) for sequence in sequences]
    steps = np.concatenate([np.arange(length) for length in lengths])
    columns = {
        "user_id": [str(user) for user, length in enumerate(lengths) for _ in range(length)],
        "item_id": [str(item) for sequence in sequences for item in sequence],
        "timestamp": (FIRST_EVENT_S + steps) * 1_000,
    }
    pq.write_table(pa.table(columns), path)


def build(data: Path, train: Sequence[Items], work: Path) -> Catalogue:
    """The snapshot of all titles and the training sequences, with default settings."""
    write_catalogue(data, work / "items.parquet")
    write_events(train, work / "events.parquet")
    settings = BuildSettings(
        catalog=CatalogSettings(path=str(work / "items.parquet")),
        events=EventsSettings(path=str(work / "events.parquet")),
        index=IndexSettings(root=str(work / "index")),
    )
    manifest = build_here(settings)
    return Catalogue(SnapshotStore(settings.index.root).folder(manifest.snapshot_id))


def profile_of(history: Items, settings: ProfileSettings) -> Profile:
    """The fold of the history as views, as a running service would have it."""
    steps = enumerate(history.tolist())
    events = (Event(str(step), "view", "", str(item), float(FIRST_EVENT_S + step)) for step, item in steps)
    return fold("", events, settings)


class GatheredRecall:
    """All shards of a snapshot. Requests that wait together go to a shard as one call, as they do in serving."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._coalescer: Coalescer[RecallQuery, list[Candidates]] = Coalescer(
            self._call, max_batch=BATCH, max_in_flight=1, max_waiting=BATCH
        )

    async def _call(self, queries: list[RecallQuery]) -> Sequence[list[Candidates]]:
        return [list(answers) for answers in zip(*(shard.recall(queries) for shard in self._shards), strict=True)]

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        return await self._coalescer.ask(query), []


class Product:
    """The path that serves, asked offline: histories in, lists out."""

    def __init__(self, catalogue: Catalogue, encode: Encode, recall: Recall, row: Row) -> None:
        k = ServeSettings().candidates_per_source
        self._profile = row.profile
        self._recommender = Recommender(
            Lookup(catalogue, NothingLive()), encode, recall, LocalRanker(row.ranking), row.profile, k
        )

    def __call__(self, histories: Sequence[Items]) -> list[Listed]:
        return [_listed(answer) for answer in asyncio.run(self._ask(histories))]

    async def _ask(self, histories: Sequence[Items]) -> list[Answer]:
        profiles = [profile_of(history, self._profile) for history in histories]
        request = Request(limit=LIST_LENGTH)
        return await asyncio.gather(*(self._recommender.recommend(request, profile) for profile in profiles))


def _listed(answer: Answer) -> Listed:
    items = np.array([int(item.item_id) for item in answer.items], dtype=np.int64)
    return Listed(items, np.array([item.score for item in answer.items], dtype=np.float64))


def measure(product: Product, task: Task, counts: Items) -> dict[str, Any]:
    """The figures of one row on one task. counts: [n_items] training events of each item, for the strata."""
    start = time.perf_counter()
    ranking = rank_lists(product, task, len(counts), batch=BATCH)
    seconds = time.perf_counter() - start
    strata = by_stratum(ranking.ranks, task.targets, counts)
    return {
        "metrics": {name: asdict(value) for name, value in summarise(ranking.ranks).items()},
        "coverage@10": ranking.coverage,
        "strata": {name: {"users": users, "hr@10": hr} for name, (users, hr) in strata.items()},
        "lost_to_ties": ranking.lost_to_ties,
        "users_per_s": round(len(task) / seconds, 1),
    }


def compare(batched: Product, single: Product, task: Task) -> dict[str, Any]:
    """Do users get the same list alone as in a batch?"""
    chosen = np.random.default_rng(0).choice(len(task), min(SAMPLE, len(task)), replace=False)
    histories = [task.histories[user] for user in chosen]
    together = [listed for at in range(0, len(histories), BATCH) for listed in batched(histories[at : at + BATCH])]
    pairs = [(listed, *single([history])) for listed, history in zip(together, histories, strict=True)]
    same = [np.array_equal(a.items, b.items) and np.array_equal(a.scores, b.scores) for a, b in pairs]
    return {"users": len(same), "same_items_and_scores": sum(same)}


def run(data: Path, work: Path, threads: int, with_test: bool) -> dict[str, Any]:
    """Build, ask, and count: everything that the report holds."""
    sequences = read_sequences(data)
    split = leave_last_out(sequences)
    counts = np.bincount(np.concatenate(split.train), minlength=1 + max(int(s.max()) for s in sequences))
    catalogue = build(data, split.train, work)
    set_threads(threads)
    encoder = LocalEncoder(build_encoder(catalogue.manifest.encoder, threads))
    shards = [Shard(number, files) for number, files in enumerate(catalogue.shards)]
    products = {name: Product(catalogue, encoder.encode, GatheredRecall(shards), row) for name, row in ROWS.items()}
    tasks = {"validation": split.validation} | ({"test": split.test} if with_test else {})
    alone = Product(catalogue, encoder.encode, LocalRecall(shards), ROWS["the default"])
    return {
        "dataset": data.name,
        "users": len(sequences),
        "items": len(counts),
        "items_in_catalogue": catalogue.manifest.n_items,
        "batch_and_single": compare(products["the default"], alone, split.validation),
        "rows": {
            name: {part: measure(product, task, counts) for part, task in tasks.items()}
            for name, product in products.items()
        },
        "encoder": catalogue.manifest.identity,
        "settings": settings(),
        "machine": machine(),
    }


def settings() -> dict[str, Any]:
    """The defaults that the figures depend on."""
    built, served = BuildSettings(catalog=CatalogSettings(path="")), ServeSettings()
    return {
        "behaviour": built.behaviour.model_dump(exclude={"event_weights"}),
        "index": built.index.model_dump(exclude={"root"}),
        "profile": served.profile.model_dump(include={"step_decay", "history"}),
        "ranking": served.ranking.model_dump(),
        "candidates_per_source": served.candidates_per_source,
    }


def table(report: dict[str, Any]) -> Table:
    metrics = ("ndcg@10", "hr@20", "ndcg@20")
    strata = ("unseen", "tail", "middle", "head")
    title = f"{report['dataset']}: {report['users']:,} users, {report['items']:,} items; fitted on train only"
    drawn = Table("", "predicted", "HR@10", "95 %", *(m.upper() for m in metrics), "coverage@10", *strata, "users/s")
    drawn.title, drawn.caption = title, "unseen, tail, middle, head: HR@10 by the popularity of the target in train"
    for name, parts in report["rows"].items():
        for part, row in parts.items():
            hr = row["metrics"]["hr@10"]
            figures = [row["metrics"][m]["mean"] for m in metrics] + [row["coverage@10"]]
            figures += [row["strata"][stratum]["hr@10"] for stratum in strata]
            interval = f"{hr['low']:.4f}-{hr['high']:.4f}"
            cells = [f"{figure:.4f}" for figure in figures]
            drawn.add_row(name, part, f"{hr['mean']:.4f}", interval, *cells, f"{row['users_per_s']:.0f}")
    return drawn


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/beauty"), help="folder of the data set")
    parser.add_argument("--test", action="store_true", help="measure on the test items as well")
    parser.add_argument("--threads", type=int, default=2, help="of encoder and search")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    for needed in (given.data / "sequences.txt", given.data / "titles.csv"):
        if not needed.is_file():
            print(f"skipped: there is no {needed}; --data names the folder of a data set with sequences and titles")
            return 0
    with TemporaryDirectory() as work:
        report = run(given.data, Path(work), given.threads, given.test)
    Console(width=200).print(table(report))
    print("in a batch as alone:", report["batch_and_single"])
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
