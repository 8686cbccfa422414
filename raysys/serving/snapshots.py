"""The snapshot commands over HTTP: the same code as on the command line, in threads beside the gateway's event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from raysys.clock import Clock
from raysys.errors import Overloaded, Unavailable
from raysys.index.retention import collect, freed_bytes
from raysys.index.store import SnapshotStore
from raysys.publishing.activate import Comparison, activate, start_canary
from raysys.publishing.listing import as_dict, listing
from raysys.publishing.verify import failed, look_through
from raysys.serving import schemas

LONG_AT_ONCE = 2  # verify, activate, canary, gc: each may read a whole snapshot
SHORT_AT_ONCE = 4  # list, rollback, promote and withdraw, which must not wait for those
RETRY_LONG_S, RETRY_SHORT_S = 10.0, 1.0

T = TypeVar("T")


class Acts:
    """A few at once, each in a thread of its own. One whose caller hangs up goes on, and keeps its place.

    A gateway that ends does not wait for them: killed at any step, they leave the old state or the new one.
    """

    def __init__(self, most: int, retry_s: float) -> None:
        self._most, self._retry_s = most, retry_s
        self._places = threading.Semaphore(most)

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` gives. Raises Overloaded where as many are under way as may be, and what it raises.

        Of what the system refuses, such as a full disk, Unavailable.
        """
        if not self._places.acquire(blocking=False):
            what = f"{self._most} such acts on snapshots are under way in this gateway"
            raise Overloaded(f"{what}; try again when one has ended", self._retry_s)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        threading.Thread(target=self._work, args=(work, future), name="snapshots", daemon=True).start()
        return await asyncio.shield(asyncio.wrap_future(future))

    def _work(self, work: Callable[[], T], future: "Future[T]") -> None:
        try:
            result = self._tried(work)
        except BaseException as error:  # whatever it is, somebody waits for it
            future.set_exception(error)
        else:
            future.set_result(result)

    def _tried(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise Unavailable(f"the folder of the index cannot be worked with: {error}", self._retry_s) from error
        finally:
            self._places.release()


class Snapshots:
    """Lists, verifies, publishes and removes snapshots of one store."""

    def __init__(self, store: SnapshotStore, impressions: str | None, state: str, clock: Clock) -> None:
        """impressions, state: whom an activation asks for (``publishing.replay.some_people``)."""
        self._store, self._clock = store, clock
        self._impressions, self._state = impressions, state
        self._long = Acts(LONG_AT_ONCE, RETRY_LONG_S)
        self._short = Acts(SHORT_AT_ONCE, RETRY_SHORT_S)

    async def list(self) -> dict[str, Any]:
        """Which there are, their state and size, and why one was last refused."""
        return await self._short.run(lambda: as_dict(listing(self._store, self._clock.now_s())))

    async def verify(self, body: schemas.SnapshotVerifyBody) -> dict[str, Any]:
        """All checks of one. What fails is an answer, not an error. Raises UnknownSnapshot."""
        return await self._long.run(partial(self._verify, body))

    async def activate(self, body: schemas.SnapshotActivateBody) -> dict[str, Any]:
        """Publish one, if it is whole and not too much unlike the published one. Raises SnapshotError."""
        run = partial(activate, self._store, body.snapshot_id, self._impressions, self._state, body.force)
        done = await self._long.run(run)
        return {
            "snapshot_id": done.snapshot_id,
            "before": done.before,
            "comparison": None if done.comparison is None else _figures(done.comparison),
            "forced": done.forced,
        }

    async def rollback(self, body: schemas.SnapshotRollbackBody) -> dict[str, Any]:
        """Publish again what was published before. Raises SnapshotError."""
        left, taken = await self._short.run(partial(self._store.rollback, body.published))
        return {"snapshot_id": taken, "before": left}

    async def canary(self, body: schemas.SnapshotCanaryBody) -> dict[str, Any]:
        """Give a share of the people one, if it is whole and not too much unlike the published one.

        Raises SnapshotError.
        """
        where = (self._store, body.snapshot_id, body.share, self._impressions, self._state, body.force)
        done = await self._long.run(partial(start_canary, *where))
        comparison = None if done.comparison is None else _figures(done.comparison)
        return {**done.canary.model_dump(), "comparison": comparison}

    async def promote(self, body: schemas.SnapshotRunningBody) -> dict[str, Any]:
        """Publish the canary. Raises SnapshotError."""
        left, taken = await self._short.run(partial(self._store.promote, body.canary))
        return {"snapshot_id": taken, "before": left}

    async def withdraw(self, body: schemas.SnapshotRunningBody) -> dict[str, Any]:
        """End the canary. Raises SnapshotError."""
        ended = await self._short.run(partial(self._store.withdraw, body.canary))
        return {"snapshot_id": ended.beside, "withdrawn": ended.snapshot_id}

    async def collect(self, body: schemas.SnapshotGcBody) -> dict[str, Any]:
        """Remove what may go. Raises SnapshotError."""
        removals = await self._long.run(partial(collect, self._store, body.keep, body.embeddings, body.dry_run))
        return {"removed": removals, "freed_bytes": freed_bytes(removals), "dry_run": body.dry_run}

    def _verify(self, body: schemas.SnapshotVerifyBody) -> dict[str, Any]:
        snapshot_id = self._store.resolve(body.snapshot_id)
        found = list(look_through(self._store, snapshot_id, body.encoder))
        return {"snapshot_id": snapshot_id, "ok": not failed(found), "checks": found}


def _figures(comparison: Comparison) -> dict[str, Any]:
    return {
        "items_before": comparison.old.n_items,
        "items": comparison.new.n_items,
        "answers": None if comparison.agreement is None else asdict(comparison.agreement),
        "note": comparison.note,
    }
