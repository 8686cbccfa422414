"""What every encoder does at its edges: any text in, usable vectors out."""

from collections.abc import Callable, Sequence

import numpy as np

from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.errors import EncoderError
from raysys.types import Vectors

# A text is cut to max_tokens times this many characters before it is tokenised: far more than a token holds on
# average in any language, and it keeps one text of a megabyte from stalling everybody else's.
CHARS_PER_TOKEN = 16


def is_blank(text: str) -> bool:
    return not text.strip()


def clean(text: str, max_tokens: int) -> str:
    """The text without outer white space, cut to ``CHARS_PER_TOKEN * max_tokens`` characters, and valid UTF-8.

    Lone surrogates, which JSON can carry and no tokeniser takes, become question marks.
    """
    return text.strip()[: CHARS_PER_TOKEN * max_tokens].encode("utf-8", "replace").decode()


def prompt_of(identity: EncoderIdentity, role: Role) -> str:
    return identity.query_prompt if role == "query" else identity.item_prompt


def encode_texts(
    texts: Sequence[str], role: Role, identity: EncoderIdentity, forward: Callable[[list[str]], Vectors]
) -> Vectors:
    """[len(texts), dim] float32: ``forward`` over the clean, prompted texts; blank ones get a zero vector.

    forward: clean texts -> [n, dim] float32, in their order. The result is L2-normalised where the identity says so.
    Raises EncoderError that names the first text whose vector holds NaN or an infinity.
    """
    vectors = np.zeros((len(texts), identity.dim), dtype=np.float32)
    rows = [row for row, text in enumerate(texts) if not is_blank(text)]
    if rows:
        prompt = prompt_of(identity, role)
        vectors[rows] = forward([prompt + clean(texts[row], identity.max_tokens) for row in rows])
        _refuse_non_finite(vectors, identity.name)
    return unit_rows(vectors) if identity.normalized else vectors


def unit_rows(vectors: Vectors) -> Vectors:
    """Each row of [n, dim] float32 divided by its L2 norm; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return units


def _refuse_non_finite(vectors: Vectors, model: str) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise EncoderError(
            f"{model} gave a vector with NaN or infinity for text {bad[0]} ({len(bad)} of {len(vectors)} texts); "
            "set encoder.dtype to float32, or check the model's weights"
        )
