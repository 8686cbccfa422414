"""The Redis store on a real redis-server: the suite of every store, and what only Redis can get wrong."""

import asyncio
import logging
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis
from redis_server import RedisServer, require_redis, running_redis
from state_suite import OpenStore, StateStoreSuite, draft, event, events_of, read, typical_events, written

from raysys.errors import ConfigError, Unavailable
from raysys.state.redis import RedisState
from raysys.types import Person

pytestmark = pytest.mark.redis

TIMEOUT_S = 10.0  # a busy disk can take a second for an fsync
PASSWORD = "s3cret-Pässword"


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the tests that leave it as it was."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts servers of the test's own."""
    require_redis()
    servers: list[RedisServer] = []

    def start(**settings: str) -> RedisServer:
        servers.append(RedisServer(tmp_path / f"redis-{len(servers)}", **settings))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
async def admin(shared_server: RedisServer) -> AsyncIterator[Redis]:
    """A plain client of the shared server, which is empty now."""
    async with Redis.from_url(shared_server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def open_on() -> AsyncIterator[Callable[..., RedisState]]:
    """Opens stores on a URL, closed when the test ends."""
    stores: list[RedisState] = []

    def open_one(url: str, timeout_s: float = TIMEOUT_S) -> RedisState:
        stores.append(RedisState(url, timeout_s))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.close()


class TestRedisState(StateStoreSuite):
    max_bytes_per_event = 670.0

    @pytest.fixture
    def opener(self, shared_server: RedisServer, admin: Redis) -> OpenStore:
        async def open_store() -> RedisState:
            return RedisState(shared_server.url, TIMEOUT_S)

        return open_store


# A server that dies


async def test_what_was_acknowledged_survives_a_kill_of_redis(start_server, open_on):
    """Three rounds: write from several tasks, kill -9 in between, start on the same folder, write the same again."""
    server = start_server()
    store = open_on(server.url)
    acknowledged: dict[str, list[str]] = {"events": [], "items": [], "erased": []}

    async def write(writer: int, first: int) -> None:
        for n in range(first, first + 10_000):
            name = f"{writer}-{n}"
            await store.append([event(name, float(n), f"u:{name}"), event(f"kept-{name}", float(n), f"u:kept-{name}")])
            acknowledged["events"].append(f"kept-{name}")
            await store.change_items([draft(name, f"title {name}")], 1.0)
            acknowledged["items"].append(name)
            await store.erase(f"u:{name}")
            acknowledged["erased"].append(name)

    for start in range(3):
        tasks = [asyncio.create_task(write(writer, start * 10_000)) for writer in range(4)]
        await until(lambda wanted=100 * (start + 1): len(acknowledged["erased"]) >= wanted)
        server.kill()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 4
        await asyncio.to_thread(server.start)

    log = [one.event_id for _, one in await store.events_after(0, 1_000_000)]
    assert len(log) == len(set(log))
    assert set(acknowledged["events"]) <= set(log)
    assert not set(acknowledged["erased"]) & set(log)
    assert {f"u:{name}" for name in acknowledged["erased"]} <= set(await store.erased())
    changes = await store.item_changes(0, 1_000_000)
    assert len(changes) == len({change.item_id for change in changes})
    assert set(acknowledged["items"]) <= {change.item_id for change in changes}
    again = [event(event_id, 1.0, f"u:{event_id}") for event_id in acknowledged["events"]]
    assert set(await store.append(again)) == {"duplicate"}
    assert (await read(store, f"u:{acknowledged['events'][0]}")).version <= await store.last_sequence()


async def test_sequences_go_on_after_a_kill(start_server, open_on):
    server = start_server()
    store = open_on(server.url)
    await store.append([event("1"), event("2")])
    (change,) = await written(store, [draft("a")])
    server.kill()
    await asyncio.to_thread(server.start)
    assert await store.last_sequence() == change.sequence
    (later,) = await written(store, [draft("a", "two", expected=change.sequence)])
    assert later.sequence == change.sequence + 1


async def test_a_server_that_is_away_is_unavailable_and_used_again_when_it_is_back(start_server, open_on):
    server = start_server()
    store = open_on(server.url)
    await asyncio.gather(*(store.append([event(str(n))]) for n in range(20)))  # many connections
    server.kill()
    for _ in range(3):
        with pytest.raises(Unavailable, match=f"127.0.0.1:{server.port}"):
            await store.append([event("x")])
    await asyncio.to_thread(server.start)
    assert await asyncio.gather(*(store.append([event(f"y{n}")]) for n in range(20))) == [["accepted"]] * 20
    assert len(await events_of(store)) == 40


async def test_a_server_that_was_never_there_is_unavailable(tmp_path, open_on):
    require_redis()
    server = RedisServer(tmp_path / "redis")
    store = open_on(server.url)
    with pytest.raises(Unavailable, match=str(server.port)):
        await store.last_sequence()
    await asyncio.to_thread(server.start)
    try:
        assert await store.last_sequence() == 0
    finally:
        server.kill()


async def test_a_server_that_hangs_is_unavailable_within_the_timeout(start_server, open_on):
    server = start_server()
    store, fresh = open_on(server.url, timeout_s=0.5), open_on(server.url, timeout_s=0.5)
    await store.append([event("1")])
    server.send_signal(signal.SIGSTOP)
    try:
        for one in (store, fresh):
            start_s = time.monotonic()
            with pytest.raises(Unavailable, match="within"):
                await one.append([event("2")])
            assert 0.4 < time.monotonic() - start_s < 2.0
    finally:
        server.send_signal(signal.SIGCONT)
    # It reads what was sent to it while it hung: whether that counts is open, but never twice.
    await until_answers(store)
    assert (await store.append([event("2")]))[0] in ("accepted", "duplicate")
    assert len(await events_of(store)) == 2


async def test_a_cancelled_call_leaves_no_answer_behind_for_the_next_one(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    for n in range(50):
        await store.append([event(str(n), user=f"u:{n}")])
    for n in range(50):
        call = asyncio.create_task(store.history(f"u:{n}", 10))
        for _ in range(n % 7):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert [one.event_id for one in await events_of(store, "u:7")] == ["7"]


# Settings of the server


async def test_a_server_that_does_not_keep_writes_is_refused(start_server, open_on):
    server = start_server(appendonly="no")
    store = open_on(server.url)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"appendonly no.*config set appendonly yes"):
            await store.append([event("1")])
    async with Redis.from_url(server.url) as client:
        assert await client.dbsize() == 0
        await client.config_set("appendonly", "yes")
    assert await store.append([event("1")]) == ["accepted"]


@pytest.mark.parametrize("appendfsync", ["everysec", "no"])
async def test_a_server_that_can_lose_the_last_writes_is_refused(start_server, open_on, appendfsync):
    server = start_server(appendfsync=appendfsync)
    with pytest.raises(ConfigError, match="config set appendfsync always"):
        await open_on(server.url).append([event("1")])


async def test_a_server_that_evicts_is_refused(start_server, open_on):
    server = start_server(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    with pytest.raises(ConfigError, match="noeviction"):
        await open_on(server.url).last_sequence()


async def test_a_cluster_is_refused(start_server, open_on):
    server = start_server(cluster_enabled="yes")
    with pytest.raises(ConfigError, match="Cluster"):
        await open_on(server.url).last_sequence()


async def test_a_server_that_hides_its_settings_is_used_with_a_warning(start_server, open_on, caplog):
    server = start_server()
    async with Redis.from_url(server.url) as client:
        await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~raysys:*", "+@all", "-config")
    store = open_on(f"redis://app:pw@127.0.0.1:{server.port}")
    assert await store.append([event("1")]) == ["accepted"]
    assert await store.append([event("2")]) == ["accepted"]
    (warning,) = warnings_of(caplog)
    assert "appendonly" in warning
    assert str(server.port) in warning


async def test_a_full_server_refuses_writes_whole_and_still_reads(start_server, open_on):
    server = start_server()
    store = open_on(server.url)
    await store.append([event("1", expires_s=1.0), event("2", user="s:x")])
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory", "1")
        before = await client.dbsize(), await read(store), await read(store, "s:x")
        for write in (
            lambda: store.append([event("3"), event("4")]),
            lambda: store.put_person(Person("u:ann")),
            lambda: store.link("s:x", "u:ann"),
            lambda: store.forget("u:ann", ["1"]),
            lambda: store.erase("u:ann"),
            lambda: store.expire(2.0),
            lambda: store.change_items([draft("a")], 1.0),
            lambda: store.put_vectors({b"k": np.zeros(2, np.float32)}),
        ):
            with pytest.raises(Unavailable, match=str(server.port)):
                await write()
        assert (await client.dbsize(), await read(store), await read(store, "s:x")) == before
        assert await store.erased() == {}
        await client.config_set("maxmemory", "0")
    assert await store.append([event("3")]) == ["accepted"]


async def test_a_replica_is_unavailable_for_writes(start_server, open_on):
    server = start_server()
    store = open_on(server.url)
    await store.append([event("1")])
    async with Redis.from_url(server.url) as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(Unavailable):
            await store.append([event("2")])
        await client.execute_command("REPLICAOF", "NO", "ONE")
    assert await store.append([event("2")]) == ["accepted"]


# The password


async def test_the_password_is_in_no_message(start_server, open_on, caplog):
    caplog.set_level(logging.DEBUG)
    server = start_server(requirepass=PASSWORD)
    store = open_on(server.url)
    assert await store.append([event("1")]) == ["accepted"]
    wrong = open_on(f"redis://:{PASSWORD}x@127.0.0.1:{server.port}")
    none = open_on(f"redis://127.0.0.1:{server.port}")
    said = [repr(store), await message_of(wrong, ConfigError), await message_of(none, ConfigError)]
    server.kill()
    said.append(await message_of(store, Unavailable))
    assert all(str(server.port) in message for message in said[1:])
    for url in (
        f"redis://:{PASSWORD}/@host:6379",
        f"rediss://u:{PASSWORD}@host?no_such_option=1",
        f"ftp://:{PASSWORD}@h",
    ):
        with pytest.raises(ConfigError) as caught:
            RedisState(url)
        said.append(everything_of(caught.value))
    assert "s3cret" not in " ".join([*said, caplog.text])


# Round trips


async def test_a_history_is_one_round_trip(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    await store.append([event(str(n), float(n)) for n in range(20)])
    await store.put_person(Person("u:ann"))
    version = (await read(store)).version
    parts = {"evalsha", "hget", "zrevrange", "hmget"}  # the script, and what it calls inside the server
    assert await commands_of(admin, store.history("u:ann", 1_000)) == dict.fromkeys(parts, 1) | {"hget": 3}
    assert await commands_of(admin, store.history("u:ann", 1_000, version)) == {"evalsha": 1, "hget": 2}


async def test_several_histories_are_one_round_trip(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    await store.append([event(f"{n}", float(n), f"u:{n % 5}") for n in range(20)])
    made = await commands_of(admin, store.histories([f"u:{n}" for n in range(5)], 10))
    assert made == {"evalsha": 1, "hget": 15, "zrevrange": 5, "hmget": 5}


async def test_a_long_history_is_read_whole(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    for start in range(0, 20_000, 2_000):
        await store.append([event(f"{n:05d}", float(n)) for n in range(start, start + 2_000)])
    assert [int(one.event_id) for one in await events_of(store, limit=12_345)] == list(range(19_999, 7_654, -1))
    assert (await store.erase("u:ann"))["events"] == 20_000
    assert set(await admin.keys()) == {b"raysys:erased", b"raysys:sequence"}


async def test_expiry_forgetting_and_erasure_leave_no_trace_of_an_event(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    await store.append([event(f"secret-{n}", user="s:x", expires_s=float(n)) for n in (1, 9, 10)])
    await store.put_vectors({b"secret-4": np.zeros(2, np.float32), b"secret-5": np.zeros(2, np.float32)})
    await store.link("s:x", "u:ann")
    await store.put_person(Person("u:ann", description="secret-3"))
    assert await store.expire(5.0) == 1
    assert await store.forget("s:x", ["secret-9", "secret-9", "never"], [b"secret-4"]) == 1
    await store.erase("u:ann", [b"secret-5"])
    assert set(await admin.keys()) == {b"raysys:erased", b"raysys:sequence"}


async def test_sessions_and_forgotten_events_of_a_user(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    for session in ("s:é", "s:b", "s:a"):
        await store.append([event(f"of {session}", user=session)])
        await store.link(session, "u:ann")
    await store.append([event("bob's", user="u:bob")])
    assert await store.sessions("u:ann") == await store.sessions("s:b") == ["s:a", "s:b", "s:é"]
    assert await store.sessions("u:bob") == []
    before = await store.versions(["u:ann", "u:bob"])
    assert await store.forget("u:ann", ["bob's", "never"]) == 0
    assert await store.versions(["u:ann", "u:bob"]) == before
    assert await store.forget("s:a", ["of s:b", "bob's"]) == 1
    assert {one.event_id for one in await events_of(store)} == {"of s:é", "of s:a"}
    assert (await read(store)).version == await store.last_sequence() > before["u:ann"]
    assert await store.append([event("of s:b")]) == ["accepted"]


# Memory


async def test_people_and_vectors_take_no_more_than_stated(admin, shared_server, open_on):
    store = open_on(shared_server.url)
    empty = (await store.size())["bytes"]
    await store.append([replace(one, user=f"u:user-{n:06d}") for n, one in enumerate(typical_events(2_000))])
    people = (await store.size())["bytes"]
    await store.put_vectors({n.to_bytes(32, "big"): np.zeros(384, np.float32) for n in range(1_000)})
    vectors = (await store.size())["bytes"]
    assert 500 < (people - empty) / 2_000 < 1_100
    assert 1_536 < (vectors - people) / 1_000 < 2_100


# What the tests above ask with


async def until(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)


async def until_answers(store: RedisState, deadline_s: float = 30.0) -> None:
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                await store.last_sequence()
                return
            except Unavailable:
                await asyncio.sleep(0.005)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "raysys.state.redis"]


async def message_of(store: RedisState, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        await store.last_sequence()
    return everything_of(caught.value)


def everything_of(error: BaseException) -> str:
    """The messages of an error and of those it came from, as a log would print them."""
    return "".join(traceback.format_exception(error))


async def commands_of(admin: Redis, call: Awaitable[object]) -> dict[str, int]:
    """Which commands the server ran for a call, those inside scripts included."""
    await admin.config_resetstat()
    await call
    statistics = await admin.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): command["calls"] for name, command in statistics.items()}
    return {name: calls for name, calls in counted.items() if not name.startswith(("info", "config"))}
