"""A connection to Ray for the length of a build: to a running cluster, or to one of our own on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from raysys.config import BuildSettings

# Ray Data's helper tasks each want a whole CPU beside the encoders, or the job waits for ever without a word.
SPARE_CPUS = 2


@contextmanager
def connected(settings: BuildSettings, address: str | None = None) -> Iterator[BuildSettings]:
    """Yields the settings; on a cluster of our own with one encoder a core, where they do not say how many."""
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    else:
        settings = _start_here(settings)
    try:
        yield settings
    finally:
        ray.shutdown()


def _start_here(settings: BuildSettings) -> BuildSettings:
    cores = os.cpu_count()
    encoders = settings.workers.encoders
    if encoders is None:
        encoders = 1 if cores is None else cores
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nothing but this process and its workers listens or asks
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # every socket on loopback
    ray.init(
        address="local",  # without it Ray joins a cluster that runs here, such as that of `raysys serve`
        num_cpus=encoders + SPARE_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
    )
    workers = settings.workers.model_copy(update={"encoders": encoders})
    return settings.model_copy(update={"workers": workers})
