"""A head that listens beyond this machine: only the front is open, it speaks TLS, and who comes needs a key."""

import json
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from certificates import make_certificate
from clusters import poll
from doors import all_doors, open_to_others
from support import Shop

from raysys.access import KeyFile, make_key
from raysys.client import Client
from raysys.errors import Unavailable
from raysys.index.store import POINTER
from raysys.serving.configs import serve_config
from raysys.serving.deploy import deploy
from raysys.serving.local_head import LocalHead, free_ports
from raysys.serving.session import LocalService

pytestmark = pytest.mark.ray

FRONT = "the API itself, where it was asked to listen beyond this machine"


def own_address() -> str:
    """The address of this machine by which others reach it, or loopback where it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def refusals(folder: Path) -> list[dict[str, str]]:
    """The lines of the log, which are JSON, that say that a snapshot is refused."""
    lines = [line for path in (folder / "ray").rglob("worker-*.err") for line in path.read_bytes().splitlines()]
    told = [json.loads(line) for line in lines if line.startswith(b'{"time":')]
    return [line for line in told if line["logger"] == "raysys.serving.follower" and "gone" in line["message"]]


def answers(url: str, key: str, certificate: str) -> bool:
    """Whether the front shows this certificate, and lists come behind it."""
    try:
        with Client(url, api_key=key, verify=certificate, timeout_s=30) as client:
            return bool(client.search("tea")["items"])
    except Unavailable:  # another certificate
        return False


def log_lines(folder: Path) -> list[bytes]:
    logs = [path for path in (folder / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
    return [line for path in logs for line in path.read_bytes().splitlines()]


def test_who_comes_from_elsewhere_is_served_by_the_front_alone_with_tls_and_a_key(
    service: LocalService, shop: Shop, port: int, tmp_path: Path
) -> None:
    address, file = own_address(), KeyFile(tmp_path / "keys.json")
    tls = make_certificate(tmp_path / "tls", address)
    trusted = ssl.create_default_context(cafile=tls.certificate)
    (key, text), (next_key, next_text) = (make_key("shop", {"read"}) for _ in range(2))
    file.add(key)
    args = {
        "index_root": str(shop.store(2).root),
        "state": str(tmp_path / "state.sqlite3"),
        "impressions": {"folder": None},
        "topology": "fused",
        "api_keys": str(file.path),
        "tls": tls.model_dump(),
    }
    service.stop_serving()
    assert service.serve(args, port, "0.0.0.0") == f"https://127.0.0.1:{port}"
    url = f"https://{address}:{port}"

    def search(headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{url}/v1/search", json={"query": "tea"}, headers=headers, timeout=20, verify=trusted)

    def status(given: str) -> int:
        return search({"X-API-Key": given}).status_code

    refused = search({})
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{address}:{port}/livez", timeout=10)
    assert httpx.get(f"{url}/readyz", timeout=20, verify=trusted).json() == {"ready": True}
    with Client(url, api_key=text, verify=tls.certificate) as api:
        assert api.search("tea")["items"]
    found = all_doors(service.head, {port, service.head.ports.proxy_metrics, service.head.ports.proxy_stats})
    assert {door.port for door in open_to_others(found)} == {port}, FRONT
    file.add(next_key)
    poll("the new key is taken", lambda: status(next_text) == 200, 10)
    file.revoke(key.id)
    poll("the key is revoked", lambda: status(text) == 401, 10)
    assert status(next_text) == 200
    renewed = make_certificate(tmp_path / "renewed", address)
    for old, new in ((tls.certificate, renewed.certificate), (tls.key, renewed.key)):
        Path(new).replace(old)
    poll("the renewed certificate", lambda: answers(url, next_text, tls.certificate), 30)
    pointer = shop.store(2).root / POINTER
    published = pointer.read_text()
    try:
        pointer.write_text("gone")
        poll("the snapshot is refused", lambda: bool(refusals(service.head.folder)), 20)
    finally:
        pointer.write_text(published)
    lines = log_lines(service.head.folder)
    service.stop_serving()
    assert not [line for line in lines if text[12:].encode() in line or next_text[12:].encode() in line]
    assert [line for line in lines if line.startswith(b'{"audit":') and next_key.id.encode() in line]
    with pytest.raises(Unavailable, match="would answer in plain text"):
        deploy(service.head.dashboard_url, service.token, serve_config(args, 2, port=port))
    service.stop_serving()


@pytest.mark.nightly
def test_serves_own_proxy_takes_the_certificate_of_the_config(shop: Shop, tmp_path: Path) -> None:
    tls, head, (port,) = make_certificate(tmp_path / "tls"), LocalHead(num_cpus=4), free_ports(1)
    head.environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    args = {"index_root": str(shop.store(2).root), "state": str(tmp_path / "state.sqlite3"), "topology": "fused"}
    with head:
        service = LocalService(head)
        deploy(head.dashboard_url, service.token, serve_config({**args, "tls": tls.model_dump()}, 2, port=port))
        with Client(f"https://127.0.0.1:{port}", verify=tls.certificate, timeout_s=30) as client:
            assert client.recommend(limit=3)["items"]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez", timeout=10)
        service.stop_serving()
