"""From one vector a token to one vector a text. Which one a model wants is written on its card."""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "last"]


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """[n, dim] float32 from hidden [n, tokens, dim] of any float type and mask [n, tokens], 1 = a token, 0 = padding.

    mean: over the text's tokens. cls: its first token. last: its last token. Padding may be on either side.
    """
    if how == "mean":
        weights = mask.unsqueeze(-1).to(torch.float32)
        # Clamped: a row of padding alone would divide by zero.
        return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    first = mask.argmax(dim=1)
    position = first if how == "cls" else first + mask.sum(dim=1).clamp(min=1) - 1
    at = position.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])  # no length as a number: it is traced for any batch
    return hidden.gather(1, at).squeeze(1).float()
