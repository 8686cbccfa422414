"""A head of our own listens on loopback only, and leaves nothing behind."""

import subprocess
from dataclasses import astuple
from pathlib import Path

import pytest
from clusters import settings_of, world_settings

from raysys.serving.local_head import LocalHead, alive, descendants, free_ports, is_free
from raysys.serving.session import LocalService
from raysys.training.local import build_here

pytestmark = pytest.mark.ray

# The gRPC server of each Serve replica binds to all interfaces; Ray has no setting for it (docs/architecture.md).
ALLOWED_EVERYWHERE = {"ray::ServeRepli"}


def listening(pids: set[int]) -> list[tuple[str, str]]:
    """(process name, local address) of every listening TCP socket of these processes."""
    rows = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for row in rows:
        for entry in row.split('(("', 1)[-1].split("),("):
            name, _, rest = entry.partition('",pid=')
            if rest and int(rest.split(",")[0]) in pids:
                found.append((name.strip('("'), row.split()[3]))
    return found


def test_everything_listens_on_loopback_and_is_gone_after_stop(tmp_path: Path) -> None:
    build_here(settings_of(world_settings(tmp_path)))
    head = LocalHead()
    head.start()
    service = LocalService(head)
    (port,) = free_ports(1)
    service.serve({"index_root": str(tmp_path / "index"), "state": str(tmp_path / "state.sqlite3")}, port)
    pids = [head.pid, *descendants(head.pid)]
    sockets = listening(set(pids))
    assert len(sockets) > 10
    open_to_all = {name for name, address in sockets if not address.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:"))}
    assert open_to_all <= ALLOWED_EVERYWHERE

    service.stop_serving()
    head.stop()
    assert not [pid for pid in pids if alive(pid)]
    assert all(is_free(number) for number in (port, *astuple(head.ports)))
    assert not head.folder.exists()
