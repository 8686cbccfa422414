"""The list as a whole: from the best candidates to the final n, by rules that look at the list and not at one item.

The rules, in the order in which they have their say:

1. Promotions stand at their slots. They count for every rule below, from the first place on.
2. Caps close their groups: no item of a full group comes in, a promotion neither.
3. Each free place, from the first to the last, goes to the open candidate with the most of

       (1 - c) * ((1 - d) * relevance - d * redundancy) - c * miscalibration

   d, c: diversity and calibration, 0..1. relevance: the score, from 0 for the last candidate to 1 for the best.
   redundancy: ``diversify``. miscalibration: ``calibrate``. Equal ones by score, then by key.

Calibration that would leave the list further off than it is without is left out. What each rule moved is found by
doing without it: ``Move.rank`` is where the item stands in the list of all the other rules.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.ranking.calibrate import Miscalibration, miscalibration
from raysys.ranking.caps import CapCount
from raysys.ranking.diversify import Determinantal, Likeness, MaximalMarginal
from raysys.ranking.groups import Groups
from raysys.ranking.promote import at_slots
from raysys.types import Cap

DIVERSITY, CALIBRATION, PROMOTION = "diversity", "calibration", "promotion"

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mix:
    """What calibration compares. wanted: [groups.n_values] float64, the person's mix. groups: of the pool."""

    wanted: Floats
    groups: Groups


@dataclass(frozen=True, eq=False)
class Pool:
    """The candidates of one list: those that were found, best first, then those that only a promotion brings in.

    scores: [m] float32 of those found, never rising; of equal ones the one with the lower key comes first.
    size: m and the promoted ones behind them. groups: by field, [size]. likeness: [size], None where diversity is off.
    mix: None where calibration is off.
    """

    scores: NDArray[np.float32]
    size: int
    groups: Mapping[str, Groups] = field(default_factory=dict)
    likeness: Likeness | None = None
    mix: Mix | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """diversity, calibration: 0..1, 0 = off. caps: by their names in the answer. pins: slot -> position in the pool."""

    diversity: float = 0.0
    method: Literal["mmr", "dpp"] = "mmr"
    calibration: float = 0.0
    caps: Mapping[str, Cap] = field(default_factory=dict)
    pins: Mapping[int, int] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The rules that are on."""
        switches = ((DIVERSITY, self.diversity), (CALIBRATION, self.calibration), (PROMOTION, self.pins))
        return [*(name for name, on in switches if on), *self.caps]

    def without(self, rule: str) -> "Rules":
        """The same but for one of ``names``."""
        if rule == DIVERSITY:
            return replace(self, diversity=0.0)
        if rule == CALIBRATION:
            return replace(self, calibration=0.0)
        if rule == PROMOTION:
            return replace(self, pins={})
        return replace(self, caps={name: cap for name, cap in self.caps.items() if name != rule})


class Move(NamedTuple):
    """What a rule did to an item. rank: without the rule, from 1; None = it would not be in the list."""

    rule: str
    rank: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The list. order: at most n positions in the pool. moves: of each of them, the rules that moved it.

    refused: promoted positions that a cap keeps out, with its name. short_by: the caps that keep candidates out of a
    list of fewer than n.
    """

    order: Sequence[int]
    moves: Sequence[tuple[Move, ...]]
    refused: Mapping[int, str]
    short_by: tuple[str, ...]


def rerank(pool: Pool, rules: Rules, n: int) -> Listing:
    """The final n by all rules at once; see the top of this module.

    The pool must have the groups, likeness and mix that the rules ask for. Without rules: the n best.
    """
    lists = _Lists(pool, n)
    chosen = lists.by(rules)
    ranks = {name: lists.ranks(rules.without(name)) for name in rules.names()}
    moves = [tuple(_moves(at, rank, ranks)) for rank, at in enumerate(chosen.order, start=1)]
    return Listing(chosen.order, moves, chosen.refused, chosen.short_by)


class _Choice(NamedTuple):
    order: list[int]
    refused: dict[int, str]
    short_by: tuple[str, ...]


class _Lists:
    """The lists of one request by some of its rules, each made once."""

    def __init__(self, pool: Pool, n: int) -> None:
        self._pool, self._n = pool, n
        self._made: dict[tuple[str, ...], _Choice] = {}

    def by(self, rules: Rules) -> _Choice:
        """The list by these rules; without calibration where that would leave it no nearer to the person's mix."""
        chosen = self._made_by(rules)
        if not rules.calibration:
            return chosen
        plain = self._made_by(rules.without(CALIBRATION))
        return chosen if self._off(chosen) < self._off(plain) else plain

    def ranks(self, rules: Rules) -> dict[int, int]:
        """Position -> rank by these rules; without any, also of those beyond the end of the list."""
        order = self.by(rules).order if rules.names() else range(len(self._pool.scores))
        return {at: rank for rank, at in enumerate(order, start=1)}

    def _made_by(self, rules: Rules) -> _Choice:
        names = tuple(rules.names())
        if names not in self._made:
            self._made[names] = _choose(self._pool, rules, self._n)
        return self._made[names]

    def _off(self, chosen: _Choice) -> float:
        mix = self._pool.mix
        assert mix is not None  # noqa: S101  # see rerank
        return miscalibration(mix.wanted, mix.groups, chosen.order)


def _choose(pool: Pool, rules: Rules, n: int) -> _Choice:
    growing = _Growing(pool, rules)
    pins, refused = {}, {}
    for slot, at in sorted(rules.pins.items()):
        closer = growing.closed_by(at)
        if closer is None:
            pins[slot] = at
            growing.take(at)
        else:
            refused[at] = closer
    others: list[int] = []
    while len(pins) + len(others) < n and (best := growing.best()) is not None:
        others.append(best)
        growing.take(best)
    order = at_slots(pins, others, n)
    return _Choice(order, refused, growing.closing() if len(order) < n else ())


class _Growing:
    """One list while it grows."""

    def __init__(self, pool: Pool, rules: Rules) -> None:
        self._caps = [CapCount(name, cap.most, pool.groups[cap.field]) for name, cap in rules.caps.items()]
        self._left = np.arange(pool.size) < len(pool.scores)
        self._open = self._left.copy()
        self._is_plain = not rules.diversity and not rules.calibration
        self._relevance = np.zeros(pool.size)
        self._relevance[: len(pool.scores)] = _relevance(pool.scores)
        self._relevance *= (1 - rules.calibration) * (1 - rules.diversity)
        self._costs = list(_costs(pool, rules))

    def closed_by(self, at: int) -> str | None:
        """The first cap that does not allow the candidate at this position."""
        return next((cap.rule for cap in self._caps if cap.closed[at]), None)

    def closing(self) -> tuple[str, ...]:
        """The caps that keep candidates out."""
        return tuple(cap.rule for cap in self._caps if (cap.closed & self._left).any())

    def take(self, at: int) -> None:
        self._left[at] = False
        for _, cost in self._costs:
            cost.take(at)
        for cap in self._caps:
            cap.take(at)
            self._open &= ~cap.closed
        self._open[at] = False

    def best(self) -> int | None:
        """The open candidate with the most gain, the first of equal ones; None where none is open."""
        if self._is_plain:
            at = int(self._open.argmax())  # the pool is in this order already
        else:
            gain = self._relevance
            for weight, cost in self._costs:
                gain = gain - weight * cost.cost
            at = int(np.where(self._open, gain, -np.inf).argmax())
        return at if self._open[at] else None


def _costs(pool: Pool, rules: Rules) -> Iterator[tuple[float, MaximalMarginal | Determinantal | Miscalibration]]:
    if rules.diversity:
        assert pool.likeness is not None  # noqa: S101  # see rerank
        kind = MaximalMarginal if rules.method == "mmr" else Determinantal
        yield (1 - rules.calibration) * rules.diversity, kind(pool.likeness)
    if rules.calibration:
        assert pool.mix is not None  # noqa: S101  # see rerank
        yield rules.calibration, Miscalibration(pool.mix.wanted, pool.mix.groups)


def _relevance(scores: NDArray[np.float32]) -> Floats:
    """[m] float64 from 1 for the best to 0 for the last; 0 where all are equal."""
    if not len(scores):
        return np.zeros(0)
    from_last = scores.astype(np.float64) - float(scores[-1])
    relevance: Floats = from_last / max(from_last[0], np.finfo(np.float64).tiny)
    return relevance


def _moves(at: int, rank: int, without: Mapping[str, Mapping[int, int]]) -> Iterator[Move]:
    for rule, ranks in without.items():
        if ranks.get(at) != rank:
            yield Move(rule, ranks.get(at))
