"""Profiles read from a real store: always those of the fold of everything, whoever writes, in whatever order."""

import asyncio
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FixedClock

from raysys.config import ProfileSettings
from raysys.errors import Unavailable
from raysys.profile.fold import fold
from raysys.profile.reader import Profiles
from raysys.state.sqlite import SqliteState
from raysys.types import Event, Person, Profile

SETTINGS = ProfileSettings()
NOW_S = 1_000.0


def event(event_id: str, item_id: str | None = "a", at: float = 1.0, kind: str = "view", **more: object) -> Event:
    return Event(event_id, kind, more.pop("user", "u:ann"), item_id, at, **more)  # type: ignore[arg-type]


@pytest.fixture
async def state(tmp_path):
    store = SqliteState(tmp_path / "state.sqlite3")
    yield store
    await store.close()


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW_S)


@pytest.fixture
def profiles(state, clock) -> Profiles:
    return Profiles(state, SETTINGS, clock)


async def test_a_stranger(profiles):
    assert await profiles.of("u:new") == Profile("u:new")
    assert await profiles.of("u:new") is await profiles.of("u:new")


async def test_the_next_read_sees_a_write(state, profiles):
    await state.append([event("1", kind="like")])
    first = await profiles.of("u:ann")
    assert [(i.item_id, i.weight) for i in first.interactions] == [("a", 2.0)]
    assert first.version == (await state.versions(["u:ann"]))["u:ann"]
    await state.append([event("2", kind="dislike", at=2.0)])
    second = await profiles.of("u:ann")
    assert [i.weight for i in second.interactions] == [-2.0]
    assert second.version > first.version


async def test_what_did_not_change_is_not_folded_again(state, profiles):
    await state.append([event("1"), event("2", user="u:bob")])
    first = await profiles.of("u:ann")
    await state.append([event("1"), event("3", user="u:bob")])  # nothing new of Ann
    assert await profiles.of("u:ann") is first


async def test_writes_through_another_store_are_seen(state, profiles, tmp_path):
    await state.append([event("1")])
    await profiles.of("u:ann")
    other = SqliteState(tmp_path / "state.sqlite3")
    await other.append([event("2", "b", 2.0)])
    await other.close()
    assert [i.item_id for i in (await profiles.of("u:ann")).interactions] == ["a", "b"]


async def test_what_expires_is_gone_at_that_moment(state, profiles, clock):
    await state.append([event("1", "a", expires_s=NOW_S + 10), event("2", "b", 2.0)])
    first = await profiles.of("u:ann")
    assert ([i.item_id for i in first.interactions], first.valid_until_s) == (["a", "b"], NOW_S + 10)
    clock.at_s = NOW_S + 9.9
    assert await profiles.of("u:ann") is first
    clock.at_s = NOW_S + 10
    later = await profiles.of("u:ann")
    assert ([i.item_id for i in later.interactions], later.version) == (["b"], first.version)
    assert await profiles.of("u:ann") is later
    await state.expire(clock.now_s())
    assert (await profiles.of("u:ann")).interactions == later.interactions


async def test_the_person_is_part_of_it(state, profiles):
    await state.append([event("1"), event("2", None, 2.0, "chat", text="something warm")])
    await profiles.of("u:ann")
    person = Person("u:ann", description="lives up north", muted=frozenset({"a"}), updated_s=9.0)
    version = await state.put_person(person)
    profile = await profiles.of("u:ann")
    assert (profile.version, profile.person) == (version, person)
    assert [saying.text for saying in profile.sayings] == ["something warm", "lives up north"]
    assert [i.weight for i in profile.interactions] == [0.0]


async def test_a_linked_session_answers_for_its_user(state, profiles):
    await state.append([event("1", "a"), event("2", "b", 2.0, user="s:tab")])
    assert [i.item_id for i in (await profiles.of("s:tab")).interactions] == ["b"]
    assert [i.item_id for i in (await profiles.of("u:ann")).interactions] == ["a"]
    await state.link("s:tab", "u:ann")
    of_user, of_session = await profiles.of("u:ann"), await profiles.of("s:tab")
    assert of_user == of_session
    assert (of_user.user, [i.item_id for i in of_user.interactions]) == ("u:ann", ["a", "b"])


async def test_who_was_erased_is_a_stranger(state, profiles):
    await state.append([event("1")])
    await profiles.of("u:ann")
    await state.erase("u:ann")
    assert await profiles.of("u:ann") == Profile("u:ann")
    await state.append([event("2", "b")])
    assert [i.item_id for i in (await profiles.of("u:ann")).interactions] == ["b"]


async def test_only_the_latest_events_are_read(state, clock):
    few = ProfileSettings(max_events=3)
    events = [event(str(n), f"i{n}", float(n)) for n in range(9)]
    await state.append(events)
    profile = await Profiles(state, few, clock).of("u:ann")
    assert [i.item_id for i in profile.interactions] == ["i6", "i7", "i8"]
    assert replace(profile, version=0) == replace(fold("u:ann", events, few), version=0)


async def test_the_profiles_used_longest_ago_make_room(state, clock):
    users = [f"u:{n}" for n in range(5)]
    await state.append([event(f"{user}-{n}", f"i{n}", user=user) for user in users for n in range(9)])
    bounded = Profiles(state, SETTINGS, clock, max_cached_interactions=20)
    first, second = await bounded.of("u:0"), await bounded.of("u:1")
    assert await bounded.of("u:0") is first  # both fit, and u:1 is now the one used longest ago
    await bounded.of("u:2")
    assert await bounded.of("u:0") is first
    again = await bounded.of("u:1")
    assert again is not second
    assert again == second


async def test_a_profile_too_large_to_keep_is_still_right(state, clock):
    await state.append([event(str(n), f"i{n}", float(n)) for n in range(9)])
    tiny = Profiles(state, SETTINGS, clock, max_cached_interactions=3)
    assert len((await tiny.of("u:ann")).interactions) == 9
    assert await tiny.of("u:ann") == await tiny.of("u:ann")


async def test_a_closed_store_is_unavailable(state, profiles):
    await state.append([event("1")])
    await profiles.of("u:ann")
    await state.close()
    with pytest.raises(Unavailable):
        await profiles.of("u:ann")


async def test_readers_at_once_see_every_write(state, profiles):
    async def write(writer: int) -> None:
        for n in range(10):
            await state.append([event(f"{writer}-{n}", f"{writer}-{n}", float(n))])
            seen = {i.item_id for i in (await profiles.of("u:ann")).interactions}
            assert {f"{writer}-{m}" for m in range(n + 1)} <= seen

    await asyncio.gather(*(write(writer) for writer in range(4)))
    assert len((await profiles.of("u:ann")).interactions) == 40


EVENTS = st.lists(
    st.builds(
        event,
        st.integers(0, 40).map(str),
        st.sampled_from(["a", "b", "c", None]),
        st.integers(0, 9).map(float),
        st.sampled_from(["view", "like", "dislike", "rating", "dwell", "chat", "search", "view_item", "my_own"]),
        value=st.sampled_from([None, 1.0, 4.0]),
        text=st.sampled_from([None, "tea", "Tea", "mugs"]),
        expires_s=st.sampled_from([None, NOW_S - 1, NOW_S + 1, NOW_S + 5]),
    ),
    max_size=30,
)
PEOPLE = st.builds(
    Person,
    st.just("u:ann"),
    description=st.sampled_from([None, "tea"]),
    pinned=st.frozensets(st.sampled_from(["a", "text:1"])),
    muted=st.frozensets(st.sampled_from(["b", "text:2", "description"])),
)


@asynccontextmanager
async def opened():
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteState(Path(folder) / "state.sqlite3")
        try:
            yield store
        finally:
            await store.close()


@settings(max_examples=25, deadline=None)
@given(EVENTS, st.lists(st.integers(1, 6), min_size=30, max_size=30), PEOPLE, st.sampled_from([1_000, 7]))
def test_read_after_every_batch_is_the_fold_of_all_so_far(events, sizes, person, max_events):
    made = ProfileSettings(max_events=max_events)

    async def replay() -> None:
        async with opened() as store:
            clock = FixedClock(NOW_S)
            profiles, left = Profiles(store, made, clock), list(events)
            kept: dict[str, Event] = {}
            for at, size in enumerate(sizes):
                batch, left = left[:size], left[size:]
                await store.append(batch)
                for one in batch:
                    kept.setdefault(one.event_id, one)
                if at == 2:
                    await store.put_person(person)
                clock.at_s += 0.5
                whole = fold("u:ann", kept.values(), made, clock.at_s, person if at >= 2 else None)
                read = await profiles.of("u:ann")
                assert read == replace(whole, version=read.version)
                if not left and at >= 2:
                    break

    asyncio.run(replay())
