"""Profile and request to weighted items, and the vector of a user."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import ProfileSettings
from raysys.keys import item_keys
from raysys.profile.seeds import decayed_mean, seeds
from raysys.types import Interaction, Person, Profile, Saying

AGELESS = {"half_life_days": {}, "default_half_life_days": np.inf}
HALVING = ProfileSettings(step_decay=0.5, **AGELESS)
DAY_S = 86_400.0
NONE = np.zeros(0, dtype=np.float32)
NO_VECTORS = np.zeros((0, 2), dtype=np.float32)


def profile(**weights: float) -> Profile:
    """A profile of these items, oldest first."""
    return Profile(
        "u:ann", len(weights), tuple(Interaction(item, w, float(at)) for at, (item, w) in enumerate(weights.items()))
    )


def f32(*values: object) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_a_stranger_has_no_seeds():
    nothing = seeds(Profile("u:new"), HALVING)
    assert (nothing.items, nothing.negatives, len(nothing.seen_keys)) == ((), (), 0)
    assert nothing.weights.shape == nothing.negative_weights.shape == (0,)
    assert nothing.weights.dtype == nothing.negative_weights.dtype == np.float32


def test_a_profile_worked_by_hand():
    found = seeds(profile(a=1.0, b=-2.0, c=3.0, d=0.0, e=2.0), HALVING)
    assert found.items == ("a", "c", "e")
    assert found.weights.tolist() == [0.25, 1.5, 2.0]
    assert found.negatives == ("b",)
    assert found.negative_weights.tolist() == [2.0]
    assert set(found.seen_keys) == set(item_keys({"a", "b", "c", "d", "e"}))
    assert found.weights.dtype == np.float32


def test_a_plain_view_just_now_weighs_one():
    assert seeds(profile(a=1.0), HALVING).weights.tolist() == [1.0]
    assert seeds(Profile("s:x"), HALVING, history=["a"]).weights.tolist() == [1.0]


def test_the_ids_of_a_request_come_after_the_profile():
    found = seeds(profile(a=1.0), HALVING, history=["b"], positive=["c"], negative=["d"])
    assert found.items == ("a", "b", "c")
    assert found.weights.tolist() == [0.25, 0.5, 2.0]
    assert (found.negatives, found.negative_weights.tolist()) == (("d",), [2.0])
    assert set(found.seen_keys) == set(item_keys({"a", "b"}))  # positive and negative are examples, not things seen


def test_an_item_given_again_moves_to_the_end_and_keeps_its_greatest_weight():
    found = seeds(profile(a=3.0, b=1.0), HALVING, history=["c", "a", "c"])
    assert found.items == ("b", "a", "c")
    assert found.weights.tolist() == [0.25, 1.5, 1.0]


def test_history_does_not_undo_a_dislike_but_positive_does():
    assert seeds(profile(a=-2.0), HALVING, history=["a"]).items == ()
    found = seeds(profile(a=-2.0), HALVING, positive=["a"])
    assert (found.items, found.negatives) == (("a",), ())


def test_negative_overrules_everything():
    found = seeds(profile(a=3.0), HALVING, history=["a"], positive=["a"], negative=["a"])
    assert (found.items, found.negatives) == ((), ("a",))


def test_weights_are_capped_and_lists_are_bounded():
    settings = ProfileSettings(step_decay=1.0, history=2, **AGELESS)
    found = seeds(profile(a=1.0, b=9.0, c=1.0, d=-1.0, e=-9.0, f=-1.0), settings)
    assert (found.items, found.weights.tolist()) == (("b", "c"), [3.0, 1.0])
    assert (found.negatives, found.negative_weights.tolist()) == (("e", "f"), [3.0, 1.0])
    assert set(found.seen_keys) == set(item_keys({"a", "b", "c", "d", "e", "f"}))
    assert set(found.disliked_keys) == set(item_keys({"d", "e", "f"}))  # all, not only those that shape the taste


def test_weights_halve_with_the_days_before_the_newest():
    settings = ProfileSettings(step_decay=1.0, half_life_days={"view": 10.0}, default_half_life_days=20.0)
    made = (("a", 1.0, "view"), ("b", 1.0, "like"), ("c", -2.0, "dislike"), ("d", 3.0, "purchase"))
    whole = Profile("u:ann", 4, tuple(Interaction(n, w, DAY_S * 20 * at, kind) for at, (n, w, kind) in enumerate(made)))
    found = seeds(whole, settings)
    assert found.weights.tolist() == [2.0**-6, 0.25, 3.0]
    assert found.negative_weights.tolist() == [2.0]  # the newest of its own list
    assert found.timestamps_s.tolist() == [0.0, DAY_S * 20, DAY_S * 60]


def test_a_long_absence_changes_nothing():
    settings = ProfileSettings(half_life_days={"view": 1.0})
    times = (0.0, DAY_S, 3 * DAY_S)
    then, much_later = (
        Profile("u:ann", 3, tuple(Interaction(f"i{t}", 1.0, t + shift) for t in times)) for shift in (0.0, 1e9)
    )
    np.testing.assert_array_equal(seeds(then, settings).weights, seeds(much_later, settings).weights)


def test_an_id_of_the_request_has_no_age_and_makes_nothing_older():
    settings = ProfileSettings(step_decay=1.0, half_life_days={"view": 1.0})
    of_days = Profile("u:ann", 2, (Interaction("a", 1.0, 0.0), Interaction("b", 1.0, DAY_S)))
    found = seeds(of_days, settings, history=["c", "a"])
    assert (found.items, found.weights.tolist()) == (("b", "c", "a"), [1.0, 1.0, 1.0])
    assert found.timestamps_s.tolist() == [DAY_S, np.inf, np.inf]


def test_years_ago_is_next_to_nothing():
    ages = Profile("u:ann", 2, (Interaction("a", 1.0, 0.0), Interaction("b", 1.0, DAY_S * 365 * 2_000)))
    assert seeds(ages, ProfileSettings()).weights.tolist() == [0.0, 1.0]


def test_with_the_default_half_lives_a_week_matters_little():
    week = Profile("u:ann", 7, tuple(Interaction(f"i{day}", 1.0, day * DAY_S) for day in range(7)))
    with_age, without = seeds(week, ProfileSettings()), seeds(week, ProfileSettings(**AGELESS))
    np.testing.assert_allclose(with_age.weights, without.weights, rtol=0.05)


def test_what_is_pinned_does_not_fade_and_stays():
    settings = ProfileSettings(step_decay=0.5, history=2, half_life_days={"view": 1.0})
    items = tuple(Interaction(item, 1.0, DAY_S * at) for at, item in enumerate("abcd"))
    pinning = Profile("u:ann", 4, items, person=Person("u:ann", pinned=frozenset("a")))
    found = seeds(pinning, settings)
    assert (found.items, found.weights.tolist()) == (("a", "d"), [1.0, 1.0])
    assert seeds(Profile("u:ann", 4, items), settings).weights.tolist() == [0.25, 1.0]


def test_texts_worked_by_hand():
    settings = ProfileSettings(step_decay=0.5, half_life_days={"search": 1.0}, default_half_life_days=2.0)
    sayings = (
        Saying("tea", 1.0, 0.0, "search", "1"),
        Saying("too sweet", -1.5, DAY_S, "review", "2"),
        Saying("whatever", 0.0, DAY_S, "review", "3"),
        Saying("a gardener", 1.0, DAY_S * 99, "description", "description"),
        Saying("mugs", 9.0, DAY_S * 3, "chat", "4"),
    )
    found = seeds(Profile("u:ann", 5, sayings=sayings), settings)
    assert found.sayings == ("a gardener", "tea", "too sweet", "mugs")
    assert found.saying_weights.tolist() == [1.0, 0.25 * 0.125, -1.5 * 0.5 * 0.5, 3.0]
    assert found.saying_weights.dtype == np.float32
    assert found.items == ()
    pinning = Profile("u:ann", 5, sayings=sayings, person=Person("u:ann", pinned=frozenset({"text:1"})))
    assert seeds(pinning, settings).saying_weights.tolist() == [1.0, 1.0, -1.5 * 0.5 * 0.5, 3.0]


def test_a_stranger_said_nothing():
    found = seeds(Profile("u:new"), HALVING)
    assert (found.sayings, found.saying_weights.shape, found.timestamps_s.shape) == ((), (0,), (0,))


IDS = st.lists(st.sampled_from("abcdefgh"), max_size=12)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-5, 5)), IDS, IDS, IDS, st.integers(1, 6))
def test_shape_of_all_seeds(weights, history, positive, negative, limit):
    found = seeds(profile(**weights), ProfileSettings(history=limit), history, positive, negative)
    assert len(found.items) == len(set(found.items)) == len(found.weights) <= limit
    assert len(found.negatives) == len(set(found.negatives)) == len(found.negative_weights) <= limit
    assert not set(found.items) & set(found.negatives)
    assert not set(found.items) & set(negative)
    assert set(found.seen_keys) == set(item_keys({*weights, *history}))
    assert np.all((found.weights >= 0) & (found.weights <= 3))


def test_decayed_mean_worked_by_hand():
    mean = decayed_mean(f32([1, 0], [0, 1]), f32(3, 1), NO_VECTORS, NONE)
    np.testing.assert_allclose(mean, np.array([3, 1]) / np.sqrt(10), rtol=1e-6)
    assert mean.dtype == np.float32
    away = decayed_mean(f32([1, 0], [0, 1]), f32(1, 1), f32([0, 1]), f32(2))  # (.5, .5) - .5 * (0, 1)
    np.testing.assert_allclose(away, [1, 0], atol=1e-6)


def test_many_dislikes_do_not_drown_one_like():
    mean = decayed_mean(f32([1, 0]), f32(1), np.tile(f32([0, 1]), (1000, 1)), np.full(1000, 3, dtype=np.float32))
    np.testing.assert_allclose(mean, np.array([1, -0.5]) / np.sqrt(1.25), rtol=1e-5)


@pytest.mark.parametrize(
    ("vectors", "weights", "negative_vectors", "negative_weights"),
    [
        (NO_VECTORS, NONE, NO_VECTORS, NONE),
        (NO_VECTORS, NONE, f32([1, 0]), f32(1)),  # dislikes alone give no direction
        (f32([0, 0]), f32(1), NO_VECTORS, NONE),  # an item with a blank text
        (f32([1, 0], [-1, 0]), f32(1, 1), NO_VECTORS, NONE),
        (f32([0.5, 0]), f32(1), f32([1, 0]), f32(1)),
        (f32([1, 0]), f32(0), NO_VECTORS, NONE),  # a weight of long ago that underflowed
    ],
)
def test_nothing_to_go_by_is_none(vectors, weights, negative_vectors, negative_weights):
    assert decayed_mean(vectors, weights, negative_vectors, negative_weights) is None
