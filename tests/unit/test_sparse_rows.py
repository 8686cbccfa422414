"""Behaviour weights by source: worked out by hand, and against a dense matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import InvalidInput, SnapshotError
from raysys.index.sparse_rows import SparseRows

BIG = 2**64 - 1


def from_pairs(pairs):
    sources, rows, weights = zip(*pairs, strict=True) if pairs else ((), (), ())
    return SparseRows.from_pairs(
        np.array(sources, dtype=np.uint64), np.array(rows, dtype=np.int32), np.array(weights, dtype=np.float32)
    )


def score(matrix, history):
    keys, weights = zip(*history, strict=True) if history else ((), ())
    return matrix.score(np.array(keys, dtype=np.uint64), np.array(weights, dtype=np.float32))


MATRIX = from_pairs([(BIG, 2, 0.5), (7, 3, 1.0), (7, 0, 2.0), (BIG, 0, 4.0), (0, 1, 8.0)])


def test_a_history_scores_the_rows_that_its_items_lead_to():
    rows, scores = score(MATRIX, [(7, 1.0), (BIG, 0.5)])
    assert rows.tolist() == [0, 2, 3]
    assert scores.tolist() == [4.0, 0.25, 1.0]
    assert (rows.dtype, scores.dtype) == (np.int32, np.float32)


def test_repeated_items_add_up_and_unknown_ones_score_nothing():
    rows, scores = score(MATRIX, [(7, 1.0), (99, 5.0), (7, 0.5), (BIG - 1, 1.0)])
    assert rows.tolist() == [0, 3]
    assert scores.tolist() == [3.0, 1.5]


def test_a_negative_weight_takes_away():
    assert score(MATRIX, [(7, 1.0), (BIG, -1.0)])[1].tolist() == [-2.0, -0.5, 1.0]


@pytest.mark.parametrize("history", [[], [(99, 1.0)]])
@pytest.mark.parametrize("matrix", [MATRIX, from_pairs([])])
def test_nothing_known_gives_nothing(matrix, history):
    rows, scores = score(matrix, history)
    assert (rows.shape, scores.shape) == ((0,), (0,))
    assert (rows.dtype, scores.dtype) == (np.int32, np.float32)


def test_pairs_are_stored_by_source_and_row():
    assert MATRIX.sources.tolist() == [0, 7, BIG]
    assert MATRIX.offsets.tolist() == [0, 1, 3, 5]
    assert MATRIX.rows.tolist() == [1, 0, 3, 0, 2]
    assert len(MATRIX) == 5


def test_the_weights_of_a_pair_that_comes_twice_are_added():
    matrix = from_pairs([(7, 1, 0.25), (7, 2, 1.0), (7, 1, 0.5)])
    assert (matrix.rows.tolist(), matrix.weights.tolist()) == ([1, 2], [0.75, 1.0])


@pytest.mark.parametrize("pair", [(1, -1, 1.0), (1, 0, np.nan), (1, 0, np.inf)])
def test_bad_pairs_are_refused(pair):
    with pytest.raises(InvalidInput):
        from_pairs([pair])


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(InvalidInput, match="2, 1, 1"):
        SparseRows.from_pairs(np.zeros(2, np.uint64), np.zeros(1, np.int32), np.zeros(1, np.float32))


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(-8, 8)), max_size=40),
    history=st.lists(st.tuples(st.integers(0, 9), st.integers(-4, 4)), max_size=12),
)
def test_scores_equal_a_dense_product(pairs, history):
    dense = np.zeros((10, 6))
    for source, row, weight in pairs:
        dense[source, row] += weight
    wanted = sum((weight * dense[key] for key, weight in history), np.zeros(6))
    rows, scores = score(from_pairs(pairs), history)
    assert rows.tolist() == sorted({row for source, row, _ in pairs if source in {key for key, _ in history}})
    assert scores.tolist() == wanted[rows].tolist()


@pytest.mark.parametrize("matrix", [MATRIX, from_pairs([])])
def test_what_is_saved_comes_back_mapped_and_read_only(tmp_path, matrix):
    matrix.save(tmp_path / "transition")
    loaded = SparseRows.load(tmp_path / "transition")
    for name in ("sources", "offsets", "rows", "weights"):
        ours, theirs = getattr(matrix, name), getattr(loaded, name)
        assert (ours.tolist(), ours.dtype) == (theirs.tolist(), theirs.dtype)
        assert not theirs.flags.writeable
    assert score(loaded, [(7, 1.0)])[0].tolist() == score(matrix, [(7, 1.0)])[0].tolist()
    names = sorted(path.name for path in (tmp_path / "transition").iterdir())
    assert names == ["offsets.npy", "rows.npy", "sources.npy", "weights.npy"]


def break_file(folder, fault):
    path = folder / "rows.npy"
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "garbage":
        path.write_bytes(b"garbage" * 100)
    elif fault == "pickle":
        np.save(path, np.array([{}, []], dtype=object), allow_pickle=True)
    elif fault == "wrong type":
        np.save(path, np.zeros(5, dtype=np.int64))
    else:
        np.save(path, np.zeros(4, dtype=np.int32))


@pytest.mark.parametrize("fault", ["missing", "truncated", "empty", "garbage", "pickle", "wrong type", "too short"])
def test_damaged_files_are_refused(tmp_path, fault):
    MATRIX.save(tmp_path)
    break_file(tmp_path, fault)
    with pytest.raises(SnapshotError):
        SparseRows.load(tmp_path)
