"""The state store of one machine: one SQLite file, shared by every process on it.

The file is in WAL mode with ``synchronous=FULL``: a commit is on the disk before a write returns, so what was
acknowledged survives a kill of any process and a loss of power. The price is one fsync a call.
WAL needs shared memory, so the file must be on a local disk, not on a network file system.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from raysys.clock import Clock, SystemClock
from raysys.errors import ConfigError, Unavailable
from raysys.state import records
from raysys.state.protocol import History, Link, Outcome
from raysys.types import Event, ItemChange, ItemDraft, Person, Vectors

SCHEMA_VERSION = 2

# ``details`` holds, as JSON, what no statement reads; NULL where there is none. A user is in ``versions`` while there
# are events, a person or links of theirs. ``last`` has one row: the highest sequence given, how often somebody was
# erased, and how many of those times the file was written anew since.
_SCHEMA = """
CREATE TABLE last (
    sequence INTEGER NOT NULL, erasures INTEGER NOT NULL, scrubbed INTEGER NOT NULL, identity TEXT NOT NULL
);
INSERT INTO last VALUES (0, 0, 0, lower(hex(randomblob(16))));
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, user TEXT NOT NULL, timestamp_s REAL NOT NULL,
    kind TEXT NOT NULL, item_id TEXT, value REAL, expires_s REAL, details TEXT
);
CREATE INDEX events_of_user ON events (user, timestamp_s, event_id);
CREATE INDEX events_that_expire ON events (expires_s) WHERE expires_s IS NOT NULL;
CREATE TABLE people (user TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (user TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE links (session TEXT PRIMARY KEY NOT NULL, user TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX links_of_user ON links (user);
CREATE TABLE erased (user TEXT PRIMARY KEY NOT NULL, at_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    item_id TEXT PRIMARY KEY NOT NULL, sequence INTEGER NOT NULL UNIQUE, deleted INTEGER NOT NULL,
    changed_s REAL NOT NULL, created_s REAL NOT NULL, record TEXT NOT NULL
);
CREATE TABLE vectors (text_key BLOB PRIMARY KEY NOT NULL, vector BLOB NOT NULL)
"""
# Version 1 counted the events of a user; a sequence is never below that count, so no version goes back.
_SET_ASIDE = "DROP INDEX events_of_user; ALTER TABLE events RENAME TO old_events"
_TAKE_OVER = """
INSERT INTO events SELECT row_number() OVER (ORDER BY rowid), event_id, user, timestamp_s, kind, item_id, value,
    NULL, details FROM old_events;
INSERT INTO versions SELECT user, max(sequence) FROM events GROUP BY user;
UPDATE last SET sequence = (SELECT coalesce(max(sequence), 0) FROM events);
DROP TABLE old_events;
DROP TABLE users
"""
_SCRIPTS = {0: (_SCHEMA,), 1: (_SET_ASIDE, _SCHEMA, _TAKE_OVER)}

# Only the event id may clash in silence: "INSERT OR IGNORE" would also swallow a NULL where none may be.
_ADD_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING"
_SET_VERSION = "INSERT INTO versions VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET version = excluded.version"
_PUT_PERSON = "INSERT INTO people VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET record = excluded.record"
_MOVE_PERSON = "INSERT INTO people SELECT ?, record FROM people WHERE user = ? ON CONFLICT (user) DO NOTHING"
_PUT_ITEM = """
INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET sequence = excluded.sequence,
deleted = excluded.deleted, changed_s = excluded.changed_s, record = excluded.record
"""
_PUT_VECTOR = "INSERT INTO vectors VALUES (?, ?) ON CONFLICT (text_key) DO UPDATE SET vector = excluded.vector"
_VERSION = """
SELECT user, version FROM versions WHERE user = coalesce((SELECT user FROM links WHERE session = ?1), ?1)
"""
_SESSIONS = """
SELECT session FROM links WHERE user = coalesce((SELECT user FROM links WHERE session = ?1), ?1) ORDER BY session
"""
_LATEST = """
SELECT event_id, kind, user, item_id, timestamp_s, value, expires_s, details FROM events WHERE user = ?
ORDER BY timestamp_s DESC, event_id DESC LIMIT ?
"""
_EVENTS_AFTER = """
SELECT sequence, event_id, kind, user, item_id, timestamp_s, value, expires_s, details FROM events
WHERE sequence > ? ORDER BY sequence LIMIT ?
"""
_EXPIRED = "SELECT sequence, user FROM events WHERE expires_s <= ? ORDER BY expires_s LIMIT ?"
_ITEM = "SELECT record, sequence, item_id, changed_s, created_s FROM items WHERE item_id = ?"
_ITEMS_AFTER = """
SELECT record, sequence, item_id, changed_s, created_s FROM items WHERE sequence > ? ORDER BY sequence LIMIT ?
"""
_SIZE = """
SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM versions), (SELECT count(*) FROM items),
(SELECT count(*) FROM vectors), page_count * page_size FROM pragma_page_count(), pragma_page_size()
"""
_SETUP_RETRY_S = 0.01

log = logging.getLogger(__name__)

_Row = tuple[Any, ...]
_Result = TypeVar("_Result")


class SqliteState:
    """Everything in one SQLite file; see ``StateStore`` for what is promised.

    Reads run in the thread of the caller: they take tens of microseconds and never wait for a write. Writes take turns
    in one thread of their own. Do not carry an instance over a fork.
    """

    def __init__(self, path: str | Path, busy_timeout_s: float = 5.0, clock: Clock | None = None) -> None:
        """Open the file, or create it (0600, a missing parent folder 0700). Blocks.

        Raises ConfigError where the path cannot be used, is no such store, or was written by a newer version;
        Unavailable where another process keeps the file locked for more than ``busy_timeout_s``, as a write does,
        however many wait before it.
        """
        self._busy_timeout_s = busy_timeout_s
        self._path = Path(path)
        self._clock = SystemClock() if clock is None else clock
        # Two connections, so that a read never waits for the fsync of a write.
        self._writer = _open(self._path, busy_timeout_s)
        self._reader = _connect(self._path, busy_timeout_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raysys-state")
        self._closed = False

    # Events and people

    async def append(self, events: Sequence[Event]) -> list[Outcome]:
        """See ``StateStore.append``."""
        rows = [_event_row(event, f"events[{index}]") for index, event in enumerate(events)]
        return await self._write(lambda writing: writing.append(rows))

    async def history(self, user: str, limit: int, known_version: int = -1) -> History | None:
        """See ``StateStore.history``. A known version costs one indexed look-up."""
        records.check_key(user, "user")
        with self._reading() as reader:
            if _version(reader, user)[1] == known_version:
                return None
            with _transaction(reader, "DEFERRED"):  # so that version and events are of one state
                return _history(reader, *_version(reader, user), limit)

    async def histories(self, users: Sequence[str], limit: int) -> dict[str, History]:
        """See ``StateStore.histories``."""
        for user in users:
            records.check_key(user, "users")
        with self._reading() as reader, _transaction(reader, "DEFERRED"):
            return {user: _history(reader, *_version(reader, user), limit) for user in users}

    async def versions(self, users: Sequence[str]) -> dict[str, int]:
        """See ``StateStore.versions``."""
        for user in users:
            records.check_key(user, "user")
        with self._reading() as reader:
            return {user: _version(reader, user)[1] for user in users}

    async def put_person(self, person: Person) -> int:
        """See ``StateStore.put_person``. That of a linked session is its user's."""
        record = records.person_to_json(person).decode()
        return await self._write(lambda writing: writing.put_person(person.user, record))

    async def link(self, session: str, user: str) -> tuple[Link, int]:
        """See ``StateStore.link``. The person of the session becomes the user's, where there is none."""
        records.check_link(session, user)
        return await self._write(lambda writing: writing.link(session, user))

    async def sessions(self, user: str) -> list[str]:
        """See ``StateStore.sessions``."""
        with self._reading() as reader:
            return [session for (session,) in reader.execute(_SESSIONS, (user,))]

    async def forget(self, user: str, event_ids: Sequence[str], text_keys: Sequence[bytes] = ()) -> int:
        """See ``StateStore.forget``. The file is written anew with the next ``erase`` or ``expire``."""
        return await self._write(lambda writing: writing.forget(user, event_ids, text_keys))

    async def erase(self, user: str, text_keys: Sequence[bytes] = ()) -> dict[str, int]:
        """See ``StateStore.erase``. A linked session stands for its user.

        The keys of a user's sessions are remembered as erased as well. Then the file is written anew, so that the bytes
        are gone from it and its WAL too: about a second for each 100 MB, while writes wait and reads do not. Where that
        fails it is tried again with the next ``erase`` or ``expire``.
        """
        records.check_key(user, "user")
        removed = await self._write(lambda writing: writing.erase(user, text_keys, self._clock.now_s()))
        await self._scrub()
        return removed

    async def erased(self) -> dict[str, float]:
        """See ``StateStore.erased``."""
        with self._reading() as reader:
            return dict(reader.execute("SELECT user, at_s FROM erased").fetchall())

    async def expire(self, now_s: float, limit: int = 10_000) -> int:
        """See ``StateStore.expire``. The versions of those who lose events grow."""
        removed = await self._write(lambda writing: writing.expire(now_s, limit))
        await self._scrub()
        return removed

    async def events_after(self, sequence: int, limit: int) -> list[tuple[int, Event]]:
        """See ``StateStore.events_after``."""
        with self._reading() as reader:
            rows = reader.execute(_EVENTS_AFTER, (sequence, limit)).fetchall()
        return [(row[0], _event(row[1:])) for row in rows]

    # Items

    async def change_items(self, drafts: Sequence[ItemDraft], now_s: float) -> list[ItemChange | None]:
        """See ``StateStore.change_items``."""
        given = [(draft, records.item_to_json(draft, f"items[{index}]").decode()) for index, draft in enumerate(drafts)]
        return await self._write(lambda writing: [writing.change_item(draft, record, now_s) for draft, record in given])

    async def item_changes(self, after: int, limit: int) -> list[ItemChange]:
        """See ``StateStore.item_changes``."""
        with self._reading() as reader:
            rows = reader.execute(_ITEMS_AFTER, (after, limit)).fetchall()
        return [records.item_from_json(*row) for row in rows]

    async def items(self, item_ids: Sequence[str]) -> dict[str, ItemChange]:
        """See ``StateStore.items``."""
        for item_id in item_ids:
            records.check_key(item_id, "item_id")
        with self._reading() as reader:
            rows = [reader.execute(_ITEM, (item_id,)).fetchone() for item_id in item_ids]
        changes = (records.item_from_json(*row) for row in rows if row is not None)
        return {change.item_id: change for change in changes}

    async def identity(self) -> str:
        """See ``StateStore.identity``."""
        with self._reading() as reader:
            return str(reader.execute("SELECT identity FROM last").fetchone()[0])

    async def last_sequence(self) -> int:
        """See ``StateStore.last_sequence``."""
        with self._reading() as reader:
            return _last_sequence(reader)

    # Vectors of texts

    async def put_vectors(self, vectors: Mapping[bytes, Vectors], item_ids: Sequence[str] = ()) -> None:
        """See ``StateStore.put_vectors``. Raises InvalidInput for what is not [dim] float32."""
        rows = [(key, records.vector_to_bytes(vector)) for key, vector in vectors.items()]
        await self._write(lambda writing: writing.put_vectors(rows, item_ids))

    async def vectors(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """See ``StateStore.vectors``. The arrays are read-only."""
        with self._reading() as reader:
            rows = [reader.execute("SELECT * FROM vectors WHERE text_key = ?", (key,)).fetchone() for key in keys]
        return {row[0]: records.vector_from_bytes(row[1]) for row in rows if row is not None}

    async def size(self) -> dict[str, Any]:
        """See ``StateStore.size``.

        people: everyone with a version. items: deleted ones included. bytes: of the file, without its WAL, which takes
        about 4 MB more.
        """
        row = await self._in_thread(lambda: self._writer.execute(_SIZE).fetchone())
        return dict(zip(("events", "people", "items", "vectors", "bytes"), row, strict=True))

    async def close(self) -> None:
        """See ``StateStore.close``. Writes that were begun are finished first."""
        if self._closed:
            return
        self._closed = True
        self._reader.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.close)
        self._thread.shutdown()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with _unavailable(self._path):
            yield self._reader

    async def _write(self, work: Callable[["_Writing"], _Result]) -> _Result:
        """Do the work in one transaction. The time that it waited for its turn is time that it waited for the lock."""
        deadline_s = time.monotonic() + self._busy_timeout_s

        def transact() -> _Result:
            left_ms = max(int(1_000 * (deadline_s - time.monotonic())), 0)
            self._writer.execute(f"PRAGMA busy_timeout = {left_ms}").fetchall()
            with _transaction(self._writer, "IMMEDIATE"):
                writing = _Writing(self._writer)
                result = work(writing)
                writing.finish()
                return result

        return await self._in_thread(transact)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        if self._closed:
            raise Unavailable(f"the state store {self._path} is closed")
        with _unavailable(self._path):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _scrub(self) -> None:
        """Write the file anew if somebody was erased since the last time. What was erased stays so if this fails."""
        if self._closed:
            return
        try:
            await self._in_thread(lambda: _scrub(self._writer))
        except Unavailable as error:
            log.warning("erased bytes may still be in the file, to be tried again: %s", error)


class _Writing:
    """What one write transaction does. Numbers are given as it goes, and kept when it finishes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._begun_at = self._sequence = _last_sequence(connection)

    def finish(self) -> None:
        """Write down how far the sequence went; a transaction that wrote nothing stays without a cost."""
        if self._sequence != self._begun_at:
            self._execute("UPDATE last SET sequence = ?", (self._sequence,))

    def append(self, rows: Sequence[_Row]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        touched: dict[str, int] = {}
        for event_id, user, *rest in rows:
            owner = self._owner(user)
            known = self._execute(_ADD_EVENT, (self._sequence + 1, event_id, owner, *rest)).rowcount == 0
            outcomes.append("duplicate" if known else "accepted")
            if not known:
                touched[owner] = self._next()
        self._executemany(_SET_VERSION, touched.items())
        return outcomes

    def put_person(self, user: str, record: str) -> int:
        owner = self._owner(user)
        self._execute(_PUT_PERSON, (owner, record))
        return self._touch(owner)

    def link(self, session: str, user: str) -> tuple[Link, int]:
        owner = self._owner(session)
        if owner != session:
            return "already" if owner == user else "conflict", self._version(user)
        self._execute("INSERT INTO links VALUES (?, ?)", (session, user))
        self._execute("UPDATE events SET user = ? WHERE user = ?", (user, session))
        self._execute(_MOVE_PERSON, (user, session))
        self._execute("DELETE FROM people WHERE user = ?", (session,))
        self._execute("DELETE FROM versions WHERE user = ?", (session,))
        return "merged", self._touch(user)

    def forget(self, user: str, event_ids: Sequence[str], text_keys: Sequence[bytes]) -> int:
        owner = self._owner(user)
        delete = "DELETE FROM events WHERE event_id = ? AND user = ?"
        removed = sum(self._execute(delete, (event_id, owner)).rowcount for event_id in event_ids)
        if removed:
            self._touch(owner)
        if removed + self._drop_vectors(text_keys):
            self._execute("UPDATE last SET erasures = erasures + 1")
        return removed

    def erase(self, user: str, text_keys: Sequence[bytes], now_s: float) -> dict[str, int]:
        owner = self._owner(user)
        self._remember_as_erased(owner, now_s)
        removed = {
            "events": self._execute("DELETE FROM events WHERE user = ?", (owner,)).rowcount,
            "person": self._execute("DELETE FROM people WHERE user = ?", (owner,)).rowcount,
            "links": self._execute("DELETE FROM links WHERE user = ?", (owner,)).rowcount,
            "vectors": self._drop_vectors(text_keys),
        }
        self._execute("DELETE FROM versions WHERE user = ?", (owner,))
        if any(removed.values()):
            self._execute("UPDATE last SET erasures = erasures + 1")
        return removed

    def expire(self, now_s: float, limit: int) -> int:
        expired = self._execute(_EXPIRED, (now_s, limit)).fetchall()
        self._executemany("DELETE FROM events WHERE sequence = ?", [(sequence,) for sequence, _ in expired])
        for user in dict.fromkeys(user for _, user in expired):
            self._touch(user)
        return len(expired)

    def change_item(self, draft: ItemDraft, record: str, now_s: float) -> ItemChange | None:
        found = self._execute("SELECT sequence, created_s FROM items WHERE item_id = ?", (draft.item_id,)).fetchone()
        latest, created_s = (0, now_s) if found is None else found
        if draft.expected is not None and draft.expected != latest:
            return None
        sequence, deleted = self._next(), draft.fields is None
        self._execute(_PUT_ITEM, (draft.item_id, sequence, deleted, now_s, created_s, record))
        return records.item_from_json(record, sequence, draft.item_id, now_s, created_s)

    def put_vectors(self, rows: Sequence[tuple[bytes, bytes]], item_ids: Sequence[str]) -> None:
        self._executemany(_PUT_VECTOR, rows)
        renumber = "UPDATE items SET sequence = ? WHERE item_id = ? AND NOT deleted"
        for item_id in item_ids:
            if self._execute(renumber, (self._sequence + 1, item_id)).rowcount == 1:
                self._next()

    def _drop_vectors(self, text_keys: Sequence[bytes]) -> int:
        delete = "DELETE FROM vectors WHERE text_key = ?"
        return sum(self._execute(delete, (key,)).rowcount for key in text_keys)

    def _remember_as_erased(self, user: str, now_s: float) -> None:
        """A user and their sessions; a stranger too, whose past may stand in the event files of a build."""
        sessions = self._execute("SELECT session FROM links WHERE user = ?", (user,)).fetchall()
        keys = [user, *(session for (session,) in sessions)]
        verb = "REPLACE" if self._version(user) > 0 else "IGNORE"  # erased again, nothing new went
        self._executemany(f"INSERT OR {verb} INTO erased VALUES (?, ?)", [(key, now_s) for key in keys])  # noqa: S608

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _touch(self, user: str) -> int:
        """Give a user the next sequence as version."""
        self._execute(_SET_VERSION, (user, self._next()))
        return self._sequence

    def _version(self, user: str) -> int:
        row = self._execute("SELECT version FROM versions WHERE user = ?", (user,)).fetchone()
        return 0 if row is None else int(row[0])

    def _owner(self, user: str) -> str:
        """The user that a session is linked to; everyone else belongs to themselves."""
        row = self._execute("SELECT user FROM links WHERE session = ?", (user,)).fetchone()
        return user if row is None else str(row[0])


def _event_row(event: Event, field: str) -> _Row:
    """The row of an event but for its sequence. Raises InvalidInput, which names ``field``."""
    details = records.details_to_json(event, field)
    return (
        event.event_id,
        event.user,
        event.timestamp_s,
        event.kind,
        event.item_id,
        event.value,
        event.expires_s,
        None if details == b"{}" else details.decode(),
    )


def _event(row: _Row) -> Event:
    """The event of a row of ``_LATEST``."""
    event_id, kind, user, item_id, timestamp_s, value, expires_s, details = row
    more = {} if details is None else records.details_from_json(details)
    return Event(event_id, kind, user, item_id, timestamp_s, value, expires_s=expires_s, **more)


def _version(connection: sqlite3.Connection, user: str) -> tuple[str, int]:
    """(the user that the key stands for, their version)."""
    return connection.execute(_VERSION, (user,)).fetchone() or (user, 0)


def _history(connection: sqlite3.Connection, user: str, version: int, limit: int) -> History:
    rows = connection.execute(_LATEST, (user, limit)).fetchall()
    record = connection.execute("SELECT record FROM people WHERE user = ?", (user,)).fetchone()
    person = None if record is None else records.person_from_json(record[0], user)
    return History(user, version, tuple(_event(row) for row in rows), person)


def _last_sequence(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT sequence FROM last").fetchone()[0])


def _scrub(connection: sqlite3.Connection) -> None:
    """Leave no copy of what was deleted.

    ``secure_delete`` overwrites a deleted row where it is, but not the copies that stay in the free part of a page when
    its rows move to another one. Only a file that is written anew has none.
    """
    erasures, scrubbed = connection.execute("SELECT erasures, scrubbed FROM last").fetchone()
    if scrubbed == erasures:
        return
    connection.execute("VACUUM")
    # Busy while another process reads what was there before: then the WAL still holds it.
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if not busy:
        connection.execute("UPDATE last SET scrubbed = max(scrubbed, ?)", (erasures,))


def _open(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection to a file with our tables, created where they are missing."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(path)
        connection = _connect(path, busy_timeout_s)
        try:
            _set_up(connection, path, busy_timeout_s)
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as error:
        if _is_busy(error):
            raise Unavailable(f"the state store {path} is locked by another process; try again") from error
        raise ConfigError(f"cannot use {path} as state store: {error}; check the setting 'state'") from error
    return connection


def _create(path: Path) -> None:
    """An empty file, which SQLite takes for an empty database; its -wal and -shm files get the same mode.

    Only a new file is opened here: closing a second descriptor of a file in use would drop SQLite's locks on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    # What is deleted is overwritten with zeros: an erased person must not be found in the free parts of the file.
    connection.execute("PRAGMA secure_delete = ON").fetchall()
    return connection


def _set_up(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    """WAL mode and tables; an older schema becomes this one. Raises ConfigError for a file of a newer schema."""
    _use_wal(connection, time.monotonic() + busy_timeout_s)
    with _transaction(connection, "IMMEDIATE"):
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise ConfigError(
                f"{path} was written by a newer version of Raysys (schema {found}, this version reads up to "
                f"{SCHEMA_VERSION}); upgrade Raysys, or set 'state' to another file"
            )
        if found < SCHEMA_VERSION:
            for statement in ";".join(_SCRIPTS[found]).split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _use_wal(connection: sqlite3.Connection, deadline_s: float) -> None:
    # SQLite's own busy timeout does not cover a change of journal mode while others open the same new file.
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() >= deadline_s:
                raise
            time.sleep(_SETUP_RETRY_S)


def _is_busy(error: Exception) -> bool:
    # The low byte is the kind of the error, the rest says more about it.
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


@contextmanager
def _transaction(connection: sqlite3.Connection, mode: str) -> Iterator[None]:
    connection.execute(f"BEGIN {mode}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _unavailable(path: Path) -> Iterator[None]:
    """Turn what SQLite raises (locked, disk full, closed) into Unavailable."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable(f"the state store {path} cannot answer now: {error}") from error
