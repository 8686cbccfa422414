"""FAISS, wrapped once: this is the only module that imports it.

A vector is known by its row. Higher scores are better: the inner product for ``cosine`` and ``ip`` (cosine takes
L2-normalised vectors), ``1 / (1 + Euclidean distance)`` for ``l2``. A zero vector means "no text": as an item it is
never found, as a query it finds nothing, and its score is 0.

``flat`` compares with every vector. ``hnsw`` and ``ivf`` are approximate, and fall back to an exact search where they
would be poor: when a mask leaves few items, or when fewer hits come back than there should be.
"""

import math
import os
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import faiss as untyped_faiss
import numpy as np
from numpy.typing import NDArray

from raysys.errors import EncoderError, InvalidInput, SnapshotError
from raysys.types import Vectors

faiss: Any = untyped_faiss  # the stubs it brings lag behind what it does

Kind = Literal["flat", "ivf", "hnsw"]
Metric = Literal["cosine", "l2", "ip"]
Hits = tuple[NDArray[np.float32], NDArray[np.int64]]  # what FAISS answers: distances, ids; both [q, k], best first

HNSW_LINKS = 32
HNSW_BUILD_BREADTH = 100
HNSW_LEAST_BREADTH = 128
IVF_POINTS_PER_LIST = 39  # FAISS warns below this
IVF_PROBED_SHARE = 1 / 8
IVF_LEAST_PROBED = 8
EXACT_BELOW_ITEMS = 20_000
EXACT_BELOW_SHARE = 0.05
GATHER_FROM_QUERIES = 8
NORM_TOLERANCE = 1e-2
CHECK_BLOCK_ROWS = 65_536
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


def choose_kind(n: int, kind: str, flat_below: int) -> Kind:
    """The kind of index for n vectors: the one asked for; for ``auto`` flat up to ``flat_below``, HNSW above.

    No vectors are always flat. Raises InvalidInput for a kind that does not exist.
    """
    if kind == "auto":
        return "flat" if n <= flat_below else "hnsw"
    if kind not in get_args(Kind):
        raise InvalidInput("index.kind", f"must be auto, flat, ivf or hnsw, but is {kind!r}")
    return "flat" if n == 0 else cast(Kind, kind)


def ivf_lists(n: int) -> int:
    """How many lists an IVF index over n vectors has: 4 sqrt(n), fewer where a list would get too little to learn."""
    return max(1, min(4 * math.isqrt(n), n // IVF_POINTS_PER_LIST))


def build(vectors: Vectors, kind: str, metric: Metric, flat_below: int) -> "VectorIndex":
    """An index over [n, dim] float32 vectors, which it keeps. Zero vectors are left out.

    Raises EncoderError that names the first row that is not finite, or not normalised where the metric is cosine.
    """
    _apply_threads()
    squares = _squared_norms(vectors)
    if metric == "cosine":
        _check_normalised(squares)
    rows = np.flatnonzero(squares)
    core = _empty_index(choose_kind(len(rows), kind, flat_below), vectors.shape[1], len(rows), metric)
    complete = len(rows) == len(vectors)
    known = vectors if complete else vectors[rows]
    if not core.is_trained:
        core.train(known)
    index = core if complete else faiss.IndexIDMap(core)
    if complete:
        index.add(known)
    else:
        index.add_with_ids(known, rows)
    return VectorIndex(index, vectors, metric)


def _squared_norms(vectors: Vectors) -> NDArray[np.float32]:
    """[n] float32. Raises EncoderError for the first row with a NaN, an infinity, or a norm beyond float32."""
    squares = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), CHECK_BLOCK_ROWS):
        block = vectors[start : start + CHECK_BLOCK_ROWS]
        with np.errstate(all="ignore"):
            squares[start : start + len(block)] = np.einsum("nd,nd->n", block, block)
    wrong = np.flatnonzero(~np.isfinite(squares))
    if len(wrong):
        message = f"the vector of row {wrong[0]} is not finite ({len(wrong)} of {len(vectors)} rows are not)"
        raise EncoderError(f"{message}; encode these items again")
    return squares


def _check_normalised(squares: NDArray[np.float32]) -> None:
    wrong = np.flatnonzero((squares != 0) & (np.abs(np.sqrt(squares) - 1) > NORM_TOLERANCE))
    if len(wrong):
        norm = math.sqrt(squares[wrong[0]])
        message = f"the vector of row {wrong[0]} has length {norm:.4g}, but the metric is cosine"
        raise EncoderError(f"{message}; set encoder.normalize, or index.metric to ip")


def _empty_index(kind: Kind, dim: int, n: int, metric: Metric) -> Any:
    metric_type = _metric_type(metric)
    if kind == "hnsw":
        hnsw = faiss.IndexHNSWFlat(dim, HNSW_LINKS, metric_type)
        hnsw.hnsw.efConstruction = HNSW_BUILD_BREADTH
        return hnsw
    if kind == "ivf":
        ivf = faiss.IndexIVFFlat(faiss.IndexFlat(dim, metric_type), dim, ivf_lists(n), metric_type)
        ivf.cp.spherical = metric != "l2"
        ivf.cp.min_points_per_centroid = 1  # ``ivf_lists`` has seen to it
        return ivf
    return faiss.IndexFlat(dim, metric_type)


def _metric_type(metric: str) -> int:
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


class VectorIndex:
    """An immutable index over the vectors of one shard. Safe to search from several threads."""

    def __init__(self, index: Any, vectors: Vectors, metric: Metric) -> None:
        """``index``: a FAISS index, or an IndexIDMap over one where rows were left out. See ``build`` and ``load``."""
        self.metric: Metric = metric
        self._index = index
        self._vectors = np.ascontiguousarray(vectors)  # a plain view: np.memmap is slow to index
        self._rows: NDArray[np.int64] | None = None
        if isinstance(index, faiss.IndexIDMap):
            self._rows = faiss.vector_to_array(index.id_map)
            index = index.index
        self._core = faiss.downcast_index(index)

    def __len__(self) -> int:
        """How many rows there are, those without text included."""
        return len(self._vectors)

    @property
    def dim(self) -> int:
        return int(self._core.d)

    @property
    def kind(self) -> Kind:
        if isinstance(self._core, faiss.IndexHNSWFlat):
            return "hnsw"
        return "ivf" if isinstance(self._core, faiss.IndexIVFFlat) else "flat"

    def search(self, queries: Vectors, k: int, allowed: NDArray[np.bool_] | None = None) -> SearchResult:
        """The k best rows of each query: queries [q, dim] float32; allowed: [n] bool, None = all rows.

        Fewer than k come back where fewer are allowed. Raises InvalidInput for a k below 1, and for queries or a mask
        that have the wrong shape or are not finite.
        """
        queries = self._checked(queries)
        if k < 1:
            raise InvalidInput("k", f"must be at least 1, but is {k}")
        if self.kind == "flat" and self.metric != "l2" and len(queries) * len(self) <= MOST_COMPARED:
            return self._compare_with_all(queries, k, self._searched(allowed))
        inside = self._inside(allowed)
        n_allowed = self._core.ntotal if inside is None else int(np.count_nonzero(inside))
        asking = np.flatnonzero(queries.any(axis=1))
        rows = [np.empty(0, dtype=np.int32) for _ in queries]
        scores = [np.empty(0, dtype=np.float32) for _ in queries]
        if n_allowed == 0 or len(asking) == 0:
            return SearchResult(rows, scores, exact=True)
        _apply_threads()
        k = min(k, n_allowed)
        (distances, ids), exact = self._find(queries[asking], k, inside, n_allowed)
        for at, query in enumerate(asking):
            rows[query], scores[query] = self._ranked(queries[query], distances[at], ids[at], k)
        return SearchResult(rows, scores, exact)

    def _compare_with_all(self, queries: Vectors, k: int, searched: NDArray[np.intp] | None) -> SearchResult:
        """The hits among the rows ``searched``, None = all, from the scores of all rows.

        One product after the other takes FAISS half the time of its flat search, the choice of the best included, and
        whoever ranks needs the scores of other rows as well.
        """
        compared = [inner_products(query, self._vectors) for query in queries]
        known = [scores if searched is None else scores[searched] for scores in compared]
        best = [_k_best(scores, k if query.any() else 0) for query, scores in zip(queries, known, strict=True)]
        rows = [(at if searched is None else searched[at]).astype(np.int32) for at in best]
        return SearchResult(rows, [s[at] for s, at in zip(known, best, strict=True)], exact=True, compared=compared)

    def _searched(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.intp] | None:
        """The rows with a text that the mask lets pass, ascending; None = all rows."""
        inside = self._inside(allowed)
        if inside is None:
            return self._rows
        return np.flatnonzero(inside) if self._rows is None else self._rows[inside]

    def score_rows(self, queries: Vectors, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """[q, m] float32: the score that ``search`` gives for each query, [q, dim], and these rows, [m] integers."""
        queries = self._checked(queries)
        vectors = self._vectors[rows]
        if self.metric != "l2":
            return np.asarray(queries @ vectors.T, dtype=np.float32)
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
    def load(cls, path: Path, vectors: Vectors, kind: str, metric: str) -> "VectorIndex":
        """Map an index read-only beside its vectors, [n, dim] float32, memory-mapped or not.

        Raises SnapshotError when the file is missing, damaged, or not the index of these vectors.
        """
        _check_whole(path)
        try:
            raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise SnapshotError(f"{path} is not an index that FAISS {faiss.__version__} reads: {error}") from error
        if metric not in get_args(Metric):
            raise SnapshotError(f"{path} is said to have the metric {metric!r}, which this version does not know")
        index = cls(raw, vectors, cast(Metric, metric))
        index._check_against(path, kind)
        return index

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
        with np.errstate(all="ignore"):
            lengths = np.einsum("qd,qd->q", queries, queries)
        if not np.isfinite(lengths).all():  # with both lengths finite, no inner product can overflow
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

    def _find(self, queries: Vectors, k: int, inside: NDArray[np.bool_] | None, n_allowed: int) -> tuple[Hits, bool]:
        """The hits, ids inside the FAISS index, and whether they are exact."""
        selective = inside is not None and n_allowed < max(EXACT_BELOW_ITEMS, EXACT_BELOW_SHARE * self._core.ntotal)
        if self.kind != "flat" and not selective:
            distances, ids = self._core.search(queries, k, params=self._approximate(k, inside))
            if inside is not None:
                ids[~inside[ids]] = -1  # some versions of FAISS let a few through
            if (ids >= 0).all():
                return (distances, ids), False
        return _without_ties_at_the_end(self._exact(queries, inside), k, n_allowed), True

    def _approximate(self, k: int, inside: NDArray[np.bool_] | None) -> Any:
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(HNSW_LEAST_BREADTH, 2 * k), **_selector(inside))
        probed = max(IVF_LEAST_PROBED, math.ceil(IVF_PROBED_SHARE * self._core.nlist))
        return faiss.SearchParametersIVF(nprobe=min(probed, self._core.nlist), **_selector(inside))

    def _exact(self, queries: Vectors, inside: NDArray[np.bool_] | None) -> Callable[[int], Hits]:
        """A search that compares with every vector inside, as a function of k."""
        if inside is not None and len(queries) >= GATHER_FROM_QUERIES:
            return self._exact_gathered(queries, inside)
        if self.kind == "ivf":
            params = faiss.SearchParametersIVF(nprobe=self._core.nlist, **_selector(inside))
            return lambda k: self._core.search(queries, k, params=params)
        flat = faiss.downcast_index(self._core.storage) if self.kind == "hnsw" else self._core
        params = faiss.SearchParameters(**_selector(inside))
        return lambda k: flat.search(queries, k, params=params)

    def _exact_gathered(self, queries: Vectors, inside: NDArray[np.bool_]) -> Callable[[int], Hits]:
        """As ``_exact``: a copy of the vectors inside, and one matrix product. FAISS loops where it has a mask."""
        ids = np.flatnonzero(inside)
        vectors = self._vectors[ids if self._rows is None else self._rows[ids]]

        def search(k: int) -> Hits:
            distances, at = faiss.knn(queries, vectors, k, metric=_metric_type(self.metric))
            return distances, ids[at]

        return search

    def _ranked(
        self, query: Vectors, distances: NDArray[np.float32], ids: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(rows, scores) of the k best, by score, then by row."""
        rows = (ids if self._rows is None else self._rows[ids]).astype(np.int32)
        # FAISS's squared distances lose the small differences when it works by matrix product
        scores = self.score_rows(query[None], rows)[0] if self.metric == "l2" else distances
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]


def inner_products(query: Vectors, vectors: Vectors) -> NDArray[np.float32]:
    """[n] float32 for [dim] and [n, dim] float32, both contiguous. Equal rows get equal products, unlike from BLAS.

    In any array: but for dimensions 1, 2, 4, 8 and 12, where FAISS adds up the last rows in another order.
    """
    products = np.empty(len(vectors), dtype=np.float32)
    pointers = (faiss.swig_ptr(array) for array in (products, query, vectors))
    faiss.fvec_inner_products_ny(*pointers, vectors.shape[1], len(vectors))
    return products


def _k_best(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Positions of the k highest scores, highest first, equal ones by position."""
    at = np.arange(len(scores))
    if len(scores) > k > 0:
        at = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    best: NDArray[np.intp] = at[np.argsort(-scores[at], kind="stable")[:k]]
    return best


def _selector(inside: NDArray[np.bool_] | None) -> dict[str, Any]:
    return {} if inside is None else {"sel": faiss.IDSelectorBitmap(np.packbits(inside, bitorder="little"))}


def _without_ties_at_the_end(search: Callable[[int], Hits], k: int, n: int) -> Hits:
    """At least k hits of n, and every hit that is as good as the k-th: which of those stay is decided by row."""
    fetched = min(k + 1, n)
    while True:
        distances, ids = search(fetched)
        if fetched == n or not (distances[:, k - 1] == distances[:, -1]).any():
            return distances, ids
        fetched = min(2 * fetched, n)


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
