"""What is held out of the events, so that a ranking can be learned from what people did next (``training.learn``).

For that the behaviour models are fitted once more, without what is held out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.types import Keys

Mask = NDArray[np.bool_]
Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is held out of the events.

    since_s: everything from then on; None = the last like of each of the chosen people. people_share: who is chosen,
    by the hash of the user: this part of them. now_s: when what is held out is asked for.
    """

    since_s: float | None
    people_share: float
    now_s: float

    def chosen(self, users: Keys) -> Mask:
        """Which of these users are asked: [n] bool."""
        place = users // np.uint64(1 << 32)  # the low bits say in which part a user is
        is_chosen: Mask = place < np.uint64(self.people_share * (1 << 32))
        return is_chosen

    def rows(self, users: Keys, times_s: Times, liked: Mask) -> Mask:
        """Which events are held out. [n] each: users, times, whether it is a like."""
        if self.since_s is not None:
            return times_s >= self.since_s
        held = np.zeros(len(users), dtype=np.bool_)
        likes = np.flatnonzero(liked & self.chosen(users))
        order = likes[np.lexsort((times_s[likes], users[likes]))]
        is_last = np.ones(len(order), dtype=np.bool_)
        is_last[:-1] = users[order[1:]] != users[order[:-1]]
        held[order[is_last]] = True
        return held
