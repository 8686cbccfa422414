"""The files of one shard: written once by the job, memory-mapped by everyone who reads.

Rows are sorted by item key, so a key is found by binary search and two builds of the same data give the same bytes.

    items.arrow       the items' fields, one row an item     keys.npy        [n] uint64
    vectors.npy       [n, dim] float32                       popularity.npy  [n] float32 in 0..1
    index.faiss       the vector index                       transition/, ridge/   behaviour that leads to these rows
                                                             words/          the terms of the items
                                                             spaces/         vectors of behaviour models, [n, d] float32
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.catalog import ITEM_SCHEMA
from raysys.errors import SnapshotError
from raysys.index.arrays import open_array, save_array
from raysys.index.filters import Attributes
from raysys.index.kinds import Effort
from raysys.index.manifest import ShardRecord
from raysys.index.spaces import PlacesItems, open_item_models
from raysys.index.sparse_rows import SparseRows
from raysys.index.vector_index import VectorIndex
from raysys.index.words import Vocabulary, WordRows
from raysys.types import SOURCES, SPACES, Keys, Vectors


def write_shard(
    folder: Path,
    items: pa.Table,
    keys: Keys,
    vectors: Vectors,
    popularity: NDArray[np.float32],
    transition: SparseRows,
    ridge: SparseRows,
    words: WordRows,
    spaces: Mapping[str, Vectors],
    index: VectorIndex,
) -> None:
    """Write all files of a shard into a fresh folder. All inputs are in row order: sorted by key.

    spaces: by the name of their source, as ``ShardFiles.spaces``.
    """
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
        writer.write_table(items)
    save_array(folder / "keys.npy", keys)
    save_array(folder / "vectors.npy", vectors)
    save_array(folder / "popularity.npy", popularity)
    transition.save(folder / "transition")
    ridge.save(folder / "ridge")
    words.save(folder / "words")
    for name, placed in spaces.items():
        (folder / "spaces").mkdir(exist_ok=True)
        save_array(folder / "spaces" / f"{name}.npy", placed)
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
    effort: Effort | None = None

    @classmethod
    def of(cls, snapshot: Path, shard: ShardRecord, metric: str) -> "ShardFiles":
        """Those of one shard of the snapshot in this folder."""
        return cls(snapshot / shard.folder, shard.index_kind, metric, shard.effort)

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
    def transition(self) -> SparseRows:
        return SparseRows.load(self.folder / "transition")

    @cached_property
    def ridge(self) -> SparseRows:
        """Without a weight where the snapshot has none: many items, or written before there was this model."""
        folder = self.folder / "ridge"
        return SparseRows.load(folder) if folder.is_dir() else SparseRows.empty()

    @cached_property
    def spaces(self) -> dict[int, Vectors]:
        """One of ``types.SPACES`` -> the vectors of the items in it, zero for those that its model does not know.

        Only those that the snapshot has.
        """
        paths = {source: self.folder / "spaces" / f"{SOURCES[source]}.npy" for source in SPACES}
        return {source: open_array(path) for source, path in paths.items() if path.is_file()}

    @cached_property
    def item_models(self) -> dict[int, PlacesItems]:
        """One of the spaces -> its model, where that knows new items by their text."""
        return open_item_models(self.folder.parent)

    @cached_property
    def words(self) -> WordRows:
        return WordRows.load(self.folder / "words", len(self.keys))

    @cached_property
    def attribute_names(self) -> list[str]:
        """The columns of the items beside those that all catalogues have."""
        return [name for name in self.items.column_names if name not in {*ITEM_SCHEMA.names, "text_key"}]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """That of the whole snapshot."""
        return Vocabulary.load(self.folder.parent)

    @cached_property
    def index(self) -> VectorIndex:
        return VectorIndex.load(self.folder / "index.faiss", self.vectors, self.index_kind, self.metric, self.effort)
