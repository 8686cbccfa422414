"""Items by id, over all shards of a snapshot: what the gateway needs for the n winners and for ids in a request.

Everything is memory-mapped and read row by row, so nothing here grows with the catalogue but the mapped files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.encoder.student import ABOUT, FOLDER, Student
from raysys.index.contrast import Contrast
from raysys.index.manifest import Manifest, check_sizes, read_manifest, verify_common
from raysys.index.shard_files import ShardFiles, rows_of
from raysys.index.signing import Signers
from raysys.index.spaces import open_models
from raysys.index.words import Vocabulary
from raysys.keys import item_keys
from raysys.types import Keys, Terms, Vectors

INTERNAL_COLUMNS = {"item_id", "text_key"}
REMEMBERED_ITEMS = 4_096


@dataclass(frozen=True)
class Found:
    """Where items live. shard, row: [n]; row is -1 for an id that the snapshot does not hold."""

    keys: Keys
    shard: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        return self.row >= 0


class Catalogue:
    """The items of one snapshot."""

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        """manifest: that of the folder, where it was read before, and so its signature looked at."""
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder) if manifest is None else manifest
        self.contrast = Contrast.load(folder) if self.manifest.has_contrast else None
        self.models = open_models(folder, self.manifest)
        self.student = _student(folder, self.manifest)
        self.shards = [ShardFiles.of(folder, shard, self.manifest.metric) for shard in self.manifest.shards]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Every term of the items."""
        return self.shards[0].vocabulary

    @cached_property
    def has_behaviour(self) -> bool:
        """Whether what people did leads from items to others."""
        return any(len(shard.transition) or len(shard.ridge) for shard in self.shards)

    def terms(self, found: Found) -> list[Terms]:
        """The terms of the known items, in their order."""
        return [self.shards[shard].words.of(row) for shard, row in _places(found)]

    @property
    def snapshot_id(self) -> str:
        return self.manifest.snapshot_id

    @cached_property
    def schema(self) -> pa.Schema:
        """The fields that filters may name."""
        schema = self.shards[0].items.schema
        return pa.schema([field for field in schema if field.name not in INTERNAL_COLUMNS - {"item_id"}])

    def find(self, item_ids: Sequence[str]) -> Found:
        """Locate items by id."""
        return self.find_keys(item_keys(item_ids))

    def find_keys(self, keys: Keys) -> Found:
        """Locate items by key."""
        shard = (keys % np.uint64(len(self.shards))).astype(np.int64)
        row = np.full(len(keys), -1, dtype=np.int64)
        for number in np.flatnonzero(np.bincount(shard, minlength=1)):
            mine = shard == number
            row[mine] = rows_of(self.shards[number].keys, keys[mine])
        return Found(keys, shard, row)

    def ids_of(self, keys: Keys) -> list[str | None]:
        """The id of each item by its key; None where the snapshot does not hold it."""
        found = self.find_keys(keys)
        pairs = zip(found.shard.tolist(), found.row.tolist(), strict=True)
        return [self.item_id(shard, row) if row >= 0 else None for shard, row in pairs]

    def vectors(self, found: Found) -> Vectors:
        """[n_known, dim] float32, the vectors of the known items, in their order."""
        rows = [self.shards[shard].vectors[row] for shard, row in _places(found)]
        return np.stack(rows) if rows else np.empty((0, self.manifest.encoder_identity.dim), dtype=np.float32)

    def placed(self, found: Found, source: int) -> Vectors:
        """[n_known, d] float32, the vectors of the known items in one of the ``models``, in their order."""
        rows = [self.shards[shard].spaces[source][row] for shard, row in _places(found)]
        return np.stack(rows) if rows else np.empty((0, self.shards[0].spaces[source].shape[1]), dtype=np.float32)

    def text_key(self, item_id: str) -> bytes | None:
        """What names the vector of an item's text; None for an item that the snapshot does not hold."""
        found = self.find([item_id])
        if not found.known[0]:
            return None
        key: bytes = self.shards[int(found.shard[0])].items["text_key"][int(found.row[0])].as_py()
        return key

    def fields(self, item_id: str) -> Mapping[str, Any] | None:
        """``metadata`` of an item by its id; None for one that the snapshot does not hold."""
        found = self.find([item_id])
        return self.metadata(int(found.shard[0]), int(found.row[0])) if found.known[0] else None

    def metadata(self, shard: int, row: int) -> Mapping[str, Any]:
        """The fields of one item that are set, as plain JSON values; times in RFC 3339. Not to be changed."""
        return self._remembered(shard, row)

    @cached_property
    def _remembered(self) -> Callable[[int, int], Mapping[str, Any]]:
        """What lists show most, as they show it."""
        return lru_cache(REMEMBERED_ITEMS)(partial(_metadata, self._columns))  # without a way back to this object

    def item_id(self, shard: int, row: int) -> str:
        """The id of the item at this place."""
        item_id: str = self._ids[shard][row].as_py()
        return item_id

    @cached_property
    def _ids(self) -> list[pa.Array]:
        return [_one_chunk(files.items["item_id"]) for files in self.shards]

    @cached_property
    def _columns(self) -> list[dict[str, pa.Array]]:
        # Columns that are wholly empty would cost time for every item of every answer.
        return [
            {
                name: _one_chunk(files.items[name])
                for name in files.items.column_names
                if name not in INTERNAL_COLUMNS and files.items[name].null_count < len(files.items)
            }
            for files in self.shards
        ]


def _student(folder: Path, manifest: Manifest) -> Student | None:
    """The student of the snapshot's encoder; None where the build has fitted none."""
    if f"{FOLDER}/{ABOUT}" not in manifest.files:
        return None
    return Student.load(folder / FOLDER, manifest.encoder_identity)


def _metadata(columns: Sequence[Mapping[str, pa.Array]], shard: int, row: int) -> Mapping[str, Any]:
    values = {name: column[row].as_py() for name, column in columns[shard].items()}
    return {name: _plain(value) for name, value in values.items() if value is not None and value != []}


def _places(found: Found) -> Iterator[tuple[int, int]]:
    """Shard and row of the known items, in their order."""
    return zip(found.shard[found.known].tolist(), found.row[found.known].tolist(), strict=True)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def open_verified(folder: Path, signers: Signers | None = None) -> Catalogue:
    """The catalogue of a snapshot whose files all have their size, and those that belong to no shard their content too.

    Raises SnapshotDamaged, and as ``read_manifest``. Who searches a shard verifies that one.
    """
    manifest = read_manifest(folder, signers)
    check_sizes(folder, manifest)
    verify_common(folder, manifest)
    return Catalogue(folder, manifest)
