"""Events from a real Redis stream into a real store: nothing lost, nothing twice, poison put aside."""

import asyncio
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis_server import RedisServer, running_redis

from raysys.errors import ConfigError, InvalidInput, Unavailable
from raysys.state.open import open_state, open_stream
from raysys.state.redis import RedisState
from raysys.state.redis_stream import RedisStreamSource
from raysys.state.sqlite import SqliteState
from raysys.state.stream import DeadLetters, EventSource, StreamEntry, consume
from raysys.types import Event

pytestmark = pytest.mark.redis

STREAM, GROUP = "clicks", "raysys"
WAIT_S = 0.02


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[SqliteState]:
    state = SqliteState(tmp_path / "state.sqlite3")
    yield state
    await state.close()


@pytest.fixture
async def source(server: RedisServer) -> AsyncIterator[Callable[..., RedisStreamSource]]:
    """Opens sources of the server's stream, closed when the test ends."""
    sources: list[RedisStreamSource] = []

    def open_source(consumer: str = "c1", claim_idle_s: float = 60.0) -> RedisStreamSource:
        sources.append(RedisStreamSource(server.url, STREAM, GROUP, consumer, 10.0, claim_idle_s))
        return sources[-1]

    yield open_source
    for one in sources:
        await one.close()


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    return tmp_path / "dead.jsonl"


def parse(raw: dict[str, Any]) -> Event:
    if "event_id" not in raw:
        raise InvalidInput("invalid", "event_id: Field required")
    return Event(raw["event_id"], "view", raw.get("user", "u:ann"), "a", float(raw.get("at", 1.0)))


async def send(client: Redis, *events: dict[str, Any]) -> list[str]:
    return [(await client.xadd(STREAM, {"event": orjson.dumps(event)})).decode() for event in events]


async def pending(client: Redis) -> int:
    return int((await client.xpending(STREAM, GROUP))["pending"])


async def ids_of(state: SqliteState | RedisState) -> list[str]:
    return [event.event_id for _, event in await state.events_after(0, 100_000)]


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = 30.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.005)


async def until_holds(state: SqliteState | RedisState, n: int) -> None:
    async def holds() -> bool:
        try:
            return (await state.size())["events"] >= n
        except Unavailable:
            return False

    await until(holds)


@asynccontextmanager
async def consuming(
    source: EventSource, state: SqliteState | RedisState, dead: Path, max_events: int = 500
) -> AsyncIterator[asyncio.Task[Counter[str]]]:
    """A running consumer, told to stop at the end; its counts are the task's result."""
    stop = asyncio.Event()
    task = asyncio.create_task(consume(source, parse, state, DeadLetters(dead), stop, max_events, WAIT_S))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait([task], timeout=10.0)
    assert task.done()


def letters(dead: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in dead.read_bytes().splitlines()]


class Interrupted:
    """A source that forwards to a real one; ``commit`` waits for ever, so that the consumer dies before it."""

    def __init__(self, source: RedisStreamSource) -> None:
        self._source = source
        self.at_commit = asyncio.Event()

    async def read(self, max_events: int, wait_s: float) -> list[StreamEntry]:
        return await self._source.read(max_events, wait_s)

    async def commit(self, entry_ids: Sequence[str]) -> None:
        self.at_commit.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._source.close()


async def die_before_commit(source: RedisStreamSource, state: SqliteState | RedisState, dead: Path) -> None:
    """Consume one batch into the store, and be cancelled between append and commit."""
    interrupted = Interrupted(source)
    task = asyncio.create_task(consume(interrupted, parse, state, DeadLetters(dead), asyncio.Event(), 500, WAIT_S))
    await asyncio.wait_for(interrupted.at_commit.wait(), 10.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_events_arrive_in_order_those_before_the_group_too(client, source, state, dead):
    await send(client, *({"event_id": str(n)} for n in range(5)))
    async with consuming(source(), state, dead, max_events=3) as task:
        await until_holds(state, 5)
        await send(client, *({"event_id": str(n)} for n in range(5, 20)))
        await until_holds(state, 20)
    assert await ids_of(state) == [str(n) for n in range(20)]
    assert task.result() == {"accepted": 20}
    assert await pending(client) == 0
    assert not dead.exists()


async def test_a_consumer_that_died_before_its_commit_gets_the_entries_again_and_nothing_doubles(
    client, source, state, dead
):
    await send(client, *({"event_id": str(n)} for n in range(10)))
    await die_before_commit(source(), state, dead)
    assert len(await ids_of(state)) == await pending(client) == 10
    version = (await state.versions(["u:ann"]))["u:ann"]
    await send(client, {"event_id": "10"})
    async with consuming(source(), state, dead) as task:
        await until_holds(state, 11)
    assert await ids_of(state) == [str(n) for n in range(11)]
    assert task.result() == {"duplicate": 10, "accepted": 1}
    assert (await state.versions(["u:ann"]))["u:ann"] == version + 1
    assert await pending(client) == 0


async def test_own_entries_are_read_again_page_by_page(client, source):
    sent = await send(client, *({"event_id": str(n)} for n in range(7)))
    assert [entry.entry_id for entry in await source().read(100, WAIT_S)] == sent
    again = source()
    pages = [[entry.entry_id for entry in await again.read(3, WAIT_S)] for _ in range(4)]
    assert pages == [sent[:3], sent[3:6], sent[6:], []]


async def test_another_consumer_takes_over_what_a_dead_one_left(client, source, state, dead):
    await send(client, *({"event_id": str(n)} for n in range(10)))
    await die_before_commit(source("dead"), state, dead)
    assert await pending(client) == 10
    async with consuming(source("alive", claim_idle_s=0.1), state, dead, max_events=3) as task:
        await until(lambda: none_pending(client))
    assert task.result() == {"duplicate": 10}
    assert await ids_of(state) == [str(n) for n in range(10)]


async def test_what_another_consumer_works_on_is_left_alone(client, source):
    await send(client, {"event_id": "1"})
    assert len(await source("c1").read(10, WAIT_S)) == 1
    assert await source("c2").read(10, WAIT_S) == []


async def test_two_consumers_share_the_stream(client, source, state, dead):
    async with (
        consuming(source("c1"), state, dead, max_events=5) as first,
        consuming(source("c2"), state, dead, max_events=5) as second,
    ):
        await send(client, *({"event_id": str(n)} for n in range(200)))
        await until_holds(state, 200)
        await until(lambda: none_pending(client))
    assert first.result() + second.result() == {"accepted": 200}
    assert first.result()["accepted"] > 0
    assert second.result()["accepted"] > 0


async def none_pending(client: Redis) -> bool:
    return await pending(client) == 0


async def test_poison_goes_to_the_dead_letters_and_the_stream_moves_on(client, source, state, dead):
    poison: list[tuple[dict[Any, Any], str]] = [
        ({"event": b"{not json"}, "no JSON"),
        ({"event": b"[1]"}, "no JSON object"),
        ({"event": b'{"type": "view"}'}, "event_id: Field required"),
        ({"other": b"x"}, "no such field"),
        ({"event": b"\xff\xfe", b"\xff": b"\xff"}, "no JSON"),
        ({"event": b'{"event_id": "refused", "user": "u:\\u0000"}'}, "NUL"),  # it is the store that refuses this one
    ]
    for n, (fields, _) in enumerate(poison):
        await send(client, {"event_id": str(n)})
        await client.xadd(STREAM, fields)
    await send(client, {"event_id": "last"})
    async with consuming(source(), state, dead) as task:
        await until(lambda: holds_id(state, "last"))
        await until(lambda: none_pending(client))
    assert await ids_of(state) == ["0", "1", "2", "3", "4", "5", "last"]
    assert task.result() == {"accepted": 7, "rejected": 6}
    found = {tuple(letter["fields"].items()): letter for letter in letters(dead)}
    assert len(found) == len(poison)
    for fields, reason in poison:
        as_text = {
            (name.decode(errors="backslashreplace") if isinstance(name, bytes) else name): value.decode(
                errors="backslashreplace"
            )
            for name, value in fields.items()
        }
        letter = found[tuple(as_text.items())]
        assert reason in letter["reason"]
        assert letter["entry_id"]
    assert stat.S_IMODE(dead.stat().st_mode) == 0o600


async def holds_id(state: SqliteState | RedisState, event_id: str) -> bool:
    return event_id in await ids_of(state)


async def test_poison_is_on_disk_before_it_is_committed(client, source, state, dead):
    await client.xadd(STREAM, {"event": b"poison"})
    await die_before_commit(source(), state, dead)
    (letter,) = letters(dead)
    assert letter["fields"] == {"event": "poison"}
    assert await pending(client) == 1
    async with consuming(source(), state, dead):
        await until(lambda: none_pending(client))
    assert [one["entry_id"] for one in letters(dead)] == [letter["entry_id"]] * 2


async def test_dead_letters_that_cannot_be_written_stop_the_consumer_and_lose_nothing(client, source, state, tmp_path):
    await client.xadd(STREAM, {"event": b"poison"})
    with pytest.raises(OSError, match="dead"):
        await consume(source(), parse, state, DeadLetters(tmp_path / "no" / "dead"), asyncio.Event(), 500, WAIT_S)
    assert await pending(client) == 1


def test_a_line_that_was_cut_off_does_not_swallow_the_next(dead):
    dead.write_bytes(b'{"entry_id": "1", "fie')
    DeadLetters(dead).add([(StreamEntry("2", {"event": b"x"}), "why")])
    DeadLetters(dead).add([(StreamEntry("3", {}), "why\ud800")])
    first, second, third = dead.read_bytes().splitlines()
    assert first == b'{"entry_id": "1", "fie'
    assert orjson.loads(second) == {"entry_id": "2", "fields": {"event": "x"}, "reason": "why"}
    assert orjson.loads(third)["entry_id"] == "3"


async def test_nothing_is_lost_while_the_store_is_away(client, source, tmp_path, dead):
    """The store is a Redis of its own, killed in the middle and started again on the same folder."""
    storage = RedisServer(tmp_path / "storage").start()
    state = RedisState(storage.url)
    try:
        async with consuming(source(), state, dead, max_events=10) as task:
            await send(client, *({"event_id": str(n)} for n in range(100)))
            await until_holds(state, 30)
            storage.kill()
            await send(client, *({"event_id": str(n)} for n in range(100, 300)))
            await until(lambda: some_pending(client))
            await asyncio.to_thread(storage.start)
            await until_holds(state, 300)
            await until(lambda: none_pending(client))
        assert sorted(await ids_of(state), key=int) == [str(n) for n in range(300)]
        assert sum(task.result().values()) == 300
    finally:
        await state.close()
        storage.kill()


async def some_pending(client: Redis) -> bool:
    return await pending(client) > 0


async def test_nothing_is_lost_while_the_stream_is_away(server, source, state, dead):
    async with consuming(source(), state, dead):
        async with Redis.from_url(server.url) as client:
            await send(client, *({"event_id": str(n)} for n in range(50)))
        server.kill()
        await asyncio.to_thread(server.start)
        async with Redis.from_url(server.url) as client:
            await send(client, *({"event_id": str(n)} for n in range(50, 100)))
        await until_holds(state, 100)
    assert sorted(await ids_of(state), key=int) == [str(n) for n in range(100)]


async def test_a_consumer_that_waits_for_the_store_can_be_stopped(client, source, state, dead):
    await send(client, {"event_id": "1"})
    await state.close()
    async with consuming(source(), state, dead) as task:
        await until(lambda: group_has(client, 1))
    assert task.result() == {}
    assert await pending(client) == 1


async def group_has(client: Redis, n: int) -> bool:
    return bool(await client.exists(STREAM)) and bool(await client.xinfo_groups(STREAM)) and await pending(client) == n


async def test_a_stream_that_was_removed_is_followed_again(client, source, state, dead):
    async with consuming(source(), state, dead):
        await send(client, {"event_id": "1"})
        await until_holds(state, 1)
        await client.delete(STREAM)
        await send(client, {"event_id": "2"})
        await until_holds(state, 2)
    assert await ids_of(state) == ["1", "2"]


async def test_an_entry_that_was_trimmed_before_its_commit_stops_nobody(client, source, state, dead):
    (trimmed,) = await send(client, {"event_id": "1"})
    await source().read(10, WAIT_S)
    await client.xtrim(STREAM, maxlen=0)
    await send(client, {"event_id": "2"})
    async with consuming(source(), state, dead):
        await until_holds(state, 1)
        await until(lambda: none_pending(client))
    assert await ids_of(state) == ["2"]
    assert [letter["entry_id"] for letter in letters(dead)] == [trimmed]


async def test_what_redis_handed_out_in_a_lost_answer_is_read_again(client, source):
    sent = await send(client, {"event_id": "1"})
    one = source()
    assert await one.read(10, WAIT_S) != []
    assert await one.read(10, WAIT_S) == []
    reading = asyncio.create_task(one.read(10, 5.0))
    await until(lambda: someone_waits(client))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert [entry.entry_id for entry in await one.read(10, WAIT_S)] == sent


async def someone_waits(client: Redis) -> bool:
    return (await client.info("clients"))["blocked_clients"] > 0


# How stores and streams are opened


async def test_a_path_is_a_file_and_a_url_is_redis(tmp_path, server):
    file, redis = open_state(str(tmp_path / "a.sqlite3")), open_state(server.url)
    unix = open_state("unix:///run/no/such.sock")
    try:
        assert isinstance(file, SqliteState)
        assert isinstance(redis, RedisState)
        assert await redis.last_sequence() == await file.last_sequence() == 0
        with pytest.raises(Unavailable, match=r"/run/no/such\.sock"):
            await unix.last_sequence()
    finally:
        for one in (file, redis, unix):
            await one.close()


async def test_a_stream_is_opened_by_its_url(client, server):
    await send(client, {"event_id": "1"})
    source = open_stream(server.url, STREAM, GROUP, "c1")
    assert [orjson.loads(entry.fields["event"]) for entry in await source.read(10, WAIT_S)] == [{"event_id": "1"}]
    await source.close()


def test_another_scheme_is_refused_with_what_is_possible():
    with pytest.raises(ConfigError, match=r"mysql://.*path.*redis://, rediss:// or unix://"):
        open_state("mysql://:secret@host/db")
    for location in ("kafka://host", "events.jsonl"):
        with pytest.raises(ConfigError, match="redis://"):
            open_stream(location, STREAM, GROUP, "c1")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for opening in (
        lambda: open_state("redis://localhost"),
        lambda: open_stream("redis://localhost", STREAM, GROUP, "c1"),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'raysys\[redis\]'"):
            opening()
