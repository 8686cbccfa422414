"""Texts in batches: of similar length, so that little of a forward pass is spent on padding, and of one role."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.encoder.protocol import Encoder, Role
from raysys.types import Vectors


class TokenBatch(NamedTuple):
    """Both [n, tokens] int64; mask: 1 = a token, 0 = padding."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


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


def pad(tokens: Sequence[Sequence[int]], pad_id: int | None, pad_to: int) -> TokenBatch:
    """The token ids of some texts, padded on the right to a multiple of ``pad_to``.

    The right side suits every model: positions start at 0, and a causal model's last token does not see padding.
    """
    width = padded_length(max(map(len, tokens)), pad_to)
    ids = np.full((len(tokens), width), 0 if pad_id is None else pad_id, dtype=np.int64)
    mask = np.zeros((len(tokens), width), dtype=np.int64)
    for row, text_ids in enumerate(tokens):
        ids[row, : len(text_ids)] = text_ids
        mask[row, : len(text_ids)] = 1
    return TokenBatch(ids, mask)


def encode_each(encoder: Encoder, texts: Sequence[tuple[str, Role]]) -> list[Vectors]:
    """[dim] float32 for each text in its role; the texts of one role are encoded together."""
    vectors: list[Vectors] = [np.empty(0, dtype=np.float32)] * len(texts)
    for role in dict.fromkeys(role for _, role in texts):
        places = [i for i, (_, its_role) in enumerate(texts) if its_role == role]
        for place, vector in zip(places, encoder.encode([texts[i][0] for i in places], role), strict=True):
            vectors[place] = vector
    return vectors
