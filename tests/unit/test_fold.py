"""Events to profile: hand-worked cases of the weight rule, and properties of the fold."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import EVENT_WEIGHTS, ProfileSettings
from raysys.profile.fold import canonical_kind, event_weight, evidence, expires_s, fold, latest, rating_weight
from raysys.types import Event, Interaction, Person, Profile, Saying

SETTINGS = ProfileSettings()


def event(
    event_id: str,
    kind: str,
    item_id: str | None,
    timestamp_s: float,
    value: float | None = None,
    text: str | None = None,
    expires_s: float | None = None,
) -> Event:
    return Event(event_id, kind, "u:ann", item_id, timestamp_s, value, text, expires_s=expires_s)


def said(event_id: str, text: str, timestamp_s: float, kind: str = "chat", value: float | None = None) -> Event:
    return event(event_id, kind, None, timestamp_s, value, text)


def texts(profile: Profile) -> list[str]:
    return [saying.text for saying in profile.sayings]


def weight_after(*happened: str | tuple[str, float]) -> float:
    """The weight of one item after these kinds, or (kind, value) pairs, one second apart."""
    pairs = [(one, None) if isinstance(one, str) else one for one in happened]
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
        "u:ann",
        4,
        (Interaction("mug", 2.0, 20.0, "like"), Interaction("tea", 3.0, 30.0, "purchase")),
        counts={"view": 1, "like": 1, "search": 1, "purchase": 1},
    )


def test_no_events_make_an_empty_profile():
    assert fold("u:ann", [], SETTINGS) == Profile("u:ann")


@pytest.mark.parametrize(
    ("happened", "expected"),
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
        (("an_unknown_kind",), 0.5),  # a weak signal
        (("like", ("an_unknown_kind", 5.0), "view"), 2.0),  # never an opinion, whatever its value
        (("view_item", "add_to_wishlist"), 2.0),
        (("click", "comment"), 1.0),
        (("chat",), 1.0),
        (("follow", "view"), 2.0),
        (("add_to_cart", "hide"), -3.0),
        ((("dwell", 15.0),), 0.5),
        ((("dwell", 15.0), ("dwell", 20.0), ("dwell", 10.0)), 2 / 3),  # the longest look, not the sum
        ((("dwell", 600.0),), 1.0),
        (("dwell",), 1.0),
        ((("dwell", 0.0),), 0.0),
        ((("dwell", -5.0),), 0.0),
        ((("dwell", math.nan),), 1.0),
        ((("dwell", 1.0), "click"), 1.0),
        (("dislike", ("dwell", 600.0)), -2.0),
    ],
)
def test_the_weight_rule(happened, expected):
    assert weight_after(*happened) == pytest.approx(expected)


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
    assert event_weight("like", 5.0, EVENT_WEIGHTS) == 2.0
    assert event_weight("rate", 5.0, EVENT_WEIGHTS) == pytest.approx(3.0)
    assert event_weight("review", None, EVENT_WEIGHTS) == 2.0


def test_what_the_settings_say_of_kinds():
    settings = ProfileSettings(event_weights={"view": 1.0, "tasted": 2.5}, custom_weight=0.25, dwell_full_s=10.0)
    kinds = ("tasted", "smelled", "purchase", "view")
    weights = fold("u:ann", [event(kind, kind, kind, 1.0) for kind in kinds], settings).interactions
    assert {i.item_id: i.weight for i in weights} == {"tasted": 2.5, "smelled": 0.25, "purchase": 0.0, "view": 1.0}
    assert event_weight("dwell", 5.0, {"dwell": 3.0}, dwell_full_s=10.0) == 1.5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("view_item", "view"),
        ("view_item_list", "view"),
        ("page_view", "view"),
        ("select_item", "click"),
        ("add_to_wishlist", "like"),
        ("begin_checkout", "add_to_cart"),
        ("view_search_results", "search"),
        ("rate", "rating"),
        ("thumbs_down", "dislike"),
        ("not_interested", "hide"),
        ("chat_message", "chat"),
        ("subscribe", "follow"),
        ("addToCart", "add_to_cart"),
        ("Add to cart", "add_to_cart"),
        ("add-to-cart", "add_to_cart"),
        ("PURCHASE", "purchase"),
        ("Something_New", "Something_New"),
        ("", ""),
    ],
)
def test_what_a_kind_goes_by(name, kind):
    assert canonical_kind(name) == kind


def test_every_kind_is_its_own_name():
    kinds = ["view", "click", "like", "dislike", "rating", "add_to_cart", "purchase", "review", "comment", "chat"]
    for kind in [*kinds, "share", "follow", "hide", "search", "dwell", *EVENT_WEIGHTS]:
        assert canonical_kind(kind) == kind


def test_the_kind_of_an_item_is_that_of_the_event_that_decided():
    events = [
        event("1", "add_to_wishlist", "a", 1.0),
        event("2", "view", "a", 2.0),
        event("3", "select_item", "b", 3.0),
    ]
    assert fold("u:ann", events, SETTINGS).interactions == (
        Interaction("a", 2.0, 2.0, "like"),
        Interaction("b", 1.0, 3.0, "click"),
    )


def test_events_are_counted_by_kind():
    events = [event("1", "view", "a", 1.0), event("2", "view_item", None, 2.0), event("3", "odd", None, 3.0)]
    assert fold("u:ann", [*events, events[0]], SETTINGS).counts == {"view": 2, "odd": 1}


def test_an_event_counts_until_the_moment_it_expires():
    events = [event("1", "like", "a", 1.0, expires_s=10.0), event("2", "view", "a", 2.0, expires_s=20.0)]
    events.append(said("3", "tea", 3.0))
    at = {now_s: fold("u:ann", events, SETTINGS, now_s) for now_s in (9.9, 10.0, 20.0)}
    assert [(i.weight, i.timestamp_s) for i in at[9.9].interactions] == [(2.0, 2.0)]
    assert [(i.weight, i.timestamp_s) for i in at[10.0].interactions] == [(1.0, 2.0)]
    assert (at[20.0].interactions, texts(at[20.0]), at[20.0].counts) == ((), ["tea"], {"chat": 1})
    assert [at[now_s].valid_until_s for now_s in at] == [10.0, 20.0, math.inf]
    assert fold("u:ann", events, SETTINGS).valid_until_s == 10.0


def test_how_long_events_are_kept():
    settings = ProfileSettings(ttl_days={"view": 1.0}, default_ttl_days=2.0)
    assert expires_s("view_item", 100.0, settings) == 86_500.0
    assert expires_s("purchase", 100.0, settings) == 172_900.0
    assert expires_s("view", 100.0, SETTINGS) is None


def test_the_latest_events_count():
    events = [event(str(n), "view", f"i{n}", float(n)) for n in range(5)]
    profile = fold("u:ann", events, ProfileSettings(max_events=2))
    assert ([i.item_id for i in profile.interactions], profile.version) == (["i3", "i4"], 5)


@pytest.mark.parametrize(
    ("kind", "value", "weight"),
    [
        ("chat", None, 1.0),
        ("search", None, 1.0),
        ("view_search_results", None, 1.0),
        ("comment", None, 0.5),
        ("an_unknown_kind", None, 0.5),
        ("review", None, 0.5),
        ("review", 5.0, 1.5),
        ("review", 4.0, 0.9),
        ("review", 1.0, -0.9),
        ("rating", 2.0, -0.3),
        ("dislike", None, -0.5),
    ],
)
def test_what_a_text_weighs(kind, value, weight):
    (saying,) = fold("u:ann", [said("e", " so sweet \n", 7.0, kind, value)], SETTINGS).sayings
    assert saying == Saying("so sweet", pytest.approx(weight), 7.0, canonical_kind(kind), "e")


def test_the_weights_of_texts_can_be_set():
    settings = ProfileSettings(text_weights={"review": 2.0}, default_text_weight=0.1)
    events = [said("1", "a", 1.0, "review", 1.0), said("2", "b", 2.0), said("3", "c", 3.0, "review")]
    assert [s.weight for s in fold("u:ann", events, settings).sayings] == pytest.approx([-3.6, 0.1, 2.0])


def test_texts_about_items_and_blank_ones():
    events = [event("1", "review", "tea", 1.0, 5.0, "lovely"), said("2", "  ", 2.0), said("3", "", 3.0)]
    profile = fold("u:ann", events, SETTINGS)
    assert (texts(profile), [i.weight for i in profile.interactions]) == (["lovely"], [3.0])


def test_a_text_said_again_counts_once_where_it_was_said_last():
    events = [said("1", "Green tea", 1.0), said("2", "mugs", 2.0), said("3", " green TEA ", 3.0, "search")]
    assert fold("u:ann", events, SETTINGS).sayings == (
        Saying("mugs", 1.0, 2.0, "chat", "2"),
        Saying("green TEA", 1.0, 3.0, "search", "3"),
    )


def test_the_most_recent_texts_stay():
    events = [said(str(n), f"text {n}", float(n)) for n in range(5)]
    assert texts(fold("u:ann", events, ProfileSettings(max_sayings=2))) == ["text 3", "text 4"]
    assert texts(fold("u:ann", events, ProfileSettings(max_sayings=0))) == []


def test_who_somebody_is_is_said_as_well():
    person = Person("u:ann", description=" a gardener ", updated_s=5.0)
    events = [said("1", "roses", 1.0), said("2", "A Gardener", 2.0), said("3", "spades", 9.0)]
    profile = fold("u:ann", events, SETTINGS, person=person)
    assert profile.person is person
    assert texts(profile) == ["roses", "a gardener", "spades"]
    assert profile.sayings[1] == Saying("a gardener", 1.0, 5.0, "description", "description")
    assert fold("u:ann", [], SETTINGS, person=Person("u:ann", description=" ")).sayings == ()


def test_what_is_muted_does_not_count():
    muted = frozenset({"tea", "text:2", "description"})
    person = Person("u:ann", description="a gardener", muted=muted)
    events = [
        event("1", "purchase", "tea", 1.0),
        said("0", "boats", 1.0),
        said("2", "Boats", 2.0),
        said("3", "ok", 3.0),
    ]
    profile = fold("u:ann", events, SETTINGS, person=person)
    assert profile.interactions == (Interaction("tea", 0.0, 1.0, "purchase"),)
    assert texts(profile) == ["ok"]
    again = fold("u:ann", [*events, said("4", "boats", 4.0)], SETTINGS, person=person)
    assert texts(again) == ["ok", "boats"]  # said anew


def test_muted_texts_take_no_place():
    person = Person("u:ann", muted=frozenset({"text:2", "text:4"}))
    events = [said(str(n), f"text {n}", float(n)) for n in range(5)]
    assert texts(fold("u:ann", events, ProfileSettings(max_sayings=2), person=person)) == ["text 1", "text 3"]


def test_what_is_pinned_stays():
    person = Person("u:ann", pinned=frozenset({"a", "text:0"}))
    events = [*(said(str(n), f"text {n}", float(n)) for n in range(9))]
    events += [event(item, "view", item, float(at)) for at, item in enumerate("abcd")]
    profile = fold("u:ann", events, ProfileSettings(max_sayings=2, max_interactions=2), person=person)
    assert texts(profile) == ["text 0", "text 8"]
    assert [i.item_id for i in profile.interactions] == ["a", "d"]


def test_places_of_the_latest():
    assert latest("abcd", 9, ()) == [0, 1, 2, 3]
    assert latest("abcd", 2, ()) == [2, 3]
    assert latest("abcd", 2, {"a", "b", "d"}) == [1, 3]
    assert latest("abcd", 0, {"a"}) == []


def test_the_names_of_evidence():
    assert evidence(Saying("x", 1.0, 1.0, "chat", "e1")) == "text:e1"
    assert evidence(Saying("x", 1.0, 1.0, "description", "description")) == "description"
    assert evidence(Saying("x", 1.0, 1.0, "description", "e2")) == "text:e2"


def test_a_late_event_lands_where_its_timestamp_puts_it():
    on_time = [event("1", "like", "a", 10.0), event("3", "dislike", "a", 30.0), event("4", "view", "b", 40.0)]
    late = event("2", "purchase", "a", 20.0)
    profile = fold("u:ann", [*on_time, late], SETTINGS)
    assert profile.version == 4
    assert profile.interactions == (Interaction("a", -2.0, 30.0, "dislike"), Interaction("b", 1.0, 40.0))


def test_at_one_moment_the_event_id_decides():
    like, dislike = event("1", "like", "a", 10.0), event("2", "dislike", "a", 10.0)
    assert fold("u:ann", [dislike, like], SETTINGS).interactions[0].weight == -2.0


def test_the_most_recent_items_stay():
    settings = ProfileSettings(max_interactions=2)
    events = [event("1", "like", "old", 1.0), event("2", "view", "b", 2.0), event("3", "view", "c", 3.0)]
    assert [i.item_id for i in fold("u:ann", events, settings).interactions] == ["b", "c"]
    again = [*events, event("4", "view", "old", 4.0)]
    assert fold("u:ann", again, settings).interactions == (
        Interaction("c", 1.0, 3.0),
        Interaction("old", 2.0, 4.0, "like"),
    )


KINDS = [*EVENT_WEIGHTS, "rating", "view_item", "unknown"]
EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from([f"e{n}" for n in range(12)]),  # few ids, so that they clash, with equal and other content
        st.sampled_from(KINDS),
        st.sampled_from(["a", "b", "c", "d", None]),
        st.integers(0, 5).map(float),
        st.none() | st.sampled_from([1.0, 3.0, 5.0]),
        st.sampled_from([None, "", "tea", "Tea ", "a red mug"]),
        st.sampled_from([None, 3.0, 7.0]),
    ),
    max_size=30,
)
EVIDENCE = st.frozensets(st.sampled_from(["a", "b", "text:e1", "text:e2", "text:e3", "description"]))
PEOPLE = st.none() | st.builds(
    Person, st.just("u:ann"), description=st.sampled_from([None, "tea", "likes red"]), pinned=EVIDENCE, muted=EVIDENCE
)
LIMITS = st.builds(ProfileSettings, max_events=st.integers(1, 12), max_sayings=st.integers(0, 3))
NOW_S = st.sampled_from([-math.inf, 2.0, 3.0, 5.0, 9.0])


@given(EVENTS, LIMITS, NOW_S, PEOPLE, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(events, settings, now_s, person, rng: random.Random):
    shuffled = rng.sample(events, len(events))
    assert fold("u:ann", shuffled, settings, now_s, person) == fold("u:ann", events, settings, now_s, person)


@given(EVENTS, LIMITS, NOW_S, PEOPLE, st.randoms(use_true_random=False))
def test_events_given_twice_change_nothing(events, settings, now_s, person, rng: random.Random):
    twice = rng.sample(events + events, 2 * len(events))
    assert fold("u:ann", twice, settings, now_s, person) == fold("u:ann", events, settings, now_s, person)


@given(EVENTS, NOW_S, PEOPLE)
def test_a_set_that_grows_ends_in_the_fold_of_all(events, now_s, person):
    arrived: dict[str, Event] = {}
    growing = fold("u:ann", [], SETTINGS, now_s, person)
    for late_or_not in events:
        arrived.setdefault(late_or_not.event_id, late_or_not)
        growing = fold("u:ann", arrived.values(), SETTINGS, now_s, person)
    by_time = sorted(arrived.values(), key=lambda e: e.timestamp_s)
    assert growing == fold("u:ann", by_time, SETTINGS, now_s, person)


@given(EVENTS, NOW_S)
def test_what_has_expired_was_never_there(events, now_s):
    once = list({e.event_id: e for e in events}.values())
    left = [e for e in once if e.expires_s is None or e.expires_s > now_s]
    now, never = fold("u:ann", once, SETTINGS, now_s), fold("u:ann", left, SETTINGS)
    assert (now.interactions, now.sayings, now.counts) == (never.interactions, never.sayings, never.counts)
    assert now.valid_until_s == never.valid_until_s > now_s


@given(EVENTS, st.integers(1, 5), st.integers(0, 3), PEOPLE)
def test_shape_of_every_profile(events, limit, max_sayings, person):
    settings = ProfileSettings(max_interactions=limit, max_sayings=max_sayings)
    profile = fold("u:ann", events, settings, person=person)
    items = [i.item_id for i in profile.interactions]
    muted, pinned = (frozenset(), frozenset()) if person is None else (person.muted, person.pinned)
    assert profile.version == len({e.event_id for e in events}) == sum(profile.counts.values())
    assert len(items) == len(set(items)) <= limit
    assert len({text.casefold() for text in texts(profile)}) == len(profile.sayings) <= max_sayings
    for listed in (profile.interactions, profile.sayings):
        assert [each.timestamp_s for each in listed] == sorted(each.timestamp_s for each in listed)
    assert all(abs(i.weight) <= (0.0 if i.item_id in muted else 3.0) for i in profile.interactions)
    assert not {evidence(saying) for saying in profile.sayings} & muted
    everything = fold("u:ann", events, SETTINGS, person=person)
    assert set(profile.interactions) <= set(everything.interactions)
    assert set(profile.sayings) <= set(everything.sayings)
    if not pinned:
        assert profile.interactions == everything.interactions[-limit:]
        assert profile.sayings == everything.sayings[len(everything.sayings) - len(profile.sayings) :]
