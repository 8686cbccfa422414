"""The SQLite store under the shared suite, and what only a file can get wrong."""

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from state_suite import ANN, StateStoreSuite, draft, event, events_of, gone, log_of, read, typical_events, written

from raysys.errors import ConfigError, Unavailable
from raysys.state.protocol import History
from raysys.state.sqlite import SCHEMA_VERSION, SqliteState
from raysys.types import Event, Person

VERSION_1 = """
CREATE TABLE events (
    event_id TEXT PRIMARY KEY NOT NULL, user TEXT NOT NULL, timestamp_s REAL NOT NULL, kind TEXT NOT NULL,
    item_id TEXT, value REAL, details TEXT NOT NULL
);
CREATE INDEX events_of_user ON events (user, timestamp_s, event_id);
CREATE TABLE users (user TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO events VALUES
    ('z', 'u:ann', 9.5, 'rating', 'a', 4.0,
     '{"text":"très 🙂","recommendation_id":"rec","properties":{"x":[1,null]}}'),
    ('y', 'u:bob', 1.0, 'view', 'a', NULL, '{"text":null,"recommendation_id":null,"properties":{}}'),
    ('x', 'u:ann', 2.0, 'search', NULL, NULL, '{"text":null,"recommendation_id":null,"properties":{}}'),
    ('w', 's:vic', 3.0, 'view', 'b', NULL, '{"text":null,"recommendation_id":null,"properties":{}}');
INSERT INTO users VALUES ('u:ann', 2), ('u:bob', 1), ('s:vic', 1);
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "state.sqlite3"


@pytest.fixture
async def store(path):
    store = SqliteState(path)
    yield store
    await store.close()


class TestSqliteState(StateStoreSuite):
    max_bytes_per_event = 300

    @pytest.fixture
    def opener(self, path):
        async def opener() -> SqliteState:
            return SqliteState(path)

        return opener


def run_sql(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(script)
    connection.close()


def user_version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return version


# Opening


async def test_the_file_is_for_its_owner_only(path, store):
    await store.append([event("1")])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


async def test_a_commit_is_on_the_disk_before_a_write_returns(store):
    """What no test can see without cutting the power: the settings that SQLite promises it for."""
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path):
    run_sql(path, f"CREATE TABLE theirs (x); PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match="newer version"):
        SqliteState(path)
    assert user_version(path) == SCHEMA_VERSION + 1


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, not a database\n" * 100)
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        SqliteState(path)
    assert path.read_text() == "these are my notes, not a database\n" * 100


def test_a_path_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/state\.sqlite3"):
        SqliteState(tmp_path / "file" / "state.sqlite3")
    with pytest.raises(ConfigError, match="state"):
        SqliteState(tmp_path)


async def test_a_new_file_that_another_process_is_writing_is_waited_for(path, monkeypatch):
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("raysys.state.sqlite.time.sleep", lambda _: other.execute("COMMIT"))
    store = SqliteState(path)
    assert await store.append([event("1")]) == ["accepted"]
    await store.close()
    other.close()


# Files of schema version 1


async def test_a_file_of_version_1_is_taken_over(path):
    run_sql(path, VERSION_1)
    store = SqliteState(path)
    rich = Event("z", "rating", "u:ann", "a", 9.5, 4.0, "très 🙂", "rec", {"x": [1, None]})
    search = Event("x", "search", "u:ann", None, 2.0)
    assert [(sequence, one.event_id) for sequence, one in await log_of(store)] == [
        (1, "z"),
        (2, "y"),
        (3, "x"),
        (4, "w"),
    ]
    assert await read(store) == History("u:ann", 3, (rich, search))
    assert await store.versions(["u:ann", "u:bob", "s:vic"]) == {"u:ann": 3, "u:bob": 2, "s:vic": 4}
    assert await store.last_sequence() == 4
    assert await store.append([event("z"), event("new", 20.0)]) == ["duplicate", "accepted"]
    assert (await read(store)).version == 5
    await store.link("s:vic", "u:bob")
    assert len(await events_of(store, "u:bob")) == 2
    await store.close()
    again = SqliteState(path)
    assert await again.last_sequence() == 6
    await again.close()


async def test_an_empty_file_of_version_1_is_taken_over(path):
    run_sql(path, VERSION_1 + "; DELETE FROM events; DELETE FROM users")
    store = SqliteState(path)
    assert await store.last_sequence() == 0
    assert await store.append([event("1")]) == ["accepted"]
    assert await store.last_sequence() == 1
    await store.close()


def test_a_file_of_version_1_is_taken_over_wholly_or_not_at_all(path):
    run_sql(path, VERSION_1 + "; CREATE TABLE vectors (theirs)")
    with pytest.raises(ConfigError, match="vectors"):
        SqliteState(path)
    assert user_version(path) == 1
    run_sql(path, "SELECT version FROM users; SELECT details FROM events; DROP INDEX events_of_user")


@pytest.mark.parametrize("script", ["", VERSION_1])
async def test_a_file_can_be_set_up_by_many_at_once(path, script):
    run_sql(path, script)
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: SqliteState(path), range(8)))
    n_before = len(await log_of(stores[0]))
    for n, store in enumerate(stores):
        assert await store.append([event(str(n))]) == ["accepted"]
    assert [len(await log_of(store)) for store in stores] == [n_before + 8] * 8
    for store in stores:
        await store.close()


# Locks, and disks that are full


async def test_a_locked_file_refuses_writes_and_still_answers_reads(path):
    store = SqliteState(path, busy_timeout_s=0.01)
    await store.append([event("1")])
    before = await read(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await store.append([event("2")])
    with pytest.raises(Unavailable, match="locked"):
        await store.erase("u:ann")
    with pytest.raises(Unavailable, match="locked"):
        SqliteState(path, busy_timeout_s=0.01)
    assert await read(store) == before
    other.execute("ROLLBACK")
    other.close()
    assert await store.append([event("2")]) == ["accepted"]
    await store.close()


async def test_reads_go_on_while_a_write_waits(path, store):
    await store.append([event("1")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(store.append([event("2", 2.0)]))
    for _ in range(100):
        assert await events_of(store) == (event("1"),)
        await asyncio.sleep(0)
    assert not write.done()
    other.execute("ROLLBACK")
    other.close()
    assert await write == ["accepted"]
    assert await events_of(store) == (event("2", 2.0), event("1"))


async def test_a_write_that_was_begun_is_finished_before_the_store_closes(path):
    store = SqliteState(path)
    write = asyncio.create_task(store.append([event("1")]))
    await asyncio.sleep(0)
    await store.close()
    assert await write == ["accepted"]
    again = SqliteState(path)
    assert await events_of(again) == (event("1"),)
    await again.close()


async def test_a_full_file_is_unavailable_and_loses_nothing(store):
    await store.append([event("1")])
    before = await read(store)
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    for write in (
        store.append([event(f"more-{n}") for n in range(1_000)]),
        store.change_items([draft(f"i{n}", "x" * 100) for n in range(1_000)], 1.0),
        store.put_vectors({b"k": np.zeros(5_000, np.float32)}),
        store.put_person(Person("u:ann", description="x" * 10_000)),
    ):
        with pytest.raises(Unavailable, match="full"):
            await write
        assert await read(store) == before
        assert await store.last_sequence() == before.version
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert await store.append([event("2")]) == ["accepted"]
    assert (await read(store)).version == before.version + 1


FILLS_THE_DISK = """
    import asyncio, resource, sys
    from raysys.errors import Unavailable
    from raysys.state.sqlite import SqliteState
    from raysys.types import Event

    async def main():
        store = SqliteState(sys.argv[1])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        accepted = []
        while len(accepted) < 10_000:
            try:
                await store.append([Event(f"e{len(accepted)}", "view", "u:ann", "i", float(len(accepted)))])
            except Unavailable:
                break
            accepted.append(len(accepted))
        assert 5 < len(accepted) < 10_000, len(accepted)
        def ids(history):
            return [event.event_id for event in history.events]
        wanted = [f"e{n}" for n in reversed(accepted)]
        assert ids(await store.history("u:ann", 10_000)) == wanted
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert await store.append([Event("after", "view", "u:ann", "i", -1.0)]) == ["accepted"]
        assert ids(await store.history("u:ann", 10_000)) == [*wanted, "after"]
        await store.close()
        print(len(accepted))

    asyncio.run(main())
"""


async def test_a_disk_that_takes_no_more_is_unavailable_and_readable(path):
    """The limit on the size of a file stops the write in the operating system, as a full disk does."""
    command = [sys.executable, "-c", textwrap.dedent(FILLS_THE_DISK), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    store = SqliteState(path)
    assert len(await events_of(store, limit=10_000)) == int(done.stdout) + 1
    await store.close()


# Erased bytes


def bytes_of(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


async def fill(store: SqliteState, rng: random.Random, marks: list[str]) -> None:
    """Months in small: events, links, people and expiry that make SQLite move rows from page to page."""
    for n in range(40):
        mark = rng.choice(marks)
        events = [
            Event(
                f"{rng.getrandbits(64):x}{mark}",
                "search",
                rng.choice((f"u:{mark}", f"s:{mark}-{rng.randrange(6)}")),
                None,
                rng.random(),
                text=mark * rng.choice((2, 20, 400)),
                expires_s=rng.choice((None, None, 5.0)),
            )
            for mark in rng.choices(marks, k=rng.randrange(40))
        ]
        await store.append(events)
        await store.put_person(Person(f"u:{mark}", description=f"hears {mark}" * rng.randrange(200)))
        await store.put_vectors({f"{mark}{n}".encode(): np.zeros(300, np.float32)})
        if rng.random() < 0.3:
            await store.link(f"s:{mark}-{rng.randrange(6)}", f"u:{mark}")
        if rng.random() < 0.1:
            await store.expire(5.0)


@pytest.mark.parametrize("seed", range(3))
async def test_the_bytes_of_an_erased_person_are_gone_from_the_files(path, store, seed):
    marks = [f"mark{n:02d}!" for n in range(30)]
    await fill(store, random.Random(seed), marks)
    for mark in marks[::3]:
        assert mark.encode() in bytes_of(path)
        for key in (f"u:{mark}", *(f"s:{mark}-{n}" for n in range(6))):
            await store.erase(key, [f"{mark}{n}".encode() for n in range(40)])
        left = bytes_of(path)
        # Only the keys that say who was erased are still there.
        assert left.count(mark.encode()) == left.count(f"u:{mark}".encode()) + left.count(f"s:{mark}".encode())
    assert {one.text for _, one in await log_of(store)} >= {mark * 2 for mark in marks[1::3]}


async def test_bytes_that_a_reader_holds_back_go_with_the_next_expiry(path):
    store = SqliteState(path, busy_timeout_s=0.01)
    await store.append([event("1", text="a secret of ann")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM events").fetchall()
    assert (await store.erase("u:ann"))["events"] == 1
    assert await read(store) == History("u:ann")
    assert b"a secret of ann" in bytes_of(path)
    other.close()
    await store.expire(0.0)
    assert b"a secret of ann" not in bytes_of(path)
    await store.close()


async def test_a_file_that_cannot_be_written_anew_does_not_undo_an_erasure(path, store, monkeypatch, caplog):
    def full(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    await store.append([event("1", text="a secret of ann")])
    with monkeypatch.context() as patch:
        patch.setattr("raysys.state.sqlite._scrub", full)
        assert (await store.erase("u:ann"))["events"] == 1
    assert "full" in caplog.text
    assert await read(store) == History("u:ann")
    await store.expire(0.0)
    assert b"a secret of ann" not in bytes_of(path)


async def test_the_file_is_written_anew_only_where_somebody_was_erased(path, store):
    statements: list[str] = []
    store._writer.set_trace_callback(statements.append)
    await store.append([event("1")])
    await store.erase("u:nobody")
    await store.expire(0.0)
    assert "VACUUM" not in statements
    await asyncio.gather(store.erase("u:ann"), store.erase("u:ann"))
    await store.expire(0.0)
    assert statements.count("VACUUM") == 1


# Processes


async def write_and_read(path: Path, writer: int) -> None:
    store = SqliteState(path)
    for n in range(40):
        at = float(n)
        await store.append([event(f"{writer}-{n}", at), event(f"shared-{n}", at)])
        assert f"{writer}-{n}" in {one.event_id for one in await events_of(store)}, "a process must see its own event"
        await written(store, [draft(f"{writer}-{n}"), draft("shared", str(n))])
    await store.close()


def run_writer(path: Path, writer: int) -> None:
    asyncio.run(write_and_read(path, writer))


async def test_processes_that_write_one_user_lose_nothing(path):
    """They also create the file together, which is where journal modes and tables can clash."""
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=run_writer, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 3
    store = SqliteState(path)
    assert len(await events_of(store)) == len(await log_of(store)) == 3 * 40 + 40
    assert (await store.size())["items"] == 3 * 40 + 1
    assert await store.last_sequence() == 3 * 40 + 40 + 2 * 3 * 40
    await store.close()


ENDLESS_WRITER = """
    import asyncio, itertools, sys
    from raysys.state.sqlite import SqliteState
    from raysys.types import Event, ItemDraft

    async def main():
        store = SqliteState(sys.argv[1])
        for n in itertools.count():
            await store.append([Event(f"e{n}", "view", "u:ann", f"i{n}", float(n))])
            print("event", n, flush=True)
            await store.change_items([ItemDraft(f"i{n}", {"n": n})], float(n))
            print("item", n, flush=True)
            if n % 3 == 0:
                await store.change_items([ItemDraft(f"i{n}", None)], float(n))
                print("deletion", n, flush=True)

    asyncio.run(main())
"""


def acknowledged_by_a_writer_that_is_killed(path: Path) -> list[tuple[str, int]]:
    command = [sys.executable, "-c", textwrap.dedent(ENDLESS_WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        lines = [writer.stdout.readline() for _ in range(300)]
        os.kill(writer.pid, signal.SIGKILL)
        # What is still in the pipe was acknowledged too; the very last line may be cut short.
        lines += [line for line in writer.stdout if line.endswith("\n")]
    return [(what, int(n)) for what, n in (line.split() for line in lines)]


async def test_what_was_acknowledged_survives_a_kill(path):
    acknowledged = acknowledged_by_a_writer_that_is_killed(path)
    numbers = {kind: [n for what, n in acknowledged if what == kind] for kind in ("event", "item", "deletion")}
    store = SqliteState(path)
    log = [one.event_id for _, one in await log_of(store)]
    assert len(log) == len(set(log))
    # At most one write was on its way: done, but not acknowledged.
    assert log[: len(numbers["event"])] == [f"e{n}" for n in numbers["event"]]
    items = await store.items([f"i{n}" for n in numbers["item"]])
    assert len(items) == len(numbers["item"])
    assert all(items[f"i{n}"].deleted for n in numbers["deletion"])
    n_written = len(log) + sum(1 + change.deleted for change in await store.item_changes(0, 10_000))
    assert n_written - len(acknowledged) in (0, 1)
    assert await store.last_sequence() == n_written
    assert set(await store.append([event(event_id) for event_id in log])) == {"duplicate"}
    await store.close()


async def test_a_sequence_is_not_used_again_when_the_latest_rows_are_gone(path, store):
    await store.append([event("1"), event("2", user="u:bob", expires_s=1.0)])
    (deleted,) = await written(store, [gone("a")])
    await store.erase("u:ann")
    await store.expire(2.0)
    last = await store.last_sequence()
    assert last > deleted.sequence
    await store.close()
    again = SqliteState(path)
    assert await again.put_person(ANN) == last + 1
    await again.close()


async def test_size_is_that_of_the_file(path, store):
    await store.append(typical_events(2_000))
    reported = (await store.size())["bytes"]
    await store.close()
    assert path.stat().st_size == reported
