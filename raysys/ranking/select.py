"""The final choice: the n best, in an order that is the same every time."""

import numpy as np
from numpy.typing import NDArray

from raysys.types import Keys


def top_n(scores: NDArray[np.float32], keys: Keys, n: int) -> NDArray[np.intp]:
    """Positions of the n best scores, best first; ties by key; a score that is no finite number is never chosen."""
    usable = np.flatnonzero(np.isfinite(scores))
    order = np.lexsort((keys[usable], -scores[usable]))[:n]
    return usable[order]
