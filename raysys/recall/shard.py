"""One shard at work: filters, candidate sources and first scores, where the data is.

Every candidate is scored by every source, whichever source put it forward, so that a ranker never has to guess
whether a missing score means "low" or "not looked at".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.index.shard_files import ShardFiles, rows_of
from raysys.types import POPULAR, PROFILE, QUERY, SOURCES, TRANSITION, Candidates, RecallQuery, Vectors

Rows = NDArray[np.integer]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Scope:
    """What one request may see of the shard: ``allowed`` [n] bool (None = all), less the ``excluded`` rows."""

    allowed: Mask | None
    excluded: Rows

    def keep(self, rows: Rows) -> Mask:
        kept = ~np.isin(rows, self.excluded)
        return kept if self.allowed is None else kept & self.allowed[rows]


class Shard:
    """Recall over the items of one shard of one snapshot."""

    def __init__(self, number: int, files: ShardFiles) -> None:
        self.number = number
        self.files = files
        self.n_items = len(files.keys)

    def warm_up(self) -> None:
        """Open every file, so that the first request does not pay for it."""
        _ = (self.files.index, self.files.transition, self.files.attributes, self._by_popularity, self._always)

    def recall(self, queries: Sequence[RecallQuery]) -> list[Candidates]:
        """The candidates of each query. Raises InvalidInput for a filter that the catalogue cannot answer."""
        scopes = [self._scope(query) for query in queries]
        nearest = self._nearest(queries, scopes)
        return [self._collect(*work) for work in zip(queries, scopes, nearest, strict=True)]

    def _scope(self, query: RecallQuery) -> _Scope:
        rows = rows_of(self.files.keys, query.exclude_keys)
        allowed = self._available(query.now_s)
        if query.filter is not None:
            kept = self.files.attributes.mask(query.filter)
            allowed = kept if allowed is None else kept & allowed
        return _Scope(allowed, rows[rows >= 0])

    def _nearest(self, queries: Sequence[RecallQuery], scopes: Sequence[_Scope]) -> list[dict[int, tuple[Rows, bool]]]:
        """Rows near the query and profile vectors of each request, by source. Unfiltered searches share one call."""
        found: list[dict[int, tuple[Rows, bool]]] = [{} for _ in queries]
        shared: list[tuple[int, int, Vectors]] = []
        for i, (query, scope) in enumerate(zip(queries, scopes, strict=True)):
            for source, vector in ((QUERY, query.query), (PROFILE, query.profile)):
                if vector is None or query.only is not None:
                    continue
                if scope.allowed is None:
                    shared.append((i, source, vector))
                else:
                    found[i][source] = self._search(vector[None], query.k, [scope])[0]
        if shared:
            k = max(queries[i].k for i, _, _ in shared)
            answers = self._search(np.stack([v for _, _, v in shared]), k, [scopes[i] for i, _, _ in shared])
            for (i, source, _), (rows, exact) in zip(shared, answers, strict=True):
                found[i][source] = (rows[: queries[i].k], exact)
        return found

    def _search(self, vectors: Vectors, k: int, scopes: Sequence[_Scope]) -> list[tuple[Rows, bool]]:
        """The k nearest visible rows of each vector. Excluded rows are few: fetch that many more, then drop them."""
        extra = max(len(scope.excluded) for scope in scopes)
        result = self.files.index.search(np.ascontiguousarray(vectors), k + extra, scopes[0].allowed)
        return [(rows[scope.keep(rows)][:k], result.exact) for rows, scope in zip(result.rows, scopes, strict=True)]

    def _collect(self, query: RecallQuery, scope: _Scope, nearest: dict[int, tuple[Rows, bool]]) -> Candidates:
        transition_rows, transition_scores = self.files.transition.score(query.history_keys, query.history_weights)
        if query.only is not None:
            return self._only(query, scope, transition_rows, transition_scores)
        found = {source: rows for source, (rows, _) in nearest.items()}
        found[TRANSITION] = _top(transition_rows, transition_scores, scope, query.k)
        rows = np.unique(np.concatenate(list(found.values())))
        if len(rows) < query.k:  # popularity fills what the others leave open
            found[POPULAR] = self._popular(scope, query.k)
            rows = np.unique(np.concatenate([rows, found[POPULAR]]))
        scores = self._scores(query, rows, transition_rows, transition_scores)
        return self._candidates(rows, scores, _found_by(rows, found), all(exact for _, exact in nearest.values()))

    def _only(
        self, query: RecallQuery, scope: _Scope, transition_rows: Rows, transition_scores: NDArray[np.float32]
    ) -> Candidates:
        """Scores for the wanted items that live here and may be seen; each source that knows an item found it."""
        rows = rows_of(self.files.keys, np.unique(query.only)) if query.only is not None else np.empty(0, np.int64)
        rows = rows[rows >= 0]
        rows = rows[scope.keep(rows)]
        scores = self._scores(query, rows, transition_rows, transition_scores)
        bits = (scores != 0) @ (1 << np.arange(len(SOURCES))).astype(np.uint8)
        return self._candidates(rows, scores, bits.astype(np.uint8), exact=True)

    def _candidates(
        self, rows: Rows, scores: NDArray[np.float32], found_by: NDArray[np.uint8], exact: bool
    ) -> Candidates:
        return Candidates(
            shard=np.full(len(rows), self.number, dtype=np.int32),
            row=rows.astype(np.int32),
            key=np.asarray(self.files.keys[rows]),
            scores=scores,
            found_by=found_by,
            exact=exact,
        )

    def _scores(
        self, query: RecallQuery, rows: Rows, transition_rows: Rows, transition_scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        scores = np.zeros((len(rows), len(SOURCES)), dtype=np.float32)
        for source, vector in ((QUERY, query.query), (PROFILE, query.profile)):
            if vector is not None:
                scores[:, source] = self.files.index.score_rows(vector, rows)
        if len(transition_rows):
            at = rows_of(transition_rows, rows)  # type: ignore[arg-type]  # any sorted integers will do
            scores[:, TRANSITION] = np.where(at >= 0, transition_scores[at], 0)
        scores[:, POPULAR] = self.files.popularity[rows]
        return scores

    def _popular(self, scope: _Scope, k: int) -> Rows:
        """The k most popular visible rows, looked for in ever longer prefixes of the order by popularity."""
        order, length = self._by_popularity, k + len(scope.excluded)
        while True:
            rows = order[:length]
            rows = rows[scope.keep(rows)]
            if len(rows) >= k or length >= len(order):
                return rows[:k]
            length *= 8

    @cached_property
    def _by_popularity(self) -> Rows:
        order: Rows = np.argsort(-np.asarray(self.files.popularity), kind="stable")
        return order

    @cached_property
    def _always(self) -> Mask | None:
        """Rows that are not hidden; None when none is."""
        hidden = pc.fill_null(self.files.items["hidden"], False).to_numpy()
        return ~hidden if hidden.any() else None

    @cached_property
    def _window_s(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """From when until when each row is available, epoch seconds; None when all always are."""
        columns = [self.files.items[name] for name in ("available_from", "available_until")]
        if all(column.null_count == len(column) for column in columns):
            return None
        return _epoch_s(columns[0], -np.inf), _epoch_s(columns[1], np.inf)

    def _available(self, now_s: float) -> Mask | None:
        if self._window_s is None:
            return self._always
        begin, end = self._window_s
        within = (begin <= now_s) & (now_s < end)
        return within if self._always is None else within & self._always


def _epoch_s(column: pa.ChunkedArray, missing: float) -> NDArray[np.float64]:
    microseconds = pc.cast(column, pa.timestamp("us", "UTC")).cast(pa.int64()).cast(pa.float64(), safe=False)
    seconds: NDArray[np.float64] = pc.fill_null(pc.divide(microseconds, 1e6), missing).to_numpy()
    return seconds


def _top(rows: Rows, scores: NDArray[np.float32], scope: _Scope, k: int) -> Rows:
    """The k visible rows of highest score, ties by key: row order is key order."""
    visible = scope.keep(rows)
    rows, scores = rows[visible], scores[visible]
    order = np.argsort(-scores, kind="stable")[:k]
    top: Rows = rows[order].astype(np.int64)
    return top


def _found_by(rows: Rows, found: dict[int, Rows]) -> NDArray[np.uint8]:
    """One bit a source, set on the rows that it put forward."""
    bits = np.zeros(len(rows), dtype=np.uint8)
    for source, its_rows in found.items():
        bits[np.searchsorted(rows, its_rows)] |= np.uint8(1 << source)
    return bits
