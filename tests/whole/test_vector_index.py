"""The index: equal to plain numpy where it is exact, near it where it is not, and strict about what it is given."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.errors import EncoderError, InvalidInput, SnapshotError
from raysys.index import vector_index
from raysys.index.kinds import KINDS, Effort, choose_kind, ivf_lists
from raysys.index.vector_index import VectorIndex, build, set_threads

APPROXIMATE = [kind for kind in KINDS if kind != "flat"]
METRICS = ("cosine", "l2", "ip")


def vectors_of(n, dim, metric="cosine", seed=0):
    """Points around a few centres, as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(n // 100, 1), dim))
    vectors = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, dim))
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def oracle(vectors, query, k, metric, allowed=None):
    """(rows, scores) by comparing everything, in float64."""
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    scores = 1 / (1 + np.linalg.norm(vectors - query, axis=1)) if metric == "l2" else vectors @ query
    can = vectors.any(axis=1) & (True if allowed is None else allowed)
    order = [row for row in np.argsort(-scores, kind="stable") if can[row]][:k]
    return order, scores[order]


def with_gaps(vectors, rows=(0, 5, 11)):
    vectors = vectors.copy()
    vectors[list(rows)] = 0
    return vectors


@pytest.mark.parametrize("n_queries", [1, 20])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_index_finds_what_comparing_everything_finds(kind, metric, masked, n_queries):
    vectors = with_gaps(vectors_of(150, 16, metric))
    queries = vectors_of(n_queries, 16, metric, seed=1)
    allowed = np.random.default_rng(2).random(150) < 0.5 if masked else None
    result = build(vectors, kind, metric, flat_below=10).search(queries, 7, allowed, Effort(150, 32))
    assert len(result.rows) == len(result.scores) == n_queries
    assert result.exact or not masked
    for query, rows, scores in zip(queries, result.rows, result.scores, strict=True):
        wanted_rows, wanted_scores = oracle(vectors, query, 7, metric, allowed)
        assert (rows.dtype, scores.dtype) == (np.int32, np.float32)
        assert rows.tolist() == wanted_rows  # every list is probed, and every code refined
        np.testing.assert_allclose(scores, wanted_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_approximate_recall_is_at_least_95_percent(kind):
    vectors = vectors_of(5_000, 32)
    queries = vectors[:50] + np.random.default_rng(3).normal(0, 0.05, (50, 32)).astype(np.float32)
    index = build(vectors, kind, "cosine", flat_below=1)
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")
    result = index.search(queries, 100)
    assert not result.exact
    for k in (10, 100):
        hits = [np.isin(rows[:k], wanted[:k]).mean() for rows, wanted in zip(result.rows, exact, strict=True)]
        assert np.mean(hits) >= 0.95


def test_a_wide_mask_on_a_large_graph_is_searched_approximately_and_kept_to(monkeypatch):
    monkeypatch.setattr(vector_index, "EXACT_BELOW_ITEMS", 100)
    vectors = with_gaps(vectors_of(2_000, 16))
    allowed = np.arange(2_000) % 4 > 0
    for kind in APPROXIMATE:
        index = build(vectors, kind, "cosine", flat_below=1)
        result = index.search(vectors[20:30], 20, allowed)
        assert not result.exact
        assert all(allowed[rows].all() and len(rows) == 20 for rows in result.rows)
        narrow = np.zeros(2_000, dtype=bool)
        narrow[[3, 5, 700]] = True  # row 5 has no text
        result = index.search(vectors[20:30], 20, narrow)
        assert result.exact
        assert all(sorted(rows.tolist()) == [3, 700] for rows in result.rows)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_too_few_approximate_hits_make_the_search_exact(kind, monkeypatch):
    monkeypatch.setattr(vector_index, "EXACT_BELOW_ITEMS", 1)
    vectors = vectors_of(1_000, 16)
    allowed = np.ones(1_000, dtype=bool)
    allowed[:3] = False
    result = build(vectors, kind, "cosine", flat_below=1).search(vectors[:2], 990, allowed)
    assert [len(rows) for rows in result.rows] == [990, 990]
    assert all(rows.min() >= 3 and len(set(rows.tolist())) == 990 for rows in result.rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 40])
def test_equal_scores_are_ordered_and_cut_by_row(kind, k):
    vectors = np.zeros((60, 8), dtype=np.float32)
    vectors[:, 0] = 1
    vectors[7] = 0
    vectors[50, :2] = 0.6, 0.8
    result = build(vectors, kind, "cosine", flat_below=1).search(vectors[:1], k, np.arange(60) != 2)
    assert result.rows[0].tolist() == [row for row in range(60) if row not in (2, 7, 50)][:k]


def test_a_vector_without_text_is_never_found_and_finds_nothing():
    vectors = with_gaps(vectors_of(30, 8, "ip"), rows=range(10))
    for metric in ("ip", "l2"):
        index = build(vectors, "flat", metric, flat_below=100)
        result = index.search(np.stack([vectors[12], np.zeros(8, np.float32), -vectors[12]]), 30)
        assert [len(rows) for rows in result.rows] == [20, 0, 20]
        assert min(rows.min() for rows in result.rows if len(rows)) >= 10
        assert index.score_rows(vectors[12:13], np.array([3, 12])).tolist()[0][0] == 0
        assert index.score_rows(np.zeros((1, 8), np.float32), np.array([3, 12])).tolist() == [[0, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_cases_give_empty_answers(kind):
    nothing = build(np.zeros((0, 8), np.float32), kind, "cosine", flat_below=100)
    blank = build(np.zeros((3, 8), np.float32), kind, "cosine", flat_below=100)
    some = build(vectors_of(50, 8), kind, "cosine", flat_below=100)
    query = vectors_of(2, 8)
    for result in (nothing.search(query, 5), blank.search(query, 5), some.search(query, 5, np.zeros(50, dtype=bool))):
        assert [len(rows) for rows in result.rows] == [0, 0]
        assert result.exact
    assert some.search(query[:0], 5).rows == []
    assert (len(nothing), len(blank), len(some)) == (0, 3, 50)


@pytest.mark.parametrize("metric", METRICS)
def test_score_rows_gives_the_scores_of_search(metric):
    vectors = with_gaps(vectors_of(200, 24, metric))
    index = build(vectors, "flat", metric, flat_below=1_000)
    for queries in (vectors[20:21], vectors[20:60]):
        result = index.search(queries, 15)
        for query, rows, scores in zip(queries, result.rows, result.scores, strict=True):
            np.testing.assert_allclose(index.score_rows(query[None], rows)[0], scores, rtol=1e-5, atol=1e-6)


def test_an_item_is_at_distance_nothing_from_itself():
    vectors = vectors_of(100, 384, "l2") * 10
    result = build(vectors, "flat", "l2", flat_below=1_000).search(vectors, 1)
    assert [rows[0] for rows in result.rows] == list(range(100))
    assert all(scores[0] == 1 for scores in result.scores)


def test_a_batch_gives_what_single_queries_give():
    vectors = vectors_of(500, 32)
    index = build(vectors, "flat", "cosine", flat_below=1_000)
    allowed = np.arange(500) % 3 > 0
    for mask in (None, allowed):
        batch = index.search(vectors[:60], 10, mask)
        for i in range(60):
            single = index.search(vectors[i : i + 1], 10, mask)
            assert single.rows[0].tolist() == batch.rows[i].tolist()
            np.testing.assert_allclose(single.scores[0], batch.scores[i], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 40), k=st.integers(1, 50), n_queries=st.sampled_from([1, 9]))
def test_whole_numbers_with_many_ties_are_ranked_exactly(data, n, k, n_queries):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vectors = rng.integers(-1, 2, size=(n, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, size=(n_queries, 3)).astype(np.float32)
    allowed = data.draw(st.none() | st.just(rng.random(n) < 0.6))
    result = build(vectors, data.draw(st.sampled_from(["flat", "ivf"])), "ip", flat_below=1).search(queries, k, allowed)
    for query, rows, scores in zip(queries, result.rows, result.scores, strict=True):
        wanted_rows, wanted_scores = oracle(vectors, query, k, "ip", allowed) if query.any() else ([], [])
        assert len(rows) == len(wanted_rows)
        if result.exact:
            assert rows.tolist() == wanted_rows
            assert scores.tolist() == list(wanted_scores)


@pytest.mark.parametrize(
    ("row", "value", "says"),
    [(3, np.nan, "row 3 is not finite"), (4, np.inf, "row 4 is not finite"), (2, 2.0, "row 2 has length")],
)
def test_vectors_that_cannot_be_indexed_are_named(row, value, says):
    vectors = vectors_of(10, 8)
    vectors[row, 1] = value
    with pytest.raises(EncoderError, match=says):
        build(vectors, "auto", "cosine", flat_below=100)


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "field"),
    [
        (np.ones((1, 8)), 0, None, "k"),
        (np.ones((1, 8)), -1, None, "k"),
        (np.ones((1, 7)), 5, None, "query"),
        (np.ones(8), 5, None, "query"),
        (np.full((1, 8), np.nan), 5, None, "query"),
        (np.full((1, 8), np.inf), 5, None, "query"),
        (np.full((1, 8), 1e30), 5, None, "query"),
        (np.ones((1, 8)), 5, np.ones(9, dtype=bool), "allowed"),
        (np.ones((1, 8)), 5, np.ones(10, dtype=np.int8), "allowed"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(queries, k, allowed, field):
    index = build(vectors_of(10, 8), "auto", "cosine", flat_below=100)
    with pytest.raises(InvalidInput) as caught:
        index.search(queries.astype(np.float32), k, allowed)
    assert caught.value.field == field


def test_the_kind_follows_the_stated_rule():
    assert [choose_kind(n, "auto", 100) for n in (0, 1, 100, 101)] == ["flat", "flat", "flat", "hnsw"]
    assert [choose_kind(n, "ivf", 100) for n in (0, 1, 101)] == ["flat", "ivf", "ivf"]
    assert [ivf_lists(n) for n in (1, 39, 78, 20_000, 1_000_000)] == [1, 1, 2, 282, 2_000]
    with pytest.raises(InvalidInput, match="'tree'"):
        choose_kind(5, "tree", 100)
    assert build(vectors_of(101, 8), "auto", "cosine", flat_below=100).kind == "hnsw"


@pytest.mark.parametrize("gaps", [(), (0, 5)])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back(tmp_path, kind, metric, gaps):
    vectors = with_gaps(vectors_of(300, 16, metric), gaps)
    np.save(tmp_path / "vectors.npy", vectors)
    index = build(vectors, kind, metric, flat_below=1)
    index.save(tmp_path / "index.faiss")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.faiss", "vectors.npy"]
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    loaded = VectorIndex.load(tmp_path / "index.faiss", mapped, kind, metric)
    assert (loaded.kind, loaded.dim, len(loaded), loaded.metric) == (kind, 16, 300, metric)
    for allowed in (None, np.arange(300) % 2 == 0):
        ours, theirs = index.search(vectors[7:30], 10, allowed), loaded.search(vectors[7:30], 10, allowed)
        assert [rows.tolist() for rows in ours.rows] == [rows.tolist() for rows in theirs.rows]
        assert [scores.tolist() for scores in ours.scores] == [scores.tolist() for scores in theirs.scores]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    vectors = vectors_of(100, 8)
    path = tmp_path / "index.faiss"
    build(vectors, kind, "cosine", flat_below=1).save(path)
    whole = path.read_bytes()
    for length in [*range(0, 200, 7), len(whole) // 2, len(whole) - 17, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError):
            VectorIndex.load(path, vectors, kind, "cosine")


def test_files_that_are_no_index_are_refused(tmp_path):
    vectors = vectors_of(100, 8)
    path = tmp_path / "index.faiss"
    garbage = b"garbage" * 100
    trailer = vector_index._TRAILER.pack(vector_index._MAGIC, len(garbage))
    for content in (garbage, garbage + trailer, b"longer" + garbage + trailer):
        path.write_bytes(content)
        with pytest.raises(SnapshotError):
            VectorIndex.load(path, vectors, "flat", "cosine")
    with pytest.raises(SnapshotError, match="cannot be opened"):
        VectorIndex.load(tmp_path / "missing", vectors, "flat", "cosine")


def test_an_index_of_other_vectors_is_refused(tmp_path):
    vectors = vectors_of(100, 8)
    path = tmp_path / "index.faiss"
    build(vectors, "flat", "cosine", flat_below=1).save(path)
    wrong = [
        (vectors[:99], "flat", "cosine"),
        (vectors_of(100, 9), "flat", "cosine"),
        (vectors, "hnsw", "cosine"),
        (vectors, "flat", "l2"),
        (vectors, "flat", "hamming"),
    ]
    for others, kind, metric in wrong:
        with pytest.raises(SnapshotError):
            VectorIndex.load(path, others, kind, metric)


def test_an_index_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "index.faiss").mkdir()
    index = build(vectors_of(10, 8), "flat", "cosine", flat_below=100)
    for path in (tmp_path / "index.faiss", tmp_path / "no folder" / "index.faiss"):
        with pytest.raises(SnapshotError, match="cannot be written"):
            index.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.faiss"]


def test_the_number_of_threads_holds_in_every_thread(monkeypatch):
    monkeypatch.setattr(vector_index, "_threads", None)
    index = build(vectors_of(10, 8), "flat", "cosine", flat_below=100)
    set_threads(1)

    def search():
        index.search(vectors_of(1, 8), 1)
        return faiss.omp_get_max_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(search).result() == 1


@cache
def small_index(kind, metric):
    return build(with_gaps(vectors_of(600, 16, metric)), kind, metric, flat_below=1)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    metric=st.sampled_from(METRICS),
    share=st.sampled_from([0.003, 0.05, 0.3, 0.6, 0.97]),
    k=st.integers(1, 700),
    seed=st.integers(0, 2**32),
    breadth=st.sampled_from([1, 8, 64]),
)
def test_what_a_mask_leaves_out_never_comes_back_and_nobody_gets_too_few(
    monkeypatch, kind, metric, share, k, seed, breadth
):
    monkeypatch.setattr(vector_index, "EXACT_BELOW_ITEMS", 1)
    random = np.random.default_rng(seed)
    index, allowed = small_index(kind, metric), random.random(600) < share
    queries = vectors_of(3, 16, metric, seed=seed % 1_000)
    result = index.search(queries, k, allowed, Effort(breadth, 2))
    can = allowed.copy()
    can[[0, 5, 11]] = False  # these have no text
    for query, rows, scores in zip(queries, result.rows, result.scores, strict=True):
        assert can[rows].all()
        assert len(rows) == len(set(rows.tolist())) == min(k, np.count_nonzero(can))
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(scores, index.score_rows(query[None], rows)[0], rtol=1e-5, atol=1e-6)
        if result.exact:
            wanted = oracle(with_gaps(vectors_of(600, 16, metric)), query, k, metric, allowed)[1]
            np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)


def test_a_filter_behind_which_the_lists_are_more_work_is_compared(monkeypatch):
    monkeypatch.setattr(vector_index, "EXACT_BELOW_ITEMS", 1)
    vectors = vectors_of(4_000, 32)
    index = build(vectors, "ivf", "cosine", flat_below=1)
    allowed = np.arange(4_000) % 10 == 0
    lists = len(index.centres)
    assert not index.search(vectors[:1], 10, allowed, Effort(lists // 2, 1, narrow=0)).exact
    assert index.search(vectors[:1], 10, allowed, Effort(lists, 1, narrow=0)).exact
    assert not index.search(vectors[:1], 10, None, Effort(lists, 1)).exact


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("which", ["even", "near", "far"])
def test_recall_behind_a_filter_is_at_least_95_percent(kind, which, monkeypatch):
    """``far``: the filter leaves out just those that the query is near to, which no index foresees."""
    monkeypatch.setattr(vector_index, "EXACT_BELOW_ITEMS", 300)
    vectors, queries = vectors_of(4_000, 32), vectors_of(4_020, 32)[4_000:]
    index = build(vectors, kind, "cosine", flat_below=1)
    near = vectors @ queries[0]
    by_preference = {"even": np.random.default_rng(1).random(4_000), "near": near, "far": -near}[which]
    for share in (0.7, 0.1, 0.01, 0.001):
        allowed = by_preference >= np.quantile(by_preference, 1 - share)
        result = index.search(queries, 100, allowed)
        assert result.exact or np.count_nonzero(allowed) >= 300
        wanted = [oracle(vectors, query, 100, "cosine", allowed)[0] for query in queries]
        hits = [np.isin(rows, truth).mean() for rows, truth in zip(result.rows, wanted, strict=True)]
        assert np.mean(hits) >= (0.85 if which == "far" else 0.95), share


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_effort_is_of_one_call_and_changes_nothing_for_others(kind):
    index = small_index(kind, "cosine")
    queries = vectors_of(4, 16, seed=9)
    before = [rows.tolist() for rows in index.search(queries, 20).rows]
    with ThreadPoolExecutor(4) as pool:
        efforts = [Effort(1, 1), Effort(64, 32)] * 10
        list(pool.map(lambda effort: index.search(queries, 20, None, effort), efforts))
        again = list(pool.map(lambda _: [rows.tolist() for rows in index.search(queries, 20).rows], range(8)))
    assert all(rows == before for rows in again)


def anonymous_kib():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what memory is private")
@pytest.mark.parametrize("kind", ["flat_fp16", "ivf", "hnsw_fp16"])
def test_a_mapped_index_takes_no_memory_of_its_own(tmp_path, kind):
    vectors, path = vectors_of(3_000, 1_024), tmp_path / "index.faiss"
    built = build(vectors, kind, "cosine", flat_below=1)
    built.save(path)
    before = anonymous_kib()
    loaded = VectorIndex.load(path, vectors, kind, "cosine", Effort(1_000, 4))
    found = loaded.search(vectors[:40], 10)
    assert anonymous_kib() - before < path.stat().st_size / 1_024 / 3
    expected = built.search(vectors[:40], 10, None, Effort(1_000, 4))
    assert [rows.tolist() for rows in found.rows] == [rows.tolist() for rows in expected.rows]
