"""A person's vector in the space of a factor model, from the items of their history, as they are known now.

Implicit matrix factorisation (Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM
2008), with the penalty scaled by frequency (Rendle et al., "Revisiting the Performance of iALS on Item Recommendation
Benchmarks", RecSys 2022). With y_i the vectors of all n items, w_i the weights of those in the history, a the weight of
a pair that was not observed and p the penalty, the vector x of a person is where this is least:

    sum_i w_i (x.y_i - 1)^2  +  a sum_j (x.y_j)^2  +  p (sum_i w_i + a n) |x|^2

The second sum needs only Y'Y, which is diagonal here: the items are laid along its principal axes. So what does not
depend on the history is one number an axis, ``floor`` = a (diagonal of Y'Y + p n).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from raysys.errors import SnapshotError
from raysys.types import Vectors

_FILE = "fold-in.json"
BLOCK_ENTRIES = 1 << 16  # items of histories that are worked on at a time: 32 MiB at 64 dimensions

_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class FoldIn:
    """floor: [dim] float64, above 0. penalty: that of each unit of weight, 0 or more."""

    floor: NDArray[np.float64]
    penalty: float

    def person(self, vectors: Vectors, weights: NDArray[np.float32]) -> Vectors | None:
        """[dim] float32 from the vectors, [h, dim], and weights, [h] above 0, of a history; None of an empty one.

        An item with a vector of zeros, which the model does not know, is left out.
        """
        known = vectors.any(axis=1)
        if not known.any():
            return None
        vector: Vectors = self.solve(vectors[known][None], weights[known][None])[0]
        return vector

    def solve(self, vectors: Vectors, weights: NDArray[np.float32]) -> Vectors:
        """[m, dim] float32: m vectors at once, of histories of one length: vectors [m, h, dim], weights [m, h]."""
        roots = np.sqrt(weights, dtype=np.float64)
        costs = self.floor + self.penalty * weights.sum(axis=1, dtype=np.float64)[:, None]
        solve = _solve_by_item if vectors.shape[1] < vectors.shape[2] else _solve_by_axis
        solved: Vectors = solve(vectors, roots, costs)[:, :, 0].astype(np.float32)
        return solved

    def save(self, folder: Path) -> None:
        """Write one file of JSON, which keeps every bit of the numbers."""
        (folder / _FILE).write_bytes(orjson.dumps({"floor": self.floor.tolist(), "penalty": self.penalty}))

    @classmethod
    def load(cls, folder: Path) -> "FoldIn":
        """Read what ``save`` wrote. Raises SnapshotError."""
        path = folder / _FILE
        try:
            raw = orjson.loads(path.read_bytes())
            return cls(np.array(raw["floor"], dtype=np.float64), float(raw["penalty"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotError(f"{path} cannot be opened: {error}; build the snapshot again") from error


def _solve_by_item(vectors: Vectors, roots: _Floats, costs: _Floats) -> _Floats:
    """[m, dim, 1]: a system of the size of the history, where that is the smaller one (the matrix inversion lemma)."""
    scaled = vectors * roots[:, :, None]
    across = (scaled / costs[:, None, :]).transpose(0, 2, 1)
    parts = np.linalg.solve(scaled @ across + np.eye(vectors.shape[1]), roots[:, :, None])
    return across @ parts


def _solve_by_axis(vectors: Vectors, roots: _Floats, costs: _Floats) -> _Floats:
    system: _Floats = costs[:, :, None] * np.eye(vectors.shape[2])
    right: _Floats = np.zeros((*costs.shape, 1))
    for at in range(0, vectors.shape[1], BLOCK_ENTRIES):  # an item may have been met by millions
        some = roots[:, at : at + BLOCK_ENTRIES, None]
        scaled = vectors[:, at : at + BLOCK_ENTRIES].astype(np.float64) * some
        across = scaled.transpose(0, 2, 1)
        system += across @ scaled
        right += across @ some
    return np.linalg.solve(system, right)
