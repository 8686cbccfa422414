"""A Redis that hangs, is slow, is killed and comes back, and whose connections are cut, under a running gateway."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chaos_tools import GatewayProcess, is_told, until
from redis.asyncio import Redis
from redis_server import RedisServer, running_redis
from support import Shop

from raysys.config import ServeSettings
from raysys.state.redis import RedisState

pytestmark = pytest.mark.redis

DEADLINE_S = ServeSettings().deadline_s
RECOVERY_S = 10.0
PAUSE_S = 4.0  # in which it takes in and answers nothing; a call is given 1 s
NAMES = [f"e{n}" for n in range(4)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def gateway(shop: Shop, server: RedisServer, start_gateway: Callable[..., GatewayProcess]) -> GatewayProcess:
    gateway = start_gateway(index_root=shop.store(2).root, state=server.url, impressions={"folder": None})
    for name in NAMES:
        assert gateway.event(name).status_code == 200
    assert gateway.recommend()["degraded"] == []
    return gateway


def goes_on_without(gateway: GatewayProcess, rounds: int = 3) -> tuple[list[str], float]:
    """Lists without what is known of a person, in time; no event is acknowledged. Returns (the events, slowest s)."""
    told, slowest_s = [], 0.0
    for n in range(rounds):
        start_s = time.monotonic()
        assert gateway.recommend()["degraded"] == ["profile"]
        slowest_s = max(slowest_s, time.monotonic() - start_s)
        told.append(f"told-{n}")
        answer = gateway.event(told[-1])
        assert is_told(answer), answer.text[:500]
    assert slowest_s < DEADLINE_S
    return told, slowest_s


def comes_back(gateway: GatewayProcess) -> float:
    """Seconds until events are taken again and lists are whole, without a restart."""
    taken_s = until(lambda: gateway.event("after").status_code == 200, RECOVERY_S)
    return taken_s + until(lambda: gateway.recommend()["degraded"] == [], RECOVERY_S)


async def ids_in(server: RedisServer) -> list[str]:
    store = RedisState(server.url, timeout_s=10.0)
    found = [event.event_id for _, event in await store.events_after(0, 1_000)]
    await store.close()
    return found


async def test_one_that_hangs(server: RedisServer, gateway: GatewayProcess) -> None:
    server.send_signal(signal.SIGSTOP)
    try:
        told, slowest_s = goes_on_without(gateway)
        with ThreadPoolExecutor(12) as threads:
            start_s = time.monotonic()
            lists = list(threads.map(lambda _: gateway.recommend(), range(12)))
            many_s = time.monotonic() - start_s
        assert all(one["degraded"] == ["profile"] for one in lists)
        assert many_s < DEADLINE_S  # side by side, not one after the other
    finally:
        server.send_signal(signal.SIGCONT)
    back_s = comes_back(gateway)
    found = await ids_in(server)
    assert len(found) == len(set(found))  # what it read late counts once
    assert {*NAMES, "after"} <= set(found) <= {*NAMES, *told, "after"}
    print(f"hangs: slowest list {slowest_s:.2f} s, 12 at once {many_s:.2f} s, whole after {back_s:.2f} s")


async def test_one_that_is_killed_and_started_again(server: RedisServer, gateway: GatewayProcess) -> None:
    server.kill()
    _, slowest_s = goes_on_without(gateway)
    await asyncio.to_thread(server.start)
    back_s = comes_back(gateway)
    assert await ids_in(server) == [*NAMES, "after"]
    print(f"killed: slowest list {slowest_s:.2f} s, whole again after {back_s:.2f} s")


async def test_one_that_answers_too_late(server: RedisServer, gateway: GatewayProcess) -> None:
    start_s = time.monotonic()
    async with Redis.from_url(server.url) as admin:
        await admin.execute_command("CLIENT", "PAUSE", int(1e3 * PAUSE_S), "ALL")
    told, slowest_s = goes_on_without(gateway, rounds=1)
    comes_back(gateway)
    back_s = time.monotonic() - start_s - PAUSE_S
    found = await ids_in(server)
    assert len(found) == len(set(found))
    assert {*NAMES, "after"} <= set(found) <= {*NAMES, *told, "after"}
    print(f"slow: slowest list {slowest_s:.2f} s, whole again {back_s:.2f} s after it was quick again")


async def test_connections_that_are_cut(server: RedisServer, gateway: GatewayProcess) -> None:
    acknowledged, told = list(NAMES), list[str]()

    def write(writer: int) -> None:
        for n in range(40):
            name = f"cut-{writer}-{n}"
            answer = gateway.event(name)
            assert answer.status_code == 200 or is_told(answer), answer.text
            (acknowledged if answer.status_code == 200 else told).append(name)

    async with Redis.from_url(server.url) as admin:
        writers = [asyncio.create_task(asyncio.to_thread(write, writer)) for writer in range(4)]
        n_cut = 0
        while not all(writer.done() for writer in writers):
            n_cut += await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.to_thread(gateway.recommend)
        await asyncio.gather(*writers)
    back_s = comes_back(gateway)
    found = await ids_in(server)
    assert len(found) == len(set(found))
    assert {*acknowledged, "after"} <= set(found) <= {*acknowledged, *told, "after"}
    print(f"cut: {n_cut} connections, {len(told)} of 160 events were told, whole again after {back_s:.2f} s")
