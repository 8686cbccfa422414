"""A small made-up shop, the snapshots built from it, and the path over them as plain objects."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from starlette.types import ASGIApp

from raysys.clock import Clock
from raysys.config import (
    BuildSettings,
    ProfileSettings,
    RankingSettings,
    ServeSettings,
    TierSettings,
    UseOfStudent,
)
from raysys.data.synthetic import START_S, World, make_world
from raysys.encoder.hashing import HashEncoder
from raysys.encoder.protocol import Encoder
from raysys.in_process import LocalEncoder, LocalRanker, LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.lookup import Lookup, NothingLive
from raysys.profile.fold import fold
from raysys.profile.reader import Profiles
from raysys.recommender import Encode, Ranker, Recall, Recommender
from raysys.serving.front import Front
from raysys.serving.local_stages import HostedRecall, ThreadEncoder
from raysys.training.local import build_here
from raysys.types import Event, Profile, RecallQuery

DAY_S = 86_400.0
NOW_S = START_S + 30 * DAY_S
SPACE_DIM = 16
FITTED = {"factors": "always", "factors_dim": SPACE_DIM, "factors_iterations": 3}  # beside the regression
DIM = 64
K = 40
N_ITEMS, N_USERS, N_TOPICS = 240, 60, 6

# Rows beside the made-up ones: each is one rule.
HIDDEN, EXPIRED, FUTURE, SILENT, ODD = "hidden-1", "expired-1", "future-1", "silent-1", "../ödd id/№1 🎈"


@dataclass
class FixedClock:
    """A clock that stands where it is put."""

    at_s: float = NOW_S

    def now_s(self) -> float:
        return self.at_s

    def monotonic_s(self) -> float:
        return self.at_s


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def with_special_items(world: World) -> pa.Table:
    """The items of the world, then one hidden, one expired, one not yet out, one without a word, one of an odd id.

    Hidden, expired and future items have the title of item-0: by text alone they would all be found with it.
    """
    title = world.items["title"][0].as_py()
    special = [
        {"item_id": HIDDEN, "title": title, "hidden": True},
        {"item_id": EXPIRED, "title": title, "available_until": _at(NOW_S - DAY_S)},
        {"item_id": FUTURE, "title": title, "available_from": _at(NOW_S + DAY_S)},
        {"item_id": SILENT, "title": "!!!", "price": 5.0},
        {"item_id": ODD, "title": "quasar zeppelin", "price": 1.0, "year": 2000, "categories": ["odd"]},
    ]
    time = pa.timestamp("us", "UTC")
    more = [("available_from", time), ("available_until", time), ("hidden", pa.bool_())]
    items = world.items
    for name, kind in more:
        items = items.append_column(name, pa.nulls(len(items), kind))
    return pa.concat_tables([items, pa.Table.from_pylist(special, schema=items.schema)])


@dataclass
class Shop:
    """One world on disk and the snapshots built from it, each built when first asked for."""

    folder: Path
    structure: float = 0.9
    behaviour: dict[str, object] = field(default_factory=dict)
    stores: dict[int, SnapshotStore] = field(default_factory=dict)

    @cached_property
    def world(self) -> World:
        return make_world(N_ITEMS, N_USERS, N_TOPICS, self.structure, seed=7)

    @cached_property
    def items(self) -> pa.Table:
        return with_special_items(self.world)

    @cached_property
    def inputs(self) -> tuple[Path, Path]:
        catalogue, events = self.folder / "items.parquet", self.folder / "events.parquet"
        pq.write_table(self.items, catalogue)
        # ``make_world`` gives epoch seconds; files are read with a column named timestamp
        table = self.world.events
        time = pa.array([_at(seconds) for seconds in table["timestamp_s"].to_pylist()], pa.timestamp("us", "UTC"))
        pq.write_table(table.drop_columns("timestamp_s").append_column("timestamp", time), events)
        return catalogue, events

    def settings(self, shards: int, root: Path | None = None, **index: object) -> BuildSettings:
        catalogue, events = self.inputs
        return BuildSettings.model_validate(
            {
                "catalog": {"path": str(catalogue), "attributes": {"year": "year"}},
                "events": {"path": str(events)},
                "encoder": {"kind": "hash", "dim": DIM},
                "behaviour": self.behaviour,
                "index": {
                    "root": str(self.folder / f"index-{shards}" if root is None else root),
                    "shards": shards,
                    **index,
                },
            }
        )

    def store(self, shards: int) -> SnapshotStore:
        """The store of a snapshot in so many shards."""
        if shards not in self.stores:
            settings = self.settings(shards)
            build_here(settings, FixedClock())
            self.stores[shards] = SnapshotStore(settings.index.root)
        return self.stores[shards]

    def snapshot(self, shards: int) -> Path:
        """The folder of the snapshot in so many shards."""
        store = self.store(shards)
        return store.folder(store.current_id())

    @cached_property
    def _profiles(self) -> dict[str, Profile]:
        events: dict[str, list[Event]] = {}
        for row in self.world.events.to_pylist():
            event = Event(row["event_id"], row["kind"], f"u:{row['user_id']}", row["item_id"], row["timestamp_s"])
            events.setdefault(event.user, []).append(event)
        return {user: fold(user, theirs, ProfileSettings()) for user, theirs in events.items()}

    def profile(self, user: int) -> Profile:
        """What this user of the world did."""
        return self._profiles[f"u:user-{user}"]


def plain_query(**changes: Any) -> RecallQuery:
    """What a stranger who says nothing asks of a shard, but for these fields."""
    nothing = RecallQuery(
        query=None,
        profile=None,
        said=None,
        history_keys=np.empty(0, np.uint64),
        history_weights=np.empty(0, np.float32),
        exclude_keys=np.empty(0, np.uint64),
        filter=None,
        now_s=NOW_S,
        k=K,
    )
    return replace(nothing, **changes)


def recommender(
    folder: Path,
    encode: Encode | None = None,
    shards: Recall | None = None,
    ranker: Ranker | None = None,
    clock: Clock | None = None,
    k: int = K,
    use_student: UseOfStudent = "auto",
) -> Recommender:
    """The path over the snapshot in this folder, in this process; parts may be replaced."""
    return Recommender(
        Lookup(Catalogue(folder), NothingLive()),
        LocalEncoder(HashEncoder(DIM)).encode if encode is None else encode,
        LocalRecall(open_shards(folder)) if shards is None else shards,
        LocalRanker(RankingSettings()) if ranker is None else ranker,
        ProfileSettings(),
        k,
        FixedClock() if clock is None else clock,
        use_student=use_student,
    )


@dataclass
class Served:
    """A gateway in this process over one snapshot, its shards following the log of changes."""

    front: Front
    recommender: Recommender
    app: ASGIApp
    stop: Callable[[], Awaitable[None]]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def profile(self, user: str) -> Profile:
        """The profile of a user key, read as a gateway reads it."""
        return await Profiles(self.front.state, ProfileSettings(), FixedClock()).of(user)


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request that must succeed."""
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def serve_here(
    store: SnapshotStore,
    state: Path,
    clock: Clock | None = None,
    ready: bool = True,
    model: Encoder | None = None,
    **settings: Any,
) -> Served:
    """The published snapshot of this store behind the HTTP API, with what people do in the file ``state``."""
    clock = FixedClock() if clock is None else clock
    settings = {"impressions": {"folder": str(state.parent / "impressions")}} | settings
    serving = ServeSettings(index_root=str(store.root), state=str(state), **settings)
    front = Front(serving, clock)
    catalogue = Catalogue(store.folder(store.current_id()))
    encoder = ThreadEncoder(HashEncoder(DIM) if model is None else model, serving.encoder_tier, serving.deadline_s)
    n_shards, deadline_s = len(catalogue.shards), serving.deadline_s
    shards = HostedRecall(n_shards, store, front.state, TierSettings(), ProfileSettings(), deadline_s)
    await shards.prepare(catalogue.snapshot_id)
    ranker = LocalRanker(serving.ranking)
    await front.take(catalogue, encoder.encode, shards, ranker, encoder.encode_in_time)

    async def stop() -> None:
        await shards.stop()
        await front.close()

    return Served(front, front.recommender, front.app(Health(ready)), stop)


@contextmanager
def server_of(store: SnapshotStore, state: Path, **settings: Any) -> Iterator[str]:
    """``serve_here`` behind a real HTTP server in a thread, for callers that cannot wait. Yields its URL."""
    started, port, loop = threading.Event(), 0, asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def run() -> None:
        nonlocal port
        served = await serve_here(store, state, **settings)
        server = uvicorn.Server(uvicorn.Config(served.app, port=0, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        started.set()
        await stopping.wait()
        server.should_exit = True
        await serving
        await served.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:  # a thread that is left would keep a failed run from ending
        loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
        loop.close()


class Health:
    """A health that is as it is told."""

    def __init__(self, ready: bool = True) -> None:
        self.is_ready = ready

    async def ready(self) -> tuple[bool, dict[str, object]]:
        return self.is_ready, {"shards": {}}


Raises = Callable[..., Awaitable[object]]


def raising(error: Exception) -> Raises:
    """An async verb that only raises this error."""

    async def verb(*_: object) -> object:
        raise error

    return verb
