"""A state file that another process locks, and a gateway that is killed in the middle of its writes."""

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
from chaos_tools import GatewayProcess, is_told, until
from support import Shop

from raysys.config import ServeSettings
from raysys.state.sqlite import SqliteState

BUSY_S = 5.0  # how long a write waits for the lock
SLACK_S = 5.0  # for a machine that is busy
RECOVERY_S = 10.0
DEADLINE_S = ServeSettings().deadline_s


async def ids_in(path: Path) -> list[str]:
    store = SqliteState(path)
    found = [event.event_id for _, event in await store.events_after(0, 100_000)]
    await store.close()
    return found


async def test_a_locked_file_costs_writes_and_no_list(
    shop: Shop, tmp_path: Path, start_gateway: Callable[..., GatewayProcess]
) -> None:
    state = tmp_path / "state.sqlite3"
    gateway = start_gateway(index_root=shop.store(2).root, state=state, impressions={"folder": None})
    assert gateway.event("before").status_code == 200
    lock = sqlite3.connect(state, isolation_level=None)
    with closing(lock), ThreadPoolExecutor(8) as threads:
        lock.execute("BEGIN EXCLUSIVE")
        start_s = time.monotonic()
        told = [threads.submit(gateway.event, f"locked-{n}") for n in range(8)]
        lists_s = []
        while not all(answer.done() for answer in told):
            list_s = time.monotonic()
            assert gateway.recommend()["degraded"] == []
            lists_s.append(time.monotonic() - list_s)
        assert all(is_told(answer.result()) for answer in told)
        # all of them at once: who waits behind another has waited for the lock as well
        told_s = time.monotonic() - start_s
        assert BUSY_S - 1.0 < told_s < BUSY_S + SLACK_S
        assert max(lists_s) < DEADLINE_S
        lock.execute("ROLLBACK")
        recovered_s = until(lambda: gateway.event("after").status_code == 200, RECOVERY_S)
    assert await ids_in(state) == ["before", "after"]
    print(
        f"locked: 8 writes were told after {told_s:.2f} s, slowest list {max(lists_s):.3f} s, back {recovered_s:.2f} s"
    )


def write_until_gone(gateway: GatewayProcess, writer: int, acknowledged: list[str]) -> None:
    with httpx.Client(base_url=gateway.url, timeout=30.0) as client:
        for n in range(100_000):
            events = [
                {"event_id": f"{writer}-{n}-{k}", "type": "view", "user_id": f"user-{k}", "item_id": "item-1"}
                for k in range(3)
            ]
            try:
                answer = client.post("/v1/events", json={"events": events})
            except httpx.HTTPError:
                return
            assert answer.json()["accepted"] == 3
            acknowledged += [event["event_id"] for event in events]


async def test_what_a_killed_gateway_has_acknowledged_is_there(
    shop: Shop, tmp_path: Path, start_gateway: Callable[..., GatewayProcess]
) -> None:
    state, acknowledged = tmp_path / "state.sqlite3", list[str]()
    gateway = start_gateway(index_root=shop.store(2).root, state=state, impressions={"folder": None})
    for wanted in (150, 300):
        writers = [
            threading.Thread(target=write_until_gone, args=(gateway, wanted + n, acknowledged)) for n in range(4)
        ]
        for writer in writers:
            writer.start()
        until(lambda wanted=wanted: len(acknowledged) >= wanted, 60.0)
        gateway.kill()
        for writer in writers:
            writer.join()
        start_s = time.monotonic()
        gateway.start()
        assert gateway.event(f"after-{wanted}").status_code == 200
        print(f"killed: answers again {time.monotonic() - start_s:.2f} s after it was started")
    found = await ids_in(state)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    # at most one request of each of the four writers was on its way each time, and each is there wholly or not at all
    beyond = [event_id for event_id in set(found) - set(acknowledged) if not event_id.startswith("after")]
    assert len(beyond) <= 2 * 4 * 3
    assert len(beyond) % 3 == 0
