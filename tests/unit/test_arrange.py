"""The rules of the list, through the whole path and over HTTP: what is shown, what is never shown, and what is said."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from support import (
    DIM,
    EXPIRED,
    FUTURE,
    HIDDEN,
    N_ITEMS,
    ODD,
    FixedClock,
    Served,
    Shop,
    post,
    raising,
    recommender,
    serve_here,
)

from raysys.config import ProfileSettings, RankingSettings
from raysys.encoder.hashing import HashEncoder
from raysys.errors import ConfigError, InvalidInput, Unavailable, UnknownField
from raysys.in_process import LocalEncoder, LocalRanker, LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.index.filters import parse
from raysys.lookup import Lookup, NothingLive
from raysys.recommender import Recommender
from raysys.types import Answer, Cap, Profile, Promotion, Request

STRANGER = Profile("u:nobody")
LISTS = "/v1/recommendations"
FAR = "item-200"  # somewhere in the catalogue
WORDS = "quokka wombat numbat"  # no item of the shop has them
DEADLINE_S = 5.0


@pytest.fixture(scope="module")
def path(shop: Shop) -> Recommender:
    return recommender(shop.snapshot(3))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    made = await serve_here(shop.store(2), tmp_path_factory.mktemp("state") / "state.sqlite3")
    yield made
    await made.stop()


def by_rules(shop: Shop, n_shards: int = 3, **ranking: Any) -> Recommender:
    """The path with these settings of the ranking."""
    folder = shop.snapshot(n_shards)
    return Recommender(
        Lookup(Catalogue(folder), NothingLive()),
        LocalEncoder(HashEncoder(DIM)).encode,
        LocalRecall(open_shards(folder)),
        LocalRanker(RankingSettings()),
        ProfileSettings(),
        40,
        FixedClock(),
        RankingSettings(**ranking),
    )


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


def most(answer: Answer, field: str) -> int:
    """How often the most frequent value of a field is in the list."""
    values = (item.metadata.get(field) for item in answer.items)
    flat = [each for value in values for each in (value if isinstance(value, list) else [value]) if value is not None]
    return max(Counter(flat).values(), default=0)


async def alike(path: Recommender, answer: Answer) -> float:
    """The mean cosine of the pairs of a list."""
    vectors, _ = await path.lookup.vectors(ids(answer))
    return float(np.mean([a @ b for a, b in combinations(vectors, 2)]))


async def at_once(path: Recommender, request: Request, profile: Profile) -> Answer:
    answer = await path.recommend(request, profile)
    return replace(answer, timings_ms={})


# Diversity


async def test_no_diversity_is_the_same_answer_to_the_last_bit(shop: Shop, path: Recommender) -> None:
    for user in range(5):
        request = Request(limit=20, query="bababa")
        plain = await at_once(path, request, shop.profile(user))
        assert await at_once(path, replace(request, diversity=0.0, calibration=0.0), shop.profile(user)) == plain
        assert all(item.moved == () and not item.promoted for item in plain.items)
        assert plain.unmet == ()


@pytest.mark.parametrize("method", ["mmr", "dpp"])
async def test_diversity_makes_lists_less_alike(shop: Shop, method: str) -> None:
    path = by_rules(shop, diversity_method=method)
    means = []
    for diversity in (0.0, 0.5, 1.0):
        answers = [await path.recommend(Request(10, diversity=diversity), shop.profile(u)) for u in range(12)]
        means.append(np.mean([await alike(path, answer) for answer in answers]))
    assert means[0] - 0.05 > means[1] > means[2] - 1e-6


async def test_a_diverse_list_keeps_scores_and_says_what_it_moved(shop: Shop) -> None:
    request = Request(limit=10, diversity=0.7)
    path = recommender(shop.snapshot(3), k=200)
    plain = await path.recommend(replace(request, diversity=0.0, limit=200), shop.profile(1))
    known = {item.item_id: item for item in plain.items}
    answer = await path.recommend(request, shop.profile(1))
    assert "arrange" in answer.timings_ms
    assert [item.rank for item in answer.items] == list(range(1, 11))
    assert answer.items[0].item_id == plain.items[0].item_id
    for item in answer.items:
        assert item.score == known[item.item_id].score
        rank = known[item.item_id].rank
        assert item.moved == (() if rank == item.rank else ({"rule": "diversity", "from": rank},))
    assert any(item.moved for item in answer.items)


async def test_the_settings_are_for_those_who_do_not_say_otherwise(shop: Shop, path: Recommender) -> None:
    diverse = by_rules(shop, diversity=0.7)
    profile = shop.profile(1)
    asked = await path.recommend(Request(limit=10, diversity=0.7), profile)
    assert ids(await diverse.recommend(Request(limit=10), profile)) == ids(asked)
    plain = await path.recommend(Request(limit=10), profile)
    assert ids(await diverse.recommend(Request(limit=10, diversity=0.0), profile)) == ids(plain)
    assert ids(plain) != ids(asked)


@pytest.mark.parametrize("n_shards", [1, 2])
async def test_any_number_of_shards_arranges_alike(shop: Shop, path: Recommender, n_shards: int) -> None:
    other = recommender(shop.snapshot(n_shards))
    promoted = (Promotion(FAR, 2),)
    request = Request(10, diversity=0.4, calibration=0.3, caps=(Cap("categories", 3),), promotions=promoted)
    for user in range(4):
        mine, theirs = [await p.recommend(request, shop.profile(user)) for p in (path, other)]
        assert ids(mine) == ids(theirs)
        assert [item.moved for item in mine.items] == [item.moved for item in theirs.items]


# Caps


async def test_a_cap_holds_and_the_best_that_it_allows_come(shop: Shop, path: Recommender) -> None:
    profile = shop.profile(1)
    plain = await path.recommend(Request(limit=200), profile)
    answer = await path.recommend(Request(limit=10, caps=(Cap("categories", 2),)), profile)
    assert most(answer, "categories") == 2
    expected: list[str] = []
    counts: Counter[str] = Counter()
    for item in plain.items:
        if len(expected) < 10 and all(counts[c] < 2 for c in item.metadata["categories"]):
            expected.append(item.item_id)
            counts.update(item.metadata["categories"])
    assert ids(answer) == expected


async def test_a_list_that_a_cap_leaves_short_says_so(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=30, caps=(Cap("categories", 1),)), STRANGER)
    assert most(answer, "categories") == 1
    assert answer.underfilled
    (unmet,) = answer.unmet
    assert (unmet["rule"], unmet["item_id"]) == ("cap:categories", None)
    assert f"{len(answer.items)} of 30" in str(unmet["why"])


async def test_caps_of_the_request_go_before_those_of_the_settings(shop: Shop) -> None:
    path = by_rules(shop, caps={"categories": 2, "year": 1})
    assert most(await path.recommend(Request(limit=10), STRANGER), "categories") == 2
    answer = await path.recommend(Request(limit=10, caps=(Cap("categories", 4),)), STRANGER)
    assert most(answer, "categories") == 4
    assert most(answer, "year") == 1


async def test_one_of_a_series(shop: Shop, path: Recommender) -> None:
    answer = await path.recommend(Request(limit=40, one_per="year"), STRANGER)
    assert most(await path.recommend(Request(limit=40), STRANGER), "year") > 1
    assert most(answer, "year") == 1
    assert {move["rule"] for item in answer.items for move in item.moved} == {"one_per:year"}
    assert ids(await by_rules(shop, one_per="year").recommend(Request(limit=40), STRANGER)) == ids(answer)


# Calibration


async def test_a_calibrated_list_follows_the_mix_of_the_person(shop: Shop, path: Recommender) -> None:
    topics = shop.world.items["categories"].to_pylist()
    first, second = ([i for i, topic in enumerate(topics) if topic == [f"topic-{t}"]] for t in (0, 1))
    liked = tuple(f"item-{i}" for i in (*first[:7], *second[:3]))
    plain = await path.recommend(Request(limit=10, positive=liked), STRANGER)
    answer = await path.recommend(Request(limit=10, positive=liked, calibration=0.99), STRANGER)
    counts = [Counter(item.metadata["categories"][0] for item in each.items) for each in (plain, answer)]
    assert counts[1] == {"topic-0": 7, "topic-1": 3}
    assert counts[0] != counts[1]
    assert {move["rule"] for item in answer.items for move in item.moved} == {"calibration"}


async def test_calibration_for_a_stranger_has_nothing_to_go_by(path: Recommender) -> None:
    answer = await path.recommend(Request(limit=10, calibration=0.5), STRANGER)
    assert ids(answer) == ids(await path.recommend(Request(limit=10), STRANGER))
    assert [unmet["rule"] for unmet in answer.unmet] == ["calibration"]


# Promotions


async def test_a_promoted_item_stands_at_its_slot_with_its_label(shop: Shop) -> None:
    path = recommender(shop.snapshot(3), k=12)  # few candidates: the item is not among them
    plain = await path.recommend(Request(limit=10), shop.profile(1))
    assert FAR not in ids(plain)
    answer = await path.recommend(Request(limit=10, promotions=(Promotion(FAR, 3, "Ad"),)), shop.profile(1))
    assert ids(answer) == [*ids(plain)[:2], FAR, *ids(plain)[2:9]]
    assert [(item.promoted, item.label) for item in answer.items if item.item_id == FAR] == [(True, "Ad")]
    assert sum(item.promoted for item in answer.items) == 1
    assert answer.items[2].moved == ({"rule": "promotion", "from": None},)
    assert answer.items[5].moved == ({"rule": "promotion", "from": 5},)
    assert answer.unmet == ()
    assert np.isfinite(answer.items[2].score)


async def test_a_promoted_item_that_was_found_anyway_comes_once(path: Recommender) -> None:
    plain = await path.recommend(Request(limit=10), STRANGER)
    request = Request(limit=10, promotions=(Promotion(ids(plain)[6], 1),))
    answer = await path.recommend(request, STRANGER)
    assert ids(answer) == [ids(plain)[6], *ids(plain)[:6], *ids(plain)[7:]]
    assert answer.items[0].moved == ({"rule": "promotion", "from": 7},)
    assert answer.items[0].score == plain.items[6].score


async def test_what_may_not_be_shown_is_not_promoted_either(shop: Shop, path: Recommender) -> None:
    profile = shop.profile(4)
    seen = profile.interactions[0].item_id
    never = (HIDDEN, EXPIRED, FUTURE, "never-heard-of", seen, "item-7", "item-8")
    promotions = tuple(Promotion(item_id, slot) for slot, item_id in enumerate(never, start=1))
    request = Request(limit=10, promotions=promotions, negative=("item-7",), positive=("item-8",))
    answer = await path.recommend(request, profile)
    assert ids(answer) == ids(await path.recommend(replace(request, promotions=()), profile))
    assert [unmet["item_id"] for unmet in answer.unmet] == list(never)
    assert {unmet["rule"] for unmet in answer.unmet} == {"promotion"}
    assert path.unknown(request) == ["never-heard-of"]
    again = await path.recommend(replace(request, exclude_seen=False), profile)
    assert ids(again)[4 - len(never[:4]) :].count(seen) == 1


async def test_a_promoted_item_has_to_pass_the_filter(path: Recommender) -> None:
    wanted = parse({"must": [{"field": "price", "range": {"lte": 1}}]})
    answer = await path.recommend(
        Request(5, filter=wanted, promotions=(Promotion(FAR, 1), Promotion(ODD, 2))), STRANGER
    )
    assert FAR not in ids(answer)
    assert ODD in ids(answer)
    assert answer.unmet[0]["item_id"] == FAR


async def test_a_cap_holds_for_promotions_too(path: Recommender) -> None:
    same = [f"item-{i}" for i in range(N_ITEMS)]
    items = await path.lookup.items(same)
    of_topic = [i for i, fields in items.items() if fields["categories"] == ["topic-2"]][:3]
    promotions = tuple(Promotion(item_id, slot) for slot, item_id in enumerate(of_topic, start=1))
    answer = await path.recommend(Request(12, caps=(Cap("categories", 2),), promotions=promotions), STRANGER)
    assert ids(answer)[:2] == of_topic[:2]
    assert most(answer, "categories") == 2
    refused = [unmet for unmet in answer.unmet if unmet["rule"] == "promotion"]
    assert [(unmet["item_id"], "cap:categories" in str(unmet["why"])) for unmet in refused] == [(of_topic[2], True)]


async def test_a_list_that_ends_before_the_slot_says_where_the_item_stands(path: Recommender) -> None:
    wanted = parse({"must": [{"field": "item_id", "in": ["item-1", ODD]}]})
    answer = await path.recommend(Request(9, filter=wanted, promotions=(Promotion(ODD, 8),)), STRANGER)
    assert ids(answer) == ["item-1", ODD]
    assert "stands at 2" in str(answer.unmet[0]["why"])


# Where the rules are not


async def test_rank_search_and_similar_have_no_rules(shop: Shop, path: Recommender) -> None:
    ruled = by_rules(shop, diversity=1.0, caps={"categories": 1}, one_per="year")
    only = tuple(f"item-{i}" for i in range(30))
    for verb, request in (
        ("recommend", Request(limit=30, only=only)),
        ("search", Request(limit=20, query="bababa")),
        ("search", Request(limit=20, positive=("item-0",))),
    ):
        args = (request, STRANGER) if verb == "recommend" else (request,)
        mine, theirs = [await getattr(p, verb)(*args) for p in (path, ruled)]
        assert mine.items == theirs.items


# What is wrong


@pytest.mark.parametrize(
    ("ranking", "why"),
    [
        ({"caps": {"brnd": 2}}, "ranking.caps.brnd: there is no field 'brnd'"),
        ({"one_per": "price"}, "ranking.one_per: field 'price'"),
        ({"calibration": 0.1, "calibration_field": "genre"}, "ranking.calibration_field"),
    ],
)
def test_settings_that_do_not_fit_the_snapshot_are_refused(shop: Shop, ranking: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        by_rules(shop, **ranking)


def test_a_calibration_that_has_no_field_is_refused_by_name(shop: Shop) -> None:
    path = by_rules(shop, calibration_field="genre")
    path.check(Request(limit=1))
    with pytest.raises(UnknownField, match="calibration: there is no field 'genre'"):
        path.check(Request(limit=1, calibration=0.1))
    with pytest.raises(InvalidInput, match="available_from"):
        path.check(Request(limit=1, one_per="available_from"))


BAD_RULES: list[tuple[dict[str, Any], str]] = [
    ({"diversity": 1.1}, "diversity"),
    ({"diversity": -0.1}, "diversity"),
    ({"diversity": "0.5"}, "diversity"),
    ({"diversity": True}, "diversity"),
    ({"calibration": 2}, "calibration"),
    ({"caps": {"categories": 2}}, "caps"),
    ({"caps": [{"field": "categories"}]}, "caps[0].most"),
    ({"caps": [{"field": "categories", "most": 0}]}, "caps[0].most"),
    ({"caps": [{"field": "categories", "most": 1.5}]}, "caps[0].most"),
    ({"caps": [{"field": "brnd", "most": 1}]}, "caps[0].field"),
    ({"caps": [{"field": "categories", "most": 1}, {"field": "price", "most": 1}]}, "caps[1].field"),
    ({"caps": [{"field": "year", "most": 1}, {"field": "year", "most": 2}]}, "caps[1].field"),
    ({"caps": [{"field": "year", "most": 1}] * 11}, "caps"),
    ({"caps": [{"field": "year", "most": 1, "least": 1}]}, "caps[0].least"),
    ({"one_per": "brnd"}, "one_per"),
    ({"one_per": ""}, "one_per"),
    ({"one_per": ["year"]}, "one_per"),
    ({"promotions": [{"item_id": "a"}]}, "promotions[0].slot"),
    ({"promotions": [{"item_id": "a", "slot": 0}]}, "promotions[0].slot"),
    ({"promotions": [{"item_id": "a", "slot": 11}]}, "promotions[0].slot"),
    ({"promotions": [{"item_id": "", "slot": 1}]}, "promotions[0].item_id"),
    ({"promotions": [{"item_id": "a", "slot": 1, "label": " "}]}, "promotions[0].label"),
    ({"promotions": [{"item_id": "a", "slot": 1, "label": "x" * 101}]}, "promotions[0].label"),
    ({"promotions": [{"item_id": "a", "slot": 1}, {"item_id": "b", "slot": 1}]}, "promotions[1].slot"),
    ({"promotions": [{"item_id": "a", "slot": 1}, {"item_id": "a", "slot": 2}]}, "promotions[1].item_id"),
]


@pytest.mark.parametrize(("raw", "field"), BAD_RULES, ids=lambda value: ascii(value)[:60])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_bad_rule_is_named(shared: Served, raw: dict[str, Any], field: str) -> None:
    response = await shared.client().post(LISTS, json=raw)
    assert response.status_code == 422, response.text
    assert field in [error["field"] for error in response.json()["errors"]]


@pytest.mark.asyncio(loop_scope="module")
async def test_rules_are_for_recommendations_alone(shared: Served) -> None:
    for route, body in (
        ("search", {"query": "a"}),
        ("similar", {"item_id": "item-0"}),
        ("rank", {"items": ["item-0"]}),
    ):
        response = await shared.client().post(f"/v1/{route}", json={**body, "diversity": 0.5})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "diversity"


# Over HTTP, with a catalogue that changes


@pytest.mark.asyncio(loop_scope="module")
async def test_all_rules_at_once_over_http(shared: Served) -> None:
    body = {
        "history": ["item-1", "item-2"],
        "limit": 12,
        "diversity": 0.3,
        "calibration": 0.2,
        "caps": [{"field": "categories", "most": 4}],
        "one_per": "year",
        "promotions": [{"item_id": FAR, "slot": 2, "label": "Ad"}, {"item_id": "nope", "slot": 3}],
    }
    answer = await post(shared.client(), LISTS, **body)
    assert answer["items"][1] | {"moved": None, "metadata": None, "sources": None, "score": None} == {
        "item_id": FAR,
        "rank": 2,
        "promoted": True,
        "label": "Ad",
        "reasons": [],
        "explored": False,
        "propensity": None,
        "team": None,
        **dict.fromkeys(("moved", "metadata", "sources", "score")),
    }
    years = [item["metadata"]["year"] for item in answer["items"] if "year" in item["metadata"]]
    assert len(set(years)) == len(years)
    assert max(Counter(c for item in answer["items"] for c in item["metadata"]["categories"]).values()) <= 4
    assert answer["unknown_items"] == ["nope"]
    assert [unmet["item_id"] for unmet in answer["unmet"]] == ["nope"]
    for name in ("diversity", "calibration", "one_per", "promotions"):
        without = await post(shared.client(), LISTS, **{key: value for key, value in body.items() if key != name})
        ranks = {item["item_id"]: item["rank"] for item in without["items"]}
        rule = {"one_per": "one_per:year", "promotions": "promotion"}.get(name, name)
        for item in answer["items"]:
            told = {move["rule"]: move["from"] for move in item["moved"]}.get(rule, item["rank"])
            assert ranks.get(item["item_id"]) == told


async def until_found(client: httpx.AsyncClient, wanted: set[str], query: str) -> None:
    """Ask until these items are the best answers to the query."""
    end_s = time.monotonic() + DEADLINE_S
    while {
        item["item_id"] for item in (await post(client, "/v1/search", query=query))["items"][: len(wanted)]
    } != wanted:
        assert time.monotonic() < end_s, f"{wanted} are not found by {query!r}"
        await asyncio.sleep(0.01)


async def test_a_removed_item_is_promoted_no_more_from_the_next_request_on(client: httpx.AsyncClient) -> None:
    body = {"limit": 5, "promotions": [{"item_id": FAR, "slot": 1}]}
    assert (await post(client, LISTS, **body))["items"][0]["item_id"] == FAR
    await post(client, "/v1/items:hide", item_ids=[FAR])
    hidden = await post(client, LISTS, **body)
    assert FAR not in [item["item_id"] for item in hidden["items"]]
    assert hidden["unmet"][0]["rule"] == "promotion"
    await post(client, "/v1/items:unhide", item_ids=[FAR])
    await post(client, "/v1/items:delete", item_ids=[FAR])
    assert FAR not in [item["item_id"] for item in (await post(client, LISTS, **body))["items"]]


async def test_what_changed_a_moment_ago_counts_in_the_rules(client: httpx.AsyncClient) -> None:
    plain = await post(client, LISTS, limit=4)
    top = [item["item_id"] for item in plain["items"]]
    await post(client, "/v1/items:patch", items=[{"item_id": i, "categories": ["one kind"]} for i in top])
    answer = await post(client, LISTS, limit=4, caps=[{"field": "categories", "most": 1}], diversity=0.1)
    kinds = [kind for item in answer["items"] for kind in item["metadata"]["categories"]]
    assert kinds.count("one kind") == 1
    assert len(answer["items"]) == 4


async def test_a_new_item_is_compared_by_its_own_words(client: httpx.AsyncClient) -> None:
    """The same words in any order, on sale a moment ago: a diverse list has one of them, and another has them all."""
    titles = [" ".join(words) for words in permutations(WORDS.split())][:5]
    copies = {f"copy-{i}" for i in range(5)}
    await post(client, "/v1/items", items=[{"item_id": f"copy-{i}", "title": title} for i, title in enumerate(titles)])
    await until_found(client, copies, WORDS)
    found = {}
    for diversity in (0.0, 0.9):
        answer = await post(client, LISTS, query=WORDS, limit=5, diversity=diversity)
        found[diversity] = [item["item_id"] in copies for item in answer["items"]]
    assert found == {0.0: [True] * 5, 0.9: [True, False, False, False, False]}


async def test_a_new_item_may_be_promoted(client: httpx.AsyncClient) -> None:
    await post(client, "/v1/items", items=[{"item_id": "new-1", "title": WORDS}])
    await until_found(client, {"new-1"}, WORDS)
    answer = await post(client, LISTS, limit=5, promotions=[{"item_id": "new-1", "slot": 5}], diversity=0.5)
    assert answer["items"][4]["item_id"] == "new-1"
    assert answer["items"][4]["metadata"] == {"title": WORDS}


async def test_while_the_store_is_away_the_rest_is_arranged_and_it_is_said(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = await post(client, LISTS, limit=10)
    top = plain["items"][0]["item_id"]
    await post(client, "/v1/items:patch", items=[{"item_id": top, "price": 3.0}])
    await post(client, LISTS, limit=10)
    live = served.front.in_use.now().live
    monkeypatch.setattr(live, "fields", raising(Unavailable("away")))
    answer = await post(client, LISTS, limit=10, diversity=0.5, caps=[{"field": "categories", "most": 2}])
    assert "live" in answer["degraded"]
    assert answer["items"]
    assert max(Counter(c for item in answer["items"] for c in item["metadata"]["categories"]).values()) <= 2


async def test_the_rules_of_the_settings_hold_over_http_and_what_was_shown_is_logged(
    shop: Shop, tmp_path: Path
) -> None:
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", ranking={"caps": {"categories": 1}})
    answer = await post(served.client(), LISTS, limit=4, promotions=[{"item_id": FAR, "slot": 4}], diversity=0.2)
    kinds = [kind for item in answer["items"] for kind in item["metadata"]["categories"]]
    assert len(set(kinds)) == len(kinds) == 4
    await served.stop()
    rows = pq.read_table(tmp_path / "impressions").sort_by("position").to_pylist()
    shown = [(row["position"], row["item_id"], row["score"]) for row in rows]
    assert shown == [(item["rank"], item["item_id"], item["score"]) for item in answer["items"]]
