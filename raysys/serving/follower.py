"""Follows the pointer to the published snapshot, so that a new one is taken into use without a restart."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from raysys.errors import SnapshotError
from raysys.index.leases import Lease, share_if_possible
from raysys.index.store import SnapshotStore
from raysys.serving.background import end

POLL_S = 1.0
LONGEST_PAUSE_S = 30.0  # between two looks at a snapshot that is damaged: each reads all of its files

log = logging.getLogger(__name__)


class Follower:
    """Calls ``take(snapshot_id)`` whenever the wanted snapshot changes.

    ``wanted``: ``current`` follows the pointer, any other id stays with that snapshot. When taking fails, what is in
    use stays in use, ``refused`` says why, and the next poll tries again. Where the snapshot itself is at fault, the
    pauses double; another one is tried at once. What is in use is held by a lease, so that nobody collects it.
    """

    def __init__(
        self,
        store: SnapshotStore,
        take: Callable[[str], Awaitable[None]],
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_refused``: called at each failed try after the first snapshot, so about once a second."""
        self._store, self._take, self._on_refused = store, take, on_refused
        self.wanted = "current"
        self.taken: str | None = None
        self.refused: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._lease: Lease | None = None  # of the snapshot in use
        self._bad: str | None = None  # the snapshot that was found at fault last
        self._pause_s, self._not_before_s = 0.0, 0.0  # monotonic

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
            return time.monotonic() >= self._not_before_s or self._store.resolve(self.wanted) != self._bad
        except (SnapshotError, OSError):
            return True

    def _found_bad(self, snapshot_id: str) -> None:
        is_again = snapshot_id == self._bad
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if is_again else POLL_S
        self._bad, self._not_before_s = snapshot_id, time.monotonic() + self._pause_s

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
            if snapshot_id != self.taken:
                await self._take_up(snapshot_id)
            self.taken, self.refused = snapshot_id, None
            if self._lease is not None:
                self._lease.renew()

    async def _take_up(self, snapshot_id: str) -> None:
        lease = share_if_possible(self._store.lease_path(snapshot_id))
        try:
            await self._take(snapshot_id)
        except BaseException as error:
            lease.close()
            if isinstance(error, SnapshotError):
                self._found_bad(snapshot_id)
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
