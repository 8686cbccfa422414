"""A connection to Ray for the length of a build: to a running cluster, or to one of our own on this machine."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raysys.config import BuildSettings
from raysys.errors import ConfigError, Unavailable

# Ray Data's helper tasks each want a whole CPU beside the encoders, or the job waits for ever without a word.
SPARE_CPUS = 2
REACH_S = 5.0


@contextmanager
def connected(settings: BuildSettings, address: str | None = None) -> Iterator[BuildSettings]:
    """Yields the settings; on a cluster of our own with one encoder a core, where they do not say how many.

    Raises ConfigError where no cluster answers at the address, Unavailable where Ray does not start.
    """
    if address is not None:
        _check_reachable(address)
        _init(f"at {address}", address=address)
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
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it says otherwise is for those who develop Ray
    # Without this address Ray joins a cluster that runs here, such as that of `raysys serve`.
    _init("on this machine", address="local", num_cpus=encoders + SPARE_CPUS, include_dashboard=False)
    workers = settings.workers.model_copy(update={"encoders": encoders})
    return settings.model_copy(update={"workers": workers})


def _check_reachable(address: str) -> None:
    """Ray tries for minutes. Names without a port, such as ``auto``, are Ray's to resolve."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}. `ray start --head` starts one.") from error


def _init(where: str, **how: Any) -> None:
    try:
        ray.init(log_to_driver=False, logging_level="warning", **how)
    except Exception as error:  # it raises many kinds, bare ones among them
        raise Unavailable(
            f"Ray did not start {where}: {error} On a busy machine its processes take longer than it waits for them: "
            "then try again. Its logs are in /tmp/ray/session_latest/logs."
        ) from error
