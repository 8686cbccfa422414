"""OpenVINO on the CPU: bfloat16 where the CPU multiplies in it, and int8 with a scale for every 64 values."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from raysys.encoder.batching import TokenBatch
from raysys.encoder.runtimes.protocol import Dtype, RuntimeName
from raysys.encoder.runtimes.torch_runtime import cpu_has_bfloat16
from raysys.errors import ConfigError
from raysys.types import Vectors

# Activations are quantised as they come, so many values by one scale. Fewer are more exact and slower: for MiniLM, over
# the titles of 10,000 books, the smallest cosine was .9946 with 128, .9969 with 64, .9977 with 32, at 1.03, 1 and 0.90
# times the speed.
_GROUP = 64
_INT8_MAX = 127
# Kernels are compiled for each shape that comes, and kept: some 2 MB a shape of MiniLM. Small batches come in any
# shape, so they are padded to a few: 1,200 random ones of up to 8 texts of 5 to 64 tokens took 210 MiB in place of 840,
# and no more CPU time. Whole batches have one number of rows for each length, and padding would cost what it adds.
_WIDTH_STEP = 4
_KEPT_KERNELS = 500


class OpenVinoRuntime:
    """``model``: an ONNX file of ``exported``. Raises ConfigError where the package is missing."""

    name: RuntimeName = "openvino"
    batch_tokens = 1_024
    pad_to = 1

    def __init__(self, model: Path, dtype: Dtype, threads: int) -> None:
        openvino = _package()
        has_bfloat16 = cpu_has_bfloat16()
        self.dtype = ("bfloat16" if has_bfloat16 else "float32") if dtype == "auto" else dtype
        graph = openvino.Core().read_model(str(model))
        if dtype == "int8":
            _quantize_weights(graph)
        how = {
            "INFERENCE_PRECISION_HINT": "bf16" if has_bfloat16 and self.dtype != "float32" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the actors of a machine would all be pinned to its first core
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if dtype == "int8" else 0,
        }
        self._request = openvino.Core().compile_model(graph, "CPU", how).create_infer_request()
        self._one_at_a_time = threading.Lock()

    def embed(self, batches: Iterable[TokenBatch]) -> Vectors:
        """See ``Runtime.embed``."""
        with self._one_at_a_time:
            return np.concatenate([self._run(batch) for batch in batches])

    def _run(self, batch: TokenBatch) -> Vectors:
        if batch.ids.size <= self.batch_tokens // 2:
            batch = _in_few_shapes(batch)
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        vectors: Vectors = self._request.infer(inputs, share_inputs=True)[0].copy()  # the next call writes over it
        return vectors


def _in_few_shapes(batch: TokenBatch) -> TokenBatch:
    more = -batch.ids.shape[1] % _WIDTH_STEP
    return TokenBatch(*(np.pad(array, ((0, 0), (0, more))) for array in batch)) if more else batch


def _quantize_weights(graph: Any) -> None:
    """The matrices of the layers to int8, each output with a scale of its own, round to nearest.

    Those that lead from many values to few stay as they are: they take what an activation function has let through, of
    which a few values are far larger than the others. With them, .9954 in place of .9969 at 1.03 times the speed.
    """
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weights = node.input_value(1).get_node().data
        inner = 1 if node.get_attributes()["transpose_b"] else 0
        if weights.shape[inner] > weights.shape[1 - inner]:
            continue
        scale = np.abs(weights).max(axis=inner, keepdims=True) / _INT8_MAX
        scale[scale == 0] = 1
        rounded = ops.constant(np.rint(weights / scale).astype(np.int8))
        whole = ops.multiply(ops.convert(rounded, "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(whole.output(0))


def _package() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError(
            f"encoder.runtime is openvino, but it cannot be imported ({error}); run pip install 'raysys[openvino]', or "
            "set it to auto"
        ) from error
    return openvino
