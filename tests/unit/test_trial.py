"""`raysys try`: cosines of a handful of texts."""

import numpy as np
import pytest

from raysys.encoder.hashing import HashEncoder
from raysys.encoder.protocol import Role
from raysys.errors import InvalidInput
from raysys.trial import nearest_texts
from raysys.types import Vectors

TEXTS = ["a red apple", "a green apple", "a fast car"]


class Planted(HashEncoder):
    """Vectors that a test lays down; the query is the x axis."""

    def __init__(self, items: list[list[float]]) -> None:
        super().__init__(dim=2)
        self._items = np.array(items, np.float32)
        self.roles: list[Role] = []

    def encode(self, texts, role: Role) -> Vectors:
        self.roles.append(role)
        return self._items if role == "item" else np.array([[2, 0]], np.float32)


def test_the_nearest_comes_first_with_its_cosine() -> None:
    encoder = Planted([[0, 3], [5, 0], [1, 1]])
    assert nearest_texts(encoder, "q", TEXTS, 3) == [
        ("a green apple", pytest.approx(1.0)),
        ("a fast car", pytest.approx(0.5**0.5)),
        ("a red apple", pytest.approx(0.0)),
    ]
    assert sorted(encoder.roles) == ["item", "query"]  # each with its own prompt


def test_of_equal_texts_the_first_given_comes_first() -> None:
    assert [text for text, _ in nearest_texts(Planted([[1, 0]] * 3), "q", TEXTS, 2)] == TEXTS[:2]


def test_a_zero_vector_is_near_nothing() -> None:
    found = nearest_texts(Planted([[0, 0], [-1, 0], [1, 0]]), "q", TEXTS, 3)
    assert [score for _, score in found] == [1.0, 0.0, -1.0]


def test_the_score_is_a_cosine_whatever_the_encoder_normalises() -> None:
    plain, unit = (nearest_texts(HashEncoder(normalize=n), "red apple", TEXTS, 3) for n in (False, True))
    assert [text for text, _ in plain] == [text for text, _ in unit]
    assert [score for _, score in plain] == pytest.approx([score for _, score in unit], abs=1e-6)


def test_more_wanted_than_there_are() -> None:
    assert len(nearest_texts(HashEncoder(), "apple", TEXTS, 99)) == 3


def test_blank_texts_and_queries_are_answered() -> None:
    assert nearest_texts(HashEncoder(), "", ["", "x"], 2) == [("", 0.0), ("x", 0.0)]


def test_nothing_to_compare_with_is_refused() -> None:
    with pytest.raises(InvalidInput, match="items"):
        nearest_texts(HashEncoder(), "apple", [], 3)


@pytest.mark.parametrize("n", [0, -1])
def test_a_wrong_number_is_refused(n: int) -> None:
    with pytest.raises(InvalidInput, match=f"it is {n}"):
        nearest_texts(HashEncoder(), "apple", TEXTS, n)
