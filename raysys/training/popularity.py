"""Popularity with decay: an event counts half as much after every half-life.

Like the pair counts, it adds up: parts counted with the same ``now_s`` and half-life are summed by ``merge``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.errors import ConfigError, InvalidInput
from raysys.types import Keys

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class ItemCounts:
    """One entry an item, sorted by key.

    keys: [n] uint64. count: [n] float32, how many events. popularity: [n] float32, their decayed weight, >= 0.
    """

    keys: Keys
    count: NDArray[np.float32]
    popularity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)


def count_items(
    items: Keys, times_s: NDArray[np.float64], weights: NDArray[np.float32], now_s: float, half_life_days: float
) -> ItemCounts:
    """Events and decayed popularity of each item.

    items: [n] uint64 keys. times_s: [n] epoch seconds; events later than ``now_s`` count as of now.
    weights: [n] float32, what each event says; those below zero are counted, and add nothing to popularity.
    """
    if not len(items) == len(times_s) == len(weights):
        raise InvalidInput("events", f"columns differ in length: {len(items)}, {len(times_s)}, {len(weights)}")
    if not half_life_days > 0:
        raise ConfigError(f"popularity_half_life_days must be above 0, but it is {half_life_days}")
    age_days = np.maximum(now_s - times_s, 0) / DAY_S
    return _sum(items, np.ones(len(items)), np.maximum(weights, 0) * np.exp2(-age_days / half_life_days))


def merge(parts: Sequence[ItemCounts]) -> ItemCounts:
    """The sum of the parts."""
    if not parts:
        return _sum(np.empty(0, np.uint64), np.empty(0), np.empty(0))
    keys, count, popularity = (np.concatenate([getattr(p, c) for p in parts]) for c in ItemCounts.__slots__)
    return _sum(keys, count.astype(np.float64), popularity.astype(np.float64))


def _sum(items: Keys, count: NDArray[np.float64], popularity: NDArray[np.float64]) -> ItemCounts:
    keys, position = np.unique(items, return_inverse=True)
    totals = (np.bincount(position, weights=values, minlength=len(keys)) for values in (count, popularity))
    return ItemCounts(keys, *(total.astype(np.float32) for total in totals))
