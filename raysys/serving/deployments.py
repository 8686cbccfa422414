"""The Serve deployments: each a thin shell around an object that knows nothing of Ray."""

import asyncio
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raysys.config import EncoderSettings, RankingSettings, ServeSettings
from raysys.encoder.protocol import EncoderIdentity
from raysys.errors import RaysysError, SnapshotMismatch
from raysys.in_process import LocalRanker
from raysys.index.canary import Canary
from raysys.index.catalogue import Catalogue, open_verified
from raysys.index.store import SnapshotStore
from raysys.ranking.learned import open_ranker
from raysys.recommender import Encode
from raysys.serving.encoders import Asked, Encoders, encode_by
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
    """Texts to vectors, by the encoder of the snapshot that they are for. Follows as a shard does, so that a new model
    is loaded before it is needed."""

    def __init__(
        self,
        settings: EncoderSettings | None,
        threads: int,
        index_root: str,
        public_keys: Sequence[str],
        tenant: str | None = None,
    ) -> None:
        open_log(tenant)
        store = SnapshotStore(index_root, public_keys)
        self._encoders = Encoders(store, settings, threads)
        self._one_at_a_time = asyncio.Lock()
        self._follower = Follower(store, self._load, take_canary=self._load_canary)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def encode(self, texts: list[Asked]) -> Timed[Vectors | Exception]:
        """One [dim] float32 a text, or why there is none."""
        came_s = time.perf_counter()
        encoders = await self._encoders.hold([snapshot_id for _, _, snapshot_id in texts])
        async with self._one_at_a_time:
            return await timed(None, came_s, encode_by, encoders, texts)

    async def identity(self, snapshot_id: str) -> EncoderIdentity | str:
        """Of the encoder of this snapshot, which is loaded then; or why it cannot be."""
        try:
            return await self._encoders.identity(snapshot_id)
        except RaysysError as error:
            return str(error)

    async def _load(self, snapshot_id: str) -> None:
        await self._encoders.of(snapshot_id)

    async def _load_canary(self, canary: Canary | None) -> None:
        if canary is not None:
            await self._encoders.of(canary.snapshot_id)


class ShardReplica:
    """One shard of the catalogue. ``user_config`` names the snapshot, so that a new one never restarts a replica."""

    def __init__(self, number: int, n_shards: int, settings: ServeSettings) -> None:
        open_log(settings.tenant)
        store = SnapshotStore(settings.index_root, settings.snapshot_public_keys)
        thread = recall_thread(settings.shard_tier.threads)
        self._host = ShardHost(number, n_shards, store, thread, open_state(settings.state), settings.profile)
        self._follower = Follower(store, self._host.prepare, take_canary=self._keep)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def recall(self, batch: list[tuple[str, RecallQuery]]) -> Timed[Candidates | Exception]:
        return await self._host.recall(batch)

    async def prepare(self, snapshot_id: str, is_canary: bool = False) -> None:
        await self._host.prepare(snapshot_id, is_canary)

    async def status(self) -> dict[str, Any]:
        return {**self._host.status(), "refused": self._follower.refused}

    async def _keep(self, canary: Canary | None) -> None:
        await self._host.keep(None if canary is None else canary.snapshot_id)


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
        self._settings, self._store = settings, SnapshotStore(settings.index_root, settings.snapshot_public_keys)
        self._encoder_handle = encoder
        self._encoder = RemoteEncoder(encoder, settings.encoder_tier, settings.deadline_s)
        self._ranker = RemoteRanker(ranker, settings.ranker_tier, settings.deadline_s)
        self._shards = RemoteRecall(shards, settings.shard_tier, settings.deadline_s)
        self._front = Front(settings)
        self._follower = Follower(self._store, self._take, self._front.on_refused, self._take_canary)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name that Serve looks for
        return self._front.app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def _take(self, snapshot_id: str) -> None:
        """Use this snapshot from the next request on, once every shard holds it. Raises, and nothing changes."""
        canary = self._front.in_use.canary
        if canary is not None and canary.snapshot_id == snapshot_id:
            await self._shards.prepare(snapshot_id, START_DEADLINE_S)
            await self._front.promote()
        else:
            await self._front.take(*await self._prepared(snapshot_id, is_canary=False))

    async def _take_canary(self, canary: Canary | None) -> None:
        """Answer the people of this canary from it from the next request on. None = nobody. Raises, as ``_take``."""
        running = self._front.in_use.canary
        if canary is None:
            await self._front.in_use.end_canary()
        elif running is not None and running.snapshot_id == canary.snapshot_id:
            self._front.in_use.set_share(canary)
        else:
            await self._front.take_canary(canary, *await self._prepared(canary.snapshot_id, is_canary=True))

    async def _prepared(
        self, snapshot_id: str, is_canary: bool
    ) -> tuple[Catalogue, Encode, RemoteRecall, NearRanker, Encode]:
        """The stages for this snapshot, as ``Front.take`` wants them, once every tier holds what it needs of it."""
        catalogue = await asyncio.to_thread(open_verified, self._store.folder(snapshot_id), self._store.signers)
        await self._check_encoder(catalogue)
        here = LocalRanker(self._settings.ranking, catalogue.folder)  # a damaged ranking is refused before it is used
        ranker = NearRanker(here, self._ranker, lambda: self._shards.n_asking)
        await self._shards.prepare(snapshot_id, START_DEADLINE_S, is_canary)
        encode, in_time = self._encoder.of(snapshot_id)
        return catalogue, encode, self._shards, ranker, in_time

    async def _check_encoder(self, catalogue: Catalogue) -> None:
        """Have the encoder of the snapshot loaded. Raises SnapshotMismatch, Unavailable."""
        ask = self._encoder_handle.identity.remote
        identity = await call("encoder", lambda: ask(catalogue.snapshot_id), START_DEADLINE_S)
        if isinstance(identity, str):
            raise SnapshotMismatch(f"the encoder of {catalogue.snapshot_id} cannot be loaded: {identity}")
        catalogue.manifest.check_encoder(identity)

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Ready when a snapshot is in use, which every shard held then, a shard holds it now, and at least
        ``min_coverage`` of the items are in those that do; not where a shard reads another state store."""
        shards = await self._shards.status(STATUS_DEADLINE_S)
        is_enough, there = self._front.presence(shards)
        apart = await self._front.apart(shards)
        state = {**self._follower.status(), **there, "shards": shards}
        return is_enough and not apart, {**state, **({"apart": apart} if apart else {})}
