"""What benchmarks have in common: a command line, the machine they ran on, and figures with their spread."""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from raysys.config import DEFAULT_HOME

HOME = Path(DEFAULT_HOME).expanduser() / "benchmarks"
PACKAGES = (
    "raysys",
    "ray",
    "torch",
    "transformers",
    "openvino",
    "onnxruntime",
    "sentence-transformers",
    "faiss-cpu",
    "fastapi",
    "uvicorn",
    "numpy",
)
MAX_BUSY = 0.1


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """``4.12 (3.90-4.40)``."""
        return f"{self.median:,.{digits}f} ({self.min:,.{digits}f}-{self.max:,.{digits}f})"

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def command_line(about: str | None, quick: str | None = None) -> argparse.ArgumentParser:
    """Of a benchmark that serves a catalogue. quick: what a smoke run is; None = there is none."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=HOME, help="where catalogues are kept")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=f"a smoke run: {quick}")
    return parser


def warn_if_busy(share: float) -> None:
    """Say so on standard error when the figures cannot be trusted."""
    if share > MAX_BUSY:
        print(
            f"warning: something else uses {share:.0%} of this machine's CPU time: "
            "do not write down any figure of this run",
            file=sys.stderr,
        )


def ratios(over: Iterable[float], under: Iterable[float]) -> Spread:
    """The ratio of two figures in each round: what one round's noise does to both sides cancels."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def busy_share(seconds: float = 2.0) -> float:
    """The share of all CPU time that something else uses now, 0 to 1. Ask before anything of ours is started.

    A ratio does not survive a busy machine: a model on all cores loses far more to a neighbour than one on a few.
    """
    before = cpu_ticks()
    time.sleep(seconds)
    busy, total = (after - start for after, start in zip(cpu_ticks(), before, strict=True))
    return round(busy / max(total, 1), 3)


def cpu_ticks() -> tuple[int, int]:
    """(busy, all) ticks of all cores since the machine started."""
    user, nice, system, idle, iowait, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    total = user + nice + system + idle + iowait + sum(others)
    return total - idle - iowait, total


def machine(busy_before: float) -> dict[str, Any]:
    """Cores, processor, versions, and how busy the machine was before the benchmark began."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "busy_before": busy_before,
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """The model name of the first core."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
