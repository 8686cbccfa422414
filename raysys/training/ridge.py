"""What comes next, by ridge regression over whole histories: it sees through chains of pairs, which counting does not.

EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) predicts a person's items from all of
them in closed form. Here order counts: of each event, a row of X is the history before it, an item weighing ``decay``
per step back, and a row of Y is its item. With T the unit TF-IDF rows of the items, so that items of like words share
what is known of them, and the same sequences backwards at weight r,

    B = (X'X + r Xr'Xr + w TT' + penalty I)^-1 (X'Y + r Xr'Yr + w TT')

A history scores an item by the sum of the weights that lead to it. One task solves this for all items together: its
time grows with their number cubed and its memory squared, so it is for catalogues that fit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lapack

from raysys.training.transition import PairCounts
from raysys.types import Keys

LEAST_WEIGHT = 0.01  # of an item of the history, from which on it is not looked at
BLOCK_ROWS = 1_024

Dense = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over events. before: X'X, what stands together before an event. next: X'Y, what it leads to. [n, n] CSR."""

    before: sp.csr_array
    next: sp.csr_array

    def plus(self, other: "Moments", weight: float = 1.0) -> "Moments":
        return Moments(self.before + weight * other.before, self.next + weight * other.next)


def moments(users: NDArray[Any], items: NDArray[np.intp], n_items: int, decay: float, reverse: float) -> Moments:
    """users: [m], all events of a user side by side, oldest first. items: [m] positions in 0..n_items-1.

    An item is not said to lead to itself. The sums of parts of the users add up.
    """
    forward = _moments(users, items, n_items, decay)
    return forward if reverse == 0 else forward.plus(_moments(users[::-1], items[::-1], n_items, decay), reverse)


def _moments(users: NDArray[Any], items: NDArray[np.intp], n_items: int, decay: float) -> Moments:
    events, before, weights = [np.empty(0, np.intp)], [np.empty(0, np.intp)], [np.empty(0, np.float32)]
    lag = 1
    while lag < len(users) and decay ** (lag - 1) >= LEAST_WEIGHT:
        met = np.flatnonzero((users[:-lag] == users[lag:]) & (items[:-lag] != items[lag:]))
        events.append(met + lag)
        before.append(items[met])
        weights.append(np.full(len(met), decay ** (lag - 1), dtype=np.float32))
        lag += 1
    places = (np.concatenate(events), np.concatenate(before))
    x = sp.csr_array((np.concatenate(weights), places), shape=(len(items), n_items))
    y = sp.csr_array((np.ones(len(items), np.float32), (np.arange(len(items)), items)), shape=(len(items), n_items))
    return Moments((x.T @ x).tocsr(), (x.T @ y).tocsr())


def solve(sums: Moments, terms: sp.csr_array, penalty: float, words: float, n_targets: int, keys: Keys) -> PairCounts:
    """The weights above 0 from each item to others, the ``n_targets`` greatest of each.

    terms: [n, v] unit rows. keys: [n] uint64 item keys, ascending. Takes some 8 n^2 bytes.
    """
    inverse = _inverse((sums.before + words * (terms @ terms.T)).toarray(order="F"), penalty)
    parts = [_strongest(rows, at, n_targets) for at, rows in _blocks(inverse, sums.next, terms, words)]
    source, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((target, source))
    return PairCounts(keys[source[order]], keys[target[order]], weight[order].astype(np.float64))


def _inverse(gram: Dense, penalty: float) -> Dense:
    """(gram + penalty I)^-1 for a positive semi-definite gram, which is overwritten: by Cholesky."""
    gram = gram.astype(np.float32, copy=False)
    gram[np.diag_indices(len(gram))] += penalty
    factor, _ = lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse: Dense = lapack.spotri(factor, lower=1, overwrite_c=1)[0]
    for at in range(0, len(inverse), BLOCK_ROWS):  # LAPACK leaves the upper triangle as it was
        end = at + BLOCK_ROWS
        inverse[at:end, end:] = inverse[end:, at:end].T
        corner = inverse[at:end, at:end]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return inverse


def _blocks(inverse: Dense, following: sp.csr_array, terms: sp.csr_array, words: float) -> Iterable[tuple[int, Dense]]:
    """Rows of B, a block at a time: (first row, [rows, n])."""
    into, words_into = following.T.tocsr(), (words * terms).T.tocsr()
    for at in range(0, len(inverse), BLOCK_ROWS):
        columns = inverse[:, at : at + BLOCK_ROWS]  # the inverse is symmetric
        yield at, (into @ columns + terms @ (words_into @ columns)).T


def _strongest(
    weights: Dense, first: int, n_targets: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """(source, target, weight) of the greatest weights above 0 of these rows of B; none from an item to itself."""
    weights[np.arange(len(weights)), np.arange(first, first + len(weights))] = 0
    n_targets = min(n_targets, weights.shape[1])
    top = np.argpartition(-weights, n_targets - 1, axis=1)[:, :n_targets]
    values = np.take_along_axis(weights, top, axis=1)
    row, column = np.nonzero(values > 0)
    return row + first, top[row, column], values[row, column]
