"""Fit everything: `ray job submit --working-dir . -- python jobs/train.py SETTINGS.yaml`.

The indexing job with all that can be learned from behaviour, the sequence model included.
"""

import sys
from pathlib import Path

import ray

from raysys.config import BuildSettings, load
from raysys.errors import RaysysError
from raysys.training.distributed.build import build
from raysys.training.report import readable


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python jobs/train.py SETTINGS.yaml   (see docs/training.md for the settings)")
    try:
        settings = load(BuildSettings, Path(sys.argv[1])).with_everything()
        ray.init(log_to_driver=False, logging_level="warning")
        manifest, report = build(settings)
    except RaysysError as error:
        sys.exit(f"error: {error}")
    for line in readable(report, len(manifest.shards), manifest.recall_at_10):
        print(line)
    print(f"published {manifest.snapshot_id} under {settings.index.root}")


if __name__ == "__main__":
    main()
