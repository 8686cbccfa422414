"""A canary in front of tiers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from snapshot_shelf import A, B, copy_of, swap
from support import FixedClock, Shop, post
from tiered import FOLLOW, Tiered

from raysys.config import EncoderSettings
from raysys.index.store import SnapshotStore
from raysys.training.local import build_here

PEOPLE = [f"p{n}" for n in range(24)]


async def sides(tiered: Tiered, **body: Any) -> dict[str, str]:
    found = {}
    for user in PEOPLE:
        answer = await post(tiered.http, "/v1/recommendations", user_id=user, query="quasar zeppelin", **body)
        assert (answer["degraded"], bool(answer["items"])) == ([], True)
        found[user] = answer["snapshot_id"]
    return found


@pytest.fixture(scope="module")
def of_other_encoder(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = shop.settings(2, root=tmp_path_factory.mktemp("other"))
    encoder = EncoderSettings(kind="hash", dim=48)
    build_here(settings.model_copy(update={"encoder": encoder, "events": None}), FixedClock())
    other = SnapshotStore(settings.index.root)
    return other.folder(other.current_id())


@pytest.fixture
def store(shop: Shop, of_other_encoder: Path, tmp_path: Path) -> SnapshotStore:
    """A is published, B is of another encoder."""
    store = SnapshotStore(tmp_path / "index")
    copy_of(shop.snapshot(2), store, A)
    copy_of(of_other_encoder, store, B)
    store.publish(A)
    return store


@pytest_asyncio.fixture
async def tiered(store: SnapshotStore, tmp_path: Path) -> AsyncIterator[Tiered]:
    made = Tiered(store, tmp_path / "state.sqlite3")
    await made.poll(made.encoder, *made.shards)
    yield made
    await made.close()


@pytest.mark.parametrize("gateway_first", [True, False])
async def test_each_side_is_answered_by_its_snapshot_and_its_encoder(
    store: SnapshotStore, tiered: Tiered, gateway_first: bool
) -> None:
    others = () if gateway_first else (tiered.encoder, *tiered.shards)
    canary = store.set_canary(B, 0.5, A)
    ready = await tiered.poll(*others)
    assert (ready["canary"], ready["canary_refused"]) == ({"snapshot_id": B, "share": 0.5}, None)
    assert await sides(tiered) == {user: B if canary.has(f"u:{user}") else A for user in PEOPLE}
    assert [identity.dim for identity in sorted(tiered.encoder._encoders.identities, key=lambda i: i.dim)] == [48, 64]
    store.promote()
    assert (await tiered.poll(*others))["snapshot_id"] == B
    assert set((await sides(tiered)).values()) == {B}
    await tiered.poll(tiered.encoder, *tiered.shards)
    store.rollback()
    assert (await tiered.poll(*others))["snapshot_id"] == A
    assert set((await sides(tiered)).values()) == {A}
    assert {tuple(shard._host.status()["snapshots"]) for shard in tiered.shards} == {(B, A)}


async def test_a_canary_whose_encoder_cannot_be_loaded_says_so(store: SnapshotStore, tiered: Tiered) -> None:
    swap(store.folder(B) / "manifest.json", lambda content: content.replace(b'"dim": 48', b'"dim": 47', 1))
    store.set_canary(B, 1.0, A)
    ready = await tiered.poll(tiered.encoder, *tiered.shards)
    assert (ready["canary"], ready["snapshot_id"]) == (None, A)
    assert f"the encoder of {B} cannot be loaded" in ready["canary_refused"]
    assert set((await sides(tiered)).values()) == {A}


async def test_nobody_notices_a_swap_beside_a_canary(store: SnapshotStore, tiered: Tiered, shop: Shop) -> None:
    """Another one is published while the canary runs: for a moment three snapshots are held."""
    copy_of(shop.snapshot(2), store, "20260108T000000-aaaaaa")
    store.set_canary(B, 0.5, A)
    await tiered.poll(tiered.encoder, *tiered.shards)
    done, seen = asyncio.Event(), set()

    async def keep_asking() -> None:
        while not done.is_set():
            seen.update((await sides(tiered, limit=3)).values())

    asking = asyncio.create_task(keep_asking())
    store.publish("20260108T000000-aaaaaa")
    for shard in tiered.shards:  # they hold it before the gateway knows
        await shard.reconfigure(FOLLOW)
    assert all(len(shard._host.status()["snapshots"]) == 3 for shard in tiered.shards)
    while {A, B} - seen and not asking.done():
        await asyncio.sleep(0)
    assert (await tiered.poll())["canary"] is None
    done.set()
    await asking
    assert set((await sides(tiered)).values()) == {"20260108T000000-aaaaaa"}
    assert all(len(shard._host.status()["snapshots"]) == 2 for shard in tiered.shards)
