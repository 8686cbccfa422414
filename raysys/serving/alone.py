"""A whole gateway in one process, which follows the published snapshot and the canary. Knows nothing of Ray."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from raysys.config import EncoderSettings, ServeSettings
from raysys.encoder.protocol import Encoder
from raysys.in_process import LocalRanker
from raysys.index.canary import Canary
from raysys.index.catalogue import Catalogue, open_verified
from raysys.index.store import SnapshotStore
from raysys.serving.encoders import Encoders
from raysys.serving.follower import Follower
from raysys.serving.front import Front
from raysys.serving.local_stages import HostedRecall, ThreadEncoder


@dataclass(frozen=True)
class _Opened:
    """The stages behind one snapshot. Two of one encoder share ``encoder``, so that their texts wait in one line."""

    snapshot_id: str
    catalogue: Catalogue
    model: Encoder
    encoder: ThreadEncoder
    shards: HostedRecall
    ranker: LocalRanker


class Alone:
    """Gateway, encoder, shards and ranker in one process. Any number of shards: they are opened, not addressed.

    While there is a canary there are two of each, but for what both snapshots share: two shard sets, two threads that
    search, and where their encoders differ two models.
    """

    def __init__(self, settings: ServeSettings, encoder: EncoderSettings | None) -> None:
        self._settings = settings
        self._store = SnapshotStore(settings.index_root, settings.snapshot_public_keys)
        self._encoders = Encoders(self._store, encoder, settings.encoder_tier.threads)
        self._current: _Opened | None = None
        self._canary: _Opened | None = None
        self._front = Front(settings)
        self._follower = Follower(self._store, self._take, self._front.on_refused, self._take_canary)

    def app(self) -> ASGIApp:
        """The HTTP API."""
        return self._front.app(self)

    async def follow(self, wanted: str) -> None:
        """As ``Follower.follow``."""
        await self._follower.follow(wanted)

    async def _take(self, snapshot_id: str) -> None:
        """Use this snapshot from the next request on. Raises, and nothing changes."""
        if self._canary is not None and self._canary.snapshot_id == snapshot_id:
            await self._front.promote()
            previous, self._current, self._canary = self._current, self._canary, None
        else:
            async with self._open(snapshot_id) as opened:
                await self._front.take(*_stages(opened))
            previous, self._current = self._current, opened
        await self._let_go(previous)

    async def _take_canary(self, canary: Canary | None) -> None:
        """Answer the people of this canary from it from the next request on. None = nobody. Raises, as ``_take``."""
        if canary is not None and self._canary is not None and self._canary.snapshot_id == canary.snapshot_id:
            self._front.in_use.set_share(canary)
            return
        previous, opened = self._canary, None
        if canary is None:
            await self._front.in_use.end_canary()
        else:
            async with self._open(canary.snapshot_id) as opened:
                await self._front.take_canary(canary, *_stages(opened))
        self._canary = opened
        await self._let_go(previous)

    @asynccontextmanager
    async def _open(self, snapshot_id: str) -> AsyncIterator[_Opened]:
        """The stages, ready; what runs of them in the background ends where they cannot be used."""
        catalogue = await asyncio.to_thread(open_verified, self._store.folder(snapshot_id), self._store.signers)
        model = await self._encoders.of(snapshot_id)
        shards = self._hosted(catalogue)
        try:
            await shards.prepare(snapshot_id)
            ranker = LocalRanker(self._settings.ranking, catalogue.folder)
            yield _Opened(snapshot_id, catalogue, model, self._line_to(model), shards, ranker)
        except BaseException:
            await shards.stop()
            self._keep_encoders()
            raise

    def _line_to(self, model: Encoder) -> ThreadEncoder:
        known = next((one.encoder for one in self._in_use() if one.model is model), None)
        return ThreadEncoder(model, self._settings.encoder_tier, self._settings.deadline_s) if known is None else known

    def _in_use(self) -> list[_Opened]:
        return [one for one in (self._current, self._canary) if one is not None]

    async def _let_go(self, previous: _Opened | None) -> None:
        """Requests that are under way with it are still answered."""
        if previous is not None:
            await previous.shards.stop()
        self._keep_encoders()

    def _keep_encoders(self) -> None:
        if self._current is not None:
            self._encoders.keep_only([one.model for one in self._in_use()])

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
        shards = {} if self._current is None else self._current.shards.status()
        encoders = [identity.name for identity in self._encoders.identities]
        return self._current is not None, {**self._follower.status(), "shards": shards, "encoders": encoders}

    async def close(self) -> None:
        """End what runs in the background, and let go of the store."""
        await self._follower.stop()
        for one in self._in_use():
            await one.shards.stop()
        await self._front.close()


def _stages(opened: _Opened) -> tuple[Any, ...]:
    """As ``Front.take`` wants them."""
    encoder = opened.encoder
    return opened.catalogue, encoder.encode, opened.shards, opened.ranker, encoder.encode_in_time
