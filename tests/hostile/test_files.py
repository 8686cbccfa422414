"""Catalogue and event files that nobody means well: rows and rejects with reasons, or one error for people."""

import csv
import gzip
import io
import json
import random
import resource
import time
import uuid
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import CatalogSettings, EventsSettings
from raysys.data import catalog, events, readers
from raysys.data.rejects import Reject, rejects_table
from raysys.errors import ConfigError, RaysysError

Read = tuple[list[dict[str, Any]], list[Reject]]
ROWS = 40
MUTATED = 300  # of each format and kind
WORST_S = 20.0


def read_items(path: Path, **attributes: str) -> Read:
    """As a build reads a catalogue."""
    asked = CatalogSettings.model_validate({"path": str(path), "attributes": attributes})
    splits = readers.discover(asked.path, asked.format)
    columns = catalog.resolve_columns(asked, readers.columns_of(splits[0]))
    rows, rejects = [], []
    for split in splits:
        for batch in readers.read(split, catalog.columns_to_read(asked, columns)):
            prepared = catalog.prepare(batch, asked, columns, catalog.attribute_types(asked, batch.table))
            rows += prepared.items.to_pylist()
            rejects += prepared.rejects
    return rows, rejects


def read_events(path: Path) -> Read:
    """As a build reads past behaviour."""
    asked = EventsSettings.model_validate({"path": str(path)})
    splits = readers.discover(asked.path, asked.format)
    columns = events.resolve_event_columns(asked, readers.columns_of(splits[0]))
    rows, rejects = [], []
    for split in splits:
        for batch in readers.read(split, list(dict.fromkeys(columns.values()))):
            prepared = events.prepare_events(batch, asked, columns)
            rows += prepared.events.to_pylist()
            rejects += prepared.rejects
    return rows, rejects


ITEMS = pa.table(
    {
        "item_id": [f"i{i}" for i in range(ROWS)],
        "title": [f"title é {i}" for i in range(ROWS)],
        "tags": [["a", "b"]] * ROWS,
        "price": [float(i) for i in range(ROWS)],
        "hidden": [False] * ROWS,
    }
)
EVENTS = pa.table(
    {
        "user_id": [f"u{i}" for i in range(ROWS)],
        "item_id": [f"i{i}" for i in range(ROWS)],
        "timestamp": [1.6e9 + i for i in range(ROWS)],
        "text": ["hi"] * ROWS,
    }
)
KINDS: dict[str, tuple[pa.Table, Callable[[Path], Read]]] = {
    "items": (ITEMS, read_items),
    "events": (EVENTS, read_events),
}


def as_csv(table: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    writer.writerows(["|".join(v) if isinstance(v, list) else v for v in row.values()] for row in table.to_pylist())
    return text.getvalue().encode()


def as_jsonl(table: pa.Table) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in table.to_pylist())


def as_parquet(table: pa.Table, compression: str = "snappy") -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=16, compression=compression)
    return file.getvalue()


WRITERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}
PIECES = [b'"', b"\n", b"\r", b"\0", b"\xff", b"\xc3", b",", b"{", b"}", b"\\ud800", b"NaN", b"1e400", b"\xef\xbb\xbf"]
PIECES += [b'{"a":' * 50, b'["' * 2_000, b"\xed\xa0\x80", b"9" * 5_000, b"\x1f\x8b", b"a\0b\0", b"null", b"-0", b"|"]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with a few bytes changed, put in, taken out, repeated or cut off."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 30])):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            data[at:at] = chance.choice(PIECES)
        elif kind == 2:
            del data[at : at + chance.choice([1, 4, 50, 500])]
        elif kind == 3:
            data[at:at] = data[at : at + chance.choice([1, 10, 200])]
        elif chance.random() < 0.1:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
def test_a_mutated_file_gives_rows_and_rejects_or_one_error_for_people(tmp_path: Path, kind: str, suffix: str) -> None:
    table, read = KINDS[kind]
    chance = random.Random(f"{kind} {suffix}")
    whole = WRITERS[suffix.split(".")[0]](table)
    outcomes = {"rows": 0, "error": 0}
    for _ in range(MUTATED):
        content = mutated(whole, chance) if chance.random() < 0.7 or "." not in suffix else whole
        if suffix.endswith(".gz"):
            content = gzip.compress(content)
            content = mutated(content, chance) if chance.random() < 0.5 else content
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(content)
        try:
            rejects_table(read(path)[1])
            outcomes["rows"] += 1
        except RaysysError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 0, outcomes


hostile_lines = st.binary(max_size=200) | st.sampled_from(PIECES) | st.text(max_size=50).map(str.encode)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.integers(0, ROWS - 1), hostile_lines, st.sampled_from(["csv", "jsonl"]))
def test_one_bad_line_costs_no_other(
    tmp_path_factory: pytest.TempPathFactory, at: int, bad: bytes, suffix: str
) -> None:
    head, *lines = as_csv(ITEMS).splitlines(True) if suffix == "csv" else [b"", *as_jsonl(ITEMS).splitlines(True)]
    lines[at] = bad.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
    path = tmp_path_factory.getbasetemp() / f"one.{suffix}"
    path.write_bytes(head + b"".join(lines))
    ids = [row["item_id"] for row in read_items(path)[0]]
    assert {f"i{i}" for i in range(ROWS) if i != at} <= set(ids)


def zoo() -> dict[str, pa.Array]:
    """A column of every type that Parquet holds, with the ends of what each can hold."""
    ends = pa.array([2**62, None, -(2**62)], pa.int64())
    days = pa.array([2**31 - 1, None, -(2**31)], pa.int32())
    texts, lists = ["a", "", None], [["a"], None, []]
    raw = [b"\xff", b"a", None]
    return {
        "null": pa.nulls(3),
        "bool": pa.array([True, False, None]),
        "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "half": pa.array([1.5, float("nan"), None], pa.float16()),
        "double": pa.array([1e308, float("inf"), -0.0]),
        "decimal": pa.array([Decimal("1" * 30 + ".5"), None, Decimal(0)], pa.decimal128(38, 2)),
        "decimal256": pa.array([Decimal("1" * 70), None, Decimal(-3)], pa.decimal256(76, 0)),
        "text": pa.array(texts),
        "large text": pa.array(texts, pa.large_string()),
        "text view": pa.array(texts, pa.string_view()),
        "binary": pa.array(raw),
        "large binary": pa.array(raw, pa.large_binary()),
        "binary view": pa.array(raw, pa.binary_view()),
        "fixed binary": pa.array([b"\xff\0", b"ab", None], pa.binary(2)),
        "date": pa.array([date(1, 1, 1), None, date(9999, 12, 31)]),
        "far date": days.cast(pa.date32()),
        "far date64": ends.cast(pa.date64()),
        "time of day": ends.view(pa.time64("us")),
        "time": ends.cast(pa.timestamp("us")),
        "time in a zone": ends.cast(pa.timestamp("ns", "Europe/Paris")),
        "time in no zone there is": ends.cast(pa.timestamp("us", "Mars/Olympus")),
        "duration": ends.cast(pa.duration("s")),
        "list": pa.array(lists),
        "list of numbers": pa.array([[1], None, [None, 2]]),
        "list of binary": pa.array([[b"\xff"], None, []]),
        "list of lists": pa.array([[["a"]], None, [[]]]),
        "list of dates": pa.ListArray.from_arrays([0, 1, 2, 3], days.cast(pa.date32())),
        "list view": pa.array(lists, pa.list_view(pa.string())),
        "large list": pa.array(lists, pa.large_list(pa.string())),
        "fixed list": pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2)),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
        "map": pa.array([[("a", 1), ("a", 2)], None, []], pa.map_(pa.string(), pa.int64())),
        "codes": pa.array(texts).dictionary_encode(),
        "codes of numbers": pa.array([1, None, 2]).dictionary_encode(),
        "uuid": pa.array([uuid.UUID(int=1).bytes, None, uuid.UUID(int=2).bytes], pa.uuid()),
    }


ZOO = zoo()


@pytest.mark.parametrize("name", ZOO)
def test_a_column_of_any_type_costs_its_values_at_most(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    for kind, fields in (("items", catalog.ITEM_SCHEMA.names), ("events", events.FIELDS)):
        table, read = KINDS[kind]
        for field in fields:
            columns = {column: table[column].slice(0, 3) for column in table.column_names}
            pq.write_table(pa.table(columns | {field: ZOO[name]}), path)
            rows, rejects = read(path)
            lost = [reject for reject in rejects if reject.dropped == "row"]
            assert len(rows) + len(lost) == 3
            assert all(reject.message for reject in rejects)
            if field not in table.column_names:
                assert not lost


def test_an_attribute_of_any_type_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for array in ZOO.values():
        pq.write_table(pa.table({"item_id": ["a", "b", "c"], "title": ["x", "y", "z"], "odd": array}), path)
        assert len(read_items(path, odd="odd")[0]) == 3


# Small files that hold very much


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_small_file_that_inflates_is_refused(tmp_path: Path) -> None:
    path, before_mb = tmp_path / "a.csv.gz", memory_mb()
    with gzip.open(path, "wb", 1) as file:
        file.write(b"item_id,title\n")
        for _ in range(400):
            file.write((b"a," + b"b" * 100_000 + b"\n") * 10)
    start_s = time.perf_counter()
    with pytest.raises(ConfigError, match="more than 200 times its"):
        for _ in readers.read(readers.discover(str(path))[0], ["item_id"]):
            pass
    assert time.perf_counter() - start_s < 60
    assert memory_mb() - before_mb < 500


def test_a_long_text_that_stands_in_every_row_is_refused(tmp_path: Path) -> None:
    path, before_mb = tmp_path / "a.parquet", memory_mb()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(20_000)], "title": texts}), path, store_schema=False)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ConfigError, match="more than 200 times its"):
        read_items(path)
    assert memory_mb() - before_mb < 200


def test_texts_that_repeat_are_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([f"{i % 7}" * 100_000 for i in range(1_000)])
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(1_000)], "title": texts}), path)
    batches = list(readers.read(readers.discover(str(path))[0], ["title", "item_id"]))
    assert pa.concat_tables(batch.table for batch in batches)["title"].to_pylist() == texts.to_pylist()
    assert [row for batch in batches for row in batch.rows.to_pylist()] == list(range(1_000))
    assert max(batch.table.nbytes for batch in batches) < 40_000_000


ENDLESS = {
    "quotes that never close": (b"item_id,title\n" + b'x","z\n' * 20_000 + b"a,b\n", "csv"),
    "quotes that each take a megabyte": (b"item_id,title\n" + (b'a,"\n' + b"b,c\n" * 300) * 200, "csv"),
    "one line": (b"item_id,title\na,b\n" + b"x" * (64 << 20) + b"\nc,d\n", "csv"),
    "one line of JSON": (
        b'{"item_id":"a","title":"b"}\n' + b"[" * (64 << 20) + b'\n{"item_id":"c","title":"d"}\n',
        "jsonl",
    ),
    "a million columns": (b"item_id,title," + b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n", "csv"),
    "one record": (b"item_id,title\na,b\n" + (b'"' + b"x" * 1_000 + b'\n",') * 9_000, "csv"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_file_is_read_without_end(tmp_path: Path, name: str) -> None:
    content, suffix = ENDLESS[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    start_s, before_mb = time.perf_counter(), memory_mb()
    rows, _ = read_items(path)
    assert time.perf_counter() - start_s < WORST_S * 3
    assert memory_mb() - before_mb < 500
    last = {"quotes that never close": "a", "one line": "c", "one line of JSON": "c"}.get(name)
    assert last is None or rows[-1]["item_id"] == last


def test_an_error_names_few_of_many_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n1\n")
    with pytest.raises(ConfigError, match="and 999,900 more") as caught:
        read_items(path)
    assert len(str(caught.value)) < 5_000
