"""The log of live changes in a build: what is folded in, what stays in the log, and who is left out."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from redis_server import RedisServer, require_redis
from support import DIM, NOW_S, FixedClock

from raysys.config import BuildSettings
from raysys.data.item_entry import ItemEntry
from raysys.errors import CatalogError, ConfigError
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import Manifest, verify_files
from raysys.index.store import SnapshotStore
from raysys.state.open import open_state
from raysys.state.sqlite import SqliteState
from raysys.training import changes
from raysys.training.finish import QUARANTINE, REPORT
from raysys.training.local import build_here
from raysys.training.report import readable
from raysys.types import Event, ItemChange, ItemDraft

ROWS: list[dict[str, Any]] = [
    {
        "item_id": str(i),
        "title": f"word{i} thing{i % 3}",
        "categories": [f"kind{i % 2}", "all"],
        "price": i + 0.5,
        "available_from": "2020-01-01T00:00:00+00:00",
        "colour": "red" if i % 2 else "blue",
        "year": 1990 + i,
        "seen": None,
        "labels": ["new"],
    }
    for i in range(12)
]
ATTRIBUTES = {name: name for name in ("colour", "year", "seen", "labels")}
BEHAVIOUR = [
    {"user_id": user, "item_id": item, "timestamp": NOW_S - 100 + at, "event_id": f"{user}-{at}"}
    for user, items in {"ann": ("1", "2", "3"), "s:ann": ("1", "2"), "eve": ("2", "5", "1")}.items()
    for at, item in enumerate(items)
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, **more: Any) -> BuildSettings:
    """Settings of a catalogue with these rows, under ``folder``; ``more`` are those of the build."""
    catalog = {"path": str(write(folder / "items.jsonl", rows)), "attributes": ATTRIBUTES}
    return BuildSettings.model_validate(
        {
            "catalog": catalog | more.pop("catalog", {}),
            "encoder": {"kind": "hash", "dim": DIM},
            "index": {"root": str(folder / "index"), "shards": 3},
            **more,
        }
    )


def build(settings: BuildSettings) -> tuple[Manifest, Catalogue, dict[str, Any]]:
    manifest = build_here(settings, FixedClock())
    folder = SnapshotStore(settings.index.root).folder(manifest.snapshot_id)
    verify_files(folder, manifest)
    return manifest, Catalogue(folder), json.loads((folder / REPORT).read_text())


def entry(folder: Path) -> ItemEntry:
    """What the API would read items by: the rules of a snapshot of ``ROWS``."""
    _, catalogue, _ = build(settings_of(folder))
    return ItemEntry(catalogue.manifest.item_rules, catalogue.schema)


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> ItemEntry:
    return entry(tmp_path_factory.mktemp("reads"))


def change(location: Path | str, *drafts: ItemDraft) -> None:
    """Write these states one after the other into a store; a file is made where there is none."""

    async def run() -> None:
        state = open_state(str(location))
        try:
            assert None not in await state.change_items(drafts, NOW_S)
        finally:
            await state.close()

    asyncio.run(run())


def gone(item_id: str) -> ItemDraft:
    return ItemDraft(item_id, None)


def rows_of(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """Item id -> its columns."""
    tables = [shard.items.drop_columns(["text_key"]) for shard in catalogue.shards]
    return {row["item_id"]: row for row in pa.concat_tables(tables).to_pylist()}


def transitions(catalogue: Catalogue) -> list[dict[str, bytes]]:
    """The bytes of each shard's transition files."""
    return [
        {path.name: path.read_bytes() for path in sorted((shard.folder / "transition").iterdir())}
        for shard in catalogue.shards
    ]


def assert_same(left: Catalogue, right: Catalogue) -> None:
    """The same items, in every column, with the same vectors, text keys, popularity and transitions, row by row."""
    assert left.manifest.data_hash == right.manifest.data_hash
    for mine, other in zip(left.shards, right.shards, strict=True):
        assert mine.items.equals(other.items)
        assert np.array_equal(mine.keys, other.keys)
        assert np.array_equal(mine.vectors, other.vectors)
        assert np.array_equal(mine.popularity, other.popularity)
    assert transitions(left) == transitions(right)


def test_without_a_state_nothing_is_folded(tmp_path: Path) -> None:
    manifest, catalogue, report = build(settings_of(tmp_path))
    assert (manifest.change_sequence, report["changes_folded"]) == (0, 0)
    assert rows_of(catalogue).keys() == {row["item_id"] for row in ROWS}
    assert not any(line.startswith("changes") for line in readable(report, manifest))


def test_a_state_without_changes_changes_nothing(tmp_path: Path) -> None:
    change(tmp_path / "state")
    manifest, catalogue, report = build(settings_of(tmp_path, state=str(tmp_path / "state")))
    assert (manifest.change_sequence, report["changes_folded"]) == (0, 0)
    assert_same(catalogue, build(settings_of(tmp_path / "plain"))[1])


def test_folded_changes_equal_a_file_that_holds_them(tmp_path: Path, reads: ItemEntry) -> None:
    """Adds, edits, hiding and deletions, each kind of field; the words of markup, too, are read only once."""
    added = {
        "item_id": "ünew/№1",
        "title": " cut  <i>out</i> &lt;b&gt; tags &amp;amp; entities ",
        "text": "<p>one</p><p>two</p>",
        "categories": ["a &lt;i&gt;", "b"],
        "tags": "x|y|x",
        "language": "de",
        "price": "12.5",
        "owner_id": 7,
        "available_from": 1_700_000_000_000,
        "available_until": "2099-01-01T02:00:00+02:00",
        "updated_at": "2026-01-31T18:30:00.123456Z",
        "image": "http://x/?a=1&b=2",
        "year": 2_026,
        "labels": ["fresh", "odd"],
    }
    edited = {**ROWS[3], "title": "quite other words", "price": 0, "seen": "by many", "colour": None, "labels": []}
    hidden = {**ROWS[4], "hidden": True}
    emptied = {"item_id": "6", "title": "word6 thing0"}
    state = tmp_path / "state"
    change(state, *(reads.draft(raw) for raw in (added, edited, hidden, emptied)), gone("5"), gone("never there"))
    replaced = {row["item_id"]: row for row in (edited, hidden, emptied, added)}
    rows = list(({row["item_id"]: row for row in ROWS} | replaced).values())
    rows = [row for row in rows if row["item_id"] != "5"]

    events = str(write(tmp_path / "events.jsonl", BEHAVIOUR))
    manifest, folded, report = build(settings_of(tmp_path / "a", state=str(state), events={"path": events}))
    _, written, _ = build(settings_of(tmp_path / "b", rows, events={"path": events}))
    assert manifest.change_sequence == 6
    assert rows_of(folded) == rows_of(written)
    assert rows_of(folded)["ünew/№1"]["title"] == "cut out <b> tags &amp; entities"
    assert rows_of(folded)["4"]["hidden"] is True
    assert_same(folded, written)
    assert (report["changes_folded"], report["replaced_by_change"], report["deleted_by_change"]) == (6, 3, 1)
    assert (report["duplicates"], report["items"]) == (0, 12)
    assert "changes folded 6: items of the catalogue replaced 3, deleted 1" in readable(report, manifest)


@pytest.mark.redis
def test_changes_in_redis_are_folded_as_those_in_a_file(tmp_path: Path, reads: ItemEntry) -> None:
    require_redis()
    server = RedisServer(tmp_path / "redis").start()
    try:
        locations = (server.url, str(tmp_path / "state"))
        for location in locations:
            change(location, reads.draft({**ROWS[3], "title": "quite other words"}), gone("5"))
        remote, local = (build(settings_of(tmp_path / str(n), state=at)) for n, at in enumerate(locations))
    finally:
        server.kill()
    assert remote[0].change_sequence == local[0].change_sequence == 2
    assert_same(remote[1], local[1])


def test_more_changes_than_a_page_and_a_batch_holds(
    tmp_path: Path, reads: ItemEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "PAGE", 4)
    monkeypatch.setattr(changes, "BATCH_ROWS", 7)
    state = tmp_path / "state"
    drafts = [reads.draft({"item_id": f"n{i}", "title": f"new{i}"}) for i in range(30)]
    change(state, *drafts, *(gone(str(i)) for i in range(9)))
    manifest, catalogue, report = build(settings_of(tmp_path, state=str(state)))
    assert rows_of(catalogue).keys() == {*(f"n{i}" for i in range(30)), "9", "10", "11"}
    assert (manifest.change_sequence, report["changes_folded"], report["deleted_by_change"]) == (39, 39, 9)


def test_a_live_state_wins_over_every_row_of_the_files(tmp_path: Path, reads: ItemEntry) -> None:
    rows = [*ROWS, {"item_id": "1", "title": "second"}, {"item_id": "2", "title": "second"}]
    state = tmp_path / "state"
    change(state, reads.draft({"item_id": "1", "title": "by hand"}), gone("2"))
    _, catalogue, report = build(settings_of(tmp_path, rows, state=str(state)))
    assert rows_of(catalogue)["1"]["title"] == "by hand"
    assert "2" not in rows_of(catalogue)
    assert (report["duplicates"], report["replaced_by_change"], report["deleted_by_change"]) == (2, 1, 1)


def test_what_was_deleted_stays_away_until_it_is_written_again(tmp_path: Path, reads: ItemEntry) -> None:
    state = tmp_path / "state"
    settings = settings_of(tmp_path, state=str(state))
    change(state, gone("3"))
    for _ in range(2):
        _, catalogue, report = build(settings)
        assert "3" not in rows_of(catalogue)
        assert report["deleted_by_change"] == 1
    change(state, reads.draft({"item_id": "3", "title": "back again"}))
    manifest, catalogue, report = build(settings)
    assert rows_of(catalogue)["3"]["title"] == "back again"
    assert (manifest.change_sequence, report["changes_folded"], report["deleted_by_change"]) == (2, 1, 0)


def test_a_catalogue_that_was_deleted_wholly_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    change(state, *(gone(row["item_id"]) for row in ROWS))
    with pytest.raises(CatalogError):
        build(settings_of(tmp_path, state=str(state)))


def test_an_unchanged_text_is_not_encoded_again(tmp_path: Path, reads: ItemEntry) -> None:
    state = tmp_path / "state"
    build(settings_of(tmp_path))
    change(
        state,
        reads.draft({**ROWS[1], "price": 99.0}),
        reads.draft({**ROWS[2], "hidden": True}),
        reads.draft({**ROWS[3], "title": "new words"}),
    )
    manifest, catalogue, report = build(settings_of(tmp_path, state=str(state)))
    assert (report["texts"], manifest.n_items) == (1, 12)
    assert rows_of(catalogue)["1"]["price"] == 99.0


def test_the_text_is_rendered_by_the_template_of_the_build(tmp_path: Path, reads: ItemEntry) -> None:
    state = tmp_path / "state"
    wordy = {"item_id": "w", "title": "short", "text": "and long"}
    change(state, reads.draft(wordy))
    by_title = {"template": "{title}"}
    _, folded, _ = build(settings_of(tmp_path / "a", state=str(state), catalog=by_title))
    _, written, _ = build(settings_of(tmp_path / "b", [*ROWS, wordy], catalog=by_title))
    assert_same(folded, written)


def test_an_attribute_of_another_type_than_before_is_read_as_that(tmp_path: Path, reads: ItemEntry) -> None:
    """Years that were integers when the change was written are text in the files of the next build, and reversely."""
    state = tmp_path / "state"
    changed = {**ROWS[1], "title": "changed", "year": 2001, "seen": "soon"}
    change(state, reads.draft(changed))
    rows = [{**row, "year": f"in {row['year']}", "seen": 5} for row in ROWS]
    _, catalogue, report = build(settings_of(tmp_path, rows, state=str(state)))
    row = rows_of(catalogue)["1"]
    assert (row["title"], row["year"], row["seen"]) == ("changed", "2001", None)
    assert report["rejected"] == {"seen: not_a_number (field dropped)": 1}
    rejects = [json.loads(line) for line in (catalogue.shards[0].folder.parent / QUARANTINE).read_text().splitlines()]
    assert [(r["source"], r["row"], r["item_id"], r["value"]) for r in rejects] == [(changes.SOURCE, 1, "1", "soon")]


def test_a_state_that_cannot_be_used_does_not_bring_back_an_older_one(tmp_path: Path, reads: ItemEntry) -> None:
    state = tmp_path / "state"
    change(state, reads.draft({"item_id": "1", "text": "only a text"}))
    manifest, catalogue, report = build(settings_of(tmp_path, state=str(state), catalog={"template": "{title}"}))
    assert "1" not in rows_of(catalogue)
    assert (manifest.n_items, report["rejected"]) == (11, {"text: no_text (row dropped)": 1})


class WrittenMeanwhile(SqliteState):
    """A store that others write to while its log is read: after its end was asked for, and after the first page."""

    async def last_sequence(self) -> int:
        last = await super().last_sequence()
        await self.change_items([ItemDraft("1", {"title": "second"}, "second"), gone("7")], NOW_S)
        return last

    async def item_changes(self, after: int, limit: int) -> list[ItemChange]:
        page = await super().item_changes(after, limit)
        if after == 0:
            await self.change_items([ItemDraft("8", {"title": "late"}, "late")], NOW_S)
        return page


def test_what_changes_while_the_log_is_read_stays_in_it(
    tmp_path: Path, reads: ItemEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item 1 is changed at 1 and again past the end that was read: its first state is gone, so it is not folded."""
    state = tmp_path / "state"
    change(state, *(reads.draft({"item_id": i, "title": "first"}) for i in ("1", "2", "3", "8")))
    monkeypatch.setattr(changes, "PAGE", 2)
    monkeypatch.setattr(changes, "open_state", WrittenMeanwhile)
    manifest, catalogue, report = build(settings_of(tmp_path, state=str(state)))
    titles = {item_id: row["title"] for item_id, row in rows_of(catalogue).items()}
    assert manifest.change_sequence == 4
    assert (titles["1"], titles["2"], titles["3"], titles["8"]) == ("word1 thing1", "first", "first", "word8 thing2")
    assert "7" in titles
    assert report["changes_folded"] == 2

    monkeypatch.setattr(changes, "open_state", SqliteState)
    monkeypatch.setattr(changes, "PAGE", 1_000)
    left = asyncio.run(all_after(state, manifest.change_sequence))
    assert {(c.item_id, c.sequence, c.deleted) for c in left} == {("1", 5, False), ("7", 6, True), ("8", 7, False)}
    manifest, catalogue, _ = build(settings_of(tmp_path, state=str(state)))
    titles = {item_id: row["title"] for item_id, row in rows_of(catalogue).items()}
    assert (manifest.change_sequence, titles["1"], titles["8"], "7" in titles) == (7, "second", "late", False)


async def all_after(path: Path, sequence: int) -> list[ItemChange]:
    state = SqliteState(path)
    try:
        return await state.item_changes(sequence, 1_000)
    finally:
        await state.close()


def erase(path: Path, user: str, at_s: float) -> None:
    """Let the store know a user, and erase them at this time."""

    async def run() -> None:
        state = SqliteState(path, clock=FixedClock(at_s))
        try:
            await state.append([Event("e", "view", user, "1", at_s - 1)])
            assert (await state.erase(user))["events"] == 1
        finally:
            await state.close()

    asyncio.run(run())


def test_the_behaviour_of_the_erased_is_gone_from_the_next_snapshot(tmp_path: Path) -> None:
    state = tmp_path / "state"
    events = {"path": str(write(tmp_path / "events.jsonl", BEHAVIOUR))}
    without_eve = {"path": str(write(tmp_path / "fewer.jsonl", [e for e in BEHAVIOUR if e["user_id"] != "eve"]))}
    _, before, _ = build(settings_of(tmp_path / "a", events=events))
    erase(state, "u:eve", NOW_S)
    manifest, after, report = build(settings_of(tmp_path / "a", events=events, state=str(state)))
    _, never, _ = build(settings_of(tmp_path / "b", events=without_eve))
    assert_same(after, never)
    assert transitions(before) != transitions(after)
    assert (report["events_read"], report["events_kept"], report["events_erased"]) == (8, 5, 3)
    assert "  3 events left out: their people were erased" in readable(report, manifest)


def test_only_what_came_before_the_erasure_is_left_out(tmp_path: Path) -> None:
    """Eve came back after her first two events; the session ``ann`` is neither user ``ann`` nor user ``s:ann``."""
    state = tmp_path / "state"
    events = {"path": str(write(tmp_path / "events.jsonl", BEHAVIOUR))}
    left = [e for e in BEHAVIOUR if e["event_id"] not in ("eve-0", "eve-1")]
    erase(state, "u:eve", NOW_S - 99)
    erase(state, "s:ann", NOW_S)
    _, after, report = build(settings_of(tmp_path / "a", events=events, state=str(state)))
    _, never, _ = build(settings_of(tmp_path / "b", events={"path": str(write(tmp_path / "left.jsonl", left))}))
    assert_same(after, never)
    assert report["events_erased"] == 2


def test_a_state_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "state.sqlite3"
    with pytest.raises(ConfigError, match=r"state: there is no file .*nowhere/state\.sqlite3.*leave `state` out"):
        build(settings_of(tmp_path, state=str(missing)))
    assert not missing.parent.exists()
    assert not (tmp_path / "index").exists()


def test_a_state_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no store of ours, but long enough to be looked at")
    with pytest.raises(ConfigError, match="state"):
        build(settings_of(tmp_path, state=str(tmp_path / "state")))
    assert not list((tmp_path / "index").glob("snapshots/*"))
    assert not list((tmp_path / "index").glob("staging/*"))
