"""What every state store must do. A new store subclasses ``StateStoreSuite`` and says how it is opened."""

import asyncio
import math
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from raysys.errors import InvalidInput, Unavailable
from raysys.state.protocol import History, StateStore
from raysys.types import Event, ItemChange, ItemDraft, Person

OpenStore = Callable[[], Awaitable[StateStore]]

ANN = Person(
    "u:ann",
    description="likes slow films, très lents 🙂",
    language="fr",
    attributes={"age": 41, "tags": ["a", {"b": None}], "score": 0.1},
    follows=("z", "a"),
    pinned=frozenset({"i1", "text:e1"}),
    muted=frozenset({"description"}),
    updated_s=1.25,
)
ODD = "'; DROP TABLE events; -- é 😀 {x}:*?[a] \n\t\x7f"


def event(
    event_id: str,
    at: float = 1.0,
    user: str = "u:ann",
    item_id: str | None = "a",
    text: str | None = None,
    expires_s: float | None = None,
) -> Event:
    return Event(event_id, "view", user, item_id, at, text=text, expires_s=expires_s)


def draft(item_id: str, title: str = "one", expected: int | None = None) -> ItemDraft:
    return ItemDraft(item_id, {"title": title}, f"text of {title}", expected)


def gone(item_id: str, expected: int | None = None) -> ItemDraft:
    return ItemDraft(item_id, None, expected=expected)


def typical_events(n: int) -> list[Event]:
    """As a client would send them: ids of 36 characters, every fourth with a text, the rest with a recommendation."""
    rng = random.Random(3)
    text = "something calm for a rainy evening, not too long"
    return [
        Event(
            str(uuid.UUID(int=rng.getrandbits(128))),
            "search" if i % 4 == 0 else "view",
            f"u:user-{rng.randrange(200):06d}",
            None if i % 4 == 0 else f"item-{rng.randrange(10_000):06d}",
            1.7e9 + rng.randrange(10**7) / 1000,
            text=text if i % 4 == 0 else None,
            recommendation_id=None if i % 4 == 0 else f"rec-{rng.getrandbits(64):016x}",
        )
        for i in range(n)
    ]


async def events_of(store: StateStore, user: str = "u:ann", limit: int = 1_000) -> tuple[Event, ...]:
    return (await read(store, user, limit)).events


async def read(store: StateStore, user: str = "u:ann", limit: int = 1_000) -> History:
    history = await store.history(user, limit)
    assert history is not None
    return history


async def log_of(store: StateStore, limit: int = 1_000) -> list[tuple[int, Event]]:
    """The whole log of events, read in pages of this size."""
    log: list[tuple[int, Event]] = []
    while page := await store.events_after(log[-1][0] if log else 0, limit):
        assert len(page) <= limit
        log += page
    sequences = [sequence for sequence, _ in log]
    assert sequences == sorted(set(sequences))
    return log


async def written(store: StateStore, drafts: Sequence[ItemDraft], now_s: float = 1.0) -> list[ItemChange]:
    changes = await store.change_items(drafts, now_s)
    assert None not in changes
    return [change for change in changes if change is not None]


def bits(vector: np.ndarray) -> tuple[np.dtype, tuple[int, ...], bytes]:
    return vector.dtype, vector.shape, vector.tobytes()


class StateStoreSuite:
    """The behaviour of a store; ``opener`` opens one more store on the same data, which is empty when a test starts.

    ``max_bytes_per_event``: what one of ``typical_events`` may take, everything counted.
    """

    max_bytes_per_event: ClassVar[float]

    @pytest.fixture
    def opener(self) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    async def open_store(self, opener: OpenStore) -> AsyncIterator[OpenStore]:
        """``opener``, with every store closed when the test ends."""
        stores: list[StateStore] = []

        async def open_and_remember() -> StateStore:
            stores.append(await opener())
            return stores[-1]

        yield open_and_remember
        for store in stores:
            await store.close()

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> StateStore:
        return await open_store()

    # Events and histories

    async def test_a_stranger_has_an_empty_history(self, store):
        assert await store.history("u:nobody", 10) == History("u:nobody")
        assert await store.history("s:nobody", 10) == History("s:nobody")
        assert await store.history("u:nobody", 10, known_version=0) is None
        assert await store.versions(["u:nobody", "s:nobody"]) == {"u:nobody": 0, "s:nobody": 0}

    async def test_nothing_to_write_or_read_is_fine(self, store):
        assert await store.append([]) == []
        assert await store.change_items([], 1.0) == []
        await store.put_vectors({})
        assert await store.versions([]) == await store.items([]) == await store.vectors([]) == {}
        assert await store.histories([], 10) == {}
        assert await store.events_after(0, 10) == await store.item_changes(0, 10) == []
        assert await store.last_sequence() == 0

    async def test_the_next_read_sees_an_event(self, store):
        assert await store.append([event("1")]) == ["accepted"]
        first = await read(store)
        assert first.events == (event("1"),)
        assert first.version > 0
        assert await store.append([event("2", at=2.0)]) == ["accepted"]
        second = await read(store)
        assert second.events == (event("2", at=2.0), event("1"))
        assert second.version > first.version

    async def test_every_field_of_an_event_survives(self, store):
        rich = Event(
            "1", "rating", "u:ann", "a", 1.1, -0.1, "très bien\0 🙂", "rec-1", {"n": {"x": [1, None, 0.1, ""]}}, 1e12
        )
        bare = Event("2", "search", "u:ann", None, -5.5)
        zero = Event("3", "", "u:ann", "", 0.0, 0.0, "", "", {}, 0.0)
        await store.append([rich, bare, zero])
        assert await events_of(store) == (rich, zero, bare)
        assert [one for _, one in await store.events_after(0, 10)] == [rich, bare, zero]

    async def test_an_event_counts_once(self, store):
        twice = [event("1"), event("2", at=2.0), event("1", at=9.0)]
        assert await store.append(twice) == ["accepted", "accepted", "duplicate"]
        assert await store.append([event("2", at=9.0), event("3", at=3.0)]) == ["duplicate", "accepted"]
        assert [one.timestamp_s for one in await events_of(store)] == [3.0, 2.0, 1.0]
        assert len(await log_of(store)) == 3

    async def test_a_duplicate_changes_nothing(self, store):
        await store.append([event("1")])
        before = await read(store)
        assert await store.append([event("1", at=9.0), event("1", user="u:bob")]) == ["duplicate", "duplicate"]
        assert await read(store) == before
        assert await read(store, "u:bob") == History("u:bob")

    async def test_users_are_apart(self, store):
        await store.append([event("1", user="u:x"), event("2", user="s:x"), event("3", user="u:x ")])
        for user, event_id in (("u:x", "1"), ("s:x", "2"), ("u:x ", "3")):
            history = await read(store, user)
            assert history.user == user
            assert history.events == (event(event_id, user=user),)

    async def test_events_come_by_time_and_id_newest_first_whenever_they_were_written(self, store):
        await store.append([event("b", 10.0), event("c", 30.0), event("a", 10.0)])
        await store.append([event("d", 20.0), event("e", -1.0), event("B", 10.0), event("é", 10.0)])
        expected = [("c", 30.0), ("d", 20.0), ("é", 10.0), ("b", 10.0), ("a", 10.0), ("B", 10.0), ("e", -1.0)]
        assert [(one.event_id, one.timestamp_s) for one in await events_of(store)] == expected
        for limit in range(1, 9):
            assert [(one.event_id, one.timestamp_s) for one in await events_of(store, limit=limit)] == expected[:limit]

    async def test_times_a_microsecond_apart_keep_their_order(self, store):
        times = [1.7e9 + n * 1e-6 for n in range(20)]
        await store.append([event(f"{99 - n}", at) for n, at in enumerate(times)])
        assert [one.timestamp_s for one in await events_of(store)] == times[::-1]

    async def test_a_known_version_is_not_read_again(self, store):
        await store.append([event("1")])
        version = (await read(store)).version
        assert await store.history("u:ann", 10, known_version=version) is None
        assert (await store.history("u:ann", 10, known_version=version - 1)) == await read(store)
        await store.append([event("2", user="u:bob")])
        assert await store.history("u:ann", 10, known_version=version) is None
        await store.append([event("3")])
        assert (await store.history("u:ann", 10, known_version=version)) == await read(store)

    async def test_several_histories_are_those_of_each(self, store):
        users = [f"u:{n}" for n in range(12)]
        await store.append([event(f"{user}-{n}", float(n), user, text="x") for n in range(7) for user in users[:9]])
        await store.put_person(replace(ANN, user="u:3"))
        await store.put_person(replace(ANN, user="u:10"))
        await store.append([event("before", 99.0, "s:visit")])
        await store.link("s:visit", "u:2")
        await store.erase("u:4")
        asked = [*reversed(users), "s:visit", "s:nobody"]
        for limit in (0, 3, 1_000):
            found = await store.histories(asked, limit)
            assert list(found) == asked
            assert found == {user: await store.history(user, limit) for user in asked}
        assert found["s:visit"].user == "u:2"
        assert found["u:4"] == History("u:4")
        assert found["u:11"] == History("u:11")

    async def test_the_version_of_a_person_is_the_sequence_of_their_last_write(self, store):
        await store.append([event("1"), event("2", user="u:bob"), event("3"), event("4", user="u:bob")])
        sequences = {one.event_id: sequence for sequence, one in await log_of(store)}
        versions = await store.versions(["u:ann", "u:bob", "u:nobody"])
        assert versions == {"u:ann": sequences["3"], "u:bob": sequences["4"], "u:nobody": 0}
        assert await store.last_sequence() == sequences["4"]

    async def test_an_identity_names_the_data(self, store, open_store):
        identity = await store.identity()
        assert len(identity) == 32
        await store.append([event("1")])
        assert await (await open_store()).identity() == await store.identity() == identity

    async def test_sequences_only_grow(self, store):
        seen = [await store.last_sequence()]
        for write in (
            lambda: store.append([event("1", at=100.0)]),
            lambda: store.append([event("2", at=1.0, user="s:x")]),
            lambda: store.put_person(ANN),
            lambda: store.link("s:x", "u:ann"),
            lambda: store.change_items([draft("i")], 1.0),
            lambda: store.put_vectors({b"k": np.zeros(2, np.float32)}, ["i"]),
            lambda: store.change_items([gone("i")], 0.5),
        ):
            await write()
            seen.append(await store.last_sequence())
        assert seen == sorted(set(seen))

    @pytest.mark.parametrize(
        "bad",
        [
            event("bad", at=math.nan),
            event("bad", at=math.inf),
            event("bad", expires_s=math.nan),
            replace(event("bad"), value=math.inf),
            event("bad\ud800"),
            event("bad\0"),
            event("bad", user="u:\0"),
            event("bad", user="u:\ud800"),
            event("bad", item_id="\0"),
            replace(event("bad"), kind="vi\0ew"),
            replace(event("bad"), properties={"x": object()}),
            replace(event("bad"), properties={"x": "\ud800"}),
            replace(event("bad"), properties={"x": 1 << 64}),
            event("bad", text="\ud800"),
        ],
    )
    async def test_a_batch_with_an_event_that_cannot_be_kept_changes_nothing(self, store, bad):
        with pytest.raises(InvalidInput, match=r"events\[1\]"):
            await store.append([event("good"), bad])
        assert await read(store) == History("u:ann")
        assert await store.last_sequence() == 0
        assert await store.append([event("good")]) == ["accepted"]

    @pytest.mark.parametrize("bad", ["u:\0", "u:\ud800"])
    async def test_a_key_that_cannot_be_kept_cannot_be_asked_for(self, store, bad):
        for call in (
            lambda: store.history(bad, 10),
            lambda: store.histories(["u:ann", bad], 10),
            lambda: store.versions(["u:ann", bad]),
            lambda: store.erase(bad),
            lambda: store.items(["a", bad]),
        ):
            with pytest.raises(InvalidInput):
                await call()

    async def test_ids_of_any_spelling(self, store):
        user = f"u:{ODD}"
        odd = Event(ODD, ODD, user, ODD, 1.0, text=ODD, recommendation_id=ODD, properties={ODD: ODD})
        person = Person(user, ODD, ODD, {ODD: ODD}, (ODD,), frozenset({ODD}), frozenset({ODD}))
        assert await store.append([odd, odd]) == ["accepted", "duplicate"]
        await store.put_person(person)
        history = await read(store, user)
        assert (history.events, history.person) == ((odd,), person)
        (change,) = await written(store, [ItemDraft(ODD, {ODD: ODD}, ODD)])
        assert await store.items([ODD]) == {ODD: change}
        assert (await store.link(f"s:{ODD}", user))[0] == "merged"
        assert (await store.erase(user))["events"] == 1
        assert set(await store.erased()) == {user, f"s:{ODD}"}

    async def test_another_store_on_the_data_sees_every_write_at_once(self, store, open_store):
        other = await open_store()
        for n in range(20):
            writer, reader = (store, other) if n % 2 else (other, store)
            await writer.append([event(str(n), float(n))])
            assert [one.event_id for one in await events_of(reader)] == [str(m) for m in range(n, -1, -1)]
            assert await read(reader) == await read(writer)
            (change,) = await written(writer, [draft("i", str(n))])
            assert await reader.items(["i"]) == {"i": change}
        assert await other.append([event("3")]) == ["duplicate"]

    async def test_what_was_written_is_there_after_all_stores_closed(self, store, open_store):
        await store.append([event("1"), event("2", user="s:x")])
        await store.put_person(ANN)
        await store.link("s:x", "u:ann")
        changes = await written(store, [draft("i"), gone("j")])
        await store.put_vectors({b"k": np.arange(3, dtype=np.float32)})
        before, last = await read(store), await store.last_sequence()
        await store.close()
        again = await open_store()
        assert await read(again) == await read(again, "s:x") == before
        assert await again.item_changes(0, 10) == changes
        assert (await again.vectors([b"k"]))[b"k"].tolist() == [0.0, 1.0, 2.0]
        assert await again.last_sequence() == last

    async def test_concurrent_writers_of_one_user_lose_nothing(self, store, open_store):
        stores = [store, await open_store(), await open_store()]

        async def write(writer: int) -> None:
            for n in range(15):
                batch = [event(f"{writer}-{n}", float(n)), event(f"shared-{n}", float(n))]
                await stores[writer % 3].append(batch)
                assert f"{writer}-{n}" in {one.event_id for one in await events_of(stores[(writer + 1) % 3])}

        await asyncio.gather(*(write(writer) for writer in range(6)))
        assert len(await events_of(store)) == len(await log_of(store)) == 6 * 15 + 15

    async def test_events_keep_the_order_they_were_given_in(self, store):
        ids = [str(n) for n in range(50)]
        random.Random(1).shuffle(ids)
        await store.append([event(event_id) for event_id in ids[:30]])
        await store.append([event(event_id) for event_id in ids[30:]])
        assert [one.event_id for _, one in await log_of(store)] == ids

    @pytest.mark.parametrize("limit", [1, 7, 30, 100])
    async def test_the_log_can_be_read_in_pages_of_any_size(self, store, limit):
        for n in range(30):
            await store.append([event(f"{n}", -n, user=f"u:{n % 3}")])
            await written(store, [draft(f"i{n % 4}")])
        assert [one.event_id for _, one in await log_of(store, limit)] == [str(n) for n in range(30)]
        assert await store.events_after(await store.last_sequence(), limit) == []

    async def test_a_follower_of_the_log_meets_every_event_once(self, store, open_store):
        """A sequence must not appear after a higher one was read, however many write at once."""
        writers = [store, await open_store()]
        follower = await open_store()
        met: list[str] = []

        async def write(writer: int) -> None:
            for n in range(40):
                await writers[writer % 2].append([event(f"{writer}-{n}", user=f"u:{writer}")])

        async def follow() -> None:
            last = 0
            while len(met) < 160:
                page = await follower.events_after(last, 10)
                met.extend(one.event_id for _, one in page)
                last = page[-1][0] if page else last
                await asyncio.sleep(0)

        await asyncio.wait_for(asyncio.gather(follow(), *(write(n) for n in range(4))), 60.0)
        assert sorted(met) == sorted(f"{writer}-{n}" for writer in range(4) for n in range(40))

    # People

    async def test_a_person_survives_and_is_replaced(self, store):
        version = await store.put_person(ANN)
        assert await read(store) == History("u:ann", version, (), ANN)
        assert await store.versions(["u:ann"]) == {"u:ann": version}
        bare = Person("u:ann")
        later = await store.put_person(bare)
        assert later > version
        assert await read(store) == History("u:ann", later, (), bare)

    @pytest.mark.parametrize(
        "bad",
        [
            Person("u:\0"),
            Person("u:\ud800"),
            Person("u:ann", description="\ud800"),
            Person("u:ann", attributes={"x": object()}),
            Person("u:ann", updated_s=math.nan),
        ],
    )
    async def test_a_person_who_cannot_be_kept_changes_nothing(self, store, bad):
        with pytest.raises(InvalidInput, match="person"):
            await store.put_person(bad)
        assert await read(store) == History("u:ann")
        assert await store.last_sequence() == 0

    # Sessions

    async def test_a_link_makes_the_events_of_a_session_the_users(self, store):
        await store.append([event("1", 1.0), event("2", 2.0, "s:x"), event("3", 3.0), event("4", 4.0, "s:other")])
        outcome, version = await store.link("s:x", "u:ann")
        assert outcome == "merged"
        assert version == await store.last_sequence()
        expected = History("u:ann", version, (event("3", 3.0), event("2", 2.0), event("1", 1.0)))
        assert await read(store) == await read(store, "s:x") == expected
        assert await store.versions(["u:ann", "s:x"]) == {"u:ann": version, "s:x": version}
        assert await store.history("s:x", 10, known_version=version) is None
        assert [(one.event_id, one.user) for _, one in await log_of(store)] == [
            ("1", "u:ann"),
            ("2", "u:ann"),
            ("3", "u:ann"),
            ("4", "s:other"),
        ]
        assert await store.append([event("2", 9.0)]) == ["duplicate"]

    async def test_later_events_of_a_linked_session_are_the_users(self, store, open_store):
        other = await open_store()
        await store.link("s:x", "u:ann")
        before = (await read(store)).version
        assert await other.append([event("1", user="s:x"), event("1", user="s:x")]) == ["accepted", "duplicate"]
        history = await read(store)
        assert history.events == (event("1"),)
        assert history.version > before
        assert await store.versions(["s:x"]) == {"s:x": history.version}

    async def test_a_link_of_strangers_is_remembered(self, store):
        outcome, version = await store.link("s:x", "u:ann")
        assert outcome == "merged"
        assert version > 0
        assert await read(store) == await read(store, "s:x") == History("u:ann", version)

    async def test_a_link_made_again_changes_nothing(self, store):
        await store.append([event("1", user="s:x")])
        _, version = await store.link("s:x", "u:ann")
        assert await store.link("s:x", "u:ann") == ("already", version)
        await store.append([event("2", user="s:x")])
        later = (await read(store)).version
        assert await store.link("s:x", "u:ann") == ("already", later)
        assert await store.last_sequence() == later

    async def test_a_session_of_another_user_is_a_conflict(self, store):
        await store.append([event("1", user="s:x"), event("2", user="u:bob")])
        await store.link("s:x", "u:ann")
        before = await read(store), await read(store, "u:bob"), await store.last_sequence()
        assert await store.link("s:x", "u:bob") == ("conflict", before[1].version)
        assert await store.link("s:x", "u:nobody") == ("conflict", 0)
        assert (await read(store), await read(store, "u:bob"), await store.last_sequence()) == before

    async def test_links_made_at_once_agree(self, store, open_store):
        stores = [store, await open_store()]
        await store.append([event("1", user="s:x")])
        users = [f"u:{n % 4}" for n in range(12)]
        outcomes = await asyncio.gather(*(stores[n % 2].link("s:x", user) for n, user in enumerate(users)))
        owner = (await read(store, "s:x")).user
        expected = {"merged": 1, "already": users.count(owner) - 1, "conflict": len(users) - users.count(owner)}
        kinds = [outcome for outcome, _ in outcomes]
        assert {kind: kinds.count(kind) for kind in expected} == expected
        assert (await events_of(store, owner)) == (event("1", user=owner),)

    async def test_the_person_of_a_session_becomes_the_users_unless_there_is_one(self, store):
        await store.put_person(Person("s:x", description="of x"))
        await store.link("s:x", "u:ann")
        assert (await read(store)).person == Person("u:ann", description="of x")
        await store.put_person(Person("s:y", description="of y"))
        await store.link("s:y", "u:ann")
        assert (await read(store)).person == Person("u:ann", description="of x")
        version = await store.put_person(Person("s:y", description="new"))
        assert await read(store, "s:y") == History("u:ann", version, (), Person("u:ann", description="new"))

    @pytest.mark.parametrize(
        ("session", "user"),
        [("u:ann", "u:ann"), ("s:x", "s:x"), ("s:x", "s:y"), ("u:bob", "u:ann"), ("x", "u:ann"), ("s:x", ""), ("", "")],
    )
    async def test_only_a_session_is_linked_and_only_to_a_user(self, store, session, user):
        with pytest.raises(InvalidInput, match="key"):
            await store.link(session, user)
        assert await store.last_sequence() == 0

    @pytest.mark.parametrize(("session", "user"), [("s:\0", "u:ann"), ("s:x", "u:\ud800")])
    async def test_a_link_that_cannot_be_kept_is_refused(self, store, session, user):
        with pytest.raises(InvalidInput):
            await store.link(session, user)
        assert await store.last_sequence() == 0

    # Erasure and expiry

    async def test_an_erased_person_is_gone_from_every_place(self, store):
        await store.append([event("1"), event("2", user="s:x"), event("3", user="s:y"), event("4", user="u:bob")])
        await store.put_person(ANN)
        await store.link("s:x", "u:ann")
        await store.link("s:y", "u:ann")
        await store.put_vectors({b"1": np.zeros(2, np.float32), b"2": np.ones(2, np.float32)})
        bob = await read(store, "u:bob")
        counts = await store.erase("u:ann", [b"1", b"absent"])
        assert counts == {"events": 3, "person": 1, "links": 2, "vectors": 1}
        for key in ("u:ann", "s:x", "s:y"):
            assert await read(store, key) == History(key)
        assert await store.versions(["u:ann", "s:x"]) == {"u:ann": 0, "s:x": 0}
        assert [one.event_id for _, one in await log_of(store)] == ["4"]
        assert list(await store.vectors([b"1", b"2"])) == [b"2"]
        assert await read(store, "u:bob") == bob
        assert {name: (await store.size())[name] for name in ("events", "people", "vectors")} == {
            "events": 1,
            "people": 1,
            "vectors": 1,
        }

    async def test_who_was_erased_is_remembered_with_their_sessions(self, store, open_store):
        await store.append([event("1"), event("2", user="u:bob")])
        await store.link("s:x", "u:ann")
        await store.erase("u:ann")
        erased = await (await open_store()).erased()
        assert set(erased) == {"u:ann", "s:x"}
        assert all(at_s > 1.7e9 for at_s in erased.values())

    async def test_erasing_a_stranger_removes_nothing_and_is_remembered(self, store):
        await store.append([event("1")])
        before = await read(store), await store.last_sequence()
        assert await store.erase("u:nobody") == {"events": 0, "person": 0, "links": 0, "vectors": 0}
        assert set(await store.erased()) == {"u:nobody"}  # their past may stand in the event files of a build
        assert (await read(store), await store.last_sequence()) == before

    async def test_erasing_again_finds_nothing_and_keeps_the_time(self, store):
        await store.append([event("1")])
        await store.erase("u:ann")
        erased = await store.erased()
        assert sum((await store.erase("u:ann")).values()) == 0
        assert await store.erased() == erased

    async def test_an_erased_person_starts_anew_with_a_higher_version(self, store):
        await store.append([event("1"), event("2")])
        await store.put_person(ANN)
        old = (await read(store)).version
        await store.erase("u:ann")
        assert (await store.history("u:ann", 10, known_version=old)) == History("u:ann")
        assert await store.append([event("1", 5.0)]) == ["accepted"]
        history = await read(store)
        assert history.version > old
        assert history == History("u:ann", history.version, (event("1", 5.0),))

    async def test_a_session_of_an_erased_user_stands_alone_again(self, store):
        await store.link("s:x", "u:ann")
        await store.erase("u:ann")
        await store.append([event("1", user="s:x")])
        assert await events_of(store, "s:x") == (event("1", user="s:x"),)
        assert await read(store) == History("u:ann")
        assert (await store.link("s:x", "u:bob"))[0] == "merged"

    async def test_erasing_a_linked_session_erases_its_user(self, store):
        await store.append([event("1"), event("2", user="s:x")])
        await store.link("s:x", "u:ann")
        assert (await store.erase("s:x"))["events"] == 2
        assert await read(store) == History("u:ann")
        assert set(await store.erased()) == {"u:ann", "s:x"}

    async def test_a_visitor_can_be_erased(self, store):
        await store.append([event("1", user="s:x")])
        await store.put_person(Person("s:x"))
        assert await store.erase("s:x") == {"events": 1, "person": 1, "links": 0, "vectors": 0}
        assert set(await store.erased()) == {"s:x"}

    async def test_a_person_erased_while_others_write_leaves_whole_events_or_none(self, store, open_store):
        other = await open_store()
        writes = [store.append([event(str(n)), event(f"b{n}", user="u:bob")]) for n in range(30)]
        await asyncio.gather(*writes[:15], other.erase("u:ann"), *writes[15:])
        left = [one.event_id for _, one in await log_of(store) if one.user == "u:ann"]
        assert sorted(left) == sorted(one.event_id for one in await events_of(store))
        assert len(await events_of(store, "u:bob")) == 30

    async def test_expired_events_are_removed(self, store):
        await store.append(
            [
                event("1", expires_s=10.0),
                event("2", expires_s=20.0),
                event("3"),
                event("4", user="u:bob", expires_s=5.0),
            ]
        )
        before = await read(store)
        assert len(before.events) == 3
        assert await store.expire(4.9) == 0
        assert await read(store) == before
        assert await store.expire(10.0) == 2
        after = await store.history("u:ann", 10, known_version=before.version)
        assert after is not None, "a history that lost events is not the one known"
        assert {one.event_id for one in after.events} == {"2", "3"}
        assert after.version > before.version
        assert [one.event_id for _, one in await log_of(store)] == ["2", "3"]
        assert await store.expire(10.0) == 0

    async def test_events_expire_in_parts(self, store):
        await store.append([event(str(n), expires_s=float(n)) for n in range(10)])
        assert [await store.expire(8.0, limit=4) for _ in range(4)] == [4, 4, 1, 0]
        assert [one.event_id for one in await events_of(store)] == ["9"]

    async def test_expired_events_of_a_linked_session_go_too(self, store):
        await store.append([event("1", user="s:x", expires_s=1.0)])
        await store.link("s:x", "u:ann")
        assert await store.expire(2.0) == 1
        assert await events_of(store) == ()
        assert await log_of(store) == []

    # Items

    async def test_a_changed_item_is_read_back(self, store):
        fields = {"title": "très 🙂\0", "n": [1, 0.1, None, {"x": True}], "": ""}
        (change,) = await written(store, [ItemDraft("a", fields, "a text\nof two lines")], now_s=5.5)
        assert change == ItemChange(change.sequence, "a", fields, "a text\nof two lines", 5.5, 5.5)
        assert change.sequence == await store.last_sequence()
        assert await store.items(["a", "never"]) == {"a": change}
        assert await store.item_changes(0, 10) == [change]

    async def test_the_latest_change_of_an_item_stands_alone(self, store):
        first, _ = await written(store, [draft("a", "one"), draft("b")], now_s=1.0)
        (second,) = await written(store, [draft("a", "two")], now_s=2.0)
        assert (second.fields, second.changed_s, second.created_s) == ({"title": "two"}, 2.0, 1.0)
        assert second.sequence > first.sequence
        assert await store.items(["a"]) == {"a": second}
        assert [change.item_id for change in await store.item_changes(0, 10)] == ["b", "a"]

    async def test_a_deleted_item_stays_in_the_log_and_can_come_back(self, store):
        await written(store, [draft("a")], now_s=1.0)
        (deleted,) = await written(store, [gone("a")], now_s=2.0)
        assert deleted == ItemChange(deleted.sequence, "a", None, "", 2.0, 1.0)
        assert deleted.deleted
        assert await store.items(["a"]) == {"a": deleted}
        assert await store.item_changes(0, 10) == [deleted]
        (back,) = await written(store, [draft("a", "back")], now_s=3.0)
        assert (back.created_s, back.deleted) == (1.0, False)
        assert await store.item_changes(deleted.sequence, 10) == [back]

    async def test_an_item_never_heard_of_can_be_deleted(self, store):
        (deleted,) = await written(store, [gone("of the snapshot")], now_s=2.0)
        assert await store.items(["of the snapshot"]) == {"of the snapshot": deleted}

    async def test_a_change_of_an_unexpected_state_is_not_written(self, store):
        assert await store.change_items([draft("a", "x", expected=7)], 1.0) == [None]
        (first,) = await written(store, [draft("a", "one", expected=0)])
        assert await store.change_items(
            [draft("a", "two", expected=0), gone("a", expected=first.sequence + 1)], 1.0
        ) == [
            None,
            None,
        ]
        assert await store.items(["a"]) == {"a": first}
        assert await store.last_sequence() == first.sequence
        (second,) = await written(store, [draft("a", "two", expected=first.sequence)])
        assert await store.items(["a"]) == {"a": second}

    async def test_a_conflict_keeps_only_its_own_draft_from_being_written(self, store):
        (first,) = await written(store, [draft("b")])
        left, none, right = await store.change_items([draft("a"), draft("b", "x", expected=0), draft("c")], 1.0)
        assert none is None
        assert [change.item_id for change in await store.item_changes(0, 10)] == ["b", "a", "c"]
        assert await store.items(["a", "b", "c"]) == {"a": left, "b": first, "c": right}

    async def test_drafts_of_one_item_apply_in_order(self, store):
        first, second, none = await store.change_items(
            [draft("a", "one", expected=0), draft("a", "two"), draft("a", "three", expected=0)], 1.0
        )
        assert first.sequence < second.sequence
        assert none is None
        assert await store.items(["a"]) == {"a": second}
        assert await store.item_changes(0, 10) == [second]

    async def test_one_of_many_writers_that_expect_the_same_state_wins(self, store, open_store):
        stores = [store, await open_store()]
        drafts = [draft("a", str(n), expected=0) for n in range(10)]
        results = await asyncio.gather(*(stores[n % 2].change_items([one], 1.0) for n, one in enumerate(drafts)))
        (winner,) = [change for (change,) in results if change is not None]
        assert await store.items(["a"]) == {"a": winner}

    @pytest.mark.parametrize(
        "bad",
        [
            draft("\0"),
            draft("\ud800"),
            ItemDraft("a", {"x": object()}),
            ItemDraft("a", {"x": "\ud800"}),
            ItemDraft("a", {}, text="\ud800"),
        ],
    )
    async def test_drafts_with_one_that_cannot_be_kept_change_nothing(self, store, bad):
        with pytest.raises(InvalidInput, match=r"items\[1\]"):
            await store.change_items([draft("good"), bad], 1.0)
        assert await store.item_changes(0, 10) == []
        assert await store.last_sequence() == 0

    @pytest.mark.parametrize("limit", [1, 4, 100])
    async def test_item_changes_can_be_read_in_pages_of_any_size(self, store, limit):
        for n in range(20):
            await store.change_items([draft(f"i{n % 12}", str(n)), draft(f"j{n}")], float(n))
            await store.append([event(str(n))])
        pages: list[ItemChange] = []
        while page := await store.item_changes(pages[-1].sequence if pages else 0, limit):
            assert len(page) <= limit
            pages += page
        assert [change.sequence for change in pages] == sorted({change.sequence for change in pages})
        ids = [change.item_id for change in pages]
        assert sorted(ids) == sorted([f"i{n}" for n in range(12)] + [f"j{n}" for n in range(20)])
        assert {change.item_id: change for change in pages} == await store.items(ids)

    # Vectors

    async def test_vectors_survive_bit_for_bit(self, store):
        rng = np.random.default_rng(5)
        vectors = {bytes([n]) * 32: rng.normal(size=64).astype(np.float32) for n in range(50)}
        vectors[b"\0\xff\r\n" * 8] = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38], np.float32)
        vectors[b"view" * 8] = np.arange(20, dtype=np.float32)[::2]
        await store.put_vectors(vectors)
        found = await store.vectors([*vectors, b"absent"])
        assert {key: bits(vector) for key, vector in found.items()} == {
            key: bits(vector) for key, vector in vectors.items()
        }

    async def test_a_vector_is_replaced(self, store):
        await store.put_vectors({b"k": np.zeros(4, np.float32)})
        await store.put_vectors({b"k": np.ones(3, np.float32)})
        assert (await store.vectors([b"k"]))[b"k"].tolist() == [1.0, 1.0, 1.0]
        assert (await store.size())["vectors"] == 1

    @pytest.mark.parametrize("bad", [np.zeros(2), np.zeros((1, 2), np.float32)])
    async def test_vectors_of_another_shape_or_type_are_refused(self, store, bad):
        with pytest.raises(InvalidInput, match="float32"):
            await store.put_vectors({b"a": np.zeros(2, np.float32), b"b": bad})
        assert await store.vectors([b"a", b"b"]) == {}

    async def test_items_whose_vectors_came_get_new_sequences(self, store):
        await written(store, [draft("b"), gone("c")], now_s=4.0)
        first, deleted, third = await written(store, [draft("a"), gone("b"), draft("c")], now_s=4.0)
        await store.put_vectors({b"k": np.zeros(2, np.float32)}, ["a", "b", "never"])
        changes = await store.item_changes(0, 10)
        assert [change.item_id for change in changes] == ["b", "c", "a"]
        assert changes[:2] == [deleted, third]
        assert replace(changes[2], sequence=first.sequence) == first
        assert changes[2].sequence == await store.last_sequence() > third.sequence
        assert await store.item_changes(third.sequence, 10) == [changes[2]]
        assert await store.change_items([draft("a", expected=first.sequence)], 1.0) == [None]
        await store.put_vectors({}, ["c"])
        assert [change.item_id for change in await store.item_changes(0, 10)] == ["b", "a", "c"]

    # The store itself

    async def test_size_counts_what_is_there(self, store):
        await store.append([event("1"), event("2", user="u:bob"), event("3")])
        await store.put_person(ANN)
        await store.put_person(Person("u:cid"))
        await store.link("s:x", "u:ann")
        await written(store, [draft("a"), draft("b"), gone("a")])
        await store.put_vectors({b"k": np.zeros(2, np.float32)})
        size = await store.size()
        assert {name: size[name] for name in ("events", "people", "items", "vectors")} == {
            "events": 3,
            "people": 3,  # ann, bob and cid: everyone who has a version
            "items": 2,  # a deleted one included
            "vectors": 1,
        }
        assert size["bytes"] > 0

    async def test_a_typical_event_takes_no_more_than_stated(self, store):
        before = (await store.size())["bytes"]
        events = typical_events(2_000)
        for start in range(0, len(events), 100):
            await store.append(events[start : start + 100])
        size = await store.size()
        assert size["events"] == 2_000
        per_event = (size["bytes"] - before) / size["events"]
        print(f"{per_event:.0f} bytes per event")
        assert 50 < per_event <= self.max_bytes_per_event

    async def test_a_closed_store_is_unavailable(self, store):
        await store.append([event("1")])
        await store.close()
        await store.close()
        for call in (
            lambda: store.append([event("2")]),
            lambda: store.history("u:ann", 10),
            lambda: store.histories(["u:ann"], 10),
            lambda: store.versions(["u:ann"]),
            lambda: store.put_person(ANN),
            lambda: store.link("s:x", "u:ann"),
            lambda: store.erase("u:ann"),
            store.erased,
            lambda: store.expire(1.0),
            lambda: store.events_after(0, 1),
            lambda: store.change_items([draft("a")], 1.0),
            lambda: store.item_changes(0, 1),
            lambda: store.items(["a"]),
            store.last_sequence,
            lambda: store.put_vectors({b"k": np.zeros(2, np.float32)}),
            lambda: store.vectors([b"k"]),
            store.size,
        ):
            with pytest.raises(Unavailable):
                await call()
