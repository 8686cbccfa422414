"""The exact oracle: recall in any number of shards equals brute force over the whole catalogue."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from support import (
    DAY_S,
    DIM,
    EXPIRED,
    FITTED,
    FUTURE,
    HIDDEN,
    N_ITEMS,
    NOW_S,
    ODD,
    SILENT,
    SPACE_DIM,
    Shop,
    plain_query,
)

from raysys.encoder.hashing import HashEncoder
from raysys.errors import InvalidInput, UnknownField
from raysys.in_process import open_shards
from raysys.index.catalogue import Catalogue
from raysys.index.filters import parse
from raysys.index.sparse_rows import SparseRows
from raysys.keys import item_key, item_keys, shard_of
from raysys.recall.live import LiveItem
from raysys.recall.merge import concatenate, merge
from raysys.recall.shard import Shard
from raysys.recall.trending import Trends
from raysys.types import (
    FACTORS,
    FRESH,
    FRIENDS,
    POPULAR,
    PROFILE,
    QUERY,
    RIDGE,
    SAID,
    SOURCES,
    TRANSITION,
    TRENDING,
    Candidates,
    FriendLikes,
    ItemChange,
    RecallQuery,
)

N_SHARDS = (1, 2, 3, 8)

Found = dict[int, tuple[list[float], int]]  # key -> scores by source, bits of the sources that put it forward
Acts = tuple[str, str, float, float]  # item id, user, weight, at_s


class Oracle:
    """Brute force in numpy over plain arrays of the whole catalogue: no index, no shards, no early stop."""

    def __init__(self, shop: Shop) -> None:
        (files,) = Catalogue(shop.snapshot(1)).shards
        self.keys, self.vectors, self.popularity = files.keys, np.array(files.vectors), np.array(files.popularity)
        self.items = files.items.to_pylist()
        starts = [item["available_from"] for item in self.items]
        self.since_s = np.array([-np.inf if start is None else start.timestamp() // 1 for start in starts])
        self.events: list[Acts] = []
        self.space = np.array(files.spaces[FACTORS])
        self.weights = {TRANSITION: self._dense(files.transition), RIDGE: self._dense(files.ridge)}

    def _dense(self, rows: SparseRows) -> dict[int, np.ndarray]:
        """Item key -> the weight that leads from it to each row."""
        found = {}
        for i, source in enumerate(rows.sources):
            mine = slice(rows.offsets[i], rows.offsets[i + 1])
            found[int(source)] = np.zeros(len(self.keys))
            found[int(source)][rows.rows[mine]] = rows.weights[mine]
        return found

    def visible(self, query: RecallQuery, keeps) -> np.ndarray:
        def may_be_seen(item) -> bool:
            begin, end = item["available_from"], item["available_until"]
            within = (begin is None or begin.timestamp() <= query.now_s) and (
                end is None or query.now_s < end.timestamp()
            )
            return within and not item["hidden"] and keeps(item)

        allowed = np.array([may_be_seen(item) for item in self.items])
        return allowed & ~np.isin(self.keys, query.exclude_keys)

    def scores(self, query: RecallQuery) -> np.ndarray:
        scores = np.zeros((len(self.keys), len(SOURCES)))
        one = None if query.query is None else query.query[None]
        for source, vectors in ((QUERY, one), (PROFILE, query.profile), (SAID, query.said)):
            if vectors is not None:
                scores[:, source] = (self.vectors @ vectors.T).max(axis=1)
        for key, weight in zip(query.history_keys.tolist(), query.history_weights, strict=True):
            for source, weights in self.weights.items():
                scores[:, source] += weight * weights.get(key, 0)
        if FACTORS in query.placed:
            products = self.space * query.placed[FACTORS].astype(np.float64)
            scores[:, FACTORS] = products.sum(axis=1)  # equal rows get equal scores, unlike from BLAS
        if query.friends is not None:
            for key, weight in zip(query.friends.keys.tolist(), query.friends.weights.tolist(), strict=True):
                scores[self.keys == key, FRIENDS] = weight
        scores[:, TRENDING] = self.trending(query.now_s)
        age_s = np.floor(query.now_s) - self.since_s
        scores[:, FRESH] = np.where((age_s >= 0) & (age_s < 14 * DAY_S), 0.5 ** np.abs(age_s / (3 * DAY_S)), 0)
        scores[:, POPULAR] = self.popularity
        return scores

    def trending(self, now_s: float) -> np.ndarray:
        """From scratch, one event a person, item and hour: no two of ``events`` are of the same."""
        sums = np.zeros((2, len(self.keys)))
        for item_id, _, weight, at_s in self.events:
            age_s = np.floor(now_s) - np.floor(at_s)
            sums[:, self.keys == item_key(item_id)] += [[weight * 0.5 ** (age_s / h)] for h in (1_800, 43_200)]
        return (sums[0] / (sums[0] + 10) + sums[1] / (sums[1] + 100)) / 2

    def recall(self, query: RecallQuery, keeps=lambda _: True) -> Found:
        scores, visible = self.scores(query), self.visible(query, keeps)
        candidates = {
            QUERY: visible & self.vectors.any(axis=1) & (query.query is not None),
            PROFILE: visible & self.vectors.any(axis=1) & (query.profile is not None),
            SAID: visible & self.vectors.any(axis=1) & (query.said is not None),
            TRANSITION: visible & (scores[:, TRANSITION] != 0),
            RIDGE: visible & (scores[:, RIDGE] != 0),
            FACTORS: visible & (scores[:, FACTORS] > 0),
            FRIENDS: visible & (scores[:, FRIENDS] != 0),
        }
        found = {source: self._best(scores[:, source], mask, query.k) for source, mask in candidates.items()}
        for source in (TRENDING, FRESH):
            few = min(query.k, max(query.k // 4, 10))
            found[source] = self._best(scores[:, source].astype(np.float32), visible & (scores[:, source] > 0), few)
        if len(set().union(*found.values())) < query.k:
            found[POPULAR] = self._best(scores[:, POPULAR], visible, query.k)
        return {
            int(self.keys[row]): (scores[row].tolist(), sum(1 << s for s, rows in found.items() if row in rows))
            for row in set().union(*found.values())
        }

    def changed(
        self, items: dict[str, dict], vectors: dict[str, np.ndarray], deleted: set[str], created_s: dict[str, float]
    ) -> "Oracle":
        """The same after these items got new fields and vectors, and others were deleted."""
        rows = {item["item_id"]: row for row, item in enumerate(self.items)}
        n_more = len(items.keys() - rows.keys())
        rows |= {item_id: len(self.items) + i for i, item_id in enumerate(sorted(items.keys() - rows.keys()))}
        oracle = copy(self)
        oracle.keys = np.append(self.keys, np.zeros(n_more, np.uint64))
        oracle.vectors = np.vstack([self.vectors, np.zeros((n_more, DIM), np.float32)])
        oracle.popularity = np.append(self.popularity, np.zeros(n_more, np.float32))
        oracle.space = np.vstack([self.space, np.zeros((n_more, SPACE_DIM), np.float32)])
        oracle.since_s = np.append(self.since_s, np.zeros(n_more))
        oracle.items = self.items + [{} for _ in range(n_more)]
        for item_id, fields in items.items():
            row = rows[item_id]
            oracle.keys[row], oracle.vectors[row] = item_key(item_id), vectors[item_id]
            oracle.items[row] = dict.fromkeys(self.items[0]) | {"item_id": item_id} | fields
            if row >= len(self.items):
                oracle.since_s[row] = created_s[item_id] // 1
        gone = {rows[item_id] for item_id in deleted}
        kept = np.array([row for row in np.argsort(oracle.keys) if row not in gone])
        oracle.keys, oracle.vectors, oracle.popularity = (
            oracle.keys[kept],
            oracle.vectors[kept],
            oracle.popularity[kept],
        )
        oracle.since_s, oracle.space = oracle.since_s[kept], oracle.space[kept]
        oracle.items = [oracle.items[row] for row in kept]
        more = np.zeros(n_more)
        oracle.weights = {
            source: {key: np.append(values, more)[kept] for key, values in weights.items()}
            for source, weights in self.weights.items()
        }
        return oracle

    @staticmethod
    def _best(scores: np.ndarray, mask: np.ndarray, k: int) -> set[int]:
        rows = np.flatnonzero(mask)
        return set(rows[np.lexsort((rows, -scores[rows]))[:k]].tolist())  # rows are in the order of the keys


@pytest.fixture(scope="module")
def oracle(shop: Shop) -> Oracle:
    return Oracle(shop)


@pytest.fixture(scope="module", params=N_SHARDS)
def shards(shop: Shop, request: pytest.FixtureRequest) -> list[Shard]:
    return open_shards(shop.snapshot(request.param))


def vector(text: str) -> np.ndarray:
    return HashEncoder(DIM).encode([text], "query")[0]


def random_query(shop: Shop, seed: int, **changes) -> RecallQuery:
    """A query text, a taste and a history of one user of the world, and some of what they saw left out."""
    random = np.random.default_rng(seed)
    profile = shop.profile(int(random.integers(len(shop.world.user_topics))))
    items = [interaction.item_id for interaction in profile.interactions]
    tastes = random.normal(size=(1 + seed % 3, DIM)).astype(np.float32)
    return plain_query(
        query=vector(shop.world.items["title"][int(random.integers(N_ITEMS))].as_py()),
        profile=tastes / np.linalg.norm(tastes, axis=1, keepdims=True),
        said=np.stack([vector("bababa"), vector("quasar zeppelin")]) if seed % 2 else None,
        history_keys=item_keys([*items, "never-heard-of"]),
        history_weights=random.random(len(items) + 1).astype(np.float32),
        exclude_keys=item_keys(items),
        k=int(random.integers(1, 60)),
        placed={FACTORS: random.normal(size=SPACE_DIM).astype(np.float32)} if seed % 3 else {},
        friends=friends([f"item-{n}" for n in random.integers(N_ITEMS + 9, size=90)], random) if seed % 3 else None,
        **changes,
    )


def friends(items: Sequence[str], random: np.random.Generator) -> FriendLikes:
    """Likes of these items, several of equal weight."""
    keys = np.unique(item_keys(items))
    return FriendLikes(keys, random.integers(1, 6, len(keys)).astype(np.float32) / 5)


def as_found(candidates: Candidates) -> Found:
    rows = zip(candidates.key.tolist(), candidates.scores.tolist(), candidates.found_by.tolist(), strict=True)
    return {key: (scores, bits) for key, scores, bits in rows}


def ask(shards: list[Shard], query: RecallQuery) -> Candidates:
    return merge([shard.recall([query])[0] for shard in shards], query.k)


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for key, (scores, bits) in found.items():
        assert scores == pytest.approx(expected[key][0], abs=1e-5)
        assert bits == expected[key][1]


@pytest.mark.parametrize("seed", range(12))
def test_sharded_equals_brute_force(shop: Shop, oracle: Oracle, shards: list[Shard], seed: int) -> None:
    query = random_query(shop, seed)
    assert_same(as_found(ask(shards, query)), oracle.recall(query))


FILTERS = [
    ({"must": [{"field": "categories", "match": "topic-2"}]}, lambda i: "topic-2" in (i["categories"] or [])),
    ({"must": [{"field": "price", "range": {"lt": 3}}]}, lambda i: i["price"] is not None and i["price"] < 3),
    ({"must_not": [{"field": "year", "range": {"gte": 1960}}]}, lambda i: i["year"] is None or i["year"] < 1960),
    ({"should": [{"field": "item_id", "in": ["item-1", ODD]}]}, lambda i: i["item_id"] in ("item-1", ODD)),
    ({"must": [{"field": "title", "match": "nobody"}]}, lambda _: False),
]


@pytest.mark.parametrize("raw_and_rule", FILTERS, ids=lambda f: str(f[0])[:40])
@pytest.mark.parametrize("seed", range(3))
def test_filtered_equals_brute_force(shop: Shop, oracle: Oracle, shards: list[Shard], seed: int, raw_and_rule) -> None:
    raw, keeps = raw_and_rule
    query = random_query(shop, seed, filter=parse(raw))
    assert_same(as_found(ask(shards, query)), oracle.recall(query, keeps))


@pytest.mark.parametrize("part", ["query", "profile", "history", "friends", "nothing"])
def test_each_source_alone_equals_brute_force(shop: Shop, oracle: Oracle, shards: list[Shard], part: str) -> None:
    full = random_query(shop, 4)
    query = plain_query(
        friends=full.friends if part == "friends" else None,
        query=full.query if part == "query" else None,
        profile=full.profile if part == "profile" else None,
        history_keys=full.history_keys if part == "history" else np.empty(0, np.uint64),
        history_weights=full.history_weights if part == "history" else np.empty(0, np.float32),
        k=25,
    )
    assert_same(as_found(ask(shards, query)), oracle.recall(query))


def test_k_beyond_the_catalogue_gives_all_that_may_be_seen(oracle: Oracle, shards: list[Shard]) -> None:
    query = plain_query(query=vector("bababa"), k=10_000)
    found = as_found(ask(shards, query))
    assert_same(found, oracle.recall(query))
    assert len(found) == N_ITEMS + 2  # the odd and the silent one; hidden, expired and future ones never
    assert found[item_key(SILENT)][1] == 1 << POPULAR  # no text is near it


def test_batch_equals_single(shop: Shop, shards: list[Shard]) -> None:
    filters = [None, *(parse(raw) for raw, _ in FILTERS)]
    queries = [random_query(shop, seed, filter=filters[seed % len(filters)]) for seed in range(18)] + [plain_query()]
    for shard in shards:
        for query, batched in zip(queries, shard.recall(queries), strict=True):
            assert_same(as_found(batched), as_found(shard.recall([query])[0]))


def test_hidden_expired_and_future_items_never_come(shop: Shop, shards: list[Shard]) -> None:
    title = shop.world.items["title"][0].as_py()
    never = {item_key(item_id) for item_id in (HIDDEN, EXPIRED, FUTURE)}
    query = plain_query(query=vector(title), history_keys=item_keys(["item-0"]), history_weights=np.ones(1, np.float32))
    assert not never & as_found(ask(shards, query)).keys()
    only = replace(query, only=item_keys([HIDDEN, EXPIRED, FUTURE, "item-0"]))
    assert concatenate([shard.recall([only])[0] for shard in shards]).key.tolist() == [item_key("item-0")]


def test_time_opens_and_closes_items(shop: Shop, shards: list[Shard]) -> None:
    def seen_at(now_s: float) -> set[int]:
        query = plain_query(query=vector(shop.world.items["title"][0].as_py()), now_s=now_s, k=10_000)
        return {item_key(EXPIRED), item_key(FUTURE)} & as_found(ask(shards, query)).keys()

    assert seen_at(NOW_S - DAY_S - 1e-3) == {item_key(EXPIRED)}
    assert seen_at(NOW_S - DAY_S) == set()  # available_until is the first moment without it
    assert seen_at(NOW_S + DAY_S) == {item_key(FUTURE)}  # available_from is the first moment with it


def test_only_scores_the_wanted_items_as_a_search_would(shop: Shop, oracle: Oracle, shards: list[Shard]) -> None:
    wanted = ["item-3", "item-3", "item-77", SILENT, "never-heard-of", ODD]
    query = replace(random_query(shop, 5), exclude_keys=np.empty(0, np.uint64), only=item_keys(wanted))
    found = as_found(concatenate([shard.recall([query])[0] for shard in shards]))
    assert found.keys() == {item_key(item_id) for item_id in wanted} - {item_key("never-heard-of")}
    scores = dict(zip(oracle.keys.tolist(), oracle.scores(query).tolist(), strict=True))
    for key, (given, bits) in found.items():
        assert given == pytest.approx(scores[key], abs=1e-5)
        assert bits == sum(1 << source for source, score in enumerate(given) if score != 0)


def test_a_zero_query_finds_nothing_near(shards: list[Shard]) -> None:
    found = as_found(ask(shards, plain_query(query=np.zeros(DIM, np.float32), k=5)))
    assert len(found) == 5
    assert {bits for _, bits in found.values()} == {1 << POPULAR}


def test_rows_and_shards_lead_back_to_the_items(shop: Shop, shards: list[Shard]) -> None:
    catalogue = Catalogue(shop.snapshot(len(shards)))
    found = ask(shards, random_query(shop, 2))
    ids = [catalogue.item_id(shard, row) for shard, row in zip(found.shard, found.row, strict=True)]
    assert item_keys(ids).tolist() == found.key.tolist()
    assert (found.row >= 0).all()
    assert np.isfinite(found.scores).all()


def test_everything_excluded_leaves_nothing(shop: Shop, oracle: Oracle, shards: list[Shard]) -> None:
    query = plain_query(query=vector("bababa"), exclude_keys=np.array(oracle.keys))
    assert len(ask(shards, query)) == 0


def test_a_filter_on_a_field_that_is_not_there_is_refused(shards: list[Shard]) -> None:
    unknown = plain_query(filter=parse({"must": [{"field": "colour", "match": "red"}]}))
    with pytest.raises(UnknownField, match="colour"):
        ask(shards, unknown)


def test_a_query_vector_of_another_size_is_refused(shards: list[Shard]) -> None:
    with pytest.raises(InvalidInput, match=str(DIM)):
        ask(shards, plain_query(query=np.ones(DIM + 1, np.float32)))


@pytest.mark.parametrize("n_shards", N_SHARDS[1:])
def test_the_snapshots_hold_the_same(shop: Shop, n_shards: int) -> None:
    whole, parts = Catalogue(shop.snapshot(1)), Catalogue(shop.snapshot(n_shards))
    ids = whole.shards[0].items["item_id"].to_pylist()
    one, many = whole.find(ids), parts.find(ids)
    assert many.known.all()
    assert np.array_equal(whole.vectors(one), parts.vectors(many))
    for item_id, a, shard, row in zip(ids, one.row, many.shard, many.row, strict=True):
        assert whole.metadata(0, a) == parts.metadata(shard, row), item_id
        assert whole.shards[0].popularity[a] == pytest.approx(parts.shards[shard].popularity[row], rel=1e-6)
    assert np.allclose(whole.contrast.inverse, parts.contrast.inverse, rtol=1e-3, atol=1e-4)


# Live changes; more about them in test_live_rows.py


@pytest.fixture(scope="module")
def changed(shop: Shop, oracle: Oracle) -> tuple[Oracle, list[LiveItem]]:
    """A third of the items with new words, a tenth deleted, as many new; and the changes that lead there."""
    random = np.random.default_rng(11)
    ids = random.permutation([f"item-{number}" for number in range(N_ITEMS)]).tolist()
    edited, deleted = [*ids[:80], HIDDEN], set(ids[80:104])
    titles = shop.world.items["title"].to_pylist()
    items = {
        item_id: {"title": f"{titles[n]} {item_id}", "price": float(n % 7), "year": 1950 + n % 20}
        for n, item_id in enumerate([*edited, *(f"new-{number}" for number in range(24))])
    }
    created_s = {item_id: NOW_S - 0.25 - n * DAY_S for n, item_id in enumerate(reversed(items))}  # new ones in 24 days
    vectors = {item_id: HashEncoder(DIM).encode([fields["title"]], "item")[0] for item_id, fields in items.items()}
    states = [*items.items(), *((item_id, None) for item_id in deleted)]
    changes = [
        LiveItem(
            ItemChange(n, item_id, fields, "", NOW_S, created_s.get(item_id, NOW_S)),
            None if fields is None else vectors[item_id],
        )
        for n, (item_id, fields) in enumerate(states, start=1)
    ]
    return oracle.changed(items, vectors, deleted, created_s), changes


@pytest.fixture(scope="module", params=N_SHARDS)
def changed_shards(shop: Shop, request: pytest.FixtureRequest, changed: tuple[Oracle, list[LiveItem]]) -> list[Shard]:
    shards = open_shards(shop.snapshot(request.param))
    for item in changed[1]:
        shards[shard_of(item_key(item.change.item_id), len(shards))].apply([item])
    return shards


@pytest.mark.parametrize("seed", range(12))
def test_changed_shards_equal_brute_force(
    shop: Shop, changed: tuple[Oracle, list[LiveItem]], changed_shards: list[Shard], seed: int
) -> None:
    raw, keeps = (FILTERS[seed % len(FILTERS)]) if seed % 2 else (None, lambda _: True)
    query = random_query(shop, seed, filter=None if raw is None else parse(raw))
    assert_same(as_found(ask(changed_shards, query)), changed[0].recall(query, keeps))


def test_changed_shards_count_what_they_serve(
    changed: tuple[Oracle, list[LiveItem]], changed_shards: list[Shard]
) -> None:
    oracle, changes = changed
    assert sum(shard.n_items for shard in changed_shards) == len(oracle.keys)
    counts = [shard.live_counts() for shard in changed_shards]
    assert sum(count["tombstones"] for count in counts) == sum(item.change.deleted for item in changes)
    assert sum(count["live"] for count in counts) == sum(not item.change.deleted for item in changes)


def test_a_batch_of_changed_shards_equals_single(shop: Shop, changed_shards: list[Shard]) -> None:
    filters = [None, *(parse(raw) for raw, _ in FILTERS)]
    queries = [random_query(shop, seed, filter=filters[seed % len(filters)]) for seed in range(18)] + [plain_query()]
    for shard in changed_shards:
        for query, batched in zip(queries, shard.recall(queries), strict=True):
            assert_same(as_found(batched), as_found(shard.recall([query])[0]))


def test_candidates_are_in_the_order_of_their_keys(
    shop: Shop, shards: list[Shard], changed_shards: list[Shard]
) -> None:
    for shard in [*shards, *changed_shards]:
        key = shard.recall([random_query(shop, 4)])[0].key
        assert (key[1:] > key[:-1]).all()


# What is trending and what is fresh


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop with a start for four items in five: in pairs, from in three days to a month ago."""
    shop = Shop(tmp_path_factory.mktemp("dated"), behaviour=FITTED)
    starts = [
        None if n % 5 == 0 else datetime.fromtimestamp(NOW_S + 3 * DAY_S - n // 2 * DAY_S / 4 + 0.3, UTC)
        for n in range(len(shop.items))
    ]
    column = pa.array(starts, shop.items.schema.field("available_from").type)
    shop.__dict__["items"] = shop.items.set_column(
        shop.items.schema.get_field_index("available_from"), "available_from", column
    )
    return shop


@pytest.fixture(scope="module")
def busy(dated: Shop, changed: tuple[Oracle, list[LiveItem]]) -> tuple[Oracle, list[LiveItem], list[Acts]]:
    """Two days of events about items of all sorts: changed and deleted ones, new ones, hidden ones, unknown ones."""
    changes = changed[1]
    shown = {item.change.item_id: item for item in changes if not item.change.deleted}
    oracle = Oracle(dated).changed(
        {item_id: dict(item.change.fields or {}) for item_id, item in shown.items()},
        {item_id: item.vector for item_id, item in shown.items() if item.vector is not None},
        {item.change.item_id for item in changes if item.change.deleted},
        {item_id: item.change.created_s for item_id, item in shown.items()},
    )
    random = np.random.default_rng(5)
    ids = [*(item["item_id"] for item in oracle.items), *(item.change.item_id for item in changes), "never-heard-of"]
    picks = (len(ids) * random.random(1_500) ** 2).astype(int)
    oracle.events = [
        (ids[pick], f"u:{n}", float(random.choice([0.5, 1, 3])), NOW_S - float(random.random()) * DAY_S)
        for n, pick in enumerate(picks)
    ]
    return oracle, changes, oracle.events


def served(shop: Shop, n_shards: int, changes: list[LiveItem], events: list[Acts]) -> list[Shard]:
    shards = open_shards(shop.snapshot(n_shards))
    for item in changes:
        shards[shard_of(item_key(item.change.item_id), n_shards)].apply([item])
    for item_id, user, weight, at_s in events:
        shards[shard_of(item_key(item_id), n_shards)].trends.add(item_key(item_id), user, weight, at_s)
    return shards


@pytest.fixture(scope="module", params=[1, 3])
def busy_shards(
    dated: Shop, request: pytest.FixtureRequest, busy: tuple[Oracle, list[LiveItem], list[Acts]]
) -> list[Shard]:
    return served(dated, request.param, busy[1], busy[2])


@pytest.mark.parametrize("seed", range(12))
def test_trending_and_fresh_equal_brute_force(
    shop: Shop, busy: tuple[Oracle, list[LiveItem], list[Acts]], busy_shards: list[Shard], seed: int
) -> None:
    raw, keeps = (FILTERS[seed % len(FILTERS)]) if seed % 2 else (None, lambda _: True)
    query = random_query(shop, seed, filter=None if raw is None else parse(raw))
    found, expected = as_found(ask(busy_shards, query)), busy[0].recall(query, keeps)
    assert_same(found, expected)
    if raw is None:
        for source in (TRENDING, FRESH):
            assert sum(bits >> source & 1 for _, bits in found.values()) == min(query.k, max(query.k // 4, 10))


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_quarter_comes_of_each_and_popularity_fills_the_rest_as_time_goes_on(
    dated: Shop, busy: tuple[Oracle, list[LiveItem], list[Acts]], n_shards: int
) -> None:
    shards = served(dated, n_shards, busy[1], busy[2])
    for later_s in (0, 0.6, 1, 5_000, DAY_S / 2):
        for k in (1, 10, 11, 40, 120, 1_000):
            query = plain_query(k=k, now_s=NOW_S + later_s)
            assert_same(as_found(ask(shards, query)), busy[0].recall(query))


def test_only_scores_trending_and_fresh_items(
    busy: tuple[Oracle, list[LiveItem], list[Acts]], busy_shards: list[Shard]
) -> None:
    oracle = busy[0]
    query = plain_query(only=np.array(oracle.keys))
    found = as_found(concatenate([shard.recall([query])[0] for shard in busy_shards]))
    visible = oracle.visible(query, lambda _: True)
    assert found.keys() == set(oracle.keys[visible].tolist())
    for key, scores in zip(oracle.keys[visible].tolist(), oracle.scores(query)[visible], strict=True):
        assert found[key][0] == pytest.approx(scores.tolist(), abs=1e-5)
        assert found[key][1] == sum(1 << source for source in range(len(SOURCES)) if scores[source] != 0)


def shown_by(shards: list[Shard], source: int, **parts) -> set[int]:
    return {key for key, (_, bits) in as_found(ask(shards, plain_query(**parts))).items() if bits >> source & 1}


def live_item(sequence: int, item_id: str, fields: dict | None, created_s: float = NOW_S) -> LiveItem:
    return LiveItem(ItemChange(sequence, item_id, fields, "", NOW_S, created_s), None)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_what_may_not_be_seen_is_not_trending_either(shop: Shop, n_shards: int) -> None:
    hot = [HIDDEN, EXPIRED, FUTURE, "item-1", "item-2", "item-3", "item-4", "never-heard-of", "new-1"]
    acts = [(item_id, f"u:{n}", 1.0, NOW_S - n) for item_id in hot for n in range(50)]
    shards = served(shop, n_shards, [live_item(1, "item-1", None), live_item(2, "item-2", {"hidden": True})], acts)
    assert shown_by(shards, TRENDING) == set(item_keys(["item-3", "item-4"]).tolist())
    only_4 = parse({"must": [{"field": "item_id", "match": "item-4"}]})
    assert shown_by(shards, TRENDING, filter=only_4) == {item_key("item-4")}
    assert shown_by(shards, TRENDING, exclude_keys=item_keys(["item-4"])) == {item_key("item-3")}
    for change in (live_item(3, "new-1", {"title": "new"}), live_item(4, "item-1", {"title": "back"})):
        shards[shard_of(item_key(change.change.item_id), n_shards)].apply([change])
    assert shown_by(shards, TRENDING) == set(item_keys(["item-1", "item-3", "item-4", "new-1"]).tolist())


def test_what_is_filtered_away_or_excluded_makes_room_for_the_next(shop: Shop) -> None:
    acts = [(f"item-{n}", f"u:{user}", 1.0, NOW_S) for n in range(240) for user in range(1 + n // 8)]
    shards = served(shop, 3, [], acts)
    hottest = item_keys([f"item-{n}" for n in range(239, 50, -1)])
    assert item_key("item-239") in shown_by(shards, TRENDING)
    assert not set(hottest.tolist()) & shown_by(shards, TRENDING, exclude_keys=hottest)
    assert len(shown_by(shards, TRENDING, exclude_keys=hottest)) == 10


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_new_item_is_fresh_for_two_weeks_and_an_edited_one_is_not(shop: Shop, n_shards: int) -> None:
    changes = [
        live_item(1, "new-1", {"title": "new"}),
        live_item(2, "new-2", {"title": "hidden", "hidden": True}),
        live_item(3, "new-3", None),
        live_item(4, "item-1", {"title": "edited"}),
        live_item(5, "item-2", {"available_from": datetime.fromtimestamp(NOW_S - 1, UTC).isoformat()}),
        live_item(6, "new-4", {"title": "older"}, NOW_S - 3 * DAY_S),
    ]
    shards = served(shop, n_shards, changes, [])
    assert shown_by(shards, FRESH) == {item_key("new-1"), item_key("new-4")}
    scores = as_found(ask(shards, plain_query()))
    assert [scores[item_key(item_id)][0][FRESH] for item_id in ("new-1", "new-4")] == [1.0, 0.5]
    assert shown_by(shards, FRESH, exclude_keys=item_keys(["new-1"])) == {item_key("new-4")}
    assert shown_by(shards, FRESH, now_s=NOW_S + 11 * DAY_S) == {item_key("new-1"), item_key(FUTURE)}
    assert shown_by(shards, FRESH, now_s=NOW_S + 14 * DAY_S) == {item_key(FUTURE)}
    assert shown_by(shards, FRESH, now_s=NOW_S + 15 * DAY_S) == set()
    assert shown_by(shards, FRESH, now_s=NOW_S - 1) == {item_key("new-4")}  # by a clock that is behind


def test_a_snapshots_item_keeps_its_age_when_it_changes(dated: Shop) -> None:
    shards = served(dated, 3, [], [])
    (newest,) = [item for item in Oracle(dated).items if item["item_id"] == "item-26"]
    before = as_found(ask(shards, plain_query(only=item_keys(["item-26"]), k=1_000)))[item_key("item-26")][0][FRESH]
    assert before == pytest.approx(0.5 ** ((NOW_S - newest["available_from"].timestamp() // 1) / (3 * DAY_S)))
    for change in (live_item(1, "item-26", {"title": "a"}), live_item(2, "item-26", None), live_item(3, "item-26", {})):
        shards[shard_of(item_key("item-26"), 3)].apply([change])
    assert as_found(ask(shards, plain_query(only=item_keys(["item-26"]))))[item_key("item-26")][0][FRESH] == before


def test_two_snapshots_share_what_is_trending(shop: Shop) -> None:
    (files,) = Catalogue(shop.snapshot(1)).shards
    trends = Trends()
    old = Shard(0, files, trends)
    trends.add(item_key("item-1"), "u:a", 1.0, NOW_S)
    new = Shard(0, files, trends)
    assert shown_by([old], TRENDING) == shown_by([new], TRENDING) == {item_key("item-1")}
