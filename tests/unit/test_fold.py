"""Events to profile: hand-worked cases of the weight rule, and properties of the fold."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import EVENT_WEIGHTS, ProfileSettings
from raysys.profile.fold import canonical_kind, event_weight, fold, rating_weight
from raysys.types import Event, Interaction, Profile

SETTINGS = ProfileSettings()


def event(event_id: str, kind: str, item_id: str | None, timestamp_s: float, value: float | None = None) -> Event:
    return Event(event_id, kind, "u:ann", item_id, timestamp_s, value)


def weight_after(*said: str | tuple[str, float]) -> float:
    """The weight of one item after these kinds, or (kind, value) pairs, one second apart."""
    pairs = [(one, None) if isinstance(one, str) else one for one in said]
    events = [event(f"e{at}", kind, "a", at, value) for at, (kind, value) in enumerate(pairs)]
    (interaction,) = fold("u:ann", events, SETTINGS).interactions
    return interaction.weight


def test_a_profile_worked_by_hand():
    events = [
        event("1", "view", "tea", 10.0),
        event("2", "like", "mug", 20.0),
        event("3", "search", None, 25.0),
        event("4", "purchase", "tea", 30.0),
    ]
    assert fold("u:ann", events, SETTINGS) == Profile(
        "u:ann", 4, (Interaction("mug", 2.0, 20.0), Interaction("tea", 3.0, 30.0))
    )


def test_no_events_make_an_empty_profile():
    assert fold("u:ann", [], SETTINGS) == Profile("u:ann")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("view",), 1.0),
        (("view",) * 100, 1.0),  # repeated views do not add up
        (("view", "share", "view"), 2.0),  # of signals the strongest
        (("search",), 0.0),
        (("like", "dislike"), -2.0),  # the latest opinion
        (("dislike", "like"), 2.0),
        (("hide", "view", "click", "share"), -3.0),  # signals do not undo an opinion
        (("purchase", "view"), 3.0),
        (("dislike", "purchase"), 3.0),
        (("like", ("rating", 1.0)), -1.8),
        ((("rating", 5.0), ("rating", 3.0)), 0.6),
        (("like", "rating"), 2.0),  # a rating without a value says nothing
        (("like", ("rating", math.nan)), 2.0),
        (("rating",), 0.0),
        (("like", ("rating", 2.5)), 0.0),  # indifferent is an opinion too
        ((("rating", 1.0), "review"), -1.8),  # a review without a grade does not undo the rating
        (("like", ("review", 1.0)), -1.8),
        (("review",), 2.0),
        (("like", "an_unknown_kind"), 2.0),
        (("an_unknown_kind",), 0.0),
        (("view_item", "add_to_wishlist"), 2.0),
    ],
)
def test_the_weight_rule(said, expected):
    assert weight_after(*said) == pytest.approx(expected)


def test_an_opinion_that_the_settings_do_not_list_does_not_undo_another():
    settings = ProfileSettings(event_weights={"like": 2.0})
    events = [event("1", "like", "a", 1.0), event("2", "purchase", "a", 2.0)]
    assert fold("u:ann", events, settings).interactions[0].weight == 2.0


def test_a_negative_signal_of_the_settings_counts_when_it_is_the_strongest():
    settings = ProfileSettings(event_weights={"view": 1.0, "skip": -1.5})
    events = [event("1", "skip", "a", 1.0), event("2", "view", "a", 2.0)]
    assert fold("u:ann", events, settings).interactions[0].weight == -1.5


@pytest.mark.parametrize(
    ("value", "expected"), [(5, 3.0), (4, 1.8), (3, 0.6), (2, -0.6), (1, -1.8), (0, -3.0), (100, 3.0), (-7, -3.0)]
)
def test_rating_weight(value, expected):
    assert rating_weight(value) == pytest.approx(expected)


def test_a_value_grades_ratings_and_reviews_only():
    assert event_weight("dwell", 5.0, EVENT_WEIGHTS) == 1.0
    assert event_weight("rate", 5.0, EVENT_WEIGHTS) == pytest.approx(3.0)
    assert event_weight("review", None, EVENT_WEIGHTS) == 2.0


def test_names_of_google_analytics():
    names = {"view_item": "view", "select_item": "click", "add_to_wishlist": "like", "view_search_results": "search"}
    assert {name: canonical_kind(name) for name in names} == names
    for same in ("add_to_cart", "purchase", "share", "search", "something_new"):
        assert canonical_kind(same) == same


def test_a_late_event_lands_where_its_timestamp_puts_it():
    on_time = [event("1", "like", "a", 10.0), event("3", "dislike", "a", 30.0), event("4", "view", "b", 40.0)]
    late = event("2", "purchase", "a", 20.0)
    profile = fold("u:ann", [*on_time, late], SETTINGS)
    assert profile.version == 4
    assert profile.interactions == (Interaction("a", -2.0, 30.0), Interaction("b", 1.0, 40.0))


def test_at_one_moment_the_event_id_decides():
    like, dislike = event("1", "like", "a", 10.0), event("2", "dislike", "a", 10.0)
    assert fold("u:ann", [dislike, like], SETTINGS).interactions[0].weight == -2.0


def test_the_most_recent_items_stay():
    settings = ProfileSettings(max_interactions=2)
    events = [event("1", "like", "old", 1.0), event("2", "view", "b", 2.0), event("3", "view", "c", 3.0)]
    assert [i.item_id for i in fold("u:ann", events, settings).interactions] == ["b", "c"]
    again = [*events, event("4", "view", "old", 4.0)]
    assert fold("u:ann", again, settings).interactions == (Interaction("c", 1.0, 3.0), Interaction("old", 2.0, 4.0))


KINDS = [*EVENT_WEIGHTS, "rating", "view_item", "unknown"]
EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from([f"e{n}" for n in range(12)]),  # few ids, so that they clash, with equal and other content
        st.sampled_from(KINDS),
        st.sampled_from(["a", "b", "c", "d", None]),
        st.integers(0, 5).map(float),
        st.none() | st.sampled_from([1.0, 3.0, 5.0]),
    ),
    max_size=30,
)


@given(EVENTS, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(events, rng: random.Random):
    shuffled = rng.sample(events, len(events))
    assert fold("u:ann", shuffled, SETTINGS) == fold("u:ann", events, SETTINGS)


@given(EVENTS)
def test_events_given_twice_change_nothing(events):
    assert fold("u:ann", events + events, SETTINGS) == fold("u:ann", events, SETTINGS)


@given(EVENTS, st.integers(1, 5))
def test_shape_of_every_profile(events, limit):
    profile = fold("u:ann", events, ProfileSettings(max_interactions=limit))
    items = [i.item_id for i in profile.interactions]
    times = [i.timestamp_s for i in profile.interactions]
    assert profile.version == len({e.event_id for e in events})
    assert len(items) == len(set(items)) <= limit
    assert times == sorted(times)
    assert all(abs(i.weight) <= 3.0 for i in profile.interactions)
    everything = fold("u:ann", events, SETTINGS).interactions
    assert profile.interactions == everything[-limit:]
