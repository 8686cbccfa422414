"""The encoders of the snapshots in use, side by side in one process: while two snapshots serve, each has its own."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from raysys.config import EncoderSettings
from raysys.encoder.batching import encode_each
from raysys.encoder.build import build_encoder
from raysys.encoder.protocol import Encoder, EncoderIdentity, Role
from raysys.errors import RaysysError, Unavailable
from raysys.index.store import SnapshotStore
from raysys.types import Vectors

MOST = 2  # models: that of the snapshot in use, and that of a canary, the next snapshot or the one before

Asked = tuple[str, Role, str]  # a text, its role, and the id of the snapshot whose encoder is wanted


class Encoders:
    """At most ``MOST`` models, each loaded when a snapshot first needs it; who was asked longest ago goes first.

    given: settings for the snapshots that such a model made, as where it moved to another folder. Every other encoder
    is loaded as its snapshot says. Snapshots of one encoder share one model.
    """

    def __init__(self, store: SnapshotStore, given: EncoderSettings | None, threads: int) -> None:
        self._store, self._given, self._threads = store, given, threads
        self._given_identity: EncoderIdentity | None = None  # once it was loaded
        self._models: OrderedDict[EncoderIdentity, Encoder] = OrderedDict()
        self._of: dict[str, EncoderIdentity] = {}  # the encoder of a snapshot
        self._loading = asyncio.Lock()

    async def of(self, snapshot_id: str) -> Encoder:
        """The encoder that made this snapshot, loaded if it is not.

        Raises SnapshotMismatch where none that can be loaded is; SnapshotError, ConfigError, EncoderError.
        """
        found = self._of.get(snapshot_id)
        if found is None or found not in self._models:
            async with self._loading:
                found = await self._load(snapshot_id)
        self._models.move_to_end(found)
        return self._models[found]

    async def identity(self, snapshot_id: str) -> EncoderIdentity:
        """As ``of``, only who it is."""
        return (await self.of(snapshot_id)).identity

    async def hold(self, snapshot_ids: Sequence[str]) -> dict[str, Encoder | Unavailable]:
        """The encoder of each of these snapshots, or why there is none now."""
        return {snapshot_id: await self._or_error(snapshot_id) for snapshot_id in dict.fromkeys(snapshot_ids)}

    def keep_only(self, encoders: Sequence[Encoder]) -> None:
        """Let go of all others."""
        kept = {encoder.identity for encoder in encoders}
        for identity in [identity for identity in self._models if identity not in kept]:
            del self._models[identity]

    @property
    def identities(self) -> list[EncoderIdentity]:
        """Of those that are loaded, the one asked last at the end."""
        return list(self._models)

    async def _or_error(self, snapshot_id: str) -> Encoder | Unavailable:
        try:
            return await self.of(snapshot_id)
        except RaysysError as error:
            return Unavailable(f"the encoder of {snapshot_id} cannot be loaded: {error}")

    async def _load(self, snapshot_id: str) -> EncoderIdentity:
        manifest = await asyncio.to_thread(self._store.manifest, snapshot_id)
        identity = manifest.encoder_identity
        if identity not in self._models:
            while len(self._models) >= MOST:  # before, as there may be no room for three
                self._models.popitem(last=False)
            model = await asyncio.to_thread(self._loaded, identity, manifest.encoder)
            manifest.check_encoder(model.identity)
            self._models[identity] = model
        self._of[snapshot_id] = identity
        return identity

    def _loaded(self, wanted: EncoderIdentity, settings: EncoderSettings) -> Encoder:
        """By what is given, where that is the wanted one, or may be."""
        if self._given is not None and self._given_identity in (None, wanted):
            model = _warm(build_encoder(self._given, self._threads))
            self._given_identity = model.identity
            if model.identity == wanted:
                return model
        return _warm(build_encoder(settings, self._threads))


def _warm(model: Encoder) -> Encoder:
    model.encode(["warm up"], "query")  # the first text would wait for it
    return model


def encode_by(encoders: Mapping[str, Encoder | Unavailable], asked: Sequence[Asked]) -> list[Vectors | Exception]:
    """[dim] float32 for each text, by the encoder of its snapshot, or why there is none; each encodes in one go."""
    answers: list[Vectors | Exception | None] = [None] * len(asked)
    for encoder in {id(one): one for one in encoders.values()}.values():
        places = [place for place, (_, _, snapshot_id) in enumerate(asked) if encoders[snapshot_id] is encoder]
        if isinstance(encoder, Unavailable):
            found: Sequence[Vectors | Exception] = [encoder] * len(places)
        else:
            found = encode_each(encoder, [asked[place][:2] for place in places])
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
    return [answer for answer in answers if answer is not None]
