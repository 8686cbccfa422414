"""Team-draft interleaving: fair to equal rankers, kind to better ones, and never won by length."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import InvalidInput
from raysys.evaluation.interleaving import Interleaved, preference, team_draft

rankings = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


def draft(first, second, n, seed=0):
    return team_draft(list(first), list(second), n, np.random.default_rng(seed))


# The list


@given(rankings, rankings, st.integers(0, 10), st.integers(0, 2**32))
def test_a_list_holds_each_item_once_and_as_many_as_there_are(first, second, n, seed):
    shown = draft(first, second, n, seed)
    assert len(set(shown.items)) == len(shown.items) == len(shown.teams) == min(n, len({*first, *second}))


@given(rankings, rankings, st.integers(1, 10), st.integers(0, 2**32))
def test_each_pick_is_the_best_that_its_team_had_left(first, second, n, seed):
    shown = draft(first, second, n, seed)
    for place, (item, team) in enumerate(zip(shown.items, shown.teams, strict=True)):
        if team is not None:
            ranking = {"first": first, "second": second}[team]
            assert item == next(other for other in ranking if other not in shown.items[:place])


@given(rankings, rankings, st.integers(0, 10), st.integers(0, 2**32))
def test_teams_pick_in_rounds_and_nobody_plays_alone(first, second, n, seed):
    teams = draft(first, second, n, seed).teams
    picked = [team for team in teams if team is not None]
    assert teams[: len(picked)] == tuple(picked)  # what stands for neither comes last
    for place in range(0, len(picked) - 1, 2):
        assert set(picked[place : place + 2]) == {"first", "second"}
    assert len(picked) % 2 == 0 or len(picked) == n


def test_both_orders_of_a_round_come_about():
    seen = {draft("ab", "xy", 2, seed).items for seed in range(50)}
    assert seen == {("a", "x"), ("x", "a")}


def test_the_same_seed_gives_the_same_list():
    assert draft("abcdef", "fedcba", 5, 7) == draft("abcdef", "fedcba", 5, 7)


def test_a_longer_ranking_fills_the_list_without_credit():
    shown = draft("ab", "uvwxyz", 7, 3)
    assert [*shown.items[4:]] == ["w", "x", "y"]
    assert shown.teams[4:] == (None, None, None)
    assert shown.credit("wxy") == (0, 0)
    assert draft("", "uv", 5).teams == (None, None)
    assert draft("", "", 5) == Interleaved((), ())


def test_credit_goes_to_who_picked_and_counts_an_item_once():
    shown = Interleaved(("a", "x", "b", "z"), ("first", "second", "first", None))
    assert shown.credit(["a", "a", "b", "z", "not shown"]) == (2, 0)
    assert shown.credit({"x"}) == (0, 1)
    assert shown.credit(()) == (0, 0)


def test_a_ranking_with_an_item_twice_is_refused():
    with pytest.raises(InvalidInput, match="second: an item comes more than once"):
        draft("ab", "xyx", 3)


# Who is preferred


def credits_of(first, second, n, wanted, people, seed, examine=0.7):
    """People look from the top, go on with this chance, and choose what they want, at random."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(people):
        shown = team_draft(first, second, n, rng)
        seen = rng.geometric(1 - examine)
        pairs.append(shown.credit([item for item in shown.items[:seen] if rng.random() < wanted.get(item, 0.05)]))
    return np.array(pairs, dtype=np.int64).T


def of_people(first, second, **settings):
    return preference(np.arange(len(first), dtype=np.uint64), first, second, **settings)


@pytest.mark.parametrize(
    ("first", "second", "n"),
    [
        ("abcdefgh", "abcdefgh", 8),  # the same
        ("abcdefgh", "abcdefgh", 5),  # an odd list: one team has a pick more
        ("abcd", "badc", 4),
        ("abcdefg", "aceg", 7),  # no better, only longer: nobody wants more than a
    ],
)
def test_equal_rankers_draw_whatever_people_do_with_places(first, second, n):
    one, other = credits_of(
        first, second, n, {"a": 0.6} if len(first) != len(second) else dict.fromkeys(first, 0.4), 6_000, 1
    )
    difference = (one - other).astype(float)
    assert abs(difference.mean()) < 3.5 * difference.std() / math.sqrt(len(difference))
    assert (one + other).sum() > 1_000


def test_the_better_ranker_wins_though_people_look_at_the_top_only():
    wanted = {"a": 0.5, "b": 0.4}
    found = of_people(*credits_of("abuvwx", "uvwxab", 6, wanted, 600, 2))
    assert found.prefers == "first"
    assert found.share > 0.6
    assert of_people(*credits_of("uvwxab", "abuvwx", 6, wanted, 600, 2)).prefers == "second"


def test_equal_rankers_are_told_apart_at_most_once_in_twenty_however_often_one_looks():
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        first = rng.integers(2, size=2_000)
        looks = (of_people(first[:n], 1 - first[:n]) for n in range(20, 2_001, 60))
        wrong += any(look.prefers is not None for look in looks)
    assert wrong / 400 <= 0.05


def test_a_preference_of_55_in_100_is_found():
    rng = np.random.default_rng(5)
    found = [of_people(first, 1 - first) for first in (rng.random((100, 2_000)) < 0.55).astype(np.int64)]
    assert np.mean([one.prefers == "first" for one in found]) > 0.9


def test_lists_of_one_person_are_one_voice():
    users = np.array([1, 1, 1, 2, 3, 4], dtype=np.uint64)
    first = np.array([2, 0, 0, 0, 1, 0])
    second = np.array([0, 1, 0, 1, 1, 0])
    found = preference(users, first, second)
    assert (found.first, found.second, found.even) == (1, 1, 2)
    assert found.share == 0.5
    loud = preference(np.zeros(1_000, dtype=np.uint64), np.ones(1_000, dtype=np.int64), np.zeros(1_000, dtype=np.int64))
    assert (loud.first, loud.prefers) == (1, None)


def test_nobody_and_nothing_chosen():
    none = np.empty(0, dtype=np.int64)
    empty = of_people(none, none)
    assert (empty.first, empty.even, empty.p_value, empty.prefers) == (0, 0, 1.0, None)
    assert math.isnan(empty.share)
    idle = of_people(np.zeros(50, dtype=np.int64), np.zeros(50, dtype=np.int64))
    assert (idle.even, idle.p_value) == (50, 1.0)
