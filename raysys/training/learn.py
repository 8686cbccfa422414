"""The ranking, learned from what people did next.

People whose newest events were held out are asked, by the path that serves and over behaviour models fitted without
those events, what they would have been shown. From these lists come, in this order,

1. weights of the sources: a coordinate search that looks at NDCG@10 itself, as there are few of them;
2. boosted trees over the scores and their weighted sum: LambdaMART (Burges, "From RankNet to LambdaRank to LambdaMART",
   2010), of which half of the score comes, the other half from the weights.

Each step is kept only if it is better for people that it was not learned from: every list is judged by what was learned
from the lists of others.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.clock import SystemClock
from raysys.config import STEP_DECAY, ProfileSettings, RankingSettings, ServeSettings
from raysys.encoder.protocol import Role
from raysys.errors import Unavailable
from raysys.in_process import LocalRanker, LocalRecall
from raysys.index.catalogue import Catalogue
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import fold
from raysys.ranking.learned import LearnedRanker, LearnedRanking
from raysys.recall.shard import Shard
from raysys.recommender import Recommender
from raysys.training import log
from raysys.training.plan import BuildPlan
from raysys.types import (
    FRESH,
    FRIENDS,
    QUERY,
    QUERY_WORDS,
    SAID,
    SOURCES,
    TRENDING,
    Event,
    Keys,
    Profile,
    Request,
    Vectors,
)

KEPT = 200  # candidates of a list, the best by the weights of the settings
SEEN_BY_TREES = 100  # of those, the best by the learned weights
K = 10  # of NDCG
LEAST_LISTS = 100  # with an item that people went on to like; from fewer nothing is learned
LEAST_LISTS_FOR_TREES = 500
FOLDS = 3
LEAST_KNOWN = 0.01  # of the candidates: what a source says of fewer is not learned from
NOT_LEARNED = (QUERY, SAID, QUERY_WORDS, FRIENDS, TRENDING, FRESH)  # what the log of the past does not hold
STEPS = (0.0, 0.06, 0.12, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # of a weight
TREES: dict[str, Any] = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 20,
    "learning_rate": 0.04,
    "num_leaves": 6,
    "min_data_in_leaf": 400,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "feature_fraction": 0.7,
    "num_threads": 1,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS = 150
STEP_DECAYS = (STEP_DECAY, 0.85, 0.95)
SAMPLE = 2_000  # people by whom the decay is chosen

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


class _AskedAt(SystemClock):
    """A clock that stands at the time from which on events are held out."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A person as they were, and the keys of what they went on to like."""

    user: int
    profile: Profile
    targets: Keys


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The candidates of n people, one list each, filled up with rows of zeros.

    scores: [n, KEPT, len(SOURCES)] float32. there, relevant: [n, KEPT] bool. best: [n] float64, the DCG of a list that
    has everything that was liked in front. fold: [n] in ``range(FOLDS)``, by the hash of the person.
    """

    scores: NDArray[np.float32]
    there: NDArray[np.bool_]
    relevant: NDArray[np.bool_]
    best: Floats
    fold: NDArray[np.intp]

    @classmethod
    def empty(cls, n: int) -> "Lists":
        shape = (n, KEPT)
        scores, there = np.zeros((*shape, len(SOURCES)), np.float32), np.zeros(shape, np.bool_)
        return cls(scores, there, there.copy(), np.ones(n), np.zeros(n, np.intp))

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


def learn(plan: BuildPlan) -> LearnedRanking | None:
    """Learn from the finished snapshot of a plan that holds events out. None where they say too little."""
    asked = questions(plan)
    decay = best_decay(plan, asked)
    learned = fit(lists_of(plan, asked, decay), RankingSettings())
    return None if learned is None else learned.model_copy(update={"step_decay": decay})


def best_decay(plan: BuildPlan, asked: Sequence[Question]) -> float:
    """How fast a history should fade: the decay of the highest NDCG with weights of its own, if it beats the default by
    more than its standard error. By the first of those asked."""
    by_decay = {decay: lists_of(plan, asked[:SAMPLE], decay) for decay in STEP_DECAYS}
    found = {decay: ndcg(lists, lists.weighed(search(lists, _DEFAULTS))) for decay, lists in by_decay.items()}
    best = max(found, key=lambda decay: float(found[decay].mean()) if len(found[decay]) else 0.0)
    gain = found[best] - found[STEP_DECAY]
    return best if len(gain) and gain.mean() > gain.std() / np.sqrt(len(gain)) else STEP_DECAY


def save(learned: LearnedRanking | None, plan: BuildPlan) -> dict[str, Any]:
    """Put it into the snapshot of the plan. Returns the report on it; empty where nothing was learned."""
    if learned is None:
        return {}
    learned.save(plan.snapshot)
    return dict(learned.report)


def lists_of(plan: BuildPlan, asked: Sequence[Question], step_decay: float) -> Lists:
    """The candidates of each person, by the path that serves over the finished snapshot of a plan."""
    return asyncio.run(_ask(_recommender(plan, step_decay), asked))


def _recommender(plan: BuildPlan, step_decay: float) -> Recommender:
    assert plan.held_out is not None  # noqa: S101  # see BuildPlan.without
    catalogue = Catalogue(plan.snapshot)
    shards = [Shard(number, files) for number, files in enumerate(catalogue.shards)]
    k, lookup = ServeSettings().candidates_per_source, Lookup(catalogue, NothingLive())
    ranker, clock = LocalRanker(RankingSettings()), _AskedAt(plan.held_out.now_s)
    settings = _profile_settings(plan).model_copy(update={"step_decay": step_decay})
    return Recommender(lookup, _no_text, LocalRecall(shards), ranker, settings, k, clock)


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
    kept = np.argsort(-(found.scores @ _DEFAULTS), kind="stable")[:KEPT]
    scores = np.zeros((KEPT, len(SOURCES)), np.float32)
    scores[: len(kept)] = found.scores[kept]
    relevant = np.zeros(KEPT, np.bool_)
    relevant[: len(kept)] = np.isin(found.key[kept], question.targets)
    best = float(_discounts(np.arange(1, min(K, len(question.targets)) + 1)).sum())
    there = np.arange(KEPT) < len(kept)
    return {"scores": scores, "there": there, "relevant": relevant, "best": best, "fold": question.user % FOLDS}


def fit(lists: Lists, settings: RankingSettings) -> LearnedRanking | None:
    """The best of: the weights of the settings, learned weights, learned weights and trees."""
    judged = judge(lists, settings)
    if not judged:
        return None
    chosen = max(judged, key=lambda name: float(judged[name].mean()))
    learned = _steps(lists, settings)[_NAMES.index(chosen)]
    return learned.model_copy(update={"report": _report(lists, judged, chosen)})


def judge(lists: Lists, settings: RankingSettings) -> dict[str, Floats]:
    """NDCG@10 of each list, [n] float64, by the weights of the settings and by each step of what is learned from the
    lists of others. Empty where nothing can be learned from so few."""
    if len(lists.found()) < LEAST_LISTS:
        return {}
    steps = [np.full(len(lists), np.nan) for _ in _NAMES]
    for number in range(FOLDS):
        rows = np.flatnonzero(lists.fold == number)
        held, train = lists.take(rows), lists.take(np.flatnonzero(lists.fold != number))
        for found, learned in zip(steps, _steps(train, settings), strict=False):
            found[rows] = ndcg(held, _scored(learned, settings, held))
    return {name: found for name, found in zip(_NAMES, steps, strict=True) if not np.isnan(found).any()}


_NAMES = ("settings", "weights", "weights and trees")


def _steps(lists: Lists, settings: RankingSettings) -> list[LearnedRanking]:
    """What the settings say, then what is learned by each step, as far as there is enough to learn from."""
    found = lists.found()
    weights = search(found, _defaults(settings))
    steps = [LearnedRanking(weights={}), _of_weights(weights, found)]
    if len(found) < LEAST_LISTS_FOR_TREES or _why_no_trees() is not None:
        return steps
    return [*steps, _with_trees(found, weights)]


@cache
def _why_no_trees() -> str | None:
    """What keeps LightGBM from being loaded; None where nothing does. Its wheels want a library of the system."""
    try:
        import lightgbm  # noqa: F401  # takes a moment, and only this needs it
    except (ImportError, OSError) as error:
        return f"LightGBM cannot be loaded ({error}); where libgomp.so.1 is missing, install the package libgomp1"
    return None


def _defaults(settings: RankingSettings) -> Weights:
    return np.array([getattr(settings, name) for name in SOURCES], dtype=np.float32)


_DEFAULTS = _defaults(RankingSettings())


def _of_weights(weights: Weights, lists: Lists) -> LearnedRanking:
    return LearnedRanking(weights={SOURCES[c]: float(weights[c]) for c in _learnable(lists)})


def search(lists: Lists, start: Weights) -> Weights:
    """Weights of a higher NDCG, one source at a time, from ``start``. The strongest source keeps its weight, so that
    what is not learned stays in proportion."""
    columns = _learnable(lists)
    anchor = max(columns, key=lambda c: float(start[c] * np.abs(lists.scores[..., c]).mean()), default=-1)
    at = {c: STEPS.index(1.0) for c in columns if c != anchor}
    best, weights, improved = float(ndcg(lists, lists.weighed(start)).mean()), start.copy(), True
    while improved:
        improved = False
        for c in at:
            for step in sorted({0, *(at[c] + move for move in (-2, -1, 1, 2))} & {*range(len(STEPS))}):
                tried = weights.copy()
                tried[c] = start[c] * STEPS[step]
                found = float(ndcg(lists, lists.weighed(tried)).mean())
                if found > best:
                    best, weights, improved, at[c] = found, tried, True, step
    return weights


def _learnable(lists: Lists) -> list[int]:
    known = (lists.scores[lists.there] != 0).mean(axis=0)
    return [c for c in range(len(SOURCES)) if known[c] >= LEAST_KNOWN and c not in NOT_LEARNED]


def _with_trees(lists: Lists, weights: Weights) -> LearnedRanking:
    import lightgbm

    columns = _learnable(lists)
    learned = np.zeros_like(weights)
    learned[columns] = weights[columns]
    weighed = lists.weighed(learned)
    floors = np.sort(weighed, axis=1)[:, -SEEN_BY_TREES]
    floor = float(np.median(floors[np.isfinite(floors)])) if np.isfinite(floors).any() else float(np.finfo("f").min)
    seen = lists.there & (weighed >= floor)
    rows = np.column_stack([lists.scores[seen][:, columns], weighed[seen]])
    groups = seen.sum(axis=1)
    data = lightgbm.Dataset(rows, lists.relevant[seen].astype(np.int8), group=groups[groups > 0])
    booster = lightgbm.train(TREES, data, ROUNDS)
    grown = booster.predict(rows, num_threads=1)
    return _of_weights(weights, lists).model_copy(
        update={
            "columns": tuple(SOURCES[c] for c in columns),
            "trees": tuple(_nested(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]),
            "gain": float(weighed[seen].std() / max(float(np.std(grown)), 1e-9)),
            "floor": floor,
        }
    )


def _nested(node: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of LightGBM as ``Trees.of`` takes it."""
    if "leaf_value" in node:
        return {"value": float(node["leaf_value"])}
    split = {"feature": int(node["split_feature"]), "threshold": float(node["threshold"])}
    return split | {"left": _nested(node["left_child"]), "right": _nested(node["right_child"])}


def _scored(learned: LearnedRanking, settings: RankingSettings, lists: Lists) -> NDArray[np.float32]:
    scores = np.full(lists.there.shape, -np.inf, np.float32)
    scores[lists.there] = LearnedRanker(learned, settings).score([lists.scores[lists.there]])[0]
    return scores


def ndcg(lists: Lists, scores: NDArray[np.float32]) -> Floats:
    """[n] float64: NDCG@10 of each list by these scores, [n, KEPT]; ties go against what was liked."""
    people, places = np.nonzero(lists.relevant)
    ranks = np.count_nonzero(scores[people] >= scores[people, places][:, None], axis=1)
    gains = np.where(ranks <= K, _discounts(ranks), 0.0)
    return np.bincount(people, gains, minlength=len(lists)) / np.maximum(lists.best, 1e-9)


def _discounts(ranks: NDArray[Any]) -> Floats:
    discounts: Floats = 1 / np.log2(1 + np.maximum(ranks, 1))
    return discounts


def _report(lists: Lists, judged: Mapping[str, Floats], chosen: str) -> dict[str, Any]:
    base = judged[_NAMES[0]]
    return {
        "without_trees": _why_no_trees(),
        "people": len(lists),
        "found": len(lists.found()),
        "chosen": chosen,
        "ndcg@10": {name: round(float(values.mean()), 5) for name, values in judged.items()},
        "standard_error_of_gain": {
            name: round(float((values - base).std() / np.sqrt(len(base))), 5) for name, values in judged.items()
        },
    }
