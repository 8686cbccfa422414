"""What is found by its words: in shards as in one piece, by a plain loop, after changes, and along the whole path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import DIM, NOW_S, ODD, Shop, post, recommender, serve_here

from raysys.in_process import open_shards
from raysys.index.catalogue import Catalogue
from raysys.keys import item_key, shard_of
from raysys.recall.live import COMPACT_FROM_DEAD, LiveItem
from raysys.recall.merge import concatenate, merge
from raysys.recall.shard import Shard
from raysys.types import SOURCES, WORDS, Candidates, ItemChange, Profile, RecallQuery, Request, Terms
from raysys.words import item_terms, text_terms

K = 30


@pytest.fixture
def catalogue(shop: Shop) -> Catalogue:
    return Catalogue(shop.snapshot(3))


def asked(terms: Terms, source: str = "words", **more: Any) -> RecallQuery:
    nothing = {"query": None, "profile": None, "said": None, "filter": None, "now_s": NOW_S, "k": K}
    none = {"history_keys": np.empty(0, np.uint64), "history_weights": np.empty(0, np.float32)}
    return RecallQuery(**{**nothing, **none, "exclude_keys": np.empty(0, np.uint64), source: terms, **more})


def found(shards: Sequence[Shard], query: RecallQuery, source: int = WORDS) -> dict[int, float]:
    """Item key -> score, of what this source put forward."""
    answer = merge([shard.recall([query])[0] for shard in shards], query.k)
    at = np.flatnonzero(answer.found_by & (1 << source))
    return dict(zip(answer.key[at].tolist(), answer.scores[at, source].tolist(), strict=True))


def visible_items(shop: Shop) -> list[dict[str, Any]]:
    """The rows that may be shown."""
    rows = shop.items.to_pylist()
    return [row for row in rows if row["item_id"] not in ("hidden-1", "expired-1", "future-1")]


def test_words_find_what_a_plain_loop_finds(shop: Shop, catalogue: Catalogue) -> None:
    vocabulary = catalogue.vocabulary
    wanted = vocabulary.wanted(vocabulary.weigh(item_terms(visible_items(shop)[5])))
    asks = dict(zip(wanted.keys.tolist(), wanted.weights.tolist(), strict=True))
    expected = {}
    for row in visible_items(shop):
        terms = vocabulary.weigh(item_terms(row))
        expected[item_key(row["item_id"])] = sum(
            asks.get(key, 0.0) * weight for key, weight in zip(terms.keys.tolist(), terms.weights.tolist(), strict=True)
        )
    best = sorted(((-score, key) for key, score in expected.items() if score > 0))[:K]
    got = found([Shard(n, files) for n, files in enumerate(catalogue.shards)], asked(wanted))
    assert set(got) == {key for _, key in best}
    assert got == pytest.approx({key: -score for score, key in best}, abs=1e-5)


@pytest.mark.parametrize("source", ["words", "query_words"])
def test_shards_find_what_one_piece_finds(shop: Shop, source: str) -> None:
    whole, parts = open_shards(shop.snapshot(1)), open_shards(shop.snapshot(3))
    vocabulary = whole[0].files.vocabulary
    for row in visible_items(shop)[:20]:
        query = asked(vocabulary.wanted(vocabulary.weigh(item_terms(row))), source)
        one, three = found(whole, query, SOURCES.index(source)), found(parts, query, SOURCES.index(source))
        assert set(one) == set(three)
        assert one == pytest.approx(three, abs=1e-5)


def change(sequence: int, item_id: str, fields: dict[str, Any] | None) -> LiveItem:
    text = "" if fields is None else fields.get("title", "")
    return LiveItem(ItemChange(sequence, item_id, fields, text, NOW_S, NOW_S), np.zeros(DIM, np.float32))


def apply(shards: Sequence[Shard], item: LiveItem) -> None:
    shards[shard_of(item_key(item.change.item_id), len(shards))].apply([item])


def test_changed_items_are_found_by_their_new_words_only(shop: Shop) -> None:
    shards = open_shards(shop.snapshot(3))
    vocabulary = shards[0].files.vocabulary
    odd, fjord = (asked(vocabulary.weigh(Counter(text_terms(text)))) for text in ("quasar zeppelin", "fjord"))
    assert found(shards, odd) == {item_key(ODD): pytest.approx(1, abs=0.3)}
    apply(shards, change(1, ODD, {"title": "fjord"}))
    apply(shards, change(2, "brand-new", {"title": "Fjord zeppelin"}))
    assert set(found(shards, fjord)) == {item_key(ODD), item_key("brand-new")}
    assert set(found(shards, odd)) == {item_key("brand-new")}
    apply(shards, change(3, ODD, None))
    apply(shards, change(4, "brand-new", {"title": "fjord", "hidden": True}))
    assert found(shards, fjord) == found(shards, odd) == {}


def test_words_stay_with_their_items_when_dead_slots_go(shop: Shop) -> None:
    (shard,) = open_shards(shop.snapshot(1))
    shard.apply([change(1, "stays", {"title": "marzipan"})])
    for n in range(COMPACT_FROM_DEAD + 2):
        shard.apply([change(n + 2, "restless", {"title": f"fjord {n}"})])
    assert len(shard.live) < COMPACT_FROM_DEAD
    marzipan = shard.files.vocabulary.weigh({"marzipan": 1})
    assert set(found([shard], asked(marzipan))) == {item_key("stays")}
    assert set(found([shard], asked(shard.files.vocabulary.weigh({"fjord": 1})))) == {item_key("restless")}


def test_filters_exclusions_and_given_items_hold_for_words(shop: Shop) -> None:
    shards = open_shards(shop.snapshot(3))
    terms = shards[0].files.vocabulary.weigh(Counter(text_terms("quasar zeppelin")))
    assert found(shards, asked(terms, exclude_keys=np.array([item_key(ODD)], np.uint64))) == {}
    only = np.array([item_key(ODD), item_key("item-0")], np.uint64)
    scored: Candidates = concatenate([shard.recall([asked(terms, only=only)])[0] for shard in shards])
    by_key = dict(zip(scored.key.tolist(), scored.scores[:, WORDS].tolist(), strict=True))
    assert by_key[item_key(ODD)] > 0.5
    assert by_key[item_key("item-0")] == 0


async def test_a_query_finds_by_a_word_that_is_there(shop: Shop) -> None:
    path = recommender(shop.snapshot(3))
    answer = await path.recommend(Request(limit=3, query="ZEPPELIN"), Profile("u:nobody"))
    assert answer.items[0].item_id == ODD
    assert answer.items[0].sources["query_words"] > 0


async def test_a_history_finds_by_its_words(shop: Shop) -> None:
    path = recommender(shop.snapshot(3))
    answer = await path.recommend(Request(limit=10, history=("item-0",)), Profile("u:nobody"))
    assert any(item.sources.get("words", 0) > 0 for item in answer.items)


async def test_a_new_item_is_found_by_what_was_liked_and_is_new_too(shop: Shop, tmp_path: Path) -> None:
    served = await serve_here(shop.store(3), tmp_path / "state.sqlite3")
    try:
        async with served.client() as client:
            items = [{"item_id": f"new-{n}", "title": f"krokodil number {n}"} for n in range(2)]
            await post(client, "/v1/items", items=items)
            terms = await served.recommender.lookup.terms(["new-0", "item-0", "unknown"])
            assert [len(t) > 0 for t in terms] == [True, True, False]
            weighed = served.recommender.catalogue.vocabulary.weigh(item_terms({"title": "krokodil number 0"}))
            np.testing.assert_array_equal(terms[0].keys, weighed.keys)
    finally:
        await served.stop()


def test_a_snapshot_of_before_words_is_served(shop: Shop, tmp_path: Path) -> None:
    """The arrays are new: a snapshot that an older version wrote has none."""
    (shard,) = open_shards(shop.snapshot(1))
    bare = shard.files.__class__(tmp_path / "shard-00000", "flat", "cosine")
    bare.folder.mkdir()
    np.save(bare.folder / "keys.npy", shard.files.keys)
    assert not len(bare.vocabulary.weigh({"zeppelin": 1}))
    assert not len(bare.words.by_term.score(np.array([1], np.uint64), np.ones(1, np.float32))[0])
