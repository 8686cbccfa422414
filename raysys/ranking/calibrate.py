"""Calibration: a list with the mix of categories that its person has. Steck, "Calibrated recommendations", RecSys 2018.

Somebody of seven romances and three thrillers should not get ten romances. With p the mix of the person's items and q
that of the list, how far the list is off is KL(p || (1 - a) q + a p); the little of p in it keeps it finite where the
list has nothing of a category. An item of several categories counts for each in equal parts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysys.ranking.groups import Groups

SMOOTHING = 0.01  # a, as in the paper

Floats = NDArray[np.float64]


class Miscalibration:
    """How far the list is off with each candidate added to it: ``cost``, [n] float64, in nats, at least 0.

    wanted: [groups.n_values] float64, sums to 1.
    """

    def __init__(self, wanted: Floats, groups: Groups) -> None:
        self._groups = groups
        self._wanted_values = np.flatnonzero(wanted)  # of what is not wanted, KL(p || q) has no term
        self._wanted = wanted[self._wanted_values]
        self._least = float(self._wanted @ np.log(self._wanted))
        counted = wanted[groups.values] > 0
        self._items = groups.items[counted]
        self._at = self._wanted_values.searchsorted(groups.values[counted])
        self._weights, self._added = self._wanted[self._at], (1 - SMOOTHING) * groups.shares[counted]
        self._counts: Floats = np.zeros(groups.n_values)
        self._length = 0
        self.cost: Floats = self._costs()

    def take(self, at: int) -> None:
        values = self._groups.of_item(at)
        self._counts[values] += 1 / max(len(values), 1)
        self._length += 1
        self.cost = self._costs()

    def _costs(self) -> Floats:
        """A candidate changes few categories, so only those are taken anew."""
        length = self._length + 1
        mix = _smoothed(self._wanted, self._counts[self._wanted_values] / length)
        nearer = self._weights * np.log1p(self._added / (length * mix)[self._at])
        gain = np.bincount(self._items, nearer, minlength=len(self._groups))
        cost: Floats = np.subtract(self._least - float(self._wanted @ np.log(mix)), gain)
        return cost


def miscalibration(wanted: Floats, groups: Groups, chosen: Sequence[int]) -> float:
    """How far the list of the items at these positions is off, in nats; 0 = not at all. wanted as above."""
    weights = np.bincount(np.asarray(chosen, dtype=np.intp), minlength=len(groups)).astype(np.float64)
    counts = np.bincount(groups.values, groups.shares * weights[groups.items], minlength=groups.n_values)
    return _divergence(wanted, _smoothed(wanted, counts / max(len(chosen), 1)))


def _smoothed(wanted: Floats, mix: Floats) -> Floats:
    return (1 - SMOOTHING) * mix + SMOOTHING * wanted


def _divergence(wanted: Floats, mix: Floats) -> float:
    known = wanted > 0
    return float(wanted[known] @ np.log(wanted[known] / mix[known]))
