"""The files of one shard: written once by the job, memory-mapped by everyone who reads.

Rows are sorted by item key, so a key is found by binary search and two builds of the same data give the same bytes.

    items.arrow       the items' fields, one row an item     keys.npy        [n] uint64
    vectors.npy       [n, dim] float32                       popularity.npy  [n] float32 in 0..1
    index.faiss       the vector index                       transition/     behaviour weights that lead to these rows
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.errors import SnapshotError
from raysys.index.filters import Attributes
from raysys.index.transition import TransitionRows
from raysys.index.vector_index import VectorIndex
from raysys.types import Keys, Vectors


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write one array so that it is on the disk when this returns."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


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


def write_shard(
    folder: Path,
    items: pa.Table,
    keys: Keys,
    vectors: Vectors,
    popularity: NDArray[np.float32],
    transition: TransitionRows,
    index: VectorIndex,
) -> None:
    """Write all files of a shard into a fresh folder. All inputs are in row order: sorted by key."""
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
        writer.write_table(items)
    save_array(folder / "keys.npy", keys)
    save_array(folder / "vectors.npy", vectors)
    save_array(folder / "popularity.npy", popularity)
    transition.save(folder / "transition")
    index.save(folder / "index.faiss")


def open_items(folder: Path) -> pa.Table:
    """The item table of a shard, memory-mapped."""
    path = folder / "items.arrow"
    try:
        table: pa.Table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise SnapshotError(f"{path} cannot be opened: {error}") from error
    return table


def rows_of(keys: Keys, wanted: Keys) -> NDArray[np.int64]:
    """The row of each wanted key in the sorted ``keys``, -1 where it is not there: [len(wanted)] int64."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    rows = np.searchsorted(keys, wanted)
    rows[rows == len(keys)] = 0
    return np.where(keys[rows] == wanted, rows, -1)


@dataclass(frozen=True)
class ShardFiles:
    """One shard, opened for reading. Each part is mapped when first used."""

    folder: Path
    index_kind: str
    metric: str

    @cached_property
    def items(self) -> pa.Table:
        return open_items(self.folder)

    @cached_property
    def keys(self) -> Keys:
        return open_array(self.folder / "keys.npy")

    @cached_property
    def vectors(self) -> Vectors:
        return open_array(self.folder / "vectors.npy")

    @cached_property
    def popularity(self) -> NDArray[np.float32]:
        return open_array(self.folder / "popularity.npy")

    @cached_property
    def attributes(self) -> Attributes:
        return Attributes(self.items)

    @cached_property
    def transition(self) -> TransitionRows:
        return TransitionRows.load(self.folder / "transition")

    @cached_property
    def index(self) -> VectorIndex:
        return VectorIndex.load(self.folder / "index.faiss", self.vectors, self.index_kind, self.metric)
