"""Models of the Hugging Face family from a folder or a pinned commit. Code from a model's repository is never run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from raysys.encoder.models import ModelSource, weights_sha256
from raysys.errors import EncoderError


def revision_of(source: ModelSource) -> str:
    """The commit of a hub model, or the SHA-256 of the weights of a local one."""
    return source.commit if source.commit is not None else weights_sha256(Path(source.location))


def load_config(source: ModelSource) -> Any:
    """Raises EncoderError, as all of these do."""
    return _load(AutoConfig.from_pretrained, source)


def load_tokenizer(source: ModelSource) -> Any:
    return _load(AutoTokenizer.from_pretrained, source, use_fast=True)


def load_model(source: ModelSource, dtype: torch.dtype) -> Any:
    """The model in evaluation mode, on the CPU."""
    transformers_logging.disable_progress_bar()  # a bar per replica says nothing in a log
    how = {"use_safetensors": True, "dtype": dtype, "attn_implementation": "sdpa"}
    return _load(AutoModel.from_pretrained, source, **how).eval()


def _load(load: Callable[..., Any], source: ModelSource, **how: Any) -> Any:
    where = {"local_files_only": True} if source.is_local else {"revision": source.commit}
    try:
        return load(source.location, trust_remote_code=False, **where, **how)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        at = "" if source.is_local else f" at {source.commit}"
        raise EncoderError(
            f"cannot load {source.location}{at}: {error}. Raysys reads models that have safetensors weights, need "
            "no code of their own, and are a local folder or can be fetched from the hub"
        ) from error
