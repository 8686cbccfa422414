"""Faults that are real: disks that fill, files that are damaged, stores that hang, processes that are killed.

test_full_disk.py           a disk of a few MB that runs full under a build, a publish, and every write of a gateway
test_damaged_snapshots.py   every file of a snapshot, damaged in every way: named, refused, the old one serves on
test_locked_state.py        a state file that another process locks, and a gateway that is killed while it writes
test_lost_redis.py          a Redis that hangs, is killed, comes back, and whose connections are cut
test_killed_snapshots.py    commands over snapshots that are killed at any step, and several at once
test_signals.py             a command that serves is told to end

The gateway is the one of ``topology: fused``, in a process of its own, without Ray. ``make test-chaos`` runs them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos_tools import GatewayProcess, SmallDisk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk.mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Starts gateways of the test's own; see ``GatewayProcess``."""
    started: list[GatewayProcess] = []

    def start(**settings: object) -> GatewayProcess:
        started.append(GatewayProcess(tmp_path / f"gateway-{len(started)}", **settings))
        return started[-1]

    yield start
    for gateway in started:
        gateway.kill()
