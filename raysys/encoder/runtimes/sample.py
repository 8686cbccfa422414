"""Texts that a runtime is checked with before it is used: their vectors are compared with those of torch in float32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysys.encoder.batching import TokenBatch, pad, token_batches
from raysys.encoder.edges import unit_rows
from raysys.encoder.runtimes.protocol import Runtime
from raysys.errors import EncoderError
from raysys.types import Vectors

# The least cosine to torch in float32. Above .999 vectors of different runtimes may stand in one index; int8, which
# stays below it, is a model of its own.
FLOORS = {"float32": 0.999, "bfloat16": 0.999, "float16": 0.999, "int8": 0.98}

MAX_TOKENS = 128
Tokenize = Callable[[list[str]], list[list[int]]]
_TEXT = (
    "a quiet film about two sisters who open a small restaurant by the sea and learn what their father left behind; "
    "waterproof hiking boots with a soft sole for long days on wet stone, light enough to carry in a bag; how cities "
    "store the heat of summer, and what trees, water and white roofs can do about it according to a new study of "
    "eleven towns; moisturising cream for dry skin, without perfume, 50 ml; the history of the bicycle in ninety "
    "photographs; deutsche Grammatik kurz erklärt; 电影和旅游; café à Lyon; 2019 model, 13.3 inch, 16 GB (refurbished)"
)
N_TEXTS = 32


def texts() -> list[str]:
    """From a word to a paragraph of 74: titles, queries, descriptions, a few words of other languages."""
    words = _TEXT.split() * 2
    return [" ".join(words[3 * row :][: 1 + row * row // 13]) for row in range(N_TEXTS)]


@dataclass(frozen=True)
class Sample:
    """The tokens of the texts, and their vectors [n, dim] float32 by torch in float32, not normalised."""

    tokens: Sequence[Sequence[int]]
    vectors: Vectors
    pad_id: int | None = None

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]], pad_id: int | None, reference: Runtime) -> "Sample":
        given = [ids for ids in tokens if ids]
        empty = cls(given, np.empty(0, dtype=np.float32), pad_id)
        return cls(given, empty.embed(reference), pad_id)

    def embed(self, runtime: Runtime) -> Vectors:
        """[n, dim] float32 by this runtime, in batches as it likes them."""
        parts = token_batches([len(ids) for ids in self.tokens], runtime.batch_tokens, runtime.pad_to)
        batches = (pad([self.tokens[row] for row in part], self.pad_id, runtime.pad_to) for part in parts)
        found = runtime.embed(batches)
        vectors = np.empty_like(found)
        vectors[np.concatenate(parts)] = found
        return vectors

    def min_cosine(self, runtime: Runtime) -> float:
        """Of a text's two vectors, over all texts."""
        return float((unit_rows(self.embed(runtime)) * unit_rows(self.vectors)).sum(axis=1).min())

    def check(self, runtime: Runtime) -> float:
        """The smallest cosine. Raises EncoderError where it is below the floor of the runtime's dtype."""
        cosine, floor = self.min_cosine(runtime), FLOORS[runtime.dtype]
        if cosine < floor:
            raise EncoderError(
                f"{runtime.name} in {runtime.dtype} gives vectors whose smallest cosine to torch in float32 is "
                f"{cosine:.4f}, and {floor} is the least allowed; set encoder.runtime to torch"
            )
        return cosine

    def save(self, path: Path) -> None:
        padded = pad(self.tokens, self.pad_id, 1)
        pad_id = -1 if self.pad_id is None else self.pad_id
        with path.open("wb") as file:
            np.savez(file, **padded._asdict(), vectors=self.vectors, pad_id=np.array(pad_id))

    @classmethod
    def load(cls, path: Path) -> "Sample":
        with np.load(path, allow_pickle=False) as saved:
            batch, pad_id = TokenBatch(saved["ids"], saved["mask"]), int(saved["pad_id"])
            tokens = [ids[: mask.sum()].tolist() for ids, mask in zip(*batch, strict=True)]
            return cls(tokens, saved["vectors"], None if pad_id < 0 else pad_id)
