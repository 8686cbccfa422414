"""`raysys consume` as a process for tests: it can be killed and started again, and is ended by its process id."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RAYSYS = str(Path(sys.executable).with_name("raysys"))
DEADLINE_S = 60.0


def until(what: str, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
    """Wait for a true value of the condition. Fails when the deadline passes."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.01)


class ConsumerProcess:
    """One consumer, ``c1``. Its files are in ``folder``, which is its home as well."""

    def __init__(self, folder: Path, source: str, state: str, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.letters = folder / "dead-letters.jsonl"
        self._log = folder / "consume.log"
        self._environment = {**os.environ, "HOME": str(folder)}
        self._command = [RAYSYS, "consume", "--source", source, "--state", state, "--consumer", "c1"]
        self._command += ["--dead-letters", str(self.letters), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def said(self) -> str:
        """What it printed since it was started last."""
        return self._log.read_text()

    def start(self) -> "ConsumerProcess":
        """Start it, and wait until it reads."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        until("the consumer reads", lambda: "reading the stream" in self.said)
        return self

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code. One that does not run is fine."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(DEADLINE_S)
