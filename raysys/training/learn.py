"""The ranking, learned from what people did next.

People whose newest events were held out are asked, by the path that serves and over behaviour models fitted without
those events, what they would have been shown. From these lists come, in this order,

1. weights of the sources: a coordinate search that looks at NDCG@10 itself, as there are few of them;
2. boosted trees over the scores and their weighted sum: LambdaMART (Burges, "From RankNet to LambdaRank to LambdaMART",
   2010), of which half of the score comes, the other half from the weights.

Then where items that nobody has met belong among the others (``training.new_items``).

Each step is kept only if it is better for people that it was not learned from: every list is judged by what was learned
from the lists of others.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.config import STEP_DECAY, RankingSettings
from raysys.ranking.learned import LearnedRanker, LearnedRanking
from raysys.ranking.linear import weights_of
from raysys.training.asked import FOLDS, Floats, Lists, Question, Weights, lists_of, ndcg, questions
from raysys.training.new_items import learn_new_items
from raysys.training.plan import BuildPlan
from raysys.types import (
    FRESH,
    FRIENDS,
    QUERY,
    QUERY_WORDS,
    SAID,
    SOURCES,
    TRENDING,
)

SEEN_BY_TREES = 100  # of those, the best by the learned weights
LEAST_LISTS = 60  # with an item that people went on to like; from fewer nothing is learned
LEAST_LISTS_FOR_TREES = 500
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
    """Put it into the snapshot of the plan. Returns the report on it: ``why_not`` alone where nothing was learned."""
    if learned is None:
        return {"why_not": f"fewer than {LEAST_LISTS} people went on to like something that recall found for them"}
    learned.save(plan.snapshot)
    return dict(learned.report)


def fit(lists: Lists, settings: RankingSettings) -> LearnedRanking | None:
    """The best of: the weights of the settings, learned weights, learned weights and trees."""
    scored = _by_others(lists, settings)
    if not scored:
        return None
    judged = {name: ndcg(lists, scores) for name, scores in scored.items()}
    chosen = max(judged, key=lambda name: float(judged[name].mean()))
    learned = _steps(lists, settings)[_NAMES.index(chosen)]
    new_items, of_new_items = learn_new_items(lists, scored[chosen])
    report = _report(lists, judged, chosen) | {"new_items": of_new_items}
    return learned.model_copy(update={"new_items": new_items, "report": report})


def judge(lists: Lists, settings: RankingSettings) -> dict[str, Floats]:
    """NDCG@10 of each list, [n] float64, by the weights of the settings and by each step of what is learned from the
    lists of others. Empty where nothing can be learned from so few."""
    return {name: ndcg(lists, scores) for name, scores in _by_others(lists, settings).items()}


def _by_others(lists: Lists, settings: RankingSettings) -> dict[str, NDArray[np.float32]]:
    """The scores, [n, KEPT] float32, by which ``judge`` judges."""
    if len(lists.found()) < LEAST_LISTS:
        return {}
    steps = [np.full(lists.there.shape, np.nan, np.float32) for _ in _NAMES]
    for number in range(FOLDS):
        rows = np.flatnonzero(lists.fold == number)
        held, train = lists.take(rows), lists.take(np.flatnonzero(lists.fold != number))
        for scores, learned in zip(steps, _steps(train, settings), strict=False):
            scores[rows] = _scored(learned, settings, held)
    return {name: scores for name, scores in zip(_NAMES, steps, strict=True) if not np.isnan(scores).any()}


_NAMES = ("settings", "weights", "weights and trees")


def _steps(lists: Lists, settings: RankingSettings) -> list[LearnedRanking]:
    """What the settings say, then what is learned by each step, as far as there is enough to learn from."""
    found = lists.found()
    weights = search(found, weights_of(settings))
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


_DEFAULTS = weights_of(RankingSettings())


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
