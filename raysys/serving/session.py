"""Serving on one machine from start to end: a head, the application on it, and both gone when done."""

import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from raysys.config import ServeSettings, parse
from raysys.errors import ConfigError, RaysysError, Unavailable
from raysys.index.store import SnapshotStore
from raysys.serving.configs import serve_config
from raysys.serving.deploy import deploy, shut_down
from raysys.serving.local_head import LocalHead, is_free
from raysys.serving.proxy import set_front
from raysys.serving.renewal import Renewal
from raysys.tls import check_certificate

PROJECT = Path(__file__).parents[2]
EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104  # named, not bound to


@dataclass
class LocalService:
    """A running head, and how to put an application on it."""

    head: LocalHead
    port: int | None = None  # that of the application, once there is one
    renewal: Renewal | None = None  # of its certificate, where it has one

    @property
    def token(self) -> str:
        return Path(self.head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()

    def serve(self, args: Mapping[str, Any], port: int, host: str = "127.0.0.1") -> str:
        """Deploy over the snapshot published under ``args["index_root"]``. Returns the URL once it is ready.

        Raises ConfigError, also for a certificate that cannot be served; Unavailable.
        """
        settings = parse(ServeSettings, dict(args), "serve settings")
        tls = settings.tls
        if tls is not None:
            check_certificate(tls)
        reached = "127.0.0.1" if host in EVERYWHERE else host
        if port != self.port and not is_free(port, reached):
            raise ConfigError(f"port {port} is in use; stop what holds it (`raysys doctor` names it) or take --port")
        store = SnapshotStore(settings.index_root, settings.snapshot_public_keys)
        n_shards = len(store.manifest(store.current_id()).shards)
        config = serve_config(args, n_shards, host, port, has_front=True)
        renewal = None if tls is None else Renewal(self.head.folder, tls)  # it sees what changes from here on
        set_front(self.head.folder, host, port, tls)
        try:
            deploy(self.head.dashboard_url, self.token, config)
        except httpx.TransportError as error:
            raise Unavailable(
                f"the Ray head does not answer ({error}). Its last words:\n{self.head.log_tail()}"
            ) from error
        self.port = port
        self.follow(renewal)
        prefix = config["applications"][0]["route_prefix"].rstrip("/")
        return f"{'http' if tls is None else 'https'}://{reached}:{port}{prefix}"

    def submit(self, settings: Path, project: Path = PROJECT, job: str = "jobs/build_index.py") -> Iterator[str]:
        """`ray job submit` of the indexing job, or another one, with this settings file; yields the lines it prints.

        Raises RaysysError with the end of the log when the job fails.
        """
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "job", "submit", "--address", self.head.dashboard_url, "--working-dir", str(project)]
        submitted = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [*command, "--", sys.executable, job, str(settings)],
            env=self.head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: deque[str] = deque(maxlen=30)
        with submitted:
            assert submitted.stdout is not None  # noqa: S101  # it was asked for
            for line in submitted.stdout:
                lines.append(line)
                yield line.rstrip()
        if submitted.returncode != 0:
            raise RaysysError(f"{job} failed:\n" + "".join(lines))

    def stop_serving(self) -> None:
        """Remove the application; the head stays."""
        self.follow(None)
        shut_down(self.head.dashboard_url, self.token)
        self.port = None

    def follow(self, renewal: Renewal | None) -> None:
        """Look at the files of this certificate from now on, and of no other."""
        if self.renewal is not None:
            self.renewal.stop()
        self.renewal = renewal
        if renewal is not None:
            renewal.start()


@contextmanager
def local_service(num_cpus: int | None = None) -> Iterator[LocalService]:
    """A head for the length of a ``with`` block."""
    with LocalHead(num_cpus) as head:
        service = LocalService(head)
        try:
            yield service
        finally:
            service.follow(None)
