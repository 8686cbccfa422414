"""Which index a shard gets: what is good enough and fits, by measuring; and a refusal with its reason otherwise."""

from typing import get_args

import numpy as np
import pytest

from raysys.config import IndexSettings, parse
from raysys.errors import ConfigError, EncoderError
from raysys.index.choose import CANDIDATES, Trial, Wanted, behind_filters, choose, least_effort, sample
from raysys.index.kinds import KINDS, Effort, Filtered, bytes_of, efforts
from raysys.index.manifest import ShardRecord
from raysys.index.vector_index import build


def vectors_of(n: int, dim: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(n // 50, 1), dim))
    vectors = centres[random.integers(len(centres), size=n)] + 0.5 * random.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return vectors_of(2_000, 32)


def test_of_what_is_good_enough_the_fastest_is_taken(vectors: np.ndarray) -> None:
    index, trials = choose(vectors, "cosine", Wanted(recall=0.9, flat_below=100, sample=60))
    assert [trial.kind for trial in trials] == list(CANDIDATES)
    good = [trial for trial in trials if trial.reaches(0.9)]
    taken = max(good, key=lambda trial: trial.queries_per_s)
    assert [trial.kind for trial in trials if trial.taken] == [index.kind] == [taken.kind]
    assert index.effort == taken.effort
    queries = vectors_of(2_040, 32)[2_000:]
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = index.search(queries, 10).rows
    assert np.mean([np.isin(rows, wanted).mean() for rows, wanted in zip(found, truth, strict=True)]) > 0.8


def test_what_takes_more_than_the_memory_is_passed_over_and_the_reason_said(vectors: np.ndarray) -> None:
    memory = bytes_of("ivf_sq8", 2_000, 32)
    index, trials = choose(vectors, "cosine", Wanted(memory_bytes=memory, recall=0.9, sample=40))
    assert bytes_of(index.kind, 2_000, 32) <= memory
    for trial in trials:
        assert (trial.memory_bytes > memory) == bool(trial.why_not) == (trial.recall_10 is None)
        assert Trial.from_dict(trial.as_dict()) == trial
        assert trial.kind in trial.text()


def test_flat_stays_while_items_are_few_and_memory_allows_it(vectors: np.ndarray) -> None:
    for memory in (None, bytes_of("flat", 2_000, 32)):
        index, trials = choose(vectors, "cosine", Wanted(memory_bytes=memory))
        assert (index.kind, [trial.recall_100 for trial in trials]) == ("flat", [1.0])
    index, trials = choose(vectors[:0], "cosine", Wanted(memory_bytes=1))
    assert (index.kind, list(trials)) == ("flat", [])


def test_a_memory_that_holds_nothing_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"leaves 0\.0 MB for a shard, but the smallest index of its 2,000 vectors"):
        choose(vectors, "cosine", Wanted(memory_bytes=1_000))
    with pytest.raises(ConfigError, match="hnsw, takes"):
        choose(vectors, "cosine", Wanted(kind="hnsw", memory_bytes=bytes_of("flat", 2_000, 32)))


def test_a_recall_that_nothing_reaches_is_refused_with_the_best_there_was() -> None:
    noise = np.random.default_rng(0).standard_normal((20_000, 48))
    vectors = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    with pytest.raises(ConfigError, match=r"reaches index\.recall 1: the best, ivf_rabitq, has 0\.\d+ among"):
        choose(vectors, "cosine", Wanted(kind="ivf_rabitq", recall=1.0, sample=40))


@pytest.mark.parametrize("kind", ["ivf", "ivf_rabitq", "hnsw"])
def test_the_effort_is_the_least_that_is_enough(vectors: np.ndarray, kind: str) -> None:
    index = build(vectors, kind, "cosine", flat_below=1)
    asked = sample(index, vectors, 60)
    little, reached_with_little = least_effort(index, asked, 0.5)
    much, reached = least_effort(index, asked, 0.99)
    assert min(reached_with_little) >= 0.5
    assert min(reached) >= 0.99
    assert little.breadth <= much.breadth
    breadths, refined = efforts(index.kind, 2_000)
    assert much.breadth in breadths
    assert much.refined in refined


@pytest.mark.parametrize("which", ["even", "near"])
@pytest.mark.parametrize("kind", ["ivf", "ivf_pq", "ivf_rabitq", "hnsw"])
def test_behind_a_filter_the_search_is_as_much_wider_as_recall_needs(
    vectors: np.ndarray, kind: str, which: str
) -> None:
    index = build(vectors, kind, "cosine", flat_below=1)
    asked = sample(index, vectors, 60)
    effort = behind_filters(index, asked, least_effort(index, asked, 0.95)[0], 0.95)
    by = {"even": np.random.default_rng(7).random(2_000), "near": vectors @ vectors[77]}[which]
    queries = vectors_of(2_040, 32)[2_000:]
    for share in (0.5, 0.3, 0.1):
        allowed = by >= np.quantile(by, 1 - share)
        found = index.search_once(queries, 100, effort, allowed)
        truth = index.search_exactly(queries, 100, allowed)
        hits = [np.isin(rows, wanted).mean() for rows, wanted in zip(found.rows, truth.rows, strict=True)]
        assert np.mean(hits) >= 0.95, share
        assert all(allowed[rows].all() for rows in found.rows)


def test_between_the_filters_that_were_measured_the_effort_follows_the_share() -> None:
    effort = Effort(6, 2, filtered=(Filtered(0.5, 24, 4), Filtered(0.1, 600, 16)))
    for share, breadth, refined in ((1.0, 6, 2), (0.5, 24, 4), (0.5**0.5, 12, 3), (0.1, 600, 16), (0.05, 1_200, 16)):
        found = effort.for_hits(100, share)
        assert (found.breadth, found.refined) == (breadth, refined)
    breadths = [effort.for_hits(100, share).breadth for share in np.linspace(1, 0.01, 100)]
    assert breadths == sorted(breadths)
    assert effort.for_hits(1_000, 0.5).breadth > 24


def test_what_filters_take_stands_in_the_manifest_and_older_manifests_are_read() -> None:
    effort = Effort(6, 2, filtered=(Filtered(0.5, 24, 4),))
    record = ShardRecord(folder="00000", n_items=3, index_kind="ivf", effort=effort)
    assert ShardRecord.model_validate_json(record.model_dump_json()) == record
    older = {"folder": "00000", "n_items": 3, "index_kind": "ivf", "effort": {"breadth": 6, "refined": 2, "narrow": 2}}
    assert ShardRecord.model_validate(older).effort.for_hits(10, 0.1).breadth == 600


def test_equal_vectors_are_as_good_as_each_other() -> None:
    vectors = np.tile(vectors_of(4, 16), (400, 1))
    index = build(vectors, "hnsw_sq8", "cosine", flat_below=1)
    _, reached = least_effort(index, sample(index, vectors, 40), 0.95)
    assert min(reached) >= 0.95


def test_an_item_does_not_count_as_its_own_neighbour(vectors: np.ndarray) -> None:
    index = build(vectors, "flat", "cosine", flat_below=5_000)
    asked = sample(index, vectors, 20)
    own = asked.own >= 0
    assert np.count_nonzero(own) == 10
    assert (asked.least[own, 0] < 0.999).all()
    np.testing.assert_array_equal(asked.queries[own], vectors[asked.own[own]])
    np.testing.assert_allclose(np.linalg.norm(asked.queries, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_other_metrics_are_measured_too(metric: str) -> None:
    vectors = vectors_of(600, 16) * np.linspace(0.5, 2, 600, dtype=np.float32)[:, None]
    index, trials = choose(vectors, metric, Wanted(kind="ivf_sq8", recall=0.9, sample=30))
    assert (index.kind, index.metric, len(trials)) == ("ivf_sq8", metric, 1)
    assert trials[0].reaches(0.9)


def test_vectors_that_cannot_be_indexed_are_refused_as_ever(vectors: np.ndarray) -> None:
    wrong = vectors.copy()
    wrong[7, 0] = np.nan
    with pytest.raises(EncoderError, match="row 7"):
        choose(wrong, "cosine", Wanted(kind="ivf"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_index_takes_is_known_before_it_is_built(tmp_path, kind: str) -> None:
    vectors = vectors_of(3_000, 64)
    build(vectors, kind, "cosine", flat_below=1).save(tmp_path / "index.faiss")
    assert bytes_of(kind, 3_000, 64) == pytest.approx((tmp_path / "index.faiss").stat().st_size, rel=0.12)


def test_the_settings_know_all_kinds_and_sizes_for_people() -> None:
    assert get_args(IndexSettings.model_fields["kind"].annotation) == ("auto", *KINDS)
    assert parse(IndexSettings, {"memory": "4GB"}, "test").memory == 4_000_000_000
    for wrong in ({"memory": 0}, {"memory": "much"}, {"recall": 0}, {"recall": 1.2}):
        with pytest.raises(ConfigError, match="test is not valid"):
            parse(IndexSettings, wrong, "test")


def test_a_deeper_search_is_a_wider_one() -> None:
    effort = Effort(10, 4)
    assert effort.for_hits(7) == effort.for_hits(100) == effort
    assert effort.for_hits(1_000).breadth > effort.for_hits(200).breadth > 10
