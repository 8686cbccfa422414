"""From a profile to words: hand-made people, so that every line of what is believed of them can be told in advance."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raysys.config import ProfileSettings
from raysys.profile.beliefs import Belief, Beliefs, Known, beliefs
from raysys.profile.fold import DAY_S, fold
from raysys.types import Event, Person

SETTINGS = ProfileSettings()
# Gardens point one way, engines another; nothing that is neither is known by its text.
GARDEN, ENGINE = np.eye(2, dtype=np.float32)
FIELDS: dict[str, dict[str, Any]] = {
    "rose": {"title": "Roses", "categories": ["garden", "flowers"], "tags": ["red"]},
    "fern": {"title": "Ferns", "categories": ["garden"], "tags": ["green", "garden"]},
    "oak": {"title": "Oaks", "categories": ["garden"]},
    "diesel": {"title": "Diesel", "tags": ["engines"]},
    "steam": {"title": "Steam", "categories": ["engines"]},
    "old": {"title": "Something out of the catalogue"},
}
VECTORS = {"rose": GARDEN, "fern": GARDEN, "oak": GARDEN, "diesel": ENGINE, "steam": ENGINE}
KNOWN = Known(VECTORS, FIELDS, np.zeros(2, dtype=np.float32))


def event(item_id: str | None, day: float, kind: str = "view", **more: Any) -> Event:
    return Event(f"{kind}-{item_id}-{day:g}", kind, "u:ann", item_id, day * DAY_S, **more)


# Gardens and engines in turn, months apart, so that no session stands out.
BOTH = [event("rose", 1, "like"), event("diesel", 2), event("fern", 3), event("steam", 4), event("oak", 5)]


def believed(
    events: Sequence[Event],
    pinned: Sequence[str] = (),
    muted: Sequence[str] = (),
    known: Known = KNOWN,
    settings: ProfileSettings = SETTINGS,
    **more: Any,
) -> Beliefs:
    person = Person("u:ann", pinned=frozenset(pinned), muted=frozenset(muted), updated_s=9.0, **more)
    profile = fold("u:ann", events, settings, person=person)
    unmuted = fold("u:ann", events, settings, person=replace(person, muted=frozenset()))
    return beliefs(profile, unmuted, settings, known)


def names(found: Belief) -> set[str]:
    return {each.evidence for each in found.evidence}


def by_member(found: Beliefs, member: str) -> Belief:
    (interest,) = [interest for interest in found.interests if member in names(interest)]
    return interest


def test_nothing_is_believed_of_a_stranger() -> None:
    assert believed([]) == Beliefs((), ())


def test_interests_are_told_apart_and_named_by_what_their_items_have_in_common() -> None:
    found = believed(BOTH, settings=ProfileSettings(session_gap_minutes=1e6)).interests
    assert [(names(each), each.words, each.kind) for each in found] == [
        ({"rose", "fern", "oak"}, "garden", "long_term"),
        ({"diesel", "steam"}, "engines", "long_term"),
    ]
    assert sum(each.share for each in found) == pytest.approx(1, abs=1e-3)
    assert not any(each.pinned or each.muted for each in found)


def test_the_session_stands_for_itself() -> None:
    found = believed([event("rose", 1), event("fern", 2), event("diesel", 3)]).interests
    assert [(each.kind, names(each)) for each in found] == [("session", {"diesel"}), ("long_term", {"rose", "fern"})]


def test_evidence_says_what_it_is_and_comes_by_weight() -> None:
    first, second = believed([event("rose", 1, "purchase"), event("fern", 2)]).interests[0].evidence
    assert (first.evidence, first.item_id, first.title, first.source) == ("rose", "rose", "Roses", "purchase")
    assert (first.timestamp_s, first.sentence, first.pinned, first.muted) == (DAY_S, None, False, False)
    assert (second.evidence, second.weight) == ("fern", 1.0)
    assert first.weight > second.weight


def test_a_label_that_most_of_the_weight_lacks_names_nothing() -> None:
    (interest,) = believed([event("rose", 1), event("fern", 1.001), event("oak", 1.002)]).interests
    assert interest.words == "garden"  # and neither flowers nor red nor green


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rose": {"title": "Toy Story"}, "fern": {"title": "Antz"}}, "like Antz and Toy Story"),
        ({"rose": {"title": "x" * 50 + " " + "y" * 50}}, "like fern and " + "x" * 50 + "…"),
        ({}, "like fern and rose"),
        ({"rose": {"tags": ["a", "b", "c", "d"]}, "fern": {"tags": ["a", "b", "c", "d"]}}, "a, b and c"),
        ({"rose": {"categories": ["a"], "tags": ["a"]}, "fern": {"categories": ["b"], "tags": ["a"]}}, "a and b"),
    ],
)
def test_words(fields: dict[str, dict[str, Any]], words: str) -> None:
    known = replace(KNOWN, fields=fields)
    (interest,) = believed([event("rose", 1), event("fern", 1.001)], known=known).interests
    assert interest.words == words


def test_an_item_without_a_vector_is_listed_and_has_no_share() -> None:
    found = believed([event("old", 1), event("rose", 2)]).interests
    assert [(names(each), each.share, each.words) for each in found] == [
        ({"rose"}, 1.0, "garden, flowers and red"),
        ({"old"}, 0.0, "like Something out of the catalogue"),
    ]


def test_texts_are_interests_of_their_own_with_shares_among_texts() -> None:
    said = [event(None, 1, "search", text="roses"), event(None, 2, "chat", text="old engines")]
    found = believed([*said, event("rose", 3)], description="a gardener").interests
    assert [(each.kind, each.words) for each in found] == [
        ("long_term", "garden, flowers and red"),
        ("description", "a gardener"),
        ("text", "roses"),
        ("text", "old engines"),
    ]
    assert sum(each.share for each in found[1:]) == pytest.approx(1, abs=1e-3)
    assert [each.evidence[0].evidence for each in found[1:]] == [
        "description",
        "text:search-None-1",
        "text:chat-None-2",
    ]
    assert [each.evidence[0].source for each in found[1:]] == ["description", "search", "chat"]
    assert found[2].evidence[0].sentence == "roses"


def test_dislikes_are_a_flat_list() -> None:
    events = [event("rose", 1, "dislike"), event("diesel", 2, "hide", text="too loud"), event("fern", 3)]
    found = believed(events, muted=["rose"])
    assert {each.evidence: each.muted for each in found.dislikes} == {
        "diesel": False,
        "text:hide-diesel-2": False,
        "rose": True,
    }
    assert all(each.weight < 0 for each in found.dislikes)
    assert [names(each) for each in found.interests] == [{"fern"}]


def test_a_muted_interest_keeps_its_id_and_its_members_and_has_no_share() -> None:
    before = by_member(believed(BOTH), "rose")
    after = believed(BOTH, muted=sorted(names(before)))
    muted = by_member(after, "rose")
    assert (muted.interest_id, names(muted), muted.words) == (before.interest_id, names(before), before.words)
    assert (muted.muted, muted.share) == (True, 0.0)
    assert all(each.muted for each in muted.evidence)
    assert after.interests[0] == by_member(after, "diesel")
    assert after.interests[0].share == 1.0


def test_two_muted_interests_stay_two() -> None:
    settings = ProfileSettings(session_gap_minutes=1e6)
    before = believed(BOTH, settings=settings).interests
    after = believed(BOTH, muted=[name for each in before for name in names(each)], settings=settings).interests
    assert [(each.interest_id, each.muted) for each in after] == [(each.interest_id, True) for each in before]


def test_one_muted_item_is_listed_beside_the_interest_that_it_left() -> None:
    after = believed(BOTH, muted=["rose"])
    assert names(by_member(after, "rose")) == {"rose"}
    assert names(by_member(after, "fern")) == {"fern", "oak"}
    assert by_member(after, "rose").interest_id != by_member(after, "fern").interest_id


def test_a_muted_text_is_listed_with_the_id_that_it_had() -> None:
    said = [event(None, 1, "search", text="roses"), event(None, 2, "search", text="ferns")]
    before = believed(said).interests[0]
    counting, muted = believed(said, muted=["text:search-None-1"]).interests
    assert (counting.words, counting.muted, counting.share) == ("ferns", False, 1.0)
    assert (muted.words, muted.muted, muted.interest_id) == ("roses", True, before.interest_id)


def test_what_is_muted_is_listed_however_old_it_is() -> None:
    settings = ProfileSettings(history=1)
    found = believed([event("rose", 1), event("fern", 2), event("oak", 3)], muted=["rose"], settings=settings)
    assert [(names(each), each.muted) for each in found.interests] == [({"oak"}, False), ({"rose"}, True)]
    assert found.interests[1].evidence[0].weight == 0.0


def test_an_id_outlives_later_events_of_the_same_weight() -> None:
    events = [event("rose", 1, "like"), event("fern", 2)]
    before = by_member(believed(events), "rose").interest_id
    assert by_member(believed([*events, event("oak", 2.001, "like")]), "rose").interest_id == before
    assert by_member(believed([*events, event("oak", 2.001, "purchase")]), "rose").interest_id != before


def test_an_interest_is_pinned_when_all_of_it_is() -> None:
    events = [event("rose", 1), event("fern", 1.001)]
    assert believed(events, pinned=["rose", "fern"]).interests[0].pinned
    (partly,) = believed(events, pinned=["rose"]).interests
    assert not partly.pinned
    assert {each.evidence: each.pinned for each in partly.evidence} == {"rose": True, "fern": False}
