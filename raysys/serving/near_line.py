"""Encodes texts when they appear, beside the requests, and keeps their vectors in the store.

A text that waits when the process dies is not lost: the text itself is in the store, and whoever needs its vector
next asks for it again.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raysys.clock import Clock
from raysys.encoder.protocol import Role
from raysys.errors import RaysysError
from raysys.keys import text_key
from raysys.recommender import Encode
from raysys.serving.background import end
from raysys.state.protocol import StateStore
from raysys.types import Vectors

MAX_WAITING = 10_000
MAX_HELD = 20_000  # vectors: 30 MB at 384 dimensions
TEXTS_PER_ROUND = 32  # so that queries come in between
RETRY_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Wanted:
    text: str
    role: Role
    item_ids: frozenset[str]  # whose text it is
    since_s: float  # monotonic


def vector_key(fingerprint: str, text: str, role: Role) -> bytes:
    """The name of a text's vector by the encoder of this fingerprint; one of an item is named as in a build."""
    return text_key(fingerprint if role == "item" else f"{fingerprint}/{role}", text)


class NearLine:
    """Vectors of texts by their hash: at hand, in the store, or made now in the background."""

    def __init__(
        self,
        encode: Encode,
        state: StateStore,
        fingerprint: str,
        clock: Clock,
        on_fresh: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """``on_fresh``: called with ``text_to_effect`` and the seconds from when a text of a person was submitted."""
        self._encode, self._state, self.fingerprint = encode, state, fingerprint
        self._clock, self._on_fresh = clock, on_fresh
        self._held: OrderedDict[bytes, Vectors] = OrderedDict()
        self._waiting: OrderedDict[bytes, _Wanted] = OrderedDict()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def n_waiting(self) -> int:
        """How many texts wait to be encoded."""
        return len(self._waiting)

    def key(self, text: str, role: Role) -> bytes:
        """As ``vector_key``."""
        return vector_key(self.fingerprint, text, role)

    async def vectors(self, texts: Sequence[str], role: Role) -> list[Vectors | None]:
        """[dim] float32 a text, None for one that is not encoded yet."""
        keys = [self.key(text, role) for text in texts]
        missing = [key for key in keys if key not in self._held]
        if missing:
            for key, vector in (await self._state.vectors(missing)).items():
                self._hold(key, vector)
        return [self._held.get(key) for key in keys]

    def submit(self, text: str, role: Role, item_id: str | None = None) -> None:
        """Have a text encoded soon; ``item_id``: the item whose text it is. What there is no room for comes again."""
        key = self.key(text, role)
        if key in self._waiting or len(self._waiting) < MAX_WAITING:
            item_ids = frozenset() if item_id is None else frozenset({item_id})
            wanted = self._waiting.get(key, _Wanted(text, role, item_ids, self._clock.monotonic_s()))
            self._waiting[key] = replace(wanted, item_ids=wanted.item_ids | item_ids)
            self._wake.set()

    def forget(self, keys: Sequence[bytes]) -> int:
        """Keep nothing of these texts in memory, and do not encode them. Returns how many were here."""
        here = [key for key in keys if key in self._held or key in self._waiting]
        for key in here:
            self._held.pop(key, None)
            self._waiting.pop(key, None)
        return len(here)

    def start(self) -> None:
        """Begin to encode what is submitted."""
        self._task = asyncio.create_task(self._run())

    async def encode_waiting(self) -> None:
        """Encode all that waits, before ``start``. Raises what the encoder and the store raise."""
        while self._waiting:
            await self._round()

    async def stop(self) -> None:
        await end(self._task)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                try:
                    await self._round()
                except RaysysError as error:
                    log.warning("%d texts wait to be encoded: %s", len(self._waiting), error)
                    await asyncio.sleep(RETRY_S)
                except Exception as error:  # whatever the model raises, what comes later shall be encoded
                    log.error("%d texts wait to be encoded", len(self._waiting), exc_info=error)
                    await asyncio.sleep(RETRY_S)

    async def _round(self) -> None:
        chosen = dict(list(self._waiting.items())[:TEXTS_PER_ROUND])
        vectors = await asyncio.gather(*(self._encode(wanted.text, wanted.role) for wanted in chosen.values()))
        encoded = dict(zip(chosen, vectors, strict=True))
        made = {key: vector for key, vector in encoded.items() if key in self._waiting}  # the rest was forgotten
        await self._state.put_vectors(made, [i for wanted in chosen.values() for i in sorted(wanted.item_ids)])
        for key, vector in made.items():
            wanted = self._waiting.get(key)
            if wanted is not None:
                self._hold(key, vector)
                self._let_go(key, wanted, chosen[key])
                if wanted.role == "query":
                    self._on_fresh("text_to_effect", self._clock.monotonic_s() - wanted.since_s)

    def _let_go(self, key: bytes, wanted: _Wanted, done: _Wanted) -> None:
        """Nobody waits for this text, but for items that were given it while it was encoded."""
        later = wanted.item_ids - done.item_ids
        if later:
            self._waiting[key] = replace(wanted, item_ids=later)
        else:
            del self._waiting[key]

    def _hold(self, key: bytes, vector: Vectors) -> None:
        self._held[key] = vector
        self._held.move_to_end(key)
        while len(self._held) > MAX_HELD:
            self._held.popitem(last=False)
