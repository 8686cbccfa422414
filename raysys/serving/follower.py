"""Follows the pointer to the published snapshot, and the canary beside it, so that no change takes a restart."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from raysys.errors import SnapshotError
from raysys.index.canary import Canary
from raysys.index.leases import Lease, share_if_possible
from raysys.index.store import SnapshotStore
from raysys.serving.background import end

POLL_S = 1.0
LONGEST_PAUSE_S = 30.0  # between two looks at a snapshot that is damaged: each reads all of its files

log = logging.getLogger(__name__)


class Pauses:
    """When a snapshot that was found at fault is looked at again: the pauses double, and another one is due at once."""

    def __init__(self) -> None:
        self._bad: str | None = None  # the snapshot that was found at fault last
        self._pause_s, self._not_before_s = 0.0, 0.0  # monotonic

    def found_bad(self, snapshot_id: str) -> None:
        is_again = snapshot_id == self._bad
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if is_again else POLL_S
        self._bad, self._not_before_s = snapshot_id, time.monotonic() + self._pause_s

    def is_due(self, snapshot_id: str) -> bool:
        return snapshot_id != self._bad or time.monotonic() >= self._not_before_s


class Follower:
    """Calls ``take(snapshot_id)`` whenever the wanted snapshot changes.

    ``wanted``: ``current`` follows the pointer, any other id stays with that snapshot. When taking fails, what is in
    use stays in use, ``refused`` says why, and the next poll tries again. Where the snapshot itself is at fault, the
    pauses double; another one is tried at once. What is in use is held by a lease, so that nobody collects it.

    Who follows the pointer also follows the canary, by ``take_canary``: None = it has ended. One that the pointer was
    put on is taken as any snapshot, and has ended then; before any other is taken, it has ended. A canary that cannot
    be taken changes nothing but ``canary_refused``.
    """

    def __init__(
        self,
        store: SnapshotStore,
        take: Callable[[str], Awaitable[None]],
        on_refused: Callable[[], None] = lambda: None,
        take_canary: Callable[[Canary | None], Awaitable[None]] | None = None,
    ) -> None:
        """``on_refused``: called at each failed try after the first snapshot, so about once a second.

        take_canary: None = canaries are none of its business.
        """
        self._store, self._take, self._on_refused, self._take_canary = store, take, on_refused, take_canary
        self.wanted = "current"
        self.taken: str | None = None
        self.refused: str | None = None
        self.canary: Canary | None = None  # that was taken
        self.canary_refused: str | None = None
        self._canary_lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._lease: Lease | None = None  # of the snapshot in use
        self._pauses, self._canary_pauses = Pauses(), Pauses()

    async def follow(self, wanted: str) -> None:
        """Take the wanted snapshot. Raises what goes wrong only the first time; later the old one stays in use."""
        self.wanted = wanted
        if self.taken is None:
            await self._step()
            self._task = asyncio.create_task(self._loop())
        else:
            await self._try()

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            if self._is_due():
                await self._try()

    def _is_due(self) -> bool:
        try:
            return self._pauses.is_due(self._store.resolve(self.wanted))
        except (SnapshotError, OSError):
            return True

    async def _try(self) -> None:
        try:
            await self._step()
        except Exception as error:  # whatever it is, the old snapshot serves on and the polling must not end
            refused = f"{type(error).__name__}: {error}"
            if self.refused != refused:
                log.warning("snapshot %s refused, the old one stays in use: %s", self.wanted, refused)
            self.refused = refused
            self._on_refused()

    async def _step(self) -> None:
        async with self._lock:
            snapshot_id = self._store.resolve(self.wanted)
            canary = self._wanted_canary(snapshot_id)
            if self.canary is not None and self.canary.snapshot_id not in (snapshot_id, _id_of(canary)):
                await self._end_canary()
            if snapshot_id != self.taken:
                await self._take_up(snapshot_id)
            self.taken, self.refused = snapshot_id, None
            await self._follow_canary(canary)
            for lease in (self._lease, self._canary_lease):
                if lease is not None:
                    lease.renew()

    def _wanted_canary(self, snapshot_id: str) -> Canary | None:
        if self._take_canary is None or self.wanted != "current":
            return None
        canary = self._store.canary()
        return canary if canary is not None and canary.beside == snapshot_id else None

    async def _follow_canary(self, canary: Canary | None) -> None:
        """A canary that cannot be taken raises nothing: the snapshot in use is not its business."""
        if self.canary is not None and self.canary.snapshot_id != _id_of(canary):
            await self._end_canary()
        if canary is None or canary == self.canary:
            self.canary_refused = None
        elif self._canary_pauses.is_due(canary.snapshot_id):
            try:
                await self._take_up_canary(canary)
            except Exception as error:  # whatever it is, everybody is answered from the snapshot in use
                self._refuse_canary(canary, error)

    async def _take_up_canary(self, canary: Canary) -> None:
        is_new = canary.snapshot_id != _id_of(self.canary)
        lease = share_if_possible(self._store.lease_path(canary.snapshot_id)) if is_new else self._canary_lease
        assert self._take_canary is not None  # noqa: S101  # else none is wanted
        try:
            await self._take_canary(canary)
        except BaseException:
            if is_new and lease is not None:
                lease.close()
            raise
        self.canary, self.canary_refused, self._canary_lease = canary, None, lease

    def _refuse_canary(self, canary: Canary, error: Exception) -> None:
        if isinstance(error, SnapshotError):
            self._canary_pauses.found_bad(canary.snapshot_id)
        refused = f"{type(error).__name__}: {error}"
        if self.canary_refused != refused:
            log.warning("canary %s refused, everybody gets %s: %s", canary.snapshot_id, self.taken, refused)
        self.canary_refused = refused
        self._on_refused()

    async def _end_canary(self) -> None:
        assert self._take_canary is not None  # noqa: S101  # else none was taken
        await self._take_canary(None)
        self.canary = None
        if self._canary_lease is not None:
            self._canary_lease.close()
            self._canary_lease = None

    def status(self) -> dict[str, Any]:
        """What is in use, and what cannot be."""
        running = None if self.canary is None else {"snapshot_id": self.canary.snapshot_id, "share": self.canary.share}
        canary = {"canary": running, "canary_refused": self.canary_refused}
        return {"snapshot_id": self.taken, "refused": self.refused, **canary}

    async def _take_up(self, snapshot_id: str) -> None:
        lease = share_if_possible(self._store.lease_path(snapshot_id))
        try:
            await self._take(snapshot_id)
        except BaseException as error:
            lease.close()
            if isinstance(error, SnapshotError):
                self._pauses.found_bad(snapshot_id)
            raise
        self._let_go()
        self._lease = lease

    def _let_go(self) -> None:
        if self._lease is not None:
            self._lease.close()

    async def stop(self) -> None:
        """End the polling."""
        await end(self._task)
        self._let_go()
        if self._canary_lease is not None:
            self._canary_lease.close()


def _id_of(canary: Canary | None) -> str | None:
    return None if canary is None else canary.snapshot_id
