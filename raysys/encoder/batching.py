"""Cut texts into batches of similar length, so that little of a forward pass is spent on padding."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def padded_length(longest: int, pad_to: int) -> int:
    """The length that a batch is padded to: its longest text, rounded up to a multiple of ``pad_to``."""
    return max(-(-longest // pad_to), 1) * pad_to


def token_batches(
    lengths: Sequence[int] | NDArray[np.integer], batch_tokens: int, pad_to: int = 8
) -> list[NDArray[np.intp]]:
    """Indices into ``lengths``, each exactly once, longest texts first.

    lengths: tokens of each text. A batch's rows times its padded length is at most ``batch_tokens``; a text
    that is longer alone is a batch of its own. The longest come first, so that memory peaks at the start.
    """
    sizes = np.asarray(lengths)
    order = np.argsort(-sizes, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        width = padded_length(int(sizes[order[start]]), pad_to)
        rows = max(batch_tokens // width, 1)
        batches.append(order[start : start + rows])
        start += rows
    return batches
