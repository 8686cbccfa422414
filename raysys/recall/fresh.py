"""How new items are: the candidate source that shows them before anybody has met them.

The score is ``0.5 ** (age / 3 days)``, and 0 from 14 days on. Ages are told in whole seconds: so two ages never round
to one score, and the order by age is the order by score.
"""

import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.recall.availability import Mask, epoch_s
from raysys.types import Keys

HALF_LIFE_S = 3 * 86_400.0
UNTIL_S = 14 * 86_400.0

NEVER_S = -np.inf  # since when the age of an item counts of which nobody knows


def since_s(items: pa.Table) -> NDArray[np.float64]:
    """[n] float64: since when each item of this table is there, its ``available_from`` in whole epoch seconds."""
    column = items["available_from"]
    if column.null_count == len(column):
        return np.broadcast_to(np.float64(NEVER_S), len(column))  # takes no memory
    return np.floor(epoch_s(column, NEVER_S))


def freshness(since_s: NDArray[np.float64], now_s: float) -> NDArray[np.float32]:
    """[n] float32 in 0..1, the score of items that are there since then; 0 for one that is not there yet."""
    age_s = math.floor(now_s) - since_s
    scores = np.exp2(-np.clip(age_s, 0, UNTIL_S) / HALF_LIFE_S)
    return np.where((age_s >= 0) & (age_s < UNTIL_S), scores, 0).astype(np.float32)


def younger_than(days: float, freshness: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[n] bool: the items of these scores, [n] float32, that are there for less than so many days, 14 at most."""
    younger: NDArray[np.bool_] = freshness > np.float32(np.exp2(-days * 86_400.0 / HALF_LIFE_S))
    return younger


class Newest:
    """Rows by age, newest first, ties by key; those without an age are left out.

    since_s: [n] float64. keys: [n] uint64. kept: [n] bool, the rows to look at, None = all.
    """

    def __init__(self, since_s: NDArray[np.float64], keys: Keys, kept: Mask | None = None) -> None:
        known = since_s > NEVER_S
        rows = np.flatnonzero(known if kept is None else known & kept)
        self._rows = rows[np.lexsort((keys[rows], -since_s[rows]))]
        self._minus_since_s = -since_s[self._rows]

    def rows(self, now_s: float) -> NDArray[np.intp]:
        """The rows whose ``freshness`` is above 0 now, in order."""
        if not len(self._rows):
            return self._rows
        now = -math.floor(now_s)
        begin, end = self._minus_since_s.searchsorted((now, now + UNTIL_S))
        return self._rows[begin:end]
