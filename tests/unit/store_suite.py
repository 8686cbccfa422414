"""What every profile store must do. A new store subclasses ``ProfileStoreSuite`` and says how it is opened."""

import math
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from raysys.config import ProfileSettings
from raysys.errors import InvalidInput, Unavailable
from raysys.profile.fold import fold
from raysys.profile.store import ProfileStore
from raysys.types import Event, Interaction, Profile

SETTINGS = ProfileSettings()
OpenStore = Callable[[], ProfileStore]


def event(event_id: str, kind: str = "view", item_id: str | None = "a", at: float = 1.0, user: str = "u:ann") -> Event:
    return Event(event_id, kind, user, item_id, at)


class ProfileStoreSuite:
    """The behaviour of a store under ``SETTINGS``; ``open_store`` opens one more store on the same log."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[ProfileStore]:
        store = open_store()
        yield store
        store.close()

    def test_a_stranger_has_an_empty_profile(self, store):
        assert store.profile("u:nobody") == Profile("u:nobody")

    def test_no_events_are_fine(self, store):
        assert store.append([]) == []

    def test_the_next_read_sees_an_event(self, store):
        assert store.append([event("1", "like")]) == ["accepted"]
        assert store.profile("u:ann") == Profile("u:ann", 1, (Interaction("a", 2.0, 1.0),))
        store.append([event("2", "dislike", at=2.0)])
        assert store.profile("u:ann") == Profile("u:ann", 2, (Interaction("a", -2.0, 2.0),))

    def test_an_event_counts_once(self, store):
        assert store.append([event("1"), event("2"), event("1")]) == ["accepted", "accepted", "duplicate"]
        assert store.append([event("2"), event("3")]) == ["duplicate", "accepted"]
        assert store.append([event("2", "hide", "z", 9.0)]) == ["duplicate"]
        assert store.profile("u:ann") == Profile("u:ann", 3, (Interaction("a", 1.0, 1.0),))

    def test_users_are_apart(self, store):
        store.append([event("1", user="u:x"), event("2", item_id="b", user="s:x")])
        assert [i.item_id for i in store.profile("u:x").interactions] == ["a"]
        assert [i.item_id for i in store.profile("s:x").interactions] == ["b"]

    def test_a_late_event_lands_where_its_timestamp_puts_it(self, store):
        store.append([event("1", "like", at=10.0), event("2", "dislike", at=30.0)])
        store.profile("u:ann")
        store.append([event("3", "purchase", at=20.0)])
        assert store.profile("u:ann") == Profile("u:ann", 3, (Interaction("a", -2.0, 30.0),))

    def test_events_without_an_item_count_in_the_version(self, store):
        store.append([event("1", "search", item_id=None)])
        assert store.profile("u:ann") == Profile("u:ann", 1)

    def test_values_survive(self, store):
        rich = Event("1", "rating", "u:ann", "a", 1.5, 5.0, "très bien \x00 🙂", "rec-1", {"n": {"x": [1, None]}})
        store.append([rich])
        (interaction,) = store.profile("u:ann").interactions
        assert (interaction.weight, interaction.timestamp_s) == (pytest.approx(3.0), 1.5)

    def test_ids_of_any_spelling(self, store):
        odd = "'; DROP TABLE events; -- \x00 é 😀"
        store.append([event(odd, item_id=odd, user=odd)])
        assert store.profile(odd).interactions[0].item_id == odd

    @pytest.mark.parametrize(
        "bad",
        [
            event("bad", at=math.nan),
            event("bad", at=math.inf),
            event("bad\ud800"),
            Event("bad", "view", "u:ann", "a", 1.0, properties={"x": object()}),
            Event("bad", "view", "u:ann", "a", 1.0, text="\ud800"),
        ],
    )
    def test_a_batch_with_an_event_that_cannot_be_kept_changes_nothing(self, store, bad):
        with pytest.raises(InvalidInput, match=r"events\[1\]"):
            store.append([event("good"), bad])
        assert store.profile("u:ann").version == 0
        assert store.append([event("good")]) == ["accepted"]

    def test_another_store_on_the_log_sees_every_event_at_once(self, store, open_store):
        other = open_store()
        for n in range(20):
            writer, reader = (store, other) if n % 2 else (other, store)
            writer.append([event(str(n), item_id=f"i{n}", at=float(n))])
            assert reader.profile("u:ann").version == n + 1
            assert reader.profile("u:ann") == writer.profile("u:ann")
        assert other.append([event("3")]) == ["duplicate"]
        other.close()

    def test_a_restart_folds_the_same_profile(self, store, open_store):
        rng = random.Random(7)
        kinds = ["view", "like", "dislike", "purchase"]
        events = [event(str(n), rng.choice(kinds), f"i{rng.randrange(9)}", float(rng.randrange(50))) for n in range(60)]
        for one in events:
            store.append([one])
        before = store.profile("u:ann")
        store.close()
        again = open_store()
        assert again.profile("u:ann") == before == fold("u:ann", events, SETTINGS)
        again.close()

    def test_threads_lose_nothing(self, store):
        def write(writer: int) -> None:
            for n in range(25):
                store.append([event(f"{writer}-{n}", item_id=f"i{n}", at=float(n)), event(f"shared-{n}", at=float(n))])
                assert store.profile("u:ann").version > n

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.profile("u:ann").version == 4 * 25 + 25

    def test_a_closed_store_is_unavailable(self, store):
        store.close()
        store.close()
        with pytest.raises(Unavailable):
            store.append([event("1")])
        with pytest.raises(Unavailable):
            store.profile("u:ann")
