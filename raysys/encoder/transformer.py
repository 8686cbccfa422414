"""Any text encoder of the Hugging Face family: its tokens, batches and their order. A runtime does the arithmetic."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raysys.config import DEFAULT_HOME
from raysys.encoder.batching import pad, token_batches
from raysys.encoder.edges import clean, encode_texts, is_blank
from raysys.encoder.hugging_face import load_config, load_tokenizer, revision_of
from raysys.encoder.models import ModelSource, computed_in
from raysys.encoder.pooling import Pooling
from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.encoder.runtimes.exported import Origin
from raysys.encoder.runtimes.open import open_runtime
from raysys.encoder.runtimes.protocol import Dtype, RuntimeName
from raysys.encoder.runtimes.torch_runtime import Device
from raysys.errors import ConfigError
from raysys.types import Vectors

CACHE = f"{DEFAULT_HOME}/encoders"


class TransformerEncoder:
    """A transformer with safetensors weights; code from a model's repository is never run.

    ``threads``: of the runtime; torch's are those of the process. ``dtype`` auto: bfloat16 where the device computes in
    it, else float32. int8 is a model of its own, with an identity of its own: its vectors are further from those of
    float32 than ``sample.FLOORS`` lets two runtimes be. ``batch_tokens``: the most padded tokens in one forward pass.
    ``cache``: the folder of exported models and of what ``runtime`` auto has measured; None = one in the home.
    Raises ConfigError or EncoderError where the model cannot be loaded.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        pooling: Pooling = "mean",
        query_prompt: str = "",
        item_prompt: str = "",
        max_tokens: int = 256,
        normalize: bool = True,
        dtype: Dtype = "auto",
        device: Device = "auto",
        batch_tokens: int | None = None,
        threads: int = 1,
        runtime: RuntimeName | Literal["auto"] = "torch",
        cache: Path | None = None,
    ) -> None:
        # The tokeniser's own threads would compete with the runtime's for the same cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        revision = revision_of(source)
        config = load_config(source).get_text_config()
        self._tokenizer = load_tokenizer(source)
        _check_max_tokens(max_tokens, self._tokenizer, config)
        self._tokenizer_lock = threading.Lock()  # a fast tokeniser used by two threads at once raises
        self.identity = EncoderIdentity(
            name=source.name,
            revision=computed_in(revision, dtype),
            pooling=pooling,
            query_prompt=query_prompt,
            item_prompt=item_prompt,
            max_tokens=max_tokens,
            dim=config.hidden_size,
            normalized=normalize,
        )
        origin = Origin(source, revision, pooling, self._tokenize, self._tokenizer.pad_token_id)
        cache = Path(CACHE).expanduser() if cache is None else cache
        self.runtime = open_runtime(origin, runtime, dtype, device, threads, cache)
        self._batch_tokens = self.runtime.batch_tokens if batch_tokens is None else batch_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """See ``Encoder.count_tokens``."""
        rows = [row for row, text in enumerate(texts) if not is_blank(text)]
        counts = [0] * len(texts)
        for row, tokens in zip(
            rows, self._tokenize([clean(texts[row], self.identity.max_tokens) for row in rows]), strict=True
        ):
            counts[row] = len(tokens)
        return counts

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """See ``Encoder.encode``."""
        return self.encode_counted(texts, role)[0]

    def encode_counted(self, texts: Sequence[str], role: Role) -> tuple[Vectors, int]:
        """See ``Encoder.encode_counted``. Each text is tokenised once."""
        n_tokens = 0

        def forward(given: list[str]) -> Vectors:
            nonlocal n_tokens
            tokens = self._tokenize(given)
            n_tokens = sum(map(len, tokens))
            return self._embed(tokens)

        return encode_texts(texts, role, self.identity, forward), n_tokens

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most ``max_tokens``, without padding."""
        if not texts:
            return []
        with self._tokenizer_lock:
            encoded = self._tokenizer(
                texts,
                truncation=True,
                max_length=self.identity.max_tokens,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _embed(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """[len(tokens), dim] float32. A tokeniser without special tokens may find none in a text: it stays zero."""
        lengths = np.array([len(ids) for ids in tokens])
        present = np.flatnonzero(lengths)
        vectors = np.zeros((len(tokens), self.identity.dim), dtype=np.float32)
        pad_to, pad_id = self.runtime.pad_to, self._tokenizer.pad_token_id
        parts = [present[part] for part in token_batches(lengths[present], self._batch_tokens, pad_to)]
        if parts:
            batches = (pad([tokens[row] for row in part], pad_id, pad_to) for part in parts)
            vectors[np.concatenate(parts)] = self.runtime.embed(batches)
        return vectors


def _check_max_tokens(max_tokens: int, tokenizer: Any, config: Any) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    limit = min(limit for limit in (tokenizer.model_max_length, positions) if limit is not None)
    if max_tokens > limit:
        raise ConfigError(f"encoder.max_tokens is {max_tokens}, but the model reads at most {limit}; lower it")
