"""PyTorch, on CPU or GPU: what every other runtime is measured by."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from raysys.encoder.batching import TokenBatch
from raysys.encoder.hugging_face import load_model
from raysys.encoder.models import ModelSource
from raysys.encoder.pooling import Pooling, pool
from raysys.encoder.runtimes.protocol import Dtype, RuntimeName
from raysys.errors import ConfigError
from raysys.types import Vectors

Device = Literal["auto", "cpu", "cuda"]

# Tensor cores like multiples of 8; a CPU gains nothing from them, and short titles cost a sixth more.
_PAD_TO = {"cuda": 8, "cpu": 1}
_BATCH_TOKENS = {"cpu": 1_024, "cuda": 32_768}  # on a CPU larger batches only leave the cache


class PooledModel(torch.nn.Module):
    """A transformer and its pooling: ids and mask [n, tokens] int64 -> [n, dim] float32."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self._pooling: Pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self._pooling)


class TorchRuntime:
    """``threads`` sets the process's torch threads."""

    name: RuntimeName = "torch"

    def __init__(
        self, source: ModelSource, pooling: Pooling, dtype: Dtype = "auto", device: Device = "auto", threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        self.device = find_device(device)
        compute = compute_dtype(dtype, self.device)
        self.dtype = str(compute).removeprefix("torch.")
        self.model = PooledModel(load_model(source, compute), pooling).to(self.device)
        self.batch_tokens = _BATCH_TOKENS[self.device.type]
        self.pad_to = _PAD_TO[self.device.type]

    @torch.inference_mode()
    def embed(self, batches: Iterable[TokenBatch]) -> Vectors:
        """See ``Runtime.embed``. One copy back at the end: a GPU keeps computing while the next batch is padded."""
        pooled = [self.model(self._to_device(batch.ids), self._to_device(batch.mask)) for batch in batches]
        vectors: Vectors = torch.cat(pooled).cpu().numpy()
        return vectors

    def _to_device(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def compute_dtype(asked: Dtype, device: torch.device) -> torch.dtype:
    """The type that weights and activations have; vectors are float32 always. Raises ConfigError for int8.

    auto, CPU: bfloat16 where the CPU multiplies in it (AVX512-BF16 or AMX), else float32: elsewhere bfloat16 is
    emulated and slower. auto, CUDA: bfloat16 where the GPU has it, else float16.
    """
    if asked == "int8":
        raise ConfigError("encoder.dtype is int8, which torch does not compute here; set encoder.runtime to openvino")
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


def find_device(asked: Device) -> torch.device:
    """Raises ConfigError where a GPU is asked for and there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("encoder.device is cuda, but torch sees no GPU; set it to auto or cpu")
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(asked)
