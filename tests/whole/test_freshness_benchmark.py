"""The parts of the freshness benchmark that decide what a figure means: the pace, when a latency begins, the probes."""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support import Shop, server_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import freshness
from figures import cpu_ticks
from freshness import Found, Probes
from paced_load import Paced, measure, schedule
from processes import Neighbours, child

WORDS = ["river", "stone", "light", "forest", "engine", "letter"]


def paced(port: int = 1, connections: int = 2, requests_per_s: float = 40.0, events_per_s: float = 200.0) -> Paced:
    return Paced(port, connections, requests_per_s, events_per_s, 10, 0.0, "seed", ("ann", "bob"), ("item-1", "item-2"))


def test_requests_are_due_at_their_own_pace() -> None:
    first = list(itertools.takewhile(lambda due: due[0] < 11.0, schedule(paced(), start_s=10.0)))
    assert [due_s for due_s, _ in first] == sorted(due_s for due_s, _ in first)
    kinds = [kind for _, (kind, _) in first]
    assert (kinds.count("recommendations"), kinds.count("events")) == (40, 20)


def test_no_event_is_sent_twice() -> None:
    batches = (request for _, (kind, request) in schedule(paced(), 0.0) if kind == "events")
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in itertools.islice(batches, 20)]
    ids = [event["event_id"] for body in bodies for event in body["events"]]
    assert (len(ids), len(set(ids))) == (200, 200)


async def test_a_latency_counts_from_when_the_request_was_due() -> None:
    """One connection and a server that takes 50 ms, asked 100 times a second: each waits longer than the one before."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
                await reader.readexactly(length)
                await asyncio.sleep(0.05)
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n"degraded":[]  ')
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    stop = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        load = paced(server.sockets[0].getsockname()[1], 1, requests_per_s=100.0, events_per_s=0.0)
        asyncio.get_running_loop().call_later(1.0, stop.set)
        found = (await measure(load, stop))["recommendations"]
    assert found.errors == {}
    assert 10 <= found.requests <= 21
    # Each is due 10 ms after the one before and answered 50 ms after it.
    assert found.max_ms >= 40 * (found.requests - 1)
    assert found.p50_ms >= 40 * (found.requests // 2 - 1)


def test_what_we_started_is_no_neighbour() -> None:
    spin = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    everything = cpu_ticks()
    neighbours = Neighbours()
    with child([sys.executable, "-c", spin]) as process:
        process.wait(30)
    busy, total = (after - before for after, before in zip(cpu_ticks(), everything, strict=True))
    assert neighbours.share() <= (busy - 40) / total  # a tick is 10 ms


def test_with_several_gateways_a_deletion_has_a_second_to_reach_them() -> None:
    found = Found(watched=10, sightings_ms=[0.5, 999.0, 1_200.0])
    assert found.forbidden(gateways=1) == [0.5, 999.0, 1_200.0]
    assert found.forbidden(gateways=2) == [1_200.0]
    assert found.as_dict(gateways=2)["latest_sighting_ms"] == 1_200.0


@pytest.fixture
def service(shop: Shop, tmp_path: Path) -> Iterator[httpx.Client]:
    with server_of(shop.store(2), tmp_path / "state.sqlite3") as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_round_over_a_real_service_finds_it_fresh(
    service: httpx.Client, monkeypatch: pytest.MonkeyPatch, shop: Shop
) -> None:
    monkeypatch.setattr(freshness, "WATCH_S", 0.1)
    probes = Probes(service, shop.items["item_id"].to_pylist()[:200], WORDS)
    probes.round()
    found = probes.found
    assert (found.stale, found.failed, found.sightings_ms) == (0, {}, [])
    assert {name: len(values) for name, values in found.ms.items()} == {
        "event": freshness.EVENTS,
        "event_seen": freshness.EVENTS,
        "text_seen": freshness.TEXTS,
        "item_seen": freshness.ITEMS,
        "delete": 1,
    }
    assert found.watched >= 2 * freshness.ITEMS
    assert all(later >= sooner for sooner, later in zip(found.ms["event"], found.ms["event_seen"], strict=True))


def test_a_service_that_refuses_is_a_failure_and_no_figure() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503)

    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(refuse)) as client:
        probes = Probes(client, ["item-1"], WORDS)
        probes.round()
    assert not any(probes.found.ms.values())
    assert probes.found.failed["event: status 503"] == freshness.EVENTS


def test_what_never_takes_effect_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that takes an item, and never finds it."""
    monkeypatch.setattr(freshness, "TIMEOUT_S", 0.1)

    def forget(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"items": [], "profile_versions": {}})

    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(forget)) as client:
        probes, live = Probes(client, ["item-1"], WORDS), dict[str, str]()
        start_s = time.perf_counter()
        probes._probe("item", lambda: probes._item(live))
    assert time.perf_counter() - start_s >= 0.1
    assert probes.found.failed == {"item: TimeoutError": 1}
    assert probes.found.ms["item_seen"] == []
