"""A whole gateway in one process, which follows the published snapshot. Knows nothing of Ray."""

import asyncio
from typing import Any

from starlette.types import ASGIApp

from raysys.config import EncoderSettings, ServeSettings
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import EncoderIdentity
from raysys.in_process import LocalRanker
from raysys.index.catalogue import Catalogue, open_verified
from raysys.index.store import SnapshotStore
from raysys.serving.follower import Follower
from raysys.serving.front import Front
from raysys.serving.local_stages import HostedRecall, ThreadEncoder


class Alone:
    """Gateway, encoder, shards and ranker in one process. Any number of shards: they are opened, not addressed."""

    def __init__(self, settings: ServeSettings, encoder: EncoderSettings) -> None:
        self._settings = settings
        self._store = SnapshotStore(settings.index_root)
        model = build_encoder(encoder, settings.encoder_tier.threads)
        model.encode(["warm up"], "query")
        self._identity: EncoderIdentity = model.identity
        self._encoder = ThreadEncoder(model, settings.encoder_tier, settings.deadline_s)
        self._shards: HostedRecall | None = None
        self._front = Front(settings)
        self._follower = Follower(self._store, self._take, self._front.on_refused)

    def app(self) -> ASGIApp:
        """The HTTP API."""
        return self._front.app(self)

    async def follow(self, wanted: str) -> None:
        """As ``Follower.follow``."""
        await self._follower.follow(wanted)

    async def _take(self, snapshot_id: str) -> None:
        """Use this snapshot from the next request on. Raises, and nothing changes."""
        catalogue = await asyncio.to_thread(open_verified, self._store.folder(snapshot_id))
        catalogue.manifest.check_encoder(self._identity)
        shards = self._hosted(catalogue)
        try:
            await shards.prepare(snapshot_id)
            ranker = LocalRanker(self._settings.ranking, catalogue.folder)
            await self._front.take(catalogue, self._encoder.encode, shards, ranker, self._encoder.encode_in_time)
        except BaseException:
            await shards.stop()
            raise
        previous, self._shards = self._shards, shards
        if previous is not None:
            await previous.stop()

    def _hosted(self, catalogue: Catalogue) -> HostedRecall:
        settings = self._settings
        return HostedRecall(
            len(catalogue.shards),
            self._store,
            self._front.state,
            settings.shard_tier,
            settings.profile,
            settings.deadline_s,
        )

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Ready when a snapshot is in use."""
        shards = {} if self._shards is None else self._shards.status()
        state = {"snapshot_id": self._follower.taken, "refused": self._follower.refused, "shards": shards}
        return self._follower.taken is not None, state

    async def close(self) -> None:
        """End what runs in the background, and let go of the store."""
        await self._follower.stop()
        if self._shards is not None:
            await self._shards.stop()
        await self._front.close()
