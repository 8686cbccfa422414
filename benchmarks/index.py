"""Every kind of index, and hnswlib and usearch beside them: recall, queries/s, bytes, seconds to build.

    python benchmarks/index.py [--n 200000] [--rounds 5] [--json FILE] [--quick] [--cache FOLDER] [--linked-up-to N]

Vectors are made up (``clustered.py``); queries are of the same groups and no items. Each side is set to the least
effort that reaches recall@10 >= .96 on half of the queries, and measured on the other half, in turns, so that it has
.95 there. One thread each.
Behind filters an index is searched as a build would set it, for 100 hits. ``--cache`` keeps what was built, but for
``flat``, with the time that it took, for the next run.
"""

import argparse
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import hnswlib
import numpy as np
from clustered import clustered
from figures import Spread, busy_share, machine, ratios
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from usearch.index import Index as UsearchIndex

from raysys.config import IndexKind as Kind
from raysys.index.choose import behind_filters, least_effort, sample
from raysys.index.kinds import KINDS, Effort, bytes_of, efforts, layout_of
from raysys.index.vector_index import VectorIndex, build, set_threads
from raysys.types import Vectors

DIM, WANTED = 384, 0.95
SPARE = 0.01  # other queries find a little less
LINKS, BUILD_BREADTH = 16, 200  # the peers' own defaults
BREADTHS = range(10, 513)
SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
FILTERED = {"ivf_sq8", "ivf_rabitq", "hnsw_sq8"}
BLOCK = 20_000

Found = list[NDArray[Any]]
Search = Callable[[Vectors, int, Any], Found]  # queries, k, effort -> the rows of each
console = Console(width=160, highlight=False)


@dataclass
class Side:
    """One of the things that take turns. efforts: to choose from, the least first."""

    name: str
    search: Search
    efforts: Sequence[Any]
    n_bytes: int
    build_s: float
    effort: Any = None
    recalls: tuple[float, float] = (0.0, 0.0)


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    start_s = time.perf_counter()
    made = make()
    return made, time.perf_counter() - start_s


def recall(found: Found, truth: NDArray[np.int32], k: int) -> float:
    return float(np.mean([len(np.intersect1d(f[:k], t[:k])) / k for f, t in zip(found, truth, strict=True)]))


def one_by_one(side: Side, queries: Vectors, k: int, effort: Any) -> tuple[Found, float]:
    """(what is found, queries/s)."""
    found, start_s = [], time.perf_counter()
    for at in range(len(queries)):
        found.append(side.search(queries[at : at + 1], k, effort)[0])
    return found, len(queries) / (time.perf_counter() - start_s)


def set_effort(side: Side, queries: Vectors, truth: NDArray[np.int32]) -> None:
    """The least that is good enough, by doubling, then halving: recall grows with effort. The most where none is."""

    def is_enough(effort: Any) -> bool:
        return recall(side.search(queries, 10, effort), truth, 10) >= WANTED + SPARE

    n = 1
    while n < len(side.efforts) and not is_enough(side.efforts[n - 1]):
        n *= 2
    least = bisect_left(side.efforts[: n - 1], True, lo=n // 2, key=is_enough)
    side.effort = side.efforts[min(least, len(side.efforts) - 1)]


def of_ours(index: VectorIndex, name: str, n_bytes: int, build_s: float) -> Side:
    def search(queries: Vectors, k: int, effort: Effort) -> Found:
        return list(index.search(queries, k, None, effort).rows)

    breadths, refined = efforts(index.kind, index.n_indexed)
    enough = refined[len(refined) // 2]
    chosen = [Effort(breadth, enough) for breadth in range(breadths[0], breadths[-1] + 1)]
    return Side(name, search, chosen, n_bytes, build_s)


def built_before(cache: Path | None, name: str, n: int) -> tuple[Path | None, Path | None, float | None]:
    """(its file, its note, seconds that it took to build): None without a cache, or where it is not in there."""
    if cache is None:
        return None, None, None
    file, note = (cache / f"{name}-{n}.{suffix}" for suffix in ("bin", "json"))
    return file, note, json.loads(note.read_text())["build_s"] if note.exists() else None


def ours(
    vectors: Vectors, kinds: list[Kind], linked_up_to: int, cache: Path | None
) -> Iterator[tuple[Side, VectorIndex]]:
    centres = None
    for kind in kinds:
        if layout_of(kind) == "hnsw" and len(vectors) > linked_up_to:
            continue
        file, note, build_s = built_before(None if kind == "flat" else cache, kind, len(vectors))
        if build_s is not None:
            index = VectorIndex.load(file, vectors, kind, "cosine")
        else:
            index, build_s = timed(lambda kind=kind, centres=centres: build(vectors, kind, "cosine", 1, centres))
        if file is not None and not note.exists():
            index.save(file)
            note.write_text(json.dumps({"build_s": build_s}))
        centres = index.centres if centres is None else centres
        say(
            f"built {kind} in {build_s:.0f} s"
            + (", lists as before" if layout_of(kind) == "ivf" and kind != "ivf" else "")
        )
        yield of_ours(index, kind, bytes_of(kind, len(vectors), DIM), build_s), index


def peer_hnswlib(vectors: Vectors, cache: Path | None) -> Side:
    n, index = len(vectors), hnswlib.Index("ip", DIM)
    path, note, build_s = built_before(cache, "hnswlib", n)
    if build_s is not None:
        index.load_index(str(path), max_elements=n)
    else:
        index.init_index(n, M=LINKS, ef_construction=BUILD_BREADTH, random_seed=1)
        _, build_s = timed(
            lambda: [
                index.add_items(vectors[s : s + BLOCK], np.arange(s, min(s + BLOCK, n))) for s in range(0, n, BLOCK)
            ]
        )
        if path is not None:
            index.save_index(str(path))
            note.write_text(json.dumps({"build_s": build_s}))
    index.set_num_threads(1)

    def search(queries: Vectors, k: int, effort: int) -> Found:
        index.set_ef(max(effort, k))
        return list(index.knn_query(queries, k)[0])

    say(f"hnswlib is built in {build_s:.0f} s")
    return Side("hnswlib", search, BREADTHS, int(index.index_file_size()), build_s)


def peer_usearch(vectors: Vectors, cache: Path | None) -> Side:
    n = len(vectors)
    index = UsearchIndex(ndim=DIM, metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BUILD_BREADTH)
    path, note, build_s = built_before(cache, "usearch", n)
    if build_s is not None:
        index.load(str(path))
    else:
        _, build_s = timed(lambda: index.add(np.arange(n), vectors))
        if path is not None:
            index.save(str(path))
            note.write_text(json.dumps({"build_s": build_s}))

    def search(queries: Vectors, k: int, effort: int) -> Found:
        index.expansion_search = max(effort, k)
        matches = index.search(queries, k, threads=1)
        return [matches.keys] if matches.keys.ndim == 1 else list(matches.keys)

    say(f"usearch is built in {build_s:.0f} s")
    return Side("usearch", search, BREADTHS, int(index.serialized_length), build_s)


def flat_peer(vectors: Vectors) -> Side:
    index = faiss.IndexFlatIP(DIM)
    _, build_s = timed(lambda: index.add(vectors))
    return Side(
        "faiss.IndexFlatIP", lambda queries, k, _: list(index.search(queries, k)[1]), [None], vectors.nbytes, build_s
    )


def take_turns(sides: list[Side], queries: Vectors, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Queries/s of every side, one by one and in one call, by rounds. Flat ones get fewer."""
    speeds = {side.name: {"one": [], "batch": []} for side in sides}
    for number in range(rounds):
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            some = queries[: len(queries) // 8] if "lat" in side.name else queries
            speeds[side.name]["one"].append(one_by_one(side, some, 10, side.effort)[1])
            _, batch_s = timed(lambda side=side, some=some: side.search(some, 10, side.effort))
            speeds[side.name]["batch"].append(len(some) / batch_s)
        say(f"round {number + 1} of {rounds}")
    return speeds


def filtered(index: VectorIndex, vectors: Vectors, queries: Vectors, effort: Effort) -> Iterator[dict[str, Any]]:
    """Recall@100 and milliseconds by the share of items that pass: drawn evenly, and those nearest to some item."""
    random = np.random.default_rng(5)
    compared = queries @ vectors.T
    for share in SHARES:
        n = max(int(share * len(vectors)), 1)
        near = vectors @ vectors[random.integers(len(vectors))]
        masks = {
            "even": random.permutation(len(vectors)) < n,
            "near": near >= np.partition(near, len(near) - n)[len(near) - n],
        }
        for name, mask in masks.items():
            rows = np.flatnonzero(mask)
            truth = [rows[np.argsort(-scores[rows], kind="stable")[:100]] for scores in compared]
            start_s = time.perf_counter()
            results = [index.search(queries[at : at + 1], 100, mask, effort) for at in range(len(queries))]
            ms = (time.perf_counter() - start_s) / len(queries) * 1e3
            hits = [len(np.intersect1d(r.rows[0], t)) / len(t) for r, t in zip(results, truth, strict=True)]
            wrong = sum(int(np.count_nonzero(~mask[r.rows[0]])) for r in results)
            exact = sum(bool(r.exact) for r in results) / len(results)
            yield {
                "kind": index.kind,
                "share": share,
                "which": name,
                "recall@100": round(float(np.mean(hits)), 4),
                "ms": round(ms, 3),
                "exact": exact,
                "filtered_out_but_returned": wrong,
            }


def for_filters(index: VectorIndex, vectors: Vectors) -> Effort:
    """As a build finds it, for recall@100 and behind filters too."""
    sampled = sample(index, vectors, 200)
    effort = behind_filters(index, sampled, least_effort(index, sampled, WANTED)[0], WANTED)
    say(f"{index.kind} as a build would search it: {effort}")
    return effort


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")


def effort_text(effort: Any) -> str:
    if isinstance(effort, Effort):
        return f"breadth {effort.breadth}, refined {effort.refined}"
    return "" if effort is None else f"ef {effort}"


def rows_of(sides: Iterable[Side], speeds: dict[str, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
    peer = speeds["hnswlib"]["one"] if "hnswlib" in speeds else None
    for side in sides:
        its = speeds[side.name]
        yield {
            "name": side.name,
            "effort": effort_text(side.effort),
            "recall@10": round(side.recalls[0], 4),
            "recall@100": round(side.recalls[1], 4),
            "queries_per_s": Spread.of(its["one"]).as_dict(),
            "batch_queries_per_s": Spread.of(its["batch"]).as_dict(),
            "over_hnswlib": ratios(its["one"], peer).as_dict() if peer else None,
            "bytes": side.n_bytes,
            "build_s": round(side.build_s, 1),
        }


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="recall@10 >= .95, one thread; queries/s: median (smallest-largest)", title_justify="left")
    for name in ("", "effort", "recall@10", "@100", "queries/s", "in one call", "over hnswlib", "MB", "build s"):
        shown.add_column(name, justify="left" if name in ("", "effort") else "right")
    for row in rows:
        spreads = [row["queries_per_s"], row["batch_queries_per_s"]]
        figures = [Spread(**spread).text(0) for spread in spreads]
        over = Spread(**row["over_hnswlib"]).text(2) if row["over_hnswlib"] else ""
        recalls = [f"{row[name]:.3f}" for name in ("recall@10", "recall@100")]
        shown.add_row(
            row["name"], row["effort"], *recalls, *figures, over, f"{row['bytes'] / 1e6:,.0f}", f"{row['build_s']:,.0f}"
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument(
        "--linked-up-to", type=int, default=200_000, help="vectors up to which our graphs and usearch's are built"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="10,000 vectors, two rounds")
    given = parser.parse_args()
    n, rounds, n_queries = (10_000, 2, 100) if given.quick else (given.n, given.rounds, 500)
    busy = busy_share()
    set_threads(1)
    faiss.omp_set_num_threads(1)
    vectors, queries = clustered(n, DIM, 2 * n_queries)
    tuning, asked = queries[:n_queries], queries[n_queries:]
    truth = faiss.knn(queries, vectors, 100, metric=faiss.METRIC_INNER_PRODUCT)[1]
    built = list(ours(vectors, given.kinds, given.linked_up_to, given.cache))
    peers = [flat_peer(vectors), peer_hnswlib(vectors, given.cache)]
    peers += [peer_usearch(vectors, given.cache)] if n <= given.linked_up_to else []
    sides = [*(side for side, _ in built), *peers]
    for side in sides:
        few = tuning[: n_queries // 8] if "lat" in side.name else tuning
        set_effort(side, few, truth[: len(few)])
        found = [side.search(asked, k, side.effort) for k in (10, 100)]
        side.recalls = (recall(found[0], truth[n_queries:], 10), recall(found[1], truth[n_queries:], 100))
        say(f"{side.name}: {effort_text(side.effort)}, recall@10 {side.recalls[0]:.3f}")
    rows = list(rows_of(sides, take_turns(sides, asked, rounds)))
    console.print(table(rows))
    masked = [
        row
        for side, index in built
        if index.kind in FILTERED
        for row in filtered(index, vectors, asked[:100], for_filters(index, vectors))
    ]
    for row in masked:
        console.print(row)
    if given.json:
        old = json.loads(given.json.read_text()) if given.json.exists() else {"runs": {}}
        old["runs"][str(n)] = {"machine": machine(busy), "rounds": rounds, "rows": rows, "filtered": masked}
        given.json.write_text(json.dumps(old, indent=1))


if __name__ == "__main__":
    main()
