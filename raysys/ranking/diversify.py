"""How much a candidate repeats the list so far: by its nearest neighbour there (MMR), or by all that is there (DPP).

Text vectors lie in a narrow cone, where everything is alike, so the catalogue's mean is taken off before they are
compared.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raysys.types import Vectors

LEAST_RESIDUAL = 1e-6  # of what the list spans already; its logarithm ends here
_TINY = 1e-6

Floats = NDArray[np.float64]


class Likeness:
    """Cosines between candidates, a row when it is first asked for.

    vectors: [n, dim] float32, zero for an item without text, which is like nothing but itself. center: [dim] float32,
    the mean of the catalogue's vectors, or zeros.
    """

    def __init__(self, vectors: Vectors, center: Vectors) -> None:
        self._unit = _centred(vectors, center)
        self._rows: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self._unit)

    def row(self, at: int) -> Floats:
        """[n] float64 in -1..1: the cosine of this candidate with each; with itself 1."""
        found = self._rows.get(at)
        if found is None:
            found = (self._unit @ self._unit[at]).astype(np.float64)
            found[at] = 1.0
            self._rows[at] = found
        return found


class Redundancy(Protocol):
    """cost: [n] float64, how much each candidate repeats the list so far; higher is worse."""

    cost: Floats

    def take(self, at: int) -> None:
        """The candidate at this position is in the list."""
        ...


class MaximalMarginal:
    """The cosine with the nearest item of the list, 0 where that is below 0: maximal marginal relevance.

    Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.
    """

    def __init__(self, likeness: Likeness) -> None:
        self._likeness = likeness
        self.cost: Floats = np.zeros(len(likeness))

    def take(self, at: int) -> None:
        np.maximum(self.cost, self._likeness.row(at), out=self.cost)


class Determinantal:
    """- log of the part of a candidate that the list does not span: the greedy MAP of a determinantal point process.

    The kernel is (1 + cosine) / 2. Its Cholesky factor grows by one row an item, so a list of n costs O(n^2) for each
    candidate: Chen, Zhang and Zhou, "Fast greedy MAP inference for determinantal point process", NeurIPS 2018,
    algorithm 1 with the trade-off of its equation 14.
    """

    def __init__(self, likeness: Likeness) -> None:
        self._likeness = likeness
        self._residual: Floats = np.ones(len(likeness))
        self._factor: Floats = np.empty((16, len(likeness)))
        self._taken = 0
        self.cost: Floats = np.zeros(len(likeness))

    def take(self, at: int) -> None:
        if self._residual[at] <= LEAST_RESIDUAL:  # the list spans it, so it brings nothing to divide by
            return
        if self._taken == len(self._factor):
            self._factor = np.concatenate([self._factor, np.empty_like(self._factor)])
        known = self._factor[: self._taken]
        kernel = (1 + self._likeness.row(at)) / 2
        row = (kernel - known[:, at] @ known) / np.sqrt(self._residual[at])
        self._factor[self._taken] = row
        self._taken += 1
        self._residual -= row**2
        self.cost = -np.log(np.maximum(self._residual, LEAST_RESIDUAL))


def _centred(vectors: Vectors, center: Vectors) -> Vectors:
    """The vectors less the centre, of length 1; what has no direction stays zero."""
    moved = vectors - center
    moved[~vectors.any(axis=1)] = 0
    norms = np.sqrt(np.einsum("ij,ij->i", moved, moved))
    moved /= np.maximum(norms, _TINY)[:, None]
    return moved
