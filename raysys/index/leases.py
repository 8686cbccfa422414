"""Who works with a snapshot, in whatever process: a lock on a file, which the system lets go when the process ends.

There is no heartbeat to miss and nothing stale after a kill -9. Over a network it takes a file system with ``flock``,
as NFS 4 is. A lease file that is not empty has the time when a server last used its snapshot.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from raysys.errors import SnapshotError

RENEW_S = 60.0
NEEDED = "the root of the index must be a folder that this user may write to, on a file system with flock"

log = logging.getLogger(__name__)


class Lease:
    """A lock that is held until ``close``, or until the process ends."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._renewed_s = float("-inf")

    def renew(self) -> None:
        """Write down that a server uses the snapshot now, once in ``RENEW_S``."""
        if self._file is not None and time.monotonic() - self._renewed_s >= RENEW_S:
            self._renewed_s = time.monotonic()
            with contextlib.suppress(OSError):  # of another user: the lock is what counts
                self._file.truncate(1)
                os.utime(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def share(path: Path) -> Lease:
    """A lease that any number may hold at once. Waits while somebody has it alone. Raises SnapshotError."""
    try:
        while True:
            file = _opened(path)
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_still(path, file):
                return Lease(file)
            file.close()  # removed while this waited
    except OSError as error:
        raise SnapshotError(f"{path} cannot be locked ({error}): {NEEDED}") from error


def share_if_possible(path: Path) -> Lease:
    """As ``share``; where the index may only be read, a lease that holds nothing."""
    try:
        return share(path)
    except SnapshotError as error:
        log.warning("nothing keeps the snapshot in use from being collected: %s", error)
        return Lease(None)


def alone(path: Path) -> Lease | None:
    """The lease when nobody else holds it, else None. Does not wait. Raises OSError."""
    while True:
        file = _opened(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if _is_still(path, file):
            return Lease(file)
        file.close()  # removed between the two


def forget(path: Path) -> None:
    """Remove the file of a lease that nobody holds. Raises OSError."""
    lease = alone(path)
    if lease is not None:
        with lease:
            path.unlink()


def is_held(path: Path) -> bool:
    """Whether some process holds the lease."""
    if not path.exists():
        return False
    try:
        lease = alone(path)
    except OSError:  # of another user, or on a disk that may only be read: who knows
        return True
    if lease is not None:
        lease.close()
    return lease is None


def used_s(path: Path) -> float:
    """When a server last used the snapshot, in epoch seconds; 0 = never."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0
    return found.st_mtime if found.st_size else 0.0


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Alone among all that lock this file. Waits. Raises SnapshotError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise SnapshotError(f"{path} cannot be written ({error}): {NEEDED}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise SnapshotError(f"{path} cannot be locked ({error}): {NEEDED}") from error
        yield


def _opened(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _is_still(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
