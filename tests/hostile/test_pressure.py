"""A real gateway under an open loop that grows past what it can answer, and then stops: what is left out, and when."""

import asyncio
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import Shop

from raysys.pressure import NO_EXPLAIN, NO_EXPLORE, NO_SOURCES

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from http_load import on_the_wire
from open_loop import Outcome, send_all

SERVER = Path(__file__).parents[2] / "benchmarks" / "alone_server.py"
DEADLINE_S = 6.0  # a quarter of it may be waited: room for a queue that passes every level
GROWS_BY = 150.0  # requests a second, every second
CONNECTIONS = 1_000
MOST_S = 30.0
CALM_S = 30.0
BODY: dict[str, object] = {"history": ["item-1", "item-2", "item-3"], "limit": 10, "explain": True, "explore": True}
SENT_AWAY = "429"


@pytest.fixture
def port(shop: Shop, tmp_path: Path) -> Iterator[int]:
    where = {"index_root": str(shop.store(1).root), "state": str(tmp_path / "state.sqlite3")}
    settings = {**where, "deadline_s": DEADLINE_S, "impressions": {"folder": None}}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    command = [sys.executable, str(SERVER), str(path)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "log").read_text()
        yield int(line)
    finally:
        process.kill()
        process.communicate()


class Seen:
    """When each cause was first told, by when its request was due, and how often; stops the load once people are sent
    away."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop
        self.first_s: dict[str, float] = {}
        self.errors: Counter[str] = Counter()

    def add(self, _: bytes, outcome: Outcome) -> None:
        if outcome.status == 200:
            causes = json.loads(outcome.body)["degraded"]
        elif outcome.status == 429:
            causes = [SENT_AWAY]
            self.stop.set()
        else:
            causes = []
            self.errors[outcome.error or str(outcome.status)] += 1
        for cause in causes:
            self.first_s[cause] = min(self.first_s.get(cause, math.inf), outcome.due_s)


def growing(start_s: float) -> Iterator[tuple[float, bytes]]:
    """The n-th is due when ``GROWS_BY * t**2 / 2`` is n."""
    wire = on_the_wire("POST", "/v1/recommendations", BODY)
    for n in range(int(GROWS_BY * MOST_S**2 / 2)):
        yield start_s + math.sqrt(2 * n / GROWS_BY), wire


def level(port: int) -> float:
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text.splitlines()
    return float(next(line for line in lines if line.startswith("raysys_brown_out_level ")).split()[1])


def ask(port: int) -> dict[str, Any]:
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/recommendations", json=BODY, timeout=10)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_what_is_left_out_comes_in_order_before_anybody_is_sent_away_and_goes_again(port: int) -> None:
    calm = await asyncio.to_thread(ask, port)
    assert (calm["degraded"], bool(calm["items"][0]["reasons"])) == ([], True)
    stop = asyncio.Event()
    seen = Seen(stop)
    await send_all(port, CONNECTIONS, growing(time.perf_counter()), lambda wire: wire, seen.add, stop)
    assert not seen.errors  # nobody's list failed but for those who were told to come back
    assert set(seen.first_s) == {NO_EXPLORE, NO_EXPLAIN, NO_SOURCES, SENT_AWAY}
    assert seen.first_s[NO_EXPLAIN] == seen.first_s[NO_EXPLORE] <= seen.first_s[NO_SOURCES] < seen.first_s[SENT_AWAY]
    deadline_s = time.monotonic() + CALM_S
    while await asyncio.to_thread(level, port) > 0:
        assert time.monotonic() < deadline_s
    again = await asyncio.to_thread(ask, port)
    assert (again["degraded"], bool(again["items"][0]["reasons"])) == ([], True)
