"""`raysys consume` as a real process, over a real redis-server."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from consumer_process import DEADLINE_S, RAYSYS, ConsumerProcess, until
from redis import Redis
from redis_server import RedisServer, require_redis, running_redis

from raysys.state.open import open_state
from raysys.types import Event

pytestmark = pytest.mark.redis

STREAM = "raysys-events"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def consumer(tmp_path: Path, server: RedisServer) -> Iterator[Callable[..., ConsumerProcess]]:
    made: list[ConsumerProcess] = []

    def make(state: str, *options: str) -> ConsumerProcess:
        made.append(ConsumerProcess(tmp_path, server.url, state, *options))
        return made[-1]

    yield make
    for one in made:
        one.end(signal.SIGKILL)


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path, server: RedisServer) -> str:
    return str(tmp_path / "state.sqlite3") if request.param == "sqlite" else server.url


def events_in(location: str) -> list[Event]:
    """Everything in the store, page by page."""

    async def read() -> list[Event]:
        state, found, after = open_state(location), [], 0
        while page := await state.events_after(after, 1_000):
            found += [event for _, event in page]
            after = page[-1][0]
        await state.close()
        return found

    return asyncio.run(read())


def n_events(location: str) -> int:
    async def count() -> int:
        state = open_state(location)
        size = await state.size()
        await state.close()
        return int(size["events"])

    return asyncio.run(count())


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"event_id": f"e{number}", "type": "like", "user_id": f"u{number % 7}", "item_id": "a", **more}


def send(redis: Redis, *events: dict[str, Any]) -> None:
    """All of them at once: whoever reads gets all or none."""
    with redis.pipeline() as together:
        for each in events:
            together.xadd(STREAM, {"event": orjson.dumps(each)})
        together.execute()


def n_pending(redis: Redis) -> int:
    return sum(group["pending"] for group in redis.xinfo_groups(STREAM))


def each_once(location: str, numbers: Sequence[int]) -> None:
    counts = Counter(one.event_id for one in events_in(location))
    assert counts == Counter(f"e{number}" for number in numbers)


def test_events_come_into_the_state_and_poison_is_put_aside(redis, consumer, state):
    running = consumer(state).start()
    send(redis, *(event(number) for number in range(20)))
    redis.xadd(STREAM, {"event": b"{not json"})
    redis.xadd(STREAM, {"other": b"{}"})
    send(redis, {"event_id": "no type", "user_id": "u1"}, event(20, text="I like it"), event(3))
    until("all are in", lambda: n_events(state) == 21)
    until("all are committed", lambda: redis.xinfo_groups(STREAM)[0]["lag"] == 0 and n_pending(redis) == 0)

    assert running.end(signal.SIGTERM) == 0
    each_once(state, range(21))
    (last,) = [one for one in events_in(state) if one.event_id == "e20"]
    assert (last.user, last.kind, last.text) == ("u:u6", "like", "I like it")
    reasons = [orjson.loads(line)["reason"] for line in running.letters.read_bytes().splitlines()]
    assert ["is no JSON" in reasons[0], "no such field" in reasons[1], "type" in reasons[2]] == [True] * 3
    assert len(reasons) == 3
    assert "stopped: accepted 21, known already 1, put aside 3" in running.said


def test_what_settings_say_of_a_profile_counts(redis, consumer, tmp_path):
    place, settings = tmp_path / "state.sqlite3", tmp_path / "serve.yaml"
    settings.write_text("profile: {ttl_days: {like: 1}}")
    running = consumer(str(place), "--settings", str(settings)).start()
    send(redis, event(1, timestamp="2030-01-01T00:00:00Z"), event(2))
    until("the event is in", lambda: events_in(str(place)))
    assert running.end(signal.SIGINT) == 0
    (found,) = events_in(str(place))
    assert found.expires_s == found.timestamp_s + 86_400
    assert b"in_future" in running.letters.read_bytes()


def test_events_of_a_tenant_come_from_its_stream_into_its_namespace(redis, consumer, server, tmp_path):
    (tmp_path / "serve.yaml").write_text("tenant: shop")
    running = consumer(server.url, "--settings", str(tmp_path / "serve.yaml")).start()
    send(redis, event(1))
    redis.xadd("raysys@shop:stream", {"event": orjson.dumps(event(2))})
    until("the event is in", lambda: n_events(f"{server.url}#shop"))
    assert running.end(signal.SIGTERM) == 0
    each_once(f"{server.url}#shop", [2])
    assert events_in(server.url) == events_in(f"{server.url}#till") == []


def test_it_says_how_far_it_is(redis, consumer, tmp_path):
    running = consumer(str(tmp_path / "state.sqlite3")).start()
    send(redis, event(1))
    until("a line of progress", lambda: "accepted 1, known already 0, put aside 0" in running.said)
    assert running.end(signal.SIGTERM) == 0


def test_killed_in_mid_flow_and_started_again_it_takes_every_event_once(redis, consumer, state):
    running, done, sent = consumer(state).start(), threading.Event(), []

    def feed() -> None:
        while not done.wait(0.01):  # some 5,000 events a second
            send(redis, *(event(number) for number in range(len(sent), len(sent) + 50)))
            sent.extend(range(len(sent), len(sent) + 50))

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        for _ in range(3):
            before = n_events(state)
            until("more is in", lambda before=before: n_events(state) > before)
            assert running.end(signal.SIGKILL) == -signal.SIGKILL
            running.start()
    finally:
        done.set()
        feeding.join()
    until("all are in", lambda: n_events(state) >= len(sent))
    until("all are committed", lambda: n_pending(redis) == 0)
    assert running.end(signal.SIGTERM) == 0
    each_once(state, sent)
    assert running.letters.read_bytes() == b""


def test_killed_between_store_and_commit_it_stores_nothing_twice(redis, consumer, tmp_path):
    place = str(tmp_path / "state.sqlite3")
    running = consumer(place).start()
    locked = sqlite3.connect(place, isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    send(redis, *(event(number) for number in range(10)))
    until("the events are in hand", lambda: n_pending(redis) == 10)
    redis.client_pause(60_000, all=False)  # no XACK from here on
    locked.execute("ROLLBACK")
    locked.close()
    until("they are in the store", lambda: n_events(place) == 10)
    assert n_pending(redis) == 10
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    redis.client_unpause()

    running.start()
    until("they are committed", lambda: n_pending(redis) == 0)
    assert running.end(signal.SIGTERM) == 0
    assert "accepted 0, known already 10" in running.said
    each_once(place, range(10))


def test_it_waits_for_a_redis_that_is_away_and_can_be_stopped_meanwhile(tmp_path):
    require_redis()
    server = RedisServer(tmp_path / "redis").start()
    running = ConsumerProcess(tmp_path, server.url, str(tmp_path / "state.sqlite3"))
    try:
        running.start()
        server.kill()
        until("it says so", lambda: "trying again" in running.said)
        server.start()
        with Redis.from_url(server.url) as redis:
            send(redis, event(1))
        until("the event is in", lambda: n_events(str(tmp_path / "state.sqlite3")) == 1)
        server.kill()
        until("it says so again", lambda: running.said.rstrip().splitlines()[-1].startswith("trying again"))
        assert running.end(signal.SIGTERM) == 0
    finally:
        running.end(signal.SIGKILL)
        server.kill()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--source", "events.jsonl"], "events can be read from a Redis stream"),
        (["--state", "postgres://here"], "there is no state store for postgres://"),
        (["--dead-letters", "/proc/letters"], "cannot be written to /proc/letters"),
        (["--stream", "a-string"], "stream a-string of Redis at 127.0.0.1"),
        (["--settings", "no-such.yaml"], "cannot read settings from no-such.yaml"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(redis, server, tmp_path, options, reason):
    redis.set("a-string", "no stream")
    usual = ["--source", server.url, "--state", str(tmp_path / "state.sqlite3")]
    command = [RAYSYS, "consume", *usual, "--dead-letters", str(tmp_path / "letters"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


def test_state_and_dead_letters_are_in_the_home_folder_by_default(redis, server, tmp_path):
    command = [RAYSYS, "consume", "--source", server.url]
    environment = {**os.environ, "HOME": str(tmp_path)}
    running = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        send(redis, event(1))
        place = tmp_path / ".raysys" / "state.sqlite3"
        until("the event is in", lambda: place.exists() and events_in(str(place)))
        assert (tmp_path / ".raysys" / "dead-letters.jsonl").exists()
    finally:
        running.terminate()
        running.wait(DEADLINE_S)
    assert running.returncode == 0


def test_import_events_writes_to_the_home_folder_by_default(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu1,a,2024-01-01T00:00:00Z\n")
    (tmp_path / "items.csv").write_text("item_id,title\na,one\n")
    (tmp_path / "build.yaml").write_text("catalog: {path: items.csv}\nevents: {path: events.csv}\n")
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([RAYSYS, "import-events", "build.yaml"], env=environment, cwd=tmp_path, check=True, timeout=60)
    assert len(events_in(str(tmp_path / ".raysys" / "state.sqlite3"))) == 1
