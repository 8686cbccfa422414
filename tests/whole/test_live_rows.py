"""Items that changed after the build: a snapshot with its changes equals a snapshot built of what they lead to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DAY_S, DIM, NOW_S, FixedClock, Shop, plain_query

from raysys.config import CatalogSettings
from raysys.data.item_text import parse_template, render
from raysys.data.synthetic import World, make_world
from raysys.encoder.hashing import HashEncoder
from raysys.errors import EncoderError, UnknownField
from raysys.in_process import open_shards
from raysys.index import vector_index
from raysys.index.filters import Attributes, parse
from raysys.index.store import SnapshotStore
from raysys.keys import item_key, item_keys, shard_of
from raysys.recall.live import COMPACT_FROM_DEAD, LiveItem
from raysys.recall.live_table import add_rows, item_table
from raysys.recall.merge import concatenate, merge
from raysys.recall.shard import Shard
from raysys.training.local import build_here
from raysys.types import FRESH, POPULAR, QUERY, SOURCES, TRANSITION, Candidates, FriendLikes, ItemChange, RecallQuery

Fields = Mapping[str, Any]

ENCODER = HashEncoder(DIM)
TEMPLATE = parse_template(CatalogSettings(path="items").template, ["title", "text", "categories", "tags"])
TIME = pa.timestamp("us", "UTC")
N_OLD = 90
CREATED_S = {
    "new-1": NOW_S + 0.5,
    "new-2": NOW_S - 2 * DAY_S + 0.25,
    "new-3": NOW_S - 13 * DAY_S,
    "ödd/№ 4": NOW_S - 30 * DAY_S,
}
NEW = [*CREATED_S]
WORDS = ["quasar", "zeppelin", "marzipan", "fjord", "!!!"]


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def encoded(fields: Fields) -> np.ndarray:
    return ENCODER.encode([render(TEMPLATE, fields)], "item")[0]


@dataclass
class Past:
    """A world of 90 items, the last third of which nobody ever met, and the catalogue and shards built from it."""

    folder: Path
    world: World = field(default_factory=lambda: make_world(N_OLD, 12, 4, 0.8, seed=3, events_per_user=8))
    folders: dict[tuple[object, ...], Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        met = [
            int(item_id.removeprefix("item-")) < 2 * N_OLD // 3 for item_id in self.world.events["item_id"].to_pylist()
        ]
        self.world = replace(self.world, events=self.world.events.filter(pa.array(met)))
        self.catalogue: dict[str, Fields] = {}
        for row in self.world.items.to_pylist():
            self.catalogue[row.pop("item_id")] = row
        self.catalogue["item-80"] = {**self.catalogue["item-80"], "hidden": True}
        self.catalogue["item-81"] = {**self.catalogue["item-81"], "available_from": at(NOW_S + DAY_S)}
        self.catalogue["item-82"] = {**self.catalogue["item-82"], "available_until": at(NOW_S - DAY_S)}
        self.catalogue["item-83"] = {"title": "!!!"}

    def opened(self, n_shards: int, **index: object) -> list[Shard]:
        """The shards of this past, without any change yet."""
        key = (n_shards, *index.items())
        if key not in self.folders:
            self.folders[key] = self._build(self.catalogue, n_shards, index)
        return open_shards(self.folders[key])

    def built(self, catalogue: Mapping[str, Fields], n_shards: int, **index: object) -> list[Shard]:
        """The shards of a snapshot of this catalogue, and of the events of this world.

        A build knows no more since when an item is there than its fields say: here it is told.
        """
        shards = open_shards(self._build(catalogue, n_shards, index))
        for shard in shards:
            item_ids = shard.files.items["item_id"].to_pylist()
            shard.live.main_since_s = np.array([self.since_s(item_id) for item_id in item_ids], np.float64)
        return shards

    def since_s(self, item_id: str) -> float:
        """An item of the past is as old as it was, whatever changed in it; another one since it was created."""
        if item_id not in self.catalogue:
            return float(CREATED_S[item_id] // 1)
        start = self.catalogue[item_id].get("available_from")
        return -np.inf if start is None else datetime.fromisoformat(start).timestamp()

    def _build(self, catalogue: Mapping[str, Fields], n_shards: int, index: Mapping[str, object]) -> Path:
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        shop = Shop(folder, behaviour={"ridge_items": 0, "factors": "never"})  # fitted anew on what a catalogue says
        shop.world, shop.items = self.world, self._table(catalogue)
        build_here(shop.settings(n_shards, **index), FixedClock())
        store = SnapshotStore(shop.settings(n_shards, **index).index.root)
        return store.folder(store.current_id())

    def _table(self, catalogue: Mapping[str, Fields]) -> pa.Table:
        times = [("available_from", TIME), ("available_until", TIME)]
        kinds = [*self.world.items.schema, *times, ("hidden", pa.bool_())]
        rows = [{"item_id": item_id, **fields} for item_id, fields in catalogue.items()]
        for row in rows:
            row |= {name: datetime.fromisoformat(row[name]) for name, _ in times if row.get(name)}
        return pa.Table.from_pylist(rows, schema=pa.schema(kinds))


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_index, "_threads", 1)  # with more, FAISS waits longer for them than it works here
        yield Past(tmp_path_factory.mktemp("past"))


@dataclass
class Log:
    """Writes changes with growing sequences, and keeps the catalogue that they lead to."""

    catalogue: dict[str, Fields]
    items: list[LiveItem] = field(default_factory=list)

    def put(self, item_id: str, encode: bool = True, **fields: Any) -> LiveItem:
        """The whole new state of an item."""
        self.catalogue[item_id] = fields
        return self._write(item_id, fields, encoded(fields) if encode else None)

    def edit(self, item_id: str, **fields: Any) -> LiveItem:
        """Some fields of an item anew."""
        return self.put(item_id, **{**self.catalogue[item_id], **fields})

    def delete(self, item_id: str) -> LiveItem:
        self.catalogue.pop(item_id, None)
        return self._write(item_id, None, None)

    def _write(self, item_id: str, fields: Fields | None, vector: np.ndarray | None) -> LiveItem:
        text = "" if fields is None else render(TEMPLATE, fields)
        change = ItemChange(len(self.items) + 1, item_id, fields, text, NOW_S, CREATED_S.get(item_id, NOW_S))
        self.items.append(LiveItem(change, vector))
        return self.items[-1]


def apply(shards: Sequence[Shard], items: Sequence[LiveItem]) -> int:
    """Each change to the shard that owns its item."""
    owners = [shard_of(item_key(item.change.item_id), len(shards)) for item in items]
    return sum(
        shard.apply([item for item, owner in zip(items, owners, strict=True) if owner == shard.number])
        for shard in shards
    )


def plain(**changes: Any) -> RecallQuery:
    return plain_query(**{"k": 20} | changes)


def ask(shards: Sequence[Shard], query: RecallQuery) -> Candidates:
    answers = [shard.recall([query])[0] for shard in shards]
    return concatenate(answers) if query.only is not None else merge(answers, query.k)


FILTERS = [
    None,
    parse({"must": [{"field": "categories", "match": "topic-2"}]}),
    parse({"must_not": [{"field": "price", "range": {"lt": 50}}]}),
    parse({"should": [{"field": "year", "range": {"gte": 1990}}, {"field": "item_id", "in": [*NEW, "item-3"]}]}),
    parse({"must": [{"field": "available_from", "exists": True}]}),
    parse({"must": [{"field": "title", "match": "nobody"}]}),
]


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def queries(ids: Sequence[str], seed: int) -> Iterator[RecallQuery]:
    """By text, by taste, by history, by nothing, by all of these, and for given items; each in several variants."""
    random = np.random.default_rng(seed)

    def some(n: int) -> np.ndarray:
        return item_keys(random.choice(ids, n))

    def near(words: str) -> np.ndarray:  # no two items are quite as near to it
        return unit(ENCODER.encode([words], "query")[0] + 0.05 * random.normal(size=DIM))

    history = {"history_keys": some(6), "history_weights": random.random(6).astype(np.float32)}
    text, taste = (
        {"query": near("quasar " + WORDS[seed % 4])},
        {"profile": unit(random.normal(size=DIM))[None], "said": np.stack([near("fjord"), near("quasar")])},
    )
    liked = np.unique(some(30))
    social = {"friends": FriendLikes(liked, random.random(len(liked)).astype(np.float32))}
    everything = {**history, **text, **taste, **social}
    for given_parts in (text, taste, history, social, {}, everything):
        for filter in (None, FILTERS[int(random.integers(len(FILTERS)))]):
            now_s = NOW_S + float(random.integers(-2, 3)) * DAY_S
            exclude = some(int(random.integers(0, 8)))
            k = int(random.integers(1, 50))
            yield plain(**given_parts, filter=filter, now_s=now_s, exclude_keys=exclude, k=k)
    yield plain(**everything, k=1_000)
    yield plain(**everything, exclude_keys=some(3), only=some(15))


def assert_same(live: Candidates, fresh: Candidates) -> None:
    assert live.key.tolist() == fresh.key.tolist()
    assert live.shard.tolist() == fresh.shard.tolist()
    assert live.found_by.tolist() == fresh.found_by.tolist()
    np.testing.assert_allclose(live.scores, fresh.scores, atol=1e-5)
    assert live.exact == fresh.exact


def assert_equal_shards(live: Sequence[Shard], fresh: Sequence[Shard], seed: int = 0) -> None:
    ids = [f"item-{number}" for number in range(N_OLD)] + NEW
    assert [shard.n_items for shard in live] == [shard.n_items for shard in fresh]
    wanted = list(queries(ids, seed))
    for query in wanted:
        assert_same(ask(live, query), ask(fresh, query))
    for one, other in zip(live, fresh, strict=True):
        for a, b in zip(one.recall(wanted), other.recall(wanted), strict=True):  # as one batch
            assert_same(a, b)


# Random histories of changes

EDITED = ["item-0", "item-1", "item-2", "item-3", "item-70", "item-80", "item-81", "item-82", "item-83"]
times = st.sampled_from([-DAY_S, -1.0, 0.0, DAY_S]).map(lambda offset_s: at(NOW_S + offset_s))


@st.composite
def states(draw: st.DrawFn, item_id: str) -> Fields:
    """Whole states of an item. Each item has words of its own, so that no two are equally near to anything."""
    word = draw(st.sampled_from(WORDS))
    fields = {"title": word if word == "!!!" else f"{word} {item_id}"}
    optional = {
        "price": st.sampled_from([1, 49.5, 50, 99.0]),
        "year": st.sampled_from([1980, 1990, 2020]),
        "categories": st.sampled_from([["topic-2"], ["topic-1", "topic-2"], [], ["other"]])
        if word != "!!!"
        else st.just([]),
        "hidden": st.booleans(),
        "available_from": times,
        "available_until": times,
    }
    return fields | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Fields | None, bool]]:
    """(item id, its fields or None = deleted, whether it is encoded only later)."""
    items = draw(st.lists(st.sampled_from([*EDITED, *NEW]), min_size=1, max_size=25))
    return [(item, draw(st.none() | states(item)), draw(st.booleans())) for item in items]


def log_of(past: Past, history: Sequence[tuple[str, Fields | None, bool]]) -> Log:
    log = Log(dict(past.catalogue))
    late: dict[str, None] = {}
    for item_id, fields, is_late in history:
        late.pop(item_id, None)
        if fields is None:
            log.delete(item_id)
        elif is_late:
            log.put(item_id, encode=False, **fields)
            late[item_id] = None
        else:
            log.put(item_id, **fields)
    for item_id in late:
        log.edit(item_id)
    return log


@pytest.mark.parametrize("n_shards", [1, 3])
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_history_equals_a_build_of_what_it_leads_to(past: Past, n_shards: int, data: st.DataObject) -> None:
    log = log_of(past, data.draw(histories()))
    live = past.opened(n_shards)
    seed = data.draw(st.integers(0, 1_000))
    ends = sorted(data.draw(st.sets(st.integers(1, len(log.items)), max_size=3)) | {len(log.items)})
    start = 0
    for end in ends:
        repeated = data.draw(st.lists(st.sampled_from(log.items[:end]), max_size=4))
        apply(live, [*log.items[start:end], *repeated])
        for query in [*queries(NEW, seed)][::3]:  # so that masks and orders from before this change are at hand
            ask(live, query)
        start = end
    assert apply(live, log.items) == 0
    assert_equal_shards(live, past.built(log.catalogue, n_shards), seed)


# One rule each


@pytest.fixture(params=[1, 3])
def live(past: Past, request: pytest.FixtureRequest) -> list[Shard]:
    return past.opened(request.param)


@pytest.fixture
def log(past: Past) -> Log:
    return Log(dict(past.catalogue))


def keys(shards: Sequence[Shard], query: RecallQuery) -> set[int]:
    return set(ask(shards, query).key.tolist())


def scores_of(shards: Sequence[Shard], item_id: str, **parts: Any) -> list[float] | None:
    """The scores of one item by source; None where it is not shown."""
    found = ask(shards, plain(only=item_keys([item_id]), **parts))
    return found.scores[0].tolist() if len(found) else None


def text(words: str) -> np.ndarray:
    return ENCODER.encode([words], "query")[0]


def test_a_new_item_is_found_by_its_text_and_has_no_behaviour(live: list[Shard], log: Log) -> None:
    before = [shard.n_items for shard in live]
    assert apply(live, [log.put("new-1", title="quasar zeppelin")]) == 1
    found = ask(live, plain(query=text("quasar zeppelin"), k=1))
    assert found.key.tolist() == [item_key("new-1")]
    assert found.scores[0].tolist() == pytest.approx(
        [1.0 if source in (QUERY, FRESH) else 0.0 for source in range(len(SOURCES))]
    )
    assert found.row[0] >= live[found.shard[0]].n_main
    assert sum(shard.n_items for shard in live) == sum(before) + 1


def test_an_edited_text_is_found_and_the_old_one_is_not(past: Past, live: list[Shard], log: Log) -> None:
    old = past.catalogue["item-5"]["title"]
    apply(live, [log.edit("item-5", title="quasar zeppelin")])
    assert keys(live, plain(query=text("quasar zeppelin"), k=1)) == {item_key("item-5")}
    found = ask(live, plain(query=text(old), k=200))
    assert found.key.tolist().count(item_key("item-5")) == 1
    assert found.scores[found.key == item_key("item-5"), QUERY] < 0.5


def test_behaviour_passes_on_to_the_new_state_and_comes_back_after_a_removal(past: Past, log: Log) -> None:
    live, untouched = past.opened(3), past.opened(3)
    met = past.world.events["item_id"].to_pylist()
    item_id = max(met, key=met.count)
    history = {"history_keys": item_keys(met), "history_weights": np.ones(len(met), np.float32)}
    before = scores_of(untouched, item_id, **history)
    assert before is not None
    assert before[TRANSITION] > 0
    assert before[POPULAR] > 0
    for change in (log.edit(item_id, price=3.0), log.delete(item_id), log.put(item_id, title="other")):
        apply(live, [change])
        after = scores_of(live, item_id, **history)
        assert after == (None if change.change.deleted else pytest.approx(before, rel=1e-6))


def test_a_deleted_item_is_in_nothing(past: Past, live: list[Shard], log: Log) -> None:
    apply(live, [log.delete("item-1"), log.delete("never-heard-of")])
    title = past.catalogue["item-1"]["title"]
    met = past.world.events["item_id"].to_pylist()
    history = {"history_keys": item_keys(met), "history_weights": np.ones(len(met), np.float32)}
    assert item_key("item-1") not in keys(live, plain(query=text(title), profile=text(title)[None], **history, k=1_000))
    assert scores_of(live, "item-1") is None
    assert sum(shard.n_items for shard in live) == N_OLD - 1
    assert sum(shard.live_counts()["tombstones"] for shard in live) == 2
    assert sum(shard.live_counts()["live"] for shard in live) == 0


def test_hidden_and_shown_again(live: list[Shard], log: Log) -> None:
    everything = plain(k=1_000)
    for hidden in (True, False, True, None):
        apply(live, [log.edit("item-4", hidden=hidden)])
        assert (item_key("item-4") in keys(live, everything)) == (not hidden)


def test_windows_of_changed_items_open_and_close(live: list[Shard], log: Log) -> None:
    apply(live, [log.edit("item-4", available_from=at(NOW_S), available_until=at(NOW_S + 10))])
    apply(live, [log.put("new-1", title="quasar", available_until="2001-01-01T00:00:00Z")])
    seen = {now_s: keys(live, plain(k=1_000, now_s=now_s)) for now_s in (NOW_S - 1e-3, NOW_S, NOW_S + 10)}
    assert [item_key("item-4") in found for found in seen.values()] == [False, True, False]
    assert not any(item_key("new-1") in found for found in seen.values())


def test_an_item_without_a_vector_is_shown_but_not_found_by_vectors(live: list[Shard], log: Log) -> None:
    apply(live, [log.put("new-1", encode=False, title="quasar zeppelin")])
    found = ask(live, plain(query=text("quasar zeppelin"), k=1_000))
    mine = found.key == item_key("new-1")
    assert found.found_by[mine].tolist() == [1 << POPULAR | 1 << FRESH]
    assert found.scores[mine, QUERY].tolist() == [0]
    apply(live, [log.edit("new-1")])
    assert keys(live, plain(query=text("quasar zeppelin"), k=1)) == {item_key("new-1")}


def test_an_item_that_is_not_encoded_again_yet_keeps_the_vector_it_had(past: Past, live: list[Shard], log: Log) -> None:
    title = past.catalogue["item-5"]["title"]
    near_before = scores_of(past.opened(1), "item-5", query=text(title))
    apply(live, [log.put("item-5", encode=False, title="quasar zeppelin", price=7.0)])
    assert scores_of(live, "item-5", query=text(title)) == pytest.approx(near_before, rel=1e-6)
    apply(live, [log.edit("item-5"), log.put("item-5", encode=False, title="fjord")])
    near_after = scores_of(live, "item-5", query=text("quasar zeppelin"))
    assert near_after is not None
    assert near_after[QUERY] == pytest.approx(1)


def test_what_is_older_than_the_state_held_is_passed_over(live: list[Shard], log: Log) -> None:
    changes = [log.put("new-1", title="quasar"), log.delete("new-1"), log.put("new-2", title="fjord")]
    assert apply(live, changes) == 3
    versions = [shard.live.version for shard in live]
    assert apply(live, changes) == 0
    assert [shard.live.version for shard in live] == versions
    assert scores_of(live, "new-1") is None
    assert scores_of(live, "new-2") is not None


def test_no_changes_leave_the_shard_as_it_was(past: Past, live: list[Shard]) -> None:
    assert apply(live, []) == 0
    assert_equal_shards(live, past.opened(len(live)))
    assert [shard.live_counts() for shard in live] == [{"live": 0, "tombstones": 0}] * len(live)


def test_equal_scores_are_in_the_order_of_keys(past: Past, log: Log) -> None:
    """Snapshot rows and live ones of one text, and of no popularity: whatever k cuts, the smaller keys stay."""
    twins = [f"item-{number}" for number in range(70, 80)] + NEW
    (live,) = past.opened(1)
    apply([live], [log.put(item_id, title="quasar zeppelin") for item_id in twins])
    by_key = sorted(item_keys(twins).tolist())
    for k in range(1, len(twins) + 1):
        found = ask([live], plain(query=text("quasar zeppelin"), k=k))
        assert found.key[found.found_by & 1 << QUERY > 0].tolist() == by_key[:k]
    unmet = parse({"must": [{"field": "item_id", "in": [*twins, "item-84", "item-85"]}]})
    for k in range(1, len(twins) + 3):
        expected = sorted(item_keys([*twins, "item-84", "item-85"]).tolist())[:k]
        assert ask([live], plain(filter=unmet, k=k, now_s=NOW_S + 20 * DAY_S)).key.tolist() == expected  # none is fresh


def test_what_lies_behind_many_replaced_rows_is_found(past: Past, log: Log) -> None:
    query = plain(query=unit(text("quasar zeppelin") + np.linspace(-0.1, 0.1, DIM)), k=3)
    (live,) = past.opened(1)
    near = ask([live], replace(query, k=40)).key.tolist()
    for item_id in past.catalogue:
        if item_key(item_id) in near:
            log.delete(item_id)
    apply([live], log.items)
    assert len(log.items) == 40
    assert_same(ask([live], query), ask(past.built(log.catalogue, 1), query))


def test_a_zero_query_finds_no_live_item_near(live: list[Shard], log: Log) -> None:
    apply(live, [log.put("new-1", title="quasar")])
    found = ask(live, plain(query=np.zeros(DIM, np.float32), k=5, now_s=NOW_S + 20 * DAY_S))
    assert set(found.found_by.tolist()) == {1 << POPULAR}


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_every_metric_and_index(past: Past, log: Log, metric: str) -> None:
    for number in range(0, 60, 3):
        log.edit(f"item-{number}", title=f"marzipan item-{number}", price=float(number))
    for number in range(1, 60, 9):
        log.delete(f"item-{number}")
    for item_id in NEW:
        log.put(item_id, title=f"quasar {item_id}", year=2020)
    log.put("new-1", title="!!!")
    fresh = past.built(log.catalogue, 3, metric=metric, kind="flat")
    for kind in ("flat", "ivf"):
        live = past.opened(3, metric=metric, kind=kind)
        apply(live, log.items)
        for query in queries([*log.catalogue], seed=1):
            assert_same(replace(ask(live, query), exact=True), ask(fresh, query))


def test_all_of_a_shard_may_change(past: Past, log: Log) -> None:
    live = past.opened(3)
    for item_id in past.catalogue:
        log.delete(item_id)
    apply(live, log.items)
    assert [shard.n_items for shard in live] == [0, 0, 0]
    assert len(ask(live, plain(query=text("quasar"), profile=text("fjord")[None]))) == 0
    for item_id in past.catalogue:
        log.put(item_id, title=f"quasar {item_id}")
    apply(live, log.items)
    assert_equal_shards(live, past.built(log.catalogue, 3))


def test_a_snapshot_with_empty_shards_takes_items_in(past: Past) -> None:
    first = {"item-0": past.catalogue["item-0"]}
    live, log = past.built(first, 3), Log(dict(first))
    for item_id in ("item-1", "item-2", "item-3", "item-4", *NEW):
        log.put(item_id, title=f"quasar {item_id}", price=60.0)
    apply(live, log.items)
    found = ask(live, plain(query=text("quasar"), filter=FILTERS[2], k=100))
    expected = [item_id for item_id in log.catalogue if item_id != "item-0" or log.catalogue[item_id]["price"] >= 50]
    assert sorted(found.key.tolist()) == sorted(item_keys(expected).tolist())


def test_dead_slots_are_cleared_away(past: Past, log: Log) -> None:
    (live,) = past.opened(1)
    for item_id in (*NEW, "item-3"):
        log.put(item_id, title=f"fjord {item_id}", price=1.0)
    log.delete("new-2")
    apply([live], log.items)
    start = len(log.items)
    for number in range(COMPACT_FROM_DEAD + 50):
        log.edit(f"item-{number % 20}", price=float(number))
    slots = []
    for at_once in range(start, len(log.items), 100):
        apply([live], log.items[at_once : at_once + 100])
        slots.append(len(live.live))
        assert keys([live], plain(query=text("fjord new-1"), k=1)) == {item_key("new-1")}
    assert max(slots) < COMPACT_FROM_DEAD + 200
    assert slots[-1] < 100
    assert live.live_counts() == {"live": 23, "tombstones": 1}
    assert_equal_shards([live], past.built(log.catalogue, 1))
    apply([live], [log.edit("item-3", title="marzipan"), log.put("new-2", title="zeppelin"), log.delete("new-3")])
    assert_equal_shards([live], past.built(log.catalogue, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(DIM + 1, np.float32), "not \\[64\\]"),
        (np.full(DIM, np.nan, np.float32), "not finite"),
        (np.full(DIM, np.inf, np.float32), "not finite"),
        (np.ones(DIM, np.float32), "has length 8"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_and_nothing_is_taken_in(
    past: Past, log: Log, wrong: np.ndarray, message: str
) -> None:
    (live,) = past.opened(1)
    good, bad = log.put("new-1", title="quasar"), log.put("new-2", title="fjord")
    with pytest.raises(EncoderError, match=message):
        live.apply([good, replace(bad, vector=wrong)])
    assert_equal_shards([live], past.opened(1))
    assert live.apply([good, bad]) == 2


def test_a_filter_on_a_field_that_is_not_there_is_refused(past: Past, log: Log) -> None:
    live = past.opened(1)
    apply(live, [log.put("new-1", title="quasar", colour="red")])
    with pytest.raises(UnknownField, match="colour"):
        ask(live, plain(filter=parse({"must": [{"field": "colour", "match": "red"}]})))


# Fields as columns

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("price", pa.float64()),
        pa.field("year", pa.int64()),
        pa.field("hidden", pa.bool_()),
        pa.field("updated_at", TIME),
        pa.field("text_key", pa.binary(32)),
    ]
)


def row_of(**fields: Any) -> dict[str, Any]:
    return item_table([ItemChange(1, "a", fields, "", 0, 0)], SCHEMA).to_pylist()[0]


def test_json_values_become_those_of_the_columns() -> None:
    moment = datetime(2026, 1, 31, 17, 30, tzinfo=UTC)
    row = row_of(
        title="t", tags=["x", "y"], price=3, year=1999.0, hidden=True, updated_at="2026-01-31T18:30:00+01:00", colour=1
    )
    expected = {"title": "t", "tags": ["x", "y"], "price": 3.0, "year": 1999, "hidden": True, "updated_at": moment}
    assert row == {"item_id": "a", **expected, "text_key": None}
    assert row_of(updated_at=moment)["updated_at"] == moment
    assert row_of(item_id="b", text_key="c") == {name: "a" if name == "item_id" else None for name in SCHEMA.names}


def test_values_that_do_not_fit_their_column_are_null() -> None:
    row = row_of(title=["t"], tags=[["x"]], price="much", year=1.5, hidden="maybe", updated_at="2026-01-31")
    assert row == {name: "a" if name == "item_id" else None for name in SCHEMA.names}
    assert row_of(price=float("nan"), year=2**63, updated_at=1e300)["price"] is None


def test_a_table_that_grows_row_by_row_has_few_chunks() -> None:
    chunks: list[pa.Table] = []
    for number in range(1_000):
        add_rows(chunks, item_table([ItemChange(1, str(number), {"year": number}, "", 0, 0)], SCHEMA))
        assert len(chunks) <= 10
    add_rows(chunks, SCHEMA.empty_table())
    table = pa.concat_tables(chunks)
    assert table["year"].to_pylist() == list(range(1_000))
    mask = Attributes(table).mask(parse({"must": [{"field": "year", "range": {"gte": 990}}]}))
    assert np.flatnonzero(mask).tolist() == list(range(990, 1_000))
