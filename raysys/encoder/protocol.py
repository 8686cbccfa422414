"""What every encoder is: texts in, float32 vectors out, and an identity that names it exactly."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from raysys.types import Vectors

Role = Literal["query", "item"]


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """Everything that decides which vector a text gets, but for rounding.

    ``revision``: the commit of a hub model, or the SHA-256 of the weights of a local one; with ``+int8-2`` behind it
    where the weights were rounded. The runtime is not part of it, nor are float32 and bfloat16: their vectors have a
    cosine of at least .999 to each other.
    """

    name: str
    revision: str
    pooling: str
    query_prompt: str
    item_prompt: str
    max_tokens: int
    dim: int
    normalized: bool

    def fingerprint(self) -> str:
        """16 hex digits that name this identity in cache folders and manifests."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class Encoder(Protocol):
    """Turns texts into vectors. Blocking; one caller at a time."""

    @property
    def identity(self) -> EncoderIdentity: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text after truncation, special tokens included, prompts not. A blank text has none."""
        ...

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """[len(texts), dim] float32, C-contiguous, finite, in the order of the texts.

        A blank text gives a zero vector. L2-normalised where the identity says so. Texts may be of any length
        and hold any characters; ``role`` selects the prompt.
        """
        ...

    def encode_counted(self, texts: Sequence[str], role: Role) -> tuple[Vectors, int]:
        """What ``encode`` gives, and the number of tokens of all texts, with prompts where the model reads them."""
        ...
