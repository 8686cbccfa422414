"""What a shard replica does, without Ray: holds one shard of the newest snapshots, kept up to date with the change log
and with what people do, and answers batches of queries."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raysys.clock import Clock, SystemClock
from raysys.config import ProfileSettings
from raysys.errors import RaysysError, SnapshotMismatch, SnapshotNotLoaded
from raysys.index.catalogue import Catalogue
from raysys.index.manifest import Manifest, read_manifest, verify_shard
from raysys.index.shard_files import rows_of
from raysys.index.store import SnapshotStore
from raysys.index.vector_index import set_threads
from raysys.keys import item_key, item_keys, shard_of, text_key
from raysys.profile.fold import event_weight
from raysys.recall.live import LiveItem
from raysys.recall.shard import Shard
from raysys.recall.trending import Trends
from raysys.serving.background import end
from raysys.serving.measured import Timed, timed
from raysys.state.position import first_position
from raysys.state.protocol import StateStore
from raysys.types import Candidates, Event, ItemChange, RecallQuery

HELD_SNAPSHOTS = 2  # the one in use, and the next one or the one before
POLL_S = 0.05
EVENTS_POLL_S = 0.25
RETRY_S = 1.0
PAGE = 200  # of either log: taking in 1,000 changes holds the recall thread for 40 to 70 ms
RECENT = 50_000  # so far back a replica that starts reads the events

Asked = tuple[str, RecallQuery]  # the id of the snapshot that the query is to be answered from

log = logging.getLogger(__name__)


def recall_thread(threads: int) -> ThreadPoolExecutor:
    """The one thread in which a process searches; FAISS may use this many more."""
    return ThreadPoolExecutor(1, thread_name_prefix="recall", initializer=set_threads, initargs=(threads,))


@dataclass
class _Held:
    """One shard of one snapshot, and up to where the log has been applied to it."""

    shard: Shard
    fingerprint: str
    position: int


class ShardHost:
    """One shard, in the snapshots that requests may ask for. Searches and changes take turns in ``thread``."""

    def __init__(
        self,
        number: int,
        n_shards: int,
        store: SnapshotStore,
        thread: ThreadPoolExecutor,
        state: StateStore,
        profile: ProfileSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.number, self._n_shards, self._store, self._state = number, n_shards, store, state
        self._profile = ProfileSettings() if profile is None else profile
        self._clock = SystemClock() if clock is None else clock
        self._state_identity = ""
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._canary: str | None = None
        self._is_over = False  # the canary
        self._loading = asyncio.Lock()
        self._thread = thread
        self._trends = Trends()
        self._event_position: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self, snapshot_id: str, is_canary: bool = False) -> None:
        """Hold this snapshot, every change up to now included. What is in use stays held.

        is_canary: it is not to be the one in use. While there is a canary, the next snapshot is made ready beside both.
        Raises SnapshotError when it cannot be opened, Unavailable when the change log cannot be read.
        """
        async with self._loading:
            if snapshot_id not in self._held:
                self._state_identity = await self._state.identity()
                shard, manifest = await asyncio.get_running_loop().run_in_executor(None, self._open, snapshot_id)
                position = await first_position(self._state, manifest)
                held = _Held(shard, manifest.encoder_identity.fingerprint(), position)
                await self._catch_up(held)
                self._held[snapshot_id] = held
            # After a rollback the older one is the one in use; the canary is not.
            self._held.move_to_end(snapshot_id, last=not is_canary)
            self._let_go(snapshot_id, is_canary)
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(self._follow("change log", self._catch_up_all, POLL_S)),
                    asyncio.create_task(self._follow("events", self._take_events, EVENTS_POLL_S)),
                ]

    async def keep(self, canary: str | None) -> None:
        """Hold this snapshot as the canary, as long as it is. None = there is none any more. Raises as ``prepare``."""
        if canary is not None:
            await self.prepare(canary, is_canary=True)
            self._canary = canary
        self._is_over = canary is None

    def _let_go(self, prepared: str, is_canary: bool) -> None:
        """Hold no more than may be; first goes what was not prepared of late, and a canary only after it is over."""
        if self._canary == prepared if not is_canary else self._is_over:
            self._canary = None
        spared = {prepared, self._canary}
        most = HELD_SNAPSHOTS + (self._canary not in (None, prepared))
        for snapshot_id in [held for held in self._held if held not in spared][: max(0, len(self._held) - most)]:
            del self._held[snapshot_id]
        if self._is_over:  # it stayed for this one, as gateways may not know yet
            self._canary = None

    def _open(self, snapshot_id: str) -> tuple[Shard, Manifest]:
        folder = self._store.folder(snapshot_id)
        manifest = read_manifest(folder, self._store.signers)
        if len(manifest.shards) != self._n_shards:
            raise SnapshotMismatch(
                f"snapshot {snapshot_id} has {len(manifest.shards)} shards, but {self._n_shards} are deployed: "
                "deploy the application again to change the number of shards"
            )
        verify_shard(folder, manifest, self.number)  # a damaged index can end the process that opens it
        catalogue = Catalogue(folder, manifest)
        shard = Shard(self.number, catalogue.shards[self.number], self._trends)
        shard.warm_up()
        return shard, catalogue.manifest

    async def stop(self) -> None:
        """End the following of the logs."""
        await end(*self._tasks)
        self._tasks = []  # how they ended leads back here, and what is held would stay until the garbage is collected

    async def _follow(self, what: str, catch_up: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await catch_up()
            except RaysysError as error:  # whatever it is, following must not end
                log.warning("shard %d cannot follow the %s now: %s", self.number, what, error)
                await asyncio.sleep(RETRY_S)

    async def _take_events(self) -> None:
        """Count what people did with items of this shard, up to now."""
        if self._event_position is None:
            self._event_position = max(0, await self._state.last_sequence() - RECENT)
        while events := await self._state.events_after(self._event_position, PAGE):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._count, [event for _, event in events])
            self._event_position = events[-1][0]

    def _count(self, events: Sequence[Event]) -> None:
        weights = self._profile.event_weights
        for event in events:
            if event.item_id is not None and shard_of(key := item_key(event.item_id), self._n_shards) == self.number:
                weight = event_weight(event.kind, event.value, weights, self._profile.custom_weight)
                self._trends.add(key, event.user, weight, event.timestamp_s)
        self._trends.scores(self._clock.now_s())  # now, so that no request does the work

    async def _catch_up_all(self) -> None:
        async with self._loading:
            for held in self._held.values():
                await self._catch_up(held)

    async def _catch_up(self, held: _Held) -> None:
        while changes := await self._state.item_changes(held.position, PAGE):
            mine = [c for c in changes if shard_of(item_key(c.item_id), self._n_shards) == self.number]
            if mine:
                items = await self._with_vectors(held, mine)
                await asyncio.get_running_loop().run_in_executor(self._thread, held.shard.apply, items)
            held.position = changes[-1].sequence

    async def _with_vectors(self, held: _Held, changes: Sequence[ItemChange]) -> list[LiveItem]:
        """Each change with the vector of its text: the snapshot's where the text is the same, or that of the store.

        None where nobody has encoded it yet; when somebody has, the item comes again.
        """
        texts = [text_key(held.fingerprint, change.text) for change in changes]
        files = held.shard.files
        rows = rows_of(files.keys, item_keys(change.item_id for change in changes)).tolist()
        known = [row >= 0 and files.items["text_key"][row].as_py() == key for row, key in zip(rows, texts, strict=True)]
        wanted = [
            key for key, is_known, change in zip(texts, known, changes, strict=True) if not is_known and change.text
        ]
        stored = await self._state.vectors(wanted) if wanted else {}
        return [
            LiveItem(change, files.vectors[row] if is_known else stored.get(key))
            for change, row, key, is_known in zip(changes, rows, texts, known, strict=True)
        ]

    async def recall(self, batch: Sequence[Asked]) -> Timed[Candidates | Exception]:
        """One answer for each (snapshot id, query). A wrong query fails alone."""
        came_s = time.perf_counter()
        missing = await self.hold({snapshot_id for snapshot_id, _ in batch})
        return await timed(self._thread, came_s, self.answer, batch, missing)

    async def hold(self, snapshot_ids: Collection[str]) -> dict[str, RaysysError]:
        """Prepare those of these snapshots that are not held. Returns why, for each that cannot be."""
        missing: dict[str, RaysysError] = {}
        for snapshot_id in snapshot_ids:
            try:
                if snapshot_id not in self._held:
                    await self.prepare(snapshot_id)
            except RaysysError as error:
                missing[snapshot_id] = SnapshotNotLoaded(f"shard {self.number} cannot serve {snapshot_id}: {error}")
        return missing

    def answer(self, batch: Sequence[Asked], missing: Mapping[str, RaysysError]) -> list[Candidates | Exception]:
        """The answers of ``recall``, with the snapshots held and what ``hold`` said of others. For ``thread`` only."""
        gone = SnapshotNotLoaded(f"shard {self.number} has let the snapshot go for newer ones; try again")
        answers: list[Candidates | Exception] = [missing.get(snapshot_id, gone) for snapshot_id, _ in batch]
        for snapshot_id in {snapshot_id for snapshot_id, _ in batch if snapshot_id in self._held}:
            places = [i for i, (asked, _) in enumerate(batch) if asked == snapshot_id]
            results = _recall(self._held[snapshot_id].shard, [batch[i][1] for i in places])
            for place, result in zip(places, results, strict=True):
                answers[place] = result
        return answers

    def status(self) -> dict[str, Any]:
        """The snapshots held, the one prepared last at the end; items in it, and up to which change it is."""
        newest = next(reversed(self._held.values()), None)
        return {
            "snapshots": list(self._held),
            "items": 0 if newest is None else newest.shard.n_items,
            "change_sequence": 0 if newest is None else newest.position,
            "state": self._state_identity,
        }


def _recall(shard: Shard, queries: list[RecallQuery]) -> Sequence[Candidates | Exception]:
    try:
        return shard.recall(queries)
    except RaysysError as error:
        if len(queries) == 1:
            return [error]
        return [answer for query in queries for answer in _recall(shard, [query])]
