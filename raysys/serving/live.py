"""What a gateway knows of the changes after its snapshot: it follows their log, and takes its own writes in at once."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysys.clock import Clock
from raysys.errors import Unavailable
from raysys.index.catalogue import Catalogue
from raysys.keys import item_key
from raysys.serving.background import end
from raysys.serving.near_line import NearLine
from raysys.state.protocol import StateStore
from raysys.types import ItemChange, Keys, Vectors

POLL_S = 0.05
PAGE = 1_000
MAX_HELD = 10_000
OTHERS_HAVE_S = 2.0  # a change that has no vector after this was left behind by a gateway that died

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    item_id: str
    sequence: int
    shown: bool


class LiveItems:
    """The changes after one snapshot. Of an item only its id and state are kept; the rest is read when it is needed.

    position: the sequence after which changes are news (``state.position``).
    on_fresh: called with ``item_to_live`` or ``delete_to_gone`` and the seconds from a change to its effect here.
    """

    def __init__(
        self,
        state: StateStore,
        catalogue: Catalogue,
        texts: NearLine,
        clock: Clock,
        position: int,
        on_fresh: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self._state, self._texts, self._clock, self._on_fresh = state, texts, clock, on_fresh
        self._catalogue = catalogue
        self.position = position
        self._entries: dict[int, _Entry] = {}
        self._held: OrderedDict[str, ItemChange] = OrderedDict()
        self._without_vector: dict[str, ItemChange] = {}
        self._complete_s = clock.monotonic_s()  # up to then the log was read
        self._catching_up = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    async def catch_up(self) -> None:
        """Take in every change up to now. Raises Unavailable."""
        async with self._catching_up:
            asked_s = self._clock.monotonic_s()
            while changes := await self._state.item_changes(self.position, PAGE):
                for change in changes:
                    self._take(change)
                self.position = changes[-1].sequence
                asked_s = self._clock.monotonic_s()
            self._complete_s = asked_s

    async def encode_changes(self) -> None:
        """Have every text encoded that the encoder of this snapshot has not seen, before ``start``.

        Raises Unavailable, and what the encoder raises.
        """
        changes = list(self._without_vector.values())
        for at in range(0, len(changes), PAGE):
            page = changes[at : at + PAGE]
            vectors = await self._texts.vectors([change.text for change in page], "item")
            for change, vector in zip(page, vectors, strict=True):
                if vector is None:
                    self._texts.submit(change.text, "item", change.item_id)
            await self._texts.encode_waiting()
        await self.catch_up()

    def lag_s(self) -> float:
        """Of what was written longer ago than this nothing is missing here.

        Not a difference of sequences: those number the writes about people too.
        """
        return self._clock.monotonic_s() - self._complete_s

    def _take(self, change: ItemChange) -> None:
        shown = change.fields is not None and not change.fields.get("hidden", False)
        self._entries[item_key(change.item_id)] = _Entry(change.item_id, change.sequence, shown)
        self._hold(change)
        previous = self._without_vector.pop(change.item_id, None)
        age_s = self._clock.now_s() - change.changed_s
        if change.deleted:
            self._observe("delete_to_gone", age_s)
        elif previous is not None and previous.changed_s == change.changed_s:  # written again because it has a vector
            self._observe("item_to_live", age_s)
        elif not self.is_encoded(change.item_id, change.text):
            self._without_vector[change.item_id] = change

    def _observe(self, what: str, age_s: float) -> None:
        if self._task is not None:  # what is read at the start happened long ago, and not to this gateway
            self._on_fresh(what, age_s)

    def is_encoded(self, item_id: str, text: str) -> bool:
        """Whether the snapshot has the vector of this text: the item's text has not changed since."""
        return self._catalogue.text_key(item_id) == self._texts.key(text, "item")

    def states(self, keys: Keys) -> dict[int, bool]:
        if not self._entries:
            return {}
        return {key: self._entries[key].shown for key in keys.tolist() if key in self._entries}

    async def vectors(self, item_ids: Sequence[str]) -> dict[str, Vectors]:
        changes = await self._changes([i for i in item_ids if item_key(i) in self._entries])
        texts = {item_id: change.text for item_id, change in changes.items() if not change.deleted}
        vectors = await self._texts.vectors(list(texts.values()), "item")
        return {item_id: vector for item_id, vector in zip(texts, vectors, strict=True) if vector is not None}

    async def fields(self, keys: Keys) -> dict[int, tuple[str, Mapping[str, Any]]]:
        wanted = keys.tolist()
        if any(key not in self._entries for key in wanted):
            await self.catch_up()  # a shard can be ahead of this gateway
        ids = {key: self._entries[key].item_id for key in wanted if key in self._entries}
        changes = await self._changes(list(ids.values()))
        found = {key: changes[item_id] for key, item_id in ids.items() if item_id in changes}
        return {key: (change.item_id, change.fields) for key, change in found.items() if change.fields is not None}

    async def sayings(self, texts: Sequence[str]) -> list[Vectors | None]:
        vectors = await self._texts.vectors(texts, "query")
        for text, vector in zip(texts, vectors, strict=True):
            if vector is None:
                self._texts.submit(text, "query")
        return vectors

    async def change(self, item_id: str) -> ItemChange | None:
        """The latest change of an item, read from the store: what an edit starts from."""
        return (await self._state.items([item_id])).get(item_id)

    async def _changes(self, item_ids: Sequence[str]) -> dict[str, ItemChange]:
        missing = [i for i in item_ids if not self._is_held(i)]
        if missing:
            for change in (await self._state.items(missing)).values():
                self._hold(change)
        return {i: self._held[i] for i in item_ids if i in self._held}

    def _is_held(self, item_id: str) -> bool:
        held = self._held.get(item_id)
        return held is not None and held.sequence >= self._entries[item_key(item_id)].sequence

    def _hold(self, change: ItemChange) -> None:
        self._held[change.item_id] = change
        self._held.move_to_end(change.item_id)
        while len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    def start(self) -> None:
        """Begin to follow the log."""
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        await end(self._task)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.catch_up()
                await self._encode_forgotten()
            except Unavailable as error:
                log.warning("the change log cannot be read now: %s", error)
                await asyncio.sleep(1.0)

    async def _encode_forgotten(self) -> None:
        """Items whose text nobody has encoded."""
        due_s = self._clock.now_s() - OTHERS_HAVE_S
        due = [change for change in self._without_vector.values() if change.changed_s <= due_s][:PAGE]
        vectors = await self._texts.vectors([change.text for change in due], "item") if due else []
        for change, vector in zip(due, vectors, strict=True):
            self._without_vector.pop(change.item_id, None)
            if vector is None:
                self._texts.submit(change.text, "item", change.item_id)
