"""The first ranker: a weighted sum of the sources' scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysys.config import RankingSettings
from raysys.types import SOURCES

Scores = NDArray[np.float32]


def weights_of(settings: RankingSettings) -> Scores:
    """[len(SOURCES)] float32: the weights of the settings, one a source."""
    return np.array([getattr(settings, name) for name in SOURCES], dtype=np.float32)


class LinearRanker:
    """Weights from the settings, one a source."""

    def __init__(self, settings: RankingSettings) -> None:
        self._weights = weights_of(settings)

    def score(self, batches: Sequence[Scores]) -> list[Scores]:
        """One [n] float32 for each [n, len(SOURCES)] float32 of source scores. Higher is better."""
        return [batch @ self._weights for batch in batches]
