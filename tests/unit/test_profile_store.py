"""User keys, the SQLite store under the shared suite, and what only a file can get wrong."""

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from store_suite import SETTINGS, ProfileStoreSuite, event

from raysys.config import ProfileSettings
from raysys.errors import ConfigError, Unavailable
from raysys.profile.sqlite import SCHEMA_VERSION, SqliteProfileStore
from raysys.profile.store import user_key
from raysys.types import Profile


@pytest.mark.parametrize(
    ("user_id", "session_id", "key"),
    [("ann", None, "u:ann"), (None, "ann", "s:ann"), ("ann", "x", "u:ann"), (None, None, None), ("", None, "u:")],
)
def test_user_key(user_id, session_id, key):
    assert user_key(user_id, session_id) == key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "state.sqlite3"


class TestSqliteProfileStore(ProfileStoreSuite):
    @pytest.fixture
    def open_store(self, path):
        return lambda: SqliteProfileStore(path, SETTINGS)


def test_the_file_is_for_its_owner_only(path):
    store = SqliteProfileStore(path, SETTINGS)
    store.append([event("1")])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    store.close()


def test_the_fold_reads_the_latest_events_and_the_version_counts_all(path):
    store = SqliteProfileStore(path, SETTINGS, max_events=3)
    store.append([event(str(n), item_id=f"i{n}", at=float(-n)) for n in range(5)])
    profile = store.profile("u:ann")
    assert profile.version == 5
    assert [i.item_id for i in profile.interactions] == ["i2", "i1", "i0"]
    store.close()


def test_an_unchanged_profile_is_folded_once(path):
    store = SqliteProfileStore(path, SETTINGS)
    store.append([event("1")])
    first = store.profile("u:ann")
    assert store.profile("u:ann") is first
    store.append([event("1")])
    assert store.profile("u:ann") is first
    store.append([event("2")])
    assert store.profile("u:ann").version == 2
    store.close()


@pytest.mark.parametrize("room", [0, 1, 4, 1000])
def test_profiles_are_right_with_any_room_in_the_cache(path, room):
    store = SqliteProfileStore(path, SETTINGS, max_cached_interactions=room)
    users = [f"u:{n}" for n in range(5)]
    for at in range(3):
        store.append([event(f"{user}-{at}", item_id=f"i{at}", at=float(at), user=user) for user in users])
        for user in users + users[::-1]:
            assert len(store.profile(user).interactions) == store.profile(user).version == at + 1
    store.close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path):
    SqliteProfileStore(path, SETTINGS).close()
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    raw.close()
    with pytest.raises(ConfigError, match="newer version"):
        SqliteProfileStore(path, SETTINGS)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, not a database\n" * 100)
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        SqliteProfileStore(path, SETTINGS)
    assert path.read_text() == "these are my notes, not a database\n" * 100


def test_a_path_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/state\.sqlite3"):
        SqliteProfileStore(tmp_path / "file" / "state.sqlite3", SETTINGS)
    with pytest.raises(ConfigError, match="state"):
        SqliteProfileStore(tmp_path, SETTINGS)


def test_a_locked_file_refuses_writes_and_still_answers_reads(path):
    store = SqliteProfileStore(path, SETTINGS, busy_timeout_s=0.01)
    store.append([event("1")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        store.append([event("2")])
    assert store.profile("u:ann").version == 1
    with pytest.raises(Unavailable, match="locked"):
        SqliteProfileStore(path, SETTINGS, busy_timeout_s=0.01)
    other.execute("ROLLBACK")
    other.close()
    assert store.append([event("2")]) == ["accepted"]
    store.close()


def test_a_new_file_that_another_process_is_writing_is_waited_for(path, monkeypatch):
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("raysys.profile.sqlite.time.sleep", lambda _: other.execute("COMMIT"))
    store = SqliteProfileStore(path, SETTINGS)
    assert store.append([event("1")]) == ["accepted"]
    store.close()
    other.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(path):
    store = SqliteProfileStore(path, SETTINGS)
    store.append([event("1")])
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match="full"):
        store.append([event(f"more-{n}") for n in range(1000)])
    assert store.profile("u:ann").version == 1
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert store.append([event("2")]) == ["accepted"]
    assert store.profile("u:ann").version == 2
    store.close()


def _write_and_read(path: Path, writer: int) -> None:
    store = SqliteProfileStore(path, ProfileSettings())
    for n in range(40):
        at = float(n)
        store.append([event(f"{writer}-{n}", item_id=f"i{n}", at=at), event(f"shared-{n}", item_id="s", at=at)])
        profile = store.profile("u:ann")
        seen = {i.item_id for i in profile.interactions}
        assert f"i{n}" in seen, "a process must see its own event in its next read"
        assert profile.version >= 2 * (n + 1)
    store.close()


def test_processes_that_write_one_user_lose_nothing(path):
    """They also create the file together, which is where journal modes and tables can clash."""
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_and_read, args=(path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    store = SqliteProfileStore(path, SETTINGS)
    assert store.profile("u:ann").version == 4 * 40 + 40
    assert len(store.profile("u:ann").interactions) == 40 + 1
    store.close()


ENDLESS_WRITER = """
    import itertools, sys
    from raysys.config import ProfileSettings
    from raysys.profile.sqlite import SqliteProfileStore
    from raysys.types import Event

    store = SqliteProfileStore(sys.argv[1], ProfileSettings())
    for n in itertools.count():
        store.append([Event(f"e{n}", "view", "u:ann", f"i{n}", float(n))])
        print(n, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(path):
    command = [sys.executable, "-c", textwrap.dedent(ENDLESS_WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(200)]
        os.kill(writer.pid, signal.SIGKILL)
        # What is still in the pipe was acknowledged too; the very last line may be cut short.
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    store = SqliteProfileStore(path, SETTINGS)
    again = [event(f"e{n}", item_id=f"i{n}", at=float(n)) for n in acknowledged]
    assert set(store.append(again)) == {"duplicate"}
    assert store.profile("u:ann").version in (len(acknowledged), len(acknowledged) + 1)
    assert store.profile("u:new") == Profile("u:new")
    store.close()
