"""Keys on a real head that listens beyond this machine: they travel through the proxy and change while it serves."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from support import Shop

from raysys.access import KeyFile, make_key
from raysys.client import Client
from raysys.index.store import POINTER
from raysys.serving.local_head import free_ports
from raysys.serving.session import local_service

pytestmark = pytest.mark.ray


def own_address() -> str:
    """The address of this machine by which others reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refusals(folder: Path) -> list[dict[str, str]]:
    """The lines of the log, which are JSON, that say that a snapshot is refused."""
    lines = [line for path in (folder / "ray").rglob("worker-*.err") for line in path.read_bytes().splitlines()]
    told = [json.loads(line) for line in lines if line.startswith(b'{"time":')]
    return [line for line in told if line["logger"] == "raysys.serving.follower" and "gone" in line["message"]]


def test_who_comes_from_elsewhere_needs_a_key(shop: Shop, tmp_path: Path) -> None:
    file, (port,) = KeyFile(tmp_path / "keys.json"), free_ports(1)
    (key, text), (next_key, next_text) = (make_key("shop", {"read"}) for _ in range(2))
    file.add(key)
    args = {
        "index_root": str(shop.store(2).root),
        "state": str(tmp_path / "state.sqlite3"),
        "impressions": {"folder": None},
        "topology": "fused",
        "api_keys": str(file.path),
    }
    with local_service(num_cpus=4) as service:
        service.serve(args, port, "0.0.0.0")
        url = f"http://{own_address()}:{port}"

        def status(given: str) -> int:
            answer = httpx.post(f"{url}/v1/search", json={"query": "tea"}, headers={"X-API-Key": given}, timeout=20)
            return answer.status_code

        refused = httpx.post(f"{url}/v1/search", json={"query": "tea"}, timeout=20)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert httpx.get(f"{url}/readyz", timeout=20).json() == {"ready": True}
        with Client(url, api_key=text) as api:
            assert api.search("tea")["items"]
        file.add(next_key)
        wait_until(lambda: status(next_text) == 200, 10)
        file.revoke(key.id)
        wait_until(lambda: status(text) == 401, 10)
        assert status(next_text) == 200
        pointer = shop.store(2).root / POINTER
        published = pointer.read_text()
        try:
            pointer.write_text("gone")
            wait_until(lambda: bool(refusals(service.head.folder)), 20)
        finally:
            pointer.write_text(published)
        logs = [path for path in (service.head.folder / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
        lines = [line for path in logs for line in path.read_bytes().splitlines()]

        service.stop_serving()
    assert not [line for line in lines if text[12:].encode() in line or next_text[12:].encode() in line]
    assert [line for line in lines if line.startswith(b'{"audit":') and next_key.id.encode() in line]
