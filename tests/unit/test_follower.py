"""Following the published snapshot: taken once, kept when the next one is bad, pinned when asked."""

from pathlib import Path

import pytest

from raysys.errors import SnapshotError
from raysys.index.store import POINTER, SnapshotStore
from raysys.serving import follower
from raysys.serving.follower import Follower


class Taker:
    """Remembers what it was given; refuses the ids it is told to refuse."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.bad: dict[str, Exception] = {}
        self.n_refused = 0

    async def take(self, snapshot_id: str) -> None:
        if snapshot_id in self.bad:
            raise self.bad[snapshot_id]
        self.taken.append(snapshot_id)

    def on_refused(self) -> None:
        self.n_refused += 1


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path)


def point_to(store: SnapshotStore, snapshot_id: str) -> None:
    (store.root / POINTER).write_text(snapshot_id)


@pytest.fixture
async def following(store: SnapshotStore):
    """A follower whose polls a test makes itself, by ``poll``."""
    taker = Taker()
    made = Follower(store, taker.take, taker.on_refused)
    yield made, taker
    await made.stop()


async def poll(made: Follower) -> None:
    await made._try()


async def test_the_first_snapshot_is_taken_before_follow_returns(store: SnapshotStore, following) -> None:
    made, taker = following
    point_to(store, "one")
    await made.follow("current")
    assert (taker.taken, made.taken, made.refused) == (["one"], "one", None)


async def test_nothing_published_is_said_at_once(following) -> None:
    made, _ = following
    with pytest.raises(SnapshotError, match="raysys build"):
        await made.follow("current")
    assert made.taken is None


async def test_a_first_snapshot_that_cannot_be_taken_is_said_at_once(store: SnapshotStore, following) -> None:
    made, taker = following
    taker.bad["one"] = SnapshotError("damaged")
    point_to(store, "one")
    with pytest.raises(SnapshotError, match="damaged"):
        await made.follow("current")
    taker.bad.clear()
    await made.follow("current")  # and may be tried again
    assert made.taken == "one"


async def test_a_moved_pointer_is_followed_and_an_unmoved_one_left_alone(store: SnapshotStore, following) -> None:
    made, taker = following
    point_to(store, "one")
    await made.follow("current")
    await poll(made)
    point_to(store, "two")
    await poll(made)
    await poll(made)
    point_to(store, "one")  # a rollback is a move like any other
    await poll(made)
    assert taker.taken == ["one", "two", "one"]


@pytest.mark.parametrize(
    "error", [SnapshotError("damaged"), OSError("disk gone"), RuntimeError("a bug"), MemoryError()]
)
async def test_a_bad_snapshot_leaves_the_old_one_in_use_and_says_why(store: SnapshotStore, following, error) -> None:
    made, taker = following
    point_to(store, "one")
    await made.follow("current")
    taker.bad["two"] = error
    point_to(store, "two")
    await poll(made)
    assert made.taken == "one"
    assert str(error) in made.refused
    await poll(made)
    taker.bad.clear()
    await poll(made)
    assert (made.taken, made.refused, taker.n_refused) == ("two", None, 2)


async def test_a_damaged_snapshot_is_looked_at_less_and_less_often_and_another_one_at_once(
    store: SnapshotStore, following, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_s = 0.0
    monkeypatch.setattr(follower.time, "monotonic", lambda: at_s)
    monkeypatch.setattr(follower, "POLL_S", 1.0)
    made, taker = following
    point_to(store, "one")
    await made.follow("current")
    taker.bad["two"] = SnapshotError("damaged")
    point_to(store, "two")
    looked_s = []
    for second in range(20):
        at_s = float(second)
        if made._is_due():
            looked_s.append(second)
            await poll(made)
    assert looked_s == [0, 1, 3, 7, 15]
    point_to(store, "three")
    assert made._is_due()
    await poll(made)
    assert (made.taken, made.refused) == ("three", None)
    assert made._is_due()


async def test_going_back_after_a_refusal_clears_it(store: SnapshotStore, following) -> None:
    made, taker = following
    point_to(store, "one")
    await made.follow("current")
    taker.bad["two"] = SnapshotError("damaged")
    point_to(store, "two")
    await poll(made)
    point_to(store, "one")
    await poll(made)
    assert (made.taken, made.refused, taker.taken) == ("one", None, ["one"])


async def test_a_pinned_snapshot_stays_whatever_is_published(store: SnapshotStore, following) -> None:
    made, taker = following
    point_to(store, "one")
    await made.follow("pinned")
    point_to(store, "two")
    await poll(made)
    assert taker.taken == ["pinned"]
    await made.follow("current")
    assert taker.taken == ["pinned", "two"]


async def test_the_pointer_is_looked_at_without_being_asked(
    store: SnapshotStore, following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "POLL_S", 0)
    made, taker = following
    point_to(store, "one")
    await made.follow("current")
    point_to(store, "two")
    while made.taken != "two":
        await follower.asyncio.sleep(0)
    assert taker.taken == ["one", "two"]


async def test_it_starts_to_poll_once_and_stops(store: SnapshotStore, following) -> None:
    made, _ = following
    point_to(store, "one")
    await made.follow("current")
    task = made._task
    await made.follow("current")
    assert made._task is task
    await made.stop()
    assert task.done()
    await made.stop()  # twice is fine
