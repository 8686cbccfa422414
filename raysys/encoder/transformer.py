"""Any text encoder of the Hugging Face family, on CPU or GPU."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from raysys.encoder.batching import padded_length, token_batches
from raysys.encoder.edges import clean, encode_texts, is_blank
from raysys.encoder.models import ModelSource, weights_sha256
from raysys.encoder.pooling import Pooling, pool
from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.errors import ConfigError, EncoderError
from raysys.types import Vectors

# Tensor cores like multiples of 8; a CPU gains nothing from them, and short titles cost a sixth more.
_PAD_TO = {"cuda": 8, "cpu": 1}
_BATCH_TOKENS = {"cpu": 1_024, "cuda": 32_768}  # on a CPU larger batches only leave the cache


class TransformerEncoder:
    """A transformer with safetensors weights; code from a model's repository is never run.

    ``threads`` sets the process's torch threads. ``dtype`` auto: bfloat16 where the device computes in it
    (see ``compute_dtype``). ``batch_tokens``: the most padded tokens in one forward pass.
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
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_tokens: int | None = None,
        threads: int = 1,
    ) -> None:
        # The tokeniser's own threads would compete with torch's for the same cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(threads)
        self.device = _device(device)
        self.dtype = compute_dtype(dtype, self.device)
        revision = source.commit if source.commit is not None else weights_sha256(Path(source.location))
        self._tokenizer, self._model = _load(source, self.dtype)
        _check_max_tokens(max_tokens, self._tokenizer, self._model)
        self._model.eval().to(self.device)
        self._tokenizer_lock = threading.Lock()  # a fast tokeniser used by two threads at once raises
        self._pooling: Pooling = pooling
        self._batch_tokens = _BATCH_TOKENS[self.device.type] if batch_tokens is None else batch_tokens
        self._pad_to = _PAD_TO[self.device.type]
        self.identity = EncoderIdentity(
            name=source.name,
            revision=revision,
            pooling=pooling,
            query_prompt=query_prompt,
            item_prompt=item_prompt,
            max_tokens=max_tokens,
            dim=self._model.config.get_text_config().hidden_size,
            normalized=normalize,
        )

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
        return encode_texts(texts, role, self.identity, self._forward)

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

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> Vectors:
        tokens = self._tokenize(texts)
        lengths = np.array([len(ids) for ids in tokens])
        # A tokeniser without special tokens may find nothing in a text; its vector stays zero.
        present = np.flatnonzero(lengths)
        vectors = np.zeros((len(texts), self.identity.dim), dtype=np.float32)
        batches = [present[batch] for batch in token_batches(lengths[present], self._batch_tokens, self._pad_to)]
        if batches:
            # One copy back at the end: a GPU keeps computing while the next batch is padded.
            pooled = torch.cat([self._embed([tokens[row] for row in batch]) for batch in batches])
            vectors[np.concatenate(batches)] = pooled.cpu().numpy()
        return vectors

    def _embed(self, tokens: list[list[int]]) -> Tensor:
        """[len(tokens), dim] float32 on the device: one forward pass."""
        ids, mask = (self._to_device(tensor) for tensor in pad(tokens, self._tokenizer.pad_token_id, self._pad_to))
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(hidden, mask, self._pooling)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def pad(tokens: list[list[int]], pad_id: int | None, pad_to: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), both [n, tokens] int64, padded on the right to a multiple of ``pad_to``.

    The right side suits every model: positions start at 0, and a causal model's last token does not see padding.
    """
    width = padded_length(max(map(len, tokens)), pad_to)
    ids = np.full((len(tokens), width), 0 if pad_id is None else pad_id, dtype=np.int64)
    mask = np.zeros((len(tokens), width), dtype=np.int64)
    for row, text_ids in enumerate(tokens):
        ids[row, : len(text_ids)] = text_ids
        mask[row, : len(text_ids)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def compute_dtype(asked: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """The type that weights and activations have; vectors are float32 always.

    auto, CPU: bfloat16 where the CPU multiplies in it (AVX512-BF16 or AMX), else float32: elsewhere bfloat16 is
    emulated and slower. auto, CUDA: bfloat16 where the GPU has it, else float16.
    """
    if asked != "auto":
        return torch.float32 if asked == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products. False where torch is too old to say."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False))


def _device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("encoder.device is cuda, but torch sees no GPU; set it to auto or cpu")
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(asked)


def _load(source: ModelSource, dtype: torch.dtype) -> tuple[Any, Any]:
    """(tokeniser, model). Raises EncoderError."""
    where = {"local_files_only": True} if source.is_local else {"revision": source.commit}
    safe = {"trust_remote_code": False, **where}
    transformers_logging.disable_progress_bar()  # a bar per replica says nothing in a log
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, use_fast=True, **safe)
        model = AutoModel.from_pretrained(
            source.location, use_safetensors=True, dtype=dtype, attn_implementation="sdpa", **safe
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        at = "" if source.is_local else f" at {source.commit}"
        raise EncoderError(
            f"cannot load {source.location}{at}: {error}. Raysys reads models that have safetensors weights, need "
            "no code of their own, and are a local folder or can be fetched from the hub"
        ) from error
    return tokenizer, model


def _check_max_tokens(max_tokens: int, tokenizer: Any, model: Any) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(limit for limit in (tokenizer.model_max_length, positions) if limit is not None)
    if max_tokens > limit:
        raise ConfigError(f"encoder.max_tokens is {max_tokens}, but the model reads at most {limit}; lower it")
