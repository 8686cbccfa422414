"""Two rankers in one list: each person compares them, so a preference shows with far fewer people than an A/B test.

Team-draft interleaving (Radlinski, Kurup and Joachims, "How Does Clickthrough Data Reflect Retrieval Quality?",
CIKM 2008): the rankers pick in turns, as captains do for their teams, each the best of its list that is not taken;
a coin says who picks first in each round. What people then choose is credited to the team that picked it.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from raysys.errors import InvalidInput
from raysys.evaluation.experiments import e_value_of_counts
from raysys.evaluation.shown import Rewards, exposures, read_pieces, user_keys
from raysys.types import Keys

Team = Literal["first", "second"]
Fits = Callable[[Collection[str], str], bool]  # whether this item may join those

# Preferences of about 57 people in 100 are found soonest; it has no part in how often a verdict is wrong.
CONCENTRATION = 50.0


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A list to show. teams: who picked each item; None = it stands for neither (see ``team_draft``)."""

    items: tuple[str, ...]
    teams: tuple[Team | None, ...]

    def credit(self, chosen: Collection[str]) -> tuple[int, int]:
        """How many of the chosen items the first and the second team picked; an item counts once."""
        of = [team for item, team in zip(self.items, self.teams, strict=True) if item in chosen]
        return of.count("first"), of.count("second")


def team_draft(
    first: Sequence[str], second: Sequence[str], n: int, rng: np.random.Generator, fits: Fits | None = None
) -> Interleaved:
    """The first ``n`` items of both rankings in one list.

    first, second: item ids, best first, each once (InvalidInput where one comes again). Where one ranking has no item
    left to pick, what follows comes from the other, and stands for neither, and so does a pick that has no answer:
    a longer ranking shall not win by its length. fits: whether an item may join those picked so far; None = any may.
    """
    fits = _always if fits is None else fits
    rankings = {"first": first, "second": second}
    for name, ranking in rankings.items():
        if len(set(ranking)) < len(ranking):
            raise InvalidInput(name, "an item comes more than once in the ranking")
    items: dict[str, Team | None] = {}
    while len(items) < n:
        order: tuple[Team, Team] = ("first", "second") if rng.integers(2) else ("second", "first")
        picks = _round(rankings, order, items, fits)
        if len(picks) < 2:
            _fill(items, [*first, *second], n, fits)
            break
        items |= dict(list(picks.items())[: n - len(items)])
    return Interleaved(tuple(items), tuple(items.values()))


def _round(
    rankings: dict[str, Sequence[str]], order: tuple[Team, Team], taken: dict[str, Team | None], fits: Fits
) -> dict[str, Team | None]:
    """What each picks in this order; fewer than two where a ranking has nothing left."""
    picks: dict[str, Team | None] = {}
    for team in order:
        so_far = taken | picks
        pick = next((item for item in rankings[team] if item not in so_far and fits(so_far, item)), None)
        if pick is not None:
            picks[pick] = team
    return picks


def _fill(items: dict[str, Team | None], rest: Iterable[str], n: int, fits: Fits) -> None:
    """What follows stands for neither."""
    for item in rest:
        if len(items) < n and item not in items and fits(items, item):
            items[item] = None


def _always(taken: Collection[str], item: str) -> bool:
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """What ``preference`` asks for. users: [n] uint64 keys. first, second: [n] int64, items chosen of each team."""

    users: Keys
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def read_credit(
    folder: str | Path, chosen: Rewards, experiment: str, arm: str, keep: pads.Expression | None = None
) -> Credit:
    """The credit of the lists that people in this arm were shown, of the impression log.

    chosen: of ``evaluation.shown.read_rewards``; an item of a list that earned more than 0 is chosen. keep: which rows,
    as for ``read_shown``. People who chose nothing are there as well. Raises Unavailable when a file cannot be read.
    """
    none = np.empty(0, np.int64)
    pieces = [Credit(none.astype(np.uint64), none, none)]
    columns = ["recommendation_id", "user", "item_id", "experiments", "team"]
    for rows in read_pieces(folder, columns, keep):
        at, experiments, arms = exposures(rows)
        inside = pc.and_(pc.equal(experiments, experiment), pc.equal(arms, arm)).to_numpy(zero_copy_only=False)
        pieces.append(_credit(rows.take(pa.array(at[inside])), chosen))
    return Credit(*(np.concatenate([getattr(piece, field.name) for piece in pieces]) for field in fields(Credit)))


def _credit(rows: pa.Table, chosen: Rewards) -> Credit:
    """Of one piece of the log, a row a person."""
    users, user = np.unique(user_keys(rows), return_inverse=True)
    teams = rows["team"].fill_null("").to_numpy()
    of_team = [user[(chosen.of(rows) > 0) & (teams == team)] for team in ("first", "second")]
    return Credit(users, *(np.bincount(theirs, minlength=len(users)).astype(np.int64) for theirs in of_team))


@dataclass(frozen=True, slots=True)
class Preference:
    """People who chose more from one team, or as much from both. Who chose nothing is in ``even``.

    share: of the decided people those who prefer the first, NaN where nobody is. p_value: of "as many prefer either",
    valid at any look. prefers: None where ``p_value`` is above alpha.
    """

    first: int
    second: int
    even: int
    share: float
    p_value: float
    prefers: Team | None


def preference(
    users: NDArray[np.uint64], first: NDArray[np.int64], second: NDArray[np.int64], alpha: float = 0.05
) -> Preference:
    """Sum the credit of each person's lists, and count who prefers which team.

    users: [n] uint64 keys, one row a list. first, second: [n] int64, ``Interleaved.credit`` of the list. For a look
    before the end take people whose lists are all in: a person who changes sides later would not be one draw.
    """
    _, user = np.unique(users, return_inverse=True)
    leads = np.sign(np.bincount(user, first.astype(np.float64) - second.astype(np.float64)))
    wins, losses = int(np.count_nonzero(leads > 0)), int(np.count_nonzero(leads < 0))
    decided = wins + losses
    p_value = min(1.0, 1 / e_value_of_counts((wins, losses), (0.5, 0.5), CONCENTRATION))
    leader: Team = "first" if wins > losses else "second"
    share = wins / decided if decided else math.nan
    return Preference(wins, losses, len(leads) - decided, share, p_value, leader if p_value <= alpha else None)
