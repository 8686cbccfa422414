"""Boosted regression trees, evaluated for many rows at once without the library that fitted them.

Each split that a row fails rules out the leaves to its left; the first leaf that is left is the row's own. So a tree is
a few comparisons and an AND of bit masks: Lucchese et al., "QuickScorer", SIGIR 2015.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_LEAVES = 8  # a mask is one byte
_FIRST_BIT = np.array([0, *((mask & -mask).bit_length() - 1 for mask in range(1, 256))], dtype=np.intp)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """t trees of up to ``MOST_LEAVES`` leaves; what a smaller tree leaves over is filled so that it changes nothing.

    features: [t, 7] intp, what each split looks at. thresholds: [t, 7] float64; a row goes left where its value is not
    above. masks: [t, 7] uint8, the leaves that are still possible where it goes right. leaves: [t, 8] float64.
    """

    features: NDArray[np.intp]
    thresholds: Floats
    masks: NDArray[np.uint8]
    leaves: Floats

    def __len__(self) -> int:
        return len(self.leaves)

    @classmethod
    def of(cls, trees: Sequence[Mapping[str, Any]]) -> "Trees":
        """From nested ``{feature, threshold, left, right}`` and ``{value}``. Raises ValueError for a larger tree."""
        filled = cls(
            np.zeros((len(trees), MOST_LEAVES - 1), np.intp),
            np.full((len(trees), MOST_LEAVES - 1), np.inf),
            np.full((len(trees), MOST_LEAVES - 1), 255, np.uint8),
            np.zeros((len(trees), MOST_LEAVES)),
        )
        for number, tree in enumerate(trees):
            filled._fill(number, tree)
        return filled

    def _fill(self, number: int, tree: Mapping[str, Any]) -> None:
        n_leaves, n_splits = 0, 0

        def walk(node: Mapping[str, Any]) -> None:
            nonlocal n_leaves, n_splits
            if "value" in node:
                self.leaves[number, n_leaves] = node["value"]
                n_leaves += 1
                return
            first = n_leaves
            walk(node["left"])
            if n_splits == MOST_LEAVES - 1:
                raise ValueError(f"tree {number} has more than {MOST_LEAVES} leaves")
            ruled_out = sum(1 << leaf for leaf in range(first, n_leaves))
            self.features[number, n_splits] = node["feature"]
            self.thresholds[number, n_splits] = node["threshold"]
            self.masks[number, n_splits] = 255 & ~ruled_out
            n_splits += 1
            walk(node["right"])

        walk(tree)

    @property
    def least(self) -> float:
        """No row scores below this."""
        return float(self.leaves.min(axis=1).sum())

    def score(self, rows: NDArray[np.float32]) -> Floats:
        """[n] float64, the sum over the trees of the leaf that each row of [n, f] comes to."""
        goes_left = rows[:, self.features] <= self.thresholds
        possible = np.bitwise_and.reduce(np.where(goes_left, np.uint8(255), self.masks), axis=2)
        own = _FIRST_BIT[possible]
        total: Floats = self.leaves[np.arange(len(self)), own].sum(axis=1)
        return total
