"""The student: what holds for every encoder, what it makes of unknown words, and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from encoder_suite import EncoderSuite
from hypothesis import given
from hypothesis import strategies as st
from support import DIM, Shop

from raysys.config import StudentSettings
from raysys.encoder.edges import clean
from raysys.encoder.hashing import HashEncoder
from raysys.encoder.protocol import EncoderIdentity
from raysys.encoder.student import BUCKETS, Student, grams, pair_keys
from raysys.errors import SnapshotError, SnapshotMismatch
from raysys.keys import term_keys
from raysys.training.student.fit import conjugate_gradients, directions, fit, ridge
from raysys.training.student.queries import MOST_WORDS, queries
from raysys.training.student.stage import is_held_out, nearness
from raysys.words import spans, words

SETTINGS = StudentSettings(dim=DIM, queries=600)
TEACHER = HashEncoder(DIM)


@pytest.fixture(scope="module")
def texts(shop: Shop) -> list[str]:
    return [title for title in shop.items["title"].to_pylist() if words(title)]


@pytest.fixture(scope="module")
def student(texts: list[str]) -> Student:
    return taught(texts)


def taught(texts: list[str]) -> Student:
    lessons = [*texts, *queries(texts, SETTINGS.queries)]
    return fit(lessons, TEACHER.encode(lessons, "item"), SETTINGS, TEACHER.identity)


class TestStudent(EncoderSuite):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self, student: Student) -> Student:
        return student


def saved(student: Student, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    student.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_read_back_is_the_same_to_the_last_bit(student: Student, texts: list[str], tmp_path: Path) -> None:
    files = saved(student, tmp_path / "one")
    read = Student.load(tmp_path / "one", TEACHER.identity)
    asked = [*texts, "never seen", "喜欢电影", ""]
    assert np.array_equal(read.encode(asked, "query"), student.encode(asked, "query"))
    assert read.identity == student.identity
    assert saved(read, tmp_path / "other") == files


def test_the_same_texts_make_the_same_student(student: Student, texts: list[str], tmp_path: Path) -> None:
    assert saved(student, tmp_path / "one") == saved(taught(texts), tmp_path / "other")


@given(st.text(max_size=40))
def test_any_letter_gives_a_vector(student: Student, text: str) -> None:
    (vector,) = student.encode([text], "query")
    has_words = bool(words(clean(text, student.identity.max_tokens)))
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1.0 if has_words else 0.0, abs=1e-5)


@given(st.lists(st.text(max_size=20) | st.sampled_from(["bababa", "bababa dadada", "quasar"]), min_size=1, max_size=6))
def test_alone_and_among_others_to_the_last_bit(student: Student, texts: list[str]) -> None:
    alone = [student.encode([text], "query")[0] for text in texts]
    assert np.array_equal(student.encode(texts, "query"), np.stack(alone))


def test_an_unknown_word_is_near_the_known_one_that_it_looks_like(student: Student) -> None:
    known, misspelt, other = student.encode(["zeppelin", "zeppelins", "dadada"], "query")
    assert known @ misspelt > known @ other + 0.2


def test_a_word_has_a_part_however_short() -> None:
    assert [len(grams(word)) for word in ("a", "我", "ab", "sea")] == [1, 1, 3, 6]
    assert all(0 <= bucket < BUCKETS for bucket in grams("antidisestablishmentarianism"))


def test_it_comes_near_its_teacher_for_queries_it_has_not_seen(student: Student, texts: list[str]) -> None:
    learned = set(queries(texts, SETTINGS.queries))
    asked = [query for query in queries(texts, 200, seed=1) if query not in learned]
    assert len(asked) > 50
    wanted, items = TEACHER.encode(asked, "query"), TEACHER.encode(texts, "item")
    by_chance = np.random.default_rng(0).permutation(wanted)
    found, chance = (nearness(made, wanted, items) for made in (student.encode(asked, "query"), by_chance))
    assert found["cosine"] > 0.8
    assert found["overlap@10"] > 3 * chance["overlap@10"]


def test_a_student_of_another_encoder_is_refused(student: Student, tmp_path: Path) -> None:
    saved(student, tmp_path / "one")
    with pytest.raises(SnapshotMismatch, match="learned from encoder"):
        Student.load(tmp_path / "one", HashEncoder(DIM, max_tokens=7).identity)


@pytest.mark.parametrize("name", ["student.json", "vectors.npy"])
def test_a_damaged_student_is_refused(student: Student, tmp_path: Path, name: str) -> None:
    saved(student, tmp_path / "one")
    (tmp_path / "one" / name).write_bytes(b"{")
    with pytest.raises(SnapshotError):
        Student.load(tmp_path / "one", TEACHER.identity)


def test_conjugate_gradients_find_what_a_direct_solver_finds() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(12, 12)).astype(np.float32)
    matrix = root @ root.T + np.eye(12, dtype=np.float32)
    target = random.normal(size=(12, 3)).astype(np.float32)
    found = conjugate_gradients(lambda x: matrix @ x, target, np.diag(matrix).copy(), 60)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, target), atol=1e-3)


def test_the_regression_is_that_of_the_normal_equations() -> None:
    random = np.random.default_rng(0)
    counts, parts = (sp.random_array(shape, density=0.5, rng=random, format="csr") for shape in ((40, 6), (6, 8)))
    wanted = random.normal(size=(40, 2)).astype(np.float32)
    x, b = ridge(counts.astype(np.float32), parts.astype(np.float32), wanted)
    full = np.column_stack([(counts @ parts).toarray(), np.ones(40)])
    penalty = np.diag([1.0] * 8 + [0.0])
    expected = np.linalg.solve(full.T @ full + penalty, full.T @ wanted)
    np.testing.assert_allclose(np.vstack([x, b]), expected, atol=1e-2)


def test_directions_are_orthonormal_and_hold_the_mean() -> None:
    vectors = np.random.default_rng(0).normal(loc=0.3, size=(50, 20)).astype(np.float32)
    found = directions(vectors, 5)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)
    mean = vectors.mean(axis=0)
    np.testing.assert_allclose(found.T @ (found @ mean), mean, atol=1e-5)
    assert directions(vectors, 64).shape == (20, 20)


def test_a_teacher_of_fewer_dimensions_than_asked_for(texts: list[str]) -> None:
    teacher = HashEncoder(16)
    made = fit(texts, teacher.encode(texts, "item"), SETTINGS, teacher.identity)
    assert made.encode(texts[:2], "query").shape == (2, 16)


def test_words_beyond_the_terms_are_read_by_their_parts(texts: list[str]) -> None:
    few = fit(texts, TEACHER.encode(texts, "item"), StudentSettings(dim=16, terms=3), TEACHER.identity)
    assert few.encode(texts, "query").any(axis=1).all()


def test_queries_are_runs_of_words_as_they_are_written() -> None:
    titles = ["The Quick, Brown fox; jumps over", "我喜欢看电影", "", "!?"]
    made = queries(titles, 50)
    assert len(made) == len(set(made)) > 20
    for query in made:
        assert any(query in title for title in titles)
        assert 1 <= len(spans(query)) <= MOST_WORDS
    assert {query for query in made if query in titles[1]}
    assert queries(titles, 5) == made[:5]
    assert queries([], 5) == []


def test_the_queries_of_a_text_do_not_depend_on_other_texts(texts: list[str]) -> None:
    one, other = (set(queries(some, 2 * len(some))) for some in (texts, texts[: len(texts) // 2]))
    assert len(other & one) > 0.8 * len(other)
    assert set(queries(texts, 100, seed=1)) != set(queries(texts, 100))


def test_the_identity_says_whose_student_it_is(student: Student) -> None:
    assert student.identity == EncoderIdentity(
        "student of hash", TEACHER.identity.fingerprint(), "mean", "", "", 256, DIM, True
    )


def test_the_order_of_a_pair_counts(student: Student) -> None:
    keys = term_keys(["hot", "dog"])
    assert pair_keys(keys[:1], keys[1:]) != pair_keys(keys[1:], keys[:1])


def test_pairs_are_of_one_text() -> None:
    """Two words that are a pair in the catalogue say no more when one ends a text and the other begins the next."""
    texts = ["north sea", "north sea", "north sea", "sea", "north", "wind"] * 5
    random = np.random.default_rng(0).normal(size=(len(texts), 16)).astype(np.float32)
    made = fit(texts, random, StudentSettings(dim=16), TEACHER.identity)
    assert np.array_equal(made.encode(["wind north", "sea"], "query")[1], made.encode(["sea"], "query")[0])
    one, other = made.encode(["north sea", "sea north"], "query")
    assert np.abs(one - other).max() > 0.01


def test_what_is_held_out_is_so_however_it_is_written() -> None:
    asked = [f"word {number}" for number in range(1_000)]
    held = [is_held_out(query, len(asked)) for query in asked]
    assert 50 < sum(held) < 200
    assert held == [is_held_out(f" {query.upper()}!", len(asked)) for query in asked]
