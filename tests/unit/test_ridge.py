"""Ridge regression over histories, against the formula in plain dense arithmetic."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from raysys.training import ridge

N = 7
HISTORIES = st.lists(st.lists(st.integers(0, N - 1), max_size=9), min_size=1, max_size=6)
DECAY, REVERSE, PENALTY, WORDS = 0.5, 0.25, 3.0, 2.0


def flat(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return users, np.array([item for history in histories for item in history], dtype=np.intp)


def plain(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """X'X and X'Y, event by event."""
    before, following = np.zeros((N, N)), np.zeros((N, N))
    for history in histories:
        for at, item in enumerate(history):
            x = np.zeros(N)
            for lag in range(1, at + 1):
                if DECAY ** (lag - 1) >= ridge.LEAST_WEIGHT and history[at - lag] != item:
                    x[history[at - lag]] += DECAY ** (lag - 1)
            before += np.outer(x, x)
            following[:, item] += x
    return before, following


def whole(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    (a, b), (c, d) = plain(histories), plain([history[::-1] for history in histories])
    return a + REVERSE * c, b + REVERSE * d


def unit_terms(seed: int = 0) -> sp.csr_array:
    dense = np.random.default_rng(seed).random((N, 5)) * (np.random.default_rng(seed + 1).random((N, 5)) > 0.5)
    norms = np.linalg.norm(dense, axis=1, keepdims=True)
    return sp.csr_array((dense / np.where(norms == 0, 1, norms)).astype(np.float32))


@given(HISTORIES)
def test_the_sums_are_those_of_a_plain_loop(histories: list[list[int]]) -> None:
    sums = ridge.moments(*flat(histories), N, DECAY, REVERSE)
    before, following = whole(histories)
    np.testing.assert_allclose(sums.before.toarray(), before, rtol=1e-5)
    np.testing.assert_allclose(sums.next.toarray(), following, rtol=1e-5)


@given(HISTORIES, st.integers(0, 6))
def test_the_sums_of_parts_add_up(histories: list[list[int]], at: int) -> None:
    parts = [ridge.moments(*flat(part), N, DECAY, REVERSE) for part in (histories[:at] or [[]], histories[at:] or [[]])]
    sums, whole_sums = parts[0].plus(parts[1]), ridge.moments(*flat(histories), N, DECAY, REVERSE)
    np.testing.assert_allclose(sums.before.toarray(), whole_sums.before.toarray(), rtol=1e-5)
    np.testing.assert_allclose(sums.next.toarray(), whole_sums.next.toarray(), rtol=1e-5)


@pytest.mark.parametrize("block", [2, 3, 1_024])
def test_the_weights_solve_the_regression(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "BLOCK_ROWS", block)
    rng = np.random.default_rng(3)
    histories = [rng.integers(N, size=rng.integers(2, 9)).tolist() for _ in range(40)]
    keys, terms = np.arange(100, 100 + N, dtype=np.uint64), unit_terms()
    pairs = ridge.solve(ridge.moments(*flat(histories), N, DECAY, REVERSE), terms, PENALTY, WORDS, N, keys)
    before, following = whole(histories)
    likeness = WORDS * (terms @ terms.T).toarray()
    expected = np.linalg.solve(before + likeness + PENALTY * np.eye(N), following + likeness)
    expected[np.diag_indices(N)] = 0
    found = np.zeros((N, N))
    found[(pairs.source - 100).astype(int), (pairs.target - 100).astype(int)] = pairs.weight
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-4)


def test_only_the_strongest_stay() -> None:
    rng = np.random.default_rng(4)
    histories = [rng.integers(N, size=8).tolist() for _ in range(30)]
    keys, sums = np.arange(N, dtype=np.uint64), ridge.moments(*flat(histories), N, DECAY, REVERSE)
    every = ridge.solve(sums, unit_terms(), PENALTY, WORDS, N, keys)
    few = ridge.solve(sums, unit_terms(), PENALTY, WORDS, 2, keys)
    for source in range(N):
        expected = np.sort(every.weight[every.source == source])[-2:]
        np.testing.assert_allclose(np.sort(few.weight[few.source == source]), expected, rtol=1e-6)


def test_items_without_a_word_or_an_event_lead_nowhere() -> None:
    terms = sp.csr_array((N, 5), dtype=np.float32)
    sums = ridge.moments(*flat([[0, 1], [0, 1, 2]]), N, DECAY, 0.0)
    pairs = ridge.solve(sums, terms, PENALTY, WORDS, N, np.arange(N, dtype=np.uint64))
    assert set(pairs.source.tolist()) <= {0, 1}
    assert set(pairs.target.tolist()) <= {1, 2}
    assert np.isfinite(pairs.weight).all()
