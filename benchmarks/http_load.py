"""A closed-loop HTTP load generator: N clients, each sends its next request when the answer to its last is there.

It runs in a process of its own, so that it shares no interpreter lock with what it measures, and speaks HTTP/1.1 over
bare asyncio connections that stay open: on two cores the client's own cost is part of every figure.
A closed loop slows down with the server it loads: read its latencies together with its throughput.
"""

import asyncio
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

from processes import child, script
from texts import QUERY_WORDS, texts, vocabulary

TIMEOUT_S = 20.0
END_OF_HEAD = b"\r\n\r\n"
Asks = Literal["text", "user", "nothing"]
KEY_VARIABLE = "RAYSYS_API_KEY"  # as for the client of the API


@dataclass(frozen=True)
class Load:
    """One measurement.

    asks: ``text`` sends queries of random words, never the same twice; ``user`` a random one of ``users``; ``nothing``
    a GET without a body. seed: the same seed sends the same requests. ramp_s: seconds under load before the clock
    runs. must_contain: bytes (as text) that every good answer holds; an answer without them counts as an error.
    """

    port: int
    path: str
    asks: Asks
    clients: int
    seconds: float
    ramp_s: float
    seed: str
    users: tuple[str, ...] = ()
    must_contain: str = ""


@dataclass(frozen=True)
class Measured:
    """What came of it. Latencies are of good answers; errors: what went wrong -> how often, within the window.

    client_cpu_s: CPU seconds that the load generator itself used in the whole measurement. browned_out: so many of the
    good answers left something out under pressure.
    """

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_cpu_s: float
    errors: dict[str, int] = field(default_factory=dict)
    browned_out: int = 0


class Connection(asyncio.Protocol):
    """One kept-open connection with one request on it at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            answer = parse(self._received)
        except ValueError as error:
            self._fail(error)
            return
        if answer is not None and self._answer is not None and not self._answer.done():
            self._received = b""
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError when the connection breaks, TimeoutError, ValueError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(TIMEOUT_S):
            return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def parse(received: bytes) -> tuple[int, bytes] | None:
    """Status and body once the answer is complete, None before. Raises ValueError for one without Content-Length."""
    head, found, body = received.partition(END_OF_HEAD)
    if not found:
        return None
    lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b":", 1) for line in lines[1:])
    if b"content-length" not in headers:
        raise ValueError("the answer has no Content-Length")
    return (int(lines[0].split()[1]), body) if len(body) >= int(headers[b"content-length"]) else None


def requests(load: Load, client: int, words: Sequence[str]) -> Iterator[bytes]:
    """The requests of one client as bytes on the wire, without end."""
    seed = f"{load.seed}-{client}"
    if load.asks == "nothing":
        return itertools.repeat(on_the_wire("GET", load.path, None))
    if load.asks == "text":
        bodies: Iterator[dict[str, object]] = ({"query": text} for text in texts(list(words), QUERY_WORDS, seed))
    else:
        chance = random.Random(seed)
        bodies = ({"user_id": chance.choice(load.users)} for _ in itertools.count())
    return (on_the_wire("POST", load.path, body | {"limit": 10}) for body in bodies)


def on_the_wire(method: str, path: str, body: dict[str, object] | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    kind = b"" if body is None else b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(content)
    key = os.environ.get(KEY_VARIABLE)
    kind += b"" if key is None else b"Authorization: Bearer %s\r\n" % key.encode()
    return b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n%s" % (method.encode(), path.encode(), kind, content)


class Tally:
    """Latencies and errors of the answers that came while the clock ran."""

    def __init__(self, load: Load) -> None:
        self.start_s = time.perf_counter() + load.ramp_s
        self.end_s = self.start_s + load.seconds
        self.latencies_ms: list[float] = []
        self.errors: Counter[str] = Counter()

    def add(self, sent_s: float, error: str | None) -> None:
        now_s = time.perf_counter()
        if not self.start_s <= now_s <= self.end_s:
            return
        if error is None:
            self.latencies_ms.append((now_s - sent_s) * 1e3)
        else:
            self.errors[error] += 1


async def one_client(load: Load, client: int, words: Sequence[str], tally: Tally) -> None:
    """Ask until the time is over; a broken connection is counted and opened again."""
    loop = asyncio.get_running_loop()
    wanted = load.must_contain.encode()
    connection: Connection | None = None
    for request in requests(load, client, words):
        sent_s = time.perf_counter()
        if sent_s >= tally.end_s:
            break
        try:
            if connection is None:
                _, connection = await loop.create_connection(Connection, "127.0.0.1", load.port)
            status, body = await connection.ask(request)
            tally.add(sent_s, complaint(status, body, wanted))
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            tally.add(sent_s, type(error).__name__)
            if connection is not None:
                connection.close()
            connection = None
            await asyncio.sleep(0.05)  # a server that refuses must not be asked in a tight loop
    if connection is not None:
        connection.close()


def complaint(status: int, body: bytes, wanted: bytes) -> str | None:
    """What is wrong with an answer; None for a good one."""
    if status != 200:
        return f"status {status}"
    return None if wanted in body else f"answer without {wanted.decode()}"


async def measure(load: Load, words: Sequence[str]) -> Measured:
    cpu_s, tally = time.process_time(), Tally(load)
    await asyncio.gather(*(one_client(load, number, words, tally) for number in range(load.clients)))
    latencies = sorted(tally.latencies_ms)
    return Measured(
        requests=len(latencies),
        requests_per_s=round(len(latencies) / load.seconds, 2),
        p50_ms=percentile(latencies, 0.50),
        p99_ms=percentile(latencies, 0.99),
        max_ms=percentile(latencies, 1.0),
        client_cpu_s=round(time.process_time() - cpu_s, 3),
        errors=dict(tally.errors),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed (nearest rank); infinite where there is none."""
    return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], 3) if ordered else math.inf


class LoadProcess:
    """The load generator seen from the benchmark: one line of JSON in, one out, for each measurement."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def measure(self, load: Load) -> Measured:
        """Run one measurement to its end. Raises RuntimeError when the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(load)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended; its error is above")
        return Measured(**json.loads(line))


@contextmanager
def load_process() -> Iterator[LoadProcess]:
    """A load generator for the length of a ``with`` block."""
    with child(script("http_load.py"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield LoadProcess(process)


def main() -> None:
    """Measure what each line of standard input asks for."""
    words = vocabulary()
    for line in sys.stdin:
        given = json.loads(line)
        load = Load(**given | {"users": tuple(given["users"])})
        print(json.dumps(asdict(asyncio.run(measure(load, words)))), flush=True)


if __name__ == "__main__":
    main()
