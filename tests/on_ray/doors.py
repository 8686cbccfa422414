"""The processes of a head, and what of them could be reached from outside."""

from collections.abc import Iterator
from pathlib import Path
from socket import SOCK_DGRAM
from typing import NamedTuple

import psutil
from clusters import poll

from raysys.serving.local_head import LocalHead

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
# Whose sockets may be open to other machines, of which kind, and why.
ALLOWED = {
    ("ray::ServeReplica", "tcp"): "the gRPC server of a replica binds to [::], which is written so in Ray; no setting",
    (
        "haproxy",
        "udp",
    ): "sends the proxy's log to the syslog of this machine; with no room to receive, and nobody reads",
}


class Door(NamedTuple):
    """What may be written to from outside of its process: a listening TCP socket, a bound UDP or Unix one."""

    process: str
    kind: str
    address: str
    port: int


def processes_of(head: LocalHead) -> list[psutil.Process]:
    """Everything below the head, and what has left its tree."""
    below = psutil.Process(head.pid).children(recursive=True)
    found = [psutil.Process(head.pid), *below, *that_know(head.folder)]
    return list({process.pid: process for process in found}.values())


def that_know(folder: Path) -> list[psutil.Process]:
    """Those that name the folder of a head in their command line, or in the environment: all inherit the way to its
    token."""
    found = []
    for process in psutil.process_iter():
        try:
            known = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(str(folder) in one for one in known):
            found.append(process)
    return found


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


def all_doors(head: LocalHead, ports: set[int]) -> list[Door]:
    """Those of the processes of the head, once these ports are among them: the proxy is just taking over."""

    def look() -> list[Door] | None:
        found = [door for process in processes_of(head) for door in doors(process)]
        return found if ports <= {door.port for door in found} else None

    return poll(f"listening at {ports}", look)


def open_to_others(found: list[Door]) -> list[Door]:
    """Those that another machine, or another user of this one, could reach, but for what is allowed."""
    reached = [d for d in found if (is_shared(d.address) if d.kind == "unix" else d.address not in LOOPBACK)]
    return [door for door in reached if not is_allowed(door)]


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
