"""What computes a transformer. The encoder around it tokenises, cuts batches and keeps the order."""

from collections.abc import Iterable
from typing import Literal, Protocol

from raysys.encoder.batching import TokenBatch
from raysys.types import Vectors

RuntimeName = Literal["torch", "openvino", "onnxruntime"]
Dtype = Literal["auto", "float32", "bfloat16", "int8"]


class Runtime(Protocol):
    """A loaded model. Threads may share it.

    ``batch_tokens``: the padded tokens in one forward pass that suit it. ``pad_to``: texts are padded to a multiple.
    ``dtype``: that of its products; vectors are float32 always.
    """

    @property
    def name(self) -> RuntimeName: ...
    @property
    def dtype(self) -> str: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def pad_to(self) -> int: ...

    def embed(self, batches: Iterable[TokenBatch]) -> Vectors:
        """[n, dim] float32, pooled, not normalised: the rows of all batches, which are at least one, in their order."""
        ...
