"""The highest scores: the same as by sorting all, with ties, gaps and few values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.index.highest import highest


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32), m=st.integers(0, 6_000), n=st.integers(1, 300), values=st.sampled_from([2, 30, 10**6])
)
def test_all_that_are_as_high_as_the_nth_are_found_in_order(seed: int, m: int, n: int, values: int) -> None:
    scores = np.random.default_rng(seed).integers(-values, values, size=m).astype(np.float32)
    wanted = np.arange(m) if m <= n else np.flatnonzero(scores >= np.sort(scores)[m - n])
    assert highest(scores, n).tolist() == wanted.tolist()


def test_infinities_are_only_numbers_here() -> None:
    scores = np.full(1_000, -np.inf, dtype=np.float32)
    scores[[3, 700]] = 1, np.inf
    assert highest(scores, 2).tolist() == [3, 700]
    assert highest(scores, 3).tolist() == list(range(1_000))
