"""Which runtime is fastest on this machine: measured once, kept on disk."""

import hashlib
import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from raysys.encoder.runtimes.protocol import Runtime, RuntimeName
from raysys.encoder.runtimes.sample import Sample
from raysys.errors import ConfigError, EncoderError

PACKAGES: dict[RuntimeName, tuple[str, ...]] = {
    "torch": ("torch",),
    "openvino": ("openvino", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
}
FOLDER = "choices"
ROUNDS = 5
BUDGET_S = 2.0  # of all rounds; after it no new round begins

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What one runtime did. error: why it cannot be used; then the other two mean nothing."""

    texts_per_s: float = 0.0
    min_cosine: float = 0.0
    error: str | None = None

    def __str__(self) -> str:
        return self.error or f"{self.texts_per_s:,.0f} texts/s, smallest cosine {self.min_cosine:.5f}"


@dataclass(frozen=True)
class Choice:
    model: str
    chosen: RuntimeName
    measured: Mapping[RuntimeName, Measured]

    def __str__(self) -> str:
        others = "; ".join(f"{name} {it}" for name, it in self.measured.items() if name != self.chosen)
        return f"{self.model}: {self.chosen} ({self.measured[self.chosen]}; beside it {others or 'nothing'})"


def installed() -> list[RuntimeName]:
    """torch first; it is always there."""
    return [name for name, packages in PACKAGES.items() if all(find_spec(package) for package in packages)]


def choose(
    model: str, open_runtime: Callable[[RuntimeName], tuple[Runtime, Sample]], cache: Path, *parts: object
) -> Runtime:
    """The fastest runtime whose vectors pass, torch where none does.

    parts: whatever else decides, beside the processor, the number of its cores and the versions: model, dtype, threads.
    """
    path = cache / FOLDER / f"{_key(parts)}.json"
    earlier = _read(path)
    if earlier is not None:
        try:
            return open_runtime(earlier.chosen)[0]
        except (EncoderError, ConfigError) as error:
            log.warning("%s is measured anew: %s", path.name, error)
    opened, measured = _measure(open_runtime)
    best = max(opened, key=lambda name: measured[name].texts_per_s)
    choice = Choice(model, best, measured)
    log.info("encoder runtime of %s", choice)
    _write(path, choice)
    return opened[best]


def choices(cache: Path) -> Iterator[Choice]:
    """What was chosen on this machine, the latest first."""
    files = sorted((cache / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    yield from (choice for choice in map(_read, files) if choice is not None)


def _measure(
    open_runtime: Callable[[RuntimeName], tuple[Runtime, Sample]],
) -> tuple[dict[RuntimeName, Runtime], dict[RuntimeName, Measured]]:
    """Those that can be used, and what all of them did. They take turns, so that a busy moment hits all alike."""
    opened, samples, measured = {}, {}, {}
    for name in installed():
        try:
            opened[name], samples[name] = open_runtime(name)
        except (EncoderError, ConfigError) as error:
            measured[name] = Measured(error=str(error))
    took: dict[RuntimeName, list[float]] = {name: [] for name in opened}
    end_s = time.perf_counter() + BUDGET_S
    for _ in range(ROUNDS):
        for name, runtime in opened.items():
            start_s = time.perf_counter()
            samples[name].embed(runtime)
            took[name].append(time.perf_counter() - start_s)
        if time.perf_counter() > end_s:
            break
    for name, runtime in opened.items():
        speed = len(samples[name].tokens) / median(took[name])
        measured[name] = Measured(speed, samples[name].min_cosine(runtime))
    return opened, measured


def processor() -> str:
    """The model name of the first core."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _key(parts: tuple[object, ...]) -> str:
    packages = sorted({package for name in installed() for package in PACKAGES[name]})
    versions = [f"{package} {_version(package)}" for package in (*packages, "transformers")]
    everything = [processor(), os.cpu_count(), versions, *map(str, parts)]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _read(path: Path) -> Choice | None:
    """None where there is none, or none that can be read: it is measured again then."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        measured = {name: Measured(**figures) for name, figures in saved["measured"].items()}
        return Choice(saved["model"], saved["chosen"], measured) if saved["chosen"] in PACKAGES else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, choice: Choice) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        unfinished.write_text(json.dumps(asdict(choice), indent=1), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        log.warning("the choice of the encoder's runtime is not kept, and measured at the next start: %s", error)
