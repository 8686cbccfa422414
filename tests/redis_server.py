"""A real redis-server for tests: on a free port, in a folder of its own, ended by its process id."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_DEADLINE_S = 20.0


def require_redis() -> None:
    """Skip where redis-server is not installed; fail there in CI, which installs it."""
    if shutil.which("redis-server") is None:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("redis-server is not installed: apt-get install redis-server")


def free_port() -> int:
    """Not above 55,535: a cluster's second port is 10,000 higher."""
    port = 65_535
    while port > 55_535:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    return port


class RedisServer:
    """One server. ``kill`` and ``start`` again: the same data on the same port."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """``settings``: of redis.conf, with ``_`` for ``-``."""
        self.folder = folder
        self.port = free_port()
        self.password = settings.get("requirepass")
        defaults = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self._settings = {**defaults, **{name.replace("_", "-"): value for name, value in settings.items()}}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        who = "" if self.password is None else f":{self.password}@"
        return f"redis://{who}127.0.0.1:{self.port}/0"

    def start(self) -> "RedisServer":
        """Start it, and wait until it has loaded what is in its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        for name, value in self._settings.items():
            command += [f"--{name}", value]
        with open(self.folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            assert time.monotonic() < deadline, "redis-server did not start in time"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.01)
                pytest.fail(f"redis-server ended at once:\n{(self.folder / 'redis.log').read_text()}")
        return self

    def kill(self) -> None:
        """kill -9: it has no chance to write anything more. One that does not run is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_DEADLINE_S)
            self._process = None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP for a server that hangs."""
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.2) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """A server that has ended when the block has. Skips, or fails in CI, where redis-server is not installed."""
    require_redis()
    server = RedisServer(folder).start()
    try:
        yield server
    finally:
        server.kill()
