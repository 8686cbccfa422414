"""The whole path with plain objects: each rule of a request, and what happens when a part does not answer."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support import DIM, EXPIRED, FUTURE, HIDDEN, N_ITEMS, ODD, SILENT, Shop, raising, recommender

from raysys.config import RankingSettings
from raysys.encoder.hashing import HashEncoder
from raysys.errors import InvalidInput, Overloaded, Unavailable, UnknownItem
from raysys.in_process import LocalRecall, open_shards
from raysys.index.filters import parse
from raysys.ranking.linear import LinearRanker
from raysys.recommender import Recommender
from raysys.serving.coalescer import Coalescer
from raysys.types import Answer, Interaction, Profile, Request

STRANGER = Profile("u:nobody")
N_VISIBLE = N_ITEMS + 2


@pytest.fixture(scope="module")
def path(shop: Shop) -> Recommender:
    return recommender(shop.snapshot(3))


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


def likes(*item_ids: str) -> Profile:
    return Profile("u:ann", len(item_ids), tuple(Interaction(item_id, 2.0, i) for i, item_id in enumerate(item_ids)))


async def test_a_stranger_gets_what_is_popular_and_is_told_so(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=10), STRANGER)
    assert len(answer.items) == 10
    assert answer.reasons == ("cold_start",)
    assert all(set(item.sources) == {"popular"} for item in answer.items)
    assert not answer.underfilled
    assert answer.profile_version == 0


async def test_ranks_count_from_one_and_scores_fall(shop: Shop, path: Recommender) -> None:
    answer = await path.recommend(Request(limit=20, query="bababa"), shop.profile(0))
    assert [item.rank for item in answer.items] == list(range(1, 21))
    assert all(a.score >= b.score for a, b in pairwise(answer.items))
    assert len(set(ids(answer))) == 20
    assert answer.reasons == ()
    assert answer.profile_version == shop.profile(0).version
    assert answer.snapshot_id == shop.snapshot(3).name


async def test_a_score_is_what_its_sources_add_up_to(shop: Shop, path: Recommender) -> None:
    weights = RankingSettings()
    for item in (await path.recommend(Request(limit=20, query="bababa"), shop.profile(0))).items:
        total = sum(getattr(weights, source) * score for source, score in item.sources.items())
        assert item.score == pytest.approx(total, abs=1e-6)


async def test_metadata_is_what_the_catalogue_holds(path: Recommender) -> None:
    (item,) = (await path.recommend(Request(limit=1, query="quasar zeppelin"), STRANGER)).items
    assert item.item_id == ODD
    assert item.metadata == {"title": "quasar zeppelin", "categories": ["odd"], "price": 1.0, "year": 2000}


async def test_seen_items_stay_out_unless_wanted(shop: Shop, path: Recommender) -> None:
    profile = shop.profile(4)
    seen = {interaction.item_id for interaction in profile.interactions}
    assert not seen & set(ids(await path.recommend(Request(limit=N_VISIBLE), profile)))
    again = await path.recommend(Request(limit=N_VISIBLE, exclude_seen=False), profile)
    assert seen <= set(ids(again))
    request = Request(limit=N_VISIBLE, history=("item-1", "item-2"))
    assert not {"item-1", "item-2"} & set(ids(await path.recommend(request, STRANGER)))
    assert {"item-1", "item-2"} <= set(ids(await path.recommend(replace(request, exclude_seen=False), STRANGER)))


async def test_liked_and_disliked_items_of_the_request_never_come(path: Recommender) -> None:
    request = Request(limit=N_VISIBLE, positive=("item-1",), negative=("item-2",), exclude_seen=False)
    answer = await path.recommend(request, STRANGER)
    assert not {"item-1", "item-2"} & set(ids(answer))
    assert len(answer.items) == N_VISIBLE - 2


async def test_disliked_items_of_the_profile_never_come_even_when_seen_ones_may(path: Recommender) -> None:
    profile = Profile("u:ann", 2, (Interaction("item-1", -2.0, 1.0), Interaction("item-2", 1.0, 2.0)))
    found = set(ids(await path.recommend(Request(limit=N_VISIBLE, exclude_seen=False), profile)))
    assert "item-1" not in found
    assert "item-2" in found


async def test_all_dislikes_of_the_profile_stay_out_however_many(path: Recommender) -> None:
    many = [f"item-{i}" for i in range(120)]  # more than the history that recall looks at
    profile = Profile("u:ann", 120, tuple(Interaction(item_id, -2.0, i) for i, item_id in enumerate(many)))
    assert not set(many) & set(ids(await path.recommend(Request(limit=N_VISIBLE, exclude_seen=False), profile)))
    request = Request(limit=N_VISIBLE, negative=tuple(many))
    assert not set(many) & set(ids(await path.recommend(request, STRANGER)))


async def test_dislikes_move_the_taste_away(shop: Shop, path: Recommender) -> None:
    topic = shop.world.item_topics
    first, second = (np.flatnonzero(topic == t)[:6] for t in (0, 1))
    positive = tuple(f"item-{i}" for i in (*first[:3], *second[:3]))
    negative = tuple(f"item-{i}" for i in second[3:])
    others = tuple(f"item-{i}" for i in np.flatnonzero(topic == 1)[6:])

    async def liking(**more: Any) -> float:
        """How near the taste is to the other items of the second topic, on average."""
        answer = await path.recommend(Request(limit=len(others), positive=positive, only=others, **more), STRANGER)
        return float(np.mean([item.sources["profile"] for item in answer.items]))

    assert await liking(negative=negative) < await liking() - 0.2


async def test_only_ranks_the_given_items_seen_or_not(shop: Shop, path: Recommender) -> None:
    profile = shop.profile(4)
    seen = profile.interactions[0].item_id
    wanted = (seen, "item-9", "never-heard-of", HIDDEN, SILENT, "item-9")
    answer = await path.recommend(Request(limit=5, only=wanted, negative=("item-9",)), profile)
    assert set(ids(answer)) == {seen, "item-9", SILENT}
    assert answer.underfilled


async def test_unknown_ids_are_passed_over_and_named(path: Recommender) -> None:
    request = Request(limit=10, history=("nope-1", "item-1"), negative=("nope-3", "nope-1"))
    known = await path.recommend(Request(limit=10, history=("item-1",)), STRANGER)
    assert ids(await path.recommend(request, STRANGER)) == ids(known)
    assert path.unknown(replace(request, positive=("nope-2",))) == ["nope-1", "nope-2", "nope-3"]
    assert path.unknown(Request(limit=1, only=("nope-4", ODD))) == ["nope-4"]


async def test_a_history_of_unknown_items_alone_is_no_failure(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=10), likes("gone-1", "gone-2"))
    assert len(answer.items) == 10


@pytest.mark.parametrize("odd", ["", "\0", "x" * 300, "🎈", "../../etc/passwd", "item-1 "])
async def test_odd_ids_are_just_unknown(path: Recommender, odd: str) -> None:
    assert path.unknown(Request(limit=1, history=(odd,))) == [odd]
    assert len((await path.recommend(Request(limit=3, history=(odd,)), STRANGER)).items) == 3


async def test_all_filtered_is_an_empty_list(path: Recommender) -> None:
    answer = await path.recommend(
        Request(limit=10, query="bababa", filter=parse({"must": [{"field": "title", "match": "nobody"}]})), STRANGER
    )
    assert answer.items == ()
    assert answer.underfilled
    assert answer.exact


async def test_a_filter_holds_for_every_source(shop: Shop, path: Recommender) -> None:
    wanted = parse({"must": [{"field": "categories", "match": "topic-3"}]})
    request = Request(limit=N_VISIBLE, query="bababa", filter=wanted, history=("item-5",))
    answer = await path.recommend(request, shop.profile(1))
    assert answer.items
    assert all(item.metadata["categories"] == ["topic-3"] for item in answer.items)


async def test_a_limit_beyond_the_catalogue_gives_all_of_it(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=500, query="bababa"), STRANGER)
    assert len(answer.items) == N_VISIBLE
    assert len(set(ids(answer))) == N_VISIBLE
    assert answer.underfilled


async def test_hidden_expired_and_future_items_never_come(shop: Shop, path: Recommender) -> None:
    never = {HIDDEN, EXPIRED, FUTURE}
    title = shop.world.items["title"][0].as_py()
    for request in (
        Request(limit=500, query=title),
        Request(limit=500, positive=("item-0", HIDDEN), exclude_seen=False),
        Request(limit=500, only=(HIDDEN, EXPIRED, FUTURE, "item-0")),
    ):
        answer = await path.recommend(request, STRANGER)
        assert answer.items
        assert not never & set(ids(answer))
    assert not never & set(ids(await path.search(Request(limit=500, query=title))))
    assert not never & set(ids(await path.search(Request(limit=500, positive=("item-0",)))))


@pytest.mark.parametrize("text", ["", "   ", "!!!", "…"])
async def test_a_query_without_words_is_answered(path: Recommender, text: str) -> None:
    answer = await path.recommend(Request(limit=10, query=text), STRANGER)
    assert len(answer.items) == 10
    assert all("query" not in item.sources for item in answer.items)
    assert (await path.search(Request(limit=10, query=text))).items == ()


async def test_liking_only_what_has_no_text_is_no_failure(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=10, positive=(SILENT,)), STRANGER)
    assert len(answer.items) == 10
    assert np.isfinite([item.score for item in answer.items]).all()


async def test_likes_that_cancel_out_leave_no_taste(path: Recommender) -> None:
    request = Request(limit=10, positive=("item-1",), negative=("item-1",))
    answer = await path.recommend(request, STRANGER)
    assert len(answer.items) == 10
    assert "item-1" not in ids(answer)


async def test_search_gives_plain_similarities(path: Recommender) -> None:
    answer = await path.search(Request(limit=5, query="quasar zeppelin"))
    assert answer.items[0].item_id == ODD
    assert all(item.score == pytest.approx(item.sources["query"]) for item in answer.items)
    assert answer.profile_version == 0


async def test_similar_items_do_not_hold_the_item_itself(shop: Shop, path: Recommender) -> None:
    answer = await path.search(Request(limit=10, positive=("item-0",)))
    assert "item-0" not in ids(answer)
    topics = [shop.world.item_topics[int(item_id.split("-")[1])] for item_id in ids(answer)]
    assert topics.count(shop.world.item_topics[0]) >= 8


async def test_similar_to_an_unknown_item_or_one_without_text_is_refused(path: Recommender) -> None:
    for item_id, why in (("nope", "no item 'nope'"), (SILENT, "no encoded text")):
        with pytest.raises(UnknownItem, match=why):
            await path.search(Request(limit=10, positive=(item_id,)))


class Missing:
    """All shards but the first; the first is said to be missing."""

    def __init__(self, inner: LocalRecall, none_answer: bool = False) -> None:
        self._inner, self._none = inner, none_answer

    async def recall(self, snapshot_id, query):
        found, _ = await self._inner.recall(snapshot_id, query)
        return ([], ["shard-00", "shard-01", "shard-02"]) if self._none else (found[1:], ["shard-00"])


@pytest.fixture(scope="module")
def local(shop: Shop) -> LocalRecall:
    return LocalRecall(open_shards(shop.snapshot(3)))


class Down:
    """An encoder, a ranker, a set of shards that raise."""

    def __init__(self, error: Exception) -> None:
        self.encode = self.score = self.recall = raising(error)


async def test_without_the_encoder_the_rest_answers_and_says_so(shop: Shop, path: Recommender) -> None:
    down = recommender(shop.snapshot(3), encode=Down(Overloaded("full")).encode)
    answer = await down.recommend(Request(limit=10, query="nobody's word"), shop.profile(0))
    assert answer.degraded == ("encoder",)
    without = await path.recommend(Request(limit=10), shop.profile(0))
    assert ids(answer) == ids(without)
    by_word = await down.recommend(Request(limit=1, query="zeppelin"), STRANGER)
    assert (ids(by_word), by_word.degraded) == ([ODD], ("encoder",))  # words need no model
    with pytest.raises(Overloaded):
        await down.search(Request(limit=10, query="bababa"))
    assert (await down.search(Request(limit=10, positive=("item-1",)))).items  # needs no encoder


async def test_without_a_shard_the_others_answer_and_say_so(shop: Shop, local: LocalRecall) -> None:
    path = recommender(shop.snapshot(3), shards=Missing(local))
    answer = await path.recommend(Request(limit=500, query="bababa"), STRANGER)
    assert answer.degraded == ("shard-00",)
    found = path.catalogue.find(ids(answer))
    assert set(found.shard.tolist()) == {1, 2}
    assert 0 < len(answer.items) < N_VISIBLE


async def test_without_any_shard_the_request_fails_and_may_be_repeated(shop: Shop, local: LocalRecall) -> None:
    path = recommender(shop.snapshot(3), shards=Missing(local, none_answer=True))
    for verb in (path.recommend(Request(limit=5), STRANGER), path.search(Request(limit=5, query="bababa"))):
        with pytest.raises(Unavailable, match="no shard"):
            await verb


async def test_without_the_ranker_the_sum_of_the_sources_orders(shop: Shop) -> None:
    path = recommender(shop.snapshot(3), ranker=Down(Unavailable("gone")))
    answer = await path.recommend(Request(limit=10, query="bababa"), STRANGER)
    assert answer.degraded == ("ranker",)
    assert [item.score for item in answer.items] == pytest.approx([sum(i.sources.values()) for i in answer.items])


async def test_a_callers_mistake_is_no_degradation(shop: Shop) -> None:
    path = recommender(shop.snapshot(3), encode=Down(InvalidInput("query", "is wrong")).encode)
    with pytest.raises(InvalidInput, match="query"):
        await path.recommend(Request(limit=10, query="bababa"), STRANGER)


class Broken:
    """A ranker that gives no numbers for some items."""

    async def score(self, snapshot_id, scores):
        broken = scores.sum(axis=1)
        broken[::2] = np.nan
        broken[1::4] = np.inf
        return broken


async def test_scores_that_are_no_numbers_never_reach_the_caller(shop: Shop) -> None:
    answer = await recommender(shop.snapshot(3), ranker=Broken()).recommend(Request(limit=500), STRANGER)
    assert 0 < len(answer.items) < N_VISIBLE
    assert np.isfinite([item.score for item in answer.items]).all()


REQUESTS = [
    Request(limit=10),
    Request(limit=25, query="bababa sababa"),
    Request(limit=10, history=("item-1", "item-2"), negative=("item-3",)),
    Request(limit=7, filter=parse({"must": [{"field": "categories", "match": "topic-1"}]})),
    Request(limit=4, only=("item-1", "item-2", "item-3", ODD)),
    Request(limit=6, query="bababa", history=("item-1", "item-2"), explain="full"),
]


@pytest.mark.parametrize("n_shards", [1, 2, 8])
async def test_any_number_of_shards_gives_the_same_answer(shop: Shop, path: Recommender, n_shards: int) -> None:
    other = recommender(shop.snapshot(n_shards))
    for user in range(6):
        for request in REQUESTS:
            mine, theirs = [await p.recommend(request, shop.profile(user)) for p in (path, other)]
            assert {i.item_id: i.score for i in mine.items} == pytest.approx(
                {i.item_id: i.score for i in theirs.items}, abs=1e-5
            )
            assert ids(mine) == ids(theirs)


class Batched:
    """All three stages, with the requests that wait gathered into one call to each."""

    def __init__(self, shop: Shop) -> None:
        self.sizes: list[int] = []
        encoder, ranker = HashEncoder(DIM), LinearRanker(RankingSettings())
        self._encoder = self._gather(lambda texts: list(encoder.encode(texts, "query")))
        self._ranker = self._gather(ranker.score)
        self._shards = [self._gather(shard.recall) for shard in open_shards(shop.snapshot(3))]

    def _gather(self, verb) -> Coalescer:
        async def call(batch):
            self.sizes.append(len(batch))
            return verb(batch)

        return Coalescer(call, max_batch=64, max_in_flight=1, max_waiting=1_000)

    async def encode(self, text, role):
        return await self._encoder.ask(text)

    async def recall(self, snapshot_id, query):
        return list(await asyncio.gather(*(shard.ask(query) for shard in self._shards))), []

    async def score(self, snapshot_id, scores):
        return await self._ranker.ask(scores)


async def test_online_equals_batch(shop: Shop, path: Recommender) -> None:
    """One request at a time, against all at once through the batched verbs of encoder, shards and ranker."""
    cases = [(request, shop.profile(user)) for user in range(4) for request in REQUESTS]
    stages = Batched(shop)
    together = recommender(shop.snapshot(3), encode=stages.encode, shards=stages, ranker=stages)
    batch = await asyncio.gather(*(together.recommend(request, profile) for request, profile in cases))
    assert max(stages.sizes) > len(cases) / 2
    for (request, profile), theirs in zip(cases, batch, strict=True):
        mine = await path.recommend(request, profile)
        assert ids(mine) == ids(theirs)
        assert [i.score for i in mine.items] == pytest.approx([i.score for i in theirs.items], abs=1e-5)
        assert [[r.text for r in i.reasons] for i in mine.items] == [[r.text for r in i.reasons] for i in theirs.items]
