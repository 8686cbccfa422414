"""Items and people as vectors whose products say who likes what: implicit matrix factorisation, by blocks.

The formula is in ``index.fold_in``. People and items are solved in turn, each side from the vectors of the other: a row
needs nothing of the other rows of its side, so that a side is cut into blocks as one likes. Before the other side is
solved from it, a side is laid along its principal axes: its products with itself stay, and Y'Y becomes a diagonal.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from raysys.index.fold_in import BLOCK_ENTRIES, FoldIn
from raysys.types import Vectors

START = 0.1  # the standard deviation of a product of the first vectors, as in the paper
SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """All people or all items. vectors: [n, dim] float32. energy: [dim] float64, the diagonal of Y'Y."""

    vectors: Vectors
    energy: NDArray[np.float64]

    def fold_in(self, unobserved: float, penalty: float) -> FoldIn:
        """How the other side is solved from this one."""
        return FoldIn(unobserved * (self.energy + penalty * len(self.vectors)), penalty)


def start(n: int, dim: int) -> Side:
    """Where the fit starts from: the same for the same n and dim."""
    vectors = np.random.default_rng(SEED).normal(0, START / math.sqrt(dim), (n, dim))
    return along_axes(vectors.astype(np.float32))


def along_axes(vectors: Vectors) -> Side:
    """These vectors, turned so that their second moments are a diagonal, the greatest last."""
    energy, axes = np.linalg.eigh(_gram(vectors))
    turned = np.empty_like(vectors)
    for at in range(0, len(vectors), BLOCK_ENTRIES):
        turned[at : at + BLOCK_ENTRIES] = vectors[at : at + BLOCK_ENTRIES] @ axes
    return Side(turned, np.maximum(energy, 0))


def _gram(vectors: Vectors) -> NDArray[np.float64]:
    gram = np.zeros((vectors.shape[1], vectors.shape[1]))
    for at in range(0, len(vectors), BLOCK_ENTRIES):
        block = vectors[at : at + BLOCK_ENTRIES].astype(np.float64)
        gram += block.T @ block
    return gram


def solve_rows(likes: sp.csr_array, others: Vectors, fold_in: FoldIn) -> Vectors:
    """[rows, dim] float32 from the weights, [rows, n] above 0, of what each row likes of the n others; 0 for nothing.

    Rows of one length are solved together.
    """
    solved = np.zeros((likes.shape[0], others.shape[1]), dtype=np.float32)
    lengths = np.diff(likes.indptr)
    for length in np.unique(lengths[lengths > 0]).tolist():
        alike = np.flatnonzero(lengths == length)
        step = max(1, BLOCK_ENTRIES // length)
        for at in range(0, len(alike), step):
            rows = alike[at : at + step]
            entries = likes.indptr[rows][:, None] + np.arange(length)
            solved[rows] = fold_in.solve(others[likes.indices[entries]], likes.data[entries])
    return solved


def fit(likes: sp.csr_array, dim: int, iterations: int, unobserved: float, penalty: float) -> Side:
    """The items, from the weights, [n_people, n_items] above 0, in one process. People are solved from them."""
    by_item = likes.T.tocsr()
    items = start(likes.shape[1], dim)
    for _ in range(iterations):
        people = along_axes(solve_rows(likes, items.vectors, items.fold_in(unobserved, penalty)))
        items = along_axes(solve_rows(by_item, people.vectors, people.fold_in(unobserved, penalty)))
    return items
