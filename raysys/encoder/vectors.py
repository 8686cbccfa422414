"""Vectors on disk by the hash of their text, so that an unchanged text is never encoded twice.

One folder an encoder identity, in it any number of Parquet files with a key and a vector a row. A file appears
whole or not at all; two that hold the same key hold the same vector.
"""

import logging
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.disk import replacing
from raysys.errors import EncoderError, SnapshotError
from raysys.types import TextKeys, Vectors

KEY_BYTES = 32
KEY = np.dtype(f"V{KEY_BYTES}")
ROW_GROUP = 8_192  # vectors read in one piece: 25 MB at 768 dimensions

log = logging.getLogger(__name__)


class EmbeddingStore:
    """The vectors of one encoder identity, under ``<root>/embeddings/<fingerprint>/``. Any number may write at once.

    Keys are ``keys.text_key`` of the fingerprint and the text.
    """

    def __init__(self, root: str | Path, fingerprint: str, dim: int) -> None:
        self.folder = Path(root) / "embeddings" / fingerprint
        self.dim = dim
        self._schema = pa.schema(
            [
                pa.field("text_key", pa.binary(KEY_BYTES), nullable=False),
                pa.field("vector", pa.binary(dim * 4), nullable=False),
            ]
        )

    def holds(self, keys: TextKeys) -> NDArray[np.bool_]:
        """[n] bool: which of these keys, which may repeat, have a vector here.

        However many vectors there are, holds these keys and those of one row group.
        """
        wanted, at = _Wanted(keys), np.unique(keys, return_inverse=True)[1]
        found = np.zeros(len(wanted.keys), dtype=np.bool_)
        for file in self._files():
            for group in range(file.num_row_groups):
                places = wanted.places(_group_keys(file, group))
                found[places[places >= 0]] = True
        return found[at]

    def write(self, keys: Sequence[bytes], vectors: Vectors) -> Path:
        """Store one vector a key, [len(keys), dim] float32, in a new file, on disk when this returns."""
        if vectors.shape != (len(keys), self.dim):
            raise EncoderError(f"{len(keys)} vectors of {self.dim} dimensions expected, given: {vectors.shape}")
        table = pa.table([pa.array(keys, pa.binary(KEY_BYTES)), _column(vectors)], schema=self._schema)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        with replacing(path, path.with_suffix(".tmp")) as file:
            pq.write_table(table, file, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
        return path

    def load(self, keys: TextKeys) -> Vectors:
        """[len(keys), dim] float32 in the order of the keys, which may repeat.

        Holds the result and one row group at a time. Raises SnapshotError that says how many keys have no vector.
        """
        _, first, at = np.unique(keys, return_index=True, return_inverse=True)
        wanted = _Wanted(keys)
        vectors = np.empty((len(keys), self.dim), dtype=np.float32)
        missing = np.ones(len(first), dtype=np.bool_)
        for file in self._files():
            if not missing.any():
                break
            self._fill(file, wanted, first, vectors, missing)
        if missing.any():
            raise SnapshotError(
                f"{missing.sum()} of {len(first)} vectors are not in {self.folder}; encode their texts first"
            )
        again = np.flatnonzero(first[at] != np.arange(len(keys)))
        vectors[again] = vectors[first[at[again]]]
        return vectors

    def files_without(self, keys: TextKeys) -> list[Path]:
        """The files that hold no vector of these keys, and what killed processes have not finished."""
        wanted = _Wanted(keys)
        of_others = [path for path, file in self._paths() if not _holds_any(file, wanted)]
        return [*of_others, *sorted(self.folder.glob("*.tmp"))]

    def _fill(
        self, file: Any, wanted: "_Wanted", first: NDArray[np.intp], vectors: Vectors, missing: NDArray[np.bool_]
    ) -> None:
        """Copy the wanted vectors of one file to the first row of each; row groups without any are not read."""
        for group in range(file.num_row_groups):
            places = wanted.places(_group_keys(file, group))
            source = np.flatnonzero((places >= 0) & missing[places])
            if len(source):
                rows = _rows_of(file.read_row_group(group, columns=["vector"]), self.dim)
                vectors[first[places[source]]] = rows[source]
                missing[places[source]] = False

    def _files(self) -> Iterator[Any]:
        return (file for _, file in self._paths())

    def _paths(self) -> Iterator[tuple[Path, Any]]:
        """The open files, those apart that are not ours: the worst they cost is that a text is encoded again."""
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                file = pq.ParquetFile(path)
            except (OSError, pa.ArrowInvalid) as error:
                log.warning("%s is left out, it cannot be read: %s", path, error)
                continue
            with file:
                if file.schema_arrow.equals(self._schema):
                    yield path, file
                else:
                    log.warning("%s is left out, its columns are not those of %d-d vectors", path, self.dim)


class _Wanted:
    """Keys to look for. keys: each once, ascending; 40 bytes a key."""

    def __init__(self, keys: TextKeys) -> None:
        self.keys = np.unique(keys)
        self._begins = _begins(self.keys)

    def places(self, found: TextKeys) -> NDArray[np.intp]:
        """Where each of these stands in ``keys``, -1 where it does not."""
        places = np.full(len(found), -1, dtype=np.intp)
        if not len(self.keys):
            return places
        # Whole keys are compared one by one in memory; most that are not wanted differ in the first 8 bytes already.
        begins = _begins(found)
        near = np.minimum(np.searchsorted(self._begins, begins), len(self.keys) - 1)
        likely = np.flatnonzero(self._begins[near] == begins)
        at = np.minimum(np.searchsorted(self.keys, found[likely]), len(self.keys) - 1)
        same = self.keys[at] == found[likely]
        places[likely[same]] = at[same]
        return places


def _begins(keys: TextKeys) -> NDArray[np.uint64]:
    """The first 8 bytes of each key as a number that sorts as the key does."""
    words = np.ascontiguousarray(keys).view(">u8").reshape(len(keys), KEY_BYTES // 8)
    return words[:, 0].astype(np.uint64)


def _group_keys(file: Any, group: int) -> TextKeys:
    return keys_of(file.read_row_group(group, columns=["text_key"]).column(0))


def _holds_any(file: Any, wanted: _Wanted) -> bool:
    return any((wanted.places(_group_keys(file, group)) >= 0).any() for group in range(file.num_row_groups))


def keys_of(column: Any) -> TextKeys:
    """The keys of a column of 32-byte values without nulls: [n]."""
    chunks = [np.frombuffer(c.buffers()[1], dtype=KEY)[c.offset : c.offset + len(c)] for c in column.chunks if len(c)]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, KEY), *chunks])


def key_column(keys: TextKeys) -> Any:
    """[n] keys as an Arrow array that shares their memory."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys)])


def _column(vectors: Vectors) -> Any:
    """[n, dim] float32 as a column of little-endian bytes, one value a row, without a copy where possible."""
    data = np.ascontiguousarray(vectors, dtype="<f4")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(data.shape[1] * 4), len(data), [None, pa.py_buffer(data)])


def _rows_of(table: Any, dim: int) -> Vectors:
    """The vectors of a one-column table: [n, dim] float32."""
    column = table.column(0).combine_chunks()
    data = np.frombuffer(column.buffers()[1], dtype="<f4")[column.offset * dim :]
    return data[: len(column) * dim].reshape(len(column), dim)
