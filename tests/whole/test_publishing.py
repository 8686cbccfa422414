"""Looking through a snapshot, comparing it with the published one, and the commands over both."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snapshot_shelf import A, B, C, change_manifest, copy_of, shelf, swap, unfinished
from support import FixedClock, Shop, post, serve_here
from typer.testing import CliRunner

from raysys.cli import app
from raysys.errors import SnapshotError, SnapshotRefused
from raysys.index.arrays import save_array
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import MANIFEST, file_record, read_manifest
from raysys.index.store import HISTORY, POINTER, SnapshotStore
from raysys.publishing.activate import Comparison, activate
from raysys.publishing.replay import Agreement, compare, some_people
from raysys.publishing.verify import Check, checks, failed
from raysys.snapshots import readable_age, wait_for
from raysys.training.local import build_here


@pytest.fixture
def store(shop: Shop, tmp_path: Path) -> SnapshotStore:
    """A is published, B has the same content."""
    store = SnapshotStore(tmp_path / "index")
    for snapshot_id in (A, B):
        copy_of(shop.snapshot(2), store, snapshot_id)
    store.publish(A)
    return store


def resign(folder: Path, name: str) -> None:
    """Make the manifest name the file as it is now: what is wrong with it is not that it was damaged later."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    change_manifest(folder, files=files | {name: file_record(folder / name).model_dump()})


def failures(folder: Path, with_encoder: bool = False) -> list[tuple[str, str]]:
    return [(check.what, check.file) for check in checks(folder, with_encoder) if check.level == "fail"]


# Verify


def test_a_whole_snapshot_passes_everything(store: SnapshotStore) -> None:
    found = list(checks(store.folder(A)))
    assert {check.level for check in found} == {"ok"}
    said = {check.what: check.found for check in found}
    assert {"manifest", "writers", "files", "ranking", "models", "shard", "self-queries", "encoder"} == set(said)
    assert "64 of 64 vectors find themselves first (flat)" in said["self-queries"]
    assert "8 items encoded again, the least cosine 1.0000" in said["encoder"]


@pytest.mark.parametrize("change", [lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: c[:-1], lambda c: c + b"\0"])
def test_every_damaged_file_is_named(store: SnapshotStore, change: Callable[[bytes], bytes]) -> None:
    folder = store.folder(A)
    names = ["shard-00000/vectors.npy", "shard-00001/index.faiss"]
    for name in names:
        swap(folder / name, change)
    (folder / "report.json").unlink()
    found = list(checks(folder))
    assert {check.file for check in found if check.level == "fail"} == {*names, "report.json"}
    assert found[-1] == Check("note", "contents", "not looked at, as files are damaged")


def vectors_of(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "shard-00000" / "vectors.npy"
    save_array(path, change(np.load(path)))


def test_what_does_not_fit_together_is_named(store: SnapshotStore) -> None:
    folder = store.folder(A)
    name = "shard-00000/vectors.npy"
    content = (folder / name).read_bytes()
    for change in (lambda v: v[:, :32].copy(), lambda v: v[:-1].copy(), lambda v: v.astype(np.float64)):
        (folder / name).write_bytes(content)
        vectors_of(folder, change)
        resign(folder, name)
        assert failures(folder) == [("shard", name)]
    (folder / name).write_bytes(content)
    vectors_of(folder, lambda v: np.where(np.arange(len(v))[:, None] % 2 == 0, np.nan, v).astype(np.float32))
    resign(folder, name)
    assert [what for what, _ in failures(folder)] == ["self-queries"]
    (folder / name).write_bytes(content)
    resign(folder, name)
    assert failures(folder) == []
    keys = folder / "shard-00000" / "keys.npy"
    save_array(keys, np.load(keys)[::-1].copy())
    resign(folder, "shard-00000/keys.npy")
    assert failures(folder) == [("shard", "shard-00000/keys.npy")]


def test_an_index_of_other_vectors_is_found_out(shop: Shop, tmp_path: Path) -> None:
    plain = shop.settings(1, root=tmp_path, kind="hnsw").model_copy(update={"events": None})
    build_here(plain, FixedClock())
    store = SnapshotStore(tmp_path)
    folder = store.folder(store.current_id())
    assert failures(folder) == []
    vectors_of(folder, lambda v: v[np.random.default_rng(1).permutation(len(v))].copy())
    resign(folder, "shard-00000/vectors.npy")
    assert failures(folder) == [("self-queries", "shard-00000/index.faiss")]


def test_what_the_manifest_says_wrongly_is_found_out(store: SnapshotStore) -> None:
    folder = store.folder(A)
    good = (folder / MANIFEST).read_bytes()
    for changes, what in (
        ({"snapshot_id": B}, "manifest"),
        ({"n_items": 3}, "manifest"),
        ({"format_version": 99}, "manifest"),
        ({"files": "x"}, "manifest"),
    ):
        change_manifest(folder, **changes)
        assert (what, MANIFEST) in failures(folder)
        (folder / MANIFEST).write_bytes(good)
    change_manifest(folder, written_by={"faiss": "0.0.1"})
    (check,) = [check for check in checks(folder, False) if check.what == "writers"]
    assert (check.level, "faiss 0.0.1" in check.found) == ("note", True)
    (folder / MANIFEST).unlink()
    assert failures(folder) == [("manifest", MANIFEST)]


def test_a_file_that_nobody_named_is_named(store: SnapshotStore) -> None:
    (store.folder(A) / "spaces" / "extra.npy").write_bytes(b"x")
    assert failures(store.folder(A)) == [("files", "spaces/extra.npy")]


def test_another_model_is_found_out(store: SnapshotStore) -> None:
    folder = store.folder(A)
    identity = read_manifest(folder).identity
    change_manifest(folder, identity=identity | {"query_prompt": "q: "})
    assert failures(folder, with_encoder=True) == [("encoder", MANIFEST)]
    change_manifest(folder, identity=identity, encoder={"kind": "transformers", "model": "/no/such/folder"})
    found = list(checks(folder))
    assert not failed(found)
    assert [check.level for check in found if check.what == "encoder"] == ["note"]


def test_vectors_of_another_text_are_found_out(store: SnapshotStore) -> None:
    folder = store.folder(A)
    vectors_of(folder, lambda v: np.roll(v, 1, axis=1))  # as another model would give: they still find themselves
    resign(folder, "shard-00000/vectors.npy")
    assert failures(folder, with_encoder=True) == [("encoder", "")]


# Compare


def test_a_snapshot_answers_like_itself(store: SnapshotStore) -> None:
    people = some_people(store.folder(A), None, None)
    assert len(people) == 200
    agreement = compare(store.folder(A), store.folder(B), people[:20], FixedClock())
    assert (agreement.n_asked, agreement.n_people, agreement.overlap, agreement.empty) == (20, 0, 1.0, 0.0)


def test_made_up_people_know_items_and_are_the_same_each_time(store: SnapshotStore) -> None:
    catalogue = Catalogue(store.folder(A))
    people = some_people(store.folder(A), None, None, 30)
    assert people == some_people(store.folder(B), None, None, 30)
    histories = [one.request.history for one in people[1:]]
    assert people[0].request.history == ()
    assert {len(history) for history in histories} == {1, 2, 3}
    assert all(catalogue.find(history).known.all() for history in histories)


async def test_people_of_the_log_are_asked_as_they_are(store: SnapshotStore, tmp_path: Path) -> None:
    served = await serve_here(store, tmp_path / "state.sqlite3")
    async with served.client() as client:
        for user in ("ann", "bob", "nobody"):
            answer = await post(client, "/v1/recommendations", user_id=user, limit=3)
            event = {"event_id": user, "type": "like", "user_id": user, "item_id": answer["items"][0]["item_id"]}
            if user != "nobody":
                assert (await post(client, "/v1/events", events=[event]))["accepted"] == 1
    await served.stop()
    places = (str(tmp_path / "impressions"), str(tmp_path / "state.sqlite3"))
    people = await in_thread(lambda: some_people(store.folder(A), *places, n=10))
    assert len(people) == 10
    assert {one.profile.user for one in people if one.profile.version} == {"u:ann", "u:bob"}
    assert await in_thread(lambda: some_people(store.folder(A), places[0], "/no/such/state", n=10))


async def in_thread(work: Callable[[], Any]) -> Any:
    import asyncio

    return await asyncio.to_thread(work)


GOOD = Agreement(10, 5, overlap=0.9, empty=0.0, old_ms=5, new_ms=6)


@pytest.mark.parametrize(
    ("agreement", "reason"),
    [
        (GOOD, None),
        (Agreement(10, 5, 0.2, 0.0, 5, 6), "the answers overlap by 0.20, at least 0.3 is wanted"),
        (Agreement(10, 5, 0.9, 0.1, 5, 6), "10.0% of the answers are empty that were not, 1% may be"),
        (Agreement(10, 5, 0.9, 0.0, 10, 40), "an answer takes 40 ms in place of 10"),
        (Agreement(10, 5, 0.9, 0.0, 1, 19), None),  # many times as long, and still nothing
    ],
)
def test_answers_that_are_too_unlike_are_a_reason(store: SnapshotStore, agreement, reason: str | None) -> None:
    manifest = store.manifest(A)
    found = Comparison(manifest, manifest, agreement).reasons()
    assert found == [] if reason is None else found[0].startswith(reason)


def test_manifests_that_are_too_unlike_are_reasons(store: SnapshotStore) -> None:
    old = store.manifest(A)
    for changes, reason in (
        ({"n_items": old.n_items // 2}, "50% of the items are gone, 20% may be"),
        ({"n_items": old.n_items * 3}, "200% more items, 100% may be"),
        ({"shards": old.shards[:1]}, "2 -> 1 shards: a running tiered application stays"),
    ):
        (found,) = Comparison(old, old.model_copy(update=changes), GOOD).reasons()
        assert found.startswith(reason)


def test_another_encoder_is_said_and_no_reason_against_it(store: SnapshotStore) -> None:
    old = store.manifest(A)
    compared = Comparison(old, old.model_copy(update={"identity": old.identity | {"dim": 3}}), GOOD)
    assert compared.reasons() == []
    assert f"encoder: {old.identity['name']} (64) -> {old.identity['name']} (3); servers load" in compared.lines()[1]


# Activate


def test_activate_moves_the_pointer_and_says_what_was(store: SnapshotStore) -> None:
    done = activate(store, B, n_asked=20)
    assert (done.snapshot_id, done.before, done.forced) == (B, A, ())
    assert done.comparison is not None
    assert done.comparison.agreement is not None
    assert done.comparison.agreement.overlap == 1.0
    assert store.current_id() == B
    assert [(move.snapshot_id, move.by) for move in store.history()] == [(A, "build"), (B, "activate")]
    assert activate(store, B).comparison is None  # it is published already
    assert store.rollback() == (B, A)


def test_a_refusal_that_cannot_be_written_hides_nothing(shop: Shop, store: SnapshotStore) -> None:
    copy_of(shop.snapshot(1), store, C)
    (store.root / "refusals").touch()  # no folder
    with pytest.raises(SnapshotRefused, match="2 -> 1 shards"):
        activate(store, C, n_asked=2)
    assert store.refusal(C) is None


def test_the_first_snapshot_has_nothing_to_be_compared_with(store: SnapshotStore) -> None:
    (store.root / POINTER).unlink()
    assert activate(store, B).before is None
    assert store.current_id() == B


def test_a_damaged_snapshot_is_refused_whatever_is_forced_and_nothing_changes(store: SnapshotStore) -> None:
    swap(store.folder(B) / "shard-00000/vectors.npy", lambda content: content[:-1] + b"\x77")
    before = content_of(store)
    with pytest.raises(SnapshotError, match=r"vectors\.npy is damaged: its SHA-256"):
        activate(store, B, force=True)
    with pytest.raises(SnapshotError, match=f"there is no snapshot {C}"):
        activate(store, C, force=True)
    assert content_of(store) == before
    assert not store.lease_path(C).exists()
    assert store.refusal(C) is None
    assert "its SHA-256" in str(store.refusal(B))


def content_of(store: SnapshotStore) -> dict[str, bytes]:
    """Pointer and history."""
    return {name: (store.root / name).read_bytes() for name in (POINTER, HISTORY)}


def test_too_unlike_is_refused_with_the_figures_unless_forced(shop: Shop, store: SnapshotStore) -> None:
    copy_of(shop.snapshot(1), store, C)
    before = content_of(store)
    with pytest.raises(SnapshotRefused, match=f"{C} is refused, {A} stays published: 2 -> 1 shards.*--force"):
        activate(store, C, n_asked=20)
    assert content_of(store) == before
    refusal = store.refusal(C)
    assert refusal is not None
    assert refusal.reasons[0].startswith("2 -> 1 shards")
    done = activate(store, C, force=True, n_asked=20)
    assert store.refusal(C) is None
    assert store.current_id() == C
    assert store.history()[-1].forced == done.forced
    assert done.forced[0].startswith("2 -> 1 shards")


def test_where_the_published_one_is_gone_or_cannot_be_opened_activate_mends(store: SnapshotStore) -> None:
    swap(store.folder(A) / "shard-00000/items.arrow", lambda content: b"x" * len(content))
    comparison = activate(store, B).comparison
    assert comparison is not None
    assert "the answers were not compared" in comparison.lines()[-1]
    (store.root / POINTER).write_text(C)
    assert activate(store, B).comparison is None


# The commands


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["snapshots", *args], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def root(tmp_path: Path) -> tuple[str, str]:
    return "--root", str(tmp_path / "index")


def test_list_shows_what_is_there(tmp_path: Path, root: tuple[str, str]) -> None:
    assert "no snapshot under" in run("list", *root)
    store = shelf(tmp_path / "index", 2)
    unfinished(store, C)
    lines = run("list", *root).splitlines()
    (first,) = [line for line in lines if A in line]
    assert "before" in first
    assert "complete" in first
    (second,) = [line for line in lines if B in line]
    assert "current" in second
    assert [line for line in lines if C in line and "unfinished" in line]
    assert f"staging/{C}: 100 B, may go: raysys snapshots gc" in lines
    with store.lease(C):
        assert "being built" in run("list", *root)
    found = json.loads(run("list", "--json", *root))
    assert found["current"] == B
    assert [(one["snapshot_id"], one["state"], one["is_before"]) for one in found["snapshots"]] == [
        (A, "complete", True),
        (B, "complete", False),
        (C, "unfinished", False),
    ]
    assert found["snapshots"][0]["encoder"].endswith("(256)")
    assert found["leftovers"] == [{"path": f"staging/{C}", "size_bytes": 100, "is_held": False}]
    (tmp_path / "index" / POINTER).write_text("20250101T000000-000000")
    assert "is published, and is not there" in run("list", *root)


def test_verify_says_what_fails_and_by_its_exit_code(store: SnapshotStore, root: tuple[str, str]) -> None:
    assert "ok   shard: shard-00000" in run("verify", *root)
    swap(store.folder(B) / "shard-00000/vectors.npy", lambda content: content[:-1])
    assert "[shard-00000/vectors.npy]" in run("verify", B, *root, code=1)
    assert "ok   encoder" in run("verify", A, *root)
    assert "encoder" not in run("verify", A, "--no-encoder", *root)
    result = CliRunner().invoke(app, ["snapshots", "verify", C, *root])
    assert isinstance(result.exception, SnapshotError)


def test_activate_roll_back_and_collect(store: SnapshotStore, root: tuple[str, str], tmp_path: Path) -> None:
    places = ("--state", str(tmp_path / "none"), "--impressions", str(tmp_path / "none"))
    said = run("activate", B, *root, *places)
    assert f"published {B}, was {A}" in said
    assert "overlap of the answers: 1.00" in said
    assert f"published {A}, was {B}" in run("rollback", *root)
    unfinished(store, C)
    assert f"snapshots/{C}: 100 B, its build was killed" in run("gc", "--dry-run", *root)
    assert store.folder(C).exists()
    assert "2 removed, 200 B freed" in run("gc", *root)
    assert "nothing to remove" in run("gc", *root)
    assert not store.folder(C).exists()


@contextmanager
def gateway(answers: list[tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """A server that gives these answers in turn, the last one from then on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_waits_until_the_gateway_answers_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysys.snapshots.POLL_S", 0)
    answers = [
        (200, {"ready": True, "snapshot_id": A}),
        (503, {"ready": False, "snapshot_id": B}),
        (200, {"ready": True, "snapshot_id": B}),
    ]
    with gateway(answers) as url:
        assert 0 <= wait_for(url, B, 30) < 30
    assert len(answers) == 1


def test_a_snapshot_that_is_not_taken_up_is_said_with_the_reason() -> None:
    shards = {"shard-00": {"refused": "no room"}, "shard-01": {"refused": None}}
    answer = {"ready": True, "snapshot_id": A, "refused": "damaged", "shards": shards}
    said = f"not taken up {B} .* answers from {A}: damaged; no room. .*rollback"
    with gateway([(200, answer)]) as url, pytest.raises(SnapshotError, match=said):
        wait_for(url, B, 0)
    with pytest.raises(SnapshotError, match="nothing answers at"):
        wait_for(url, B, 0)


def test_readable_ages() -> None:
    assert [readable_age(s) for s in (-1, 5, 119, 120, 7_200, 259_200)] == [
        "0 s",
        "5 s",
        "119 s",
        "2 min",
        "2 h",
        "3 d",
    ]
