"""The rows of an accuracy table: who answers, what it was fitted on, and how its settings were chosen.

Every row is asked by the same evaluator. A row that has settings to choose is measured with each of them on validation,
and the best by NDCG@10 is what the test, if it is asked for, gets to see.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_sets import LIKED_ABOVE, DataSet
from peer_models import PEERS, PeerLister, remembered
from product import BATCH, ROWS, RULES, RULES_OF_CATEGORIES, Product, Row, Snapshot, WithFriends
from references import REFERENCES, TRIED, popular

from raysys.config import BehaviourSettings, EncoderSettings
from raysys.evaluation.intervals import by_person
from raysys.evaluation.lists import Lister, by_score, filled
from raysys.evaluation.protocol import LIST_LENGTH, Evaluation, ItemFacts, concatenate, evaluate, facts_of
from raysys.evaluation.splits import Fold

CHOSEN_BY = "ndcg@10"
NO_FRIENDS = "without friends"
FALLBACK_DAYS = 365.0  # of what answers for a row that says nothing; the best of those tried on validation
SHIPPED = "the settings that ship; chosen on the validation of beauty and films, that of friends on lastfm"


@dataclass(eq=False)
class Bench:
    """What the rows of one data set share: a snapshot for each training set, and what is known of the items."""

    data: DataSet
    work: Path
    threads: int
    encoder: EncoderSettings
    behaviour: BehaviourSettings
    _snapshots: dict[int, Snapshot] = field(default_factory=dict)

    def snapshot(self, fold: Fold) -> Snapshot:
        """Folds that are fitted on the same events are answered by the same snapshot, at the time of the first."""
        key = id(fold.train)
        if key not in self._snapshots:
            self._snapshots[key] = Snapshot(self.data, fold, self.work, self.threads, self.encoder, self.behaviour)
        return self._snapshots[key]

    def facts(self, fold: Fold) -> ItemFacts:
        return facts_of(fold.train, self.data.n_items, self.snapshot(fold).vectors(), self.data.categories)


# One way of answering: the fold and the settings tried -> a lister.
Make = Callable[[Fold, Mapping[str, Any]], Lister]


@dataclass(frozen=True)
class Candidate:
    """A row before it is measured. tried: settings to choose from; one = nothing to choose."""

    name: str
    make: Make
    tried: Sequence[Mapping[str, Any]]
    about: str


@dataclass(frozen=True, eq=False)
class Measured:
    """parts: "validation" or "test, fitted on ..." -> what the row did. tried: each setting with its figure."""

    name: str
    about: str
    chosen: Mapping[str, Any]
    tried: list[dict[str, Any]]
    parts: dict[str, Evaluation]
    users_per_s: float


def candidates(bench: Bench, with_rules: bool, with_references: bool, peers: Path | None) -> list[Candidate]:
    """The rows of Raysys, then those to compare with."""
    has_categories = "categories" in bench.data.catalogue.column_names
    rows = ROWS | (RULES if with_rules else {}) | (RULES_OF_CATEGORIES if with_rules and has_categories else {})
    ours = {name: row for name, row in rows.items() if name != NO_FRIENDS or bench.data.friends is not None}
    found = [Candidate(name, _of_product(bench, row), [{}], SHIPPED) for name, row in ours.items()]
    if with_references:
        found += [Candidate(name, _of_reference(bench, name), TRIED[name], "own numpy") for name in REFERENCES]
    if peers is not None:
        found += [
            Candidate(name, _of_peer(bench, peers, peer.model), peer.tried, f"{peer.model} of others")
            for name, peer in PEERS.items()
        ]
    return found


def measure(bench: Bench, candidate: Candidate, folds: Mapping[str, Sequence[Fold]]) -> Measured:
    """Choose settings on validation, then answer every part with them. Speed is without building snapshots."""
    for fold in folds["validation"]:
        bench.snapshot(fold)
    start, trials = time.perf_counter(), []
    for settings in candidate.tried:
        found = _answer(bench, candidate, settings, folds["validation"])
        figure = float(by_person(found.users, found.metrics[CHOSEN_BY]).mean())
        trials.append((figure, settings, found))
    _, chosen, validation = max(trials, key=lambda trial: trial[0])
    seconds = time.perf_counter() - start
    parts = {"validation": validation}
    for name, of_part in folds.items():
        if name != "validation":
            parts[name] = _answer(bench, candidate, chosen, of_part)
    tried = [{"settings": dict(s), CHOSEN_BY: f} for f, s, _ in trials]
    speed = len(validation) * len(trials) / seconds
    return Measured(candidate.name, candidate.about, chosen, tried, parts, round(speed, 1))


def _answer(bench: Bench, candidate: Candidate, settings: Mapping[str, Any], folds: Sequence[Fold]) -> Evaluation:
    return concatenate(
        [evaluate(candidate.make(fold, settings), fold.task, bench.facts(fold), BATCH) for fold in folds]
    )


def liked(fold: Fold) -> Fold:
    """The fold with only what was liked to fit on: graded well, or not graded."""
    return replace(fold, train=fold.train.keep(~(fold.train.values <= LIKED_ABOVE)))


def _of_product(bench: Bench, row: Row) -> Make:
    def make(fold: Fold, settings: Mapping[str, Any]) -> Lister:
        product = Product(bench.snapshot(fold), row)
        has_friends = bench.data.friends is not None and row.ranking.friends > 0
        return WithFriends(product, bench.data, fold) if has_friends else product

    return make


def _of_reference(bench: Bench, name: str) -> Make:
    n_items = bench.data.n_items

    def make(fold: Fold, settings: Mapping[str, Any]) -> Lister:
        scorer = REFERENCES[name](liked(fold), n_items, **settings)
        return filled(by_score(scorer, LIST_LENGTH), _popular(fold, n_items))

    return make


def _of_peer(bench: Bench, python: Path, model: str) -> Make:
    n_items = bench.data.n_items

    def make(fold: Fold, settings: Mapping[str, Any]) -> Lister:
        peer = PeerLister(python, model, settings, liked(fold), n_items, bench.threads)
        return filled(remembered(peer, fold.task.histories), _popular(fold, n_items))

    return make


def _popular(fold: Fold, n_items: int) -> Lister:
    return by_score(popular(liked(fold), n_items, FALLBACK_DAYS), LIST_LENGTH)
