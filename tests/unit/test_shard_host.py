"""A shard replica without Ray: which snapshots it holds, and what it says when it does not hold one."""

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from support import DIM, NOW_S, FixedClock, Shop, plain_query

from raysys.encoder.hashing import HashEncoder
from raysys.errors import SnapshotError, SnapshotMismatch, SnapshotNotLoaded, Unavailable, UnknownField
from raysys.in_process import open_shards
from raysys.index.filters import parse
from raysys.index.store import SnapshotStore
from raysys.keys import item_key, item_keys, shard_of
from raysys.serving import shard_host
from raysys.serving.shard_host import ShardHost, recall_thread
from raysys.state.sqlite import SqliteState
from raysys.training.local import build_here
from raysys.types import FRESH, TRENDING, Candidates, Event, ItemDraft

QUERY = plain_query(query=HashEncoder(DIM).encode(["bababa"], "query")[0], k=5)


@pytest.fixture(scope="module")
def store(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> SnapshotStore:
    """Three snapshots in two shards, a day apart: ids sort by time."""
    root = tmp_path_factory.mktemp("three")
    for day in range(3):
        build_here(shop.settings(2, root), FixedClock(NOW_S + day * 86_400))
    return SnapshotStore(root)


@pytest.fixture(scope="module")
def snapshots(store: SnapshotStore) -> list[str]:
    return store.list()


@pytest_asyncio.fixture
async def state(tmp_path: Path) -> AsyncIterator[SqliteState]:
    made = SqliteState(tmp_path / "state.sqlite3")
    yield made
    await made.close()


@pytest_asyncio.fixture
async def host(store: SnapshotStore, state: SqliteState) -> AsyncIterator[ShardHost]:
    made = ShardHost(1, 2, store, recall_thread(1), state)
    yield made
    await made.stop()


def held(host: ShardHost) -> list[str]:
    return host.status()["snapshots"]


async def test_it_answers_as_the_shard_itself(host: ShardHost, store: SnapshotStore, snapshots: list[str]) -> None:
    await host.prepare(snapshots[0])
    (answer,) = (await host.recall([(snapshots[0], QUERY)])).answers
    assert isinstance(answer, Candidates)
    expected = open_shards(store.folder(snapshots[0]))[1].recall([QUERY])[0]
    assert answer.key.tolist() == expected.key.tolist()
    assert np.array_equal(answer.scores, expected.scores)
    assert set(answer.shard.tolist()) == {1}


async def test_old_and_new_answer_side_by_side(host: ShardHost, snapshots: list[str]) -> None:
    old, new, _ = snapshots
    await host.prepare(old)
    await host.prepare(new)
    assert held(host) == [old, new]
    answers = (await host.recall([(old, QUERY), (new, replace(QUERY, k=2)), (old, replace(QUERY, k=3))])).answers
    assert [len(answer) for answer in answers] == [5, 2, 3]


async def test_two_are_held_the_oldest_goes(host: ShardHost, snapshots: list[str]) -> None:
    for snapshot_id in snapshots:
        await host.prepare(snapshot_id)
    assert held(host) == snapshots[1:]


async def test_the_one_that_is_prepared_again_is_not_the_oldest(host: ShardHost, snapshots: list[str]) -> None:
    """After a rollback from the second to the first, a third must not push the first out: it is in use."""
    first, second, third = snapshots
    for snapshot_id in (first, second, first, third):
        await host.prepare(snapshot_id)
    assert held(host) == [first, third]


async def test_preparing_twice_at_once_opens_it_once(host: ShardHost, snapshots: list[str]) -> None:
    await asyncio.gather(*(host.prepare(snapshots[0]) for _ in range(4)))
    assert held(host) == [snapshots[0]]


async def test_a_snapshot_asked_for_before_it_is_held_is_opened(host: ShardHost, snapshots: list[str]) -> None:
    (answer,) = (await host.recall([(snapshots[0], QUERY)])).answers
    assert isinstance(answer, Candidates)
    assert held(host) == [snapshots[0]]


@pytest.mark.parametrize("snapshot_id", ["20200101T000000-abcdef", "../etc", ""])
async def test_a_snapshot_that_is_not_there_is_said_and_the_others_answer(
    host: ShardHost, snapshots: list[str], snapshot_id: str
) -> None:
    await host.prepare(snapshots[0])
    missing, answer = (await host.recall([(snapshot_id, QUERY), (snapshots[0], QUERY)])).answers
    assert isinstance(missing, SnapshotNotLoaded)
    assert "shard 1 cannot serve" in str(missing)
    assert isinstance(answer, Candidates)
    with pytest.raises(SnapshotError):
        await host.prepare(snapshot_id)
    assert held(host) == [snapshots[0]]


async def test_another_number_of_shards_is_refused(
    snapshots: list[str], store: SnapshotStore, state: SqliteState
) -> None:
    three = ShardHost(1, 3, store, recall_thread(1), state)
    with pytest.raises(SnapshotMismatch, match="2 shards, but 3 are deployed"):
        await three.prepare(snapshots[0])
    assert held(three) == []


@pytest.mark.parametrize(
    "name", ["keys.npy", "vectors.npy", "items.arrow", "index.faiss", "popularity.npy", "transition/rows.npy"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
async def test_a_damaged_shard_is_not_taken_and_the_old_one_stays(
    store: SnapshotStore, snapshots: list[str], state: SqliteState, tmp_path: Path, name: str, damage: str
) -> None:
    for snapshot_id in snapshots[:2]:
        shutil.copytree(store.folder(snapshot_id), tmp_path / "snapshots" / snapshot_id)
    path = tmp_path / "snapshots" / snapshots[1] / "shard-00001" / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        b"" if damage == "empty" else content[: len(content) // 2]
    )
    host = ShardHost(1, 2, SnapshotStore(tmp_path), recall_thread(1), state)
    await host.prepare(snapshots[0])
    with pytest.raises(SnapshotError, match=Path(name).name):
        await host.prepare(snapshots[1])
    assert held(host) == [snapshots[0]]
    (answer,) = (await host.recall([(snapshots[0], QUERY)])).answers
    assert isinstance(answer, Candidates)
    await host.stop()


async def test_a_wrong_query_fails_alone(host: ShardHost, snapshots: list[str]) -> None:
    wrong = replace(QUERY, filter=parse({"must": [{"field": "colour", "match": "red"}]}))
    good, bad, also_good = (await host.recall([(snapshots[0], query) for query in (QUERY, wrong, QUERY)])).answers
    assert isinstance(good, Candidates)
    assert isinstance(bad, UnknownField)
    assert isinstance(also_good, Candidates)


async def test_status_counts_the_newest(host: ShardHost, store: SnapshotStore, snapshots: list[str]) -> None:
    assert host.status() == {"snapshots": [], "items": 0, "change_sequence": 0, "state": ""}
    await host.prepare(snapshots[0])
    assert host.status()["items"] == store.manifest(snapshots[0]).shards[1].n_items


async def test_an_empty_batch_is_fine(host: ShardHost) -> None:
    assert (await host.recall([])).answers == []


# What people do, and what is new

MINE = [f"item-{n}" for n in range(100) if shard_of(item_key(f"item-{n}"), 2) == 1]
OTHERS = [f"item-{n}" for n in range(100) if shard_of(item_key(f"item-{n}"), 2) == 0]


def event(n: int, item_id: str | None, kind: str = "view", age_s: float = 0.0) -> Event:
    return Event(f"event-{n}", kind, f"u:{n}", item_id, time.time() - age_s)


async def found_by(host: ShardHost, snapshot_id: str, source: int) -> set[int]:
    """The items that this source puts forward now."""
    (answer,) = (await host.recall([(snapshot_id, replace(QUERY, now_s=time.time(), k=200))])).answers
    assert isinstance(answer, Candidates)
    return set(answer.key[answer.found_by >> source & 1 > 0].tolist())


async def until_found(host: ShardHost, snapshot_id: str, source: int, item_ids: list[str]) -> None:
    """Wait until the source puts exactly these items forward: a second, and more where the machine is busy."""
    wanted, deadline_s = set(item_keys(item_ids).tolist()), time.monotonic() + 10
    while (found := await found_by(host, snapshot_id, source)) != wanted:
        assert time.monotonic() < deadline_s, f"{len(found)} found, not {len(wanted)}"
        await asyncio.sleep(0.02)


async def test_events_of_its_items_are_trending_soon(host: ShardHost, state: SqliteState, snapshots: list[str]) -> None:
    await host.prepare(snapshots[0])
    assert await found_by(host, snapshots[0], TRENDING) == set()
    liked = [event(n, item_id) for n, item_id in enumerate([*MINE[:5], *OTHERS[:5]])]
    others = [
        event(20, MINE[6], "dislike"),
        event(21, MINE[7], "search"),
        event(22, None),
        event(23, MINE[8], age_s=2e5),
    ]
    await state.append([*liked, *others, event(24, "never-heard-of")])
    await until_found(host, snapshots[0], TRENDING, MINE[:5])
    await state.append([event(25, MINE[9], "purchase")])
    await until_found(host, snapshots[0], TRENDING, [*MINE[:5], MINE[9]])


async def test_both_snapshots_see_the_same_trends(host: ShardHost, state: SqliteState, snapshots: list[str]) -> None:
    await host.prepare(snapshots[0])
    await state.append([event(0, MINE[0])])
    await until_found(host, snapshots[0], TRENDING, MINE[:1])
    await host.prepare(snapshots[1])
    assert await found_by(host, snapshots[1], TRENDING) == {item_key(MINE[0])}


async def test_a_restarted_replica_knows_the_recent_past(
    store: SnapshotStore, state: SqliteState, snapshots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_host, "RECENT", 3 * shard_host.PAGE)
    await state.append([event(-1, MINE[1])])
    await state.append([event(n, MINE[0] if n == 0 else OTHERS[0]) for n in range(3 * shard_host.PAGE)])
    restarted = ShardHost(1, 2, store, recall_thread(1), state)
    await restarted.prepare(snapshots[0])
    await until_found(restarted, snapshots[0], TRENDING, [MINE[0]])
    await restarted.stop()


class Away(SqliteState):
    """A store that cannot be reached now and then."""

    is_away = False

    async def events_after(self, sequence: int, limit: int) -> list[tuple[int, Event]]:
        if self.is_away:
            raise Unavailable("the store is away")
        return await super().events_after(sequence, limit)


async def test_a_store_that_is_away_is_said_and_asked_again(
    store: SnapshotStore,
    snapshots: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shard_host, "RETRY_S", 0.01)
    away = Away(tmp_path / "away.sqlite3")
    host = ShardHost(1, 2, store, recall_thread(1), away)
    await host.prepare(snapshots[0])
    away.is_away = True
    deadline_s = time.monotonic() + 10
    with caplog.at_level(logging.WARNING):
        while "shard 1 cannot follow the events now: the store is away" not in caplog.text:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)
    await away.append([event(0, MINE[0])])
    await away.change_items([ItemDraft(MINE[1], {"title": "changed"})], NOW_S)  # the change log is followed meanwhile
    assert await found_by(host, snapshots[0], TRENDING) == set()
    away.is_away = False
    await until_found(host, snapshots[0], TRENDING, MINE[:1])
    while host.status()["change_sequence"] == 0:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
    await host.stop()
    await away.close()


async def test_an_item_new_through_the_api_is_fresh_and_an_edited_one_is_not(
    host: ShardHost, state: SqliteState, snapshots: list[str]
) -> None:
    await host.prepare(snapshots[0])
    new = [f"new-{n}" for n in range(20) if shard_of(item_key(f"new-{n}"), 2) == 1]
    drafts = [ItemDraft(item_id, {"title": item_id}) for item_id in (*new[:3], MINE[0])]
    await state.change_items(drafts, time.time())
    await until_found(host, snapshots[0], FRESH, new[:3])
    await state.change_items([ItemDraft(new[0], {"title": "again"}), ItemDraft(new[1], None)], time.time() + 60)
    await until_found(host, snapshots[0], FRESH, [new[0], new[2]])


async def test_changes_of_many_pages_are_taken_in(
    host: ShardHost, store: SnapshotStore, state: SqliteState, snapshots: list[str]
) -> None:
    new = [f"new-{n}" for n in range(5 * shard_host.PAGE)]
    changes = await state.change_items([ItemDraft(item_id, {"title": item_id}) for item_id in new], time.time())
    before = open_shards(store.folder(snapshots[0]))[1].n_items
    await host.prepare(snapshots[0])
    assert host.status()["items"] == before + sum(shard_of(item_key(item_id), 2) == 1 for item_id in new)
    assert changes[-1] is not None
    assert host.status()["change_sequence"] == changes[-1].sequence
