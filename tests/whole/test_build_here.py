"""The build in one process: what goes in, what is put aside, and what is never done twice."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import DIM, NOW_S, FixedClock, recommender

from raysys.config import BuildSettings, WorkerSettings
from raysys.data import readers
from raysys.encoder.build import build_encoder
from raysys.encoder.hashing import HashEncoder
from raysys.errors import CatalogError, ConfigError, OverBudget, RaysysError, SnapshotError
from raysys.index.catalogue import Catalogue
from raysys.index.kinds import KINDS, bytes_of
from raysys.index.manifest import Manifest, verify_files
from raysys.index.store import SnapshotStore
from raysys.keys import item_key, text_key
from raysys.training import items, local
from raysys.training.finish import QUARANTINE, REPORT
from raysys.training.local import build_here
from raysys.training.plan import planned
from raysys.training.report import readable
from raysys.types import Interaction, Person, Profile, Request

ROWS = [{"item_id": str(i), "title": f"word{i} thing{i % 3}", "colour": "red" if i % 2 else "blue"} for i in range(12)]
DAY_S = 86_400


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(folder: Path, shards: int = 2, events: Path | None = None, **catalog: Any) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "catalog": {"path": str(folder / "items.jsonl"), **catalog},
            "events": None if events is None else {"path": str(events)},
            "encoder": {"kind": "hash", "dim": DIM},
            "index": {"root": str(folder / "index"), "shards": shards},
        }
    )


def build(settings: BuildSettings, at_s: float = NOW_S) -> tuple[Manifest, Path, dict[str, Any]]:
    """(manifest, snapshot folder, report)."""
    manifest = build_here(settings, FixedClock(at_s))
    folder = SnapshotStore(settings.index.root).folder(manifest.snapshot_id)
    return manifest, folder, json.loads((folder / REPORT).read_text())


def test_a_snapshot_is_published_whole(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    manifest, folder, report = build(settings_of(tmp_path, attributes={"colour": "colour"}))
    store = SnapshotStore(tmp_path / "index")
    assert store.current_id() == manifest.snapshot_id
    verify_files(folder, manifest)
    assert (manifest.n_items, len(manifest.shards), manifest.recall_at_10) == (12, 2, 1.0)
    assert manifest.encoder_identity == HashEncoder(DIM).identity
    assert (report["items_read"], report["items_kept"], report["items"], report["texts"]) == (12, 12, 12, 12)
    assert not list((tmp_path / "index" / "staging").iterdir())
    catalogue = Catalogue(folder)
    found = catalogue.find(["3", "nope"])
    assert found.known.tolist() == [True, False]
    assert catalogue.metadata(found.shard[0], found.row[0]) == {"title": "word3 thing0", "colour": "red"}
    expected = HashEncoder(DIM).encode(["word3 thing0"], "item")
    assert np.array_equal(catalogue.vectors(found), expected)


def test_every_item_lies_in_the_shard_that_its_key_says(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    _, folder, _ = build(settings_of(tmp_path, shards=3))
    for number, shard in enumerate(Catalogue(folder).shards):
        assert set((shard.keys % np.uint64(3)).tolist()) <= {number}
        assert (np.diff(shard.keys.astype(object)) > 0).all()


def test_the_same_data_gives_the_same_data_hash_and_other_data_another(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    first, *_ = build(settings_of(tmp_path))
    second, *_ = build(settings_of(tmp_path), NOW_S + 60)
    write(tmp_path / "items.jsonl", [*ROWS[1:], {"item_id": "0", "title": "changed"}])
    third, *_ = build(settings_of(tmp_path), NOW_S + 120)
    assert first.data_hash == second.data_hash != third.data_hash
    assert {n: r for n, r in first.files.items() if "shard" in n} == {
        n: r for n, r in second.files.items() if "shard" in n
    }
    assert first.snapshot_id < second.snapshot_id < third.snapshot_id


def test_what_cannot_be_used_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    bad = [
        {"item_id": None, "title": "no id"},
        {"item_id": "empty", "title": "  "},
        {"item_id": "p", "title": "x", "price": -1},
    ]
    path = write(tmp_path / "items.jsonl", [*ROWS, *bad])
    path.write_text(path.read_text() + "{broken\n")
    manifest, folder, report = build(settings_of(tmp_path))
    rejects = [json.loads(line) for line in (folder / QUARANTINE).read_text().splitlines()]
    assert [(r["row"], r["field"], r["dropped"]) for r in rejects] == [
        (13, "item_id", "row"),
        (14, "text", "row"),
        (15, "price", "field"),
        (16, None, "row"),
    ]
    assert all(r["source"].endswith("items.jsonl") and r["code"] and r["message"] for r in rejects)
    assert manifest.n_items == 13
    assert (report["items_read"], report["items_kept"]) == (16, 13)
    assert sum(report["rejected"].values()) == 4
    assert QUARANTINE in manifest.files


def test_of_rows_with_one_id_the_last_stays_and_the_others_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", [*ROWS, {"item_id": "3", "title": "second"}, {"item_id": "3", "title": "third"}])
    manifest, folder, report = build(settings_of(tmp_path))
    catalogue = Catalogue(folder)
    found = catalogue.find(["3"])
    assert catalogue.metadata(found.shard[0], found.row[0])["title"] == "third"
    assert (manifest.n_items, report["duplicates"]) == (12, 2)


def test_the_last_file_wins_too(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for n, title in enumerate(["first", "second"]):
        write(tmp_path / "many" / f"{n}.jsonl", [{"item_id": "a", "title": title}, {"item_id": f"b{n}", "title": "x"}])
    settings = settings_of(tmp_path, shards=1)
    settings = settings.model_copy(
        update={"catalog": settings.catalog.model_copy(update={"path": str(tmp_path / "many")})}
    )
    _, folder, report = build(settings)
    titles = dict(
        zip(*Catalogue(folder).shards[0].items.select(["item_id", "title"]).to_pydict().values(), strict=True)
    )
    assert titles == {"a": "second", "b0": "x", "b1": "x"}
    assert report["duplicates"] == 1


@pytest.mark.parametrize(
    ("rows", "error"),
    [([{"item_id": None, "title": "x"}], CatalogError), ([{"item_id": "a", "title": ""}], CatalogError)],
)
def test_a_catalogue_without_a_usable_row_is_refused(tmp_path: Path, rows, error) -> None:
    write(tmp_path / "items.jsonl", rows)
    with pytest.raises(error, match=r"(?s)items\.jsonl.*(missing_id|no_text)"):
        build(settings_of(tmp_path))
    assert_nothing_published(tmp_path)


def test_an_empty_file_or_one_of_headers_alone_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "items.jsonl").write_text("")
    with pytest.raises(ConfigError, match="empty"):
        build(settings)
    (tmp_path / "items.csv").write_text("item_id,title\n")
    only_header = settings.catalog.model_copy(update={"path": str(tmp_path / "items.csv")})
    with pytest.raises(CatalogError, match="no rows"):
        build(settings.model_copy(update={"catalog": only_header}))
    pq.write_table(
        pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}), tmp_path / "i.parquet"
    )
    no_rows = settings.catalog.model_copy(update={"path": str(tmp_path / "i.parquet")})
    with pytest.raises(CatalogError, match="no rows"):
        build(settings.model_copy(update={"catalog": no_rows}))
    assert_nothing_published(tmp_path)


def test_a_first_file_without_rows_does_not_hide_the_second(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "0.csv").write_text("item_id,title\n")
    (tmp_path / "many" / "1.csv").write_text("item_id,title\na,apple\n")
    settings = settings_of(tmp_path)
    both = settings.catalog.model_copy(update={"path": str(tmp_path / "many")})
    assert build(settings.model_copy(update={"catalog": both}))[0].n_items == 1


def assert_nothing_published(folder: Path) -> None:
    store = SnapshotStore(folder / "index")
    assert store.list() == []
    with pytest.raises(SnapshotError):
        store.current_id()
    assert not list((folder / "index").glob("snapshots/*"))
    assert not list((folder / "index").glob("staging/*"))


@pytest.mark.parametrize("n_items", [1, 3])
async def test_fewer_items_than_shards_work(tmp_path: Path, n_items: int) -> None:
    write(tmp_path / "items.jsonl", ROWS[:n_items])
    manifest, folder, _ = build(settings_of(tmp_path, shards=8))
    assert len(manifest.shards) == 8
    assert sum(shard.n_items for shard in manifest.shards) == n_items
    verify_files(folder, manifest)
    path = recommender(folder)
    answer = await path.recommend(Request(limit=10, query="word0"), Profile(""))
    assert sorted(item.item_id for item in answer.items) == [str(i) for i in range(n_items)]
    assert answer.items[0].item_id == "0"
    assert answer.underfilled
    assert len((await path.search(Request(limit=10, positive=("0",)))).items) == n_items - 1


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that builds encode from now on."""
    encoded: list[str] = []

    class Counting(HashEncoder):
        def encode(self, texts, role):
            encoded.extend(texts)
            return super().encode(texts, role)

    monkeypatch.setattr(local, "build_encoder", lambda settings: Counting(settings.dim))
    return encoded


def test_an_unchanged_text_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = count_encoded(monkeypatch)
    write(tmp_path / "items.jsonl", ROWS)
    build(settings_of(tmp_path))
    assert len(encoded) == 12
    encoded.clear()
    write(
        tmp_path / "items.jsonl",
        [*ROWS[1:], {"item_id": "0", "title": "new words"}, {"item_id": "z", "title": "word1 thing1"}],
    )
    manifest, folder, report = build(settings_of(tmp_path, shards=3), NOW_S + 60)  # even with another number of shards
    assert encoded == ["new words"]
    assert (report["texts"], manifest.n_items) == (1, 13)
    catalogue = Catalogue(folder)
    one, same = catalogue.vectors(catalogue.find(["1", "z"]))
    assert np.array_equal(one, same)


def test_the_same_text_of_many_items_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = count_encoded(monkeypatch)
    write(tmp_path / "items.jsonl", [{"item_id": str(i), "title": "one text"} for i in range(9)])
    build(settings_of(tmp_path, shards=1))
    assert encoded == ["one text"]


def test_a_build_that_died_is_taken_up_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    settings = settings_of(tmp_path)
    settings = settings.model_copy(update={"workers": settings.workers.model_copy(update={"texts_per_file": 2})})
    real, done = items.encode_file, 0

    def dies_at_the_third(*given):
        nonlocal done
        if done == 2:
            raise KeyboardInterrupt
        done += 1
        return real(*given)

    monkeypatch.setattr(items, "encode_file", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build(settings)
    assert_nothing_published(tmp_path)
    monkeypatch.setattr(items, "encode_file", real)
    encoded = count_encoded(monkeypatch)
    manifest, _, report = build(settings, NOW_S + 60)
    assert manifest.n_items == 12
    assert len(encoded) == 8
    assert report["unchanged"] == 4


def with_workers(settings: BuildSettings, **workers: Any) -> BuildSettings:
    return settings.model_copy(update={"workers": WorkerSettings(**workers)})


class TickingClock(FixedClock):
    """A second passes each time it is asked."""

    def monotonic_s(self) -> float:
        self.at_s += 1
        return self.at_s


def test_a_build_that_would_cost_too_much_keeps_what_it_has_encoded(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    settings = settings_of(tmp_path)
    limited = with_workers(settings, texts_per_file=2, usd_per_hour=3_600.0, max_cost=9.0)
    with pytest.raises(OverBudget, match=r"4 of 12 texts, which are kept"):
        build_here(limited, TickingClock())
    assert_nothing_published(tmp_path)
    manifest, _, report = build(settings)
    assert manifest.n_items == 12
    assert (report["texts"], report["unchanged"]) == (8, 4)


def test_a_build_keeps_to_its_rate(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    start_s = time.monotonic()
    build(with_workers(settings_of(tmp_path), texts_per_file=1, limit_rate=50.0))
    assert time.monotonic() - start_s >= 11 / 50


def test_a_price_of_an_unknown_machine_fails_before_a_model_loads(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"x9\.huge"):
        build(with_workers(settings_of(tmp_path), prices={"x9.huge": 1.0}))
    assert not (tmp_path / "index").exists()


def test_the_texts_to_encode_are_each_there_once_the_shortest_first(tmp_path: Path) -> None:
    titles = ["ab", "ä", "three words here", "ab", "中文", "long " * 9, "x", "ab"]
    write(tmp_path / "items.jsonl", [{"item_id": str(i), "title": title} for i, title in enumerate(titles)])
    settings = with_workers(settings_of(tmp_path, shards=1), texts_per_file=2)
    identity = build_encoder(settings.encoder).identity
    with planned(settings, NOW_S) as plan:
        items.stage_items(plan, 0)
        known = text_key(identity.fingerprint(), "x")
        plan.embeddings(identity).write([known], np.zeros((1, DIM), np.float32))
        counts = items.settle_shard(plan, 0, identity)
        tables = [pq.read_table(path) for path in sorted(plan.staged("todo").glob("*.parquet"))]
    texts = [text for table in tables for text in table["text"].to_pylist()]
    by_key = sorted(range(len(titles)), key=lambda i: item_key(str(i)))
    each = list(dict.fromkeys(titles[i].strip() for i in by_key))
    assert texts == sorted((text for text in each if text != "x"), key=len)
    assert [len(table) for table in tables] == [2, 2, 1]
    keys = [key for table in tables for key in table["text_key"].to_pylist()]
    assert keys == [text_key(identity.fingerprint(), text) for text in texts]
    assert (counts["items"], counts["todo"], counts["unchanged"], counts["unchanged_chars"]) == (8, 5, 1, 1)


def test_a_split_that_is_cut_in_parts_gives_the_same_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, {"item_id": None, "title": "no id"}, {"item_id": "3", "title": "second"}]
    write(tmp_path / "items.jsonl", rows)
    whole, folder, _ = build(settings_of(tmp_path))
    monkeypatch.setattr(readers, "BATCH_ROWS", 4)
    monkeypatch.setattr(items, "PART_BYTES", 1)
    parts, parts_folder, report = build(settings_of(tmp_path), NOW_S + 60)
    assert whole.data_hash == parts.data_hash
    assert (report["items_read"], report["items_kept"], report["duplicates"]) == (14, 13, 1)
    assert (folder / QUARANTINE).read_text() == (parts_folder / QUARANTINE).read_text()


def test_a_failed_build_leaves_the_published_one_alone(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    first, *_ = build(settings_of(tmp_path))
    write(tmp_path / "items.jsonl", [{"item_id": "a", "title": ""}])
    with pytest.raises(CatalogError):
        build(settings_of(tmp_path), NOW_S + 60)
    store = SnapshotStore(tmp_path / "index")
    assert store.current_id() == first.snapshot_id
    assert store.list() == [first.snapshot_id]


def test_an_interruption_after_publishing_keeps_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pointer has moved, so the snapshot may be served: a Ctrl-C that comes late must not remove its files."""
    publish = SnapshotStore.publish

    def publish_then_interrupt(store: SnapshotStore, snapshot_id: str) -> None:
        publish(store, snapshot_id)
        raise KeyboardInterrupt

    monkeypatch.setattr(SnapshotStore, "publish", publish_then_interrupt)
    write(tmp_path / "items.jsonl", ROWS)
    with pytest.raises(KeyboardInterrupt):
        build(settings_of(tmp_path))
    store = SnapshotStore(tmp_path / "index")
    verify_files(store.folder(store.current_id()), store.manifest(store.current_id()))
    assert not list((tmp_path / "index" / "staging").iterdir())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"columns": {"title": "nmae"}}, "nmae"),
    ({"columns": {"item_id": "id"}}, "id"),
    ({"columns": {"titel": "title"}}, "titel"),
    ({"attributes": {"colour": "color"}}, "color"),
    ({"attributes": {"item_id": "colour"}}, "item_id"),
    ({"template": "{titel}"}, "titel"),
    ({"path": "/nowhere/at/all.jsonl"}, "nowhere"),
]


@pytest.mark.parametrize(("catalog", "named"), WRONG, ids=lambda v: str(v)[:40])
def test_a_wrong_setting_fails_before_a_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog, named
) -> None:
    def too_late(settings):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(local, "build_encoder", too_late)
    write(tmp_path / "items.jsonl", ROWS)
    with pytest.raises(ConfigError, match=named):
        build_here(settings_of(tmp_path, **catalog), FixedClock())
    assert not (tmp_path / "index").exists()


def test_wrong_event_columns_fail_before_a_model_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "build_encoder", lambda settings: pytest.fail("a model was loaded"))
    write(tmp_path / "items.jsonl", ROWS)
    events = write(tmp_path / "events.jsonl", [{"user_id": "u", "item_id": "1", "when": 1}])
    with pytest.raises(ConfigError, match="timestamp"):
        build_here(settings_of(tmp_path, events=events), FixedClock())


def test_behaviour_leads_from_item_to_item_and_counts_the_popular(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    rows = [
        {"user_id": f"u{user}", "item_id": item, "timestamp": NOW_S - 100 + step, "event_id": f"{user}-{step}"}
        for user in range(5)
        for step, item in enumerate(["1", "2", "gone"] if user else ["1", "9"])
    ]
    events = write(tmp_path / "events.jsonl", [*rows, {"user_id": None, "item_id": "1", "timestamp": NOW_S}])
    _, folder, report = build(settings_of(tmp_path, shards=3, events=events))
    assert (report["events_read"], report["events_kept"]) == (15, 14)
    path = recommender(folder)

    def scores(shard: int, row: int) -> float:
        return float(path.catalogue.shards[shard].popularity[row])

    found = path.catalogue.find(["1", "2", "9", "3"])
    one, two, nine, three = (scores(s, r) for s, r in zip(found.shard, found.row, strict=True))
    assert one == 1.0 > two > nine > three == 0.0


async def test_what_follows_is_recommended(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    rows = [
        {"user_id": f"u{user}", "item_id": item, "timestamp": NOW_S - 100 + step}
        for user in range(5)
        for step, item in enumerate(["1", "8"])
    ]
    events = write(tmp_path / "events.jsonl", rows)
    _, folder, _ = build(settings_of(tmp_path, shards=3, events=events))
    answer = await recommender(folder).recommend(Request(limit=3, history=("1",)), Profile(""))
    assert "transition" in {item.item_id: item.sources for item in answer.items}["8"]


ALIKE = {"brand": "Acme Inc", "categories": ["Lamps"], "owner_id": "shop-7"}


@pytest.mark.parametrize("field", ALIKE)
async def test_what_has_an_attribute_of_what_was_liked_is_found(tmp_path: Path, field: str) -> None:
    """No two items share a word: what they share is the whole value of one field."""
    rows = [
        {"item_id": str(i), "title": f"word{i}", field: [f"c{i}"] if field == "categories" else f"c{i}"}
        for i in range(9)
    ]
    write(tmp_path / "items.jsonl", [row | ({field: ALIKE[field]} if row["item_id"] in "27" else {}) for row in rows])
    attributes = {"brand": "brand"} if field == "brand" else {}
    _, folder, _ = build(settings_of(tmp_path, attributes=attributes))
    answer = await recommender(folder).recommend(Request(limit=8, history=("2",)), Profile(""))
    assert {item.item_id for item in answer.items if "words" in item.sources} == {"7"}


async def test_items_of_a_followed_owner_are_found(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", [row | {"owner_id": f"Shop-{n % 3}"} for n, row in enumerate(ROWS)])
    _, folder, _ = build(settings_of(tmp_path))
    path = recommender(folder)
    person = Person("u:ann", follows=("shop-1", "user:shop-2", "shop-unknown"))
    answer = await path.recommend(Request(limit=12), Profile("u:ann", 1, person=person))
    assert {item.item_id for item in answer.items[:4]} == {"1", "4", "7", "10"}
    assert {item.item_id for item in answer.items if "words" in item.sources} == {"1", "4", "7", "10"}
    assert answer.reasons == ()
    stranger = await path.recommend(Request(limit=12), Profile("u:ann", 2, person=Person("u:ann", follows=("nobody",))))
    assert not any("words" in item.sources for item in stranger.items)


async def test_many_followed_owners_count_as_one_liked_item(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", [row | {"owner_id": f"shop-{n}"} for n, row in enumerate(ROWS)])
    _, folder, _ = build(settings_of(tmp_path))
    path = recommender(folder)
    answers = [
        await path.recommend(
            Request(limit=12, exclude_seen=False),
            Profile("u:ann", 1, (Interaction("0", 2.0, NOW_S, "like"),), person=Person("u:ann", follows=follows)),
        )
        for follows in (("shop-5",), tuple(f"shop-{n}" for n in range(1, 12)))
    ]
    one, many = (
        {item.item_id: item.sources["words"] for item in answer.items if "words" in item.sources} for answer in answers
    )
    assert one["5"] > many["5"] > 0
    assert one["0"] == pytest.approx(many["0"], abs=1e-5)  # what was liked is as strong as before


def test_the_report_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", [*ROWS[:3], {"item_id": "0", "title": "again"}, {"item_id": "", "title": "x"}])
    manifest, _, report = build(settings_of(tmp_path, shards=8))
    text = "\n".join(readable(report, manifest))
    for expected in (
        "rows read 5, kept 4",
        "quarantined 1: item_id",
        "1 rows repeat",
        "texts encoded 3",
        "items 3 in 8",
        "are empty",
    ):
        assert expected in text, text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
async def test_every_kind_of_index_and_metric_builds_and_answers(tmp_path: Path, kind: str, metric: str) -> None:
    rows = [{"item_id": str(i), "title": f"word{i} thing{i % 7} more{i % 11}"} for i in range(200)]
    write(tmp_path / "items.jsonl", rows)
    settings = settings_of(tmp_path)
    index = settings.index.model_copy(update={"kind": kind, "metric": metric})
    manifest, folder, _ = build(settings.model_copy(update={"index": index}))
    assert {shard.index_kind for shard in manifest.shards} == {kind}
    assert manifest.recall_at_10 > 0.9
    answer = await recommender(folder).recommend(Request(limit=5, query="word17 thing3 more6"), Profile(""))
    assert answer.items[0].item_id == "17"
    assert np.isfinite([item.score for item in answer.items]).all()


def test_unnormalised_vectors_under_cosine_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    settings = settings_of(tmp_path)
    raw = settings.encoder.model_copy(update={"normalize": False})
    with pytest.raises(RaysysError, match="normalize"):
        build(settings.model_copy(update={"encoder": raw}))
    assert_nothing_published(tmp_path)
    assert build_encoder(raw).identity.normalized is False


def test_an_index_that_fits_into_the_memory_is_found_and_what_was_tried_reported(tmp_path: Path) -> None:
    rows = [{"item_id": str(i), "title": f"word{i % 400} thing{i % 37} more{i % 11}"} for i in range(1_200)]
    write(tmp_path / "items.jsonl", rows)
    settings = settings_of(tmp_path, shards=2)
    memory = sum(bytes_of("flat", 600, settings.encoder.dim) for _ in range(2)) // 2
    index = settings.index.model_copy(update={"memory": memory, "recall": 0.9})
    manifest, folder, report = build(settings.model_copy(update={"index": index}))
    for shard in manifest.shards:
        assert shard.index_kind != "flat"
        assert shard.index_bytes is not None
        assert shard.index_bytes <= memory / 2
        assert shard.recall_at_10 is not None
        assert shard.recall_at_100 is not None
        assert min(shard.recall_at_10, shard.recall_at_100) >= 0.9
        taken = [trial for trial in shard.tried if trial.get("taken")]
        assert [trial["kind"] for trial in taken] == [shard.index_kind]
    opened = Catalogue(folder).shards
    assert [files.index.effort for files in opened] == [shard.effort for shard in manifest.shards]
    assert [files.index.kind for files in opened] == [shard.index_kind for shard in manifest.shards]
    written = json.loads((folder / REPORT).read_bytes())
    assert {name: len(tried) for name, tried in written["indexes"].items()} == {
        shard.folder: len(shard.tried) for shard in manifest.shards
    }
    text = "\n".join(readable(report, manifest))
    assert "takes more than index.memory allows" in text
    assert f"{manifest.shards[0].index_kind}, breadth" in text


def test_a_build_whose_index_cannot_fit_is_refused_and_publishes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl", ROWS)
    settings = settings_of(tmp_path)
    index = settings.index.model_copy(update={"memory": 10})
    with pytest.raises(ConfigError, match="give more memory"):
        build(settings.model_copy(update={"index": index}))
    assert_nothing_published(tmp_path)
