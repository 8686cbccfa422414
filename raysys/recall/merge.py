"""From the answers of all shards to one candidate list, equal to what one unsharded index would have given."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysys.index.highest import highest
from raysys.types import FRESH, POPULAR, SOURCES, TRENDING, Candidates

LEAST_OF_NOW = 10


def merge(answers: Sequence[Candidates], k: int) -> Candidates:
    """Keep, per source, the best of all shards, ``n_best`` of them; an item lives in one shard, so none comes twice.

    ``answers`` holds one or more, each cut to k by its shard: one alone is the answer as it is. Popularity fills only
    when the other sources found fewer than k items in all.
    """
    if len(answers) == 1:
        return answers[0]
    everything = concatenate(answers)
    found_by = np.zeros(len(everything), dtype=np.uint16)
    for source in range(POPULAR):
        found_by[_best(everything, source, n_best(source, k))] |= np.uint16(1 << source)
    if np.count_nonzero(found_by) < k:
        found_by[_best(everything, POPULAR, k)] |= np.uint16(1 << POPULAR)
    return _take(everything, np.flatnonzero(found_by), found_by)


def n_best(source: int, k: int) -> int:
    """How many candidates a source puts forward at most: k, a quarter of it for what is trending or fresh.

    Those two know nothing of the person, and are there whoever asks.
    """
    return min(k, max(k // 4, LEAST_OF_NOW)) if source in (TRENDING, FRESH) else k


def concatenate(answers: Sequence[Candidates]) -> Candidates:
    """All candidates of all shards, uncut: what ranking a given list of items needs."""
    return Candidates(
        shard=np.concatenate([a.shard for a in answers]),
        row=np.concatenate([a.row for a in answers]),
        key=np.concatenate([a.key for a in answers]),
        scores=np.concatenate([a.scores for a in answers]),
        found_by=np.concatenate([a.found_by for a in answers]),
        exact=all(a.exact for a in answers),
    )


def _best(candidates: Candidates, source: int, k: int) -> NDArray[np.intp]:
    """Positions, in any order, of the k best among those the source put forward; ties by key."""
    mine = np.flatnonzero(candidates.found_by & (1 << source))
    if len(mine) <= k:
        return mine
    scores = candidates.scores[mine, source]
    best = highest(scores, k)
    if len(best) > k:  # several are as good as the last
        best = best[np.lexsort((candidates.key[mine[best]], -scores[best]))[:k]]
    return mine[best]


def _take(candidates: Candidates, at: NDArray[np.intp], found_by: NDArray[np.uint16]) -> Candidates:
    return Candidates(
        shard=candidates.shard[at],
        row=candidates.row[at],
        key=candidates.key[at],
        scores=candidates.scores[at],
        found_by=found_by[at],
        exact=candidates.exact,
    )


def sources_of(candidates: Candidates, at: int) -> dict[str, float]:
    """The score of each source that knows the candidate at this position: all that its final score is made of."""
    scores = candidates.scores[at]
    return {name: float(scores[s]) for s, name in enumerate(SOURCES) if scores[s] != 0}
