"""Gateway, encoder, shards and ranker as they are deployed, all in this process, with plain calls for Ray's."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from ray.exceptions import ActorDiedError

from raysys.config import ServeSettings
from raysys.index.store import SnapshotStore
from raysys.serving.deployments import Encoder, Gateway, Ranker, ShardReplica

FOLLOW = {"snapshot": "current"}


class Handle:
    """What a handle of Ray Serve is to us: ``handle.verb.remote(...)`` calls the verb of the one replica."""

    def __init__(self, replica: Any) -> None:
        self.replica = replica
        self.is_gone = False  # then it says what Ray says of a replica that has died
        self.is_stuck = False  # then it never answers

    def options(self, **_: Any) -> "Handle":
        return self

    def __getattr__(self, verb: str) -> Any:
        return type("Method", (), {"remote": staticmethod(self._calling(getattr(self.replica, verb)))})

    def _calling(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def remote(*given: Any) -> Any:
            if self.is_gone:
                raise ActorDiedError
            if self.is_stuck:
                await asyncio.Event().wait()
            return await method(*given)

        return remote


class Tiered:
    """All replicas, whose polls the test makes, in an order of its own."""

    def __init__(self, store: SnapshotStore, state: Path, n_shards: int = 2, **more: Any) -> None:
        self.settings = settings = ServeSettings(
            index_root=str(store.root),
            state=str(state),
            impressions={"folder": None},
            ranking={"trending": 0.0},
            **more,
        )
        self.encoder = Encoder(None, 1, settings.index_root, settings.snapshot_public_keys)
        self.shards = [ShardReplica(number, n_shards, settings) for number in range(n_shards)]
        self.handles = [Handle(shard) for shard in self.shards]
        self.encoder_handle = Handle(self.encoder)
        ranker = Ranker(settings.ranking, settings.index_root)
        undecorated = Gateway.__bases__[0]  # what Serve wraps it in wants a replica around it
        self.gateway: Any = undecorated(settings, self.encoder_handle, Handle(ranker), *self.handles)
        transport = httpx.ASGITransport(self.gateway.__serve_build_asgi_app__())
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def poll(self, *others: Any) -> dict[str, Any]:
        """The gateway looks at the store, and before it these; what ``/readyz`` says then."""
        for one in (*others, self.gateway):
            await one.reconfigure(FOLLOW)
        return dict((await self.http.get("/readyz")).json())

    async def close(self) -> None:
        await self.http.aclose()
        for follower in (self.gateway._follower, self.encoder._follower, *(one._follower for one in self.shards)):
            await follower.stop()
        for shard in self.shards:
            await shard._host.stop()
            await shard._host._state.close()
        await self.gateway._front.close()
