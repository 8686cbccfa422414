import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.encoder.edges import clean, encode_texts, unit_rows
from raysys.encoder.protocol import EncoderIdentity
from raysys.errors import EncoderError
from raysys.types import Vectors

IDENTITY = EncoderIdentity("letters", "1", "sum", "ask: ", "", max_tokens=2, dim=2, normalized=False)


def lengths(texts: list[str]) -> Vectors:
    return np.array([[len(text), 1] for text in texts], dtype=np.float32).reshape(-1, 2)


def test_prompts_go_by_role_and_blank_texts_never_reach_the_model() -> None:
    assert encode_texts(["ab", " ", "abc"], "query", IDENTITY, lengths).tolist() == [[7, 1], [0, 0], [8, 1]]
    assert encode_texts(["ab", "\t"], "item", IDENTITY, lengths).tolist() == [[2, 1], [0, 0]]


def test_a_vector_that_is_not_finite_names_its_text() -> None:
    def broken(texts: list[str]) -> Vectors:
        return np.array([[1, 1], [np.inf, 1]], dtype=np.float32)

    with pytest.raises(EncoderError, match="NaN or infinity for text 2") as caught:
        encode_texts(["good", "", "bad"], "item", IDENTITY, broken)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_text_is_cut_by_characters_after_its_outer_space() -> None:
    assert clean("  " + "x" * 100, max_tokens=2) == "x" * 32


@given(st.text(st.characters(), max_size=50))  # surrogates included
def test_any_text_becomes_valid_utf8(text: str) -> None:
    clean(text, 100).encode()


@given(st.text(max_size=50))
def test_a_valid_text_is_not_changed_inside(text: str) -> None:
    assert clean(text, 100) == text.strip()


def test_rows_of_length_one_and_zero_rows_stay() -> None:
    rows = np.array([[3, 4], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8], [0, 0]])
    assert unit_rows(rows).dtype == np.float32
