"""``topology: fused``: the same path over the same objects, all inside one replica, for a small machine."""

from typing import Any

from ray import serve
from starlette.types import ASGIApp

from raysys.config import EncoderSettings, ServeSettings
from raysys.encoder.build import build_encoder
from raysys.in_process import LocalRanker
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.serving.follower import Follower
from raysys.serving.front import Front
from raysys.serving.local_stages import HostedRecall, ThreadEncoder
from raysys.serving.logs import open_log


@serve.ingress()
class FusedGateway:
    """Gateway, encoder, shards and ranker in one process. Any number of shards: they are opened, not addressed."""

    def __init__(self, settings: ServeSettings, encoder: EncoderSettings) -> None:
        open_log()  # before the encoder says which runtime it found
        self._settings = settings
        self._store = SnapshotStore(settings.index_root)
        model = build_encoder(encoder, settings.encoder_tier.threads)
        model.encode(["warm up"], "query")
        self._identity = model.identity
        self._encoder = ThreadEncoder(model, settings.encoder_tier, settings.deadline_s)
        self._shards: HostedRecall | None = None
        self._front = Front(settings)
        self._follower = Follower(self._store, self._take, self._front.on_refused)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name that Serve looks for
        return self._front.app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._follower.follow(user_config["snapshot"])

    async def _take(self, snapshot_id: str) -> None:
        catalogue = Catalogue(self._store.folder(snapshot_id))
        catalogue.manifest.check_encoder(self._identity)
        shards = HostedRecall(
            len(catalogue.shards),
            self._store,
            self._front.state,
            self._settings.shard_tier,
            self._settings.profile,
        )
        await shards.prepare(snapshot_id)
        ranker = LocalRanker(self._settings.ranking, catalogue.folder)
        await self._front.take(catalogue, self._encoder.encode, shards, ranker, self._encoder.encode_in_time)
        previous, self._shards = self._shards, shards
        if previous is not None:
            await previous.stop()

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        shards = {} if self._shards is None else self._shards.status()
        state = {"snapshot_id": self._follower.taken, "refused": self._follower.refused, "shards": shards}
        return self._follower.taken is not None, state
