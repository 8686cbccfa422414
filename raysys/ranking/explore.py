"""Places for new items: what nobody has met yet is shown now and then, by chances that are known.

The list is cut into blocks of ``one_in`` places, the last one as if it were whole. In each block one place is drawn,
every place as likely. What stands there gives way to a new item, one of those that may stand there, each as likely.
New items are dealt to the blocks in turn, so that none is drawn twice and no block depends on another. So

    P(a new item at its place)     = 1 / one_in / (how many may stand there)
    P(what stands there otherwise) = 1 - 1 / one_in, and 1 where no new item may

whatever else is in the list: the chances that off-policy estimates need (``evaluation.off_policy``). All other items
keep their places, promotions among them.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.ranking.groups import Groups
from raysys.types import Keys

MayStand = Sequence[Sequence[int]]

MOST_COUNTED = 100_000  # items, some 10 MB


@dataclass(frozen=True, slots=True)
class Explored:
    """The list after the draw. order: positions. explored: the places, from 0, that went to new items.

    propensities: by place, how likely it was that this item stands there.
    """

    order: Sequence[int]
    explored: frozenset[int]
    propensities: Sequence[float]


def explore(order: Sequence[int], may_stand: MayStand, one_in: int, rng: np.random.Generator) -> Explored:
    """Draw the places of new items; see the top of this module.

    order: positions in the list. may_stand: by place, the positions of the new items that may stand there, none for a
    place that stays. No item may stand in two blocks, nor be in the list.
    """
    shown, explored = list(order), set()
    propensities = [1 - 1 / one_in if new else 1.0 for new in may_stand]
    for start in range(0, len(order), one_in):
        place = start + int(rng.integers(one_in))
        if place < len(order) and may_stand[place]:
            new = may_stand[place]
            shown[place] = new[int(rng.integers(len(new)))]
            propensities[place] = 1 / one_in / len(new)
            explored.add(place)
    return Explored(shown, frozenset(explored), propensities)


class Room:
    """What the caps leave room for in one list. caps: each with the groups of all positions that are used here."""

    def __init__(self, order: Sequence[int], caps: Sequence[tuple[int, Groups]]) -> None:
        self._order = order
        self._caps = [(most, groups, _counts(order, groups)) for most, groups in caps]

    def allows(self, new: int, place: int) -> bool:
        """Whether every cap holds with this item instead of the one at this place, from 0."""
        for most, groups, counts in self._caps:
            leaving = groups.of_item(self._order[place]).tolist()
            if any(counts[value] - (value in leaving) >= most for value in groups.of_item(new).tolist()):
                return False
        return True

    @property
    def is_capped(self) -> bool:
        return bool(self._caps)


def _counts(order: Sequence[int], groups: Groups) -> Counter[int]:
    return Counter(value for at in order for value in groups.of_item(at).tolist())


def may_stand(order: Sequence[int], new: Sequence[int], staying: Collection[int], one_in: int, room: Room) -> MayStand:
    """By place of the list, the new items that ``explore`` may draw for it.

    new: positions, the best first. staying: the places, from 0, that are not explored. Where there are caps only the
    first block is explored: two new items of two blocks could break one together.
    """
    n_blocks = 1 if room.is_capped else -(-len(order) // one_in)
    dealt = [new[block::n_blocks] for block in range(n_blocks)]
    return [
        [at for at in dealt[place // one_in] if room.allows(at, place)]
        if place // one_in < n_blocks and place not in staying
        else []
        for place in range(len(order))
    ]


class TimesShown:
    """How often new items were shown, as far as this process knows: it starts anew with it."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # by item key, in the order in which they were first shown

    def add(self, keys: Keys) -> None:
        """These items were shown once more. Beyond ``MOST_COUNTED`` those that came first are forgotten."""
        for key in keys.tolist():
            self._counts[key] = self._counts.get(key, 0) + 1
        while len(self._counts) > MOST_COUNTED:
            del self._counts[next(iter(self._counts))]

    def below(self, keys: Keys, most: int) -> NDArray[np.bool_]:
        """[n] bool: the items that were shown less than ``most`` times."""
        return np.array([self._counts.get(key, 0) < most for key in keys.tolist()], dtype=np.bool_)
