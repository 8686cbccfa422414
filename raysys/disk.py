"""What stays through a power cut, and whether a file has changed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

Stamp = tuple[int, ...]


def stamp_of(path: Path) -> Stamp:
    """Numbers that are others once the file or its permissions changed. Raises OSError."""
    now = path.stat()
    return now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size


@contextmanager
def replacing(path: Path, temporary: Path | None = None, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends: a reader sees the old or the new,
    whole, and it is on the disk then. Where the block raises, ``path`` stays as it was.

    temporary: a name in the same folder that nobody else uses; None = one by chance. mode: who may read it, less the
    umask.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") if temporary is None else temporary
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # on a disk that is full it would take the room that is needed
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk when this returns: after a rename, the folder's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
