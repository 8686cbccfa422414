"""What the tests of faults share: a small disk, a gateway in a process of its own, and how long things take."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

SERVER = Path(__file__).parents[2] / "benchmarks" / "alone_server.py"


def until(condition: Callable[[], bool], deadline_s: float) -> float:
    """Wait for something that happens in another process. Returns the seconds that it took."""
    start_s = time.monotonic()
    while not condition():
        took_s = time.monotonic() - start_s
        assert took_s < deadline_s, f"it has not happened in {took_s:.1f} s"
        time.sleep(0.02)
    return time.monotonic() - start_s


class SmallDisk:
    """A real tmpfs of a few MB, in a mount namespace of its own: it goes with the process that holds it.

    path: where processes started ``within`` the namespace see it. seen: where everybody else does.
    """

    SIZE_BYTES = 6 << 20

    def __init__(self, path: Path, holder: subprocess.Popen[str], enter: Sequence[str]) -> None:
        self.path, self._enter = path, enter
        self.seen = Path(f"/proc/{holder.pid}/root{path}")

    @classmethod
    @contextlib.contextmanager
    def mounted(cls, path: Path) -> Iterator["SmallDisk"]:
        """Skips where this user may not mount one, not even in a user namespace."""
        path.mkdir()
        is_root = os.geteuid() == 0
        unshare = ["unshare", "--mount", *([] if is_root else ["--map-root-user"])]
        script = 'mount -t tmpfs -o "size=$2" tmpfs "$1" && echo mounted && exec cat'
        command = [*unshare, "sh", "-c", script, "sh", str(path), str(cls.SIZE_BYTES)]
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            pytest.skip("unshare and nsenter of util-linux are needed to mount a small disk")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            if holder.stdout.readline() != "mounted\n":
                pytest.skip("no tmpfs may be mounted here, not even in a user namespace")
            users = [] if is_root else ["--user", "--preserve-credentials"]
            yield cls(path, holder, ["nsenter", "--target", str(holder.pid), "--mount", *users])
            # leaving ends cat, as its stdin closes, and with the last process the mount goes

    def within(self, command: Sequence[str]) -> list[str]:
        """The command, run where the disk is at ``path``."""
        return [*self._enter, *command]

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all the room but so much."""
        with (self.seen / "ballast").open("ab") as file:
            found = os.statvfs(self.seen)
            left = found.f_bavail * found.f_frsize - leave_bytes
            file.write(b"\0" * max(left, 0))

    def free(self) -> None:
        """Give the room back."""
        (self.seen / "ballast").unlink()


class GatewayProcess:
    """``benchmarks/alone_server.py`` with these serve settings.

    within: puts a command where it is to run. stderr: a file; None = one in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        within: Callable[[Sequence[str]], Sequence[str]] = list,
        stderr: Path | None = None,
        **settings: object,
    ) -> None:
        folder.mkdir()
        self.log = folder / "stderr" if stderr is None else stderr
        (folder / "settings.json").write_text(json.dumps(settings, default=str))
        self._command = within([sys.executable, str(SERVER), str(folder / "settings.json")])
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, f"the gateway did not start:\n{self.log.read_text()}"
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30.0)

    def kill(self) -> None:
        """kill -9. One that does not run is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self.http.close()
            self._process = None

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def recommend(self, user: str = "ann") -> dict[str, Any]:
        """A list that must be answered."""
        answer = self.post("/v1/recommendations", user_id=user, limit=5)
        assert answer.status_code == 200, answer.text
        assert answer.json()["items"]
        return dict(answer.json())

    def event(self, event_id: str) -> httpx.Response:
        """Report one small event of ann."""
        return self.post("/v1/events", events=[event_of(event_id)])


def event_of(event_id: str, text: str | None = None) -> dict[str, str]:
    """A view of an item by ann, or a search of hers."""
    event = {"event_id": event_id, "user_id": "ann"}
    return event | ({"type": "view", "item_id": "item-1"} if text is None else {"type": "search", "text": text})


def is_told(answer: httpx.Response) -> bool:
    """Whether the answer says for people and programs that it cannot be done now: 503, and when to come back."""
    body = answer.json()
    return (
        answer.status_code == 503
        and answer.headers["content-type"] == "application/problem+json"
        and body["code"] == "unavailable"
        and len(body["detail"]) > 20
        and int(answer.headers["retry-after"]) >= 1
    )
