"""The impression log: what was shown is in Parquet files, whatever the disk does, until somebody is erased from it."""

import asyncio
import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from starlette.types import ASGIApp, Message
from support import DAY_S, NOW_S, FixedClock, Shop, serve_here

from raysys.config import ImpressionSettings, ServeSettings, parse
from raysys.data.impressions import IMPRESSION_SCHEMA, ImpressionFolder, read_impressions
from raysys.errors import ConfigError, Unavailable
from raysys.serving.impressions import ImpressionLog
from raysys.types import Answer, RankedItem

NOW = datetime.fromtimestamp(NOW_S, UTC)
DEADLINE_S = 20.0
WRITER = """
import sys
from raysys.clock import SystemClock
from raysys.config import ImpressionSettings
from raysys.serving.impressions import ImpressionLog
from raysys.types import Answer, RankedItem

name, n = sys.argv[2], int(sys.argv[3])
log = ImpressionLog(sys.argv[1], ImpressionSettings(rows_per_file=1), SystemClock(), sys.exit)
for number in range(n):
    item = RankedItem(f"item-{number}", 1.0, 1, {"popular": 1.0}, {})
    answer = Answer("snapshot", 1, (item,), False, True, (), (), {})
    log.add(f"{name}-{number}", "recommendations", f"u:{name}", answer, [])
log.close()
"""


def answer(*item_ids: str, sources: Mapping[str, float] | None = None, version: int = 0) -> Answer:
    """An answer of these items, the best with the score 1.0, each next one half of that."""
    scores = {"popular": 1.0} if sources is None else sources
    items = tuple(RankedItem(item_id, 0.5**at, at + 1, scores, {"title": "t"}) for at, item_id in enumerate(item_ids))
    return Answer("snapshot-1", version, items, False, True, (), (), {"total": 1.0})


class Dropped:
    """Counts what a log says it lost."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, n_rows: int) -> None:
        self.rows += n_rows


class Logs:
    """Opens logs on one folder, and closes them at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.dropped = folder, FixedClock(), Dropped()
        self._opened: list[ImpressionLog] = []

    def __call__(self, **settings: Any) -> ImpressionLog:
        self._opened.append(ImpressionLog(self.folder, ImpressionSettings(**settings), self.clock, self.dropped))
        return self._opened[-1]

    def rows(self) -> list[dict[str, Any]]:
        return table(self.folder).to_pylist()

    def files(self) -> list[str]:
        return sorted(file.relative_to(self.folder).as_posix() for file in self.folder.glob("day=*/*.parquet"))

    def close(self) -> None:
        for log in self._opened:
            log.close()


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    made = Logs(tmp_path / "impressions")
    yield made
    made.close()


def table(folder: Path) -> pa.Table:
    return read_impressions(folder).to_table().sort_by([("recommendation_id", "ascending"), ("position", "ascending")])


def column(logs: Logs, name: str) -> list[Any]:
    return [row[name] for row in logs.rows()]


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        threading.Event().wait(0.01)


# What is in the rows


def test_every_item_of_every_answer_has_a_row_with_everything_in_place(logs: Logs) -> None:
    log = logs()
    first = answer("a", "b", sources={"query": 0.5, "profile": -0.25}, version=7)
    log.add("r1", "recommendations", "u:ann", first, ["encoder", "shard-01"])
    logs.clock.at_s += 1.5
    log.add("r2", "search", None, answer("c", sources={}), [])
    log.close()
    row = {
        "recommendation_id": "r1",
        "timestamp": NOW,
        "route": "recommendations",
        "user": "u:ann",
        "snapshot_id": "snapshot-1",
        "profile_version": 7,
        "position": 1,
        "item_id": "a",
        "score": 1.0,
        "sources": [{"name": "query", "score": 0.5}, {"name": "profile", "score": -0.25}],
        "propensity": None,
        "degraded": ["encoder", "shard-01"],
        "experiments": [],
        "team": None,
        "day": "2023-12-14",
    }
    one, two, three = logs.rows()
    assert one == row
    assert two == {**row, "position": 2, "item_id": "b", "score": 0.5}
    assert (three["timestamp"] - NOW).total_seconds() == 1.5
    assert (three["route"], three["user"], three["sources"], three["degraded"]) == ("search", None, [], [])
    assert logs.dropped.rows == 0


def test_an_answer_without_items_showed_nothing(logs: Logs) -> None:
    log = logs()
    log.add("r1", "rank", "u:ann", answer(), [])
    log.close()
    assert logs.files() == []


def test_ids_of_any_alphabet_come_back_as_they_were(logs: Logs) -> None:
    log = logs()
    log.add("r1", "rank", "u:../ödd 🎈=/", answer("№1/=\n"), [])
    assert log.rows_of("u:../ödd 🎈=/")["item_id"].to_pylist() == ["№1/=\n"]


def test_a_folder_that_is_not_there_has_no_rows_and_the_same_columns(tmp_path: Path) -> None:
    found = read_impressions(tmp_path / "nowhere").to_table()
    assert len(found) == 0
    assert found.schema.names == [*IMPRESSION_SCHEMA.names, "day"]


# Files


def test_a_file_ends_with_enough_rows(logs: Logs) -> None:
    log = logs(rows_per_file=4)
    for number in range(4):
        log.add(f"r{number}", "recommendations", "u:ann", answer("a", "b"), [])
    until(lambda: len(logs.files()) == 2)
    sizes = [len(pq.ParquetFile(logs.folder / file).read()) for file in logs.files()]
    assert sizes == [4, 4]


def test_a_file_ends_when_its_time_is_up(logs: Logs) -> None:
    log = logs(seconds_per_file=60)
    log.add("r1", "recommendations", "u:ann", answer("a"), [])

    def is_there_a_second_later() -> bool:
        found = logs.files() != []
        logs.clock.at_s += not found
        return found

    until(is_there_a_second_later)
    assert logs.clock.at_s >= NOW_S + 60.0
    assert column(logs, "recommendation_id") == ["r1"]


def test_each_day_has_its_folder_even_where_midnight_passes_in_the_queue(logs: Logs) -> None:
    log = logs()
    log.add("r1", "recommendations", "u:ann", answer("a"), [])
    logs.clock.at_s += DAY_S
    log.add("r2", "recommendations", "u:ann", answer("b"), [])
    log.close()
    days = {row["recommendation_id"]: row["day"] for row in logs.rows()}
    assert days == {"r1": "2023-12-14", "r2": "2023-12-15"}
    assert read_impressions(logs.folder).count_rows(filter=pads.field("day") == "2023-12-15") == 1


def test_what_is_half_written_is_never_read_and_goes_with_the_next_log(logs: Logs) -> None:
    logs().add("r1", "recommendations", "u:ann", answer("a"), [])
    logs.close()
    (file,) = logs.files()
    half = (logs.folder / file).with_name(".dead-1-abc.parquet.tmp")
    half.write_bytes((logs.folder / file).read_bytes()[:200])
    assert column(logs, "recommendation_id") == ["r1"]
    assert len(pads.dataset(logs.folder, format="parquet", partitioning="hive").to_table()) == 1
    logs()
    until(lambda: not half.exists())


def test_old_days_are_removed_and_nothing_else(logs: Logs) -> None:
    log = logs(keep_days=2)
    for day in range(4):
        log.add(f"r{day}", "recommendations", "u:ann", answer("a"), [])
        log.flush()
        logs.clock.at_s += DAY_S
    (logs.folder / "day=notes").mkdir()
    logs.clock.at_s -= DAY_S  # the last one was logged today
    until(lambda: column(logs, "recommendation_id") == ["r1", "r2", "r3"])
    assert (logs.folder / "day=notes").is_dir()


# Never in the way of a request


def test_where_the_queue_is_full_the_new_rows_are_dropped_and_counted(logs: Logs) -> None:
    log = logs(max_waiting_rows=10, rows_per_file=1)
    log.add("too-long", "recommendations", "u:ann", answer(*map(str, range(11))), [])
    assert logs.dropped.rows == 11
    logs.folder.mkdir()
    with (logs.folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the writer waits for this
        for number in range(50):
            log.add(f"r{number:02d}", "recommendations", "u:ann", answer("a"), [])
    log.close()
    written = column(logs, "recommendation_id")
    assert logs.dropped.rows - 11 + len(written) == 50
    assert 10 <= len(written) <= 30
    assert written[:10] == [f"r{number:02d}" for number in range(10)]  # those who came first stay


def test_what_comes_after_closing_is_counted(logs: Logs) -> None:
    log = logs()
    log.close()
    log.add("r1", "recommendations", "u:ann", answer("a", "b"), [])
    assert logs.dropped.rows == 2


def test_a_folder_that_cannot_be_written_costs_rows_and_is_told_once_a_minute(
    logs: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    logs.folder.write_text("a file")
    log = logs()
    for number in range(3):
        log.add(f"r{number}", "recommendations", "u:ann", answer("a", "b"), [])
        log.flush()
    assert logs.dropped.rows == 6
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    logs.clock.at_s += 61.0
    log.add("r3", "recommendations", "u:ann", answer("a"), [])
    log.flush()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    with pytest.raises(Unavailable, match="nothing was erased"):
        log.erase("u:ann")
    logs.folder.unlink()  # and once it can be written again, rows are there again
    log.add("r4", "recommendations", "u:ann", answer("a"), [])
    log.flush()
    assert column(logs, "recommendation_id") == ["r4"]


def test_a_full_disk_costs_rows_and_leaves_no_half_file(logs: Logs) -> None:
    log = logs()
    log.add("r1", "recommendations", "u:ann", answer("a"), [])
    log.flush()
    log.add("r2", "recommendations", "u:ann", answer("b"), [])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # every write beyond it fails
    try:
        log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert logs.dropped.rows == 1
    assert not list(logs.folder.rglob("*.tmp"))
    assert column(logs, "recommendation_id") == ["r1"]


def test_a_value_that_no_column_takes_does_not_end_the_log(logs: Logs) -> None:
    log = logs()
    log.add("r1", "recommendations", "u:\ud800", answer("a"), [])
    log.flush()
    assert logs.dropped.rows == 1
    log.add("r2", "recommendations", "u:ann", answer("a"), [])
    log.close()
    assert column(logs, "recommendation_id") == ["r2"]


# Several logs on one folder


def test_two_logs_of_one_process_do_not_clash(logs: Logs) -> None:
    one, two = logs(rows_per_file=1), logs(rows_per_file=1)
    for number in range(5):
        one.add(f"one-{number}", "recommendations", "u:ann", answer("a"), [])
        two.add(f"two-{number}", "recommendations", "u:bob", answer("b"), [])
    logs.close()
    assert len(logs.files()) == 10
    assert column(logs, "recommendation_id") == [f"{name}-{n}" for name in ("one", "two") for n in range(5)]


def spawn(folder: Path, name: str, n: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, str(n)])


def test_processes_share_a_folder_and_a_kill_leaves_only_whole_files(tmp_path: Path) -> None:
    killed, lives = spawn(tmp_path, "killed", 90_000), spawn(tmp_path, "lives", 20)
    try:
        until(lambda: len(list(tmp_path.glob(f"day=*/*-{killed.pid}-*.parquet"))) >= 5)
        killed.kill()
        assert lives.wait(DEADLINE_S) == 0
    finally:
        for process in (killed, lives):
            process.kill()
            process.wait(DEADLINE_S)
    ids = table(tmp_path)["recommendation_id"].to_pylist()
    n_killed = sum(name.startswith("killed") for name in ids)
    assert [name for name in ids if name.startswith("lives")] == sorted(f"lives-{number}" for number in range(20))
    assert sorted(ids[:n_killed]) == sorted(f"killed-{number}" for number in range(n_killed))
    assert ImpressionFolder(tmp_path).erase(["u:killed"], time.time()) == n_killed >= 5


# Erasing and exporting


def fill(log: ImpressionLog) -> None:
    """Two files: ann with bob and a stranger, then ann alone."""
    log.add("r1", "recommendations", "u:ann", answer("a", "b"), [])
    log.add("r2", "recommendations", "u:bob", answer("c"), [])
    log.add("r3", "search", None, answer("d"), [])
    log.flush()
    log.add("r4", "rank", "u:ann", answer("e"), [])
    log.flush()


def test_somebody_is_erased_from_the_files_and_from_what_waits(logs: Logs) -> None:
    log = logs()
    fill(log)
    log.add("r5", "recommendations", "s:visit", answer("a"), [])
    log.add("r6", "recommendations", "u:ann", answer("a"), [])
    log.add("r7", "recommendations", "u:anna", answer("a"), [])
    assert log.erase("u:ann", "s:visit") == 5
    assert log.erase("u:ann") == 0
    log.close()
    assert column(logs, "recommendation_id") == ["r2", "r3", "r7"]
    assert len(logs.files()) == 2  # the one that only ann was in is gone
    needle = b"u:ann\x00"
    assert all(needle not in (logs.folder / file).read_bytes() + b"\0" for file in logs.files())
    assert "ann" not in "".join(os.listdir(logs.folder / ".erased"))


def test_what_another_process_still_holds_is_left_out_when_it_is_written(logs: Logs) -> None:
    mine, other = logs(), logs()
    other.add("r1", "recommendations", "u:ann", answer("a"), [])
    other.add("r2", "recommendations", "u:bob", answer("b"), [])
    assert mine.erase("u:ann") == 0
    other.flush()
    assert column(logs, "recommendation_id") == ["r2"]
    logs.clock.at_s += 60.0
    other.add("r3", "recommendations", "u:ann", answer("a"), [])  # ann came back
    other.flush()
    assert column(logs, "recommendation_id") == ["r2", "r3"]
    assert logs.dropped.rows == 0


def test_marks_of_erasures_do_not_pile_up(logs: Logs) -> None:
    logs().erase("u:ann")
    assert len(list((logs.folder / ".erased").iterdir())) == 1
    logs.clock.at_s += 2 * DAY_S
    logs()
    until(lambda: not list((logs.folder / ".erased").iterdir()))


def test_two_erasures_at_once_do_not_undo_each_other(logs: Logs) -> None:
    log = logs(rows_per_file=20)
    for number in range(200):
        log.add(f"r{number}", "recommendations", f"u:{number % 20}", answer("a"), [])
    log.flush()
    folder = ImpressionFolder(logs.folder)
    threads = [threading.Thread(target=folder.erase, args=([f"u:{user}"], NOW_S)) for user in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(column(logs, "user")) == {f"u:{user}" for user in range(8, 20)}


def test_a_damaged_file_is_told_and_every_other_is_done(logs: Logs) -> None:
    log = logs()
    fill(log)
    day = logs.folder / "day=2023-12-13"
    day.mkdir()
    (day / "damaged.parquet").write_bytes(b"PAR1 is all there is")
    with pytest.raises(Unavailable, match=r"1 files .*/damaged\.parquet"):
        log.erase("u:ann")
    with pytest.raises(Unavailable, match="could not read"):
        log.rows_of("u:bob")
    (day / "damaged.parquet").unlink()
    assert column(logs, "recommendation_id") == ["r2", "r3"]


def test_all_rows_of_somebody_come_back_oldest_first(logs: Logs) -> None:
    log = logs()
    fill(log)
    logs.clock.at_s -= 60.0
    log.add("r0", "similar", "u:ann", answer("z"), [])
    rows = log.rows_of("u:ann")
    assert rows.schema == IMPRESSION_SCHEMA
    found = zip(rows["recommendation_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True)
    assert list(found) == [("r0", "z"), ("r1", "a"), ("r4", "e"), ("r1", "b")]
    assert log.rows_of("u:nobody").num_rows == 0


# Settings


def test_a_url_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"impressions\.folder.*must be a folder"):
        parse(ServeSettings, {"impressions": {"folder": "s3://bucket/impressions"}}, "test")


def test_impressions_are_kept_at_home_unless_told_otherwise() -> None:
    assert ServeSettings().impressions.folder == str(Path.home() / ".raysys" / "impressions")
    assert parse(ServeSettings, {"impressions": {"folder": None}}, "test").impressions.folder is None


# Through the HTTP API


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_the_answers_of_every_route_are_logged(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "impressions"
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", impressions={"folder": str(folder)})
    bodies: dict[str, dict[str, Any]] = {
        "recommendations": {"user_id": "ann", "query": "quasar zeppelin", "limit": 5},
        "rank": {"session_id": "visit", "items": ["item-1", "item-2"]},
        "search": {"query": "bababa", "limit": 3},
        "similar": {"item_id": "item-0", "limit": 3},
    }
    async with served.client() as client:
        answers = {route: await post(client, f"/v1/{route}", body) for route, body in bodies.items()}
        assert "raysys_impressions_dropped_total 0.0" in (await client.get("/metrics")).text
    await served.stop()
    rows = table(folder).to_pylist()
    users = {"recommendations": "u:ann", "rank": "s:visit", "search": None, "similar": None}
    for route, given in answers.items():
        logged = [row for row in rows if row["recommendation_id"] == given["recommendation_id"]]
        assert {(row["route"], row["user"]) for row in logged} == {(route, users[route])}
        assert [row["item_id"] for row in logged] == [item["item_id"] for item in given["items"]]
        assert [row["score"] for row in logged] == [item["score"] for item in given["items"]]
        assert [row["position"] for row in logged] == [item["rank"] for item in given["items"]]
        scores = [{pair["name"]: pair["score"] for pair in row["sources"]} for row in logged]
        assert scores == [item["sources"] for item in given["items"]]
        assert {row["snapshot_id"] for row in logged} == {given["snapshot_id"]}
    assert len(rows) == sum(len(given["items"]) for given in answers.values())


async def shut_down(app: ASGIApp) -> list[str]:
    """What the app says to a server that starts it and ends it at once."""
    asked = iter(["lifespan.startup", "lifespan.shutdown"])
    said: list[str] = []

    async def receive() -> Message:
        return {"type": next(asked)}

    async def send(message: Message) -> None:
        said.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    return said


async def test_a_shutdown_writes_what_waits(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "impressions"
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", impressions={"folder": str(folder)})
    async with served.client() as client:
        given = await post(client, "/v1/recommendations", {"user_id": "ann"})
    assert len(table(folder)) == 0
    assert await shut_down(served.app) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert set(table(folder)["recommendation_id"].to_pylist()) == {given["recommendation_id"]}
    await served.stop()


async def test_a_broken_folder_is_no_reason_to_fail(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "impressions"
    folder.write_text("a file")
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", impressions={"folder": str(folder)})
    async with served.client() as client:
        given = await post(client, "/v1/recommendations", {"user_id": "ann", "limit": 4})
        assert served.front.impressions is not None
        await asyncio.to_thread(served.front.impressions.flush)
        assert len(given["items"]) == 4
        assert "raysys_impressions_dropped_total 4.0" in (await client.get("/metrics")).text
    await served.stop()


async def test_nothing_is_logged_where_no_folder_is_wanted(shop: Shop, tmp_path: Path) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", impressions={"folder": None})
    async with served.client() as client:
        await post(client, "/v1/recommendations", {"user_id": "ann"})
    assert served.front.impressions is None
    await served.stop()
