"""What holds for every encoder. A new one subclasses ``EncoderSuite`` and gives the fixture ``encoder``."""

import numpy as np
import pytest

from raysys.encoder.edges import CHARS_PER_TOKEN
from raysys.encoder.protocol import Encoder

TITLES = [
    "The Matrix",
    "a much longer title about a detective who comes home to a city by the sea after the war",
    "Toy Story",
    "我喜欢看电影和旅游",
    "Alien",
]
STRANGE = {
    "lone surrogate": "film \ud800 noir",
    "only a lone surrogate": "\udfff",
    "NUL": "before\x00after",
    "only NUL": "\x00",
    "100k characters": "word " * 20_000,
    "100k characters without a space": "x" * 100_000,
    "100k spaces inside": "start" + " " * 100_000 + "end",
    "emoji": "🎬🍿 👨‍👩‍👧‍👦",
    "Chinese": "喜欢电影",
    "right to left": "فيلم عن الحرب",
    "combining marks": "e\u0301" * 50,
    "only punctuation": "?!... --",
}
BLANK = ["", " ", "\n\t  ", "\u3000"]


class EncoderSuite:
    """``tolerance``: how far the values of a vector may move with the company a text is encoded in."""

    tolerance = 1e-5

    @pytest.fixture
    def encoder(self) -> Encoder:
        raise NotImplementedError

    def test_gives_float32_rows_of_the_stated_width(self, encoder: Encoder) -> None:
        vectors = encoder.encode(TITLES, "item")
        assert vectors.shape == (len(TITLES), encoder.identity.dim)
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        assert np.isfinite(vectors).all()

    def test_vectors_have_length_one_where_the_identity_says_so(self, encoder: Encoder) -> None:
        assert encoder.identity.normalized
        norms = np.linalg.norm(encoder.encode(TITLES, "item"), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)

    def test_keeps_the_order_of_the_texts(self, encoder: Encoder) -> None:
        forward, backward = encoder.encode(TITLES, "item"), encoder.encode(TITLES[::-1], "item")
        np.testing.assert_allclose(forward, backward[::-1], atol=self.tolerance)
        assert np.abs(forward[0] - forward[2]).max() > self.tolerance

    def test_a_batch_gives_what_each_text_gives_alone(self, encoder: Encoder) -> None:
        together = encoder.encode(TITLES, "item")
        alone = np.concatenate([encoder.encode([title], "item") for title in TITLES])
        np.testing.assert_allclose(together, alone, atol=self.tolerance)

    def test_no_texts_give_no_rows(self, encoder: Encoder) -> None:
        vectors = encoder.encode([], "query")
        assert vectors.shape == (0, encoder.identity.dim)
        assert vectors.dtype == np.float32
        assert encoder.count_tokens([]) == []

    @pytest.mark.parametrize("blank", BLANK)
    def test_a_blank_text_gives_a_zero_vector_and_leaves_its_neighbours_alone(
        self, encoder: Encoder, blank: str
    ) -> None:
        vectors = encoder.encode([TITLES[0], blank, TITLES[2]], "item")
        assert not vectors[1].any()
        np.testing.assert_allclose(vectors[[0, 2]], encoder.encode([TITLES[0], TITLES[2]], "item"), atol=self.tolerance)
        assert encoder.count_tokens([blank]) == [0]

    def test_strange_texts_survive(self, encoder: Encoder) -> None:
        texts = list(STRANGE.values())
        vectors = encoder.encode([*texts, TITLES[0]], "query")
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(vectors[-1], encoder.encode(TITLES[:1], "query")[0], atol=self.tolerance)
        limit = encoder.identity.max_tokens
        assert all(0 <= count <= limit for count in encoder.count_tokens(texts))

    def test_text_after_the_last_token_read_changes_nothing(self, encoder: Encoder) -> None:
        full = "sea " * encoder.identity.max_tokens
        assert encoder.count_tokens([full]) == [encoder.identity.max_tokens]
        read, more = encoder.encode([full, full + "and more " * 50], "item")
        np.testing.assert_allclose(read, more, atol=self.tolerance)

    def test_text_after_the_last_character_read_changes_nothing(self, encoder: Encoder) -> None:
        full = "sea " + " " * (CHARS_PER_TOKEN * encoder.identity.max_tokens)
        short, long = encoder.encode(["sea", full + "mountain"], "item")
        np.testing.assert_allclose(short, long, atol=self.tolerance)

    def test_white_space_around_a_text_changes_nothing(self, encoder: Encoder) -> None:
        plain, spaced = encoder.encode(["Toy Story", " \n Toy Story\t" + " " * 10_000], "item")
        np.testing.assert_allclose(plain, spaced, atol=self.tolerance)

    def test_counts_grow_with_the_text(self, encoder: Encoder) -> None:
        short, long = encoder.count_tokens(["sea", "sea and sand and sun"])
        assert 1 <= short < long <= encoder.identity.max_tokens

    def test_identity_stays_the_same(self, encoder: Encoder) -> None:
        before = encoder.identity.fingerprint()
        encoder.encode(TITLES, "item")
        assert encoder.identity.fingerprint() == before
        assert encoder.identity.revision
