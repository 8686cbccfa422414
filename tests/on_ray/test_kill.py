"""Each process is killed with SIGKILL in mid-load and started again: what was acknowledged is there, and once.

With SQLite it is a test of the night: of its events ``test_faults.py`` sees the same, of a killed writer
``tests/chaos/test_locked_state.py``.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from clusters import poll, settings_of, world_settings
from consumer_process import ConsumerProcess
from kill_load import USERS, EventLoad, ItemLoad, Load, StreamLoad
from redis_server import RedisServer, running_redis

from raysys.clock import SystemClock
from raysys.config import ProfileSettings
from raysys.profile.reader import Profiles
from raysys.serving.deploy import replica_pids
from raysys.serving.session import LocalService
from raysys.state.open import open_state
from raysys.state.protocol import StateStore
from raysys.training.local import build_here

pytestmark = pytest.mark.ray

# From the kill of a replica, or the start of the others, to the first answer that lacks nothing. Measured on two busy
# cores: 4 to 11 s for replicas, 0.1 s for Redis, 1.2 s for the consumer.
REPLICA_BOUND_S, REDIS_BOUND_S, CONSUMER_BOUND_S = 40.0, 15.0, 30.0
OUTAGE_S = 1.0
MORE_WRITES = 10
STREAM = "raysys-events"
SHARDS = ("shard-00", "shard-01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    build_here(settings_of(world_settings(folder)))
    return folder


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def consumer(tmp_path: Path, redis: RedisServer) -> Iterator[ConsumerProcess]:
    consumer = ConsumerProcess(tmp_path / "consumer", redis.url, redis.url)
    yield consumer
    consumer.end(signal.SIGKILL)


@dataclass
class Trial:
    """One served application under load."""

    service: LocalService
    url: str
    state: str
    loads: list[Load] = field(default_factory=list)
    n_caught: int = 0  # kills with writes under way; who sends them again, the proxy or the caller, is all one
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=20.0)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def begin(self, *extra: Load) -> None:
        items = self.post("/v1/recommendations", limit=100)["items"]
        snapshot = self.post("/v1/items:get", item_ids=[item["item_id"] for item in items])["items"]
        self.events, self.items = EventLoad(self.url), ItemLoad(self.url, snapshot)
        self.loads += [self.events, self.items, *extra]
        self.see_writes_go_on()

    def see_writes_go_on(self) -> None:
        """Every load gets some more writes acknowledged."""
        before = [load.acknowledged for load in self.loads]
        poll(
            "writes are acknowledged",
            lambda: all(load.acknowledged > n + MORE_WRITES for load, n in zip(self.loads, before, strict=True)),
        )

    def end(self) -> None:
        for load in self.loads:
            load.stop()

    def pids(self, *names: str) -> set[int]:
        by_name = replica_pids(self.service.head.dashboard_url, self.service.token)
        return {pid for name in names for pid in by_name[name]}

    def kill(self, *names: str) -> None:
        """SIGKILL the replicas of these deployments; fails where answers lack something for too long."""
        killed = self.pids(*names)
        assert len(killed) == len(names)
        if self.loads and "gateway" in names:
            self.catch_writes_under_way(killed)
        start_s = time.monotonic()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

        def replaced() -> bool:
            pids = self.pids(*names)
            return len(pids) == len(names) and not pids & killed and self.is_whole()

        self.is_back(f"the kill of {', '.join(names)}", REPLICA_BOUND_S, start_s, replaced)

    def catch_writes_under_way(self, pids: set[int]) -> None:
        """Freeze these gateways where they are, so that writes surely wait for them when they die."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        poll("writes are under way", lambda: self.events.is_under_way and self.items.is_under_way)
        self.n_caught += 1

    def is_back(self, after: str, bound_s: float, start_s: float, condition: Callable[[], Any]) -> None:
        """Wait for the condition; fails where it takes more than ``bound_s`` from ``start_s``, a monotonic time."""
        poll(f"whole answers after {after}", condition, 2 * bound_s)
        took_s = time.monotonic() - start_s
        print(f"answers lacked nothing {took_s:.1f} s after {after}")
        assert took_s <= bound_s, f"answers lacked nothing {took_s:.1f} s after {after}, not within {bound_s:.0f} s"
        self.see_writes_go_on()

    def is_whole(self) -> bool:
        """Ready, and a known person gets a list that lacks nothing."""
        answer = self.ask("/v1/recommendations", {"user_id": "u1"})
        return self.ask("/readyz", None) is not None and answer is not None and answer["degraded"] == []

    def ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """The answer, or None where there is none now."""
        try:
            answer = self.http.request("GET" if body is None else "POST", path, json=body)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == 200 else None


@pytest.fixture
def serve(service: LocalService, folder: Path, port: int, tmp_path: Path) -> Iterator[Callable[[str], Trial]]:
    """Puts the tiered application over the catalogue, with this state store."""
    trials: list[Trial] = []

    def serve(state: str) -> Trial:
        args = {"index_root": str(folder / "index"), "state": state}
        url = service.serve({**args, "impressions": {"folder": str(tmp_path / "impressions")}}, port)
        trials.append(Trial(service, url, state))
        return trials[-1]

    yield serve
    for trial in trials:
        trial.end()
        trial.http.close()


@pytest.mark.nightly
def test_with_sqlite_nothing_acknowledged_is_lost_or_doubled(serve: Callable[[str], Trial], tmp_path: Path) -> None:
    trial = serve(str(tmp_path / "state.sqlite3"))
    trial.begin()
    trial.kill("gateway")
    trial.kill("shard-00")
    trial.end()
    check(trial, trial.events.events)
    trial.loads.clear()
    trial.kill("gateway", *SHARDS)
    check(trial, trial.events.events)


def test_with_redis_nothing_acknowledged_is_lost_or_doubled(
    redis: RedisServer, consumer: ConsumerProcess, serve: Callable[[str], Trial]
) -> None:
    trial = serve(redis.url)
    consumer.start()
    stream = StreamLoad(redis.url, STREAM)
    trial.begin(stream)
    trial.kill("gateway")
    trial.kill("shard-01")
    kill_redis(trial, redis)
    kill_consumer(trial, consumer)
    trial.end()
    sent = trial.events.events | stream.events
    poll("the stream is in the store", lambda: len(stored(trial.state)) >= len(sent))
    assert consumer.end(signal.SIGTERM) == 0
    assert consumer.letters.read_bytes() == b""
    check(trial, sent)
    trial.loads.clear()
    trial.kill("gateway", *SHARDS)
    check(trial, sent)


def kill_redis(trial: Trial, redis: RedisServer) -> None:
    """The store goes away for a second; meanwhile people get lists that do not know them."""
    redis.kill()
    end_s = time.monotonic() + OUTAGE_S
    poll(
        "answers say what they lack",
        lambda: (
            (answer := trial.ask("/v1/recommendations", {"user_id": "u1"}))
            and "profile" in answer["degraded"]
            and set(answer["degraded"]) <= {"profile", "live"}
            and time.monotonic() > end_s
        ),
    )
    start_s = time.monotonic()
    redis.start()
    trial.is_back("the restart of Redis", REDIS_BOUND_S, start_s, trial.is_whole)


def kill_consumer(trial: Trial, consumer: ConsumerProcess) -> None:
    assert consumer.end(signal.SIGKILL) == -signal.SIGKILL
    trial.see_writes_go_on()
    sent = len(trial.loads[-1].events)
    start_s = time.monotonic()
    consumer.start()

    def caught_up() -> bool:
        return sum(event_id.startswith("stream-") for event_id in stored(trial.state)) >= sent

    trial.is_back("the restart of the consumer", CONSUMER_BOUND_S, start_s, caught_up)


def check(trial: Trial, sent: dict[str, str]) -> None:
    """Everything acknowledged is there, none twice, and nothing that was deleted."""
    assert trial.n_caught > 0, "no write was under way in any kill"
    assert stored(trial.state) == Counter(sent.keys())
    of_user = Counter(sent.values())
    assert folded(trial.state) == of_user
    for user, n in of_user.items():
        assert sum(trial.post("/v1/users:get", user_id=user)["counts"].values()) == n
    check_items(trial, trial.items.items)
    check_deleted(trial, trial.items.deleted)


def stored(location: str) -> Counter[str]:
    """How often each event id is in the store."""

    async def read(state: StateStore) -> Counter[str]:
        ids, after = [], 0
        while page := await state.events_after(after, 1_000):
            ids += [event.event_id for _, event in page]
            after = page[-1][0]
        return Counter(ids)

    return asyncio.run(with_state(location, read))


def folded(location: str) -> Counter[str]:
    """How many events count for each user in a fold that nobody has kept."""

    async def read(state: StateStore) -> Counter[str]:
        profiles = Profiles(state, ProfileSettings(), SystemClock())
        return Counter({f"u{n}": sum((await profiles.of(f"u:u{n}")).counts.values()) for n in range(USERS)})

    return asyncio.run(with_state(location, read))


async def with_state(location: str, read: Callable[[StateStore], Any]) -> Any:
    state = open_state(location)
    try:
        return await read(state)
    finally:
        await state.close()


def check_items(trial: Trial, items: dict[str, dict[str, Any]]) -> None:
    """Each is given as it was written last, and is found by its title."""
    assert len(items) > 2 * MORE_WRITES
    ids = list(items)
    for start in range(0, len(ids), 1_000):
        answer = trial.post("/v1/items:get", item_ids=ids[start : start + 1_000])
        assert answer["unknown_items"] == []
        for item in answer["items"]:
            assert item == items[item["item_id"]]
    for item_id, item in items.items():
        found = trial.post("/v1/search", query=item["title"], limit=20)["items"]
        assert item_id in [one["item_id"] for one in found]


def check_deleted(trial: Trial, deleted: dict[str, str]) -> None:
    assert len(deleted) > MORE_WRITES
    ids = list(deleted)
    for start in range(0, len(ids), 1_000):
        assert trial.post("/v1/items:get", item_ids=ids[start : start + 1_000])["items"] == []
    for title in deleted.values():
        found = trial.post("/v1/search", query=title, limit=20)["items"]
        assert not deleted.keys() & {item["item_id"] for item in found}
    for user in range(USERS):
        found = trial.post("/v1/recommendations", user_id=f"u{user}", limit=500)["items"]
        assert found
        assert not deleted.keys() & {item["item_id"] for item in found}
