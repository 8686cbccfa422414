"""Queries that people might type, cut out of the catalogue's own texts: a student that has read only whole texts
does badly with short ones."""

from collections.abc import Sequence

import numpy as np

from raysys.keys import seed_of
from raysys.words import spans

MOST_WORDS = 6
MOST_CHARS = 2_000  # of a text that are looked at: a query is like a title rather than like the end of a story


def queries(texts: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """At most n different runs of one to ``MOST_WORDS`` words, one of each text, then a second of each, and so on.

    The runs of a text depend on that text and the seed alone, so that another catalogue with many of the same texts
    asks much the same. Those at the start are as good a sample as all of them. There are fewer than n where the
    texts are too few or too short.
    """
    found: dict[str, None] = {}
    cutters = [_Cutter(text, seed) for text in texts]
    cutters = [cutter for cutter in cutters if cutter.can]
    rounds = 2 * -(-n // max(len(cutters), 1))  # some come twice
    for _ in range(rounds):
        for cutter in cutters:
            found[cutter.cut()] = None
            if len(found) == n:
                return [*found]
    return [*found]


class _Cutter:
    """Cuts one text at random."""

    def __init__(self, text: str, seed: int) -> None:
        self._text = text[:MOST_CHARS]
        self._spans = spans(self._text)
        self._random = np.random.default_rng([seed, seed_of(text)])

    @property
    def can(self) -> bool:
        return bool(self._spans)

    def cut(self) -> str:
        length = int(self._random.integers(1, min(MOST_WORDS, len(self._spans)) + 1))
        first = int(self._random.integers(len(self._spans) - length + 1))
        return self._text[self._spans[first][0] : self._spans[first + length - 1][1]]
