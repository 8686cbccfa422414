"""Requests that are each due at a time of their own, whether or not earlier ones were answered, over open connections.

A server that falls behind pays for the queue that it causes: a latency counts from when the request was due, and what
finds no free connection waits for one.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from http_load import Connection

Q = TypeVar("Q")


class Outcome(NamedTuple):
    """What came of a request: status and body, or the name of the error with status 0. latency_ms: since it was due."""

    due_s: float
    latency_ms: float
    status: int
    body: bytes
    error: str | None = None


def at_pace(requests: Iterable[Q], per_s: float, start_s: float) -> Iterator[tuple[float, Q]]:
    """Each request with the time at which it is due, by ``perf_counter``."""
    return ((start_s + n / per_s, request) for n, request in enumerate(requests))


async def send_all(
    port: int,
    connections: int,
    requests: Iterator[tuple[float, Q]],
    wire: Callable[[Q], bytes],
    answered: Callable[[Q, Outcome], None],
    stop: asyncio.Event,
) -> None:
    """Send each when it is due, until told to stop or there are no more; what was sent by then is waited for."""
    await asyncio.gather(*(_one(port, requests, wire, answered, stop) for _ in range(connections)))


async def _one(
    port: int,
    requests: Iterator[tuple[float, Q]],
    wire: Callable[[Q], bytes],
    answered: Callable[[Q, Outcome], None],
    stop: asyncio.Event,
) -> None:
    """Take the next request of all, wait until it is due, and send it; again until told to stop."""
    connection: Connection | None = None
    for due_s, request in requests:
        await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
        if stop.is_set():
            break
        status, body, error = 0, b"", None
        try:
            if connection is None:
                _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
            status, body = await connection.ask(wire(request))
        except (OSError, ValueError) as failed:  # TimeoutError is an OSError
            error = type(failed).__name__
            if connection is not None:
                connection.close()
            connection = None
        answered(request, Outcome(due_s, (time.perf_counter() - due_s) * 1e3, status, body, error))
    if connection is not None:
        connection.close()
