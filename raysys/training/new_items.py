"""Where items that nobody has met belong among the others, learned by taking known items for new ones.

Of an item that nobody has met only its text speaks, and a ranking that is learned from items that people know would
never show it. So one part of the items after the other is taken for new in the lists of ``training.asked``: such an
item keeps what its text says and loses all else, and is not there where only behaviour had found it. Those that nobody
has met are among them. What its text says, t, is put on the scale of the others:

    score = tenth + spread * (slope * (t - tenth_t) / spread_t + shift)        t = profile + words_weight * words

tenth and spread are the median over people, and the standard deviation, of the tenth best score of the others; tenth_t
and spread_t those of t. Of the few settings tried the one of the highest NDCG@10 of the whole lists is kept: that
weighs every new item in front against the others that it moves down.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.ranking.learned import NewItems
from raysys.training.asked import FOLDS, PARTS, Floats, K, Lists, ndcg
from raysys.types import POPULAR, PROFILE, SOURCES, WORDS

WORDS_WEIGHTS = (0.25, 1.0, 4.0)
SLOPES = (0.25, 0.5, 1.0, 2.0)
SHIFTS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5)

Scores = NDArray[np.float32]


def learn_new_items(lists: Lists, scores: Scores) -> tuple[NewItems | None, dict[str, Any]]:
    """How new items are to be scored, None = like all others, and the report on it.

    scores: [n, KEPT] float32, of a ranking for items that are known, which was not learned from the same people.
    """
    rows = lists.relevant.any(axis=1)
    found, of_known = lists.take(np.flatnonzero(rows)), scores[rows]
    tried = _settings(found, of_known)
    if not tried:
        return None, {"why_not": "the texts of items say nothing about the people who were asked"}
    before = _judge(found, of_known, None)
    after = np.stack([_judge(found, of_known, new) for new in tried], axis=1)
    judged = _by_others(found, after)
    is_better = judged.sum() > before.sum()  # by whatever little: to be met is worth something to a new item
    best = tried[int(after.mean(axis=0).argmax())]
    means = {"like all others": before, "learned": judged}
    report = {name: round(float(ndcg.sum() / len(lists)), 5) for name, ndcg in means.items()}
    return (best if is_better else None), {"ndcg@10": report, "chosen": "learned" if is_better else "like all others"}


def _by_others(lists: Lists, tried: Floats) -> Floats:
    """[n] float64: of [n, settings], the setting that is best for the people of the other folds."""
    judged = np.empty(len(lists))
    for number in range(FOLDS):
        mine = lists.fold == number
        judged[mine] = tried[mine, tried[~mine].sum(axis=0).argmax()]
    return judged


def _settings(lists: Lists, scores: Scores) -> Sequence[NewItems]:
    """Those that are tried: none where texts say nothing."""
    tenth, spread = _tenth_best(np.where(lists.there, scores, -np.inf))
    found = []
    for words_weight in WORDS_WEIGHTS:
        likeness = lists.scores[..., PROFILE] + np.float32(words_weight) * lists.scores[..., WORDS]
        tenth_t, spread_t = _tenth_best(np.where(lists.by_text, likeness, -np.inf))
        if spread <= 0 or spread_t <= 0:
            continue
        for slope, shift in product(SLOPES, SHIFTS):
            factor = spread * slope / spread_t
            weights = {SOURCES[PROFILE]: factor, SOURCES[WORDS]: factor * words_weight}
            found.append(NewItems(weights=weights, offset=tenth + spread * shift - factor * tenth_t))
    return found


def _tenth_best(scores: Scores) -> tuple[float, float]:
    """The median over people and the standard deviation of the tenth best of each row; 0 where nobody has so many."""
    tenth = np.sort(scores, axis=1)[:, -K]
    tenth = tenth[np.isfinite(tenth)]
    return (float(np.median(tenth)), float(tenth.std())) if len(tenth) else (0.0, 0.0)


def _judge(lists: Lists, scores: Scores, new: NewItems | None) -> Floats:
    """[n] float64: NDCG@10 of the lists, the mean over the parts of the items that are taken for new."""
    if new is None:
        of_new = np.full(scores.shape, -np.inf, np.float32)
    else:
        weights = np.array([new.weights.get(name, 0.0) for name in SOURCES], np.float32)
        of_new = np.where(lists.by_text, lists.scores @ weights + np.float32(new.offset), -np.inf)
    unmet = lists.there & (lists.scores[..., POPULAR] == 0)
    parts = [ndcg(lists, np.where(unmet | (lists.part == part), of_new, scores)) for part in range(PARTS)]
    judged: Floats = np.mean(parts, axis=0)
    return judged
