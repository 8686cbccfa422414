"""The snapshot commands over HTTP: the same acts on the same store, beside requests that go on being answered."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from snapshot_shelf import A, B, C, D, swap, unfinished
from support import Served, serve_here, server_of
from typer.testing import CliRunner

from raysys.cli import app
from raysys.client import ApiError, Client
from raysys.errors import Overloaded, Unavailable
from raysys.index.retention import collect
from raysys.index.store import HISTORY, LOCK, POINTER, SnapshotStore
from raysys.serving.audit import ACTS, SNAPSHOTS
from raysys.serving.snapshots import LONG_AT_ONCE, Acts

PATH = "/v1/admin/snapshots"


@pytest_asyncio.fixture
async def served(store: SnapshotStore, tmp_path: Path) -> AsyncIterator[Served]:
    made = await serve_here(store, tmp_path / "state.sqlite3")
    yield made
    await made.stop()


async def ask(client: httpx.AsyncClient, act: str, **body: Any) -> httpx.Response:
    return await client.post(f"{PATH}:{act}", json=body)


async def good(client: httpx.AsyncClient, act: str, **body: Any) -> dict[str, Any]:
    response = await ask(client, act, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def problem(client: httpx.AsyncClient, status: int, code: str, act: str, **body: Any) -> dict[str, Any]:
    response = await ask(client, act, **body)
    content: dict[str, Any] = response.json()
    assert (response.status_code, content["code"]) == (status, code), content
    assert response.headers["content-type"] == "application/problem+json"
    return content


def pointer_of(store: SnapshotStore) -> dict[str, bytes]:
    return {name: (store.root / name).read_bytes() for name in (POINTER, HISTORY)}


async def row(client: httpx.AsyncClient, snapshot_id: str) -> dict[str, Any]:
    listed = (await client.get(PATH)).json()["snapshots"]
    (found,) = [one for one in listed if one["snapshot_id"] == snapshot_id]
    return dict(found)


async def test_the_list_is_that_of_the_command(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    unfinished(store, D)
    listed = (await client.get(PATH)).json()
    printed = CliRunner().invoke(app, ["snapshots", "list", "--json", "--root", str(store.root)]).stdout
    told = json.loads(printed)
    for one in (*listed["snapshots"], *told["snapshots"]):
        one.pop("age_s")
    assert listed == told
    assert [(one["snapshot_id"], one["state"]) for one in listed["snapshots"]] == [
        *((snapshot_id, "complete") for snapshot_id in (A, B, C)),
        (D, "unfinished"),
    ]
    assert (listed["current"], listed["history"][-1]["by"]) == (A, "build")


async def test_verify_says_what_is_wrong_with_which_file(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    whole = await good(client, "verify")
    assert (whole["snapshot_id"], whole["ok"]) == (A, True)
    assert "encoder" not in {check["what"] for check in whole["checks"]}
    again = await good(client, "verify", snapshot_id=A, encoder=True)
    assert "8 items encoded again" in again["checks"][-1]["found"]
    swap(store.folder(B) / "shard-00000/vectors.npy", lambda content: content[:-1])
    damaged = await good(client, "verify", snapshot_id=B)
    assert damaged["ok"] is False
    assert [check["file"] for check in damaged["checks"] if check["level"] == "fail"] == ["shard-00000/vectors.npy"]


async def test_activate_by_force_and_roll_back(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    done = await good(client, "activate", snapshot_id=C, force=True)
    assert (done["snapshot_id"], done["before"]) == (C, A)
    assert done["forced"][0].startswith("2 -> 1 shards")
    compared = done["comparison"]
    assert compared["items"] == compared["items_before"] == store.manifest(A).n_items
    assert compared["answers"]["n_asked"] == 200
    assert store.current_id() == C
    assert (store.history()[-1].by, list(store.history()[-1].forced)) == ("activate", done["forced"])
    assert await good(client, "rollback", published=C) == {"snapshot_id": A, "before": C}
    assert store.current_id() == A


async def test_whoever_sends_a_rollback_twice_goes_back_once(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    store.publish(B)
    await good(client, "rollback", published=B)
    before = pointer_of(store)
    said = await problem(client, 409, "snapshot_conflict", "rollback", published=B)
    assert f"{A} is published, not {B}" in said["detail"]
    said = await problem(client, 409, "snapshot_conflict", "rollback", published=A)
    assert "nothing was published before" in said["detail"]
    missing = await problem(client, 422, "invalid_input", "rollback")  # which it was, nobody could tell the second time
    assert missing["errors"][0]["field"] == "published"
    assert pointer_of(store) == before


def with_canary(store: SnapshotStore) -> None:
    store.set_canary(B, 0.2, A)


def with_a_way_back(store: SnapshotStore) -> None:
    for snapshot_id in (B, C):
        store.publish(snapshot_id)


# Of each act: what was before, what is asked, and what its second sending is told.
TWICE: dict[str, list[tuple[Callable[[SnapshotStore], None] | None, dict[str, Any], int]]] = {
    "verify": [(None, {}, 200)],
    "activate": [(None, {"snapshot_id": B}, 200), (with_canary, {"snapshot_id": B}, 200)],
    "rollback": [(with_a_way_back, {"published": C}, 409)],
    "canary": [(None, {"snapshot_id": B, "share": 0.2}, 200), (with_canary, {"snapshot_id": B, "share": 0.9}, 200)],
    "promote": [(with_canary, {}, 409), (with_canary, {"canary": B}, 409)],
    "withdraw": [(with_canary, {}, 409), (with_canary, {"canary": B}, 409)],
    "gc": [(with_a_way_back, {"keep": 1, "embeddings": True}, 200)],
}


def written(root: Path) -> dict[str, tuple[bytes, int]]:
    """Each file under the root but for locks: its content, and when it was written in nanoseconds."""
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "leases" and path.name != LOCK]
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_of_every_act_it_is_known_what_its_second_sending_does() -> None:
    assert set(TWICE) == set(ACTS)


@pytest.mark.parametrize(("act", "number"), [(act, n) for act, cases in TWICE.items() for n in range(len(cases))])
async def test_sent_twice_an_act_ends_where_sent_once(store: SnapshotStore, client, act: str, number: int) -> None:
    """As the proxy does where a gateway dies before it has answered."""
    prepare, body, second = TWICE[act][number]
    if prepare is not None:
        prepare(store)
    before = written(store.root)
    await good(client, act, **body)
    after = written(store.root)
    assert (after == before) == (act == "verify")
    again = await ask(client, act, **body)
    assert (again.status_code, again.json().get("code")) == (second, "snapshot_conflict" if second == 409 else None)
    assert written(store.root) == after


async def test_a_promotion_sent_twice_is_told_that_it_is_done(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    with_canary(store)
    await good(client, "promote", canary=B)
    said = await problem(client, 409, "snapshot_conflict", "promote", canary=B)
    assert f"{B} is published already" in said["detail"]


async def test_a_refused_snapshot_changes_nothing_but_the_status_which_says_why(
    store: SnapshotStore, client: httpx.AsyncClient
) -> None:
    before = pointer_of(store)
    said = await problem(client, 409, "snapshot_refused", "activate", snapshot_id=C)
    assert f"{C} is refused, {A} stays published" in said["detail"]
    reasons = [error["message"] for error in said["errors"]]
    assert {error["field"] for error in said["errors"]} == {"snapshot_id"}
    assert reasons[0].startswith("2 -> 1 shards")
    assert pointer_of(store) == before
    listed = await row(client, C)
    assert (listed["refused"], listed["state"]) == (reasons, "complete")
    assert listed["refused_at"] is not None
    assert (await row(client, B))["refused_at"] is None
    printed = CliRunner().invoke(app, ["snapshots", "list", "--root", str(store.root)], env={"COLUMNS": "200"}).stdout
    assert f"{C} was refused at {listed['refused_at']}: {'; '.join(reasons)}" in printed
    store.publish(C)
    assert ((await row(client, C))["refused_at"], (await row(client, C))["is_current"]) == (None, True)


async def test_a_damaged_one_is_refused_whatever_is_forced(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    swap(store.folder(B) / "shard-00000/vectors.npy", lambda content: content[:-1] + b"\x77")
    before = pointer_of(store)
    said = await problem(client, 409, "snapshot_damaged", "activate", snapshot_id=B, force=True)
    assert "its SHA-256 is not the one in the manifest" in said["detail"]
    assert (await row(client, B))["refused"] == [said["detail"]]
    assert pointer_of(store) == before


@pytest.mark.parametrize("act", ["verify", "activate"])
async def test_an_unknown_id_is_404_and_an_odd_one_422(store: SnapshotStore, client, act: str) -> None:
    said = await problem(client, 404, "unknown_snapshot", act, snapshot_id=D)
    assert D in said["detail"]
    for odd in ("", "..", "../secret", "a/b", "a" * 65, "ñ", 5, None):
        await problem(client, 422, "invalid_input", act, snapshot_id=odd)
    assert not store.lease_path(D).exists()
    assert (await row(client, B))["refused_at"] is None


async def test_an_unfinished_one_and_one_of_the_future_are_not_published(store: SnapshotStore, client) -> None:
    unfinished(store, D)
    assert (
        "not a finished snapshot"
        in (await problem(client, 409, "snapshot_damaged", "activate", snapshot_id=D))["detail"]
    )
    swap(
        store.folder(B) / "manifest.json",
        lambda content: content.replace(b'"format_version": 1', b'"format_version": 9'),
    )
    assert "upgrade" in (await problem(client, 409, "snapshot_too_new", "activate", snapshot_id=B))["detail"]


async def test_collect_removes_what_the_command_would(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    for snapshot_id in (B, C):
        store.move(snapshot_id, "build")
    unfinished(store, D)
    would = [(one.path, one.why) for one in collect(store, keep=1, dry_run=True)]
    dry = await good(client, "gc", keep=1, dry_run=True)
    assert [(one["path"], one["why"]) for one in dry["removed"]] == would
    assert store.folder(A).exists()
    gone = await good(client, "gc", keep=1)
    assert {one["path"] for one in gone["removed"]} == {f"snapshots/{A}", f"snapshots/{D}", f"staging/{D}"}
    assert gone["freed_bytes"] == dry["freed_bytes"] > 0
    assert (store.folder(A).exists(), store.folder(B).exists()) == (False, True)
    assert (await good(client, "gc", keep=1))["removed"] == []
    await problem(client, 422, "invalid_input", "gc", keep=0)


async def test_why_one_was_refused_goes_with_it(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    store.refuse(B, ["too few"])
    (store.root / "refusals" / ".half.tmp").touch()  # of a process that was killed
    collect(store, keep=None)
    assert [path.name for path in (store.root / "refusals").iterdir()] == [B]
    store.publish(C)
    assert {one.path for one in collect(store, keep=1)} == {f"snapshots/{B}"}
    assert list((store.root / "refusals").iterdir()) == []


async def test_a_refusal_that_cannot_be_read_costs_only_itself(store: SnapshotStore, client: httpx.AsyncClient) -> None:
    store.refuse(B, ["too few"])
    store.refusal_path(B).write_bytes(b"{")
    assert (await row(client, B))["refused_at"] is None


# Beside everything else


async def test_acts_that_wait_hold_up_nothing_and_only_a_few_may(store: SnapshotStore, client) -> None:
    store.move(B, "build")
    with store.locked():  # as another process that publishes: a collection waits for it
        waiting = {asyncio.create_task(ask(client, "gc")) for _ in range(LONG_AT_ONCE + 1)}
        (first,), waiting = await asyncio.wait(waiting, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        sent_away = first.result()
        assert (sent_away.status_code, sent_away.json()["code"]) == (429, "overloaded")
        assert int(sent_away.headers["retry-after"]) >= 1
        assert (await ask(client, "verify")).status_code == 429
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post("/v1/search", json={"query": "bababa"})).status_code == 200
        assert (await client.get(PATH)).status_code == 200
        assert not any(task.done() for task in waiting)
    assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}
    assert await good(client, "rollback", published=B) == {"snapshot_id": A, "before": B}


async def test_one_whose_caller_hangs_up_goes_on_and_keeps_its_place() -> None:
    acts, go_on, ended = Acts(1, 3.0), threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait()
        ended.set()

    caller = asyncio.create_task(acts.run(work))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with pytest.raises(Overloaded) as refused:
        await acts.run(work)
    assert refused.value.retry_after_s == 3.0
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 30)
    async with asyncio.timeout(30):
        while True:
            try:
                assert await acts.run(lambda: 5) == 5
                break
            except Overloaded:
                await asyncio.sleep(0)


async def test_an_act_that_nobody_waits_for_is_audited_as_that_and_takes_effect(
    store: SnapshotStore, client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raysys.audit")
    store.publish(B)
    with store.locked():
        caller = asyncio.create_task(ask(client, "rollback", published=B))
        async with asyncio.timeout(30):
            while not any(thread.name.startswith("snapshots") for thread in threading.enumerate()):
                await asyncio.sleep(0.001)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "raysys.audit"]
    assert (line["status"], line["asked"]) == (499, {"published": B})
    async with asyncio.timeout(30):
        while (await client.get(PATH)).json()["current"] != A:
            await asyncio.sleep(0.001)


async def test_a_place_is_given_back_however_an_act_ends() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    def broken() -> None:
        raise ZeroDivisionError

    acts = Acts(1, 1.0)
    for work, error in ((full, Unavailable), (broken, ZeroDivisionError)) * 3:
        with pytest.raises(error):
            await acts.run(work)
    with pytest.raises(Unavailable, match="No space left on device"):
        await acts.run(full)


async def test_acts_are_in_the_audit_log_with_what_was_asked(client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raysys.audit")
    await client.get(PATH)
    await good(client, "verify", snapshot_id=A)
    await problem(client, 404, "unknown_snapshot", "activate", snapshot_id=D)
    await problem(client, 409, "snapshot_conflict", "rollback", published=B)
    await problem(client, 404, "unknown_snapshot", "canary", snapshot_id=D, share=0.5)
    await problem(client, 409, "snapshot_conflict", "promote", canary=D)
    await problem(client, 409, "snapshot_conflict", "withdraw")
    await good(client, "gc", dry_run=True)
    await client.post(f"{PATH}:gc", content=b"{")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "raysys.audit"]
    assert [(line["act"].removeprefix(f"{PATH}:"), line["status"], line.get("asked")) for line in lines] == [
        ("verify", 200, {"snapshot_id": A, "encoder": False}),
        ("activate", 404, {"snapshot_id": D, "force": False}),
        ("rollback", 409, {"published": B}),
        ("canary", 404, {"snapshot_id": D, "share": 0.5, "force": False}),
        ("promote", 409, {"canary": D}),
        ("withdraw", 409, {"canary": None}),
        ("gc", 200, {"keep": 3, "dry_run": True, "embeddings": False}),
        ("gc", 400, None),
    ]
    assert {line["act"] for line in lines} == SNAPSHOTS


def test_the_client_does_all_of_it(store: SnapshotStore, tmp_path: Path) -> None:
    with server_of(store, tmp_path / "state.sqlite3") as url, Client(url, timeout_s=60) as api:
        assert [one["snapshot_id"] for one in api.snapshots()["snapshots"]] == [A, B, C]
        assert api.verify_snapshot()["ok"]
        assert api.activate_snapshot(A)["before"] == A  # there is nothing to compare
        store.publish(B)
        with pytest.raises(ApiError, match=f"404 unknown_snapshot: there is no snapshot {D}"):
            api.activate_snapshot(D)
        assert api.rollback_snapshot(published=B)["snapshot_id"] == A
        assert api.collect_snapshots(keep=1, dry_run=True)["removed"] == []
