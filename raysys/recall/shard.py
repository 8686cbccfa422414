"""One shard at work: filters, candidate sources and first scores, where the data is.

Every candidate is scored by every source, whichever source put it forward, so that a ranker never has to guess
whether a missing score means "low" or "not looked at".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.index.shard_files import ShardFiles, rows_of
from raysys.types import POPULAR, PROFILE, QUERY, SOURCES, TRANSITION, Candidates, RecallQuery, Vectors

Rows = NDArray[np.integer]
Mask = NDArray[np.bool_]
# (filter, id of what is available) -> (what is available, what is allowed); holding the first keeps its id its own
_Masks = dict[tuple[Any, int], tuple[Mask | None, Mask | None]]


@dataclass(frozen=True, eq=False)
class _Scope:
    """What one request may see of the shard: ``allowed`` [n] bool (None = all), less the ``excluded`` rows, sorted."""

    allowed: Mask | None
    excluded: Rows

    def keep(self, rows: Rows) -> Mask:
        kept = rows_of(self.excluded, rows) < 0  # type: ignore[arg-type]  # any sorted integers will do
        return kept if self.allowed is None else kept & self.allowed[rows]


class Shard:
    """Recall over the items of one shard of one snapshot."""

    def __init__(self, number: int, files: ShardFiles) -> None:
        self.number = number
        self.files = files
        self.n_items = len(files.keys)
        self._held_period: tuple[int, Mask] | None = None

    def warm_up(self) -> None:
        """Open every file, so that the first request does not pay for it."""
        _ = (self.files.index, self.files.transition, self.files.attributes, self._by_popularity, self._always)

    def recall(self, queries: Sequence[RecallQuery]) -> list[Candidates]:
        """The candidates of each query. Raises InvalidInput for a filter that the catalogue cannot answer."""
        masks: _Masks = {}
        scopes = [self._scope(query, masks) for query in queries]
        nearest = self._nearest(queries, scopes)
        return [self._collect(*work) for work in zip(queries, scopes, nearest, strict=True)]

    def _scope(self, query: RecallQuery, masks: _Masks) -> _Scope:
        """``masks`` holds those of this batch: equal ones are one object, which is what searches are grouped by."""
        rows = rows_of(self.files.keys, query.exclude_keys)
        available = self._available(query.now_s)
        key = (query.filter, id(available))
        if key not in masks:
            masks[key] = (available, self._allowed(query, available))
        return _Scope(masks[key][1], np.sort(rows[rows >= 0]))

    def _allowed(self, query: RecallQuery, available: Mask | None) -> Mask | None:
        if query.filter is None:
            return available
        kept = self.files.attributes.mask(query.filter)
        return kept if available is None else kept & available

    def _nearest(self, queries: Sequence[RecallQuery], scopes: Sequence[_Scope]) -> list[dict[int, tuple[Rows, bool]]]:
        """Rows near the query and profile vectors of each request, by source. Searches with one mask are one call."""
        found: list[dict[int, tuple[Rows, bool]]] = [{} for _ in queries]
        groups: dict[int, list[tuple[int, int, Vectors]]] = {}
        for i, (query, scope) in enumerate(zip(queries, scopes, strict=True)):
            for source, vector in ((QUERY, query.query), (PROFILE, query.profile)):
                if vector is not None and query.only is None:
                    groups.setdefault(id(scope.allowed), []).append((i, source, vector))
        for group in groups.values():
            k = max(queries[i].k for i, _, _ in group)
            answers = self._search(np.stack([v for _, _, v in group]), k, [scopes[i] for i, _, _ in group])
            for (i, source, _), (rows, exact) in zip(group, answers, strict=True):
                found[i][source] = (rows[: queries[i].k], exact)
        return found

    def _search(self, vectors: Vectors, k: int, scopes: Sequence[_Scope]) -> list[tuple[Rows, bool]]:
        """The k nearest visible rows of each vector; all scopes share one mask. Excluded rows are few: fetch more."""
        extra = max(len(scope.excluded) for scope in scopes)
        result = self.files.index.search(np.ascontiguousarray(vectors), k + extra, scopes[0].allowed)
        return [(rows[scope.keep(rows)][:k], result.exact) for rows, scope in zip(result.rows, scopes, strict=True)]

    def _collect(self, query: RecallQuery, scope: _Scope, nearest: dict[int, tuple[Rows, bool]]) -> Candidates:
        transition_rows, transition_scores = self.files.transition.score(query.history_keys, query.history_weights)
        if query.only is not None:
            return self._only(query, scope, transition_rows, transition_scores)
        found = {source: rows for source, (rows, _) in nearest.items()}
        found[TRANSITION] = _top(transition_rows, transition_scores, scope, query.k)
        rows = _union(found.values())
        if len(rows) < query.k:  # popularity fills what the others leave open
            found[POPULAR] = self._popular(scope, query.k)
            rows = _union([rows, found[POPULAR]])
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
        """What may be shown at this time. The same object for as long as no window opens or closes."""
        if self._window_s is None:
            return self._always
        begin, end = self._window_s
        period = int(np.searchsorted(self._turns_s, now_s, side="right"))
        held = self._held_period
        if held is None or held[0] != period:
            within = (begin <= now_s) & (now_s < end)
            held = (period, within if self._always is None else within & self._always)
            self._held_period = held
        return held[1]

    @cached_property
    def _turns_s(self) -> NDArray[np.float64]:
        """The times at which a window opens or closes, sorted."""
        assert self._window_s is not None  # noqa: S101  # asked for only then
        turns: NDArray[np.float64] = np.unique(np.concatenate(self._window_s))
        return turns


def _epoch_s(column: pa.ChunkedArray, missing: float) -> NDArray[np.float64]:
    microseconds = pc.cast(column, pa.timestamp("us", "UTC")).cast(pa.int64()).cast(pa.float64(), safe=False)
    seconds: NDArray[np.float64] = pc.fill_null(pc.divide(microseconds, 1e6), missing).to_numpy()
    return seconds


def _top(rows: Rows, scores: NDArray[np.float32], scope: _Scope, k: int) -> Rows:
    """The k visible rows of highest score, ties by key: row order is key order."""
    visible = scope.keep(rows)
    rows, scores = rows[visible], scores[visible]
    if len(scores) > k:  # only what can be among the k best is sorted, ties of the last of them included
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[scores >= least], scores[scores >= least]
    order = np.argsort(-scores, kind="stable")[:k]
    top: Rows = rows[order].astype(np.int64)
    return top


def _union(parts: Iterable[Rows]) -> Rows:
    """All rows of the parts, ascending, each once: ``np.unique`` at a quarter of its time for a few hundred."""
    rows = np.sort(np.concatenate(list(parts)))
    return rows[np.append(True, rows[1:] != rows[:-1])] if len(rows) else rows


def _found_by(rows: Rows, found: dict[int, Rows]) -> NDArray[np.uint8]:
    """One bit a source, set on the rows that it put forward."""
    bits = np.zeros(len(rows), dtype=np.uint8)
    for source, its_rows in found.items():
        bits[np.searchsorted(rows, its_rows)] |= np.uint8(1 << source)
    return bits
