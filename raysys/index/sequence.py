"""The sequence model where people wait: a history becomes a user's vector, in numpy and without torch.

What it computes, and why, is in ``training.sequence.model``; only the last place of the history is followed to the end.

    spaces/sequence/shape.json             the shape of the model
    spaces/sequence/weights.safetensors    its weights, by the names that torch gives them
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from raysys.errors import SnapshotError
from raysys.types import Vectors

SHAPE, WEIGHTS = "shape.json", "weights.safetensors"
_TINY = np.float32(1e-12)
_EPSILON = 1e-5  # of torch's layer norm

Weights = dict[str, Vectors]


@dataclass(frozen=True, slots=True)
class Shape:
    """dim: of item and user vectors. text_dim: of the encoder's vectors. max_history: the events that are read."""

    dim: int
    text_dim: int
    blocks: int
    heads: int
    max_history: int


@dataclass(frozen=True, eq=False)
class SequenceEncoder:
    """weights: as ``training.sequence.model.SequenceModel`` names them, but for those of single items."""

    shape: Shape
    weights: Weights

    def items(self, text: Vectors) -> Vectors:
        """[n, dim] float32 unit vectors of items that are known by their text alone, [n, text_dim]; zero without."""
        part = text @ self.weights["text.weight"].T + self.weights["text.bias"]
        return np.where(np.any(text != 0, axis=1, keepdims=True), unit(part), np.float32(0))

    def person(self, vectors: Vectors, weights: NDArray[np.float32]) -> Vectors | None:
        """[dim] float32, a unit vector: its product with an item's vector is the score of that item.

        vectors: [m, dim] float32, of the items of a history, oldest first; the latest ``max_history`` are read, and
        zeros, of items of which nothing is known, passed over. None where none is left. weights: not looked at, as how
        much something counts is learned from where it stands.
        """
        known = vectors[np.any(vectors != 0, axis=1)][-self.shape.max_history :]
        if not len(known):
            return None
        x = known * self.weights["scale_in"]
        for number in range(self.shape.blocks):
            is_last = number == self.shape.blocks - 1
            x = self._block(x, f"blocks.{number}.", asked=1 if is_last else len(x))
        vector: Vectors = unit(self._norm(x[-1:], "norm."))[0]
        return vector

    def _block(self, x: Vectors, name: str, asked: int) -> Vectors:
        """One layer, of the last ``asked`` places only: [asked, dim]."""
        x = x[-asked:] + self._attend(self._norm(x, f"{name}attention_norm."), name, asked)
        gate, value = np.split(self._linear(self._norm(x, f"{name}mix_norm."), f"{name}mix_in."), 2, axis=-1)
        return x + self._linear(gate * expit(gate) * value, f"{name}mix_out.")

    def _attend(self, x: Vectors, name: str, asked: int) -> Vectors:
        query, key, value = (self._heads(part) for part in np.split(self._linear(x, f"{name}read."), 3, axis=-1))
        back = np.arange(len(x))[-asked:, None] - np.arange(len(x))
        bias = np.where(back >= 0, self.weights[f"{name}bias"][:, np.maximum(back, 0)], np.float32(-np.inf))
        scores = query[:, -asked:] @ key.transpose(0, 2, 1) / np.sqrt(np.float32(query.shape[-1])) + bias
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (share / share.sum(axis=-1, keepdims=True)) @ value
        return self._linear(mixed.transpose(1, 0, 2).reshape(asked, -1), f"{name}out.")

    def _heads(self, x: Vectors) -> Vectors:
        """[m, dim] as [heads, m, dim / heads]."""
        heads: Vectors = x.reshape(len(x), self.shape.heads, -1).transpose(1, 0, 2)
        return heads

    def _linear(self, x: Vectors, name: str) -> Vectors:
        y: Vectors = x @ self.weights[f"{name}weight"].T + self.weights[f"{name}bias"]
        return y

    def _norm(self, x: Vectors, name: str) -> Vectors:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(_EPSILON))
        y: Vectors = scaled * self.weights[f"{name}weight"] + self.weights[f"{name}bias"]
        return y

    def save(self, folder: Path) -> None:
        """Write shape and weights into this folder."""
        (folder / SHAPE).write_text(json.dumps(asdict(self.shape), indent=2))
        save_file(self.weights, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> "SequenceEncoder":
        """Read what ``save`` wrote. Raises SnapshotError."""
        try:
            shape = Shape(**json.loads((folder / SHAPE).read_bytes()))
            return cls(shape, load_file(folder / WEIGHTS))
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise SnapshotError(f"the sequence model in {folder} cannot be read: {error}; build it again") from error


def unit(vectors: Vectors) -> Vectors:
    """[n, dim] float32, each row of length 1; zero stays zero."""
    lengths = np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))
    units: Vectors = (vectors / np.maximum(lengths, _TINY)).astype(np.float32)
    return units
