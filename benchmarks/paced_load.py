"""An open-loop HTTP load: every request is due at a time of its own, whether or not earlier ones were answered.

A latency counts from when the request was due, not from when it went out: a server that falls behind pays for the
queue that it caused. Recommendations for known users are mixed with batches of events of them, each at its own pace.
Like ``http_load.py`` it runs in a process of its own; it goes on until it is told to stop.
"""

import asyncio
import heapq
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from http_load import Measured, complaint, on_the_wire, percentile
from open_loop import Outcome, at_pace, send_all
from processes import child, script

# What every good answer of a kind holds.
WANTED = {"recommendations": b'"degraded":[]', "events": b'"duplicates":0,"rejected":[]'}
BROWNED_OUT = b'"degraded":["pressure: '  # a good answer too, and counted
_Sent = tuple[str, bytes]  # the kind, the request as bytes on the wire


@dataclass(frozen=True)
class Paced:
    """What to send. seed: of the choices of users and items, and part of every event id, so use each only once."""

    port: int
    connections: int
    requests_per_s: float
    events_per_s: float
    events_per_batch: int
    ramp_s: float
    seed: str
    users: tuple[str, ...]
    items: tuple[str, ...]


def schedule(load: Paced, start_s: float) -> Iterator[tuple[float, _Sent]]:
    """All requests by when they are due, without end."""
    recommendations = _at_pace("recommendations", load.requests_per_s, start_s, _recommendations(load))
    events = _at_pace("events", load.events_per_s / load.events_per_batch, start_s, _batches(load))
    return heapq.merge(recommendations, events)


def _at_pace(kind: str, per_s: float, start_s: float, made: Iterator[bytes]) -> Iterator[tuple[float, _Sent]]:
    return at_pace(((kind, request) for request in made), per_s, start_s) if per_s > 0 else iter(())


def _recommendations(load: Paced) -> Iterator[bytes]:
    chance = random.Random(f"{load.seed}-recommendations")
    while True:
        yield on_the_wire("POST", "/v1/recommendations", {"user_id": chance.choice(load.users), "limit": 10})


def _batches(load: Paced) -> Iterator[bytes]:
    chance = random.Random(f"{load.seed}-events")
    for batch in itertools.count():
        events = [
            {
                "event_id": f"{load.seed}-{batch}-{n}",
                "type": chance.choice(("view", "click", "like")),
                "user_id": chance.choice(load.users),
                "item_id": chance.choice(load.items),
            }
            for n in range(load.events_per_batch)
        ]
        yield on_the_wire("POST", "/v1/events", {"events": events})


class Tally:
    """Latencies and errors by kind, of the requests that were due after the ramp."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.latencies_ms: dict[str, list[float]] = {kind: [] for kind in WANTED}
        self.errors: dict[str, Counter[str]] = {kind: Counter() for kind in WANTED}
        self.browned_out: Counter[str] = Counter()

    def add(self, sent: _Sent, outcome: Outcome) -> None:
        if outcome.due_s < self.start_s:
            return
        kind = sent[0]
        is_browned_out = BROWNED_OUT in outcome.body
        error = outcome.error or complaint(
            outcome.status, outcome.body, BROWNED_OUT if is_browned_out else WANTED[kind]
        )
        if error is None:
            self.browned_out[kind] += is_browned_out
            self.latencies_ms[kind].append(outcome.latency_ms)
        else:
            self.errors[kind][error] += 1

    def measured(self, end_s: float, cpu_s: float) -> dict[str, Measured]:
        seconds = end_s - self.start_s
        found = {}
        for kind, latencies_ms in self.latencies_ms.items():
            ordered = sorted(latencies_ms)
            p50_ms, p99_ms, max_ms = (percentile(ordered, share) for share in (0.50, 0.99, 1.0))
            figures = len(ordered), round(len(ordered) / seconds, 2), p50_ms, p99_ms, max_ms, round(cpu_s, 3)
            found[kind] = Measured(*figures, dict(self.errors[kind]), self.browned_out[kind])
        return found


async def measure(load: Paced, stop: asyncio.Event) -> dict[str, Measured]:
    """Send until ``stop`` is set; the answers to what was sent by then are waited for."""
    cpu_s, start_s = time.process_time(), time.perf_counter()
    requests, tally = schedule(load, start_s), Tally(start_s + load.ramp_s)
    sending = asyncio.create_task(
        send_all(load.port, load.connections, requests, lambda sent: sent[1], tally.add, stop)
    )
    await stop.wait()
    end_s = time.perf_counter()
    await sending
    return tally.measured(end_s, time.process_time() - cpu_s)


class PacedProcess:
    """The load seen from the benchmark."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def start(self, load: Paced) -> None:
        """Begin; returns once the ramp is over."""
        self._write(json.dumps(asdict(load)))
        self._read()

    def finish(self) -> dict[str, Measured]:
        """Stop, and what was measured of each kind of request. Raises RuntimeError when the process is gone."""
        self._write("stop")
        return {kind: Measured(**measured) for kind, measured in json.loads(self._read()).items()}

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended; its error is above")
        return line


@contextmanager
def paced_load(load: Paced) -> Iterator[PacedProcess]:
    """The load in a process of its own for the length of a ``with`` block, already under way."""
    with child(script("paced_load.py"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        started = PacedProcess(process)
        started.start(load)
        yield started


async def _until_told(load: Paced) -> dict[str, Measured]:
    stop = asyncio.Event()
    measuring = asyncio.create_task(measure(load, stop))
    await asyncio.sleep(load.ramp_s)
    print("under way", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    stop.set()
    return await measuring


def main() -> None:
    given = json.loads(sys.stdin.readline())
    load = Paced(**given | {"users": tuple(given["users"]), "items": tuple(given["items"])})
    measured = asyncio.run(_until_told(load))
    print(json.dumps({kind: asdict(one) for kind, one in measured.items()}), flush=True)


if __name__ == "__main__":
    main()
