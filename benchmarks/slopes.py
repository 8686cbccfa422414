"""How fast something grows, and how sure that is: Theil-Sen, with a bootstrap of blocks.

The slope is the median of those of all pairs of samples (Sen, 1968): a few odd samples do not move it. Samples taken
soon after each other are alike, so the interval is that of slopes over what is left of the line, drawn again in blocks
(Kunsch, 1989).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 400
LEVEL = 0.95

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Slope:
    """A slope and its interval, in units of y a unit of x."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Slope":
        """In other units; factor > 0."""
        return Slope(self.value * factor, self.low * factor, self.high * factor)

    def as_dict(self) -> dict[str, float]:
        return {"slope": round(self.value, 3), "low": round(self.low, 3), "high": round(self.high, 3)}


def theil_sen(x: Samples, y: Samples) -> float:
    """The slope of [n] y over [n] x, ascending, each once; n >= 2."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def slope(x: Samples, y: Samples, block: int, rng: np.random.Generator) -> Slope:
    """The slope with its interval of ``LEVEL``. block: how many samples in a row are alike."""
    value = theil_sen(x, y)
    line = value * x + np.median(y - value * x)
    left, n = y - line, len(y)
    starts = rng.integers(0, max(n - block, 0) + 1, (RESAMPLES, -(-n // block)))
    drawn = (starts[:, :, None] + np.arange(min(block, n))).reshape(RESAMPLES, -1)[:, :n]
    slopes = [theil_sen(x, line + left[places]) for places in drawn]
    low, high = np.quantile(slopes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Slope(value, float(low), float(high))
