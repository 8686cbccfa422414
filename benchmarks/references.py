"""Plain recommenders to measure against, in numpy: each is fitted on what the fold allows and gives a scorer.

Their settings are chosen on validation (``TRIED``) by the same evaluator; what was chosen is in the report.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raysys.evaluation.lists import Scorer
from raysys.evaluation.sequences import Sequences, counts_of
from raysys.evaluation.splits import Fold
from raysys.training.popularity import DAY_S

# The fold, the number of items, what else is liked or not -> scores.
Fit = Callable[..., Scorer]


def popular(fold: Fold, n_items: int, days: float) -> Scorer:
    """What was met most in the last days before the fold is asked; equal counts by how often it was met ever."""
    recent = fold.train.keep(fold.train.times_s >= fold.now_s - days * DAY_S)
    ever = counts_of(fold.train, n_items)
    scores = (counts_of(recent, n_items) + ever / (1.0 + ever.sum())).astype(np.float32)
    return lambda histories: np.tile(scores, (len(histories), 1))


def ease(fold: Fold, n_items: int, l2: float) -> Scorer:
    """Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019. Over the items that anybody met."""
    known = np.flatnonzero(counts_of(fold.train, n_items))
    met = _matrix(fold.train, n_items)[:, known]
    gram = (met.T @ met).toarray().astype(np.float64)
    gram[np.diag_indices(len(known))] += l2
    inverse = np.linalg.inv(gram)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return _by_columns(known, n_items, lambda histories: _matrix(histories, n_items)[:, known] @ weights)


def item_knn(fold: Fold, n_items: int, neighbours: int, shrink: float, decay: float) -> Scorer:
    """Cosine of who met the items, shrunk, the nearest of each kept; a step back in the history counts ``decay``.

    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001.
    """
    met = _matrix(fold.train, n_items)
    pairs = (met.T @ met).tocoo()
    norms = np.sqrt(counts_of(fold.train, n_items))
    cosines = pairs.data / (norms[pairs.row] * norms[pairs.col] + shrink)
    cosines[pairs.row == pairs.col] = 0
    nearest = _largest(pairs.row, cosines, neighbours)
    shape = (n_items, n_items)
    similar = sparse.csr_matrix((cosines[nearest], (pairs.row[nearest], pairs.col[nearest])), shape, dtype=np.float32)

    def scorer(histories: Sequences) -> NDArray[np.float32]:
        found = (_matrix(histories, n_items, decay**histories.steps_back) @ similar).toarray()
        return np.where(found > 0, found, np.nan)

    return scorer


REFERENCES: dict[str, Fit] = {"popular in the last days": popular, "EASE": ease, "ItemKNN": item_knn}
TRIED: dict[str, Sequence[Mapping[str, Any]]] = {
    "popular in the last days": [{"days": days} for days in (7, 30, 90, 365, 1e6)],
    "EASE": [{"l2": l2} for l2 in (50, 250, 1_000)],
    "ItemKNN": [
        {"neighbours": 200, "shrink": shrink, "decay": decay} for shrink in (0, 10) for decay in (0.8, 0.95, 1.0)
    ],
}


def _matrix(sequences: Sequences, n_items: int, values: NDArray[np.float64] | None = None) -> sparse.csr_matrix:
    """[n_users, n_items] float32."""
    data = np.ones(len(sequences.items)) if values is None else values
    cells = (data.astype(np.float32), sequences.items, sequences.starts)
    return sparse.csr_matrix(cells, (len(sequences), n_items))


def _by_columns(columns: NDArray[np.int64], n_items: int, score: Scorer) -> Scorer:
    """Scores of some of the items; the others are not shown, and nothing is to people of whom nothing is known."""

    def scorer(histories: Sequences) -> NDArray[np.float32]:
        scores = np.full((len(histories), n_items), np.nan, dtype=np.float32)
        scores[:, columns] = score(histories)
        scores[histories.lengths == 0] = np.nan
        return scores

    return scorer


def _largest(rows: NDArray[np.int32], values: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Where the ``n`` largest positive values of each row are."""
    order = np.lexsort((-values, rows))
    sorted_rows = rows[order]
    starts = np.searchsorted(sorted_rows, sorted_rows)
    place = np.arange(len(order)) - starts
    return order[(place < n) & (values[order] > 0)]
