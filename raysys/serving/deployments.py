"""The Serve deployments: each a thin shell around an object that knows nothing of Ray."""

import asyncio
import time
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raysys.config import EncoderSettings, RankingSettings, ServeSettings
from raysys.encoder.batching import encode_each
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import EncoderIdentity, Role
from raysys.in_process import LocalRanker
from raysys.index.catalogue import open_verified
from raysys.index.store import SnapshotStore
from raysys.ranking.learned import open_ranker
from raysys.serving.follower import Follower
from raysys.serving.front import Front
from raysys.serving.local_stages import NearRanker
from raysys.serving.logs import open_log
from raysys.serving.measured import Timed, timed
from raysys.serving.shard_host import ShardHost, recall_thread
from raysys.serving.tiers import RemoteEncoder, RemoteRanker, RemoteRecall, call
from raysys.state.open import open_state
from raysys.types import Candidates, RecallQuery, Vectors

START_DEADLINE_S = 120.0
STATUS_DEADLINE_S = 1.0
MOST_RANKINGS = 3  # the one in use, the one before, the one to come


class Encoder:
    """Texts to vectors."""

    def __init__(self, settings: EncoderSettings, threads: int, tenant: str | None = None) -> None:
        open_log(tenant)
        self._encoder = build_encoder(settings, threads)
        self._encoder.encode(["warm up"], "query")
        self._one_at_a_time = asyncio.Lock()

    async def encode(self, texts: list[tuple[str, Role]]) -> Timed[Vectors]:
        """One [dim] float32 a text."""
        came_s = time.perf_counter()
        async with self._one_at_a_time:
            return await timed(None, came_s, encode_each, self._encoder, texts)

    async def identity(self) -> EncoderIdentity:
        return self._encoder.identity


class ShardReplica:
    """One shard of the catalogue. ``user_config`` names the snapshot, so that a new one never restarts a replica."""

    def __init__(self, number: int, n_shards: int, settings: ServeSettings) -> None:
        open_log(settings.tenant)
        store = SnapshotStore(settings.index_root)
        thread = recall_thread(settings.shard_tier.threads)
        self._host = ShardHost(number, n_shards, store, thread, open_state(settings.state), settings.profile)
        self._follower = Follower(store, self._host.prepare)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def recall(self, batch: list[tuple[str, RecallQuery]]) -> Timed[Candidates | Exception]:
        return await self._host.recall(batch)

    async def prepare(self, snapshot_id: str) -> None:
        await self._host.prepare(snapshot_id)

    async def status(self) -> dict[str, Any]:
        return {**self._host.status(), "refused": self._follower.refused}


class Ranker:
    """Source scores to final scores, by what the snapshot has learned. Of snapshots it holds the last few in use."""

    def __init__(self, settings: RankingSettings, index_root: str, tenant: str | None = None) -> None:
        open_log(tenant)
        store = SnapshotStore(index_root)
        self._of = lru_cache(MOST_RANKINGS)(lambda snapshot_id: open_ranker(settings, store.folder(snapshot_id)))

    async def score(self, batch: list[tuple[str, NDArray[np.float32]]]) -> Timed[NDArray[np.float32]]:
        start_s = time.perf_counter()
        answers = [self._of(snapshot_id).score([scores])[0] for snapshot_id, scores in batch]
        return Timed(answers, 0.0, time.perf_counter() - start_s)


@serve.ingress()
class Gateway:
    """The HTTP API in front of the tiers. Stateless: profiles are read from the store at each request."""

    def __init__(
        self,
        settings: ServeSettings,
        encoder: DeploymentHandle,
        ranker: DeploymentHandle,
        *shards: DeploymentHandle,
    ) -> None:
        open_log(settings.tenant)
        self._settings, self._store = settings, SnapshotStore(settings.index_root)
        self._encoder_handle = encoder
        self._encoder = RemoteEncoder(encoder, settings.encoder_tier, settings.deadline_s)
        self._ranker = RemoteRanker(ranker, settings.ranker_tier, settings.deadline_s)
        self._shards = RemoteRecall(shards, settings.shard_tier, settings.deadline_s)
        self._front = Front(settings)
        self._follower = Follower(self._store, self._take, self._front.on_refused)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name that Serve looks for
        return self._front.app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def _take(self, snapshot_id: str) -> None:
        """Use this snapshot from the next request on, once every shard holds it. Raises, and nothing changes."""
        catalogue = await asyncio.to_thread(open_verified, self._store.folder(snapshot_id))
        identity = await call("encoder", lambda: self._encoder_handle.identity.remote(), START_DEADLINE_S)
        catalogue.manifest.check_encoder(identity)
        here = LocalRanker(self._settings.ranking, catalogue.folder)  # a damaged ranking is refused before it is used
        ranker = NearRanker(here, self._ranker, lambda: self._shards.n_asking)
        await self._shards.prepare(snapshot_id, START_DEADLINE_S)
        in_time = self._encoder.encode_in_time
        await self._front.take(catalogue, self._encoder.encode, self._shards, ranker, in_time)

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Ready when a snapshot is in use, and every shard holds it and reads the same state store."""
        snapshot_id = self._follower.taken
        shards = await self._shards.status(STATUS_DEADLINE_S)
        ready = snapshot_id is not None and all(snapshot_id in s.get("snapshots", ()) for s in shards.values())
        apart = await self._front.apart(shards)
        state = {"snapshot_id": snapshot_id, "refused": self._follower.refused, "shards": shards}
        return ready and not apart, {**state, **({"apart": apart} if apart else {})}
