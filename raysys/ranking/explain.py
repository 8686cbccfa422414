"""What gave an item its score: the part of each source, and of what a person did and wrote.

Nothing here knows how a ranker works, only that it scores row by row. The part of a source is what the score loses
without the source's column. A share is a part divided by all parts above 0: of what lifts the item, as a source may
also hold it down. What a source gave is then split among the items of the history in proportion to what each of them
gives to its column.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysys.index.contrast import Contrast
from raysys.types import Keys, Terms, Vectors

LEAST_SHARE = 0.001  # what gave less is no reason
LEAST_OF_TERMS = 0.05

Scores = NDArray[np.float32]
Shares = NDArray[np.float64]

_TINY = 1e-9


def without_each(scores: Scores) -> Scores:
    """[n * s, s] float32 from [n, s]: each row s times, without one of its columns at a time.

    What is left of the column weighs nothing, but is not 0 where it was not: an item that somebody has met must not
    pass for one that nobody has (``ranking.learned``).
    """
    n, s = scores.shape
    rows = np.repeat(scores, s, axis=0)
    at = np.arange(n * s), np.tile(np.arange(s), n)
    rows[at] = np.sign(rows[at]) * np.finfo(np.float32).tiny
    return rows


def shares(scores: Scores, totals: Scores, without: Scores) -> Shares:
    """[n, s] float64, 0..1: what each source gave of all that lifts each item. A row sums to 1, or to 0 where nothing
    lifts the item.

    scores: [n, s] of the sources. totals: [n] of the ranker. without: [n * s], the ranker's for ``without_each``.
    """
    parts = totals[:, None].astype(np.float64) - without.reshape(scores.shape)
    parts = np.where((scores != 0) & np.isfinite(parts), parts, 0).clip(min=0)
    return _divided(parts, parts.sum(axis=1, keepdims=True))


def split(gives: Scores, columns: Scores | None = None) -> Shares:
    """[n, h] float64, 0..1: of a source's part in each of n items, what each of h items of the history gave.

    gives: [n, h], what each gives to the source's column; below 0 counts as 0. columns: [n], what all give: where that
    is more, the rest is of others that were not looked at. None = these are all.
    """
    lifting = gives.clip(min=0).astype(np.float64)
    total = lifting.sum(axis=1)
    return _divided(lifting, (total if columns is None else np.maximum(total, columns))[:, None])


def _divided(parts: Shares, total: Shares) -> Shares:
    quotient: Shares = np.divide(parts, total, out=np.zeros_like(parts), where=total > _TINY)
    return quotient


def pulls(vectors: Vectors, liked: Vectors, weights: Scores, contrast: Contrast | None) -> Scores:
    """[n, m] float32: what each of the m items of one interest gives to the likeness of n items to it.

    vectors: [n, dim] and liked: [m, dim] float32, of the items and of the interest. weights: [m] float32. Where nothing
    is disliked, a row adds up to the product with the interest's vector but for a factor that all rows share.
    """
    share = weights / weights.sum()
    if contrast is None:
        return np.asarray(vectors @ (share[:, None] * liked).T)
    length = np.linalg.norm(share @ liked)
    sharpened = (liked / length - contrast.mean) @ contrast.inverse
    return np.asarray(vectors @ (share[:, None] * sharpened).T)


def nearest(vectors: Vectors, tastes: Vectors, metric: str) -> NDArray[np.intp]:
    """[n]: the nearest of the tastes, [m, dim], to each of the vectors, [n, dim]: the one that gave the score."""
    if metric == "l2":
        return np.asarray(np.linalg.norm(vectors[:, None] - tastes[None], axis=2).argmin(axis=1))
    return np.asarray((vectors @ tastes.T).argmax(axis=1))


def on_terms(items: Sequence[Terms], wanted: Keys) -> Scores:
    """[n, t] float32: the weight of each of the wanted terms, ascending keys, in each item; 0 where it is not there."""
    table = np.zeros((len(items), len(wanted)), dtype=np.float32)
    if len(wanted):
        for row, terms in zip(table, items, strict=True):
            at = np.minimum(np.searchsorted(wanted, terms.keys), len(wanted) - 1)
            held = wanted[at] == terms.keys
            row[at[held]] = terms.weights[held]
    return table


def main_terms(terms: Terms, wanted: Keys, weights: Scores) -> list[int]:
    """The keys of the terms of an item that make its likeness to a request, the weightiest first.

    wanted, weights: [t] keys, ascending, and float32, of what the request looks for. Terms that give less than
    LEAST_OF_TERMS of it all are left out.
    """
    parts = on_terms([terms], wanted)[0] * weights
    order = np.argsort(-parts, kind="stable")
    least = max(LEAST_OF_TERMS * float(parts.sum()), _TINY)
    return [int(wanted[at]) for at in order if parts[at] >= least]
