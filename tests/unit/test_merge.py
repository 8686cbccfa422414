"""Merging the shards' answers: equal to what one index over everything would have put forward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.recall.merge import concatenate, merge, sources_of
from raysys.types import FRESH, POPULAR, PROFILE, QUERY, SOURCES, TRANSITION, TRENDING, Candidates

ALL = (1 << len(SOURCES)) - 1


def scored(**scores: float) -> list[float]:
    """A row of scores by the names of their sources."""
    return [scores.get(name, 0.0) for name in SOURCES]


def candidates(rows: list[tuple[int, list[float], int]], shard: int = 0, exact: bool = True) -> Candidates:
    """From (key, scores, found_by)."""
    return Candidates(
        shard=np.full(len(rows), shard, np.int32),
        row=np.arange(len(rows), dtype=np.int32),
        key=np.array([key for key, _, _ in rows], np.uint64),
        scores=np.array([scores for _, scores, _ in rows], np.float32).reshape(len(rows), len(SOURCES)),
        found_by=np.array([bits for _, _, bits in rows], np.uint16),
        exact=exact,
    )


def keys(merged: Candidates) -> list[int]:
    return [int(key) for key in merged.key]


def test_the_best_of_each_source_stay_whatever_their_shard() -> None:
    left = candidates([(1, scored(query=0.9), 1), (2, scored(query=0.1), 1), (3, scored(profile=0.2), 2)], shard=0)
    right = candidates([(4, scored(query=0.5), 1), (5, scored(profile=0.8), 2)], shard=1)
    merged = merge([left, right], k=1)
    assert keys(merged) == [1, 5]
    assert merged.shard.tolist() == [0, 1]
    assert merged.row.tolist() == [0, 1]
    assert merged.found_by.tolist() == [1, 2]


def test_an_item_that_misses_one_sources_cut_keeps_the_bit_of_another() -> None:
    left = candidates([(1, scored(query=0.9, profile=0.1), 3)])
    merged = merge([left, candidates([(2, scored(query=0.5, profile=0.7), 3)], shard=1)], k=1)
    assert keys(merged) == [1, 2]
    assert merged.found_by.tolist() == [1 << QUERY, 1 << PROFILE]


def test_ties_at_the_cut_go_to_the_smaller_key() -> None:
    tied = [candidates([(9, scored(query=0.5), 1)], shard=0), candidates([(3, scored(query=0.5), 1)], shard=1)]
    assert keys(merge(tied, k=1)) == [3]
    assert keys(merge(tied[::-1], k=1)) == [3]


def test_popularity_fills_only_what_the_others_leave_open() -> None:
    found = candidates([(1, scored(query=0.9, popular=0.1), 1), (2, scored(query=0.8, popular=0.2), 1)])
    popular = candidates([(3, scored(popular=1.0), 1 << POPULAR)], shard=1)
    assert keys(merge([found, popular], k=2)) == [1, 2]
    assert keys(merge([found, popular], k=3)) == [1, 2, 3]


def test_a_score_without_the_bit_does_not_put_an_item_forward() -> None:
    left = candidates([(1, scored(query=0.1), 1 << QUERY)])
    merged = merge([left, candidates([(2, scored(query=0.9, transition=0.5), 1 << TRANSITION)], shard=1)], k=1)
    assert merged.found_by.tolist() == [1 << QUERY, 1 << TRANSITION]


def test_one_approximate_shard_makes_the_answer_approximate() -> None:
    nothing = candidates([])
    assert merge([nothing, nothing], k=3).exact
    assert not merge([nothing, candidates([], exact=False)], k=3).exact


def test_nothing_found_is_an_empty_list() -> None:
    assert len(merge([candidates([]), candidates([])], k=5)) == 0


def test_concatenate_cuts_nothing() -> None:
    part = candidates([(1, scored(), 0), (2, scored(popular=0.5), 1 << POPULAR)])
    assert keys(concatenate([part, part])) == [1, 2, 1, 2]


def test_sources_of_names_the_scores_that_an_item_has() -> None:
    found = candidates([(1, scored(query=0.5, transition=0.25), 1 << QUERY)])
    assert sources_of(found, 0) == {"query": 0.5, "transition": 0.25}


SCORES = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.5, 1.0])
ROWS = st.lists(st.tuples(st.tuples(*[SCORES] * len(SOURCES)), st.integers(0, ALL)), max_size=30)


def best(rows: list[tuple[int, list[float], int]], source: int, k: int) -> set[int]:
    mine = [(-scores[source], key) for key, scores, bits in rows if bits >> source & 1]
    return {key for _, key in sorted(mine)[:k]}


@given(ROWS, st.integers(2, 5), st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_split_over_shards_gives_the_same(drawn, n_shards, k, random) -> None:
    names = random.sample(range(10_000), len(drawn))
    rows = [(key, list(scores), bits) for key, (scores, bits) in zip(names, drawn, strict=True)]
    merged = merge([candidates([r for r in rows if r[0] % n_shards == s], shard=s) for s in range(n_shards)], k)

    few = min(k, max(k // 4, 10))
    by_source = {source: best(rows, source, few if source in (TRENDING, FRESH) else k) for source in range(POPULAR)}
    if len(set().union(*by_source.values())) < k:
        by_source[POPULAR] = best(rows, POPULAR, k)
    expected = {key: sum(1 << s for s, found in by_source.items() if key in found) for key, _, _ in rows}
    assert dict(zip(keys(merged), merged.found_by.tolist(), strict=True)) == {k: b for k, b in expected.items() if b}
    scores = {key: scores for key, scores, _ in rows}
    assert all(merged.scores[i].tolist() == pytest.approx(scores[key]) for i, key in enumerate(keys(merged)))
