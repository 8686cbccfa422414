"""A self-attentive sequence model over item vectors that come from text.

SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018) reads a history and predicts what comes
next, at every place of it. Here an item is not a free row of a table but its text, moved a little by behaviour:

    part = W text + b,    item = unit(part + drift |part| squash(moved)),    squash(x) = x / sqrt(1 + |x|^2)

so that behaviour never moves an item by more than ``drift`` times the part of its text, and one that nobody has met yet
is unit(part): it is found without training. In training the drift of some items is left out, so that they stay of use
by text alone. An item without text is unit(moved).

The loss is a sampled softmax over negatives that all share, each corrected by how often it is drawn (Bengio and
Senécal, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model", IEEE TNN 2008):
with scores s, it is -s(target) + log(exp s(target) + sum over negatives j of exp(s(j) - log expected(j))).

Attention knows how far back an item lies, not where it stands: a bias for each distance, as in T5 (Raffel et al.,
JMLR 2020). So what answers, the last place of a history of any length, is trained at every place of all of them.
Gated layers (SwiGLU; Shazeer 2020) as in eSASRec. ``index.sequence`` computes the same without torch.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysys.config import SequenceSettings
from raysys.index.sequence import SequenceEncoder, Shape
from raysys.types import Vectors

MIX = 3  # width of the gated layers, in dims
_FITTING = {"moved.weight", "log_scale"}  # what only the fit needs
_NEVER = -1e9  # a score that no softmax sees


class Block(nn.Module):
    """Attention to what came before, then a gated layer, each on the normalised sum of all before it (pre-norm)."""

    def __init__(self, settings: SequenceSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.heads, self.dropout = settings.heads, settings.dropout
        self.attention_norm, self.mix_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.read, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(settings.heads, settings.max_history))  # by distance
        self.mix_in, self.mix_out = nn.Linear(dim, 2 * MIX * dim), nn.Linear(MIX * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[b, l, dim] -> [b, l, dim]."""
        x = x + self._drop(self.out(self._attend(self.attention_norm(x))))
        gate, value = self.mix_in(self.mix_norm(x)).chunk(2, dim=-1)
        return x + self._drop(self.mix_out(functional.silu(gate) * value))

    def _attend(self, x: Tensor) -> Tensor:
        b, length, dim = x.shape
        query, key, value = self.read(x).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(length, device=x.device)
        back = place[:, None] - place
        bias = self.bias[:, back.clamp(min=0)].masked_fill(back < 0, _NEVER).to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[None], dropout_p=dropout)
        return mixed.transpose(1, 2).reshape(b, length, dim)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class SequenceModel(nn.Module):
    """``moved`` has a row an item; all other weights are of the size of one layer."""

    def __init__(self, settings: SequenceSettings, n_items: int, text_dim: int) -> None:
        super().__init__()
        self.settings, self.text_dim = settings, text_dim
        self.text = nn.Linear(text_dim, settings.dim)
        self.moved = nn.Embedding(n_items, settings.dim)
        nn.init.normal_(self.moved.weight, std=0.02)
        self.scale_in = nn.Parameter(torch.tensor(math.sqrt(settings.dim)))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.temperature)))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(settings.dim)

    def start_from(self, text: Vectors) -> None:
        """W and b so that the parts of these texts, [n, text_dim], spread evenly in all directions: whitened, by
        principal components. Texts of fewer directions than ``dim`` leave the others as they were drawn."""
        present = text[np.any(text != 0, axis=1)].astype(np.float64)
        if len(present) < 2:
            return
        mean = present.mean(axis=0)
        values, directions = np.linalg.eigh(np.cov(present.T))
        kept = np.argsort(-values)[: self.settings.dim]
        kept = kept[values[kept] > 1e-6 * values.max()]
        weight = (directions[:, kept] / np.sqrt(values[kept] * self.settings.dim)).T
        with torch.no_grad():
            self.text.weight[: len(kept)] = torch.from_numpy(weight)
            self.text.bias[: len(kept)] = torch.from_numpy(-weight @ mean)

    def items(self, rows: Tensor, text: Tensor, left_out: float = 0.0) -> Tensor:
        """[n, dim] unit vectors. rows: [n] int64. text: [n, text_dim]. left_out: the share of items without drift."""
        moved = self.moved(rows)
        part = self.text(text)
        reach = self.settings.drift * part.norm(dim=-1, keepdim=True)
        drift = reach * moved / torch.sqrt(1 + moved.square().sum(dim=-1, keepdim=True))
        if left_out > 0:
            drift = drift * (torch.rand(len(rows), 1, device=drift.device) >= left_out)
        has_text = (text != 0).any(dim=-1, keepdim=True)
        return functional.normalize(torch.where(has_text, part + drift, moved), dim=-1)

    def users(self, inputs: Tensor) -> Tensor:
        """[b, l, dim] unit vectors of the user after each item, from those of the items, [b, l, dim]."""
        x = functional.dropout(inputs * self.scale_in, self.settings.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return functional.normalize(self.norm(x).float(), dim=-1)

    def forward(
        self, rows: Tensor, text: Tensor, inputs: Tensor, targets: Tensor, negatives: Tensor, log_expected: Tensor
    ) -> Tensor:
        """The sum of the losses of all targets. The arguments are those of ``examples.Batch``."""
        items = self.items(rows, text, self.settings.drift_left_out if self.training else 0.0)
        predicted = targets >= 0
        user, target = self.users(items[inputs])[predicted], targets[predicted]
        scale = self.log_scale.exp()
        right = scale * (user * items[target]).sum(dim=-1, keepdim=True)
        wrong = scale * (user @ items[negatives].T) - log_expected
        wrong = wrong.masked_fill(target[:, None] == negatives, _NEVER)
        return (torch.logsumexp(torch.cat([right, wrong], dim=1).float(), dim=1) - right[:, 0].float()).sum()

    def encoder(self) -> SequenceEncoder:
        """What serves: the same model in numpy, without the rows of single items."""
        settings = self.settings
        shape = Shape(settings.dim, self.text_dim, settings.blocks, settings.heads, settings.max_history)
        weights = {name: value.cpu().numpy() for name, value in self.state_dict().items() if name not in _FITTING}
        return SequenceEncoder(shape, weights)
