"""What the people somebody follows like: pure functions against plain loops, and read from a real store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from support import DAY_S, FixedClock

from raysys.config import ProfileSettings
from raysys.keys import item_key, item_keys
from raysys.profile import follows
from raysys.profile.fold import fold
from raysys.profile.follows import (
    MOST_FRIENDS,
    MOST_LIKED,
    READ_AT_ONCE,
    SHRINK,
    STEP_DECAY,
    Friends,
    friends_of,
    likes_of,
    owners_of,
    together,
)
from raysys.state.protocol import History
from raysys.state.sqlite import SqliteState
from raysys.types import Event, FriendLikes, Interaction, Person, Profile

SETTINGS = ProfileSettings()
NOW_S = 1_000.0 * DAY_S
PURCHASE, LIKE, COMMENT = 1.0, 2 / 3, 1 / 3  # weights of what was done just now
ONE, TWO = 1 + SHRINK, 2 + SHRINK  # what one friend, or two, are divided by


def event(user: str, item_id: str | None, kind: str = "purchase", at_s: float = NOW_S, **more: object) -> Event:
    return Event(f"{user}-{item_id}-{kind}-{at_s}", kind, user, item_id, at_s, **more)  # type: ignore[arg-type]


def follower(*ids: str) -> Profile:
    return Profile("u:ann", 1, person=Person("u:ann", follows=tuple(f"user:{each}" for each in ids)))


def by_item(found: FriendLikes | None, items: str = "abcdefgh") -> dict[str, float]:
    """What is liked, by the names of the items."""
    if found is None:
        return {}
    names = {item_key(name): name for name in items}
    pairs = zip(found.keys.tolist(), found.weights.tolist(), strict=True)
    return {names[key]: pytest.approx(weight, rel=1e-5) for key, weight in pairs}


# Who is followed


def test_people_and_owners_are_told_apart_by_their_ids() -> None:
    person = Person("u:ann", follows=("user:bob", "ACME", "user:cid", "user:bob", "user:ann", "user:", "user"))
    assert friends_of(person) == ["u:bob", "u:cid"]
    assert owners_of(person) == ("ACME", "user")
    assert friends_of(None) == []
    assert owners_of(None) == ()


def test_the_first_in_the_list_count() -> None:
    ids = [f"friend-{n}" for n in range(MOST_FRIENDS + 5)]
    assert friends_of(follower(*ids).person) == [f"u:{each}" for each in ids[:MOST_FRIENDS]]


# What they like


def interactions(*kinds: str) -> Profile:
    events = [event("u:bob", "abcdefgh"[n], kind, NOW_S + n) for n, kind in enumerate(kinds)]
    return fold("u:bob", events, SETTINGS)


def test_only_what_they_acted_on_counts() -> None:
    looked = interactions("view", "click", "dwell", "search", "chat", "dislike", "hide", "rating")
    assert len(likes_of(looked, SETTINGS).keys) == 0
    acted = likes_of(interactions("like", "purchase", "share", "comment", "add_to_cart", "follow", "review"), SETTINGS)
    assert acted.keys.tolist() == [item_key(name) for name in "abcdefg"]
    given = [LIKE, PURCHASE, LIKE, COMMENT, LIKE, LIKE, LIKE]
    assert acted.weights.tolist() == pytest.approx([w * STEP_DECAY ** (6 - n) for n, w in enumerate(given)])


def test_the_latest_items_count() -> None:
    events = [event("u:bob", f"item-{n}", at_s=float(n)) for n in range(MOST_LIKED + 3)]
    likes = likes_of(fold("u:bob", reversed(events), SETTINGS), SETTINGS)
    assert likes.keys.tolist() == [item_key(f"item-{n}") for n in range(3, MOST_LIKED + 3)]


KINDS = ("like", "purchase", "view", "dislike", "comment")
PEOPLE = st.lists(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(KINDS), st.floats(-DAY_S, 900 * DAY_S)), max_size=6),
    max_size=5,
)


def interaction(item_id: str, kind: str, age_s: float) -> Interaction:
    return Interaction(item_id, SETTINGS.event_weights[kind], NOW_S - age_s, kind)


@given(PEOPLE, st.sets(st.sampled_from("abcd")))
def test_the_weight_of_an_item_is_the_faded_share_of_those_who_like_it(
    people: list[list[tuple]], own: set[str]
) -> None:
    once = [{item: interaction(item, *rest) for item, *rest in each} for each in people]
    profiles = [Profile("", 1, tuple(items.values())) for items in once]
    found = together((likes_of(profile, SETTINGS) for profile in profiles), item_keys(own), NOW_S)
    weights = by_hand([list(items.values()) for items in once], own)
    assert by_item(found) == weights
    assert (found is None) == (not weights)
    if found is not None:
        assert found.keys.tolist() == sorted(found.keys.tolist())
        assert ((found.weights > 0) & (found.weights < 1)).all()


def by_hand(people: list[list[Interaction]], own: set[str]) -> dict[str, float]:
    """The formula of the module, item by item."""
    acted = [[i for i in of_one if i.kind in ("like", "purchase", "comment")] for of_one in people]
    total, sums = SHRINK, dict[str, float]()
    for of_one in filter(None, acted):
        standing = 1 + len(own & {i.item_id for i in of_one})
        total += standing
        for steps_back, i in enumerate(reversed(of_one)):
            fade = STEP_DECAY**steps_back * 0.5 ** (max(NOW_S - i.timestamp_s, 0) / DAY_S / 365)
            sums[i.item_id] = sums.get(i.item_id, 0) + standing * min(i.weight, 3) / 3 * fade
    return {item: weight / total for item, weight in sums.items()}


def test_a_friend_of_the_same_taste_counts_more() -> None:
    bob, cid = (likes_of(fold("", [event("", item) for item in items], SETTINGS), SETTINGS) for items in ("ab", "cd"))
    found = by_item(together([bob, cid], item_keys("a"), NOW_S))
    assert found == {
        "b": 2 / (3 + SHRINK),
        "a": 2 * STEP_DECAY / (3 + SHRINK),
        "d": 1 / (3 + SHRINK),
        "c": STEP_DECAY / (3 + SHRINK),
    }


# Read from the store


class Counting(SqliteState):
    """A store that says whose events were read."""

    read: list[str]

    async def histories(self, users: Sequence[str], limit: int) -> dict[str, History]:
        self.read += users
        return await super().histories(users, limit)


@pytest_asyncio.fixture
async def state(tmp_path: Path) -> AsyncIterator[Counting]:
    store = Counting(tmp_path / "state.sqlite3")
    store.read = []
    yield store
    await store.close()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW_S)


@pytest.fixture
def friends(state: Counting, clock: FixedClock) -> Friends:
    return Friends(state, SETTINGS, clock)


async def found(friends: Friends, profile: Profile) -> dict[str, float]:
    likes, has_all = await friends.of(profile)
    assert has_all
    return by_item(likes)


async def test_who_follows_nobody_has_nothing(state: Counting, friends: Friends) -> None:
    await state.close()  # and needs no store
    for profile in (Profile("u:ann"), Profile("u:ann", 1, person=Person("u:ann", follows=("ACME",))), follower("ann")):
        assert await friends.of(profile) == (None, True)


async def test_strangers_and_silent_people_say_nothing(state: Counting, friends: Friends) -> None:
    await state.append([event("u:bob", "a", "view"), event("u:bob", None, "chat", text="a wish of mine")])
    assert await friends.of(follower("bob", "nobody")) == (None, True)


async def test_shares_are_of_those_of_whom_something_is_known(state: Counting, friends: Friends) -> None:
    await state.append([event("u:bob", "a"), event("u:cid", "a"), event("u:cid", "b", "like"), event("u:dan", "c")])
    assert await found(friends, follower("bob", "cid", "nobody")) == {
        "a": (1 + STEP_DECAY) / TWO,
        "b": LIKE / TWO,
    }
    assert await found(friends, follower("dan")) == {"c": PURCHASE / ONE}


async def test_the_next_call_counts_what_they_did_and_took_back(state: Counting, friends: Friends) -> None:
    profile = follower("bob", "cid")
    await state.append([event("u:bob", "a")])
    assert await found(friends, profile) == {"a": PURCHASE / ONE}
    await state.append([event("u:cid", "b"), event("u:bob", "a", "dislike", NOW_S + 1)])
    assert await found(friends, profile) == {"b": PURCHASE / ONE}


async def test_what_they_muted_or_had_erased_does_not_count(state: Counting, friends: Friends) -> None:
    profile = follower("bob", "cid")
    await state.append([event("u:bob", "a"), event("u:bob", "b"), event("u:cid", "c")])
    assert await found(friends, profile) == {"a": STEP_DECAY / TWO, "b": PURCHASE / TWO, "c": PURCHASE / TWO}
    await state.put_person(Person("u:bob", muted=frozenset({"a"})))
    await state.erase("u:cid")
    assert await found(friends, profile) == {"b": PURCHASE / ONE}
    await state.forget("u:bob", [event("u:bob", "b").event_id])
    assert await found(friends, profile) == {}


async def test_what_a_friend_did_before_login_counts(state: Counting, friends: Friends) -> None:
    await state.append([event("s:visit", "a")])
    assert await found(friends, follower("bob")) == {}
    await state.link("s:visit", "u:bob")
    assert await found(friends, follower("bob")) == {"a": PURCHASE / ONE}


async def test_what_expires_is_gone_at_that_moment(state: Counting, friends: Friends, clock: FixedClock) -> None:
    await state.append([event("u:bob", "a", expires_s=NOW_S + 10)])
    clock.at_s = NOW_S + 9
    assert await found(friends, follower("bob")) != {}
    clock.at_s = NOW_S + 10
    assert await found(friends, follower("bob")) == {}


async def test_it_fades_as_time_goes_by(state: Counting, friends: Friends, clock: FixedClock) -> None:
    await state.append([event("u:bob", "a")])
    clock.at_s = NOW_S + 365 * DAY_S
    assert await found(friends, follower("bob")) == {"a": PURCHASE / ONE / 2}


async def test_only_those_who_changed_are_read_again(state: Counting, friends: Friends) -> None:
    await state.append([event("u:bob", "a"), event("u:cid", "b")])
    await friends.of(follower("bob", "cid", "nobody"))
    assert state.read == ["u:bob", "u:cid", "u:nobody"]
    await state.append([event("u:cid", "c"), event("u:ann", "a")])
    await friends.of(follower("nobody", "cid", "bob"))
    assert state.read == ["u:bob", "u:cid", "u:nobody", "u:cid"]
    friends.forget(["u:bob", "u:unheard-of"])
    await friends.of(follower("bob", "cid"))
    assert state.read[4:] == ["u:bob"]


async def test_only_so_many_are_remembered(state: Counting, friends: Friends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follows, "MOST_KNOWN", 2)
    await state.append([event(f"u:{name}", name) for name in "abc"])
    for profile in (follower("a", "b"), follower("a"), follower("c"), follower("a")):
        await friends.of(profile)
    assert state.read == ["u:a", "u:b", "u:c"]
    assert await found(friends, follower("a", "b", "c")) == dict.fromkeys("abc", PURCHASE / (3 + SHRINK))


async def test_what_takes_too_long_counts_later(
    state: Counting, friends: Friends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follows, "DEADLINE_S", 0.0)
    names = [f"friend-{n}" for n in range(MOST_FRIENDS)]
    await state.append([event(f"u:{name}", name) for name in names])
    for n_read in range(READ_AT_ONCE, MOST_FRIENDS + 1, READ_AT_ONCE):
        likes, has_all = await friends.of(follower(*names))
        assert likes is not None
        assert likes.weights.tolist() == pytest.approx([1 / (n_read + SHRINK)] * n_read)
        assert has_all == (n_read == MOST_FRIENDS)
    assert sorted(state.read) == sorted(f"u:{name}" for name in names)  # each once


async def test_a_store_that_is_away_or_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(SqliteState):
        async def versions(self, users: Sequence[str]) -> dict[str, int]:
            await asyncio.Event().wait()
            return {}

    monkeypatch.setattr(follows, "DEADLINE_S", 0.001)
    store = Hanging(tmp_path / "state.sqlite3")
    assert await Friends(store, SETTINGS, FixedClock()).of(follower("bob")) == (None, False)
    await store.close()
    closed = SqliteState(tmp_path / "state.sqlite3")
    await closed.close()
    assert await Friends(closed, SETTINGS, FixedClock()).of(follower("bob")) == (None, False)


async def test_the_order_in_which_friends_are_read_changes_nothing(state: Counting, clock: FixedClock) -> None:
    names = [f"friend-{n}" for n in range(20)]
    rng = np.random.default_rng(0)
    events = [event(f"u:{name}", f"item-{rng.integers(9)}", "like", NOW_S - rng.random() * 1e7) for name in names * 5]
    await state.append(events)
    one, other = Friends(state, SETTINGS, clock), Friends(state, SETTINGS, clock)
    await other.of(follower(*names[::3]))
    (mine, _), (theirs, _) = await one.of(follower(*names)), await other.of(follower(*names))
    assert mine is not None
    assert theirs is not None
    np.testing.assert_array_equal(mine.keys, theirs.keys)
    np.testing.assert_array_equal(mine.weights, theirs.weights)
