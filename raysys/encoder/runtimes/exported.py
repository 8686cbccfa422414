"""The model as an ONNX file, which OpenVINO and ONNX Runtime both read. Made once a machine from the torch weights.

It lies in a folder of the home beside the vectors that it is checked by, named by the model and the versions that made
it. The folder appears whole or not at all, and a file that is not what was written is made again.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from raysys.encoder.models import ModelSource, file_sha256
from raysys.encoder.pooling import Pooling
from raysys.encoder.runtimes.sample import MAX_TOKENS, Sample, Tokenize, texts
from raysys.encoder.runtimes.torch_runtime import TorchRuntime
from raysys.errors import ConfigError, EncoderError

MODEL, SAMPLE, DIGESTS = "model.onnx", "sample.npz", "sha256.json"
FORMAT = 1  # of these files; raise it when what is exported changes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, and what reads its texts."""

    source: ModelSource
    revision: str
    pooling: Pooling
    tokenize: Tokenize
    pad_id: int | None

    def key(self) -> str:
        """16 hex digits that name the exported files."""
        parts = [FORMAT, self.source.name, self.revision, self.pooling, torch.__version__, transformers.__version__]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Exported:
    model: Path
    sample: Sample


def exported(origin: Origin, cache: Path) -> Exported:
    """The files, made if they are not there. Raises ConfigError without the package ``onnx``, or EncoderError."""
    folder = cache / origin.key()
    if find_spec("onnx") is None:
        raise ConfigError(
            "encoder.runtime: the package onnx is not installed; run pip install 'raysys[openvino]' or 'raysys[onnx]', "
            "or set encoder.runtime to torch"
        )
    if not _is_whole(folder):
        _make(origin, folder)
    return Exported(folder / MODEL, Sample.load(folder / SAMPLE))


def _is_whole(folder: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        changed = [name for name, digest in digests.items() if file_sha256(folder / name) != digest]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError) as error:
        changed = [str(error)]
    if changed:
        log.warning("%s is made again, it is not as it was written: %s", folder, ", ".join(changed))
    return not changed


def _make(origin: Origin, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
        try:
            _write(origin, unfinished)
            if not _is_whole(folder):  # or another process was faster
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise EncoderError(
            f"cannot write the exported model to {folder}: {error}; set encoder.runtime to torch, or make room there"
        ) from error


def _write(origin: Origin, folder: Path) -> None:
    reference = TorchRuntime(origin.source, origin.pooling, "float32", "cpu", torch.get_num_threads())
    tokens = [ids[:MAX_TOKENS] for ids in origin.tokenize(texts())]
    Sample.of(tokens, origin.pad_id, reference).save(folder / SAMPLE)
    _export(reference, folder / MODEL)
    digests = {path.name: file_sha256(path) for path in folder.iterdir()}  # of a large model its weights are apart
    (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


def _export(reference: TorchRuntime, path: Path) -> None:
    """By tracing: the newer exporter needs a package more."""
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    axes = {0: "n", 1: "tokens"}
    names = ["input_ids", "attention_mask"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it traces, and how long it will still do so
            torch.onnx.export(
                reference.model,
                (torch.ones_like(mask), mask),
                str(path),
                input_names=names,
                output_names=["vectors"],
                dynamic_axes={**dict.fromkeys(names, axes), "vectors": {0: "n"}},
                dynamo=False,
            )
    except Exception as error:  # whatever the code of a model raises while it is traced
        raise EncoderError(f"the model cannot be exported to ONNX: {error}; set encoder.runtime to torch") from error
