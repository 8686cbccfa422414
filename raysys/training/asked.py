"""What people would have been shown, before what they did next: the lists that a ranking is learned from.

People whose newest events are held out are asked, by the path that serves and over behaviour models fitted without
those events, what recall finds for them.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.clock import SystemClock
from raysys.config import ProfileSettings, RankingSettings, ServeSettings
from raysys.encoder.protocol import Role
from raysys.errors import Unavailable
from raysys.in_process import LocalRanker, LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import fold
from raysys.ranking.linear import weights_of
from raysys.recommender import Recommender
from raysys.training import log
from raysys.training.plan import BuildPlan
from raysys.types import PROFILE, SOURCES, WORDS, Event, Keys, Profile, Request, Vectors

KEPT = 260  # candidates of a list: the best by the weights of the settings, and
KEPT_BY_TEXT = 60  # of these the best of the others by their texts alone
TEXT = (PROFILE, WORDS)  # what the text of an item says about somebody with a history
PARTS = 5  # of the items, each of which can be taken for new (``training.new_items``)
K = 10  # of NDCG
FOLDS = 3

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


_DEFAULTS = weights_of(RankingSettings())
_DEFAULTS_OF_TEXT = np.where([source in TEXT for source in range(len(SOURCES))], _DEFAULTS, np.float32(0))
_TEXT_BITS = np.uint16(sum(1 << source for source in TEXT))


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A person as they were, and the keys of what they went on to like."""

    user: int
    profile: Profile
    targets: Keys


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The candidates of n people, one list each, filled up with rows of zeros.

    scores: [n, KEPT, len(SOURCES)] float32. there, relevant, by_text: [n, KEPT] bool; the last, whether it would have
    been found by its text. part: [n, KEPT] int8 in ``range(PARTS)``, by the hash of the item. best: [n] float64, the
    DCG of a list that has everything that was liked in front. fold: [n] in ``range(FOLDS)``, by the hash of the person.
    """

    scores: NDArray[np.float32]
    there: NDArray[np.bool_]
    relevant: NDArray[np.bool_]
    by_text: NDArray[np.bool_]
    part: NDArray[np.int8]
    best: Floats
    fold: NDArray[np.intp]

    @classmethod
    def empty(cls, n: int) -> "Lists":
        shape = (n, KEPT)
        scores, there = np.zeros((*shape, len(SOURCES)), np.float32), np.zeros(shape, np.bool_)
        part = np.zeros(shape, np.int8)
        return cls(scores, there, there.copy(), there.copy(), part, np.ones(n), np.zeros(n, np.intp))

    def __len__(self) -> int:
        return len(self.best)

    def found(self) -> "Lists":
        """Those with a candidate that was liked."""
        return self.take(np.flatnonzero(self.relevant.any(axis=1)))

    def take(self, rows: NDArray[Any]) -> "Lists":
        return Lists(*(getattr(self, name)[rows] for name in self.__slots__))

    def weighed(self, weights: Weights) -> NDArray[np.float32]:
        """[n, KEPT] float32, minus infinity where there is no candidate."""
        return np.where(self.there, self.scores @ weights, np.float32(-np.inf))


def lists_of(plan: BuildPlan, asked: Sequence[Question], step_decay: float) -> Lists:
    """The candidates of each person, by the path that serves over the finished snapshot of a plan."""
    return asyncio.run(_ask(_recommender(plan, step_decay), asked))


def _recommender(plan: BuildPlan, step_decay: float) -> Recommender:
    assert plan.held_out is not None  # noqa: S101  # see BuildPlan.without
    catalogue = Catalogue(plan.snapshot)
    k, lookup = ServeSettings().candidates_per_source, Lookup(catalogue, NothingLive())
    ranker, clock = LocalRanker(RankingSettings()), _AskedAt(plan.held_out.now_s)
    settings = _profile_settings(plan).model_copy(update={"step_decay": step_decay})
    return Recommender(lookup, _no_text, LocalRecall(open_shards(plan.snapshot)), ranker, settings, k, clock)


def _profile_settings(plan: BuildPlan) -> ProfileSettings:
    return ProfileSettings(event_weights=plan.settings.behaviour.event_weights)


async def _no_text(text: str, role: Role) -> Vectors:
    raise Unavailable("nobody asks by text here")


def questions(plan: BuildPlan) -> list[Question]:
    """Those people of the log who liked something that is held out, as they were before.

    They depend on the events and on which items the finished snapshot of the plan holds, not on what is fitted.
    """
    catalogue, settings = Catalogue(plan.snapshot), _profile_settings(plan)
    tables = (log.read_part(plan, part) for part in range(plan.n_shards))
    return [
        question
        for table in tables
        if table is not None
        for question in _questions_of(plan, table, catalogue, settings)
    ]


def _questions_of(
    plan: BuildPlan, table: pa.Table, catalogue: Catalogue, settings: ProfileSettings
) -> Iterator[Question]:
    assert plan.held_out is not None  # noqa: S101  # see BuildPlan.without
    users, times_s, liked = (table["user"].to_numpy(), table["timestamp_s"].to_numpy(), table["weight"].to_numpy() > 0)
    held = plan.held_out.rows(users, times_s, liked)
    asked = np.unique(users[held & liked & plan.held_out.chosen(users)])
    order = np.lexsort((times_s, users))
    starts, ends = (np.searchsorted(users[order], asked, side) for side in ("left", "right"))
    for user, start, end in zip(asked.tolist(), starts, ends, strict=True):
        rows = order[start:end]
        events = _events(table.take(rows[~held[rows]]), catalogue)
        wanted = rows[held[rows] & liked[rows]]
        targets = np.setdiff1d(table["item"].to_numpy()[wanted], table["item"].to_numpy()[rows[~held[rows]]])
        if len(targets):
            yield Question(user, fold("", events, settings), targets)


def _events(table: pa.Table, catalogue: Catalogue) -> list[Event]:
    """The events of one person about items of the catalogue."""
    ids = catalogue.ids_of(table["item"].to_numpy())
    columns = (table[name].to_pylist() for name in ("kind", "timestamp_s", "value"))
    rows = zip(ids, *columns, strict=True)
    return [
        Event(f"{at:09d}", kind, "", item_id, time_s, value)
        for at, (item_id, kind, time_s, value) in enumerate(rows)
        if item_id is not None
    ]


async def _ask(recommender: Recommender, asked: Sequence[Question]) -> Lists:
    rows = [await _one(recommender, question) for question in asked]
    lists = Lists.empty(len(rows))
    for at, row in enumerate(rows):
        for name, values in row.items():
            getattr(lists, name)[at] = values
    return lists


async def _one(recommender: Recommender, question: Question) -> dict[str, Any]:
    """A row of ``Lists``."""
    found = await recommender.candidates(Request(limit=1), question.profile)
    by_text = found.found_by & _TEXT_BITS > 0
    kept = _kept(found.scores, by_text)
    best = float(discounts(np.arange(1, min(K, len(question.targets)) + 1)).sum())
    row = {
        "scores": found.scores,
        "there": np.ones(len(found), np.bool_),
        "relevant": np.isin(found.key, question.targets),
        "by_text": by_text,
        "part": (found.key >> np.uint64(32)) % np.uint64(PARTS),  # the low bits say in which shard an item is
    }
    filled = {name: _filled(values[kept]) for name, values in row.items()}
    return filled | {"best": best, "fold": question.user % FOLDS}


def _kept(scores: NDArray[np.float32], by_text: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Rows of the candidates that stay in a list."""
    order = np.argsort(-(scores @ _DEFAULTS), kind="stable")
    first, rest = order[: KEPT - KEPT_BY_TEXT], order[KEPT - KEPT_BY_TEXT :]
    others = rest[by_text[rest]]
    likest = np.argsort(-(scores[others] @ _DEFAULTS_OF_TEXT), kind="stable")[:KEPT_BY_TEXT]
    return np.concatenate([first, others[likest]])


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """[KEPT, ...]: the values, then zeros."""
    filled = np.zeros((KEPT, *values.shape[1:]), values.dtype)
    filled[: len(values)] = values
    return filled


class _AskedAt(SystemClock):
    """A clock that stands at the time from which on events are held out."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s


def discounts(ranks: NDArray[Any]) -> Floats:
    """What an item at this rank, from 1, adds to the DCG."""
    discounts: Floats = 1 / np.log2(1 + np.maximum(ranks, 1))
    return discounts


def ndcg(lists: Lists, scores: NDArray[np.float32]) -> Floats:
    """[n] float64: NDCG@10 of each list by these scores, [n, KEPT]; ties go against what was liked."""
    people, places = np.nonzero(lists.relevant)
    ranks = np.count_nonzero(scores[people] >= scores[people, places][:, None], axis=1)
    gains = np.where(ranks <= K, discounts(ranks), 0.0)
    return np.bincount(people, gains, minlength=len(lists)) / np.maximum(lists.best, 1e-9)
