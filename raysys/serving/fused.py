"""``topology: fused``: the same path over the same objects, all inside one replica, for a small machine."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from raysys.config import EncoderSettings, ServeSettings
from raysys.encoder.build import build_encoder
from raysys.in_process import LocalRanker
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.profile.sqlite import SqliteProfileStore
from raysys.recommender import Recommender
from raysys.serving.api import create_app
from raysys.serving.coalescer import Coalescer
from raysys.serving.follower import Follower
from raysys.serving.service import Service
from raysys.serving.shard_host import ShardHost, recall_thread
from raysys.types import Candidates, RecallQuery, Vectors


class FusedEncoder:
    """An encoder in a thread of this process; waiting texts are encoded together."""

    def __init__(self, settings: ServeSettings, encoder: EncoderSettings) -> None:
        tier = settings.encoder_tier
        self.encoder = build_encoder(encoder, tier.threads)
        self.encoder.encode(["warm up"], "query")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._coalescer: Coalescer[str, Vectors] = Coalescer(
            self._encode, tier.max_batch, max_in_flight=1, max_waiting=tier.max_queued_requests
        )

    async def _encode(self, texts: list[str]) -> Sequence[Vectors | Exception]:
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._thread, self.encoder.encode, texts, "query"))

    async def encode(self, text: str) -> Vectors:
        return await self._coalescer.ask(text)


class FusedRecall:
    """All shards in this process, one after the other in one thread: two would fight over the interpreter."""

    def __init__(self, settings: ServeSettings, n_shards: int, store: SnapshotStore) -> None:
        thread = recall_thread(settings.shard_tier.threads)
        self._hosts = [ShardHost(number, n_shards, store, thread) for number in range(n_shards)]

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        answers = await asyncio.gather(*(host.recall([(snapshot_id, query)]) for host in self._hosts))
        found = []
        for (answer,) in answers:
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
        return found, []

    async def prepare(self, snapshot_id: str) -> None:
        for host in self._hosts:
            await host.prepare(snapshot_id)

    def status(self) -> dict[str, Any]:
        return {f"shard-{host.number:02d}": host.status() for host in self._hosts}


@serve.ingress()
class FusedGateway:
    """Gateway, encoder, shards and ranker in one process. Any number of shards: they are opened, not addressed."""

    def __init__(self, settings: ServeSettings, encoder: EncoderSettings) -> None:
        self._settings = settings
        self._store = SnapshotStore(settings.index_root)
        self._encoder = FusedEncoder(settings, encoder)
        self._ranker = LocalRanker(settings.ranking)
        self._shards: FusedRecall | None = None
        self._service = Service(settings, SqliteProfileStore(settings.state, settings.profile))
        self._follower = Follower(self._store, self._take)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name that Serve looks for
        return create_app(self._service, self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def _take(self, snapshot_id: str) -> None:
        catalogue = Catalogue(self._store.folder(snapshot_id))
        catalogue.manifest.check_encoder(self._encoder.encoder.identity)
        shards = FusedRecall(self._settings, len(catalogue.shards), self._store)
        await shards.prepare(snapshot_id)
        self._shards = shards
        self._service.recommender = Recommender(
            catalogue,
            self._encoder,
            shards,
            self._ranker,
            self._settings.profile,
            self._settings.candidates_per_source,
        )

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        shards = {} if self._shards is None else self._shards.status()
        state = {"snapshot_id": self._follower.taken, "refused": self._follower.refused, "shards": shards}
        return self._follower.taken is not None, state
