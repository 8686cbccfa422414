"""Callers that send slowly, never read, or hang up, over real sockets: nobody else notices, and no place is held."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest
from support import Shop, server_of

from raysys.config import ServeSettings
from raysys.serving import edge
from raysys.serving.admission import LEAST_PER_S

BODY_S = 0.5
IN_TIME_S = 10.0  # on a busy machine
ALWAYS_IN = int(ServeSettings().deadline_s * LEAST_PER_S)
MANY = 3 * ALWAYS_IN
ANSWERS = 4
HEAD = b"POST /v1/recommendations HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
LIST = {"limit": 3}


@pytest.fixture(scope="module")
def url(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge, "BODY_S", BODY_S)
        with server_of(shop.store(2), tmp_path_factory.mktemp("slow") / "state.sqlite3") as url:
            yield url


def connect(url: str, receive_bytes: int | None = None) -> socket.socket:
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(IN_TIME_S)
    made.connect(("127.0.0.1", httpx.URL(url).port or 0))
    return made


def open_many(stack: ExitStack, url: str, sent: bytes) -> list[socket.socket]:
    """So many connections over which this was sent."""
    made = [stack.enter_context(closing(connect(url))) for _ in range(MANY)]
    for one in made:
        one.sendall(sent)
    return made


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    return received


def of(received: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body of one answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + IN_TIME_S
    while not holds():
        assert time.monotonic() < deadline_s


def others_are_answered(url: str) -> None:
    with httpx.Client(base_url=url, timeout=IN_TIME_S) as client:
        for _ in range(3):
            answer = client.post("/v1/recommendations", json=LIST)
            assert answer.status_code == 200, answer.text
            assert answer.json()["degraded"] == []


@pytest.mark.parametrize("path", [b"/v1/recommendations", b"/v1/events", b"/v1/nothing"])
def test_a_body_that_does_not_come_is_not_waited_for(url: str, path: bytes) -> None:
    start_s = time.monotonic()
    with closing(connect(url)) as slow:
        slow.sendall(HEAD.replace(b"/v1/recommendations", path) + b'Content-Length: 50\r\n\r\n{"limit"')
        status, headers, problem = of(read_all(slow))  # to the end: the connection is closed
    assert BODY_S <= time.monotonic() - start_s < IN_TIME_S
    assert (status, problem["status"], problem["code"]) == (408, 408, "request_timeout")
    assert headers["content-type"] == "application/problem+json"
    assert "only 8 bytes" in problem["detail"]
    assert problem["request_id"] == headers["x-request-id"]


def test_bytes_that_drip_do_not_move_the_end(url: str) -> None:
    start_s = time.monotonic()
    with closing(connect(url)) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        slow.settimeout(BODY_S / 10)  # how long each drop takes
        received = b""
        while not received:
            slow.sendall(b" ")
            try:
                received = slow.recv(1 << 16)
            except TimeoutError:
                assert time.monotonic() - start_s < IN_TIME_S
    assert received.startswith(b"HTTP/1.1 408")


def test_who_has_not_sent_the_body_holds_no_place(url: str) -> None:
    with ExitStack() as stack:
        slow = open_many(stack, url, HEAD + b'Content-Length: 50\r\n\r\n{"limit"')
        assert metric(url, "raysys_requests_in_progress") == 0
        others_are_answered(url)
        assert {of(read_all(one))[0] for one in slow} == {408}


def test_who_hangs_up_amid_the_body_is_let_go(url: str) -> None:
    gone = 'raysys_requests_total{route="/v1/recommendations",status="499"}'
    before = metric(url, gone)
    with ExitStack() as stack:
        open_many(stack, url, HEAD + b'Content-Length: 50\r\n\r\n{"limit"')
    until(lambda: metric(url, gone) == before + MANY)
    assert metric(url, "raysys_requests_in_progress") == 0


def test_a_body_in_chunks_is_cut_while_it_is_read(url: str) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    sent_bytes = 0
    with closing(connect(url)) as endless:
        endless.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            while sent_bytes < 100 * edge.MAX_BODY_BYTES:
                endless.sendall(chunk)
                sent_bytes += len(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has said what it had to say, and does not listen
    assert edge.MAX_BODY_BYTES <= sent_bytes < 5 * edge.MAX_BODY_BYTES  # what is in buffers of sockets counts as sent
    with closing(connect(url)) as finite:
        finite.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(edge.MAX_BODY_BYTES // 0x10000):
            finite.sendall(chunk)
        finite.sendall(b"1\r\n \r\n")  # one byte too many, and no end
        status, _, problem = of(read_all(finite))
    assert (status, problem["code"]) == (413, "body_too_large")


def test_who_never_reads_holds_no_place(url: str) -> None:
    body = b'{"limit": 200}'
    asked = (HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body) * ANSWERS  # more than buffers hold
    with ExitStack() as stack:
        for _ in range(ALWAYS_IN + 4):
            deaf = stack.enter_context(closing(connect(url, receive_bytes=4_096)))
            deaf.sendall(asked)
        until(lambda: metric(url, "raysys_requests_in_progress") == 0)
        others_are_answered(url)


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["nothing", "half a head"])
def test_idle_connections_are_in_nobodys_way(url: str, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            open_many(stack, url, sent)
        assert metric(url, "raysys_requests_in_progress") == 0
        others_are_answered(url)
