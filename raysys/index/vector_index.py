"""FAISS, wrapped once: this is the only module that imports it.

A vector is known by its row. Higher scores are better: the inner product for ``cosine`` and ``ip`` (cosine takes
L2-normalised vectors), ``1 / (1 + Euclidean distance)`` for ``l2``. A zero vector means "no text": as an item it is
never found, as a query it finds nothing, and its score is 0.

``flat`` compares with every vector. All other kinds (``index.kinds``) are approximate: their codes put candidates
forward, and the vectors themselves, which are memory-mapped, decide. Behind a mask the index is searched wider, and
passes over the others; or, where it leaves so few that this is faster, all their vectors are compared, which is exact.
So is a query for which the index finds too few: never does it get fewer than there are.
"""

import math
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import faiss as untyped_faiss
import numpy as np
from numpy.typing import NDArray

from raysys.config import IndexKind as Kind
from raysys.errors import EncoderError, InvalidInput, SnapshotError
from raysys.index.highest import highest
from raysys.index.kinds import (
    CODES_PER_VECTOR,
    HNSW_LINKS,
    PQ_BITS,
    Effort,
    choose_kind,
    codes_of,
    default_effort,
    ivf_lists,
    layout_of,
    pq_codes,
)
from raysys.types import Vectors

faiss: Any = untyped_faiss  # the stubs it brings lag behind what it does

Metric = Literal["cosine", "l2", "ip"]
Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]
_Hits = tuple[Rows, NDArray[np.float32]]  # of one query: rows and their scores, best first
_NO_HITS: _Hits = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))

HNSW_BUILD_BREADTH = 100
IVF_POINTS_PER_CENTRE = 64  # of a sample, for k-means; with more of them or more rounds lists are hardly better
IVF_ROUNDS = 10
EXACT_BELOW_ITEMS = 20_000
EXACT_BELOW_SHARE = 0.15  # of a graph, whose walk misses what lies far off, and of codes that are all looked at
COMPARED_FROM_SHARE = 0.2
LEAST_REFINED = 64
BLAS_FROM_QUERIES = 8
NORM_TOLERANCE = 1e-2
BLOCK_ROWS = 65_536
MOST_COMPARED = 1 << 24  # scores kept at a time, 64 MiB

# A truncated file can kill the process that maps it, so each file ends with this and the length of what is before it.
_TRAILER = struct.Struct("<8sQ")
_MAGIC = b"RAYSYSVX"

# From about this many queries x dimensions on, one matrix product beats a loop over the queries; FAISS's own value
# loops up to 128,000 (64 queries against 50,000 x 384 on one core: 267 ms, with this 39 ms).
faiss.cvar.distance_compute_blas_threshold = min(faiss.cvar.distance_compute_blas_threshold, 1_536)

_threads: int | None = None


def set_threads(n: int) -> None:
    """How many threads each search and build may use, from whichever thread it is called."""
    global _threads
    _threads = n


def _apply_threads() -> None:
    if _threads is not None:
        faiss.omp_set_num_threads(_threads)  # OpenMP keeps this number per calling thread


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The hits of each query, best first, equal scores by row.

    rows, scores: one [m] int32 and one [m] float32 array a query, m <= k. exact: nothing better was missed.
    compared: one [n] float32 array a query, the scores of all rows, where the search had to work them out anyway.
    """

    rows: list[NDArray[np.int32]]
    scores: list[NDArray[np.float32]]
    exact: bool
    compared: list[NDArray[np.float32]] | None = None


def build(
    vectors: Vectors, kind: str, metric: Metric, flat_below: int, centres: Vectors | None = None
) -> "VectorIndex":
    """An index over [n, dim] float32 vectors, which it keeps. Zero vectors are left out.

    centres: those of the lists of another index over the same vectors, so that they need not be found again.

    Raises EncoderError that names the first row that is not finite, or not normalised where the metric is cosine.
    """
    _apply_threads()
    squares = _squared_norms(vectors)
    if metric == "cosine":
        _check_normalised(squares)
    rows = np.flatnonzero(squares)
    chosen = choose_kind(len(rows), kind, flat_below)
    core = _empty_index(chosen, vectors.shape[1], len(rows), metric)
    complete = len(rows) == len(vectors)
    known = vectors if complete else vectors[rows]
    if centres is not None and layout_of(chosen) == "ivf":
        core.quantizer.add(centres)
    if not core.is_trained:
        core.train(known)
    index = core if complete else faiss.IndexIDMap(core)
    if complete:
        index.add(known)
    else:
        index.add_with_ids(known, rows)
    return VectorIndex(index, vectors, metric, default_effort(chosen, len(rows)))


def _squared_norms(vectors: Vectors) -> NDArray[np.float32]:
    """[n] float32. Raises EncoderError for the first row with a NaN, an infinity, or a norm beyond float32."""
    squares = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        squares[start : start + len(block)] = _squares(block)
    wrong = np.flatnonzero(~np.isfinite(squares))
    if len(wrong):
        message = f"the vector of row {wrong[0]} is not finite ({len(wrong)} of {len(vectors)} rows are not)"
        raise EncoderError(f"{message}; encode these items again")
    return squares


def _squares(vectors: Vectors) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        squares: NDArray[np.float32] = np.einsum("nd,nd->n", vectors, vectors)
    return squares


def _check_normalised(squares: NDArray[np.float32]) -> None:
    wrong = np.flatnonzero((squares != 0) & (np.abs(np.sqrt(squares) - 1) > NORM_TOLERANCE))
    if len(wrong):
        norm = math.sqrt(squares[wrong[0]])
        message = f"the vector of row {wrong[0]} has length {norm:.4g}, but the metric is cosine"
        raise EncoderError(f"{message}; set encoder.normalize, or index.metric to ip")


def _empty_index(kind: Kind, dim: int, n: int, metric: Metric) -> Any:
    build_layout = {"flat": _empty_flat, "ivf": _empty_ivf, "hnsw": _empty_hnsw}[layout_of(kind)]
    return build_layout(codes_of(kind), dim, n, metric)


def _empty_flat(codes: str, dim: int, n: int, metric: Metric) -> Any:
    metric_type = _metric_type(metric)
    return (
        faiss.IndexFlat(dim, metric_type)
        if codes == "fp32"
        else faiss.IndexScalarQuantizer(dim, _scalar(codes), metric_type)
    )


def _empty_hnsw(codes: str, dim: int, n: int, metric: Metric) -> Any:
    metric_type = _metric_type(metric)
    if codes == "fp32":
        index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, metric_type)
    else:
        index = faiss.IndexHNSWSQ(dim, _scalar(codes), HNSW_LINKS, metric_type)
    index.hnsw.efConstruction = HNSW_BUILD_BREADTH
    return index


def _empty_ivf(codes: str, dim: int, n: int, metric: Metric) -> Any:
    metric_type, lists = _metric_type(metric), ivf_lists(n)
    centres = faiss.IndexFlat(dim, metric_type)
    if codes == "fp32":
        index = faiss.IndexIVFFlat(centres, dim, lists, metric_type)
    elif codes == "pq":
        index = faiss.IndexIVFPQFastScan(centres, dim, lists, pq_codes(dim), PQ_BITS, metric_type)
        index.pq.cp.min_points_per_centroid = 1
    elif codes == "rabitq":
        index = faiss.IndexIVFRaBitQ(centres, dim, lists, metric_type)
    else:
        index = faiss.IndexIVFScalarQuantizer(centres, dim, lists, _scalar(codes), metric_type)
    index.cp.spherical = metric != "l2"
    index.cp.min_points_per_centroid = 1  # ``ivf_lists`` has seen to it
    index.cp.max_points_per_centroid = IVF_POINTS_PER_CENTRE
    index.cp.niter = IVF_ROUNDS
    return index


def _scalar(codes: str) -> int:
    return int({"fp16": faiss.ScalarQuantizer.QT_fp16, "sq8": faiss.ScalarQuantizer.QT_8bit}[codes])


def _metric_type(metric: str) -> int:
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


class VectorIndex:
    """An immutable index over the vectors of one shard. Safe to search from several threads."""

    def __init__(self, index: Any, vectors: Vectors, metric: Metric, effort: Effort) -> None:
        """``index``: a FAISS index, or an IndexIDMap over one where rows were left out. See ``build`` and ``load``."""
        self.metric: Metric = metric
        self.effort = effort
        self._index = index
        self._vectors = np.ascontiguousarray(vectors)  # a plain view: np.memmap is slow to index
        self._rows: NDArray[np.int64] | None = None
        if isinstance(index, faiss.IndexIDMap):
            self._rows = faiss.vector_to_array(index.id_map)
            index = index.index
        self._core = faiss.downcast_index(index)
        self.kind: Kind = _kind_of(self._core)
        self._lists = int(self._core.nlist) if layout_of(self.kind) == "ivf" else 1
        self.n_indexed = int(self._core.ntotal)  # rows that can be found: those with a text

    def __len__(self) -> int:
        """How many rows there are, those without text included."""
        return len(self._vectors)

    @property
    def dim(self) -> int:
        return int(self._core.d)

    @property
    def centres(self) -> Vectors | None:
        """[lists, dim] float32: those of the inverted lists, where there are any."""
        if layout_of(self.kind) != "ivf":
            return None
        found: Vectors = self._core.quantizer.reconstruct_n(0, self._core.nlist)
        return found

    def with_effort(self, effort: Effort) -> "VectorIndex":
        """The same index, searched this hard where a search says nothing else."""
        return VectorIndex(self._index, self._vectors, self.metric, effort)

    def search(
        self, queries: Vectors, k: int, allowed: Mask | None = None, effort: Effort | None = None
    ) -> SearchResult:
        """The k best rows of each query: queries [q, dim] float32; allowed: [n] bool, None = all rows.

        Fewer than k come back where fewer are allowed. effort: None = that of the index. Raises InvalidInput for a k
        below 1, and for queries or a mask that have the wrong shape or are not finite.
        """
        queries = self._checked(queries)
        if k < 1:
            raise InvalidInput("k", f"must be at least 1, but is {k}")
        inside = self._inside(allowed)
        n_allowed = self.n_indexed if inside is None else int(np.count_nonzero(inside))
        if self.kind == "flat" or not n_allowed:
            return self._exact(queries, k, self._searched(inside))
        k = min(k, n_allowed)
        wider = (effort or self.effort).for_hits(k, n_allowed / self.n_indexed)
        if inside is not None and n_allowed < self._compared_below(wider):
            return self._exact(queries, k, self._searched(inside))
        _apply_threads()
        return self._approximate(queries, k, inside, wider)

    def search_once(self, queries: Vectors, k: int, effort: Effort, allowed: Mask | None = None) -> SearchResult:
        """As ``search``, by this effort and nothing else: there may be too few hits."""
        if self.kind == "flat":
            return self.search(queries, k, allowed)
        _apply_threads()
        inside = self._inside(allowed)
        share = 1.0 if inside is None else float(np.mean(inside))
        hits = self._hits(self._checked(queries), k, inside, effort.for_hits(k, max(share, 1e-9)))
        return SearchResult([rows for rows, _ in hits], [scores for _, scores in hits], exact=False)

    def search_exactly(self, queries: Vectors, k: int, allowed: Mask | None = None) -> SearchResult:
        """As ``search`` of a flat index over the same vectors: the truth that others are measured by."""
        return self._exact(self._checked(queries), k, self._searched(self._inside(allowed)))

    def _compared_below(self, effort: Effort) -> float:
        """Of fewer allowed vectors than this each is compared: that is faster than to search among the others."""
        if layout_of(self.kind) != "ivf":
            return max(EXACT_BELOW_ITEMS, EXACT_BELOW_SHARE * self.n_indexed)
        probed = min(effort.breadth / self._lists, 1.0) * self.n_indexed
        return max(EXACT_BELOW_ITEMS, probed / CODES_PER_VECTOR)

    def _searched(self, inside: Mask | None) -> NDArray[np.intp] | None:
        """The rows that the mask lets pass, ascending; None = all rows."""
        if inside is None:
            return self._rows
        return np.flatnonzero(inside) if self._rows is None else self._rows[inside]

    # Every allowed vector compared

    def _exact(self, queries: Vectors, k: int, searched: NDArray[np.intp] | None) -> SearchResult:
        """The hits among the rows ``searched``, None = all rows.

        One product after the other takes FAISS half the time of its flat search, the choice of the best included, and
        whoever ranks needs the scores of other rows as well. In one array with many queries BLAS is faster still.
        """
        n = len(self) if searched is None else len(searched)
        if len(queries) >= BLAS_FROM_QUERIES and len(queries) * n > MOST_COMPARED:
            return self._exact_in_blocks(queries, k, searched)
        most = n >= COMPARED_FROM_SHARE * len(self) and len(queries) * len(self) <= MOST_COMPARED
        keeps = most and self.kind == "flat" and self.metric != "l2"
        rows, scores, compared = [], [], []
        for query in queries:
            near = self._nearness(query, None if keeps else searched)
            compared.append(near)
            known = near[searched] if keeps and searched is not None else near
            at = _k_best(known, k if query.any() else 0)
            found = at if searched is None else searched[at]
            hits = self._ranked(query, found.astype(np.int32), known[at], k)
            rows.append(hits[0])
            scores.append(hits[1])
        return SearchResult(rows, scores, exact=True, compared=compared if keeps else None)

    def _nearness(self, query: Vectors, rows: NDArray[np.intp] | None) -> NDArray[np.float32]:
        """[m] float32, higher is nearer, for these rows, None = all: inner products, or squared distances below 0."""
        if rows is not None:
            return self._nearness_at(query[None], rows).ravel()
        if self.metric != "l2":
            return inner_products(query, self._vectors)
        return -_with_all(faiss.fvec_L2sqr_ny, query, self._vectors)

    def _nearness_at(self, queries: Vectors, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """[q, m] float32 as ``_nearness``, for the rows of each query, [q, m], or [m] for all."""
        compare = faiss.fvec_inner_products_by_idx if self.metric != "l2" else faiss.fvec_L2sqr_by_idx
        near = _by_row(compare, queries, self._vectors, rows)
        return near if self.metric != "l2" else -near

    def _exact_in_blocks(self, queries: Vectors, k: int, searched: NDArray[np.intp] | None) -> SearchResult:
        """As ``_exact``, by matrix products over some rows at a time; without gaps FAISS takes its own pieces."""
        _apply_threads()
        n = len(self) if searched is None else len(searched)
        size = max(n, 1) if searched is None else BLOCK_ROWS
        parts = []
        for start in range(0, n, size):
            rows = np.arange(n) if searched is None else searched[start : start + size]
            block = self._vectors if searched is None else self._vectors[rows]
            distances, at = self._knn(queries, block, min(k, len(rows)))
            parts.append((distances if self.metric != "l2" else -distances, rows[at]))
        near, found = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        hits = [
            self._ranked(query, rows.astype(np.int32), scores, k if query.any() else 0)
            for query, rows, scores in zip(queries, found, near, strict=True)
        ]
        return SearchResult([rows for rows, _ in hits], [scores for _, scores in hits], exact=True)

    def _knn(self, queries: Vectors, vectors: Vectors, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """At least k hits, and every hit that is as good as the k-th: which of those stay is decided by row."""
        fetched = min(k + 1, len(vectors))
        while True:
            distances, ids = faiss.knn(queries, vectors, fetched, metric=_metric_type(self.metric))
            if fetched == len(vectors) or not (distances[:, k - 1] == distances[:, -1]).any():
                return distances, ids
            fetched = min(2 * fetched, len(vectors))

    def _ranked(
        self, query: Vectors, rows: Rows, near: NDArray[np.float32], k: int
    ) -> tuple[Rows, NDArray[np.float32]]:
        """(rows, scores) of the k best of these, by score, then by row."""
        # FAISS's squared distances lose the small differences when it works by matrix product
        scores = self.score_rows(query[None], rows)[0] if self.metric == "l2" else near
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    # By the index

    def _approximate(self, queries: Vectors, k: int, inside: Mask | None, effort: Effort) -> SearchResult:
        """By the index, and exactly for those queries for which that does not find k."""
        hits = self._hits(queries, k, inside, effort)
        asking: Mask = np.any(queries, axis=1)
        left = [at for at, (rows, _) in enumerate(hits) if asking[at] and len(rows) < k]
        if left:
            exact = self._exact(queries[left], k, self._searched(inside))
            for at, its_hits in zip(left, zip(exact.rows, exact.scores, strict=True), strict=True):
                hits[at] = its_hits
        all_exact = len(left) == np.count_nonzero(asking)
        found = [its_hits if asks else _NO_HITS for its_hits, asks in zip(hits, asking, strict=True)]
        return SearchResult([rows for rows, _ in found], [scores for _, scores in found], exact=bool(all_exact))

    def _hits(self, queries: Vectors, k: int, inside: Mask | None, effort: Effort) -> list[_Hits]:
        """(rows, scores) of each query, k at most."""
        fetched = k if effort.refined == 1 else max(effort.refined * k, LEAST_REFINED)
        fetched = min(fetched, self.n_indexed)
        _, ids = self._core.search(queries, fetched, params=self._parameters(effort, fetched, inside))
        kept = ids >= 0
        if inside is not None:
            kept &= inside[ids]  # also where the index was told: some versions of FAISS let a few through
        rows = np.maximum(ids, 0)
        rows = rows if self._rows is None else self._rows[rows]
        near = self._nearness_at(queries, rows)
        return [
            self._ranked(query, at[keep].astype(np.int32), scores[keep], k)
            for query, at, scores, keep in zip(queries, rows, near, kept, strict=True)
        ]

    def _parameters(self, effort: Effort, fetched: int, passed: Mask | None) -> Any:
        """For one call, and nothing is set on the index: other threads may be searching it otherwise."""
        hnsw = layout_of(self.kind) == "hnsw"
        breadth = max(effort.breadth, fetched) if hnsw else min(max(effort.breadth, 1), self._lists)
        if passed is None:
            return _unfiltered(self.kind, breadth)
        return _parameters(self.kind, breadth, sel=faiss.IDSelectorBitmap(np.packbits(passed, bitorder="little")))

    def score_rows(self, queries: Vectors, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """[q, m] float32: the score that ``search`` gives for each query, [q, dim], and these rows, [m] integers."""
        queries = self._checked(queries)
        if self.metric != "l2":
            return self._nearness_at(queries, rows)
        vectors = self._vectors[rows]
        distances = np.stack([np.linalg.norm(vectors - query, axis=1) for query in queries])
        has_text = np.any(vectors != 0, axis=1) & np.any(queries != 0, axis=1)[:, None]
        return np.where(has_text, 1 / (1 + distances), 0).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the index so that a reader sees all of it or nothing. Raises SnapshotError when the disk refuses."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            faiss.write_index(self._index, str(temporary))
            with temporary.open("ab") as file:
                file.write(_TRAILER.pack(_MAGIC, file.tell()))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # FAISS says RuntimeError when a disk is full
            temporary.unlink(missing_ok=True)
            raise SnapshotError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: Path, vectors: Vectors, kind: str, metric: str, effort: Effort | None = None) -> "VectorIndex":
        """Map an index read-only beside its vectors, [n, dim] float32, memory-mapped or not. effort: None = as where
        nothing was measured.

        Raises SnapshotError when the file is missing, damaged, or not the index of these vectors.
        """
        _check_whole(path)
        try:
            raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise SnapshotError(f"{path} is not an index that FAISS {faiss.__version__} reads: {error}") from error
        if metric not in get_args(Metric):
            raise SnapshotError(f"{path} is said to have the metric {metric!r}, which this version does not know")
        index = cls(raw, vectors, cast(Metric, metric), Effort(0, 1))
        index._check_against(path, kind)
        return index.with_effort(default_effort(index.kind, index.n_indexed) if effort is None else effort)

    def _check_against(self, path: Path, kind: str) -> None:
        n, dim = self._vectors.shape
        last_row = self._core.ntotal - 1 if self._rows is None else int(self._rows.max(initial=-1))
        fits = last_row == n - 1 if self._rows is None else last_row < n
        found = (self.kind, self.dim, self._core.metric_type)
        if not fits or found != (kind, dim, _metric_type(self.metric)):
            raise SnapshotError(
                f"{path} holds {self._core.ntotal} vectors of {self.dim} dimensions in a {self.kind} index, which does "
                f"not fit the {n} vectors of {dim} dimensions, kind {kind} and metric {self.metric} of its shard"
            )

    def _checked(self, queries: Vectors) -> Vectors:
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InvalidInput("query", f"must be [q, {self.dim}] float32, but has the shape {list(queries.shape)}")
        if not (np.isfinite(np.vdot(queries, queries)) or np.isfinite(_squares(queries)).all()):
            # with both lengths finite, no inner product can overflow
            raise InvalidInput("query", "must be finite, but holds a NaN, an infinity or a number beyond float32")
        return np.ascontiguousarray(queries, dtype=np.float32)

    def _inside(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """The mask over what is indexed, [ntotal] bool; None where it lets all of that pass."""
        if allowed is None:
            return None
        if allowed.shape != (len(self),) or allowed.dtype != np.bool_:
            shape = f"{list(allowed.shape)} {allowed.dtype}"
            raise InvalidInput("allowed", f"must be [{len(self)}] bool, but is {shape}")
        inside = allowed if self._rows is None else allowed[self._rows]
        return None if inside.all() else inside


@lru_cache(maxsize=1_024)
def _unfiltered(kind: Kind, breadth: int) -> Any:
    return _parameters(kind, breadth)


def _parameters(kind: Kind, breadth: int, **selector: Any) -> Any:
    layout = layout_of(kind)
    if layout == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=breadth, **selector)
    if layout == "flat":
        return faiss.SearchParameters(**selector)
    of_lists = faiss.IVFRaBitQSearchParameters if kind == "ivf_rabitq" else faiss.SearchParametersIVF
    return of_lists(nprobe=breadth, **selector)


def _kind_of(core: Any) -> Kind:
    """The kind of a FAISS index that ``_empty_index`` has made."""
    layout = "hnsw" if isinstance(core, faiss.IndexHNSW) else "ivf" if isinstance(core, faiss.IndexIVF) else "flat"
    kept = faiss.downcast_index(core.storage) if layout == "hnsw" else core
    if isinstance(kept, (faiss.IndexScalarQuantizer, faiss.IndexIVFScalarQuantizer)):
        codes = "_fp16" if kept.sq.qtype == faiss.ScalarQuantizer.QT_fp16 else "_sq8"
    elif isinstance(kept, faiss.IndexIVFPQFastScan):
        codes = "_pq"
    else:
        codes = "_rabitq" if isinstance(kept, faiss.IndexIVFRaBitQ) else ""
    return cast(Kind, layout + codes)


def inner_products(query: Vectors, vectors: Vectors) -> NDArray[np.float32]:
    """[n] float32 for [dim] and [n, dim] float32, both contiguous. Equal rows get equal products, unlike from BLAS.

    In any array: but for dimensions 1, 2, 4, 8 and 12, where FAISS adds up the last rows in another order.
    """
    return _with_all(faiss.fvec_inner_products_ny, query, vectors)


def _with_all(compare: Callable[..., None], query: Vectors, vectors: Vectors) -> NDArray[np.float32]:
    """[n] float32: what FAISS's function ``compare`` gives for the query and each vector."""
    near = np.empty(len(vectors), dtype=np.float32)
    pointers = (faiss.swig_ptr(array) for array in (near, query, vectors))
    compare(*pointers, vectors.shape[1], len(vectors))
    return near


def _k_best(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Positions of the k highest scores, highest first, equal ones by position."""
    at = highest(scores, max(k, 1))
    best: NDArray[np.intp] = at[np.argsort(-scores[at], kind="stable")[:k]]
    return best


def _by_row(
    compare: Callable[..., None], queries: Vectors, vectors: Vectors, rows: NDArray[Any]
) -> NDArray[np.float32]:
    """[q, m] float32: what FAISS's function ``compare`` gives for each query and its rows, [q, m] or [m] for all."""
    if rows.ndim == 1:
        rows = np.broadcast_to(rows, (len(queries), len(rows)))
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    near = np.empty(rows.shape, dtype=np.float32)
    pointers = (faiss.swig_ptr(array) for array in (near, queries, vectors, rows))
    compare(*pointers, vectors.shape[1], *rows.shape)
    return near


def _check_whole(path: Path) -> None:
    """Raises SnapshotError when the file is missing, or not as long as it says at its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) - _TRAILER.size
            file.seek(max(size, 0))
            trailer = file.read()
    except OSError as error:
        raise SnapshotError(f"{path} cannot be opened: {error}") from error
    if size < 0 or trailer != _TRAILER.pack(_MAGIC, size):
        raise SnapshotError(f"{path} is damaged or was not written by Raysys; build the snapshot again")
