"""Which values of one field the candidates have: the groups that caps and calibration count."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Groups:
    """The values of n items as numbers below ``n_values``, each value of an item once.

    values: [p] intp, by item. starts: [n + 1] intp; item i has ``values[starts[i] : starts[i + 1]]``, none where its
    field is null.
    """

    starts: Indices
    values: Indices
    n_values: int

    @classmethod
    def of(cls, column: pa.Array) -> "Groups":
        """The groups of a column: its values, or the elements of its lists. Null belongs to no group."""
        items = np.arange(len(column))
        flat = column
        if pa.types.is_list(column.type):
            items = np.repeat(items, pc.fill_null(pc.list_value_length(column), 0).to_numpy())
            flat = column.flatten()
        encoded = flat.dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.intp)
        n_values = len(encoded.dictionary)
        known = codes >= 0
        of_item, values = items[known], codes[known]
        if flat is not column and n_values:  # a list may have a value twice
            of_item, values = np.divmod(np.unique(of_item * n_values + values), n_values)
        return cls(np.searchsorted(of_item, np.arange(len(column) + 1)), values, n_values)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def items(self) -> Indices:
        """[p] intp: the item of each of the values."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """[p] float64: 1 / (how many values its item has), so that an item counts once however many it has."""
        lengths = np.diff(self.starts)
        return 1.0 / np.repeat(lengths, lengths)

    def of_item(self, at: int) -> Indices:
        """The values of one item."""
        return self.values[self.starts[at] : self.starts[at + 1]]

    def first(self, n: int) -> "Groups":
        """The same groups for the first n items alone."""
        return Groups(self.starts[: n + 1], self.values[: self.starts[n]], self.n_values)

    def mix(self, weights: NDArray[np.number | np.bool_]) -> NDArray[np.float64] | None:
        """[n_values] float64, sums to 1: how much of the weight of the items ([n], >= 0) falls to each value.

        None where no item with a value has weight.
        """
        weighed = self.shares * weights[self.items]
        total = np.bincount(self.values, weighed, minlength=self.n_values)
        return total / total.sum() if total.sum() > 0 else None
