"""The final choice, and the linear ranker before it."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import RankingSettings
from raysys.ranking.linear import LinearRanker
from raysys.ranking.select import top_n
from raysys.types import SOURCES


def chosen(scores: list[float], keys: list[int], n: int) -> list[int]:
    return top_n(np.array(scores, np.float32), np.array(keys, np.uint64), n).tolist()


def test_best_first() -> None:
    assert chosen([0.1, 0.9, 0.5], [1, 2, 3], 2) == [1, 2]


def test_equal_scores_by_key_even_beyond_signed_integers() -> None:
    assert chosen([0.5, 0.5, 0.5], [2**64 - 1, 7, 2**63], 3) == [1, 2, 0]


def test_more_wanted_than_there_are() -> None:
    assert chosen([0.1, 0.2], [1, 2], 99) == [1, 0]
    assert chosen([], [], 5) == []


def test_what_is_no_finite_number_is_never_chosen() -> None:
    assert chosen([math.nan, math.inf, -math.inf, -3.0], [1, 2, 3, 4], 4) == [3]


def test_zero_and_negative_scores_are_scores() -> None:
    assert chosen([-0.5, 0.0, -0.1], [1, 2, 3], 3) == [1, 2, 0]


@given(st.lists(st.tuples(st.floats(width=32), st.integers(0, 2**64 - 1)), unique_by=lambda r: r[1]), st.integers(0, 9))
def test_as_sorting_in_plain_python(rows, n) -> None:
    finite = [(-score, key, at) for at, (score, key) in enumerate(rows) if math.isfinite(score)]
    expected = [at for _, _, at in sorted(finite)[:n]]
    assert chosen([score for score, _ in rows], [key for _, key in rows], n) == expected


def test_a_score_is_the_weighted_sum_of_its_sources() -> None:
    ranker = LinearRanker(RankingSettings(**{name: 2**i for i, name in enumerate(SOURCES)}))
    scores = np.arange(1, len(SOURCES) + 1, dtype=np.float32)
    first, second = ranker.score([scores[None], np.empty((0, len(SOURCES)), np.float32)])
    assert first.tolist() == [sum(2**i * (i + 1) for i in range(len(SOURCES)))]
    assert second.tolist() == []


def test_a_weight_of_zero_turns_a_source_off() -> None:
    ranker = LinearRanker(RankingSettings(**dict.fromkeys(SOURCES, 0.0) | {"popular": 1.0}))
    assert ranker.score([np.array([[9] * (len(SOURCES) - 1) + [0.5]], np.float32)])[0].tolist() == [0.5]
