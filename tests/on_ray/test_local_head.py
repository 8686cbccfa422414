"""Heads of our own: which sockets they open, to whom; TLS in front of them; and that nothing of them stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from socket import SOCK_DGRAM
from typing import NamedTuple

import httpx
import psutil
import pytest
from certificates import make_certificate
from clusters import poll, settings_of, world_settings

from raysys.client import Client
from raysys.errors import Unavailable
from raysys.serving.configs import serve_config
from raysys.serving.deploy import deploy
from raysys.serving.local_head import LocalHead, alive, free_ports, is_free
from raysys.serving.session import LocalService
from raysys.training.local import build_here

pytestmark = pytest.mark.ray

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
# Whose sockets may be open to other machines, of which kind, and why.
ALLOWED = {
    ("ray::ServeReplica", "tcp"): "the gRPC server of a replica binds to [::], which is written so in Ray; no setting",
    (
        "haproxy",
        "udp",
    ): "sends the proxy's log to the syslog of this machine; with no room to receive, and nobody reads",
}
FRONT = "the API itself, where it was asked to listen beyond this machine"


class Door(NamedTuple):
    """What may be written to from outside of its process: a listening TCP socket, a bound UDP or Unix one."""

    process: str
    kind: str
    address: str
    port: int


def processes_of(head: LocalHead) -> list[psutil.Process]:
    """Everything below the head, and what has left its tree: all inherit the way to its token in their environment."""
    mark = head.environment["RAY_AUTH_TOKEN_PATH"]
    found = {process.pid: process for process in psutil.Process(head.pid).children(recursive=True)}
    found[head.pid] = psutil.Process(head.pid)
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == mark:
                found[process.pid] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return list(found.values())


def doors(process: psutil.Process) -> Iterator[Door]:
    try:
        # Ray's names stand in the command line; what the kernel keeps of them is cut.
        name = (process.cmdline() or [process.name()])[0]
        sockets = [*process.net_connections("inet"), *process.net_connections("unix")]
    except psutil.NoSuchProcess:
        return
    for socket in sockets:
        if isinstance(socket.laddr, str):
            yield Door(name, "unix", socket.laddr, 0)
        elif socket.status == psutil.CONN_LISTEN or (socket.type == SOCK_DGRAM and socket.laddr and not socket.raddr):
            yield Door(name, "udp" if socket.type == SOCK_DGRAM else "tcp", socket.laddr.ip, socket.laddr.port)


def all_doors(head: LocalHead, ports: set[int]) -> tuple[list[psutil.Process], list[Door]]:
    """The processes of the head and their doors, once these ports are among them: the proxy is just taking over."""

    def look() -> tuple[list[psutil.Process], list[Door]] | None:
        processes = processes_of(head)
        found = [door for process in processes for door in doors(process)]
        return (processes, found) if ports <= {door.port for door in found} else None

    return poll(f"listening at {ports}", look)


def open_to_others(found: list[Door]) -> list[Door]:
    """Those that another machine, or another user of this one, could reach."""
    return [d for d in found if (is_shared(d.address) if d.kind == "unix" else d.address not in LOOPBACK)]


def is_shared(path: str) -> bool:
    """Whether others may get at the Unix socket there: it is in no folder that they may not enter. "" = it has no name.

    An abstract one, which is no file, is everybody's.
    """
    if not path:
        return False
    return not path.startswith("/") or all(folder.stat().st_mode & 0o011 for folder in Path(path).parents)


def is_allowed(door: Door) -> bool:
    name = Path(door.process).name
    return any(name.startswith(start) and door.kind == kind for start, kind in ALLOWED)


@contextmanager
def head_of(**environment: str) -> Iterator[LocalHead]:
    head = LocalHead(num_cpus=4)
    head.environment.update(environment)
    try:
        head.start()
        yield head
    finally:
        head.stop()


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("world")
    build_here(settings_of(world_settings(folder)))
    return {"index_root": str(folder / "index"), "state": str(folder / "state.sqlite3")}


def answers(port: int, certificate: str) -> bool:
    """Whether the front shows this certificate, and lists come behind it."""
    try:
        with Client(f"https://127.0.0.1:{port}", verify=certificate, timeout_s=30) as client:
            return bool(client.recommend(limit=3)["items"])
    except Unavailable:  # another certificate
        return False


def test_every_socket_is_on_loopback_or_allowed_and_gone_after_stop(args: dict[str, object]) -> None:
    (port,) = free_ports(1)
    with head_of() as head:
        service = LocalService(head)
        service.serve(args, port)
        processes, found = all_doors(head, {port, head.ports.proxy_metrics, head.ports.proxy_stats})
        assert len([door for door in found if door.kind == "tcp"]) > 10
        wrong = [door for door in open_to_others(found) if not is_allowed(door)]
        assert not wrong, "\n".join(map(str, wrong))
        assert httpx.get(f"{head.dashboard_url}/api/version", timeout=10).status_code == 401  # without the token
        service.stop_serving()
    assert not [process.pid for process in processes if alive(process.pid)]
    assert all(is_free(number) for number in (port, *astuple(head.ports)))
    assert not head.folder.exists()


def test_beyond_this_machine_only_the_front_is_open_and_speaks_tls(args: dict[str, object], tmp_path: Path) -> None:
    tls, (port,) = make_certificate(tmp_path / "tls"), free_ports(1)
    beyond = {**args, "open": True, "tls": tls.model_dump(), "topology": "fused"}
    with head_of() as head:
        service = LocalService(head)
        assert service.serve(beyond, port, "0.0.0.0") == f"https://127.0.0.1:{port}"
        with Client(f"https://127.0.0.1:{port}", verify=tls.certificate, timeout_s=30) as client:
            assert client.recommend(limit=3)["items"]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez", timeout=10)
        renewed = make_certificate(tmp_path / "renewed")
        for old, new in ((tls.certificate, renewed.certificate), (tls.key, renewed.key)):
            Path(new).replace(old)
        poll("the renewed certificate", lambda: answers(port, tls.certificate), 30)
        _, found = all_doors(head, {port, head.ports.proxy_metrics, head.ports.proxy_stats})
        others = [door for door in open_to_others(found) if not is_allowed(door)]
        assert {door.port for door in others} == {port}, FRONT
        service.stop_serving()
        with pytest.raises(Unavailable, match="would answer in plain text"):
            deploy(head.dashboard_url, service.token, serve_config(beyond, 2, port=port))


def test_serves_own_proxy_takes_the_certificate_of_the_config(args: dict[str, object], tmp_path: Path) -> None:
    tls, (port,) = make_certificate(tmp_path / "tls"), free_ports(1)
    with head_of(RAY_SERVE_ENABLE_HA_PROXY="0") as head:
        service = LocalService(head)
        config = serve_config({**args, "tls": tls.model_dump(), "topology": "fused"}, 2, port=port)
        deploy(head.dashboard_url, service.token, config)
        with Client(f"https://127.0.0.1:{port}", verify=tls.certificate, timeout_s=30) as client:
            assert client.recommend(limit=3)["items"]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez", timeout=10)
        service.stop_serving()
