"""Vectors on disk by the hash of their text, so that an unchanged text is never encoded twice.

One folder an encoder identity, in it any number of Parquet files with a key and a vector a row. A file appears
whole or not at all; two that hold the same key hold the same vector.
"""

import logging
import os
import uuid
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.errors import EncoderError, SnapshotError
from raysys.types import Vectors

KEY_BYTES = 32
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

    def keys(self) -> set[bytes]:
        """The keys of all texts that have a vector here."""
        return {key for file in self._files() for key in _keys_of(file)}

    def write(self, keys: Sequence[bytes], vectors: Vectors) -> Path:
        """Store one vector a key, [len(keys), dim] float32, in a new file, on disk when this returns."""
        if vectors.shape != (len(keys), self.dim):
            raise EncoderError(f"{len(keys)} vectors of {self.dim} dimensions expected, given: {vectors.shape}")
        table = pa.table([pa.array(keys, pa.binary(KEY_BYTES)), _column(vectors)], schema=self._schema)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            pq.write_table(table, file, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(self.folder)
        return path

    def load(self, keys: Sequence[bytes]) -> Vectors:
        """[len(keys), dim] float32 in the order of the keys, which may repeat.

        Holds the result and one row group at a time. Raises SnapshotError that says how many keys have no vector.
        """
        rows: dict[bytes, int] = {}
        for key in keys:
            rows.setdefault(key, len(rows))
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        missing = np.ones(len(rows), dtype=np.bool_)
        for file in self._files():
            if not missing.any():
                break
            self._fill(file, rows, vectors, missing)
        if missing.any():
            raise SnapshotError(
                f"{missing.sum()} of {len(rows)} vectors are not in {self.folder}; encode their texts first"
            )
        return vectors if len(rows) == len(keys) else vectors[[rows[key] for key in keys]]

    def files_without(self, keys: Set[bytes]) -> list[Path]:
        """The files that hold no vector of these keys, and what killed processes have not finished."""
        of_others = [path for path, file in self._paths() if not any(key in keys for key in _keys_of(file))]
        return [*of_others, *sorted(self.folder.glob("*.tmp"))]

    def _fill(self, file: Any, rows: dict[bytes, int], vectors: Vectors, missing: NDArray[np.bool_]) -> None:
        """Copy the wanted vectors of one file; row groups without any are not read."""
        for group in range(file.num_row_groups):
            found = file.read_row_group(group, columns=["text_key"]).column(0).to_pylist()
            wanted = [(source, rows[key]) for source, key in enumerate(found) if key in rows and missing[rows[key]]]
            if wanted:
                source, target = np.array(wanted).T
                vectors[target] = _rows_of(file.read_row_group(group, columns=["vector"]), self.dim)[source]
                missing[target] = False

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


def _keys_of(file: Any) -> Iterator[bytes]:
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, columns=["text_key"]).column(0).to_pylist()


def _column(vectors: Vectors) -> Any:
    """[n, dim] float32 as a column of little-endian bytes, one value a row, without a copy where possible."""
    data = np.ascontiguousarray(vectors, dtype="<f4")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(data.shape[1] * 4), len(data), [None, pa.py_buffer(data)])


def _rows_of(table: Any, dim: int) -> Vectors:
    """The vectors of a one-column table: [n, dim] float32."""
    column = table.column(0).combine_chunks()
    data = np.frombuffer(column.buffers()[1], dtype="<f4")[column.offset * dim :]
    return data[: len(column) * dim].reshape(len(column), dim)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
