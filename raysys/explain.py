"""Why these items: what the rules of ``ranking.explain`` need to know is read here, for the items of one list.

It asks the ranker once more, with a row for each item and source, and the shards once for each of the weightiest items
of the history, all at the same time. What cannot be found out is left out, and nothing takes its place.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysys.errors import Unavailable
from raysys.keys import item_key, item_keys
from raysys.lookup import Lookup
from raysys.profile.fold import evidence
from raysys.profile.seeds import Seeds
from raysys.ranking import sentences
from raysys.ranking.explain import (
    LEAST_SHARE,
    Scores,
    Shares,
    main_terms,
    nearest,
    on_terms,
    pulls,
    shares,
    split,
    without_each,
)
from raysys.recall.merge import concatenate
from raysys.tastes import Tastes
from raysys.types import (
    FRESH,
    FRIENDS,
    POPULAR,
    PROFILE,
    QUERY,
    QUERY_WORDS,
    SAID,
    SOURCES,
    SPACES,
    TRENDING,
    WORDS,
    Candidates,
    Cause,
    Keys,
    Profile,
    RankedItem,
    Reason,
    RecallQuery,
    Request,
    Terms,
    Vectors,
)
from raysys.words import as_written, without_parts

MOST_EVENTS = 10  # items of the history, the weightiest: what each of them gives is asked of the shards
MOST_CAUSES = 3  # named with one source
MOST_WORDS = 5
MOST_WITHOUT = 10  # items of a list for which it is tried what would be without their main cause
LEAST_OF_SOURCE = 0.1  # of what a source gave: a cause that gave less is not named with it

_OF_NO_EVENT = (QUERY, QUERY_WORDS, FRIENDS, TRENDING, FRESH, POPULAR, *SPACES)  # a space is of all events together
_SPLIT_HERE = (PROFILE, SAID, WORDS)  # by vectors and terms, which a gateway can read; all others by the shards

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request, and what the path made of it. query: what the shards were asked."""

    request: Request
    profile: Profile
    known: Seeds
    taste: Tastes
    query: RecallQuery

    @property
    def is_stranger(self) -> bool:
        """Whether nothing is known to go by."""
        given = (self.query.query, self.query.said, self.query.words, self.query.friends)
        return not self.known.items and all(each is None for each in given)

    def without(self, cause: Cause) -> tuple[Request, Profile]:
        """The same request of the same person, had they never met this item, or never written this text.

        The profile has version 0: it is nobody's, and not to be remembered.
        """
        if cause.item_id is None:
            sayings = tuple(saying for saying in self.profile.sayings if evidence(saying) != cause.evidence)
            return self.request, replace(self.profile, version=0, sayings=sayings)
        met = tuple(each for each in self.profile.interactions if each.item_id != cause.item_id)
        history, positive = (
            tuple(item_id for item_id in ids if item_id != cause.item_id)
            for ids in (self.request.history, self.request.positive)
        )
        request = replace(self.request, history=history, positive=positive)
        return request, replace(self.profile, version=0, interactions=met)


class Ranks(NamedTuple):
    """The rank of each item, by key, among the first n of a list."""

    by_key: Mapping[int, int]
    n: int


RecallOne = Callable[[str, RecallQuery], Awaitable[tuple[list[Candidates], list[str]]]]
Rank = Callable[[Scores], Awaitable[Scores]]
RanksWithout = Callable[[Cause], Awaitable[Ranks]]


class Explainer:
    """Explains lists over one snapshot and what changed since."""

    def __init__(self, lookup: Lookup, recall: RecallOne) -> None:
        self._lookup, self._recall = lookup, recall

    async def explain(
        self, asked: Asked, items: Sequence[RankedItem], rank: Rank | None, ranks_without: RanksWithout | None
    ) -> tuple[tuple[RankedItem, ...], bool]:
        """(The items with their reasons; whether every part answered).

        rank: the ranker that gave the scores; None where it did not, and then only the rules of the list are reasons.
        ranks_without: the list as it would be without a cause, raises Unavailable; None where that is not asked for.
        """
        if not items:
            return (), True
        finding = _Finding(self._lookup, self._recall, asked, items)
        found = await finding.reasons(rank)
        if ranks_without is not None:
            await finding.try_without(found, ranks_without)
        explained = zip(items, found, strict=True)
        return tuple(replace(item, reasons=tuple(each.reasons)) for item, each in explained), finding.is_complete


class _Found(NamedTuple):
    """reasons: of one item. main: what gave most of all that the person did and wrote; None where nothing did."""

    reasons: list[Reason]
    main: Cause | None


class _Finding:
    """What can be found out about the items of one list. is_complete: whether every part answered.

    The causes are numbered: the items of the history, then the texts that recall looked at. Arrays of n items and c
    causes are [n, c].
    """

    def __init__(self, lookup: Lookup, recall: RecallOne, asked: Asked, items: Sequence[RankedItem]) -> None:
        self._lookup, self._recall, self._asked, self._items = lookup, recall, asked, items
        self._ids = [item.item_id for item in items]
        self._scores = np.array([[item.sources.get(name, 0) for name in SOURCES] for item in items], dtype=np.float32)
        self._shape = len(items), len(asked.known.items) + len(asked.taste.sayings)
        self._terms: Sequence[tuple[dict[int, str], Terms]] = ()  # of each item, by what they say
        self._history_terms = np.empty((0, 0), np.float32)  # [h, t] of the terms of ``query.words``
        self._titles: Mapping[str, str] = {}
        self._language = _language(asked)
        self.is_complete = True

    async def reasons(self, rank: Rank | None) -> list[_Found]:
        """Of each item: that it is promoted, the sources by their share, then the rules of the list."""
        nothing = np.zeros(self._scores.shape)
        gave = nothing if rank is None else await self._or(self._shares(rank), nothing)
        splits = await self._splits(gave)
        total = np.zeros(self._shape)
        for source, parts in splits.items():
            total += gave[:, [source]] * parts
        self._titles = await self._or(self._read_titles(splits, total), {})
        return [
            _Found(list(self._reasons(at, gave[at], splits)), self._main(total[at]))
            async for at in _in_turn(range(len(total)))
        ]

    async def try_without(self, found: Sequence[_Found], ranks_without: RanksWithout) -> None:
        """Add what would be without the main cause of each of the first items. Each cause is tried once."""
        tried = [(at, each) for at, each in enumerate(found[:MOST_WITHOUT]) if each.main is not None]
        causes = {_name(each.main): each.main for _, each in tried if each.main is not None}
        lists = await asyncio.gather(*(self._or(ranks_without(cause), None) for cause in causes.values()))
        ranks = dict(zip(causes, lists, strict=True))
        for at, (reasons, main) in tried:
            if main is not None and (without := ranks[_name(main)]) is not None:
                reasons.append(self._without(self._items[at], main, without))

    # What gave how much

    async def _shares(self, rank: Rank) -> Shares:
        totals = np.array([item.score for item in self._items], dtype=np.float32)
        return shares(self._scores, totals, await rank(without_each(self._scores)))

    async def _splits(self, gave: Shares) -> dict[int, Shares]:
        """By source, [n, c]: which part of what it gave to each item came by which cause."""
        sources = np.flatnonzero(gave.max(axis=0) >= LEAST_SHARE).tolist()
        if WORDS in sources or QUERY_WORDS in sources:
            self._terms = [self._lookup.named_terms(item.metadata) async for item in _in_turn(self._items)]
        splits: dict[int, Shares] = {}
        if PROFILE in sources or SAID in sources:
            splits |= await self._or(self._by_vectors(), {})
        if WORDS in sources:
            splits |= await self._or(self._by_words(), {})
        others = [source for source in sources if source not in _OF_NO_EVENT and source not in _SPLIT_HERE]
        if others and len(self._asked.query.history_keys):
            splits |= await self._or(self._by_shards(others), {})
        return splits

    async def _by_vectors(self) -> dict[int, Shares]:
        catalogue, taste = self._lookup.catalogue, self._asked.taste
        vectors = await self._vectors(self._ids)
        splits = {}
        if taste.liked is not None:
            gives, weights = np.zeros(self._shape, dtype=np.float32), self._asked.known.weights
            history = await self._vectors(self._asked.known.items)
            of_interest = nearest(vectors, taste.liked, catalogue.manifest.metric)
            for interest, members in enumerate(taste.members):
                mine = np.flatnonzero(of_interest == interest)
                pulled = pulls(vectors[mine], history[members], weights[members], catalogue.contrast)
                gives[np.ix_(mine, members)] = pulled
            splits[PROFILE] = split(gives)
        if taste.said is not None:
            nearest_text = nearest(vectors, taste.said, catalogue.manifest.metric)
            splits[SAID] = np.zeros(self._shape)
            splits[SAID][np.arange(len(vectors)), len(self._asked.known.items) + nearest_text] = 1
        return splits

    async def _vectors(self, item_ids: Sequence[str]) -> Vectors:
        """[n, dim] float32, zero for what has none."""
        found, known = await self._lookup.vectors(item_ids)
        vectors = np.zeros((len(item_ids), found.shape[1]), dtype=np.float32)
        vectors[known] = found
        return vectors

    async def _by_words(self) -> dict[int, Shares]:
        known, wanted = self._asked.known, self._asked.query.words
        if wanted is None:
            return {}
        history = on_terms(await self._lookup.terms(known.items), wanted.keys) * known.weights[:, None]
        self._history_terms = history
        items = on_terms([terms for _, terms in self._terms], wanted.keys)
        return {WORDS: self._wide(split(items @ history.T))}

    def _wide(self, parts: Shares) -> Shares:
        """[n, c] from [n, h]: of no text."""
        wide = np.zeros(self._shape)
        wide[:, : parts.shape[1]] = parts
        return wide

    async def _by_shards(self, sources: Sequence[int]) -> dict[int, Shares]:
        """By what each of the weightiest items of the history alone gives to the columns of these sources."""
        query = self._asked.query
        counting = np.flatnonzero(np.isin(item_keys(self._asked.known.items), query.history_keys))
        first = np.argsort(-query.history_weights, kind="stable")[:MOST_EVENTS]
        columns = await asyncio.gather(
            *(self._alone(query.history_keys[[i]], query.history_weights[[i]]) for i in first)
        )
        gives = np.zeros((*self._shape, len(SOURCES)), dtype=np.float32)
        gives[:, counting[first]] = np.stack(columns, axis=1)
        return {source: split(gives[:, :, source], self._scores[:, source]) for source in sources}

    async def _alone(self, key: Keys, weight: NDArray[np.float32]) -> Scores:
        """[n, s]: the columns of the items, were this all that is known of the person."""
        query = RecallQuery(
            query=None,
            profile=None,
            said=None,
            history_keys=key,
            history_weights=weight,
            exclude_keys=key[:0],
            filter=None,
            now_s=self._asked.query.now_s,
            k=self._asked.query.k,
            only=item_keys(self._ids),
        )
        answers, missing = await self._recall(self._lookup.catalogue.snapshot_id, query)
        self.is_complete &= not missing
        columns = np.zeros(self._scores.shape, dtype=np.float32)
        if answers:
            found = concatenate(answers)
            rows = dict(zip(found.key.tolist(), found.scores, strict=True))
            for at, item_id in enumerate(self._ids):
                columns[at] = rows.get(item_key(item_id), 0)
        return columns

    # What is said of it

    def _reasons(self, at: int, gave: Shares, splits: Mapping[int, Shares]) -> Iterator[Reason]:
        item = self._items[at]
        if item.promoted:
            yield Reason("rule", "promotion", sentences.of_promoted(item.label, self._language), rank=_from(item))
        for source in np.argsort(-gave, kind="stable").tolist():
            if gave[source] >= LEAST_SHARE:
                parts = splits[source][at] if source in splits else np.zeros(0)
                yield self._of_source(at, source, float(gave[source]), parts)
        for move in item.moved:
            if not (item.promoted and move["rule"] == "promotion"):
                rule, rank = str(move["rule"]), move["from"]
                text = sentences.of_rule(rule, self._language)
                yield Reason("rule", rule, text, rank=rank if isinstance(rank, int) else None)

    def _of_source(self, at: int, source: int, share: float, parts: Shares) -> Reason:
        first = _first(parts)
        causes = tuple(self._cause(number, share * float(parts[number])) for number in first)
        words = tuple(self._words(at, source, first[0] if first else None))
        text = sentences.of_source(SOURCES[source], self._language, causes[0] if causes else None, words)
        return Reason("source", SOURCES[source], text, share, causes, words)

    def _words(self, at: int, source: int, cause: int | None) -> list[str]:
        """The words that matched, the weightiest first: those of the cause, where there is one."""
        wanted = {QUERY_WORDS: self._asked.query.query_words, WORDS: self._asked.query.words}.get(source)
        if wanted is None:
            return []
        names, terms = self._terms[at]
        weights = wanted.weights if cause is None else self._history_terms[cause]
        matched = main_terms(terms, wanted.keys, weights)
        written = [
            as_written(term, self._items[at].metadata) for term in without_parts([names[key] for key in matched])
        ]
        return written[:MOST_WORDS]

    def _main(self, total: Shares) -> Cause | None:
        number = int(total.argmax()) if len(total) else -1
        return self._cause(number, float(total[number])) if number >= 0 and total[number] >= LEAST_SHARE else None

    def _cause(self, number: int, share: float) -> Cause:
        """What the person did or wrote, by its number."""
        items = self._asked.known.items
        if number < len(items):
            item_id = items[number]
            return Cause(item_id, self._kinds[item_id], share, item_id, self._titles.get(item_id))
        text = self._asked.taste.sayings[number - len(items)]
        saying = next(saying for saying in self._asked.profile.sayings if saying.text == text)
        return Cause(evidence(saying), saying.kind, share, sentence=text)

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """The kind of event that made each item of the history count."""
        kinds = {each.item_id: each.kind for each in self._asked.profile.interactions if each.weight > 0}
        viewed = dict.fromkeys(self._asked.request.history, "view")
        return viewed | kinds | dict.fromkeys(self._asked.request.positive, "like")

    async def _read_titles(self, splits: Mapping[int, Shares], total: Shares) -> dict[str, str]:
        """The titles of the items of the history that will be named."""
        named = {number for parts in splits.values() for row in parts for number in _first(row)}
        named |= set(total.argmax(axis=1).tolist()) if total.size else set()
        items = self._asked.known.items
        fields = await self._lookup.items([items[number] for number in sorted(named) if number < len(items)])
        return {item_id: known["title"] for item_id, known in fields.items() if known.get("title")}

    def _without(self, item: RankedItem, main: Cause, ranks: Ranks) -> Reason:
        rank = ranks.by_key.get(item_key(item.item_id))
        text = sentences.without(main, item.rank, rank, ranks.n, self._language)
        return Reason("without", main.evidence, text, causes=(main,), rank=rank)

    async def _or(self, finding: Awaitable[T], otherwise: T) -> T:
        try:
            return await finding
        except Unavailable:
            self.is_complete = False
            return otherwise


async def _in_turn(work: Iterable[T]) -> AsyncIterator[T]:
    """Each of these, and other requests have a turn in between: a long list is much work for one thread."""
    for each in work:
        yield each
        await asyncio.sleep(0)


def _first(parts: Shares) -> list[int]:
    """The numbers of the causes to name, the weightiest first."""
    first = np.argsort(-parts, kind="stable")[:MOST_CAUSES].tolist()
    return [number for number in first if parts[number] >= LEAST_OF_SOURCE]


def _from(item: RankedItem) -> int | None:
    """Where a promoted item would stand if it were not."""
    rank = next((move["from"] for move in item.moved if move["rule"] == "promotion"), item.rank)
    return rank if isinstance(rank, int) else None


def _name(cause: Cause) -> tuple[bool, str]:
    """An item may go by the name of a text."""
    return cause.item_id is None, cause.evidence


def _language(asked: Asked) -> str:
    person, wanted = asked.profile.person, asked.request.language
    return sentences.language_of(wanted if wanted is not None or person is None else person.language)
