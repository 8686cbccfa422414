"""What a shard replica does, without Ray: holds one shard of the newest snapshots and answers batches of queries."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raysys.errors import RaysysError, SnapshotMismatch, SnapshotNotLoaded
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.index.vector_index import set_threads
from raysys.recall.shard import Shard
from raysys.types import Candidates, RecallQuery

HELD_SNAPSHOTS = 2  # the one in use, and the next one or the one before


def recall_thread(threads: int) -> ThreadPoolExecutor:
    """The one thread in which a process searches; FAISS may use this many more."""
    return ThreadPoolExecutor(1, thread_name_prefix="recall", initializer=set_threads, initargs=(threads,))


class ShardHost:
    """One shard, in the snapshots that requests may ask for. Searches run in ``thread``, beside the event loop."""

    def __init__(self, number: int, n_shards: int, store: SnapshotStore, thread: ThreadPoolExecutor) -> None:
        self.number, self._n_shards, self._store = number, n_shards, store
        self._held: OrderedDict[str, Shard] = OrderedDict()
        self._loading = asyncio.Lock()
        self._thread = thread

    async def prepare(self, snapshot_id: str) -> None:
        """Hold this snapshot. Raises SnapshotError when it cannot be opened; what is held stays held."""
        async with self._loading:
            if snapshot_id not in self._held:
                shard = await asyncio.get_running_loop().run_in_executor(None, self._open, snapshot_id)
                self._held[snapshot_id] = shard
            self._held.move_to_end(snapshot_id)  # after a rollback the older one is the one in use
            while len(self._held) > HELD_SNAPSHOTS:
                self._held.popitem(last=False)

    def _open(self, snapshot_id: str) -> Shard:
        catalogue = Catalogue(self._store.folder(snapshot_id))
        if len(catalogue.shards) != self._n_shards:
            raise SnapshotMismatch(
                f"snapshot {snapshot_id} has {len(catalogue.shards)} shards, but {self._n_shards} are deployed: "
                "deploy the application again to change the number of shards"
            )
        shard = Shard(self.number, catalogue.shards[self.number])
        shard.warm_up()
        return shard

    async def recall(self, batch: Sequence[tuple[str, RecallQuery]]) -> list[Candidates | Exception]:
        """One answer for each (snapshot id, query). A wrong query fails alone."""
        answers: list[Candidates | Exception] = [SnapshotNotLoaded("")] * len(batch)
        for snapshot_id in dict.fromkeys(snapshot for snapshot, _ in batch):
            places = [i for i, (snapshot, _) in enumerate(batch) if snapshot == snapshot_id]
            results = await self._recall_in(snapshot_id, [batch[i][1] for i in places])
            for place, result in zip(places, results, strict=True):
                answers[place] = result
        return answers

    async def _recall_in(self, snapshot_id: str, queries: list[RecallQuery]) -> Sequence[Candidates | Exception]:
        try:
            if snapshot_id not in self._held:
                await self.prepare(snapshot_id)
            shard = self._held[snapshot_id]
        except RaysysError as error:
            return [SnapshotNotLoaded(f"shard {self.number} cannot serve {snapshot_id}: {error}")] * len(queries)
        return await asyncio.get_running_loop().run_in_executor(self._thread, _recall, shard, queries)

    def status(self) -> dict[str, Any]:
        """The snapshots held, the one prepared last at the end, and the number of items in it."""
        newest = next(reversed(self._held.values()), None)
        return {"snapshots": list(self._held), "items": 0 if newest is None else newest.n_items}


def _recall(shard: Shard, queries: list[RecallQuery]) -> Sequence[Candidates | Exception]:
    try:
        return shard.recall(queries)
    except RaysysError as error:
        if len(queries) == 1:
            return [error]
        return [answer for query in queries for answer in _recall(shard, [query])]
