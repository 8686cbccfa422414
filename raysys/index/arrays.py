"""One array a file: written so that it stays, and memory-mapped by whoever reads it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.disk import replacing
from raysys.errors import SnapshotError


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write one array so that a reader sees all of it or nothing, and it is on the disk when this returns."""
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map one array read-only. Raises SnapshotError when it is missing or damaged."""
    try:
        return np.asarray(_mapped(path))  # a plain view: np.memmap is slow to index
    except (OSError, ValueError, EOFError) as error:
        raise SnapshotError(f"{path} cannot be opened: {error}; build the snapshot again") from error


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # numpy cannot map an array without elements
        array = np.load(path, allow_pickle=False)
    return array
