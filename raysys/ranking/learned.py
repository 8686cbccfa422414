"""A ranking that was learned for one catalogue (``training.learn``): weights for the sources, then trees.

    score = g . o + (w . s + gain * T(s, w . s)) / 2        s: the sources learned from; o: all others

The weights find what is worth looking at; the trees, which see how the sources agree, order the best of it. Where w . s
is below ``floor`` the trees are not asked and count as their least, so nothing overtakes from there. The halves spread
as far as w . s alone, so that the weights g of the settings mean what they do without trees.

An item that nobody has met is silent in all that behaviour says, which is not the same as being disliked. It has

    score = g . o + v . t + c        t: the sources that compare texts

of its text, as long as that says something about the person; v and c are learned with other items that are taken for
new (``training.new_items``), so that both kinds of items can stand in one list.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from raysys.config import ProfileSettings, RankingSettings, Settings
from raysys.errors import SnapshotError
from raysys.ranking.linear import LinearRanker, weights_of
from raysys.ranking.trees import Trees
from raysys.types import POPULAR, SOURCES

FILE = "ranking.json"

Scores = NDArray[np.float32]


class NewItems(Settings):
    """How items that nobody has met are scored. weights: of the sources that compare texts; offset: added to them."""

    weights: dict[str, float]
    offset: float


class LearnedRanking(Settings):
    """What was learned, as it stands in a snapshot.

    weights: of the sources that could be learned from; the others have those of the settings. columns: the sources that
    the trees look at, in this order; behind them they have the weighted sum. trees: nested, as in ``Trees.of``.
    new_items: None = they are scored like all others.
    step_decay: as in ``ProfileSettings``; None = nothing was learned of it. report: how it was learned.
    """

    weights: dict[str, float]
    columns: tuple[str, ...] = ()
    trees: tuple[dict[str, Any], ...] = ()
    gain: float = 0.0
    floor: float = 0.0
    new_items: NewItems | None = None
    step_decay: float | None = None
    report: Mapping[str, Any] = {}

    def save(self, folder: Path) -> None:
        """Write it among the files of a snapshot."""
        (folder / FILE).write_text(self.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LearnedRanking | None":
        """That of the snapshot in this folder; None where it has none. Raises SnapshotError for a damaged one."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise SnapshotError(
                f"{path} cannot be read: {error.errors()[0]['msg']}; build the snapshot again"
            ) from error


class LearnedRanker:
    """Scores candidates by a learned ranking, each for itself."""

    def __init__(self, learned: LearnedRanking, settings: RankingSettings) -> None:
        self._given = np.where([name in learned.weights for name in SOURCES], np.float32(0), weights_of(settings))
        self._weights = np.array([learned.weights.get(name, 0.0) for name in SOURCES], dtype=np.float32)
        self._columns = np.array([SOURCES.index(name) for name in learned.columns], dtype=np.intp)
        self._trees, self._gain, self._floor = Trees.of(learned.trees), learned.gain, learned.floor
        new = NewItems(weights={}, offset=0.0) if learned.new_items is None else learned.new_items
        self._texts = np.array([SOURCES.index(name) for name in new.weights], dtype=np.intp)
        self._of_new, self._offset = self._given.copy(), np.float32(new.offset)
        self._of_new[self._texts] = [*new.weights.values()]

    def score(self, batches: Sequence[Scores]) -> list[Scores]:
        """One [n] float32 for each [n, len(SOURCES)] float32 of source scores. Higher is better."""
        return [self._score(batch) for batch in batches]

    def _score(self, batch: Scores) -> Scores:
        found = self._of_known(batch)
        new = np.flatnonzero((batch[:, POPULAR] == 0) & batch[:, self._texts].any(axis=1))
        found[new] = batch[new] @ self._of_new + self._offset
        return found

    def _of_known(self, batch: Scores) -> Scores:
        given, weighed = batch @ self._given, batch @ self._weights
        if not len(self._trees):
            found: Scores = given + weighed
            return found
        seen = np.flatnonzero(weighed >= self._floor)
        grown = np.full(len(weighed), self._trees.least)
        grown[seen] = self._trees.score(np.column_stack([batch[np.ix_(seen, self._columns)], weighed[seen]]))
        total: Scores = (given + (weighed + self._gain * grown) / 2).astype(np.float32)
        return total


def open_ranker(settings: RankingSettings, snapshot: Path | None) -> LinearRanker | LearnedRanker:
    """The ranker that these settings ask for, over the snapshot in this folder; None = without one."""
    learned = _wanted(settings, snapshot)
    return LinearRanker(settings) if learned is None else LearnedRanker(learned, settings)


def profile_settings(given: ProfileSettings, ranking: RankingSettings, snapshot: Path) -> ProfileSettings:
    """The settings of profiles, with what they leave to the snapshot in this folder."""
    learned = _wanted(ranking, snapshot) if given.step_decay is None else None
    return given if learned is None else given.model_copy(update={"step_decay": learned.step_decay})


def _wanted(settings: RankingSettings, snapshot: Path | None) -> LearnedRanking | None:
    return LearnedRanking.load(snapshot) if settings.learned and snapshot is not None else None
