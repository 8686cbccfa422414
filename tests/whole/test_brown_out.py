"""What is left out under pressure, in which order, and that it comes back; by a clock that is moved by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FixedClock, Served, Shop, plain_query, post, recommender, serve_here

from raysys.config import ServeSettings
from raysys.errors import Overloaded
from raysys.pressure import NO_EXPLAIN, NO_EXPLORE, NO_SOURCES, with_fewer_sources, without_extras
from raysys.serving.admission import PATIENCE, WHOLE_LISTS, Admission
from raysys.serving.brown_out import BACK, CALM_S, FROM, BrownOut
from raysys.types import FriendLikes, Request, Terms

DEADLINE_S = 2.0
PRESSURES = st.floats(0.0, 3.0)
PAUSES = st.floats(0.0, 3 * CALM_S)


class Watched:
    """A controller, and what it said so far."""

    def __init__(self) -> None:
        self.clock = FixedClock(0.0)
        self._brown_out = BrownOut(self.clock)
        self.levels = [0]

    def look(self, pressure: float, after_s: float = 0.0) -> int:
        self.clock.at_s += after_s
        self.levels.append(self._brown_out.level(pressure))
        return self.levels[-1]


def test_every_level_comes_before_anybody_is_sent_away() -> None:
    assert list(FROM) == sorted(set(FROM))
    assert FROM[-1] < 1.0
    watched = Watched()
    assert [watched.look(pressure) for pressure in (0.0, FROM[0] - 0.01, *FROM, 1.0, float("inf"))] == [
        *(0, 0, 1, 2, 3),
        *(3, 3),
    ]


@given(st.lists(PRESSURES, min_size=1))
def test_while_the_pressure_grows_the_level_never_falls(pressures: list[float]) -> None:
    watched = Watched()
    for pressure in sorted(pressures):
        watched.look(pressure, after_s=CALM_S)
    assert watched.levels == sorted(watched.levels)


@given(st.lists(st.tuples(PRESSURES, PAUSES)))
def test_no_level_is_below_what_the_pressure_asks_for(looks: list[tuple[float, float]]) -> None:
    watched = Watched()
    for pressure, after_s in looks:
        assert watched.look(pressure, after_s) >= sum(pressure >= start for start in FROM)


@given(st.lists(st.tuples(PRESSURES, PAUSES), min_size=1))
def test_it_goes_down_no_faster_than_a_level_for_each_calm_time(looks: list[tuple[float, float]]) -> None:
    watched, rose_at_s = Watched(), 0.0
    for pressure, after_s in looks:
        before = watched.levels[-1]
        level = watched.look(pressure, after_s)
        if level > before:
            rose_at_s, top = watched.clock.at_s, level
        elif level < before:
            assert top - level <= (watched.clock.at_s - rose_at_s) / CALM_S + 1e-9
            assert pressure < BACK * FROM[level]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_pressure_around_a_threshold_does_not_make_it_flap(level: int) -> None:
    watched = Watched()
    start = FROM[level - 1]
    for n in range(400):
        watched.look(start + (0.01 if n % 2 else -0.01), after_s=CALM_S / 3)
    assert watched.levels[2:] == [level] * 399


def test_after_an_idle_minute_nothing_is_left_out() -> None:
    watched = Watched()
    assert watched.look(1.0) == 3
    assert watched.look(0.0, after_s=CALM_S / 2) == 3
    assert watched.look(0.0, after_s=CALM_S / 2) == 2
    assert watched.look(0.0, after_s=60.0) == 0


def fill(admission: Admission, clock: FixedClock, per_s: float) -> list[int]:
    """Answer at this pace for a while, then let people in until one is sent away. The levels of those let in."""
    for _ in range(int(10 * per_s)):
        admission.enter()
        clock.at_s += 1 / per_s
        admission.leave()
    levels: list[int] = []
    while True:
        try:
            levels.append(admission.enter())
        except Overloaded:
            return levels


def test_a_queue_that_grows_meets_every_level_in_order_and_then_is_refused() -> None:
    clock = FixedClock(0.0)
    levels = fill(Admission(DEADLINE_S, clock, BrownOut(clock)), clock, per_s=200.0)
    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 2, 3}
    most = 200.0 * DEADLINE_S * PATIENCE
    assert [levels.index(level) for level in (1, 2, 3)] == pytest.approx([start * most for start in FROM], abs=2)


def test_who_is_let_in_is_the_same_without_it_and_nothing_is_left_out_then() -> None:
    found = []
    for is_on in (True, False):
        clock = FixedClock(0.0)
        found.append(fill(Admission(DEADLINE_S, clock, BrownOut(clock) if is_on else None), clock, per_s=200.0))
    assert len(found[0]) == len(found[1])
    assert set(found[1]) == {0}


@pytest.mark.parametrize("busy_s", [0.0, 0.001, 0.3, 10.0])
def test_before_the_first_is_sent_away_somebody_had_a_list_without_all_that_can_be_left_out(busy_s: float) -> None:
    """Also where many come at once, before anybody was answered."""
    clock = FixedClock(0.0)
    admission = Admission(DEADLINE_S, clock, BrownOut(clock))
    levels = [admission.enter()]
    clock.at_s += busy_s
    while len(levels) < 1_000:
        try:
            admission.check()
            levels.append(admission.enter())
        except Overloaded:
            break
        clock.at_s += 0.001
    assert levels[-1] == 3
    assert len(levels) >= admission.always_in
    assert clock.at_s >= admission.patience_s
    with pytest.raises(Overloaded):
        admission.check()


def test_a_few_who_take_long_are_no_pressure() -> None:
    clock = FixedClock(0.0)
    admission = Admission(DEADLINE_S, clock, BrownOut(clock))
    admission.enter()
    clock.at_s += 30.0
    assert [admission.enter() for _ in range(WHOLE_LISTS - 1)] == [0] * (WHOLE_LISTS - 1)
    assert admission.enter() == 3  # and now it is one: nobody was answered for long


@pytest.mark.parametrize("answered", [0, 1_000])
def test_a_burst_after_a_pause_is_no_pressure(answered: int) -> None:
    clock = FixedClock(0.0)
    admission = Admission(DEADLINE_S, clock, BrownOut(clock))
    for _ in range(answered):
        admission.enter()
        clock.at_s += 0.1
        admission.leave()
    clock.at_s += 30.0
    levels = []
    for _ in range(admission.always_in):
        levels.append(admission.enter())
        clock.at_s += 0.001
    assert set(levels) == {0}


def test_only_what_was_asked_for_is_left_out() -> None:
    plain = Request(limit=3)
    assert without_extras(plain, explores=False) == (plain, [])
    asked = replace(plain, explain="full", explore=True)
    assert without_extras(asked, explores=True) == (replace(plain, explore=False), [NO_EXPLORE, NO_EXPLAIN])


def test_fewer_sources_keep_what_was_said_and_something_of_everybody() -> None:
    vector, terms = np.ones((3, 4), np.float32), Terms(np.ones(1, np.uint64), np.ones(1, np.float32))
    friends = FriendLikes(np.ones(1, np.uint64), np.ones(1, np.float32))
    query = plain_query(profile=vector, said=vector, words=terms, query_words=terms, friends=friends)
    assert with_fewer_sources(plain_query(), True) is not query
    fewer = with_fewer_sources(query, True)
    assert (fewer.profile, fewer.words, fewer.friends) == (None, None, None)
    assert fewer.said is vector
    assert fewer.query_words is terms  # the query has no vector, as the encoder is away
    assert with_fewer_sources(replace(query, query=vector[0]), True).query_words is None
    by_text = with_fewer_sources(query, False)
    assert by_text.profile is not None
    assert by_text.profile.shape == (1, 4)


@pytest.mark.parametrize("changes", [{}, {"query": np.ones(4, np.float32)}, {"only": np.ones(1, np.uint64)}])
def test_where_there_is_nothing_to_leave_out_the_query_stays_the_object_it_is(changes: dict[str, Any]) -> None:
    query = plain_query(**changes)
    assert with_fewer_sources(query, True) is query


REQUESTS: Sequence[dict[str, Any]] = [
    {"explain": "full"},
    {"explore": True},
    {"query": "tea"},
    {"history": ("item-1", "item-2", "item-3")},
    {"only": ("item-1", "item-2")},
    {"history": ("item-1",), "explain": True, "explore": True, "query": "tea", "limit": 100},
]


@pytest.mark.parametrize("changes", REQUESTS, ids=str)
@pytest.mark.parametrize("pressure", [1, 2, 3])
async def test_at_no_level_a_list_fails_or_shows_what_was_seen(
    shop: Shop, pressure: int, changes: dict[str, Any]
) -> None:
    path, person = recommender(shop.snapshot(1)), shop.profile(5)
    request = Request(**{"limit": 10, "recommendation_id": "r"} | changes)
    whole = await path.recommend(request, person)
    answer = await path.recommend(replace(request, pressure=pressure), person)
    assert len(answer.items) == len(whole.items)
    seen = set() if request.only else {interaction.item_id for interaction in person.interactions}
    assert not seen & {item.item_id for item in answer.items}
    assert set(whole.degraded) <= {"explain"}
    expected = [NO_EXPLORE] if request.explore else []
    expected += [NO_EXPLAIN] if request.explain else []
    expected += [NO_SOURCES] if pressure == 3 and request.only is None else []
    assert list(answer.degraded) == expected
    if not expected:
        assert [item.item_id for item in answer.items] == [item.item_id for item in whole.items]
    assert not any(item.reasons or item.explored for item in answer.items)


async def queue_up(served: Served, clock: FixedClock, pressure: float) -> None:
    """Fill the gateway to this pressure, after a while in which it answered 100 a second."""
    for _ in range(1_000):
        served.front.admission.enter()
        clock.at_s += 0.01
        served.front.admission.leave()
    for _ in range(int(pressure * 100 * served.front.admission.patience_s)):
        served.front.admission.enter()


async def test_a_gateway_says_what_it_left_out_and_counts_it(shop: Shop, tmp_path: Path) -> None:
    clock = FixedClock()
    served = await serve_here(shop.store(2), tmp_path / "state.sqlite3", clock)
    body = {"history": ["item-1", "item-2"], "explain": True}
    async with served.client() as client:
        calm = await post(client, "/v1/recommendations", **body)
        assert (calm["degraded"], bool(calm["items"][0]["reasons"])) == ([], True)
        await queue_up(served, clock, pressure=0.95)
        answer = await post(client, "/v1/recommendations", **body)
        assert answer["degraded"] == [NO_EXPLAIN, NO_SOURCES]
        assert len(answer["items"]) == len(calm["items"])
        metrics = (await client.get("/metrics")).text
        assert "raysys_brown_out_level 3.0" in metrics
        for part, n in ((NO_EXPLAIN, 1.0), (NO_EXPLORE, 0.0)):
            assert f'raysys_degraded_total{{part="{part}"}} {n}' in metrics
        while served.front.admission.now()[0]:
            served.front.admission.leave()
        clock.at_s += 3 * CALM_S
        again = await post(client, "/v1/recommendations", **body)
        assert "raysys_brown_out_level 0.0" in (await client.get("/metrics")).text
    await served.stop()
    assert again["degraded"] == []
    assert again["items"] == calm["items"]


def test_it_is_on_and_can_be_turned_off() -> None:
    assert ServeSettings().brown_out
    assert not ServeSettings(brown_out=False).brown_out
