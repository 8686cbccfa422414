"""Places for new items: drawn by the chances that are logged, and never at the price of a rule."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from support import NOW_S, FixedClock, Served, Shop, post, serve_here

from raysys.config import ImpressionSettings
from raysys.evaluation.metrics import Estimate
from raysys.evaluation.off_policy import Limits, Logged, concatenate, snips
from raysys.evaluation.shown import event_batch, read_rewards, read_shown
from raysys.index.filters import parse
from raysys.ranking.explore import MOST_COUNTED, Room, TimesShown, explore, may_stand
from raysys.ranking.groups import Groups
from raysys.recall.fresh import freshness, younger_than
from raysys.serving.impressions import ImpressionLog
from raysys.types import Answer, Cap, Event, Interaction, Profile, Promotion, Request

LISTS = "/v1/recommendations"
STRANGER = Profile("")
DAY_S = 86_400
DEADLINE_S = 5.0
NEW = [f"new-{number}" for number in range(6)]
NO_CAPS = Room((), ())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# The draw


def test_what_is_drawn_is_as_frequent_as_its_propensity_says() -> None:
    """25 places in blocks of ten, seven new items, three places that stay: every cell of place and item."""
    order, new, one_in, n = range(25), range(100, 107), 10, 10_000
    standing = may_stand(order, new, {0, 1, 12}, one_in, NO_CAPS)
    counts: Counter[tuple[int, int]] = Counter()
    said: dict[tuple[int, int], float] = {}
    for seed in range(n):
        drawn = explore(order, standing, one_in, rng(seed))
        cells = list(enumerate(drawn.order))
        counts.update(cells)
        said |= dict(zip(cells, drawn.propensities, strict=True))
    for place in order:
        cells = [cell for cell in said if cell[0] == place]
        assert sum(said[cell] for cell in cells) == pytest.approx(1)
        if len(cells) > 1:
            expected = [n * said[cell] for cell in cells]
            assert chisquare([counts[cell] for cell in cells], expected).pvalue > 1e-4
    assert len(said) == 25 + 8 * 3 + 9 * 2 + 5 * 2  # dealt 3, 2, 2 to the three blocks
    assert sum(counts[place, place] == n for place in order) == 3


@given(st.integers(0, 40), st.integers(0, 12), st.integers(3, 15), st.sets(st.integers(0, 40)), st.integers(0, 99))
def test_no_item_comes_twice_and_only_places_that_may_be_explored_are(
    n: int, n_new: int, one_in: int, staying: set[int], seed: int
) -> None:
    standing = may_stand(range(n), range(100, 100 + n_new), staying, one_in, NO_CAPS)
    drawn = explore(range(n), standing, one_in, rng(seed))
    assert len(set(drawn.order)) == n == len(drawn.propensities)
    for place, at in enumerate(drawn.order):
        assert (at >= 100) == (place in drawn.explored)
        assert at == place or at in standing[place]
        low, high = (0, 0.5) if at >= 100 else (0.5, 1.01)
        assert low < drawn.propensities[place] < high
        assert place not in staying or drawn.propensities[place] == 1
    for block in range(0, n, one_in):
        assert len(drawn.explored & set(range(block, block + one_in))) <= 1


@given(st.data())
def test_caps_hold_whatever_is_drawn(data: st.DataObject) -> None:
    n, n_new, most = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    values = data.draw(st.lists(st.lists(st.integers(0, 4), max_size=2), min_size=n + n_new, max_size=n + n_new))
    groups = Groups.of(pa.array(values, pa.list_(pa.int64())))

    def counts(order: Sequence[int]) -> Counter[int]:
        return Counter(value for at in order for value in groups.of_item(at).tolist())

    order: list[int] = []
    for at in range(n):  # a list in which the cap holds
        if max(counts([*order, at]).values(), default=0) <= most:
            order.append(at)
    new = range(n, n + n_new)
    standing = may_stand(order, new, (), 4, Room(order, [(most, groups)]))
    for place in range(len(order)):
        fitting = []
        for at in new:
            changed = [*order[:place], at, *order[place + 1 :]]
            if max(counts(changed).values(), default=0) <= most:
                fitting.append(at)
        assert standing[place] == (fitting if place < 4 else [])


def test_the_coldest_counts_are_forgotten_and_the_others_not() -> None:
    shown = TimesShown()
    keys = np.arange(MOST_COUNTED, dtype=np.uint64)
    shown.add(keys[:2])
    shown.add(keys)
    assert shown.below(keys[:3], 2).tolist() == [False, False, True]
    shown.add(np.array([10**9], dtype=np.uint64))
    assert shown.below(keys[:3], 2).tolist() == [True, False, True]


@pytest.mark.parametrize("days", [1 / 86_400, 1.0, 3.0, 13.5, 14.0])
def test_an_item_is_new_until_the_second_it_says(days: float) -> None:
    since_s = NOW_S - days * DAY_S + np.array([1.0, 0.0, -1.0])
    assert younger_than(days, freshness(since_s, NOW_S)).tolist() == [True, False, False]
    assert younger_than(14.0, freshness(np.array([-np.inf]), NOW_S)).tolist() == [False]


# Through the whole path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A gateway that explores one place in three, with six new items that may be shown, and others that may not."""
    explore = {"one_in": 3, "from_place": 2, "enabled": True}
    # Nothing new is in a list by its score.
    served = await serve_here(shop.store(2), tmp_path_factory.mktemp("explore") / "s.sqlite3", ranking={
        "explore": explore, "fresh": 0.0})  # fmt: skip
    client = served.client()
    await post(client, "/v1/items", items=[{"item_id": i, "title": "quokka", "categories": [i]} for i in NEW])
    yesterday, tomorrow = "2023-12-13T00:00:00Z", "2023-12-16T00:00:00Z"
    never: list[dict[str, Any]] = [
        {"item_id": "no-hidden", "hidden": True},
        {"item_id": "no-expired", "available_until": yesterday},
        {"item_id": "no-later", "available_from": tomorrow},
        {"item_id": "no-deleted"},
    ]
    await post(client, "/v1/items", items=[{"title": "quokka", **item} for item in never])
    await post(client, "/v1/items:delete", item_ids=["no-deleted"])
    await until_there(served, NEW)
    yield served
    await served.stop()


async def until_there(served: Served, item_ids: Sequence[str]) -> None:
    """Ask until the shards have taken in these items."""
    end_s = time.monotonic() + DEADLINE_S
    wanted = Request(limit=len(item_ids), only=tuple(item_ids))
    while len((await served.recommender.recommend(wanted, STRANGER)).items) < len(item_ids):
        assert time.monotonic() < end_s, f"{item_ids} are not there"
        await asyncio.sleep(0.01)


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


def explored(answers: Sequence[Answer]) -> set[str]:
    return {item.item_id for answer in answers for item in answer.items if item.explored}


async def draws(made: Served, request: Request, n: int = 60, profile: Profile = STRANGER) -> list[Answer]:
    """The answers to this request, each under an id of its own."""
    named = [replace(request, recommendation_id=f"r{number}") for number in range(n)]
    return await asyncio.gather(*(made.recommender.recommend(one, profile) for one in named))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def many(made: Served) -> list[Answer]:
    """What 700 strangers are shown."""
    return await draws(made, Request(limit=6), 700)


@pytest.mark.asyncio(loop_scope="module")
async def test_lists_are_as_frequent_as_their_propensities_say(made: Served, many: list[Answer]) -> None:
    n, answers = len(many), many
    plain = ids(await made.recommender.recommend(Request(limit=6, explore=False), STRANGER))
    counts = Counter((item.rank, item.item_id) for answer in answers for item in answer.items)
    said = {(item.rank, item.item_id): item.propensity for answer in answers for item in answer.items}
    assert explored(answers) == set(NEW)
    for rank, base in enumerate(plain, start=1):
        cells = [cell for cell in said if cell[0] == rank]
        assert said[rank, base] == pytest.approx(2 / 3 if rank > 1 else 1)
        if rank > 1:
            of_new = [chance for (place, item_id), chance in said.items() if place == rank and item_id in NEW]
            assert of_new == pytest.approx([1 / 3 / 3] * 3)  # dealt to two blocks
            assert chisquare([counts[cell] for cell in cells], [n * said[cell] for cell in cells]).pvalue > 1e-4
    for answer in answers:
        assert all(item.explored == (item.item_id in NEW) for item in answer.items)
        assert [base for base, shown in zip(plain, ids(answer), strict=True) if shown not in NEW] == [
            shown for shown in ids(answer) if shown not in NEW
        ]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_may_not_be_shown_is_not_drawn(made: Served) -> None:
    """What they disliked or met, what is filtered out, and what is hidden, deleted, expired or not out yet."""
    met = Profile("u:ann", 1, (Interaction(NEW[2], 0.0, NOW_S),))
    disliked = Request(limit=6, negative=(NEW[0], NEW[1]))
    answers = await draws(made, disliked, profile=met)
    assert explored(answers) == {*NEW[3:]}
    assert not {item_id for answer in answers for item_id in ids(answer)} & {*NEW[:3]}
    wanted = {"should": [{"field": "categories", "match": NEW[5]}, {"field": "year", "exists": True}]}
    assert explored(await draws(made, Request(limit=6, filter=parse(wanted)))) == {NEW[5]}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_id_is_the_same_list_and_without_one_nothing_is_drawn(made: Served, shop: Shop) -> None:
    request = Request(limit=10)
    one, two = await draws(made, request, 20), await draws(made, request, 20)
    assert [answer.items for answer in one] == [answer.items for answer in two]
    assert len({tuple(ids(answer)) for answer in one}) > 5
    plain = await made.recommender.recommend(request, STRANGER)
    assert not explored([plain])
    assert {item.propensity for item in plain.items} == {None}
    no_draw = replace(request, explore=False, recommendation_id="r1")
    assert (await made.recommender.recommend(no_draw, STRANGER)).items == plain.items


@pytest.mark.asyncio(loop_scope="module")
async def test_promotions_and_caps_hold_for_what_is_drawn(made: Served) -> None:
    promotion = Promotion("item-200", 3, "Ad")
    request = Request(limit=6, promotions=(promotion,), caps=(Cap("categories", 2), Cap("year", 1)), diversity=0.3)
    answers = await draws(made, request)
    assert explored(answers) == set(NEW)
    for answer in answers:
        third = answer.items[2]
        assert (third.item_id, third.promoted, third.propensity, third.explored) == ("item-200", True, 1.0, False)
        kinds = Counter(kind for item in answer.items for kind in item.metadata["categories"])
        assert max(kinds.values()) <= 2
        assert sum(item.explored for item in answer.items) <= 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_new_item_whose_kind_is_full_is_not_drawn(made: Served) -> None:
    plain = await made.recommender.recommend(Request(limit=6, caps=(Cap("categories", 1),)), STRANGER)
    kinds = [kind for item in plain.items for kind in item.metadata["categories"]]
    client = made.client()
    await post(client, "/v1/items", items=[{"item_id": "full", "title": "quokka", "categories": kinds}])
    await until_there(made, ["full"])
    assert "full" in explored(await draws(made, Request(limit=6)))
    capped = await draws(made, Request(limit=6, caps=(Cap("categories", 1),)))
    assert explored(capped) == set(NEW)
    await post(client, "/v1/items:delete", item_ids=["full"])
    assert explored(await draws(made, Request(limit=6))) == set(NEW)


@pytest.mark.asyncio(loop_scope="module")
async def test_rank_and_lists_by_request_alone_are_left_as_they_are(made: Served) -> None:
    (answer,) = await draws(made, Request(limit=2, only=("item-1", "new-1")), 1)
    assert not explored([answer])
    body = await post(made.client(), "/v1/rank", items=["item-1", "new-1"])
    assert {item["propensity"] for item in body["items"]} == {None}
    body = await post(made.client(), LISTS, explore=False)
    assert {item["propensity"] for item in body["items"]} == {None}


async def served_with(shop: Shop, folder: Path, n_new: int = 6, shards: int = 2, **ranking: Any) -> Served:
    made = await serve_here(shop.store(shards), folder / f"s{shards}.sqlite3", ranking={"fresh": 0.0, **ranking})
    if n_new:
        items = [{"item_id": item_id, "title": "quokka"} for item_id in NEW[:n_new]]
        await post(made.client(), "/v1/items", items=items)
        await until_there(made, NEW[:n_new])
    return made


async def test_any_number_of_shards_draws_alike(shop: Shop, tmp_path: Path) -> None:
    lists = []
    for shards in (1, 3):
        made = await served_with(shop, tmp_path, shards=shards, explore={"enabled": True, "one_in": 3})
        lists.append([ids(answer) for answer in await draws(made, Request(limit=10), 20)])
        await made.stop()
    assert lists[0] == lists[1]


async def test_what_was_shown_often_enough_is_no_longer_new(shop: Shop, tmp_path: Path) -> None:
    made = await served_with(shop, tmp_path, 2, explore={"one_in": 3, "from_place": 1, "most_shown": 5})
    answers = await draws(made, Request(limit=3, explore=True), 40)
    counts = Counter(item.item_id for answer in answers for item in answer.items if item.explored)
    assert counts == {NEW[0]: 5, NEW[1]: 5}
    assert {item.propensity for item in answers[-1].items} == {1.0}
    await made.stop()


async def test_where_nothing_is_new_every_place_is_certain(shop: Shop, tmp_path: Path) -> None:
    made = await served_with(shop, tmp_path, 0, explore={"enabled": True})
    plain = await post(made.client(), LISTS, explore=False)
    body = await post(made.client(), LISTS)
    assert [item["item_id"] for item in body["items"]] == [item["item_id"] for item in plain["items"]]
    assert {(item["propensity"], item["explored"]) for item in body["items"]} == {(1.0, False)}
    await made.stop()


async def test_by_default_nothing_is_left_to_chance(shop: Shop, tmp_path: Path) -> None:
    made = await served_with(shop, tmp_path)
    bodies = [await post(made.client(), LISTS, limit=10) for _ in range(5)]
    assert len({tuple(item["item_id"] for item in body["items"]) for body in bodies}) == 1
    asked = [await post(made.client(), LISTS, explore=True) for _ in range(40)]
    assert {item["item_id"] for body in asked for item in body["items"] if item["explored"]} <= {*NEW}
    assert any(item["explored"] for body in asked for item in body["items"])
    await made.stop()


async def test_people_of_whom_nothing_is_known_can_have_a_diverse_list(shop: Shop, tmp_path: Path) -> None:
    made = await served_with(shop, tmp_path, 0, cold_diversity=0.7)
    client = made.client()
    cold, diverse = await post(client, LISTS), await post(client, LISTS, diversity=0.7)
    plain = await post(client, LISTS, diversity=0.0)
    assert cold["reasons"] == ["cold_start"]
    assert cold["items"] == diverse["items"] != plain["items"]
    known = [await post(client, LISTS, history=["item-1"], **more) for more in ({}, {"diversity": 0.0})]
    assert known[0]["items"] == known[1]["items"]
    await made.stop()


# What the log of it is worth


def quality(item_id: str, place: int) -> float:
    """The chance of a click in this world: new items are better than what is shown, and early places than late ones."""
    return (0.8 if item_id in NEW else 0.3) / place**0.5


def target_of(propensities: np.ndarray, share: float, one_in: int) -> np.ndarray:
    """The chances under a policy that explores with ``share`` at each place that was explored once in ``one_in``."""
    of_new, of_others = propensities * one_in * share, np.where(propensities < 1, 1 - share, 1.0)
    return np.where(propensities < 0.5, of_new, of_others)


def truth(n: int, from_place: int, share: float) -> float:
    """The mean chance of a click under that policy."""
    shares = [share if place >= from_place else 0.0 for place in range(1, n + 1)]
    values = [(1 - s) * quality("", place) + s * quality(NEW[0], place) for place, s in enumerate(shares, start=1)]
    return float(np.mean(values))


async def test_the_log_tells_the_value_of_policies_that_were_not_served(many: list[Answer], tmp_path: Path) -> None:
    """Served with one new item in three places; asked for none at all, for as many, and for twice as many.

    One log may miss the truth, as one in twenty does; the next test looks at many.
    """
    log = ImpressionLog(tmp_path / "impressions", ImpressionSettings(), FixedClock(), pytest.fail)
    clicking, events = rng(4), []
    for number, answer in enumerate(many):
        log.add(f"r{number}", "recommendations", f"u:{number}", answer, [])
        events += [
            Event(f"{number}-{item.rank}", "click", f"u:{number}", item.item_id, NOW_S, recommendation_id=f"r{number}")
            for item in answer.items
            if clicking.random() < quality(item.item_id, item.rank)
        ]
    log.close()
    rewards = read_rewards([event_batch(events)], {"click": 1.0})
    pieces = list(read_shown(tmp_path / "impressions", rewards, pads.field("propensity").is_valid()))
    for share in (0.0, 1 / 3, 2 / 3):
        targets = [target_of(piece.propensities, share, one_in=3) for piece in pieces]
        logged = [
            Logged(piece.users, piece.propensities, target, piece.rewards)
            for piece, target in zip(pieces, targets, strict=True)
        ]
        found = snips(concatenate(logged), rng(1))
        assert (found.n_rows, found.n_users) == (4_200, 700)
        assert found.value is not None
        assert found.value.low < truth(6, 2, share) < found.value.high
        assert found.value.high - found.value.low < 0.04


def test_intervals_from_explored_lists_hold_the_truth_as_often_as_they_say() -> None:
    """The draw alone, without a server: 60 logs of 300 people each."""
    n_logs, n_people, one_in = 60, 300, 6
    standing = may_stand(range(6), range(6, 10), {0}, one_in, NO_CAPS)
    users = np.repeat(np.arange(n_people, dtype=np.uint64), 6)
    found: dict[float, list[Estimate]] = {0.0: [], 1 / 3: []}
    for seed in range(n_logs):
        draw, clicking = rng(seed), rng(1_000 + seed)
        lists = [explore(range(6), standing, one_in, draw) for _ in range(n_people)]
        propensities = np.array([drawn.propensities for drawn in lists])
        is_new = np.array([drawn.order for drawn in lists]) >= 6
        clicked = clicking.random(is_new.shape) < np.where(is_new, 0.8, 0.3) / np.sqrt(np.arange(1, 7))
        for share, estimates in found.items():
            target = target_of(propensities, share, one_in)
            logged = Logged(users, propensities.ravel(), target.ravel(), clicked.ravel().astype(np.float64))
            value = snips(logged, rng(seed), Limits(resamples=300)).value
            assert value is not None
            estimates.append(value)
    for share, estimates in found.items():
        means, right = np.array([one.mean for one in estimates]), truth(6, 2, share)
        assert abs(means.mean() - right) < 3.5 * means.std() / n_logs**0.5
        assert np.mean([one.low < right < one.high for one in estimates]) > 0.86
