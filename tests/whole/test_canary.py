"""A snapshot for a share of the people: who gets it, what begins and ends it, and that no answer is of two."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_shelf import A, B, C, D, copy_of, shelf, swap
from support import FixedClock, Shop, post
from typer.testing import CliRunner

from raysys.cli import app
from raysys.config import EncoderSettings, ProfileSettings, ServeSettings
from raysys.encoder.hashing import HashEncoder
from raysys.errors import (
    SnapshotConflict,
    SnapshotDamaged,
    SnapshotError,
    SnapshotMismatch,
    SnapshotRefused,
    Unavailable,
)
from raysys.evaluation.experiments import Experiment
from raysys.index.canary import Canary
from raysys.index.retention import collect
from raysys.index.store import CANARY, POINTER, SnapshotStore, write_manifest
from raysys.publishing.activate import start_canary
from raysys.publishing.listing import listing
from raysys.serving.alone import Alone
from raysys.serving.encoders import MOST, Encoders, encode_by
from raysys.serving.follower import Follower
from raysys.serving.shard_host import ShardHost, recall_thread
from raysys.state.open import open_state
from raysys.training.local import build_here

OTHER_DIM = 48
USERS = [f"u:person-{n}" for n in range(2_000)]
ADMIN = "/v1/admin/snapshots"


def canary_of(snapshot_id: str, share: float) -> Canary:
    return Canary(snapshot_id=snapshot_id, share=share, beside=A, at="2026-01-01T00:00:00+00:00")


# Who gets it


@settings(max_examples=30)
@given(st.floats(0.001, 1), st.floats(0.001, 1), st.sampled_from([A, B, C]))
def test_a_larger_share_only_adds_people_and_each_is_close_to_what_was_asked(
    one: float, other: float, snapshot_id: str
) -> None:
    small, large = (
        {user for user in USERS if canary_of(snapshot_id, share).has(user)} for share in sorted((one, other))
    )
    assert small <= large
    for share, people in zip(sorted((one, other)), (small, large), strict=True):
        spread = (share * (1 - share) / len(USERS)) ** 0.5
        assert abs(len(people) / len(USERS) - share) <= 5 * spread


def test_the_share_of_all_has_everybody() -> None:
    assert all(canary_of(B, 1.0).has(user) for user in USERS)


@pytest.mark.parametrize("name", ["x", B, f"canary {B}"[7:], "canary"])
def test_who_is_in_an_arm_says_nothing_of_the_side(name: str) -> None:
    experiment, half = Experiment(name, {"a": 1, "b": 1}), canary_of(B, 0.5)
    both = sum(half.has(user) and experiment.arm_of(user) == "a" for user in USERS)
    assert abs(both / len(USERS) - 0.25) < 0.04
    other = canary_of(C, 0.5)
    both = sum(half.has(user) and other.has(user) for user in USERS)
    assert abs(both / len(USERS) - 0.25) < 0.04  # the next canary has other people


# What begins and ends it


def test_it_stands_beside_the_published_one_and_any_move_of_the_pointer_ends_it(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    assert store.canary() is None
    made = store.set_canary(B, 0.05, C)
    assert store.canary() == made
    (store.root / POINTER).write_text(A)  # by whomever: that instant it is over
    assert store.canary() is None
    (store.root / POINTER).write_text(C)
    assert store.canary() == made
    store.publish(A)
    assert store.canary() is None
    store.rollback()
    assert (store.current_id(), store.canary()) == (C, None)


def test_one_that_a_kill_left_behind_does_not_come_back_with_a_rollback(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2)
    store.set_canary(A, 0.5, B)
    left = (tmp_path / CANARY).read_bytes()
    store.promote()
    (tmp_path / CANARY).write_bytes(left)  # as where the process was killed after the pointer had moved
    assert store.canary() is None
    assert store.rollback() == (A, B)
    assert store.canary() is None


def test_it_is_promoted_by_one_move_and_gone_back_from(tmp_path: Path) -> None:
    store = shelf(tmp_path, 1)
    shelf_more = shelf(tmp_path / "more", 2)
    shelf_more.folder(B).rename(store.folder(B))
    store.set_canary(B, 0.2, A, ("a reason",))
    assert store.promote(expected=B) == (A, B)
    last = store.history()[-1]
    assert (store.current_id(), last.by, last.forced, store.canary()) == (B, "promote", ("a reason",), None)
    assert store.rollback() == (B, A)


def test_what_contradicts_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    with pytest.raises(SnapshotConflict, match="there is no canary"):
        store.withdraw()
    with pytest.raises(SnapshotConflict, match=f"{C} is published: everybody"):
        store.set_canary(C, 0.1, C)
    with pytest.raises(SnapshotConflict, match=f"meanwhile {C} was published in place of {A}"):
        store.set_canary(B, 0.1, A)
    made = store.set_canary(B, 0.1, C)
    with pytest.raises(SnapshotConflict, match=f"{B} is the canary; promote or withdraw"):
        store.set_canary(A, 0.1, C)
    for act in (store.promote, store.withdraw):
        with pytest.raises(SnapshotConflict, match=f"{B} is the canary, not {A}"):
            act(A)
    assert (store.current_id(), store.canary()) == (C, made)
    swap(store.folder(B) / "shard-00000/items.arrow", lambda content: content[:-1])
    with pytest.raises(SnapshotDamaged):
        store.promote()
    assert (store.current_id(), store.canary()) == (C, made)
    assert store.withdraw() == made
    assert store.canary() is None


def test_a_file_that_cannot_be_read_leaves_everybody_where_they_were(tmp_path: Path) -> None:
    store = shelf(tmp_path, 2)
    store.set_canary(A, 0.5, B)
    for content in (b"{", b"", b'{"snapshot_id": "x", "share": 7}'):
        (tmp_path / CANARY).write_bytes(content)
        assert store.canary() is None


def test_it_is_never_collected(tmp_path: Path) -> None:
    store = shelf(tmp_path, 4)
    store.set_canary(A, 0.5, D)
    (tmp_path / f".{CANARY}.half.tmp").touch()
    assert sorted(one.path for one in collect(store, keep=1)) == [f".{CANARY}.half.tmp", f"snapshots/{B}"]
    (row,) = [row for row in listing(store, 0.0).snapshots if row.is_canary]
    assert (row.snapshot_id, row.marks()) == (A, "canary")
    store.withdraw()
    assert [one.path for one in collect(store, keep=1)] == [f"snapshots/{A}"]


def test_it_is_verified_and_compared_before_anybody_gets_it(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotRefused, match="2 -> 1 shards"):
        start_canary(store, C, 0.05, n_asked=5)
    refusal = store.refusal(C)
    assert refusal is not None
    assert store.canary() is None
    forced = start_canary(store, C, 0.05, force=True, n_asked=5).canary
    assert forced.forced == refusal.reasons
    again = start_canary(store, C, 0.5)  # nothing is compared anew, and what was set aside stays set aside
    assert (again.comparison, again.canary.share, again.canary.forced) == (None, 0.5, forced.forced)
    store.withdraw()
    swap(store.folder(B) / "shard-00000/vectors.npy", lambda content: content[:-1] + b"\x77")
    with pytest.raises(SnapshotDamaged, match="SHA-256"):
        start_canary(store, B, 0.05, force=True)
    assert store.canary() is None
    assert (store.refusal(B) is None, store.current_id()) == (False, A)


# Followed by every server


class Taker:
    """Remembers what it was told; refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.bad: dict[str, Exception] = {}

    async def take(self, snapshot_id: str) -> None:
        self.told.append(snapshot_id)

    async def take_canary(self, canary: Canary | None) -> None:
        if canary is not None and canary.snapshot_id in self.bad:
            raise self.bad[canary.snapshot_id]
        self.told.append(None if canary is None else (canary.snapshot_id, canary.share))

    def news(self) -> list[Any]:
        told, self.told = self.told, []
        return told


@asynccontextmanager
async def following(store: SnapshotStore) -> AsyncIterator[tuple[Follower, Taker, Callable[[], Any]]]:
    taker = Taker()
    follower = Follower(store, taker.take, take_canary=taker.take_canary)
    await follower.follow("current")
    assert taker.news() == [store.current_id()]
    yield follower, taker, lambda: follower.follow("current")
    await follower.stop()


async def test_servers_are_told_of_the_share_and_of_the_end(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    async with following(store) as (follower, taker, poll):
        for share in (0.05, 0.05, 0.5):
            store.set_canary(A, share, C)
            await poll()
        assert taker.news() == [(A, 0.05), (A, 0.5)]
        assert follower.status()["canary"] == {"snapshot_id": A, "share": 0.5}
        assert [one.snapshot_id for one in _held(store)] == [A, C]
        store.withdraw()
        await poll()
        assert taker.news() == [None]
        assert [one.snapshot_id for one in _held(store)] == [C]


def _held(store: SnapshotStore) -> list[Any]:
    return [row for row in listing(store, 0.0).snapshots if row.is_held]


async def test_a_promoted_one_is_taken_before_it_ends_and_another_one_after(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    async with following(store) as (_, taker, poll):
        store.set_canary(A, 0.5, C)
        await poll()
        store.promote()
        await poll()
        assert taker.news() == [(A, 0.5), A, None]  # nobody goes back in between
        store.set_canary(B, 0.5, A)
        await poll()
        store.publish(C)
        await poll()
        assert taker.news() == [(B, 0.5), None, C]  # which was compared with A, not with C
        store.set_canary(A, 0.5, C)
        await poll()
        store.promote()
        store.set_canary(B, 0.5, A)
        await poll()  # two acts since the last look
        assert taker.news() == [(A, 0.5), A, None, (B, 0.5)]
        assert [row.snapshot_id for row in _held(store)] == [A, B]


async def test_a_bad_canary_changes_nothing_but_what_is_said(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    async with following(store) as (follower, taker, poll):
        taker.bad[A] = SnapshotError("damaged")
        store.set_canary(A, 0.5, C)
        await poll()
        assert (follower.taken, follower.refused, follower.canary, taker.news()) == (C, None, None, [])
        assert follower.status()["canary_refused"] == "SnapshotError: damaged"
        taker.bad.clear()
        await poll()
        assert taker.news() == []  # looked at again after a pause, as it takes reading all of it
        store.withdraw()
        await poll()
        assert (follower.canary_refused, taker.news()) == (None, [])
        taker.bad[B] = Unavailable("the encoder is away")
        store.set_canary(B, 0.5, C)
        await poll()
        taker.bad.clear()
        await poll()
        assert (follower.canary_refused, taker.news()) == (None, [(B, 0.5)])


async def test_a_pinned_server_and_one_that_cannot_have_two_take_no_canary(tmp_path: Path) -> None:
    store = shelf(tmp_path, 3)
    store.set_canary(A, 0.5, C)
    taker = Taker()
    pinned = Follower(store, taker.take, take_canary=taker.take_canary)
    await pinned.follow(C)
    await pinned.stop()
    without = Follower(store, taker.take)
    await without.follow("current")
    await without.stop()
    assert taker.news() == [C, C]


async def test_a_shard_holds_both_and_the_next_one_beside_them(
    store: SnapshotStore, shop: Shop, tmp_path: Path
) -> None:
    for snapshot_id in (D, "20260106T000000-aaaaaa"):
        copy_of(shop.snapshot(2), store, snapshot_id)
    state, thread = open_state(str(tmp_path / "state.sqlite3")), recall_thread(1)
    host = ShardHost(0, 2, store, thread, state, ProfileSettings(), FixedClock())

    def held() -> list[str]:
        return host.status()["snapshots"]

    await host.prepare(D)  # the one before
    await host.prepare(A)
    await host.keep(B)
    assert held() == [B, A]
    await host.prepare(D)  # published while the canary runs
    assert held() == [B, A, D]
    await host.keep(None)
    await host.prepare(A)  # and back: it stayed for that, as some gateway may still have asked for it
    assert set(held()) == {B, A, D}
    await host.prepare(A)
    assert held() == [D, A]
    await host.keep(D)
    await host.prepare(D)  # promoted
    await host.keep(None)
    await host.prepare(B)
    assert held() == [D, B]
    await host.stop()
    await state.close()


# The encoders


@pytest.fixture(scope="module")
def of_other_encoder(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a snapshot of the same items by another encoder; without behaviour, so its lists differ too."""
    settings = shop.settings(2, root=tmp_path_factory.mktemp("other"))
    encoder = EncoderSettings(kind="hash", dim=OTHER_DIM)
    build_here(settings.model_copy(update={"encoder": encoder, "events": None}), FixedClock())
    other = SnapshotStore(settings.index.root)
    return other.folder(other.current_id())


@pytest.fixture
def two_models(store: SnapshotStore, of_other_encoder: Path) -> SnapshotStore:
    """A, B of one encoder, D of another one."""
    copy_of(of_other_encoder, store, D)
    return store


async def test_each_snapshot_has_its_encoder_and_two_share_one(two_models: SnapshotStore) -> None:
    encoders = Encoders(two_models, None, 1)
    one, same, other = [await encoders.of(snapshot_id) for snapshot_id in (A, B, D)]
    assert one is same
    assert (one.identity.dim, other.identity.dim) == (64, OTHER_DIM)
    found = await encoders.hold([A, D, B, "20260109T000000-aaaaaa"])
    assert isinstance(found["20260109T000000-aaaaaa"], Unavailable)
    texts = ["bababa", "quasar", "zeppelin", "bababa", "quasar"]
    asked = [("bababa", "query", A), ("quasar", "query", D), ("zeppelin", "item", B), ("bababa", "query", D)]
    answers = encode_by(found, [*asked, ("quasar", "query", "20260109T000000-aaaaaa")])  # type: ignore[list-item]
    for text, encoder, answer in zip(texts, (one, other, one, other), answers, strict=False):
        assert answer.tolist() == pytest.approx(encoder.encode([text], "query")[0].tolist())
    assert isinstance(answers[-1], Unavailable)
    encoders.keep_only([other])
    assert encoders.identities == [other.identity]


async def test_there_are_never_more_than_two_and_the_one_asked_last_stays(two_models: SnapshotStore) -> None:
    copy_of(two_models.folder(D), two_models, "20260108T000000-aaaaaa")
    third = HashEncoder(OTHER_DIM, query_prompt="find: ")
    _made_by(two_models, "20260108T000000-aaaaaa", third)
    encoders = Encoders(two_models, None, 1)
    for snapshot_id in (A, D, A, "20260108T000000-aaaaaa"):
        await encoders.of(snapshot_id)
        assert len(encoders.identities) <= MOST
    assert [identity.query_prompt for identity in encoders.identities] == ["", "find: "]
    assert encoders.identities[0].dim == 64


def _made_by(store: SnapshotStore, snapshot_id: str, encoder: HashEncoder) -> None:
    """Let the manifest say that this encoder made the snapshot."""
    manifest = store.manifest(snapshot_id)
    settings = manifest.encoder.model_copy(update={"query_prompt": encoder.identity.query_prompt})
    changes = {"identity": asdict(encoder.identity), "encoder": settings}
    write_manifest(store.folder(snapshot_id), manifest.model_copy(update=changes))


async def test_a_given_encoder_counts_for_what_it_made_alone(two_models: SnapshotStore) -> None:
    given = EncoderSettings(kind="hash", dim=OTHER_DIM)
    encoders = Encoders(two_models, given, 1)
    assert [(await encoders.of(snapshot_id)).identity.dim for snapshot_id in (A, D, B)] == [64, OTHER_DIM, 64]


async def test_a_snapshot_whose_encoder_cannot_be_had_is_refused(two_models: SnapshotStore) -> None:
    manifest = two_models.manifest(D)
    write_manifest(two_models.folder(D), manifest.model_copy(update={"identity": manifest.identity | {"name": "x"}}))
    encoders = Encoders(two_models, None, 1)
    await encoders.of(A)
    with pytest.raises(SnapshotMismatch, match="another encoder"):
        await encoders.of(D)
    assert [identity.dim for identity in encoders.identities] == [64]


# One gateway


class Gateway:
    """A gateway in this process, whose polls the test makes."""

    def __init__(self, store: SnapshotStore, state: Path, **settings: Any) -> None:
        settings = {"impressions": {"folder": None}, "ranking": {"trending": 0.0}} | settings
        self.alone = Alone(ServeSettings(index_root=str(store.root), state=str(state), **settings), None)
        transport = httpx.ASGITransport(self.alone.app())
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def poll(self) -> dict[str, Any]:
        """Look at the store; what ``/readyz`` says then."""
        await self.alone.follow("current")
        return dict((await self.http.get("/readyz")).json())

    async def ask(self, **body: Any) -> dict[str, Any]:
        return await post(self.http, "/v1/recommendations", **{"limit": 5, **body})

    async def metric(self, name: str) -> dict[str, float]:
        """Values by side."""
        text = (await self.http.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith(f'{name}{{snapshot="')]
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines}

    async def close(self) -> None:
        await self.http.aclose()
        await self.alone.close()


@asynccontextmanager
async def gateway_over(store: SnapshotStore, state: Path, **settings: Any) -> AsyncIterator[Gateway]:
    gateway = Gateway(store, state, **settings)
    await gateway.alone.follow("current")
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture
async def gateway(two_models: SnapshotStore, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway_over(two_models, tmp_path / "state.sqlite3") as made:
        yield made


async def sides(gateway: Gateway, people: list[str]) -> dict[str, str]:
    return {user: (await gateway.ask(user_id=user))["snapshot_id"] for user in people}


PEOPLE = [f"p{n}" for n in range(40)]


async def test_people_stay_on_their_side_while_the_share_grows_until_all_are_on_it(
    store: SnapshotStore, gateway: Gateway
) -> None:
    before: set[str] = set()
    for share in (0.2, 0.6, 0.9):
        canary = store.set_canary(D, share, A)
        ready = await gateway.poll()
        assert (ready["snapshot_id"], ready["canary"]) == (A, {"snapshot_id": D, "share": share})
        found = await sides(gateway, PEOPLE)
        on_it = {user for user, snapshot_id in found.items() if snapshot_id == D}
        assert on_it == {user for user in PEOPLE if canary.has(f"u:{user}")}
        assert before < on_it
        before = on_it
    store.promote()
    assert (await gateway.poll())["canary"] is None
    assert set((await sides(gateway, PEOPLE)).values()) == {D}
    store.rollback()
    await gateway.poll()
    assert set((await sides(gateway, PEOPLE)).values()) == {A}


async def test_sessions_have_a_side_and_who_says_no_name_has_none(store: SnapshotStore, gateway: Gateway) -> None:
    canary = store.set_canary(D, 0.5, A)
    await gateway.poll()
    for session in PEOPLE:
        answer = await gateway.ask(session_id=session)
        assert answer["snapshot_id"] == (D if canary.has(f"s:{session}") else A)
    assert (await gateway.ask())["snapshot_id"] == A
    assert (await post(gateway.http, "/v1/search", query="bababa"))["snapshot_id"] == A
    assert (await post(gateway.http, "/v1/similar", item_id="item-1"))["snapshot_id"] == A
    user = next(user for user in PEOPLE if canary.has(f"u:{user}"))
    assert (await post(gateway.http, "/v1/rank", user_id=user, items=["item-1"]))["snapshot_id"] == D


async def test_both_sides_are_counted_apart(store: SnapshotStore, gateway: Gateway) -> None:
    await gateway.ask(user_id="ann")
    assert await gateway.metric("raysys_side_lists_total") == {"current": 0, "canary": 0}
    canary = store.set_canary(D, 0.5, A)
    await gateway.poll()
    n_on = sum(canary.has(f"u:{user}") for user in PEOPLE)
    expected = {"current": len(PEOPLE) - n_on, "canary": n_on}
    nothing = {"must": [{"field": "year", "range": {"gte": 99_999}}]}
    events = []
    for user in PEOPLE:
        answer = await gateway.ask(user_id=user, **({"filter": nothing} if canary.has(f"u:{user}") else {}))
        events.append({"event_id": f"e-{user}", "type": "view", "user_id": user, "item_id": "item-1"})
        events[-1]["recommendation_id"] = answer["recommendation_id"]
    await gateway.ask()
    await post(gateway.http, "/v1/events", events=[*events, {**events[0], "event_id": "x", "recommendation_id": None}])
    assert await gateway.metric("raysys_side_lists_total") == expected
    assert await gateway.metric("raysys_side_seconds_count") == expected
    assert await gateway.metric("raysys_side_empty_total") == {"current": 0, "canary": n_on}
    assert await gateway.metric("raysys_side_events_total") == expected
    assert await gateway.metric("raysys_side_degraded_total") == {"current": 0, "canary": 0}
    text = (await gateway.http.get("/metrics")).text
    assert "raysys_canary_share 0.5" in text
    assert f'raysys_canary_info{{snapshot_id="{D}"}} 1.0' in text


async def test_a_damaged_canary_leaves_everybody_with_the_published_one(store: SnapshotStore, gateway: Gateway) -> None:
    n_tasks = len(asyncio.all_tasks())
    store.set_canary(D, 1.0, A)
    swap(store.folder(D) / "shard-00001/index.faiss", lambda content: content[:-1] + b"\x77")
    ready = await gateway.poll()
    assert (ready["snapshot_id"], ready["canary"], ready["refused"]) == (A, None, None)
    assert "index.faiss" in ready["canary_refused"]
    assert set((await sides(gateway, PEOPLE[:5])).values()) == {A}
    assert len(asyncio.all_tasks()) == n_tasks
    assert len(ready["encoders"]) == 1


async def test_the_second_model_is_there_as_long_as_it_is_needed(store: SnapshotStore, gateway: Gateway) -> None:
    assert len((await gateway.poll())["encoders"]) == 1
    store.set_canary(D, 0.5, A)
    assert len((await gateway.poll())["encoders"]) == 2
    store.withdraw()
    assert len((await gateway.poll())["encoders"]) == 1
    store.set_canary(B, 0.5, A)  # of the same encoder
    assert len((await gateway.poll())["encoders"]) == 1
    store.promote()
    await gateway.poll()
    store.publish(D)  # without a canary: loaded before the flip, and the old one is let go after it
    ready = await gateway.poll()
    assert (ready["snapshot_id"], len(ready["encoders"])) == (D, 1)
    assert (await gateway.ask(query="quasar zeppelin", limit=1))["items"][0]["item_id"] == "../ödd id/№1 🎈"


async def test_what_changed_since_is_found_by_its_text_in_both_spaces(store: SnapshotStore, gateway: Gateway) -> None:
    await post(gateway.http, "/v1/items", items=[{"item_id": "before", "title": "quokka marmot"}])
    canary = store.set_canary(D, 0.5, A)
    on, off = (next(u for u in PEOPLE if canary.has(f"u:{u}") is has) for has in (True, False))
    await _until_found(gateway, off, "before", "quokka marmot", A)
    await gateway.poll()
    assert (await gateway.alone._front.state.size())["vectors"] == 2  # before anybody was answered from it
    await _until_found(gateway, on, "before", "quokka marmot", D)
    await post(gateway.http, "/v1/items", items=[{"item_id": "since", "title": "capybara wombat"}])
    for user, snapshot_id in ((on, D), (off, A)):
        await _until_found(gateway, user, "since", "capybara wombat", snapshot_id)
    await post(gateway.http, "/v1/items:delete", item_ids=["since", "item-2"])
    for user in (on, off):
        found = await gateway.ask(user_id=user, query="capybara wombat", limit=100)
        assert not {"since", "item-2"} & {item["item_id"] for item in found["items"]}


async def _until_found(gateway: Gateway, user: str, item_id: str, query: str, snapshot_id: str) -> None:
    """The item is the first by the likeness of its text: to its own words that is 1, in whichever space."""
    async with asyncio.timeout(10):
        while True:
            answer = await gateway.ask(user_id=user, query=query, explain="full")
            assert (answer["snapshot_id"], answer["degraded"]) == (snapshot_id, [])
            scores = {item["item_id"]: item["sources"].get("query", 0) for item in answer["items"]}
            if scores.get(item_id, 0) > 0.99:
                return
            await asyncio.sleep(0.01)


async def test_what_people_say_is_read_in_both_spaces_and_erased_from_both(
    store: SnapshotStore, gateway: Gateway
) -> None:
    canary = store.set_canary(D, 0.5, A)
    await gateway.poll()
    on = next(user for user in PEOPLE if canary.has(f"u:{user}"))
    await post(gateway.http, "/v1/users", users=[{"user_id": on, "description": "quasar zeppelin"}])
    async with asyncio.timeout(10):
        while (first := (await gateway.ask(user_id=on))["items"][0])["item_id"] != "../ödd id/№1 🎈":
            await asyncio.sleep(0.01)
    assert "said" in first["sources"]
    state = gateway.alone._front.state
    async with asyncio.timeout(10):
        while (await state.size())["vectors"] < 2:  # one in each space
            await asyncio.sleep(0.01)
    receipt = await post(gateway.http, "/v1/users:delete", user_id=on)
    assert receipt["verified"] is True
    assert (await state.size())["vectors"] == 0


# Under load


def questions(n: int = 24) -> list[dict[str, Any]]:
    bodies: list[dict[str, Any]] = [{"user_id": f"p{number}", "history": [f"item-{number}"]} for number in range(n)]
    for number, body in enumerate(bodies):
        if number % 2:
            body["query"] = f"bababa {number} quasar"
    return bodies


async def answers_of(store: SnapshotStore, snapshot_id: str, state: Path, bodies: list[dict[str, Any]]) -> list[Any]:
    """What a gateway says that is pinned to this snapshot."""
    gateway = Gateway(store, state)
    await gateway.alone.follow(snapshot_id)
    answers = [listed(await gateway.ask(**body)) for body in bodies]
    await gateway.close()
    return answers


def listed(answer: dict[str, Any]) -> tuple[str, list[str]]:
    return answer["snapshot_id"], [item["item_id"] for item in answer["items"]]


async def test_nobody_notices_a_canary_its_promotion_and_its_end(two_models: SnapshotStore, tmp_path: Path) -> None:
    store, state, bodies = two_models, tmp_path / "state.sqlite3", questions()
    wanted = {snapshot_id: await answers_of(store, snapshot_id, state, bodies) for snapshot_id in (A, D)}
    assert sum(one[1] != other[1] for one, other in zip(wanted[A], wanted[D], strict=True)) > len(bodies) / 2
    seen: list[str] = []
    done = asyncio.Event()
    async with gateway_over(store, state) as gateway:

        async def keep_asking(first: int) -> None:
            number = first
            while not done.is_set():
                answer = await gateway.ask(**bodies[number % len(bodies)])
                assert answer["degraded"] == []
                assert listed(answer) == wanted[answer["snapshot_id"]][number % len(bodies)], "a mixed answer"
                seen.append(answer["snapshot_id"])
                number += 4

        async def then(act: Callable[[], object]) -> None:
            act()
            await gateway.alone.follow("current")
            count = len(seen)
            while len(seen) < count + 20 and not any(task.done() for task in asking):
                await asyncio.sleep(0)

        asking = [asyncio.create_task(keep_asking(first)) for first in range(4)]
        await then(lambda: store.set_canary(D, 0.3, A))
        await then(lambda: store.set_canary(D, 0.7, A))
        await then(store.withdraw)
        await then(lambda: store.set_canary(D, 0.5, A))
        await then(store.promote)
        await then(lambda: store.set_canary(A, 0.5, D))
        await then(store.rollback)
        await then(lambda: store.publish(D))
        done.set()
        await asyncio.gather(*asking)
    assert {A, D} == set(seen)


# What a person types and what a program sends


def run(store: SnapshotStore, *words: str) -> str:
    result = CliRunner().invoke(app, ["snapshots", *words, "--root", str(store.root)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_commands(store: SnapshotStore, tmp_path: Path) -> None:
    nobody = ("--state", str(tmp_path / "no.sqlite3"), "--impressions", str(tmp_path / "none"))
    assert f"5.0% of the people get {B}, the others {A}" in run(store, "canary", B, *nobody)
    assert f"5.0% of the people get {B}, since" in run(store, "list")
    assert json.loads(run(store, "list", "--json"))["canary"]["share"] == 0.05
    assert "overlap of the answers" not in run(store, "canary", B, "--share", "0.5", *nobody)
    assert f"everybody gets {A}; {B} stays" in run(store, "withdraw")
    store.set_canary(B, 1.0, A)
    assert f"published {B}, was {A}" in run(store, "promote")
    for share in ("0", "1.5", "-1"):
        with pytest.raises(Exception, match="above 0 and at most 1"):
            run(store, "canary", A, "--share", share, *nobody)


async def test_the_same_over_http(store: SnapshotStore, gateway: Gateway) -> None:
    started = await post(gateway.http, f"{ADMIN}:canary", snapshot_id=B, share=0.25)
    assert (started["snapshot_id"], started["share"], started["beside"], started["forced"]) == (B, 0.25, A, [])
    assert started["comparison"]["answers"]["overlap"] == 1.0
    listed = (await gateway.http.get(ADMIN)).json()
    assert listed["canary"]["snapshot_id"] == B
    assert [row["snapshot_id"] for row in listed["snapshots"] if row["is_canary"]] == [B]
    grown = await post(gateway.http, f"{ADMIN}:canary", snapshot_id=B, share=0.5)
    assert (grown["share"], grown["comparison"]) == (0.5, None)
    other = await gateway.http.post(f"{ADMIN}:promote", json={"canary": A})
    assert (other.status_code, other.json()["code"]) == (409, "snapshot_conflict")
    assert await post(gateway.http, f"{ADMIN}:withdraw", canary=B) == {"snapshot_id": A, "withdrawn": B}
    store.set_canary(B, 0.5, A)
    assert await post(gateway.http, f"{ADMIN}:promote", canary=B) == {"snapshot_id": B, "before": A}
    assert (await gateway.poll())["snapshot_id"] == B
    for share in (0, -0.1, 1.01, "x", None):
        wrong = await gateway.http.post(f"{ADMIN}:canary", json={"snapshot_id": A, "share": share})
        assert wrong.status_code == 422
