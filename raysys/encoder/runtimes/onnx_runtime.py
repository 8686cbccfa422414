"""ONNX Runtime on the CPU, in float32.

Its dynamic int8 is not offered: on MiniLM the smallest cosine was .85, and .97 with a scale for each column.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from raysys.encoder.batching import TokenBatch
from raysys.encoder.runtimes.protocol import Dtype, RuntimeName
from raysys.errors import ConfigError
from raysys.types import Vectors


class OnnxRuntime:
    """``model``: a file of ``exported``. Raises ConfigError where the package is missing, or for another dtype."""

    name: RuntimeName = "onnxruntime"
    dtype = "float32"
    batch_tokens = 1_024
    pad_to = 1

    def __init__(self, model: Path, dtype: Dtype, threads: int) -> None:
        if dtype not in {"auto", "float32"}:
            raise ConfigError(f"encoder.dtype is {dtype}, but onnxruntime computes in float32 here; set it to auto")
        runtime = _package()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take a neighbour's core
        self._session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def embed(self, batches: Iterable[TokenBatch]) -> Vectors:
        """See ``Runtime.embed``."""
        given = ({"input_ids": batch.ids, "attention_mask": batch.mask} for batch in batches)
        return np.concatenate([self._session.run(None, inputs)[0] for inputs in given])


def _package() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"encoder.runtime is onnxruntime, but it cannot be imported ({error}); run pip install 'raysys[onnx]', or "
            "set it to auto"
        ) from error
    return onnxruntime
