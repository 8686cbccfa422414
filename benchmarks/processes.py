"""Child processes of a benchmark: started, watched, and always ended, by their ids."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import cpu_ticks
from redis import Redis, RedisError

from raysys.errors import ConfigError
from raysys.serving.local_head import descendants, end_all, free_ports

HERE = Path(__file__).parent
WATCH_EVERY_S = 0.5
REDIS_START_TIMEOUT_S = 20.0


def script(name: str, *arguments: str | Path) -> list[str]:
    """The command that runs another file of this folder with the same Python."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that every ``finally`` runs and ends what was started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **more: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process for the length of a ``with`` block; afterwards it and all it started are gone.

    environment: added to that of this process.
    """
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, text=True, **more)
    try:
        yield process
    finally:
        end_all([process.pid, *descendants(process.pid)])
        process.wait()


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, float]:
    """Run to the end: its standard output, and the peak memory in MiB of it and all its children.

    Raises RuntimeError with what it printed when it fails.
    """
    with child(command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        watch = PeakMemory(process.pid)
        output, _ = process.communicate()
        peak_mib = watch.stop()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return output, peak_mib


def redis_binary() -> str:
    """Where redis-server is. Raises ConfigError where it is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise ConfigError("redis-server is not on the PATH: apt-get install redis-server, or take --state sqlite")
    return binary


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """An empty Redis that keeps what it acknowledges, for the length of a ``with`` block. Yields its URL.

    Raises ConfigError where redis-server is not installed.
    """
    binary = redis_binary()
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    kept = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with child([binary, *where, *kept], stdout=subprocess.DEVNULL) as process:
        _wait_for_redis(process, port)
        yield f"redis://127.0.0.1:{port}/0"


def _wait_for_redis(process: "subprocess.Popen[str]", port: int) -> None:
    deadline_s = time.monotonic() + REDIS_START_TIMEOUT_S
    with Redis(port=port) as client:
        while process.poll() is None and time.monotonic() < deadline_s:
            try:
                client.ping()
            except RedisError:
                time.sleep(0.05)
            else:
                return
    raise RuntimeError("redis-server did not start")


class Neighbours:
    """How much of this machine's CPU time is used by what is neither this process nor started by it."""

    def __init__(self) -> None:
        self._busy, self._all = cpu_ticks()
        self._own = _own_ticks()

    def share(self) -> float:
        """Since this was made, 0 to 1."""
        busy, total = cpu_ticks()
        others = busy - self._busy - (_own_ticks() - self._own)
        return round(max(others, 0) / max(total - self._all, 1), 3)


def _own_ticks() -> int:
    """CPU ticks of this process and all below it that live, and of those they have waited for."""
    return sum(_ticks(pid) for pid in (os.getpid(), *descendants(os.getpid())))


def cpu_s(pid: int) -> float:
    """CPU seconds of one process, and of those it has waited for; 0 when it is gone."""
    return _ticks(pid) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


class PeakMemory:
    """The most memory that a process and its children held together, looked at twice a second.

    Proportional set size: pages that several processes share count once, so a shared store is not counted per worker.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_kib = pid, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_EVERY_S):
            held = sum(pss_kib(pid) for pid in (self._pid, *descendants(self._pid)))
            self._peak_kib = max(self._peak_kib, held)

    def stop(self) -> float:
        """The peak in MiB."""
        self._over.set()
        self._thread.join()
        return self._peak_kib / 1024


def pss_kib(pid: int) -> int:
    """Proportional set size of one process; 0 when it is gone or not ours to look at."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
