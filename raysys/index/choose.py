"""Which kind of index a shard gets, and how hard it is searched: found by building and measuring, within a budget.

Truth is the exact search over the same vectors. What is asked is half items of the shard, which do not count as their
own neighbours, and half what people's tastes are made of: means of neighbouring items, sharpened where that applies
(``index.contrast``), which lie further from any item. A hit counts when it is as good as the worst of the true ones,
so equal vectors do no harm.

Filters are measured too: such as leave items by chance, and such as leave those near to some item, which most queries
are far from, so that their hits lie scattered.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.config import IndexKind as Kind
from raysys.errors import ConfigError
from raysys.index.contrast import Contrast, Moments
from raysys.index.kinds import TUNED_HITS, Effort, Filtered, bytes_of, choose_kind, efforts, layout_of, work_of
from raysys.index.vector_index import Mask, Metric, SearchResult, VectorIndex, build
from raysys.types import Vectors

HITS = (10, TUNED_HITS)  # recall is measured, and wanted, among so many
NEIGHBOURS = 5
ROUNDS = 3
TIMED_QUERIES = 50
FILTERED_SHARES = (0.5, 0.1)
FILTERED_SPARE = 0.3  # of what may be missed: other filters and queries are harder than those that are tried
CONTRAST_ROWS = 20_000  # so many say enough about a covariance
GRAPHS_UP_TO = 300_000  # vectors: linking more takes a core many minutes; ``index.kind: hnsw`` does it all the same
TOLERANCE = 1e-6
# In this order, and each only where it fits; of those good enough the fastest is taken.
CANDIDATES: tuple[Kind, ...] = ("flat", "ivf", "ivf_sq8", "ivf_rabitq", "ivf_pq", "hnsw", "hnsw_sq8", "flat_sq8")


@dataclass(frozen=True, slots=True)
class Wanted:
    """memory_bytes: for the index of this shard, None = any. recall: at 10 and at 100 hits, 0 to 1."""

    kind: str = "auto"
    memory_bytes: float | None = None
    recall: float = 0.95
    flat_below: int = 50_000
    sample: int = 200


@dataclass(frozen=True, slots=True)
class Trial:
    """One kind as it was measured: at the least effort that gives the wanted recall, or at the most there is.

    recall_10, recall_100: 0 to 1. queries_per_s: 100 hits, one query at a time. why_not: where it was not measured.
    """

    kind: Kind
    memory_bytes: int
    breadth: int = 0
    refined: int = 1
    narrow: float = 1.0
    filtered: tuple[Filtered, ...] = ()
    recall_10: float | None = None
    recall_100: float | None = None
    queries_per_s: float | None = None
    build_s: float | None = None
    why_not: str = ""
    taken: bool = False

    @property
    def effort(self) -> Effort:
        return Effort(self.breadth, self.refined, self.narrow, self.filtered)

    def reaches(self, recall: float) -> bool:
        return (
            self.recall_10 is not None
            and self.recall_100 is not None
            and min(self.recall_10, self.recall_100) >= recall
        )

    def text(self) -> str:
        """One line for people."""
        size = f"{self.kind}: {self.memory_bytes / 1e6:,.1f} MB"
        if self.recall_10 is None or self.recall_100 is None or self.queries_per_s is None:
            return f"{size}; {self.why_not}"
        return (
            f"{size}, recall@10 {self.recall_10:.3f}, recall@100 {self.recall_100:.3f}, "
            f"{self.queries_per_s:,.0f} queries/s (breadth {self.breadth}, refined {self.refined})"
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Trial":
        """From what ``as_dict`` gives."""
        filtered = tuple(Filtered(**each) for each in values.get("filtered", ()))
        return cls(**{**values, "filtered": filtered})

    def as_dict(self) -> dict[str, Any]:
        """The inverse of ``from_dict``, without what is not there."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """allowed: [n] bool, about this share of the items. queries: [q, dim] float32, items that are not allowed: their
    hits are harder to find than those of means. least: [q] float32, the worst score of a true hit among ``TUNED_HITS``.
    n_true: so many there are."""

    share: float
    allowed: Mask
    queries: Vectors
    least: NDArray[np.float32]
    n_true: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """queries: [q, dim] float32. own: [q] int64, the row that a query is, which does not count; -1 = none.

    least: [q, 2] float32, the worst score of a true hit among each of ``HITS``. n_true: so many there are.
    """

    queries: Vectors
    own: NDArray[np.int64]
    least: NDArray[np.float32]
    n_true: NDArray[np.int64]
    filters: Sequence[Filter]


def choose(vectors: Vectors, metric: Metric, wanted: Wanted) -> tuple[VectorIndex, Sequence[Trial]]:
    """The index of these vectors, [n, dim] float32, that is fastest of those that are good enough, and what was tried.

    Nothing is tried for few vectors, which are flat, unless memory forbids that. Raises ConfigError where nothing fits
    into the memory, or nothing that fits reaches the recall; and as ``build``.
    """
    n = int(np.count_nonzero(vectors.any(axis=1)))
    simple = choose_kind(n, wanted.kind, wanted.flat_below)
    if simple == "flat" and _fits("flat", n, vectors, wanted):
        index = build(vectors, "flat", metric, wanted.flat_below)
        return index, [
            Trial("flat", bytes_of("flat", n, index.dim), recall_10=1.0, recall_100=1.0, taken=True)
        ] if n else []
    candidates = CANDIDATES if wanted.kind == "auto" else (simple,)
    _refuse_too_little(candidates, n, vectors.shape[1], wanted)
    return _fastest(candidates, vectors, n, metric, wanted)


def _fits(kind: Kind, n: int, vectors: Vectors, wanted: Wanted) -> bool:
    return wanted.memory_bytes is None or bytes_of(kind, n, vectors.shape[1]) <= wanted.memory_bytes


def _refuse_too_little(candidates: Sequence[Kind], n: int, dim: int, wanted: Wanted) -> None:
    least = min(candidates, key=lambda kind: bytes_of(kind, n, dim))
    if wanted.memory_bytes is not None and bytes_of(least, n, dim) > wanted.memory_bytes:
        raise ConfigError(
            f"index.memory leaves {wanted.memory_bytes / 1e6:,.1f} MB for a shard, but the smallest index of its {n:,} "
            f"vectors, {least}, takes {bytes_of(least, n, dim) / 1e6:,.1f} MB; give more memory"
        )


def _fastest(
    candidates: Sequence[Kind], vectors: Vectors, n: int, metric: Metric, wanted: Wanted
) -> tuple[VectorIndex, Sequence[Trial]]:
    best: VectorIndex | None = None
    asked: Asked | None = None
    centres: Vectors | None = None
    trials: list[Trial] = []
    fastest = 0.0
    for kind in candidates:
        size = bytes_of(kind, n, vectors.shape[1])
        why_not = _why_not(kind, n, size, wanted)
        if why_not:
            trials.append(Trial(kind, size, why_not=why_not))
            continue
        start_s = time.perf_counter()
        index = build(vectors, kind, metric, wanted.flat_below, centres)
        build_s = time.perf_counter() - start_s
        centres = index.centres if centres is None else centres
        asked = sample(index, vectors, wanted.sample) if asked is None else asked
        index, trial = _measured(index, asked, wanted, size, build_s)
        trials.append(trial)
        if trial.reaches(wanted.recall) and (trial.queries_per_s or 0.0) > fastest:
            best, fastest = index, trial.queries_per_s or 0.0
    if best is None:
        raise ConfigError(_nothing_reaches(trials, wanted))
    return best, [replace(trial, taken=trial.kind == best.kind) for trial in trials]


def _why_not(kind: Kind, n: int, size: int, wanted: Wanted) -> str:
    if wanted.memory_bytes is not None and size > wanted.memory_bytes:
        return "takes more than index.memory allows"
    if wanted.kind == "auto" and layout_of(kind) == "hnsw" and n > GRAPHS_UP_TO:
        return f"linking more than {GRAPHS_UP_TO:,} vectors takes long; index.kind: {kind} does it"
    return ""


def _nothing_reaches(trials: Sequence[Trial], wanted: Wanted) -> str:
    measured = [trial for trial in trials if trial.recall_100 is not None]
    best = max(measured, key=lambda trial: trial.recall_100 or 0.0)
    fits = "" if wanted.memory_bytes is None else f" of those that fit into {wanted.memory_bytes / 1e6:,.1f} MB a shard"
    return (
        f"no index reaches index.recall {wanted.recall:g}{fits}: the best, {best.kind}, has {best.recall_10:.3f} among "
        f"10 and {best.recall_100:.3f} among 100 hits; ask for less recall or give more memory"
    )


# What is asked


def sample(index: VectorIndex, vectors: Vectors, n: int, seed: int = 0) -> Asked:
    """n queries, or fewer where there are fewer items, and what is true of them."""
    with_text = np.flatnonzero(vectors.any(axis=1))
    random = np.random.default_rng(seed)
    rows = random.choice(with_text, min(n, len(with_text)), replace=False)
    items, means = rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :]
    queries = [vectors[items], _tastes(index, vectors, means)]
    own = np.concatenate([items, np.full(len(means), -1)]).astype(np.int64)
    asked = np.ascontiguousarray(np.concatenate(queries), dtype=np.float32)
    filters = [
        _filter(index, asked[: len(items)], share, mask) for share, mask in _masks(index, vectors, items, random)
    ]
    return _with_truth(index, asked, own, filters)


def _masks(
    index: VectorIndex, vectors: Vectors, items: NDArray[np.int64], random: np.random.Generator
) -> Iterator[tuple[float, Mask]]:
    """[n] bool, for each share: drawn by chance, and near to some item."""
    if not len(items):
        return
    order = random.random(len(index))
    near = index.search_exactly(vectors[items[:1]], math.ceil(max(FILTERED_SHARES) * index.n_indexed)).rows[0]
    for share in FILTERED_SHARES:
        by_place = np.zeros(len(index), dtype=np.bool_)
        by_place[near[: math.ceil(share * index.n_indexed)]] = True
        for mask in (order < share, by_place):
            mask[items] = False
            yield share, mask


def _filter(index: VectorIndex, queries: Vectors, share: float, allowed: Mask) -> Filter:
    scores = index.search_exactly(queries, TUNED_HITS, allowed).scores
    n_true = np.array([len(s) for s in scores])
    return Filter(share, allowed, queries, np.array([s[-1] if len(s) else 0 for s in scores], dtype=np.float32), n_true)


def _tastes(index: VectorIndex, vectors: Vectors, rows: NDArray[np.int64]) -> Vectors:
    """[q, dim] float32: the mean of each of these items and its neighbours."""
    near = index.search_exactly(np.ascontiguousarray(vectors[rows]), NEIGHBOURS).rows
    means = np.stack([vectors[at].mean(axis=0) for at in near]) if len(rows) else vectors[:0]
    some = vectors[:: max(1, len(vectors) // CONTRAST_ROWS)]
    contrast = Contrast.from_moments([Moments.of(some)]) if index.metric == "cosine" else None
    if contrast is None:
        return means
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return np.stack([contrast.sharpen(mean) for mean in means / np.maximum(lengths, TOLERANCE)]) if len(rows) else means


def _with_truth(index: VectorIndex, queries: Vectors, own: NDArray[np.int64], filters: Sequence[Filter]) -> Asked:
    scores = [s for _, s in _without_own(index.search_exactly(queries, max(HITS) + 1), own)]
    n_true = np.array([[min(hits, len(s)) for hits in HITS] for s in scores])
    least = np.array([[s[n - 1] if n else 0 for n in counts] for s, counts in zip(scores, n_true, strict=True)])
    return Asked(queries, own, least.astype(np.float32), n_true, filters)


def _without_own(
    result: SearchResult, own: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    for rows, scores, row in zip(result.rows, result.scores, own, strict=True):
        others = rows != row
        yield rows[others][: max(HITS)], scores[others][: max(HITS)]


# How well it is answered


def recall(index: VectorIndex, asked: Asked, effort: Effort) -> list[float]:
    """Recall among each of ``HITS``, 0 to 1; 1 where there is nothing to find. Nothing helps out the index here."""
    found = [_without_own(index.search_once(asked.queries, n + 1, effort), asked.own) for n in HITS]
    return [
        _mean_found([scores for _, scores in hits], asked.least[:, at], asked.n_true[:, at])
        for at, hits in enumerate(found)
    ]


def _recalls_behind(index: VectorIndex, filters: Sequence[Filter], effort: Effort) -> list[float]:
    """Recall among ``TUNED_HITS`` behind each filter, 0 to 1, by just this effort."""
    just = replace(effort, narrow=0.0)
    found = [index.search_once(its.queries, TUNED_HITS, just, its.allowed).scores for its in filters]
    return [_mean_found(scores, its.least, its.n_true) for scores, its in zip(found, filters, strict=True)]


def _mean_found(found: Sequence[NDArray[np.float32]], least: NDArray[np.float32], n_true: NDArray[np.int64]) -> float:
    shares = [
        np.count_nonzero(scores[:n] >= worst - TOLERANCE * max(1.0, abs(worst))) / n
        for scores, worst, n in zip(found, least, n_true, strict=True)
        if n
    ]
    return float(np.mean(shares)) if shares else 1.0


def _measured(index: VectorIndex, asked: Asked, wanted: Wanted, size: int, build_s: float) -> tuple[VectorIndex, Trial]:
    effort, recalls = least_effort(index, asked, wanted.recall)
    effort = behind_filters(index, asked, effort, wanted.recall)
    index = index.with_effort(effort)
    trial = Trial(
        kind=index.kind,
        memory_bytes=size,
        breadth=effort.breadth,
        refined=effort.refined,
        narrow=effort.narrow,
        filtered=effort.filtered,
        recall_10=round(recalls[0], 4),
        recall_100=round(recalls[1], 4),
        queries_per_s=round(queries_per_s(index, asked.queries), 1),
        build_s=round(build_s, 2),
    )
    return index, trial


def least_effort(index: VectorIndex, asked: Asked, wanted: float) -> tuple[Effort, list[float]]:
    """The effort with least work that reaches the wanted recall; the most there is where none does. With its recall."""
    return _least(index.kind, index.n_indexed, partial(recall, index, asked), wanted, Effort(0, 1))


def behind_filters(index: VectorIndex, asked: Asked, effort: Effort, wanted: float) -> Effort:
    """This effort, with what it takes to keep the recall behind filters, and something to spare."""
    if layout_of(index.kind) == "flat":
        return effort
    found, least, wanted = [], effort, wanted + FILTERED_SPARE * (1 - wanted)
    for share in FILTERED_SHARES:
        its = [each for each in asked.filters if each.share == share]
        recalls = partial(_recalls_behind, index, its)
        least, _ = _least(index.kind, index.n_indexed, recalls, wanted, least)
        found.append(Filtered(share, least.breadth, least.refined))
    return replace(effort, filtered=tuple(found))


def _least(
    kind: Kind, n: int, recalls: Callable[[Effort], list[float]], wanted: float, at_least: Effort
) -> tuple[Effort, list[float]]:
    """The effort with least work by which no recall is below the wanted one, and these: the least breadth that does
    with most refinement, then, as long as that is less work, wider ones with less."""
    breadths, refinements = efforts(kind, n)
    wide = [breadth for breadth in breadths if breadth >= at_least.breadth]
    fine = [refined for refined in refinements if refined >= at_least.refined]
    enough = bisect_left(wide[:-1], True, key=lambda breadth: min(recalls(Effort(breadth, fine[-1]))) >= wanted)
    best = Effort(wide[enough], fine[-1])
    reached = recalls(best)
    for refined in reversed(fine[:-1]) if min(reached) >= wanted else ():
        less = (Effort(breadth, refined) for breadth in wide if breadth >= best.breadth)
        cheaper = (effort for effort in less if work_of(kind, n, effort) < work_of(kind, n, best))
        found = next(((each, its) for each in cheaper if min(its := recalls(each)) >= wanted), None)
        if found is None:
            break
        best, reached = found
    return best, reached


def queries_per_s(index: VectorIndex, queries: Vectors) -> float:
    """One query at a time, for as many hits as are wanted: the median of some rounds."""
    return float(np.median([_one_round(index, queries) for _ in range(ROUNDS)]))


def _one_round(index: VectorIndex, queries: Vectors) -> float:
    start_s = time.perf_counter()
    timed = queries[-TIMED_QUERIES:]
    for at in range(len(timed)):
        index.search(timed[at : at + 1], TUNED_HITS)
    return len(timed) / max(time.perf_counter() - start_s, 1e-9)
