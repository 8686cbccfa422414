"""The embedded profile store: one SQLite file, shared by every process of one machine.

The log is in WAL mode with ``synchronous=FULL``: a commit is on the disk before ``append`` returns, so an
acknowledged event survives a kill of any process and a loss of power. The price is one fsync a batch, not an event.
WAL needs shared memory, so the file must be on a local disk, not on a network file system.
"""

import math
import os
import sqlite3
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson

from raysys.config import ProfileSettings
from raysys.errors import ConfigError, InvalidInput, Unavailable
from raysys.profile.fold import fold
from raysys.profile.store import Outcome
from raysys.types import Event, Profile

SCHEMA_VERSION = 1

# ``details`` holds, as JSON, what the fold does not read.
_SCHEMA = """
CREATE TABLE events (
    event_id TEXT PRIMARY KEY NOT NULL, user TEXT NOT NULL, timestamp_s REAL NOT NULL, kind TEXT NOT NULL,
    item_id TEXT, value REAL, details TEXT NOT NULL
);
CREATE INDEX events_of_user ON events (user, timestamp_s, event_id);
CREATE TABLE users (user TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL) WITHOUT ROWID;
"""
# Only the event id may clash in silence: "INSERT OR IGNORE" would also swallow a NULL where none may be.
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING"
_ADD_TO_VERSION = """
INSERT INTO users VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET version = version + excluded.version
"""
_VERSION = "SELECT version FROM users WHERE user = ?"
_LATEST = """
SELECT event_id, kind, item_id, timestamp_s, value FROM events WHERE user = ?
ORDER BY timestamp_s DESC, event_id DESC LIMIT ?
"""
_SETUP_RETRY_S = 0.01

_Row = tuple[str, str, float, str, str | None, float | None, str]


class SqliteProfileStore:
    """Events and profiles in one SQLite file; see ``ProfileStore`` for what is promised.

    A profile is folded from the user's latest ``max_events`` events by timestamp, so that one read has a bound;
    its version counts all of them. Folded profiles are kept, up to ``max_cached_interactions`` interactions in all,
    and used again for as long as the version in the file stays the same, whichever process writes it.
    Do not carry an instance over a fork.
    """

    def __init__(
        self,
        path: str | Path,
        settings: ProfileSettings,
        max_events: int = 1_000,
        max_cached_interactions: int = 500_000,
        busy_timeout_s: float = 5.0,
    ) -> None:
        """Open the file, or create it (0600, a missing parent folder 0700).

        Raises ConfigError where the path cannot be used, is no such store, or was written by a newer version;
        Unavailable where another process keeps the file locked for more than ``busy_timeout_s``.
        """
        self._path = Path(path)
        self._settings = settings
        self._max_events = max_events
        self._cache = _ProfileCache(max_cached_interactions)
        # Two connections, so that a read never waits for the fsync of a write.
        self._writer = _open(self._path, busy_timeout_s)
        self._reader = _connect(self._path, busy_timeout_s)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        """Add events in one transaction; see ``ProfileStore.append``."""
        rows = [_row(index, event) for index, event in enumerate(events)]
        with self._write_lock, _unavailable(self._path), _transaction(self._writer, "IMMEDIATE"):
            outcomes: list[Outcome] = [
                "accepted" if self._writer.execute(_INSERT, row).rowcount == 1 else "duplicate" for row in rows
            ]
            added = Counter(
                event.user for event, outcome in zip(events, outcomes, strict=True) if outcome == "accepted"
            )
            self._writer.executemany(_ADD_TO_VERSION, added.items())
        return outcomes

    def profile(self, user: str) -> Profile:
        """The profile as of now; see ``ProfileStore.profile``."""
        with self._read_lock, _unavailable(self._path):
            version = self._version(user)
            cached = self._cache.get(user, version)
            if cached is not None:
                return cached
            version, events = self._read(user)
        profile = replace(fold(user, events, self._settings), version=version)
        with self._read_lock:
            self._cache.put(profile)
        return profile

    def close(self) -> None:
        """Close both connections."""
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    def _version(self, user: str) -> int:
        row = self._reader.execute(_VERSION, (user,)).fetchone()
        return 0 if row is None else int(row[0])

    def _read(self, user: str) -> tuple[int, list[Event]]:
        """Version and latest events of a user, from one state of the file."""
        with _transaction(self._reader, "DEFERRED"):
            version = self._version(user)
            rows = self._reader.execute(_LATEST, (user, self._max_events)).fetchall()
        return version, [
            Event(event_id, kind, user, item_id, timestamp_s, value)
            for event_id, kind, item_id, timestamp_s, value in rows
        ]


class _ProfileCache:
    """The profiles used last, bounded by the interactions they hold. Not safe for threads by itself."""

    def __init__(self, max_interactions: int) -> None:
        self._free = max_interactions
        self._profiles: OrderedDict[str, Profile] = OrderedDict()

    def get(self, user: str, version: int) -> Profile | None:
        """The profile of a user if it is of this version."""
        profile = self._profiles.get(user)
        if profile is None or profile.version != version:
            return None
        self._profiles.move_to_end(user)
        return profile

    def put(self, profile: Profile) -> None:
        """Keep a profile unless a later version is here already; the ones used longest ago make room for it."""
        known = self._profiles.get(profile.user)
        if known is not None and known.version >= profile.version:
            return
        if known is not None:
            self._free += _size(known)
        self._profiles[profile.user] = profile
        self._profiles.move_to_end(profile.user)
        self._free -= _size(profile)
        while self._free < 0:
            _, oldest = self._profiles.popitem(last=False)
            self._free += _size(oldest)


def _size(profile: Profile) -> int:
    return 1 + len(profile.interactions)


def _row(index: int, event: Event) -> _Row:
    """The row of an event. Raises InvalidInput, which names the event's place in the batch."""
    field = f"events[{index}]"
    if not math.isfinite(event.timestamp_s):
        raise InvalidInput(f"{field}.timestamp", f"{event.timestamp_s} is no time; give UTC epoch seconds")
    details = {
        "text": event.text,
        "recommendation_id": event.recommendation_id,
        "properties": dict(event.properties),
    }
    try:
        "".join((event.event_id, event.user, event.kind, event.item_id or "")).encode()
        as_json = orjson.dumps(details).decode()
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidInput(field, f"cannot be kept as JSON: {error}") from error
    return event.event_id, event.user, event.timestamp_s, event.kind, event.item_id, event.value, as_json


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
            raise Unavailable(f"the profile store {path} is locked by another process; try again") from error
        raise ConfigError(f"cannot use {path} as profile store: {error}; check the setting 'state'") from error
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
    return connection


def _set_up(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    """WAL mode and tables. Raises ConfigError for a file of a newer schema."""
    _use_wal(connection, time.monotonic() + busy_timeout_s)
    with _transaction(connection, "IMMEDIATE"):
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            raise ConfigError(
                f"{path} was written by a newer version of Raysys (schema {found}, this version reads up to "
                f"{SCHEMA_VERSION}); upgrade Raysys, or set 'state' to another file"
            )
        if found == 0:
            for statement in _SCHEMA.split(";"):
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
        raise Unavailable(f"the profile store {path} cannot answer now: {error}") from error
