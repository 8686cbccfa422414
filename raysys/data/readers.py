"""Rows of Parquet, CSV and JSONL files in bounded batches. A broken line is one reject, never a lost file.

Text files must be UTF-8. A CSV row or JSON line with other bytes is rejected and the rows around it are kept;
a CSV header with other bytes raises ConfigError.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysys.data.columns import listed
from raysys.data.csv_lines import MAX_LINE_CHARS, BrokenLine, bounded_line, check_record, csv_records, text_lines
from raysys.data.inflation import BATCH_CHARS, BATCH_ROWS, Meter, parquet_tables
from raysys.data.rejects import Reject, excerpt
from raysys.data.sources import UNREADABLE, Split, discover, open_root
from raysys.errors import ConfigError

__all__ = ["BATCH_ROWS", "Batch", "Split", "columns_of", "discover", "read"]

# Keys of JSON lines may differ from line to line; those of so many lines are taken for all.
SAMPLED_LINES = 10_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one split, in file order.

    source: the file. number: that of the split. table: the columns asked for.
    rows: [len(table)] int64, where each row stands: the line it begins at in a text file, counted from 1 as editors
    do; its index in a Parquet file, counted from 0 as data frames do.
    rejects: lines that could not be read.
    """

    source: str
    number: int
    table: pa.Table
    rows: pa.Array
    rejects: list[Reject] = field(default_factory=list)


def columns_of(split: Split) -> list[str]:
    """The column names of a split's file; of JSON lines, the keys of the first 10,000.

    Raises ConfigError when the file cannot be opened or its header cannot be read.
    """
    with _open(split) as stream:
        if split.format == "parquet":
            return list(pq.read_schema(stream).names)
        if split.format == "csv":
            return _header(split, csv_records(text_lines(stream)))
        keys: dict[str, None] = {}
        for line in islice(_lines(stream), SAMPLED_LINES):
            record = _parse_json(1, line)
            if isinstance(record, dict):
                keys.update(dict.fromkeys(record))
        return list(keys)


def read(split: Split, columns: Sequence[str]) -> Iterator[Batch]:
    """The rows of a split with these columns, at most 16,384 at a time, text files also at most some 32 MB.

    CSV values are strings, empty ones null; nothing is guessed, so "007" stays. A JSON column whose values are all of
    one kind keeps it (string, int64, float64, bool, list<string>); any other becomes strings, JSON text for what was
    none. A column of strings with lone surrogates becomes binary, for ``cleaning`` to see. Parquet keeps its types.
    Raises ConfigError when the file cannot be opened or read to its end, when what comes out of it is more than 256 MB
    and 200 times its size, and when a CSV or Parquet file lacks a column.
    """
    wanted = list(dict.fromkeys(columns))
    with _open(split) as stream:
        if split.format == "parquet":
            yield from _read_parquet(split, stream, wanted)
        elif split.format == "csv":
            yield from _read_csv(split, stream, wanted)
        else:
            yield from _read_jsonl(split, stream, wanted)


@contextmanager
def _open(split: Split) -> Iterator[Any]:
    file_system: pafs.FileSystem = open_root(split.root)[0]
    try:
        if split.format == "parquet":
            raw = file_system.open_input_file(split.path)
        else:
            meter = Meter(split.path, file_system.get_file_info(split.path).size)
            raw = _Metered(file_system.open_input_stream(split.path, compression="detect"), meter)
        with raw if split.format == "parquet" else io.BufferedReader(raw) as stream:
            yield stream
    except UNREADABLE as error:
        raise ConfigError(f"{split.path}: cannot be read: {error}") from error


def _check_columns(split: Split, names: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if names.count(column) != 1:
            problem = "has no" if column not in names else f"has {names.count(column)} columns named"
            raise ConfigError(f"{split.path}: {problem} {column!r}. Its columns: {listed(names)}.")


def _read_parquet(split: Split, stream: Any, wanted: list[str]) -> Iterator[Batch]:
    schema = pq.read_schema(stream)
    _check_columns(split, schema.names, wanted)
    row = split.first_row
    for table in parquet_tables(split, stream, schema, wanted):
        yield Batch(split.path, split.number, table, pa.array(range(row, row + len(table)), pa.int64()))
        row += len(table)


def _header(split: Split, records: Iterator[tuple[int, list[str]] | BrokenLine]) -> list[str]:
    record = next(records, BrokenLine(1, "empty", "there is no line in it", ""))
    broken = record if isinstance(record, BrokenLine) else check_record(*record, record[1])
    if isinstance(record, BrokenLine) or broken is not None:
        message = "" if broken is None else broken.message
        raise ConfigError(f"{split.path}: cannot read the header of this CSV file: {message}.")
    return record[1]


def _read_csv(split: Split, stream: Any, wanted: list[str]) -> Iterator[Batch]:
    records = csv_records(text_lines(stream))
    header = _header(split, records)
    _check_columns(split, header, wanted)
    places = [header.index(column) for column in wanted]
    rows = _Rows(split, wanted)
    for record in records:
        broken = record if isinstance(record, BrokenLine) else check_record(*record, header)
        if broken is not None:
            rows.reject(broken)
        elif not isinstance(record, BrokenLine):
            line, fields = record
            rows.add(line, [fields[place] or None for place in places], sum(map(len, fields)))
        if rows.full:
            yield rows.take()
    yield from rows.rest()


def _read_jsonl(split: Split, stream: Any, wanted: list[str]) -> Iterator[Batch]:
    rows = _Rows(split, wanted)
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        record = _parse_json(number, line)
        if isinstance(record, BrokenLine):
            rows.reject(record)
        else:
            rows.add(number, [record.get(column) for column in wanted], len(line))
        if rows.full:
            yield rows.take()
    yield from rows.rest()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(bounded_line, stream), b"")


def _parse_json(number: int, line: bytes) -> dict[str, Any] | BrokenLine:
    if len(line) > MAX_LINE_CHARS:
        message = f"a line of more than {MAX_LINE_CHARS:,} bytes: write one JSON object a line"
        return BrokenLine(number, "bad_json", message, line[:200].decode("utf-8", "replace"))
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        message = f"byte 0x{line[error.start]:02X} at offset {error.start} of the line is not UTF-8: save as UTF-8"
        return BrokenLine(number, "not_utf8", message, repr(line[:200]))
    except (ValueError, RecursionError) as error:
        return BrokenLine(number, "bad_json", f"not a JSON object: {error}", line[:200].decode("utf-8", "replace"))
    if not isinstance(record, dict):
        message = f"a JSON object was expected, one a line, but this is a {type(record).__name__}"
        return BrokenLine(number, "bad_json", message, line[:200].decode("utf-8", "replace"))
    return record


class _Metered(io.RawIOBase):
    """A stream that does not give more than its meter lets through."""

    def __init__(self, stream: pa.NativeFile, meter: Meter) -> None:
        self._stream, self._meter = stream, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_bytes: int = self._stream.readinto(buffer)
        self._meter.add(n_bytes)
        return n_bytes

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Rows:
    """Rows and rejects gathered for the next batch of a text file."""

    def __init__(self, split: Split, names: list[str]) -> None:
        self.split, self.names = split, names
        self._reset()

    def _reset(self) -> None:
        self.lines: list[int] = []
        self.values: list[list[Any]] = []
        self.rejects: list[Reject] = []
        self.chars = 0

    @property
    def full(self) -> bool:
        return max(len(self.lines), len(self.rejects)) >= BATCH_ROWS or self.chars >= BATCH_CHARS

    def add(self, line: int, values: list[Any], chars: int) -> None:
        self.lines.append(line)
        self.values.append(values)
        self.chars += chars

    def reject(self, broken: BrokenLine) -> None:
        self.rejects.append(
            Reject(
                self.split.path, broken.line, None, None, broken.code, broken.message, "row", excerpt(broken.excerpt)
            )
        )

    def take(self) -> Batch:
        by_column = list(zip(*self.values, strict=True)) or [()] * len(self.names)
        table = pa.table([_column(values) for values in by_column], names=self.names)
        batch = Batch(self.split.path, self.split.number, table, pa.array(self.lines, pa.int64()), self.rejects)
        self._reset()
        return batch

    def rest(self) -> Iterator[Batch]:
        if self.lines or self.rejects:
            yield self.take()


_KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _column(values: Sequence[Any]) -> pa.Array:
    """One Arrow column from JSON values; the rules are those of ``read``."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        lists = [None if value is None else [_json_text(e) for e in value if e is not None] for value in values]
        return _strings(lists, pa.list_(pa.string()), pa.list_(pa.binary()))
    if len(kinds) == 1 and kinds <= _KINDS.keys():
        try:
            return pa.array(values, _KINDS[kinds.pop()])
        except OverflowError:
            pass  # an integer above 64 bits: its digits are kept
    texts = [None if value is None else _json_text(value) for value in values]
    return _strings(texts, pa.string(), pa.binary())


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _strings(values: list[Any], as_text: pa.DataType, as_bytes: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, as_text)
    except UnicodeEncodeError:
        return pa.array([_bytes(value) for value in values], as_bytes)


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(element) for element in value]
    return None if value is None else value.encode("utf-8", "surrogatepass")
