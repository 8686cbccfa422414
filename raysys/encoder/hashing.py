"""An encoder without a model: hashed words and character n-grams. For tests, and where no model is at hand.

Texts that share words, or parts of words, are near each other; meaning is not looked at.
Signed feature hashing after Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from raysys.encoder.edges import clean, encode_texts, is_blank
from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.types import Vectors
from raysys.words import is_cjk, words

_NGRAM = 3
_NGRAM_WEIGHT = 0.3  # of a word's parts, next to 1 for the word itself


class HashEncoder:
    """Signed feature hashing into ``dim`` columns with sublinear term frequency. Keeps no state."""

    def __init__(
        self,
        dim: int = 256,
        max_tokens: int = 256,
        query_prompt: str = "",
        item_prompt: str = "",
        normalize: bool = True,
    ) -> None:
        self.identity = EncoderIdentity(
            name="hash",
            revision="1",
            pooling="sum",
            query_prompt=query_prompt,
            item_prompt=item_prompt,
            max_tokens=max_tokens,
            dim=dim,
            normalized=normalize,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words of each text (characters, where it is Chinese, Japanese or Korean), at most ``max_tokens``."""
        return [0 if is_blank(text) else len(self._words(clean(text, self.identity.max_tokens))) for text in texts]

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """See ``Encoder.encode``. A text without a letter or digit gets a zero vector too."""
        return encode_texts(texts, role, self.identity, self._forward)

    def encode_counted(self, texts: Sequence[str], role: Role) -> tuple[Vectors, int]:
        """See ``Encoder.encode_counted``."""
        return self.encode(texts, role), sum(self.count_tokens(texts))

    def _forward(self, texts: list[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.identity.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for feature, count in Counter(_features(self._words(text))).items():
                column, sign = _slot(feature, self.identity.dim)
                vectors[row, column] += sign * _weight(feature) * (1 + math.log(count))
        return vectors

    def _words(self, text: str) -> list[str]:
        return words(text)[: self.identity.max_tokens]


def _features(tokens: list[str]) -> Iterator[str]:
    """``=word`` for words and CJK characters, ``+pair`` for neighbouring CJK characters, ``~abc`` for parts."""
    previous = ""
    for token in tokens:
        yield "=" + token
        if is_cjk(token):
            if previous:
                yield "+" + previous + token
            previous = token
            continue
        previous = ""
        edged = f"<{token}>"
        for start in range(len(edged) - _NGRAM + 1):
            yield "~" + edged[start : start + _NGRAM]


def _weight(feature: str) -> float:
    return _NGRAM_WEIGHT if feature.startswith("~") else 1.0


@lru_cache(maxsize=100_000)
def _slot(feature: str, dim: int) -> tuple[int, int]:
    """(column, sign) of a feature: the same in every process, unlike Python's own salted ``hash``."""
    digest = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
    return (digest >> 1) % dim, 1 if digest & 1 else -1
