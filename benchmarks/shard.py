"""What one request costs one shard, by the number of its items: milliseconds, and the exponent by which they grow.

    python benchmarks/shard.py [--sizes 10000 100000 1000000] [--rounds 5] [--json FILE] [--quick]

Vectors are made up (``clustered.py``); each item has some terms, follows some others, and has a vector of factors. Up
to 50,000 items the index is flat, above it has lists of 8-bit codes. One thread, one request at a time. The history
request brings 50 items, three interests, words and factors; the text request a vector and three words; ``filter`` is
the text request where a tenth of the items may be seen.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from clustered import clustered
from figures import Spread, busy_share, machine
from rich.console import Console

from raysys.data.catalog import ITEM_SCHEMA
from raysys.index.filters import Filter
from raysys.index.kinds import Effort
from raysys.index.shard_files import ShardFiles, write_shard
from raysys.index.sparse_rows import SparseRows
from raysys.index.vector_index import build, set_threads
from raysys.index.words import Vocabulary, WordRows
from raysys.keys import item_keys
from raysys.recall.shard import Shard
from raysys.types import FACTORS, SOURCES, RecallQuery, Terms

DIM, SPACE_DIM, K = 384, 64, 100
TERMS_PER_ITEM, N_TERMS, FOLLOWS = 6, 20_000, 20
HISTORY, REQUESTS = 50, 40
NOW_S = 1_800_000_000.0
FLAT_UP_TO, EFFORT = 50_000, Effort(24, 1)
TENTH = Filter.model_validate({"must": [{"field": "price", "range": {"lt": 10}}]})
console = Console(width=140, highlight=False)


def make_shard(folder: Path, n: int) -> tuple[Shard, Vocabulary, np.ndarray]:
    """A shard of n items, its vocabulary, and vectors to ask with."""
    random = np.random.default_rng(0)
    vectors, asked = clustered(n, DIM, REQUESTS)
    ids = [f"i{number}" for number in range(n)]
    keys = item_keys(ids)
    order = np.argsort(keys)
    keys = keys[order]
    kind, effort = ("flat", None) if n <= FLAT_UP_TO else ("ivf_sq8", EFFORT)
    given = {"item_id": pa.array(ids).take(pa.array(order)), "price": pa.array(random.uniform(0, 100, n))}
    items = pa.table([given.get(field.name, pa.nulls(n, field.type)) for field in ITEM_SCHEMA], schema=ITEM_SCHEMA)
    words, vocabulary = make_words(n, random)
    follows = SparseRows.from_pairs(
        keys[random.integers(n, size=n * FOLLOWS)],
        random.integers(n, size=n * FOLLOWS).astype(np.int32),
        random.random(n * FOLLOWS, dtype=np.float32),
    )
    factors = random.standard_normal((n, SPACE_DIM), dtype=np.float32)
    popularity = random.random(n, dtype=np.float32)
    index = build(vectors, kind, "cosine", FLAT_UP_TO)
    write_shard(
        folder, items, keys, vectors, popularity, follows, SparseRows.empty(), words, {SOURCES[FACTORS]: factors}, index
    )
    shard = Shard(0, ShardFiles(folder, kind, "cosine", effort))
    shard.warm_up()
    return shard, vocabulary, asked


def make_words(n: int, random: np.random.Generator) -> tuple[WordRows, Vocabulary]:
    chances = 1 / np.arange(1, N_TERMS + 1)
    terms = random.choice(N_TERMS, size=(n, TERMS_PER_ITEM), p=chances / chances.sum()).astype(np.uint64)
    pairs = np.unique(
        np.column_stack([np.repeat(np.arange(n), TERMS_PER_ITEM).astype(np.uint64), terms.ravel()]), axis=0
    )
    known, counts = np.unique(pairs[:, 1], return_counts=True)
    vocabulary = Vocabulary(known, counts.astype(np.int64), n)
    rows = pairs[:, 0].astype(np.int32)
    return WordRows.build(n, rows, pairs[:, 1], np.ones(len(rows), np.float32), vocabulary), vocabulary


def requests_of(shard: Shard, vocabulary: Vocabulary, asked: np.ndarray) -> dict[str, list[RecallQuery]]:
    random = np.random.default_rng(1)
    made: dict[str, list[RecallQuery]] = {"history": [], "history, no factors": [], "text": [], "filter": []}
    for vector in asked:
        history = random.choice(shard.files.keys, HISTORY, replace=False)
        words = vocabulary.wanted(Terms(random.choice(vocabulary.terms, 40).astype(np.uint64), np.ones(40, np.float32)))
        few = vocabulary.wanted(Terms(random.choice(vocabulary.terms, 3).astype(np.uint64), np.ones(3, np.float32)))
        profile = np.stack([vector, *asked[random.integers(len(asked), size=2)]])
        placed = {FACTORS: random.standard_normal(SPACE_DIM).astype(np.float32)}
        made["history"].append(query(profile=profile, history_keys=history, words=words, placed=placed))
        made["history, no factors"].append(query(profile=profile, history_keys=history, words=words))
        made["text"].append(query(query=vector, query_words=few))
        made["filter"].append(query(query=vector, query_words=few, filter=TENTH))
    return made


def query(**given: Any) -> RecallQuery:
    keys = given.get("history_keys", np.empty(0, np.uint64))
    nothing = {"query": None, "profile": None, "said": None, "filter": None, "now_s": NOW_S, "k": K}
    history = {"history_keys": keys, "history_weights": np.ones(len(keys), np.float32), "exclude_keys": keys}
    return RecallQuery(**(nothing | history | given))


def median_ms(shard: Shard, queries: list[RecallQuery]) -> float:
    taken = []
    for one in queries:
        start_s = time.perf_counter()
        shard.recall([one])
        taken.append(time.perf_counter() - start_s)
    return float(np.median(taken)) * 1e3


def measure(
    n: int, rounds: int, watch: Callable[[Shard, dict[str, list[RecallQuery]]], None] | None = None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        shard, vocabulary, asked = make_shard(Path(folder) / "shard", n)
        asks = requests_of(shard, vocabulary, asked)
        for queries in asks.values():
            shard.recall(queries[:3])
        if watch is not None:
            watch(shard, asks)
        taken: dict[str, list[float]] = {name: [] for name in asks}
        for _ in range(rounds):
            for name, queries in asks.items():
                taken[name].append(median_ms(shard, queries))
        return {name: Spread.of(values).as_dict() for name, values in taken.items()}


def exponents(by_size: dict[int, dict[str, Any]]) -> dict[str, float]:
    """b of ms = a * n ** b, by least squares over the sizes."""
    sizes = np.log(list(by_size))
    return {
        name: round(
            float(np.polyfit(sizes, np.log([figures[name]["median"] for figures in by_size.values()]), 1)[0]), 3
        )
        for name in next(iter(by_size.values()))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="2,000 and 10,000 items, two rounds")
    given = parser.parse_args()
    sizes, rounds = ([2_000, 10_000], 2) if given.quick else (given.sizes, given.rounds)
    busy = busy_share()
    set_threads(1)
    by_size = {}
    for n in sizes:
        by_size[n] = measure(n, rounds)
        for name, spread in by_size[n].items():
            console.print(f"{n:>9,} items, {name}: {Spread(**spread).text(2)} ms")
    growth = exponents(by_size)
    console.print(f"growth exponents: {growth}")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(busy), "ms": by_size, "growth": growth}, indent=1))


if __name__ == "__main__":
    main()
