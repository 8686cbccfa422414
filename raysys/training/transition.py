"""The transition model: which item tends to follow which, counted from behaviour. Nothing is trained by gradient.

For every user, two different items at positions i < j with lag = j - i <= window add ``1 / sqrt(lag)`` to the pair
(earlier -> later) and ``reverse / sqrt(lag)`` to (later -> earlier). A pair's weight is then

    w_ij = c_ij / (sqrt(n_i * n_j) + shrink)

with n the number of events of an item: the square root takes popularity out, ``shrink`` keeps pairs that were seen
once between two rare items from looking certain. A history scores an item by the sum of the weights that lead to it.

Counts add up: a task may count the events of any part of the users, and the parts are summed by ``merge``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.errors import ConfigError, InvalidInput
from raysys.types import Keys


@dataclass(frozen=True, slots=True, eq=False)
class PairCounts:
    """A sparse item-to-item matrix, sorted by (source, target), one entry a pair.

    source, target: [n] uint64 item keys. weight: [n] float64, discounted counts, or weights after ``normalise``.
    """

    source: Keys
    target: Keys
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, kept: NDArray[np.bool_]) -> "PairCounts":
        """The entries where ``kept``, [n] bool, is true; their order stays."""
        return PairCounts(self.source[kept], self.target[kept], self.weight[kept])


def count_pairs(
    users: NDArray[np.int64] | Keys, items: Keys, times_s: NDArray[np.float64], window: int, reverse: float
) -> PairCounts:
    """Discounted counts of the item pairs in each user's sequence.

    users: [n] codes or keys, all events of a user must be in this call. items: [n] uint64 item keys.
    times_s: [n] epoch seconds; events of equal time keep their order in the input.
    An item that a user met twice counts at both positions; a pair of an item with itself is left out.
    Memory grows with the pairs, at most ``2 * n * window`` of them: split large inputs by user.
    """
    if not len(users) == len(items) == len(times_s):
        raise InvalidInput("events", f"columns differ in length: {len(users)}, {len(items)}, {len(times_s)}")
    if window < 1 or not 0 <= reverse <= 1:
        raise ConfigError(f"window must be >= 1 and reverse in [0, 1], but they are {window} and {reverse}")
    order = np.lexsort((times_s, users))  # stable
    keys, codes = np.unique(items[order], return_inverse=True)
    forward = _count_forward(users[order], codes, len(keys), window)
    source, target = (keys[code] for code in np.divmod(forward[0], np.int64(max(len(keys), 1))))
    counts = PairCounts(source, target, forward[1])
    return counts if reverse == 0 else merge([counts, PairCounts(target, source, reverse * counts.weight)])


def _count_forward(
    users: NDArray[np.int64] | Keys, codes: NDArray[np.intp], n_items: int, window: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(earlier code * n_items + later code, its discounted count), sorted; users and codes are in event order."""
    pairs, weights = [np.empty(0, np.int64)], [np.empty(0)]
    for lag in range(1, min(window, len(users) - 1) + 1):
        same_user = users[:-lag] == users[lag:]
        if not same_user.any():  # no user has so many events, so no longer lag can match either
            break
        met = same_user & (codes[:-lag] != codes[lag:])
        pair, count = np.unique(codes[:-lag][met] * np.int64(n_items) + codes[lag:][met], return_counts=True)
        pairs.append(pair)
        weights.append(count / np.sqrt(lag))
    pair, position = np.unique(np.concatenate(pairs), return_inverse=True)
    return pair, np.bincount(position, weights=np.concatenate(weights), minlength=len(pair)).astype(np.float64)


def merge(parts: Sequence[PairCounts]) -> PairCounts:
    """The sum of the parts. Theirs may be any order; pairs may occur in several parts, or twice in one."""
    if not parts:
        return PairCounts(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0))
    source, target, weight = (np.concatenate([getattr(p, c) for p in parts]) for c in PairCounts.__slots__)
    order = np.lexsort((target, source))
    source, target, weight = source[order], target[order], weight[order]
    first = np.ones(len(weight), dtype=bool)
    first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    starts = np.flatnonzero(first)
    summed = np.add.reduceat(weight, starts) if len(starts) else weight
    return PairCounts(source[starts], target[starts], summed)


def normalise(counts: PairCounts, item_counts: tuple[Keys, NDArray[np.float32]], shrink: float) -> PairCounts:
    """Weights ``c_ij / (sqrt(n_i * n_j) + shrink)``, in the order of ``counts``.

    item_counts: ([m] uint64 sorted item keys, [m] how many of the counted events each item had, > 0).
    Raises InvalidInput for an item without a count.
    """
    root = np.sqrt(item_counts[1].astype(np.float64))
    expected = _look_up(counts.source, item_counts[0], root) * _look_up(counts.target, item_counts[0], root)
    return PairCounts(counts.source, counts.target, counts.weight / (expected + shrink))


def _look_up(wanted: Keys, keys: Keys, values: NDArray[np.float64]) -> NDArray[np.float64]:
    at = np.searchsorted(keys, wanted)
    known = at < len(keys)
    known[known] = keys[at[known]] == wanted[known]
    if not known.all():
        raise InvalidInput("item_counts", f"no count for item key {wanted[~known][0]}: count the same events")
    return values[at]


def prune(counts: PairCounts, targets_per_item: int) -> PairCounts:
    """The strongest targets of each source; of equal ones those with the smaller key. The order stays.

    Give it all targets of a source at once: pruned shard by shard, the result would depend on the sharding.
    """
    order = np.lexsort((counts.target, -counts.weight, counts.source))
    source = counts.source[order]
    place = np.arange(len(source)) - np.searchsorted(source, source)
    kept = np.zeros(len(source), dtype=bool)
    kept[order[place < targets_per_item]] = True
    return counts.take(kept)
