"""The same job and chain over three nodes: shards land on different ones, and the encoder tier grows and shrinks."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysys.serving.local_head import FAST_PATH, free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def short() -> Iterator[str]:
    """A folder with a short name: the path of a socket may have 97 characters."""
    with tempfile.TemporaryDirectory(prefix="raysys-") as folder:
        yield folder


def run_on_cluster(script: str, tmp_path: Path, short: str) -> dict[str, Any]:
    """In a process of its own: what a cluster needs in the environment must not leak into other tests."""
    http_port, fallback, metrics, stats = free_ports(4)
    environment = {
        **os.environ,
        **FAST_PATH,
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{short}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{short}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": short,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{short}/server-state",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, str(Path(__file__).with_name(script)), str(tmp_path), str(http_port)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-4_000:] + run.stderr[-4_000:]
    *rows, last = run.stdout.splitlines()
    print("\n".join(rows))
    seen: dict[str, Any] = json.loads(last)
    return seen


def test_three_nodes(tmp_path: Path, short: str) -> None:
    seen = run_on_cluster("three_nodes.py", tmp_path, short)
    assert seen["items"] == 400
    assert len(set(seen["shard_nodes"].values())) == 2, "each shard on a node of its own"
    assert seen["degraded"] == []
    assert seen["encoders"] == {"before": 1, "under_load": 2, "after": 1}
    assert seen["failed_requests"] == 0


@pytest.mark.nightly
def test_a_lost_node_is_not_noticed(tmp_path: Path, short: str) -> None:
    seen = run_on_cluster("node_loss.py", tmp_path, short)
    lost, again = seen["lost"], seen["again"]
    assert set(lost["held"]) >= {"shard-00", "shard-01"}
    assert lost["errors"] <= max(1, 0.005 * lost["n"]), lost
    assert again["errors"] == 0, again
    for row in (lost, again):
        assert (row["later"], row["mixed"]) == (0, 0), row
