"""Small files that hold very much: how far they are read, and Parquet without more in memory than a batch may have.

A gzip file of a megabyte can hold a gigabyte of zeros, and a Parquet file a long text once and a million rows of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.sources import Split
from raysys.errors import ConfigError

BATCH_ROWS = 16_384
BATCH_CHARS = 32_000_000
# Tables and texts become some 20 times as large at most; where a column hardly ever changes, 50 times.
MOST_TIMES = 200
ALWAYS_BYTES = 256 << 20


class Meter:
    """Counts what comes out of a file. size_bytes: of the file, None where it is not known."""

    def __init__(self, path: str, size_bytes: int | None) -> None:
        self._path, self._size_bytes, self._read_bytes = path, size_bytes, 0

    def add(self, n_bytes: int) -> None:
        """Raises ConfigError where all so far is too much for a file of this size."""
        self._read_bytes += n_bytes
        self.check(self._read_bytes)

    def check(self, n_bytes: int) -> None:
        """Raises ConfigError where this alone is."""
        if self._size_bytes is None or n_bytes <= max(ALWAYS_BYTES, MOST_TIMES * self._size_bytes):
            return
        raise ConfigError(
            f"{self._path}: holds more than {MOST_TIMES} times its {self._size_bytes:,} bytes, as a file does that is"
            " made to fill a memory. If it is meant, write it without compression and dictionaries."
        )


def parquet_tables(split: Split, stream: Any, schema: pa.Schema, wanted: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a split: tables of at most BATCH_ROWS and, where a single row is not more, some BATCH_CHARS of text.

    Texts are read as codes, weighed, and only then written out. Raises ConfigError where they are too much.
    """
    meter = Meter(split.path, stream.size())
    file = pq.ParquetFile(stream, read_dictionary=_texts(schema, wanted))
    _weigh_groups(file.metadata, split.row_groups, meter)
    plain = pa.schema([schema.field(name) for name in wanted])
    for batch in file.iter_batches(BATCH_ROWS, row_groups=list(split.row_groups), columns=list(wanted)):
        coded = pa.Table.from_batches([batch]).select(wanted)
        sizes = sum((_text_bytes(column) for column in coded.columns), np.zeros(len(coded), dtype=np.int64))
        meter.add(int(sizes.sum()))
        for start, stop in _pieces(sizes):
            yield coded.slice(start, stop - start).cast(plain)


def _texts(schema: pa.Schema, wanted: Sequence[str]) -> list[str]:
    """The columns of texts; lists of texts cannot be read as codes over several row groups."""
    kinds = {name: schema.field(name).type for name in wanted}
    return [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_binary(kind)]


def _weigh_groups(metadata: Any, groups: Sequence[int], meter: Meter) -> None:
    """Look at what the file says it is without compression, before any page of it is opened."""
    for group in groups:  # not at its columns: pyarrow 26 aborts the process over some that are damaged
        meter.check(metadata.row_group(group).total_byte_size)


def _text_bytes(column: pa.ChunkedArray) -> Any:
    """[n_rows] int64: the size of each text written out, 0 for what is none."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not pa.types.is_dictionary(array.type):
        return np.zeros(len(array), dtype=np.int64)
    lengths = pc.binary_length(array.dictionary)
    return pc.fill_null(lengths.take(array.indices), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _pieces(sizes: Any) -> Iterator[tuple[int, int]]:
    """(first row, row behind the last) of pieces of some BATCH_CHARS each."""
    piece = np.cumsum(sizes) // BATCH_CHARS
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    return zip(starts.tolist(), [*starts[1:].tolist(), len(sizes)], strict=True)
