"""What the scripts under ``jobs/`` share: settings in, a published snapshot and its report out."""

import sys
from collections.abc import Callable
from pathlib import Path

import ray

from raysys.config import BuildSettings, load
from raysys.errors import RaysysError
from raysys.training.distributed.build import build
from raysys.training.report import readable


def run(usage: str, prepare: Callable[[BuildSettings], BuildSettings] = lambda settings: settings) -> None:
    """Build by the settings file on the command line, as ``prepare`` leaves it. Ends the process on an error."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {usage}")
    try:
        settings = prepare(load(BuildSettings, Path(sys.argv[1])))
        ray.init(log_to_driver=False, logging_level="warning")
        manifest, report = build(settings)
    except RaysysError as error:
        sys.exit(f"error: {error}")
    for line in readable(report, manifest):
        print(line)
    done = "published" if settings.index.publish else "built, not published:"
    print(f"{done} {manifest.snapshot_id} under {settings.index.root}")
