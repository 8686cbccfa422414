"""Fit everything: `ray job submit --working-dir . -- python jobs/train.py SETTINGS.yaml`.

The indexing job with all that can be learned from behaviour, the sequence model included.
"""

from raysys.config import BuildSettings
from raysys.training.distributed.job import run

if __name__ == "__main__":
    run(
        "python jobs/train.py SETTINGS.yaml   (see docs/training.md for the settings)",
        BuildSettings.with_everything,
    )
