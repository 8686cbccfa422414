"""Caps: at most so many items of one value of a field in a list. Series and exclusion groups are caps of one."""

import numpy as np
from numpy.typing import NDArray

from raysys.ranking.groups import Groups


class CapCount:
    """One cap while a list grows.

    rule: its name in the answer. most: items of one value, 1 or more. closed: [n] bool, the candidates that it no
    longer allows. An item of several values counts for each, and one without a value is never closed.
    """

    def __init__(self, rule: str, most: int, groups: Groups) -> None:
        self.rule, self._most, self._groups = rule, most, groups
        self._counts = [0] * groups.n_values
        self.closed: NDArray[np.bool_] = np.zeros(len(groups), dtype=np.bool_)

    def take(self, at: int) -> None:
        """The candidate at this position is in the list."""
        for value in self._groups.of_item(at).tolist():
            self._counts[value] += 1
            if self._counts[value] == self._most:
                self.closed[self._groups.items[self._groups.values == value]] = True
