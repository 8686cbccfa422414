"""Terms of items and texts, their weights, and how a shard finds by them: against plain loops over dictionaries."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.index.words import MOST_HELD, MOST_TERMS, NO_TERMS, Vocabulary, WordRows, unit
from raysys.keys import term_key, term_keys
from raysys.types import Keys, Terms
from raysys.words import item_terms, text_terms

Bag = dict[str, int]
BAGS = st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 5), max_size=6), max_size=12)


def test_the_terms_of_a_text_are_its_words_folded() -> None:
    assert list(text_terms("The Godfather: Part II — ﬁne!")) == ["the", "godfather", "part", "ii", "fine"]


def test_chinese_is_read_by_characters_and_pairs() -> None:
    assert sorted(text_terms("看电影 ok")) == sorted(["看", "电", "影", "ok", "看电", "电影"])


def test_an_item_has_words_and_whole_values() -> None:
    fields = {
        "item_id": "7",
        "title": "Red shoe",
        "categories": ["Shoes", "Sale now"],
        "owner_id": "ACME",
        "brand": "Acme Inc",
        "sizes": ["41", "42"],
        "price": 3.5,
        "hidden": False,
        "language": "en",
        "tags": None,
    }
    assert item_terms(fields, ["brand", "sizes", "price", "hidden"]) == Counter(
        {
            **dict.fromkeys(("red", "shoe", "shoes", "sale", "now"), 1),
            **dict.fromkeys(("categories=shoes", "categories=sale now", "owner_id=acme"), 1),
            **dict.fromkeys(("brand=acme inc", "sizes=41", "sizes=42"), 1),
        }
    )


def test_an_item_without_fields_has_no_terms() -> None:
    assert not item_terms({}, ["brand"])


def vocabulary_of(bags: list[Bag]) -> Vocabulary:
    return Vocabulary.from_parts([counted(bag) for bag in bags], len(bags))


def counted(terms: Iterable[str]) -> tuple[Keys, np.ndarray]:
    return np.unique(term_keys(terms), return_counts=True)


def rows_of(bags: list[Bag], vocabulary: Vocabulary) -> WordRows:
    rows = np.repeat(np.arange(len(bags), dtype=np.int32), [len(bag) for bag in bags])
    terms = np.concatenate([np.empty(0, np.uint64), *(term_keys(bag) for bag in bags)])
    counts = np.array([count for bag in bags for count in bag.values()], dtype=np.float32)
    return WordRows.build(len(bags), rows, terms, counts, vocabulary)


def plain_weights(bag: Bag, bags: list[Bag]) -> dict[str, float]:
    """The formula of the module, term by term."""
    n_with = {term: max(sum(term in other for other in bags), 1) for term in bag}
    raw = {term: (1 + math.log(n)) * math.log1p(len(bags) / n_with[term]) for term, n in bag.items()}
    length = math.sqrt(sum(weight**2 for weight in raw.values()))
    return {term: weight / length for term, weight in raw.items()}


@given(BAGS, st.dictionaries(st.sampled_from("abcdefghxy"), st.integers(1, 5), min_size=1, max_size=8))
def test_a_score_is_the_cosine_of_the_weights(bags: list[Bag], wanted: Bag) -> None:
    vocabulary = vocabulary_of(bags)
    if not len(vocabulary.terms):
        return
    terms = vocabulary.weigh(wanted)
    rows, scores = rows_of(bags, vocabulary).by_term.score(terms.keys, terms.weights)
    asked = plain_weights(wanted, bags)
    cosines = [sum(asked.get(t, 0.0) * w for t, w in plain_weights(bag, bags).items()) if bag else 0.0 for bag in bags]
    found = np.zeros(len(bags))
    found[rows] = scores
    np.testing.assert_allclose(found, cosines, atol=1e-5)


@given(BAGS)
def test_both_ways_say_the_same(bags: list[Bag]) -> None:
    vocabulary = vocabulary_of(bags)
    words = rows_of(bags, vocabulary)
    for row, bag in enumerate(bags):
        terms = words.of(row)
        assert set(terms.keys.tolist()) == {term_key(term) for term in bag}
        expected = vocabulary.weigh(bag)
        held = dict(zip(terms.keys.tolist(), terms.weights.tolist(), strict=True))
        assert held == pytest.approx(
            dict(zip(expected.keys.tolist(), expected.weights.tolist(), strict=True)), abs=1e-6
        )


def test_a_vocabulary_of_parts_is_that_of_the_whole() -> None:
    bags: list[Bag] = [{"a": 1, "b": 2}, {"a": 1}, {"c": 1}]
    whole, parts = vocabulary_of(bags), Vocabulary.from_parts([counted("ab"), counted("ac")], 3)
    np.testing.assert_array_equal(whole.terms, parts.terms)
    np.testing.assert_array_equal(whole.n_with, parts.n_with)


def test_a_word_that_nobody_has_counts_like_the_rarest() -> None:
    vocabulary = vocabulary_of([{"a": 1, "b": 1}, {"a": 1}])
    known, unknown = vocabulary.idf(term_keys(["b"])), vocabulary.idf(term_keys(["never seen"]))
    assert known == unknown > vocabulary.idf(term_keys(["a"]))


def test_a_request_looks_for_the_weightiest_terms_each_once() -> None:
    keys = np.arange(2 * MOST_TERMS, dtype=np.uint64)
    terms = Terms(np.concatenate([keys, keys]), np.tile(np.linspace(1, 2, len(keys), dtype=np.float32), 2))
    found = vocabulary_of([{"a": 1}]).wanted(terms)
    np.testing.assert_array_equal(found.keys, keys[MOST_TERMS:])
    assert np.linalg.norm(found.weights) == pytest.approx(1, abs=1e-6)


def test_a_request_never_touches_more_items_than_it_may() -> None:
    keys = np.sort(term_keys("abc"))
    vocabulary = Vocabulary(keys, np.array([MOST_HELD - 10, 20, 5]), MOST_HELD)
    found = vocabulary.wanted(Terms(keys, np.array([0.5, 3.0, 2.0], np.float32)))
    np.testing.assert_array_equal(found.keys, keys[1:])


def test_nothing_has_no_terms() -> None:
    assert vocabulary_of([]).weigh({}) is NO_TERMS
    assert not len(unit(Terms(np.empty(0, np.uint64), np.empty(0, np.float32))))
    assert not len(vocabulary_of([]).weigh({"a": 1}))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    bags: list[Bag] = [{"a": 1, "b": 2}, {}, {"a": 3}]
    vocabulary = vocabulary_of(bags)
    vocabulary.save(tmp_path)
    words = rows_of(bags, vocabulary)
    (tmp_path / "words").mkdir()
    words.save(tmp_path / "words")
    loaded = WordRows.load(tmp_path / "words", 3)
    np.testing.assert_array_equal(Vocabulary.load(tmp_path).idf(term_keys("ab")), vocabulary.idf(term_keys("ab")))
    for row in range(3):
        np.testing.assert_array_equal(loaded.of(row).keys, words.of(row).keys)
        np.testing.assert_array_equal(loaded.of(row).weights, words.of(row).weights)


def test_a_snapshot_without_terms_finds_nothing_by_them(tmp_path: Path) -> None:
    words, vocabulary = WordRows.load(tmp_path / "words", 4), Vocabulary.load(tmp_path)
    assert not len(words.of(3))
    assert not len(vocabulary.weigh({"a": 1}))
    assert not len(words.by_term.score(term_keys("a"), np.ones(1, np.float32))[0])
