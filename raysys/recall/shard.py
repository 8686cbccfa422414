"""One shard at work: filters, candidate sources and first scores, where the data is.

Every candidate is scored by every source, whichever source put it forward, so that a ranker never has to guess
whether a missing score means "low" or "not looked at".
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.index.highest import highest
from raysys.index.shard_files import ShardFiles, rows_of
from raysys.index.vector_index import SearchResult, inner_products
from raysys.recall.availability import Availability, Mask
from raysys.recall.fresh import Newest, freshness
from raysys.recall.live import LiveItem, LiveRows, Rows
from raysys.recall.merge import n_best
from raysys.recall.trending import Trends
from raysys.types import (
    FRESH,
    FRIENDS,
    POPULAR,
    PROFILE,
    QUERY,
    QUERY_WORDS,
    RIDGE,
    SAID,
    SOURCES,
    SPACES,
    TRANSITION,
    TRENDING,
    WORDS,
    Candidates,
    FriendLikes,
    Keys,
    RecallQuery,
    Terms,
    Vectors,
)

_Hits = tuple[Rows, NDArray[np.float32]]  # rows and their scores
END = np.array([np.iinfo(np.int64).max])  # behind every row
MOST_REPLACED_SHARE = 0.5  # of the snapshot's rows; from there on the index searches with a mask


@dataclass(frozen=True, eq=False)
class _Visible:
    """What may be seen; None = all.

    rows: [n_main + slots] bool. indexed: [n_main] bool, what the index is to look at; where only a few rows are
    replaced by live ones it looks at them too, as a mask slows it down. slots: [slots] bool, those found by vectors.
    """

    rows: Mask | None
    indexed: Mask | None
    slots: Mask | None = None


# (filter, what is available) -> what is allowed
_Masks = dict[tuple[Any, _Visible], _Visible]


@dataclass(frozen=True, eq=False)
class _Scope:
    """What one request may see of the shard: what is ``visible``, less the ``excluded`` rows: sorted, END the last."""

    visible: _Visible
    excluded: Rows

    @property
    def n_excluded(self) -> int:
        return len(self.excluded) - 1

    def keep(self, rows: Rows) -> Mask:
        kept: Mask = self.excluded[self.excluded.searchsorted(rows)] != rows
        return kept if self.visible.rows is None else kept & self.visible.rows[rows]


@dataclass(eq=False)
class _Near:
    """What the vectors of one request found.

    rows: by source, the rows of each of its vectors. compared: a vector's scores of all rows of the snapshot, in the
    order of ``_given``; of all vectors or of none.
    """

    rows: dict[int, list[Rows]] = field(default_factory=dict)
    exact: bool = True
    compared: list[NDArray[np.float32]] = field(default_factory=list)

    def of_sources(self) -> dict[int, Rows]:
        """The rows that each source found, each once."""
        return {source: parts[0] if len(parts) == 1 else _union(parts) for source, parts in self.rows.items()}


@dataclass(frozen=True, eq=False)
class _Held:
    """What was available last, and what of the snapshot and of the live rows it was made from."""

    main: Mask | None
    live: Mask | None
    version: int
    visible: _Visible


@dataclass(frozen=True, eq=False)
class _Hot:
    """The rows that are trending, ascending, with their scores, and the same rows hottest first, ties by key.

    Made of these scores by item key, and of this version of the live rows.
    """

    rows: Rows
    scores: NDArray[np.float32]
    hottest: Rows
    by_key: NDArray[np.float32]
    version: int


_NO_ROWS, _NO_SCORES = np.empty(0, np.int64), np.empty(0, np.float32)
_NOT_ASKED = _Hot(_NO_ROWS, _NO_SCORES, _NO_ROWS, _NO_SCORES, -1)


class Shard:
    """Recall over the items of one shard of one snapshot, and over what changed in them since (``live``).

    ``trends``: what is trending among the items of this shard, whatever the snapshot; None = nothing so far.
    Rows from ``n_main`` on are live ones, and move when changes are taken in. ``apply``, ``recall`` and ``trends`` are
    for one thread.
    """

    def __init__(self, number: int, files: ShardFiles, trends: Trends | None = None) -> None:
        self.number = number
        self.files = files
        self.n_main = len(files.keys)
        self.live = LiveRows(files)
        self.trends = Trends() if trends is None else trends
        self._held = _Held(None, None, 0, _Visible(None, None))
        self._hot = _NOT_ASKED

    @property
    def n_items(self) -> int:
        """How many items are served now, hidden ones included."""
        return self.n_main - self.live.n_replaced + self.live.n_alive

    def live_counts(self) -> dict[str, int]:
        """``live``: items served from their changes. ``tombstones``: deleted items that are remembered as such."""
        return {"live": self.live.n_alive, "tombstones": self.live.n_removed}

    def apply(self, items: Sequence[LiveItem]) -> int:
        """Take in changes of items of this shard, as ``LiveRows.apply``; the next recall sees them."""
        return self.live.apply(items)

    def warm_up(self) -> None:
        """Open every file, so that the first request does not pay for it."""
        _ = (
            self.files.index,
            self.files.transition,
            self.files.ridge,
            self.files.spaces,
            self.files.words,
            self.files.attributes,
            self._by_popularity,
            self._newest,
        )
        self._availability.mask(0.0)

    def recall(self, queries: Sequence[RecallQuery]) -> list[Candidates]:
        """The candidates of each query, by key. Raises InvalidInput for a filter that the catalogue cannot answer."""
        masks: _Masks = {}
        scopes = [self._scope(query, masks) for query in queries]
        nearest = self._nearest(queries, scopes)
        return [self._collect(*work) for work in zip(queries, scopes, nearest, strict=True)]

    # What may be seen

    def _scope(self, query: RecallQuery, masks: _Masks) -> _Scope:
        """``masks`` holds those of this batch: equal ones are one object, which is what searches are grouped by."""
        rows = self._locate(query.exclude_keys)
        available = self._available(query.now_s)
        key = (query.filter, available)
        if key not in masks:
            masks[key] = self._allowed(query, available)
        excluded = np.concatenate([rows[rows >= 0], END])
        excluded.sort()
        return _Scope(masks[key], excluded)

    def _locate(self, keys: Keys) -> Rows:
        """The row that serves each item, -1 where none does."""
        return self.live.locate(keys) if self.live.version else rows_of(self.files.keys, keys)

    def _allowed(self, query: RecallQuery, available: _Visible) -> _Visible:
        if query.filter is None:
            return available
        kept = self.files.attributes.mask(query.filter)
        if len(self.live):
            kept = np.concatenate([kept, self.live.attributes.mask(query.filter)])
        if available.rows is not None:
            kept = kept & available.rows
        slots = kept[self.n_main :] & self.live.has_text if len(self.live) else None
        return _Visible(kept, kept[: self.n_main], slots)

    def _available(self, now_s: float) -> _Visible:
        """What may be shown at this time. The same object until a window opens or closes, or a change comes."""
        main = self._availability.mask(now_s)
        live = self.live.availability.mask(now_s) if self.live.version else None
        held = self._held
        if held.main is not main or held.live is not live or held.version != self.live.version:
            visible = self._join(main, live) if self.live.version else _Visible(main, main)
            held = self._held = _Held(main, live, self.live.version, visible)
        return held.visible

    def _join(self, main: Mask | None, live: Mask | None) -> _Visible:
        """What of this is still served."""
        served = self.live.staying if main is None else main & self.live.staying
        alive = self.live.alive if live is None else live & self.live.alive
        few = self.live.n_replaced < MOST_REPLACED_SHARE * self.n_main
        return _Visible(
            rows=_unless_all(np.concatenate([served, alive])),
            indexed=None if main is None and few else served,
            slots=_unless_all(alive & self.live.has_text),
        )

    @cached_property
    def _availability(self) -> Availability:
        return Availability(self.files.items)

    # What is near

    def _nearest(self, queries: Sequence[RecallQuery], scopes: Sequence[_Scope]) -> list[_Near]:
        """The k nearest rows of each vector of each request. Searches of one mask are one call."""
        near = [_Near() for _ in queries]
        groups: dict[_Visible, list[tuple[int, int, Vectors]]] = {}
        for i, (query, scope) in enumerate(zip(queries, scopes, strict=True)):
            if query.only is None:
                given = [(i, source, vector) for source, vectors in _given(query) for vector in vectors]
                groups.setdefault(scope.visible, []).extend(given)
        for group in filter(None, groups.values()):
            k = max(queries[i].k for i, _, _ in group)
            rows, result = self._search(np.stack([v for _, _, v in group]), k, [scopes[i] for i, _, _ in group])
            for at, (i, source, _) in enumerate(group):
                near[i].rows.setdefault(source, []).append(rows[at][: queries[i].k])
                near[i].exact &= result.exact
                if result.compared is not None:
                    near[i].compared.append(result.compared[at])
        return near

    def _search(self, vectors: Vectors, k: int, scopes: Sequence[_Scope]) -> tuple[list[Rows], SearchResult]:
        """The k nearest visible rows of each vector, and what the index said; all scopes share one mask.

        Excluded rows are few: fetch more.
        """
        visible = scopes[0].visible
        n = k + max(scope.n_excluded for scope in scopes)
        fetched = self._with_replaced(n) if visible.indexed is None else n
        result = self.files.index.search(vectors, fetched, visible.indexed)
        found = _seen(result, scopes, k)
        short = (len(hits) < k and len(rows) == fetched for (hits, _), rows in zip(found, result.rows, strict=True))
        if fetched > n and any(short):  # nearly all that is near was replaced
            result = self.files.index.search(vectors, n, self.live.staying)
            found = _seen(result, scopes, k)
        return (self._with_live(found, vectors, k, scopes) if len(self.live) else [hits for hits, _ in found]), result

    def _with_replaced(self, n: int) -> int:
        """How many rows of the snapshot most likely hold n that are not replaced: four standard deviations more than
        on average."""
        if not self.live.n_replaced:
            return n
        share = self.live.n_replaced / self.n_main
        mean = n / (1 - share)
        return math.ceil(mean + 4 * math.sqrt(mean * share))

    def _with_live(self, found: Sequence[_Hits], vectors: Vectors, k: int, scopes: Sequence[_Scope]) -> list[Rows]:
        """The k nearest visible rows of each vector, of those that the index ``found`` and the live ones."""
        slot_scores = self.live.compare(vectors, scopes[0].visible.slots)
        merged = []
        for i, ((rows, scores), scope) in enumerate(zip(found, scopes, strict=True)):
            if vectors[i].any():  # a zero vector finds nothing
                slot_scores[i, self._split(scope.excluded[:-1])[1]] = -np.inf
                least = scores[-1] if len(rows) == k else np.finfo(np.float32).min
                slots = np.flatnonzero(slot_scores[i] >= least)
                rows = self._merge_live(rows, scores, slots, slot_scores[i, slots], k)
            merged.append(rows)
        return merged

    def _merge_live(
        self, rows: Rows, scores: NDArray[np.float32], slots: Rows, slot_scores: NDArray[np.float32], k: int
    ) -> Rows:
        """The k best of rows of the snapshot and of slots, best first, ties by key."""
        if not len(slots):
            return rows
        both = np.concatenate([scores, slot_scores])
        order = np.argsort(-both, kind="stable")
        ranked = both[order]
        if (ranked[1:] == ranked[:-1]).any():
            keys = np.concatenate([self.files.keys[rows], self.live.keys[slots]])
            order = np.lexsort((keys, -both))
        merged: Rows = np.concatenate([rows, self.n_main + slots])[order[:k]]
        return merged

    # From rows to candidates; rows are ascending, so that those of the snapshot come first, by key

    def _collect(self, query: RecallQuery, scope: _Scope, near: _Near) -> Candidates:
        scored = self._scored(query)
        if query.only is not None:
            return self._only(query, scope, scored)
        found = near.of_sources()
        found |= {source: self._top(source, hits, scope, query.k) for source, hits in scored.items()}
        found |= self._of_now(query, scope)
        rows = _union(found.values())
        if len(rows) < query.k:  # popularity fills what the others leave open; then no source has more than k
            found[POPULAR] = self._popular(scope, query.k)
            rows = _union([rows, found[POPULAR]])
        scores = self._scores(query, rows, scored, near.compared)
        for source in (PROFILE, SAID):  # of several vectors: more than k rows, of which those nearest to any stay
            if len(found.get(source, ())) > query.k:
                its_scores = scores[np.searchsorted(rows, found[source]), source]
                found[source] = self._best(found[source], its_scores, query.k)
        if len(kept := _union(found.values())) < len(rows):
            rows, scores = kept, scores[np.searchsorted(rows, kept)]
        return self._candidates(rows, scores, _found_by(rows, found), near.exact)

    def _scored(self, query: RecallQuery) -> dict[int, _Hits]:
        """(rows, ascending; scores) of the items that these sources know: by behaviour, by words, by friends."""
        found: dict[int, _Hits] = {}
        for source, leading in ((TRANSITION, self.files.transition), (RIDGE, self.files.ridge)):
            found[source] = leading.score(query.history_keys, query.history_weights)
        for source, person in query.placed.items():
            found[source] = self._main_rows, inner_products(person, self.files.spaces[source])
        if self.live.version:
            found = {source: self._with_added(source, hits, query) for source, hits in found.items()}
        for source, wanted in ((QUERY_WORDS, query.query_words), (WORDS, query.words)):
            if wanted is not None:
                found[source] = self._with_words(wanted)
        if query.friends is not None:
            found[FRIENDS] = self._of_friends(query.friends)
        return found

    def _of_friends(self, liked: FriendLikes) -> _Hits:
        """(rows, ascending; scores): those of these items that are served here."""
        rows = self._locate(liked.keys)
        served = np.flatnonzero(rows >= 0)
        by_row = served[np.argsort(rows[served], kind="stable")]  # fast for what is nearly sorted
        return rows[by_row], liked.weights[by_row]

    def _with_added(self, source: int, hits: _Hits, query: RecallQuery) -> _Hits:
        """(rows, ascending; scores) as of now: changed items keep theirs, new ones may have one by their text."""
        rows, scores = self.live.carry(*hits)
        if source not in query.placed or source not in self.live.placed:
            return rows, scores
        added, vectors = self.live.placed[source]
        rows, scores = (
            np.concatenate([rows, added]),
            np.concatenate([scores, inner_products(query.placed[source], vectors)]),
        )
        order = np.argsort(rows, kind="stable")  # fast for what is nearly sorted
        return rows[order], scores[order]

    def _with_words(self, wanted: Terms) -> _Hits:
        """(rows, ascending; scores): what holds any of these terms."""
        rows, scores = self.files.words.by_term.score(wanted.keys, wanted.weights)
        if not self.live.version:
            return rows, scores
        stays = self.live.staying[rows]
        slots, slot_scores = self.live.score_words(wanted)
        return np.concatenate([rows[stays], self.n_main + slots]), np.concatenate([scores[stays], slot_scores])

    @cached_property
    def _main_rows(self) -> Rows:
        return np.arange(self.n_main, dtype=np.int32)

    def _only(self, query: RecallQuery, scope: _Scope, scored: dict[int, _Hits]) -> Candidates:
        """Scores for the wanted items that live here and may be seen; each source that knows an item found it."""
        rows = self._locate(np.unique(query.only)) if query.only is not None else np.empty(0, np.int64)
        rows = np.sort(rows[rows >= 0])
        rows = rows[scope.keep(rows)]
        scores = self._scores(query, rows, scored)
        bits = (scores != 0) @ (1 << np.arange(len(SOURCES))).astype(np.uint16)
        return self._candidates(rows, scores, bits.astype(np.uint16), exact=True)

    def _candidates(
        self, rows: Rows, scores: NDArray[np.float32], found_by: NDArray[np.uint16], exact: bool
    ) -> Candidates:
        keys = self._keys(rows)
        if self._has_live(rows):
            by_key = np.argsort(keys)
            rows, keys, scores, found_by = rows[by_key], keys[by_key], scores[by_key], found_by[by_key]
        return Candidates(
            shard=np.full(len(rows), self.number, dtype=np.int32),
            row=rows.astype(np.int32),
            key=keys,
            scores=scores,
            found_by=found_by,
            exact=exact,
        )

    def _scores(
        self,
        query: RecallQuery,
        rows: Rows,
        scored: dict[int, _Hits],
        compared: Sequence[NDArray[np.float32]] = (),
    ) -> NDArray[np.float32]:
        scores = np.zeros((len(rows), len(SOURCES)), dtype=np.float32)
        main, slots = self._split(rows)
        given = _given(query)
        if given:
            similarity = self._similarity(np.concatenate([vectors for _, vectors in given]), rows, compared)
            ends = np.cumsum([len(vectors) for _, vectors in given])
            for (source, vectors), end in zip(given, ends, strict=True):
                scores[:, source] = similarity[end - len(vectors) : end].max(axis=0)
        hot = self._trending(query.now_s)
        for source, (known, known_scores) in (scored | {TRENDING: (hot.rows, hot.scores)}).items():
            if len(known):
                at = rows_of(known, rows)  # type: ignore[arg-type]  # any sorted integers will do
                scores[:, source] = np.where(at >= 0, known_scores[at], 0)
        if len(self._newest.rows(query.now_s)):
            scores[: len(main), FRESH] = freshness(self.live.main_since_s[main], query.now_s)
        scores[: len(main), POPULAR] = self.files.popularity[main]
        if len(slots):
            scores[len(main) :, POPULAR] = self.live.popularity[slots]
            scores[len(main) :, FRESH] = freshness(self.live.since_s[slots], query.now_s)
        return scores

    def _similarity(self, vectors: Vectors, rows: Rows, compared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """[q, n] float32: how near each vector, [q, dim], is to each of these rows, ascending ones."""
        main, slots = self._split(rows)
        near = np.stack([s[main] for s in compared]) if compared else self.files.index.score_rows(vectors, main)
        return np.hstack([near, self.live.score_slots(vectors, slots)]) if len(slots) else near

    def _top(self, source: int, hits: _Hits, scope: _Scope, k: int) -> Rows:
        """The k visible rows of highest score, ties by key, in any order. Of a space only those above 0: an item has
        its vector there, and is not the opposite of the person."""
        rows, scores = _most_likely(hits, scope, k) if source in SPACES else hits
        visible = scope.keep(rows)
        return self._best(rows[visible], scores[visible], k)

    def _best(self, rows: Rows, scores: NDArray[np.float32], k: int) -> Rows:
        """The k rows of highest score of ascending ones, ties by key, in any order."""
        if len(scores) > k:
            best = highest(scores, k)
            rows, scores = rows[best], scores[best]
        if len(rows) > k:  # several are as good as the last: ascending rows of the snapshot are in the order of keys
            keys = self._keys(rows) if self._has_live(rows) else rows
            rows = rows[np.lexsort((keys, -scores))[:k]]
        top: Rows = rows.astype(np.int64)
        return top

    def _popular(self, scope: _Scope, k: int) -> Rows:
        """The k most popular visible rows."""
        rows = _first_visible(self._by_popularity, scope, k)
        if not len(self.live):
            return rows
        slots = _first_visible(self.live.by_popularity, scope, k) - self.n_main
        return self._merge_live(rows, self.files.popularity[rows], slots, self.live.popularity[slots], k)

    @cached_property
    def _by_popularity(self) -> Rows:
        order: Rows = np.argsort(-np.asarray(self.files.popularity), kind="stable")
        return order

    # What is trending and what is fresh

    def _of_now(self, query: RecallQuery, scope: _Scope) -> dict[int, Rows]:
        """The best visible rows of these two sources, where there are any."""
        hottest = _first_visible(self._trending(query.now_s).hottest, scope, n_best(TRENDING, query.k))
        freshest = self._freshest(query.now_s, scope, n_best(FRESH, query.k))
        return {source: rows for source, rows in ((TRENDING, hottest), (FRESH, freshest)) if len(rows)}

    def _trending(self, now_s: float) -> _Hot:
        keys, scores = self.trends.scores(now_s)
        if scores is not self._hot.by_key or self.live.version != self._hot.version:
            self._hot = self._place(keys, scores)
        return self._hot

    def _place(self, keys: Keys, scores: NDArray[np.float32]) -> _Hot:
        """The rows of those of these items that are served here."""
        rows = self._locate(keys)
        served = np.flatnonzero(rows >= 0)
        by_row = served[np.argsort(rows[served], kind="stable")]  # fast for what is nearly sorted
        by_heat = served[np.argsort(-scores[served], kind="stable")]
        return _Hot(rows[by_row], scores[by_row], rows[by_heat], scores, self.live.version)

    @cached_property
    def _newest(self) -> Newest:
        return Newest(self.live.main_since_s, self.files.keys)

    def _freshest(self, now_s: float, scope: _Scope, n: int) -> Rows:
        """The n newest visible rows of those that are fresh."""
        rows = _first_visible(self._newest.rows(now_s), scope, n)
        if not len(self.live):
            return rows
        slots = _first_visible(self.n_main + self.live.newest.rows(now_s), scope, n) - self.n_main
        if not len(slots):
            return rows
        scores = freshness(self.live.main_since_s[rows], now_s)
        return self._merge_live(rows, scores, slots, freshness(self.live.since_s[slots], now_s), n)

    def _has_live(self, rows: Rows) -> bool:
        """Whether any of these rows, ascending, is a live one."""
        return len(rows) > 0 and rows[-1] >= self.n_main

    def _split(self, rows: Rows) -> tuple[Rows, Rows]:
        """Ascending rows as (rows of the snapshot, slots)."""
        if not self._has_live(rows):
            return rows, rows[:0]
        n = int(rows.searchsorted(self.n_main))
        return rows[:n], rows[n:] - self.n_main

    def _keys(self, rows: Rows) -> Keys:
        """The item key of each of these rows, ascending ones."""
        main, slots = self._split(rows)
        keys = np.asarray(self.files.keys[main])
        return np.concatenate([keys, self.live.keys[slots]]) if len(slots) else keys


def _seen(result: SearchResult, scopes: Sequence[_Scope], k: int) -> list[_Hits]:
    """The first k hits of each search that its scope may see."""
    seen = [scope.keep(rows) for rows, scope in zip(result.rows, scopes, strict=True)]
    hits = zip(result.rows, result.scores, seen, strict=True)
    return [(rows[kept][:k], scores[kept][:k]) for rows, scores, kept in hits]


def _unless_all(mask: Mask) -> Mask | None:
    return None if mask.all() else mask


def _first_visible(order: Rows, scope: _Scope, k: int) -> Rows:
    """The first k visible rows in this order, looked for in ever longer beginnings of it."""
    if not len(order):
        return order
    length = scope.n_excluded + (k if scope.visible.rows is None else 2 * k)
    while True:
        rows = order[:length]
        rows = rows[scope.keep(rows)]
        if len(rows) >= k or length >= len(order):
            return rows[:k]
        length *= 8


def _union(parts: Iterable[Rows]) -> Rows:
    """All rows of the parts, ascending, each once: ``np.unique`` at a quarter of its time for a few hundred."""
    rows = np.concatenate(list(parts))
    rows.sort()
    first = np.ones(len(rows), dtype=np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]


def _given(query: RecallQuery) -> list[tuple[int, Vectors]]:
    """The sources that compare vectors, each with those of the request: [m, dim]."""
    given = ((QUERY, None if query.query is None else query.query[None]), (PROFILE, query.profile), (SAID, query.said))
    return [(source, vectors) for source, vectors in given if vectors is not None and len(vectors)]


def _most_likely(hits: _Hits, scope: _Scope, k: int) -> _Hits:
    """Those above 0 among which the k best visible ones are: all rows have a score, and most need no second look."""
    rows, scores = hits
    allowed = scores if scope.visible.rows is None else np.where(scope.visible.rows[rows], scores, 0)
    likely = highest(allowed, k + scope.n_excluded)
    likely = likely[allowed[likely] > 0]
    return rows[likely], scores[likely]


def _found_by(rows: Rows, found: dict[int, Rows]) -> NDArray[np.uint16]:
    """One bit a source, set on the rows that it put forward."""
    bits = np.zeros(len(rows), dtype=np.uint16)
    for source, its_rows in found.items():
        bits[rows.searchsorted(its_rows)] |= np.uint16(1 << source)
    return bits
