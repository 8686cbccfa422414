"""Implicit matrix factorisation, against the normal equations in plain dense arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import SnapshotError
from raysys.index import fold_in as fold_in_module
from raysys.index.fold_in import FoldIn
from raysys.training import factors

DIM, UNOBSERVED, PENALTY = 4, 0.2, 0.05
N_PEOPLE, N_ITEMS = 14, 9


def some_likes(seed: int = 0, share: float = 0.4) -> sp.csr_array:
    """Histories shorter and longer than ``DIM``, with weights from 0.5 to 3; the last person likes nothing."""
    rng = np.random.default_rng(seed)
    dense = rng.uniform(0.5, 3, (N_PEOPLE, N_ITEMS)) * (rng.random((N_PEOPLE, N_ITEMS)) < share)
    dense[-1] = 0
    return sp.csr_array(dense.astype(np.float32))


def plain_solve(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Each row by its own normal equations."""
    solved = np.zeros((len(weights), others.shape[1]))
    gram = UNOBSERVED * others.T @ others
    for row, weight in enumerate(weights):
        ridge = PENALTY * (weight.sum() + UNOBSERVED * len(others))
        system = gram + others.T @ np.diag(weight) @ others + ridge * np.eye(others.shape[1])
        solved[row] = np.linalg.solve(system, others.T @ weight)
    return solved


def solved_from(likes: sp.csr_array, others: factors.Side) -> np.ndarray:
    return factors.solve_rows(likes, others.vectors, others.fold_in(UNOBSERVED, PENALTY))


def objective(weights: np.ndarray, people: np.ndarray, items: np.ndarray) -> float:
    scores = people @ items.T
    of_people = weights.sum(axis=1) + UNOBSERVED * len(items)
    of_items = weights.sum(axis=0) + UNOBSERVED * len(people)
    penalty = of_people @ np.square(people).sum(axis=1) + of_items @ np.square(items).sum(axis=1)
    return float((weights * (scores - 1) ** 2 + UNOBSERVED * scores**2).sum() + PENALTY * penalty)


def test_the_fit_is_that_of_plain_alternating_least_squares() -> None:
    likes = some_likes()
    weights = likes.toarray().astype(np.float64)
    items = factors.start(N_ITEMS, DIM).vectors.astype(np.float64)
    for _ in range(5):
        people = plain_solve(weights, items)
        items = plain_solve(weights.T, people)
    found = factors.fit(likes, DIM, 5, UNOBSERVED, PENALTY)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, items @ items.T, atol=1e-4)
    scores = solved_from(likes, found) @ found.vectors.T
    np.testing.assert_allclose(scores, plain_solve(weights, items) @ items.T, atol=1e-5)
    assert not scores[-1].any()


def test_no_half_step_makes_the_objective_rise() -> None:
    likes = some_likes(1)
    weights, by_item, items = likes.toarray(), likes.T.tocsr(), factors.start(N_ITEMS, DIM)
    found = [float(weights.sum())]  # of vectors of zeros
    for _ in range(8):
        people = solved_from(likes, items)
        found.append(objective(weights, people, items.vectors))
        turned = factors.along_axes(people)
        solved = solved_from(by_item, turned)
        found.append(objective(weights, turned.vectors, solved))
        items = factors.along_axes(solved)
    assert (np.diff(found[1:]) <= 1e-5 * found[0]).all()
    assert found[-1] < 0.8 * found[0]


def test_laying_along_the_axes_changes_no_product() -> None:
    vectors = np.random.default_rng(2).normal(size=(30, DIM)).astype(np.float32)
    side = factors.along_axes(vectors)
    np.testing.assert_allclose(side.vectors @ side.vectors.T, vectors @ vectors.T, atol=1e-5)
    np.testing.assert_allclose(side.vectors.T @ side.vectors, np.diag(side.energy), atol=1e-4)


@pytest.mark.parametrize("entries", [1, 3, 8, 1_000])
def test_blocks_of_any_size_give_the_same(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    likes = some_likes(3)
    whole = factors.fit(likes, DIM, 3, UNOBSERVED, PENALTY).vectors
    monkeypatch.setattr(factors, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(fold_in_module, "BLOCK_ENTRIES", entries)
    items = factors.fit(likes, DIM, 3, UNOBSERVED, PENALTY).vectors
    np.testing.assert_allclose(items @ items.T, whole @ whole.T, atol=1e-4)


def test_the_same_likes_give_the_same_bytes() -> None:
    one, other = (factors.fit(some_likes(4), DIM, 3, UNOBSERVED, PENALTY) for _ in range(2))
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert one.energy.tobytes() == other.energy.tobytes()


def test_people_of_one_taste_get_what_the_others_of_it_like() -> None:
    """Two halves of the people and two halves of the items; each pair of a half was met but for a few."""
    rng = np.random.default_rng(5)
    dense = np.kron(np.eye(2), np.ones((20, 10))) * (rng.random((40, 20)) < 0.7)
    likes = sp.csr_array(dense.astype(np.float32))
    items = factors.fit(likes, DIM, 10, UNOBSERVED, PENALTY)
    scores = (solved_from(likes, items) @ items.vectors.T).reshape(2, 20, 2, 10)
    assert scores[0, :, 0].min() > scores[0, :, 1].max()
    assert scores[1, :, 1].min() > scores[1, :, 0].max()


def test_a_history_gets_the_vector_that_its_person_was_fitted() -> None:
    likes = some_likes(6)
    items = factors.fit(likes, DIM, 4, UNOBSERVED, PENALTY)
    model = items.fold_in(UNOBSERVED, PENALTY)
    fitted = factors.solve_rows(likes, items.vectors, model)
    for person in range(N_PEOPLE - 1):
        mine = slice(likes.indptr[person], likes.indptr[person + 1])
        vector = model.person(items.vectors[likes.indices[mine]], likes.data[mine])
        np.testing.assert_allclose(vector, fitted[person], atol=1e-6)
    np.testing.assert_allclose(fitted, plain_solve(likes.toarray(), items.vectors), atol=1e-5)


@given(st.integers(1, 12), st.integers(0, 1_000))
def test_both_ways_to_solve_agree(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, roots = rng.normal(size=(3, length, 6)).astype(np.float32), rng.uniform(0.1, 2, (3, length))
    costs = rng.uniform(0.05, 4, (3, 6))
    by_item, by_axis = (
        solve(vectors, roots, costs) for solve in (fold_in_module._solve_by_item, fold_in_module._solve_by_axis)
    )
    np.testing.assert_allclose(by_item, by_axis, rtol=1e-6, atol=1e-8)


def test_items_that_the_model_does_not_know_do_not_count() -> None:
    rng = np.random.default_rng(7)
    vectors, weights = rng.normal(size=(3, DIM)).astype(np.float32), np.array([1, 2, 3], np.float32)
    model = FoldIn(np.ones(DIM), PENALTY)
    expected = model.person(vectors[[0, 2]], weights[[0, 2]])
    vectors[1] = 0
    assert model.person(vectors, weights).tobytes() == expected.tobytes()
    assert model.person(vectors[[1]], weights[[1]]) is None
    assert model.person(vectors[:0], weights[:0]) is None


def test_a_weight_that_has_faded_to_nothing_gives_a_vector_of_zeros() -> None:
    model = FoldIn(np.ones(DIM), PENALTY)
    assert model.person(np.ones((1, DIM), np.float32), np.zeros(1, np.float32)).tolist() == [0.0] * DIM


def test_what_is_saved_is_loaded_to_the_last_bit(tmp_path: Path) -> None:
    model = FoldIn(np.random.default_rng(8).random(DIM), 1 / 3)
    model.save(tmp_path)
    loaded = FoldIn.load(tmp_path)
    assert (loaded.floor.tobytes(), loaded.penalty) == (model.floor.tobytes(), model.penalty)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"floor": [1]}', b'{"floor": "x", "penalty": 1}'])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "fold-in.json").write_bytes(content)
    with pytest.raises(SnapshotError, match=r"fold-in\.json.*build the snapshot again"):
        FoldIn.load(tmp_path)
