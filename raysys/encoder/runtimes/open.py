"""From settings to a runtime that has been checked."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from raysys.encoder.runtimes.choose import choose, installed
from raysys.encoder.runtimes.exported import Exported, Origin, exported
from raysys.encoder.runtimes.onnx_runtime import OnnxRuntime
from raysys.encoder.runtimes.openvino_runtime import OpenVinoRuntime
from raysys.encoder.runtimes.protocol import Dtype, Runtime, RuntimeName
from raysys.encoder.runtimes.sample import Sample
from raysys.encoder.runtimes.torch_runtime import Device, TorchRuntime, find_device
from raysys.errors import ConfigError, EncoderError, RaysysError

log = logging.getLogger(__name__)


def open_runtime(
    origin: Origin, asked: RuntimeName | Literal["auto"], dtype: Dtype, device: Device, threads: int, cache: Path
) -> Runtime:
    """``auto``: torch on a GPU or where nothing else is installed, OpenVINO for int8, else the fastest (``choose``).

    cache: the folder of exported models and of choices. Raises ConfigError, or EncoderError where the model cannot be
    loaded or exported, or its vectors are too far from those of torch in float32.
    """

    def in_torch() -> Runtime:
        return TorchRuntime(origin.source, origin.pooling, dtype, device, threads)

    def other(name: RuntimeName, files: Exported) -> Runtime:
        kind: Callable[[Path, Dtype, int], Runtime] = OpenVinoRuntime if name == "openvino" else OnnxRuntime
        try:
            runtime = kind(files.model, dtype, threads)
            files.sample.check(runtime)
        except RaysysError:
            raise
        except Exception as error:  # each of them has its own, and none names the model
            raise EncoderError(f"{name} cannot compute {origin.source.name}: {error}") from error
        return runtime

    def any_of(name: RuntimeName, files: Exported) -> tuple[Runtime, Sample]:
        return in_torch() if name == "torch" else other(name, files), files.sample

    on_gpu = find_device(device).type == "cuda"
    if asked == "auto" and dtype == "int8" and not on_gpu:
        asked = "openvino"
    if asked == "torch" or (asked == "auto" and (on_gpu or installed() == ["torch"])):
        return in_torch()
    if device == "cuda":
        raise ConfigError(f"encoder.device is cuda, but {asked} runs on the CPU here; set encoder.runtime to torch")
    try:
        files = exported(origin, cache)
    except EncoderError as error:
        if asked != "auto":
            raise
        log.warning("the encoder runs in torch: %s", error)
        return in_torch()
    if asked != "auto":
        return other(asked, files)
    return choose(origin.source.name, lambda name: any_of(name, files), cache, origin.key(), dtype, threads)
