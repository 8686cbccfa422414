"""Why this item: every share against the scores it is a share of, every rank against the list that really comes."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import DIM, ODD, FixedClock, K, Shop, post, raising, recommender

from raysys.config import EVENT_WEIGHTS, ProfileSettings, RankingSettings
from raysys.encoder.hashing import HashEncoder
from raysys.errors import Unavailable
from raysys.explain import MOST_EVENTS, MOST_WITHOUT
from raysys.in_process import LocalEncoder, LocalRanker, LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.index.contrast import Contrast
from raysys.index.words import Vocabulary
from raysys.keys import item_keys, term_keys
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import DESCRIPTION, fold
from raysys.profile.seeds import seeds
from raysys.ranking import sentences
from raysys.ranking.explain import LEAST_SHARE, main_terms, nearest, on_terms, pulls, shares, split, without_each
from raysys.recommender import Recommender
from raysys.tastes import tastes
from raysys.types import (
    SOURCES,
    Answer,
    Cap,
    Cause,
    Event,
    Interaction,
    Person,
    Profile,
    Promotion,
    RankedItem,
    Reason,
    Request,
    Saying,
    Terms,
)
from raysys.words import as_written, item_terms, without_parts, words

STRANGER = Profile("u:nobody")
LISTS = "/v1/recommendations"
WEIGHTS = RankingSettings()
PERSONS = range(0, 60, 9)
OF_HISTORY = ("transition", "ridge", "words", "profile")


@pytest.fixture(scope="module")
def path(shop: Shop) -> Recommender:
    return recommender(shop.snapshot(3))


def asked(shop: Shop, path: Recommender, request: Request) -> dict[int, Answer]:
    """What each of some people is answered."""

    async def all_of_them() -> dict[int, Answer]:
        return {user: await path.recommend(request, shop.profile(user)) for user in PERSONS}

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def lists(shop: Shop, path: Recommender) -> dict[int, Answer]:
    """Lists with everything that can be said of them."""
    return asked(shop, path, Request(limit=10, explain="full"))


@pytest.fixture(scope="module")
def searched(shop: Shop, path: Recommender) -> dict[int, Answer]:
    """What is found for words, with its reasons."""
    return asked(shop, path, Request(limit=15, query="bababa sababa", explain=True))


@pytest.fixture(scope="module")
def histories(shop: Shop) -> dict[str, list[Event]]:
    """The events of each user of the world."""
    events: dict[str, list[Event]] = {}
    for row in shop.world.events.to_pylist():
        event = Event(row["event_id"], row["kind"], f"u:{row['user_id']}", row["item_id"], row["timestamp_s"])
        events.setdefault(event.user, []).append(event)
    return events


def of_kind(item: RankedItem, kind: str) -> list[Reason]:
    return [reason for reason in item.reasons if reason.kind == kind]


def by_source(item: RankedItem) -> dict[str, Reason]:
    return {reason.name: reason for reason in of_kind(item, "source")}


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


# The parts, as pure functions

TABLES = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(-2, 2, width=32))


def bent(scores: np.ndarray) -> np.ndarray:
    """A ranker that is no sum: what one source is worth depends on the others."""
    with_product = scores[:, 0] + scores[:, 1] * scores[:, 2] + np.maximum(scores[:, 3], scores[:, 0])
    return np.asarray(np.tanh(with_product), dtype=np.float32)


@given(TABLES)
def test_a_share_is_what_the_score_loses_without_the_source(scores: np.ndarray) -> None:
    found = shares(scores, bent(scores), bent(without_each(scores)))
    for row, share in zip(scores, found, strict=True):
        losses = []
        for source in range(len(row)):
            without = row.copy()
            without[source] = 0
            loss = float(bent(row[None])[0]) - float(bent(without[None])[0])
            losses.append(max(loss, 0.0) if row[source] != 0 else 0.0)
        total = sum(losses)
        expected = [loss / total for loss in losses] if total > 1e-9 else [0.0] * len(losses)
        assert share == pytest.approx(expected, abs=1e-5)
        assert share.sum() == pytest.approx(1 if total > 1e-9 else 0)


def test_a_ranker_that_gives_no_number_gives_no_share() -> None:
    scores = np.ones((1, 4), np.float32)
    found = shares(scores, np.array([2.0], np.float32), np.array([np.nan, -np.inf, 1.0, 3.0], np.float32))
    assert found.tolist() == [[0, 0, 1, 0]]


@given(TABLES, st.floats(-1, 20))
def test_a_split_is_in_proportion_and_claims_no_more_than_all(gives: np.ndarray, total: float) -> None:
    found = split(gives, np.full(len(gives), total, np.float32))
    lifting = gives.clip(min=0)
    assert (found.sum(axis=1) <= 1 + 1e-6).all()
    for mine, parts in zip(lifting, found, strict=True):
        whole = max(float(mine.sum()), total)
        assert parts == pytest.approx(mine / whole if whole > 1e-9 else 0 * mine, abs=1e-6)


@given(st.integers(0, 10_000))
def test_what_the_items_of_an_interest_give_adds_up_to_the_interest(seed: int) -> None:
    random = np.random.default_rng(seed)
    catalogue = random.normal(size=(200, 8)).astype(np.float32)
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    mean, inverse = catalogue.mean(axis=0), np.linalg.inv(np.cov(catalogue.T)).astype(np.float32)
    contrast = Contrast(mean, inverse)
    liked, weights = catalogue[:4], random.uniform(0.1, 3, 4).astype(np.float32)
    taste = weights @ liked
    taste /= np.linalg.norm(taste)
    for sharpening in (contrast, None):
        interest = taste if sharpening is None else sharpening.sharpen(taste)
        given_by = pulls(catalogue[10:20], liked, weights, sharpening)
        total, expected = given_by.sum(axis=1), catalogue[10:20] @ interest
        factor = float(total @ expected / (expected @ expected))
        assert factor > 0
        assert total / factor == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_the_nearest_taste_is_the_one_that_gave_the_score(metric: str) -> None:
    random = np.random.default_rng(3)
    vectors, tastes = random.normal(size=(20, 5)).astype(np.float32), random.normal(size=(3, 5)).astype(np.float32)
    for at, vector in zip(nearest(vectors, tastes, metric), vectors, strict=True):
        near = [-np.linalg.norm(vector - t) if metric == "l2" else vector @ t for t in tastes]
        assert at == int(np.argmax(near))


def test_the_terms_that_make_the_likeness_come_first() -> None:
    vocabulary = Vocabulary.from_parts([np.unique(term_keys(["a", "b", "a", "c"]), return_counts=True)], 3)
    item, wanted = vocabulary.weigh({"a": 1, "b": 2, "x": 5}), vocabulary.weigh({"a": 1, "b": 1, "c": 1})
    order = np.argsort(wanted.keys)
    wanted = Terms(wanted.keys[order], wanted.weights[order])
    assert main_terms(item, wanted.keys, wanted.weights) == term_keys(["b", "a"]).tolist()
    assert main_terms(vocabulary.weigh({"x": 1}), wanted.keys, wanted.weights) == []
    assert on_terms([item], wanted.keys[:0]).shape == (1, 0)
    table = on_terms([item], wanted.keys)[0]
    for key, weight in zip(wanted.keys.tolist(), table.tolist(), strict=True):
        mine = dict(zip(item.keys.tolist(), item.weights.tolist(), strict=True))
        assert weight == pytest.approx(mine.get(key, 0.0))


def test_terms_are_read_as_they_were_written() -> None:
    fields = {"title": "Solaris", "categories": ["Science Fiction", "Космос"], "tags": "a=B"}
    terms = list(item_terms(fields))
    assert as_written("categories=science fiction", fields) == "Science Fiction"
    assert as_written("tags=a=b", fields) == "a=B"
    assert as_written("solaris", fields) == "solaris"
    assert as_written("brand=x", fields) == "brand: x"
    assert without_parts(terms) == ["solaris", "categories=science fiction", "categories=космос", "tags=a=b"]
    assert without_parts(["科", "幻", "科幻", "片"]) == ["科幻", "片"]


# Sentences


@pytest.mark.parametrize("language", sentences.LANGUAGES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_has_sentences_in_every_language(source: str, language: str) -> None:
    unknown = sentences.of_source("no such source", language)
    bought = Cause("b4", "purchase", 0.5, "b4", "Solaris")
    for cause in (None, bought):
        for matched in ((), ("ocean", "planet")):
            text = sentences.of_source(source, language, cause, matched)
            assert text.endswith("." if language == "en" else "。")
            assert text not in (unknown, unknown.replace("no such source", source))
            assert "{" not in text
            assert "None" not in text
    if source in OF_HISTORY:
        assert "Solaris" in sentences.of_source(source, language, bought, ("ocean",))


def test_a_source_without_a_line_is_called_by_its_name() -> None:
    bought = Cause("b4", "purchase", 0.5, "b4", "X")
    assert sentences.of_source("tea_leaves", "en") == "Found by tea_leaves."
    assert sentences.of_source("tea_leaves", "zh") == "由 tea_leaves 找到。"
    assert sentences.of_source("tea_leaves", "en", bought) == "Because you bought X."
    assert sentences.of_source("tea_leaves", "zh", bought) == "因为你买过 X。"


@pytest.mark.parametrize("language", sentences.LANGUAGES)
def test_every_kind_of_event_that_likes_has_words_of_its_own(language: str) -> None:
    liking = [kind for kind, weight in EVENT_WEIGHTS.items() if weight > 0]
    said = {sentences.of_source("", language, Cause("i", kind, 1.0, "i", "X")) for kind in [*liking, "rating", "mine"]}
    assert len(said) == len(liking) + 2
    texts = {
        sentences.of_source("said", language, Cause("e", k, 1.0, sentence="X")) for k in ("search", DESCRIPTION, "")
    }
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("wanted", "language"),
    [(None, "en"), ("", "en"), ("en-GB", "en"), ("zh", "zh"), ("ZH-Hant-TW", "zh"), ("zh_CN", "zh"), ("fr", "en")],
)
def test_the_language_is_the_first_part_of_the_wish(wanted: str | None, language: str) -> None:
    assert sentences.language_of(wanted) == language


def test_titles_are_taken_as_they_are_and_cut_where_they_are_long() -> None:
    odd = Cause("b4", "like", 0.5, "b4", "{title} {0} %s")
    assert "{title} {0} %s" in sentences.of_source("", "en", odd)
    long = sentences.of_source("", "zh", Cause("b4", "like", 0.5, "b4", "电影" * 100))
    assert long.count("电") == 30
    assert long.endswith("…。")
    assert sentences.of_source("", "en", Cause("b4", "like", 0.5, "b4")) == "Because you like b4."


def test_what_would_be_without_a_cause() -> None:
    bought = Cause("b4", "purchase", 0.5, "b4", "X")
    assert sentences.without(bought, 2, 14, 40, "en") == "Without “X”, this would be number 14."
    assert sentences.without(bought, 2, 2, 40, "en") == "Without “X”, this would still be number 2."
    assert sentences.without(bought, 2, None, 40, "en") == "Without “X”, this would not be among the first 40."
    assert sentences.without(bought, 2, 14, 40, "zh") == "没有“X”，它会排在第 14 位。"
    assert sentences.without(bought, 2, 2, 40, "zh") == "没有“X”，它仍然排在第 2 位。"
    assert sentences.without(bought, 2, None, 40, "zh") == "没有“X”，它不会进入前 40 位。"


# Over the whole path


def test_shares_are_those_of_the_weighted_scores(searched: dict[int, Answer]) -> None:
    for answer in searched.values():
        assert answer.degraded == ()
        for item in answer.items:
            lifts = {name: max(getattr(WEIGHTS, name) * score, 0) for name, score in item.sources.items()}
            expected = {name: lift / sum(lifts.values()) for name, lift in lifts.items()}
            told = {name: reason.share for name, reason in by_source(item).items()}
            assert told == pytest.approx({n: s for n, s in expected.items() if n in told}, abs=1e-4)
            assert all(expected[name] < 0.0011 for name in expected if name not in told)
            assert all(a.share >= b.share for a, b in pairwise(of_kind(item, "source")))


class Bent:
    """A ranker of which nothing is known but that it scores rows."""

    async def score(self, snapshot_id, scores):
        return (scores.sum(axis=1) + 3 * scores[:, 1] * scores[:, 5] - np.square(scores[:, 4])).astype(np.float32)


async def test_any_ranker_is_explained(shop: Shop) -> None:
    path = recommender(shop.snapshot(3), ranker=Bent())
    for user in PERSONS:
        for item in (await path.recommend(Request(limit=8, explain=True), shop.profile(user))).items:
            row = np.array([[item.sources.get(name, 0) for name in SOURCES]], dtype=np.float32)
            losses = (await Bent().score("", row) - await Bent().score("", without_each(row))).clip(min=0)
            for name, reason in by_source(item).items():
                assert reason.share == pytest.approx(losses[SOURCES.index(name)] / losses.sum(), abs=1e-3)


@pytest.mark.parametrize("source", ["transition", "ridge"])
def test_an_items_part_is_what_leads_from_it(
    shop: Shop, path: Recommender, lists: dict[int, Answer], source: str
) -> None:
    matrices = [getattr(files, source) for files in path.catalogue.shards]
    checked = 0
    for user, answer in lists.items():
        known = seeds(shop.profile(user), ProfileSettings())
        weights = dict(zip(known.items, known.weights, strict=True))
        found = path.catalogue.find(ids(answer))
        for item, shard, row in zip(answer.items, found.shard.tolist(), found.row.tolist(), strict=True):
            reason = by_source(item).get(source)
            for cause in () if reason is None else reason.causes:
                rows, scores = matrices[shard].score(item_keys([cause.evidence]), np.array([weights[cause.evidence]]))
                gave = float(scores[rows == row][0]) / item.sources[source]
                assert gave >= 0.1
                assert cause.share == pytest.approx(reason.share * gave, rel=1e-3)
                checked += 1
    assert checked > 50


async def test_the_likeness_to_one_interest_comes_from_its_own_items(shop: Shop, path: Recommender) -> None:
    topics = shop.world.item_topics
    liked = tuple(f"item-{i}" for topic in (0, 1) for i in np.flatnonzero(topics == topic)[:4])
    known = seeds(STRANGER, ProfileSettings(), positive=liked)
    taste = await tastes(known, path.lookup, ProfileSettings(), FixedClock().now_s())
    assert taste.liked is not None
    assert len(taste.members) == len(taste.liked) == 2
    contrast, named = path.catalogue.contrast, set()
    for item in (await path.recommend(Request(limit=40, positive=liked, explain=True), STRANGER)).items:
        if "profile" in (found := by_source(item)):
            (vector,), _ = await path.lookup.vectors([item.item_id])
            members = taste.members[int((taste.liked @ vector).argmax())]
            history, _ = await path.lookup.vectors(known.items)
            parts = pulls(vector[None], history[members], known.weights[members], contrast)[0].clip(min=0)
            expected = {known.items[at]: part / parts.sum() for at, part in zip(members, parts, strict=True)}
            for cause in found["profile"].causes:
                assert cause.share == pytest.approx(found["profile"].share * expected[cause.evidence], rel=1e-3)
                named.add(cause.evidence)
    assert len(named) > 4


async def test_what_is_named_for_words_has_them(path: Recommender, searched: dict[int, Answer]) -> None:
    checked = 0
    for answer in searched.values():
        for item in answer.items:
            mine = set(words(" ".join(map(str, item.metadata.values()))))
            for name, reason in by_source(item).items():
                theirs = {"bababa", "sababa"}
                if name == "words":
                    fields = (await path.lookup.items([reason.causes[0].evidence]))[reason.causes[0].evidence]
                    theirs = set(words(" ".join(map(str, fields.values()))))
                if name in ("words", "query_words"):
                    assert reason.words
                    assert {w for text in reason.words for w in words(text)} <= mine & theirs
                    assert all(word in reason.text for word in reason.words)
                    checked += 1
                else:
                    assert reason.words == ()
    assert checked > 20


def test_the_terms_of_an_answer_are_those_of_the_index(path: Recommender) -> None:
    for shard, files in enumerate(path.catalogue.shards):
        for row in range(len(files.keys)):
            names, terms = path.lookup.named_terms(path.catalogue.metadata(shard, row))
            held = files.words.of(row)
            assert dict(zip(terms.keys.tolist(), terms.weights.tolist(), strict=True)) == pytest.approx(
                dict(zip(held.keys.tolist(), held.weights.tolist(), strict=True)), abs=1e-5
            )
            assert set(names) == set(held.keys.tolist())


def test_the_parts_of_all_causes_are_within_those_of_their_sources(shop: Shop, searched: dict[int, Answer]) -> None:
    for user, answer in searched.items():
        liked = set(seeds(shop.profile(user), ProfileSettings()).items)
        for item in answer.items:
            for reason in of_kind(item, "source"):
                assert sum(cause.share for cause in reason.causes) <= reason.share + 1e-6
                assert {cause.evidence for cause in reason.causes} <= liked
                assert reason.causes == () or reason.name in OF_HISTORY
                assert all(a.share >= b.share for a, b in pairwise(reason.causes))


@pytest.mark.parametrize("n_shards", [1, 2])
async def test_any_number_of_shards_explains_alike(shop: Shop, path: Recommender, n_shards: int) -> None:
    other = recommender(shop.snapshot(n_shards))
    for user in (0, 7):
        request = Request(limit=10, query="bababa", explain="full")
        mine, theirs = [await p.recommend(request, shop.profile(user)) for p in (path, other)]
        for one, another in zip(mine.items, theirs.items, strict=True):
            assert [r.text for r in one.reasons] == [r.text for r in another.reasons]
            assert [r.share for r in one.reasons] == [pytest.approx(r.share, abs=1e-4) for r in another.reasons]


async def test_a_stranger_is_told_that_it_is_popular_and_nothing_else(path: Recommender) -> None:
    for language, text in (("en", "Popular with many."), ("zh", "很多人喜欢。")):
        answer = await path.recommend(Request(limit=5, explain="full", language=language), STRANGER)
        for item in answer.items:
            assert item.reasons == (Reason("source", "popular", text, pytest.approx(1.0)),)


async def test_nothing_at_all_has_no_reason(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=5, only=("nope",), explain="full"), STRANGER)
    assert (answer.items, answer.degraded) == ((), ())


async def test_the_ids_of_the_request_are_causes_too(path: Recommender) -> None:
    request = Request(limit=10, history=("item-1",), positive=("item-2",), explain="full")
    disliked = Profile("u:ann", 1, (Interaction("item-2", -2.0, 1.0, "dislike"),))
    causes = [
        cause
        for item in (await path.recommend(request, disliked)).items
        for reason in item.reasons
        for cause in reason.causes
    ]
    assert {(cause.evidence, cause.kind) for cause in causes} == {("item-1", "view"), ("item-2", "like")}
    titles = await path.lookup.items(["item-1", "item-2"])
    assert all(cause.title == titles[cause.evidence]["title"] for cause in causes)


async def test_the_language_is_that_of_the_request_or_the_person(shop: Shop, path: Recommender) -> None:
    profile = replace(shop.profile(0), person=Person("u:user-0", language="zh-CN"))
    for wanted, language in ((None, "zh"), ("en", "en"), ("fr", "en"), ("zh", "zh")):
        answer = await path.recommend(Request(limit=3, explain=True, language=wanted), profile)
        texts = [reason.text for item in answer.items for reason in item.reasons]
        assert {text.endswith("。") for text in texts} == {language == "zh"}


# Rules of the list


async def test_rules_and_promotions_are_reasons(path: Recommender) -> None:
    promoted = (Promotion(ODD, 2, "Ad"), Promotion("item-1", 4))
    for language, ad, plain in (("en", "Promoted: Ad.", "Promoted."), ("zh", "推广：Ad。", "推广。")):
        request = Request(8, diversity=0.7, promotions=promoted, caps=(Cap("categories", 2),), explain=True)
        answer = await path.recommend(replace(request, language=language), STRANGER)
        assert [answer.items[at].reasons[0].text for at in (1, 3)] == [ad, plain]
        for item in answer.items:
            told = [(reason.name, reason.rank) for reason in of_kind(item, "rule")]
            moved = [(move["rule"], move["from"]) for move in item.moved]
            if item.promoted and "promotion" not in dict(moved):
                moved.append(("promotion", item.rank))
            assert sorted(told, key=str) == sorted(moved, key=str)
            assert [r.kind for r in item.reasons[1:]] == sorted((r.kind for r in item.reasons[1:]), reverse=True)


# What would be without


async def test_without_the_main_cause_it_would_really_stand_there(shop: Shop, histories: Any) -> None:
    """The event is taken out of the log, the log is folded again, and the same question asked again."""
    k = 8
    path = recommender(shop.snapshot(3), k=k)
    moved = gone = 0
    for user in PERSONS:
        events = histories[f"u:user-{user}"]
        for query in (None, "bababa"):
            request = Request(limit=6, query=query, explain="full")
            answer = await path.recommend(request, fold(f"u:user-{user}", events, ProfileSettings()))
            assert answer.degraded == ()
            for item in answer.items:
                without = of_kind(item, "without")
                causes = [cause for reason in of_kind(item, "source") for cause in reason.causes]
                assert len(without) == 1 or all(cause.share < LEAST_SHARE for cause in causes)
                for reason in without:
                    left = [event for event in events if event.item_id != reason.name]
                    profile = fold(f"u:user-{user}", left, ProfileSettings())
                    again = ids(await path.recommend(Request(limit=k, query=query), profile))
                    rank = again.index(item.item_id) + 1 if item.item_id in again else None
                    assert reason.rank == rank
                    assert str(k if rank is None else rank) in reason.text
                    moved += rank != item.rank
                    gone += rank is None
    assert moved > 20
    assert gone > 0


async def test_without_the_main_cause_the_rules_still_hold(shop: Shop, path: Recommender, histories: Any) -> None:
    rules: dict[str, Any] = {"diversity": 0.3, "caps": (Cap("categories", 3),), "promotions": (Promotion(ODD, 3),)}
    for user in list(PERSONS)[:4]:
        events = histories[f"u:user-{user}"]
        answer = await path.recommend(Request(6, explain="full", **rules), fold("u:a", events, ProfileSettings()))
        for item in answer.items:
            for reason in of_kind(item, "without"):
                left = [event for event in events if event.item_id != reason.name]
                again = ids(await path.recommend(Request(6, **rules), fold("u:a", left, ProfileSettings())))
                assert reason.rank == (again.index(item.item_id) + 1 if item.item_id in again else None)


async def test_an_id_of_the_request_is_taken_out_of_the_request(path: Recommender) -> None:
    request = Request(limit=5, history=("item-1", "item-7"), positive=("item-2", "item-7"), explain="full")
    for item in (await path.recommend(request, STRANGER)).items:
        (reason,) = of_kind(item, "without")
        left = {name: tuple(i for i in getattr(request, name) if i != reason.name) for name in ("history", "positive")}
        again = ids(await path.recommend(Request(limit=K, **left), STRANGER))
        assert reason.rank == (again.index(item.item_id) + 1 if item.item_id in again else None)


def test_the_main_cause_is_the_one_with_the_largest_share(lists: dict[int, Answer]) -> None:
    for answer in lists.values():
        for item in answer.items:
            named: dict[str, float] = {}
            for reason in of_kind(item, "source"):
                for cause in reason.causes:
                    named[cause.evidence] = named.get(cause.evidence, 0.0) + cause.share
            (reason,) = of_kind(item, "without")
            assert reason.causes[0].share >= max(named.values()) - 1e-6


async def test_a_try_is_not_remembered_for_the_person(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recommender(shop.snapshot(3))
    profile = shop.profile(2)
    plain = await path.recommend(Request(limit=10), profile)
    full = await path.recommend(Request(limit=10, explain="full"), profile)
    assert [replace(item, reasons=()) for item in full.items] == list(plain.items)
    monkeypatch.setattr(path.lookup, "vectors", raising(AssertionError("the taste of this profile is known")))
    assert (await path.recommend(Request(limit=10), profile)).items == plain.items


# What it costs


class Counted:
    """Shards and a ranker that count their calls; ``at_once``: how many calls there were at the same time."""

    def __init__(self, shop: Shop) -> None:
        self._shards, self._ranker = LocalRecall(open_shards(shop.snapshot(3))), LocalRanker(WEIGHTS)
        self.recalls = self.under_way = self.at_once = 0
        self.rows: list[int] = []

    async def recall(self, snapshot_id, query):
        self.recalls += 1
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return await self._shards.recall(snapshot_id, query)

    async def score(self, snapshot_id, scores):
        self.rows.append(len(scores))
        return await self._ranker.score(snapshot_id, scores)


async def test_it_costs_nothing_unless_asked_for_and_is_bounded_then(shop: Shop) -> None:
    stages = Counted(shop)
    path = recommender(shop.snapshot(3), shards=stages, ranker=stages)
    profile = Profile("u:ann", 40, tuple(Interaction(f"item-{i}", 1.0, i) for i in range(0, 200, 5)))
    answer = await path.recommend(Request(limit=30), profile)
    assert (stages.recalls, len(stages.rows)) == (1, 1)
    assert all(item.reasons == () for item in answer.items)
    assert "explain" not in answer.timings_ms
    stages.rows.clear()
    stages.recalls = 0
    await path.recommend(Request(limit=30, explain=True), profile)
    assert stages.recalls <= 1 + MOST_EVENTS
    assert stages.rows[1:] == [30 * len(SOURCES)]
    stages.rows.clear()
    stages.recalls = stages.at_once = 0
    answer = await path.recommend(Request(limit=30, explain="full"), profile)
    tried = [reason for item in answer.items for reason in of_kind(item, "without")]
    distinct = {reason.name for reason in tried}
    assert len(tried) == MOST_WITHOUT
    assert stages.recalls == 1 + MOST_EVENTS + len(distinct)
    assert len(stages.rows) == 2 + len(distinct)
    assert stages.at_once >= min(MOST_EVENTS, len(distinct))
    assert answer.timings_ms.keys() >= {"explain"}


# Where parts are away


async def test_without_the_ranker_no_source_is_a_reason(shop: Shop) -> None:
    class Down:
        score = staticmethod(raising(Unavailable("gone")))

    answer = await recommender(shop.snapshot(3), ranker=Down()).recommend(
        Request(limit=5, explain="full", promotions=(Promotion(ODD, 1),)), shop.profile(0)
    )
    assert answer.degraded == ("ranker",)
    assert [reason.name for item in answer.items for reason in item.reasons if item.promoted] == ["promotion"]
    assert not any(of_kind(item, kind) for item in answer.items for kind in ("source", "without"))


class Once:
    """Shards and a ranker that answer the first call of a request, and no other."""

    def __init__(self, shop: Shop) -> None:
        self._shards, self._ranker = LocalRecall(open_shards(shop.snapshot(3))), LocalRanker(WEIGHTS)
        self.recalls = self.scores = 0

    async def recall(self, snapshot_id, query):
        self.recalls += 1
        if self.recalls > 1:
            raise Unavailable("gone")
        return await self._shards.recall(snapshot_id, query)

    async def score(self, snapshot_id, scores):
        self.scores += 1
        if self.scores > 1:
            raise Unavailable("gone")
        return await self._ranker.score(snapshot_id, scores)


async def test_a_ranker_that_goes_away_leaves_the_list_as_it_is(shop: Shop, path: Recommender) -> None:
    answer = await recommender(shop.snapshot(3), ranker=Once(shop)).recommend(
        Request(limit=5, explain="full"), shop.profile(0)
    )
    assert answer.degraded == ("explain",)
    assert ids(answer) == ids(await path.recommend(Request(limit=5), shop.profile(0)))
    assert all(item.reasons == () for item in answer.items)


async def test_shards_that_go_away_leave_the_shares(shop: Shop, path: Recommender) -> None:
    whole = await path.recommend(Request(limit=5, explain=True), shop.profile(0))
    answer = await recommender(shop.snapshot(3), shards=Once(shop)).recommend(
        Request(limit=5, explain="full"), shop.profile(0)
    )
    assert answer.degraded == ("explain",)
    for mine, theirs in zip(answer.items, whole.items, strict=True):
        for reason, full in zip(of_kind(mine, "source"), of_kind(theirs, "source"), strict=True):
            assert (reason.name, reason.share) == (full.name, full.share)
            if reason.name in ("transition", "ridge"):
                assert reason.causes == ()
                assert "Because" not in reason.text
            else:
                assert reason == full
        assert of_kind(mine, "without") == []


async def test_with_a_shard_missing_nothing_is_tried(shop: Shop) -> None:
    class Missing:
        def __init__(self) -> None:
            self._shards, self.recalls = LocalRecall(open_shards(shop.snapshot(3))), 0

        async def recall(self, snapshot_id, query):
            self.recalls += 1
            found, _ = await self._shards.recall(snapshot_id, query)
            return found[1:], ["shard-00"]

    shards = Missing()
    path = recommender(shop.snapshot(3), shards=shards)
    answer = await path.recommend(Request(limit=5, explain="full"), shop.profile(0))
    assert shards.recalls <= 1 + MOST_EVENTS
    assert answer.degraded == ("shard-00", "explain")
    assert all(of_kind(item, "source") for item in answer.items)
    assert not any(of_kind(item, "without") for item in answer.items)


class Reading(NothingLive):
    """A store that has the vector of every text; ``is_away``: its items cannot be read."""

    def __init__(self, is_away: bool = False) -> None:
        self._is_away = is_away

    async def sayings(self, texts):
        return list(HashEncoder(DIM).encode(list(texts), "query"))

    async def fields(self, keys):
        if self._is_away:
            raise Unavailable("the store is away")
        return {}


def reading(shop: Shop, is_away: bool = False) -> Recommender:
    folder = shop.snapshot(3)
    return Recommender(
        Lookup(Catalogue(folder), Reading(is_away)),
        LocalEncoder(HashEncoder(DIM)).encode,
        LocalRecall(open_shards(folder)),
        LocalRanker(WEIGHTS),
        ProfileSettings(),
        K,
        FixedClock(),
    )


async def test_without_the_store_items_go_by_their_ids(shop: Shop) -> None:
    answer = await reading(shop, is_away=True).recommend(Request(limit=5, explain=True), shop.profile(0))
    assert answer.degraded == ("explain",)
    causes = [cause for item in answer.items for reason in item.reasons for cause in reason.causes]
    assert causes
    assert all(cause.title is None for cause in causes)


# What people wrote


SAYINGS = (
    Saying("likes trains", 1.0, 0.0, DESCRIPTION, DESCRIPTION),
    Saying("quasar zeppelin", 1.0, 1.0, "search", "e1"),
    Saying("bababa", 1.0, 2.0, "chat", "e2"),
)


@pytest.mark.parametrize(
    ("language", "text"),
    [("en", "Near what you looked for: “quasar zeppelin”."), ("zh", "接近你找过的“quasar zeppelin”。")],
)
async def test_what_they_wrote_is_named(shop: Shop, language: str, text: str) -> None:
    path = reading(shop)
    profile = replace(shop.profile(0), sayings=SAYINGS)
    answer = await path.recommend(Request(limit=20, explain="full", language=language), profile)
    odd = next(item for item in answer.items if item.item_id == ODD)
    said = by_source(odd)["said"]
    assert said.text == text
    assert said.causes == (Cause("text:e1", "search", said.share, sentence="quasar zeppelin"),)


async def test_without_a_saying_it_would_really_stand_there(shop: Shop) -> None:
    path = reading(shop)
    profile = replace(shop.profile(0), sayings=SAYINGS)
    tried = set()
    for item in (await path.recommend(Request(limit=10, explain="full"), profile)).items:
        (reason,) = of_kind(item, "without")
        cause = reason.causes[0]
        left = tuple(saying for saying in SAYINGS if saying.text != cause.sentence)
        met = tuple(each for each in profile.interactions if each.item_id != cause.item_id)
        again = ids(await path.recommend(Request(limit=K), replace(profile, sayings=left, interactions=met)))
        assert reason.rank == (again.index(item.item_id) + 1 if item.item_id in again else None)
        tried.add(cause.evidence)
    assert "text:e1" in tried


# Over HTTP


@pytest.fixture
def events() -> list[dict[str, Any]]:
    kinds = ("purchase", "view", "like")
    return [
        {"event_id": f"e{i}", "type": kind, "user_id": "ann", "item_id": f"item-{i}"} for i, kind in enumerate(kinds)
    ]


async def test_an_answer_with_reasons(client: httpx.AsyncClient, events: list[dict[str, Any]]) -> None:
    await post(client, "/v1/events", events=events)
    plain = await post(client, LISTS, user_id="ann", limit=5)
    assert all(item["reasons"] == [] for item in plain["items"])
    answer = await post(client, LISTS, user_id="ann", limit=5, explain="full", query="bababa")
    assert answer["degraded"] == []
    assert answer["timings_ms"]["explain"] >= 0
    for item in answer["items"]:
        assert sum(reason["share"] for reason in item["reasons"] if reason["kind"] == "source") == pytest.approx(
            1, abs=0.01
        )
        (without,) = [reason for reason in item["reasons"] if reason["kind"] == "without"]
        assert without["causes"][0]["item_id"] == without["name"]
    texts = [reason["text"] for item in answer["items"] for reason in item["reasons"]]
    assert any(text.startswith(("Because you bought ", "Because you like ")) for text in texts)


async def test_a_user_reads_their_own_language(client: httpx.AsyncClient, events: list[dict[str, Any]]) -> None:
    await post(client, "/v1/events", events=events)
    await post(client, "/v1/users", users=[{"user_id": "ann", "language": "zh-Hans"}])
    answer = await post(client, LISTS, user_id="ann", explain=True)
    assert all(reason["text"].endswith("。") for item in answer["items"] for reason in item["reasons"])
    answer = await post(client, LISTS, user_id="ann", explain=True, language="en")
    assert all(reason["text"].endswith(".") for item in answer["items"] for reason in item["reasons"])


async def test_an_event_that_is_erased_takes_its_reason_along(client: httpx.AsyncClient, events: Any) -> None:
    """The rank that was foretold is the rank after the person has deleted the event."""
    await post(client, "/v1/events", events=events)
    before = await post(client, LISTS, user_id="ann", limit=10, explain="full")
    item = before["items"][0]
    (told,) = [reason for reason in item["reasons"] if reason["kind"] == "without"]
    await post(client, "/v1/users:edit", user_id="ann", action="delete", evidence=[told["name"]])
    after = await post(client, LISTS, user_id="ann", limit=200)
    ranks = {item["item_id"]: item["rank"] for item in after["items"]}
    assert ranks.get(item["item_id"]) == told["rank"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"explain": "yes"}, "explain"),
        ({"explain": 1}, "explain"),
        ({"explain": 0.0}, "explain"),
        ({"explain": None}, "explain"),
        ({"language": ""}, "language"),
        ({"language": 5}, "language"),
    ],
)
async def test_a_wrong_wish_is_named(client: httpx.AsyncClient, wrong: dict[str, Any], field: str) -> None:
    response = await client.post(LISTS, json=wrong)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]
