"""The indexing job: `ray job submit --working-dir . -- python jobs/build_index.py SETTINGS.yaml`."""

from raysys.training.distributed.job import run

if __name__ == "__main__":
    run("python jobs/build_index.py SETTINGS.yaml   (see docs/build.md for the settings)")
