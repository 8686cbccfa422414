import gzip
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.csv_lines import BrokenLine, csv_records
from raysys.data.readers import BATCH_ROWS, Batch, columns_of, discover, read
from raysys.data.rejects import REJECT_SCHEMA, rejects_table
from raysys.data.sources import bytes_of
from raysys.errors import ConfigError


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read_all(path: str, columns: Sequence[str], file_format: Any = "auto") -> list[Batch]:
    return [batch for split in discover(path, file_format) for batch in read(split, columns)]


def one(path: str, columns: Sequence[str]) -> Batch:
    (batch,) = read_all(path, columns)
    return batch


# discover


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "_SUCCESS", ".hidden.csv", "sub/c.csv", "_temporary/d.csv"):
        write(tmp_path / "in" / name, "id\n1\n")
    splits = discover(str(tmp_path / "in"))
    assert [Path(split.path).name for split in splits] == ["a.csv", "b.csv", "c.csv"]
    assert [split.number for split in splits] == [0, 1, 2]
    assert pickle.loads(pickle.dumps(splits)) == splits
    assert bytes_of(splits) == 3 * len("id\n1\n")


def test_a_parquet_file_is_split_by_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": pa.array(range(5_000), pa.int64())}), path, row_group_size=600)
    splits = discover(str(path))
    assert [split.row_groups for split in splits] == [(0, 1), (2, 3), (4, 5), (6, 7), (8,)]
    assert [split.first_row for split in splits] == [0, 1_200, 2_400, 3_600, 4_800]
    assert bytes_of(splits) == path.stat().st_size
    batches = read_all(str(path), ["id"])
    assert [value for batch in batches for value in batch.table["id"].to_pylist()] == list(range(5_000))
    assert [row for batch in batches for row in batch.rows.to_pylist()] == list(range(5_000))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no such file"),
        ({"_only": "x"}, "holds no files"),
        ({"a.csv": ""}, "every file is empty"),
        ({"a.csv": "id\n", "b.jsonl": "{}\n"}, "mixed"),
        ({"a.csv": "id\n", "notes.txt": "x"}, "cannot tell the format"),
        ({"a.parquet": "no parquet"}, "not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused_before_work_starts(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, content in files.items():
        write(tmp_path / "in" / name, content)
    with pytest.raises(ConfigError, match=words):
        discover(str(tmp_path / "in"))


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="no installed library opens"):
        discover("nonesuch://bucket/items.csv")


def test_urls(tmp_path: Path) -> None:
    write(tmp_path / "items.csv", "id\n1\n")
    assert one((tmp_path / "items.csv").as_uri(), ["id"]).table["id"].to_pylist() == ["1"]
    with fsspec.filesystem("memory").open("/catalogue/items.csv", "wb") as file:
        file.write(b"id\n2\n")
    assert one("memory://catalogue", ["id"]).table["id"].to_pylist() == ["2"]


def test_compressed_text_and_a_format_that_is_set(tmp_path: Path) -> None:
    write(tmp_path / "items.csv.gz", gzip.compress(b"id\n1\n"))
    assert one(str(tmp_path / "items.csv.gz"), ["id"]).table["id"].to_pylist() == ["1"]
    write(tmp_path / "export.txt", '{"id": "2"}\n')
    (batch,) = read_all(str(tmp_path / "export.txt"), ["id"], "jsonl")
    assert batch.table["id"].to_pylist() == ["2"]


# CSV


def test_csv_values_are_not_guessed(tmp_path: Path) -> None:
    ids = ["007", "18446744073709551615", "NA", "null", "1e5", "true", " spaced "]
    path = write(tmp_path / "a.csv", "\ufeffid,n\n" + "".join(f"{value},\n" for value in ids))
    batch = one(path, ["n", "id"])
    assert batch.table.schema == pa.schema({"n": pa.string(), "id": pa.string()})
    assert batch.table["id"].to_pylist() == ids
    assert batch.table["n"].null_count == len(ids)
    assert columns_of(discover(path)[0]) == ["id", "n"]


def test_csv_records_over_several_lines(tmp_path: Path) -> None:
    batch = one(write(tmp_path / "a.csv", 'id,t\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,x\r\n'), ["id", "t"])
    assert batch.table["t"].to_pylist() == ['two\nlines, "quoted"', "x"]
    assert batch.rows.to_pylist() == [2, 5]


def test_a_broken_csv_line_costs_itself_only(tmp_path: Path) -> None:
    lines = [b"id,t", b"1,ok", b"2,too,many", b'3,"never closed', b"4,ok", b"few", b"5,caf\xe9", b'6,"ok"']
    batch = one(write(tmp_path / "a.csv", b"\n".join(lines)), ["id", "t"])
    assert batch.table["id"].to_pylist() == ["1", "4", "6"]
    assert batch.rows.to_pylist() == [2, 5, 8]
    assert [(reject.row, reject.code) for reject in batch.rejects] == [
        (3, "wrong_field_count"),
        (4, "bad_quotes"),
        (6, "wrong_field_count"),
        (7, "not_utf8"),
    ]
    assert "byte 0xE9 at character 3 of column 't'" in batch.rejects[3].message
    assert rejects_table(batch.rejects).schema == REJECT_SCHEMA


def test_a_quote_never_closed_in_a_long_file_costs_one_line(tmp_path: Path) -> None:
    rows = "".join(f"{i},text of item {i}\n" for i in range(100_000))
    batches = read_all(write(tmp_path / "a.csv", 'id,t\n"broken,x\n' + rows), ["id"])
    assert sum(len(batch.table) for batch in batches) == 100_000
    assert [reject.row for batch in batches for reject in batch.rejects] == [2]
    assert max(len(batch.table) for batch in batches) <= BATCH_ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,caf\xe9\n1,2\n", "header.*not UTF-8"),
        (b"\xff\xfei\0d\0\n\0", "header.*not UTF-8"),
        (b"id,id\n1,2\n", "has 2 columns named 'id'"),
        (b"other\n1\n", "has no 'id'. Its columns: 'other'"),
    ],
)
def test_a_bad_csv_header_is_a_config_error(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        one(write(tmp_path / "a.csv", content), ["id"])


@given(st.lists(st.sampled_from(['a,"b', "1,2", 'x"y,2', '"a""b",2', "1", '"', '"1\n2",3', '"q" x,1']), max_size=12))
def test_every_csv_line_is_read_or_reported_once(rows: list[str]) -> None:
    lines = [line + "\n" for row in rows for line in row.split("\n")]
    found = list(csv_records(io.StringIO("".join(lines), newline="")))
    begins = [record.line if isinstance(record, BrokenLine) else record[0] for record in found]
    assert begins == sorted(set(begins))
    whole = "".join(",".join(record[1]) if isinstance(record, tuple) else record.excerpt for record in found)
    assert sum(map(whole.count, "12")) == sum("".join(lines).count(digit) for digit in "12")


def test_quotes_that_stay_open_take_linear_time(tmp_path: Path) -> None:
    # Every record reaches to the end of the file: read again from each line, that would be 10 GB.
    path = write(tmp_path / "a.csv", "id,t\n" + 'x","z\n' * 20_000 + "1,ok\n")
    batches = read_all(path, ["id"])
    assert [row for batch in batches for row in batch.table["id"].to_pylist()] == ["1"]
    assert sum(len(batch.rejects) for batch in batches) == 20_000


# JSONL


def test_json_kinds_and_exact_integers(tmp_path: Path) -> None:
    rows = [
        {"id": 2**60 + 1, "huge": 2**70, "mixed": 1, "tags": ["a", 1], "flag": True, "price": 1.5, "deep": {"a": 1}},
        {"id": 7, "mixed": "x", "tags": [], "flag": None, "price": float("nan")},
    ]
    batch = one(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), [*rows[0], "absent"])
    values = {name: batch.table[name].to_pylist() for name in batch.table.column_names}
    assert values["id"] == [2**60 + 1, 7]
    assert values["huge"] == [str(2**70), None]
    assert values["mixed"] == ["1", "x"]
    assert values["tags"] == [["a", "1"], []]
    assert values["flag"] == [True, None]
    assert values["deep"] == ['{"a": 1}', None]
    assert values["absent"] == [None, None]


def test_a_broken_json_line_costs_itself_only(tmp_path: Path) -> None:
    lines = [
        b'{"id": "1"}',
        b'{"id": ',
        b"",
        b"[1, 2]",
        b'{"id": "caf\xe9"}',
        b"[" * 100_000,
        b'{"id": ' + b"9" * 5_000 + b"}",
        b'{"id": "2", "t": "\xe2\x80\xa8"}',
    ]
    batch = one(write(tmp_path / "a.jsonl", b"\n".join(lines)), ["id"])
    assert batch.table["id"].to_pylist() == ["1", "2"]
    assert batch.rows.to_pylist() == [1, 8]
    assert [(reject.row, reject.code) for reject in batch.rejects] == [
        (2, "bad_json"),
        (4, "bad_json"),
        (5, "not_utf8"),
        (6, "bad_json"),
        (7, "bad_json"),
    ]


def test_lone_surrogates_are_handed_on_as_bytes(tmp_path: Path) -> None:
    batch = one(
        write(tmp_path / "a.jsonl", '{"id": "a\\ud800", "t": ["\\ud800"]}\n{"id": "b", "t": null}'), ["id", "t"]
    )
    assert batch.table["id"].to_pylist() == [b"a\xed\xa0\x80", b"b"]
    assert batch.table["t"].to_pylist() == [[b"\xed\xa0\x80"], None]


def test_keys_of_all_sampled_json_lines_are_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1}\nbroken\n{"id": 2, "price": 3}\n')
    assert columns_of(discover(path)[0]) == ["id", "price"]


def test_many_lines_come_in_bounded_batches(tmp_path: Path) -> None:
    n = BATCH_ROWS + 5
    path = write(tmp_path / "a.jsonl", "".join(f'{{"id": {i}}}\n' for i in range(n)))
    assert [len(batch.table) for batch in read_all(path, ["id"])] == [BATCH_ROWS, 5]


# Parquet


def test_parquet_without_rows_and_without_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), path)
    assert columns_of(discover(str(path))[0]) == ["id"]
    assert read_all(str(path), ["id"]) == []
    with pytest.raises(ConfigError, match="has no 'title'"):
        read_all(str(path), ["title"])


def test_an_empty_parquet_file_among_others_is_left_out(tmp_path: Path) -> None:
    for name, ids in (("a", []), ("b", ["1"])):
        pq.write_table(pa.table({"id": pa.array(ids, pa.string())}), tmp_path / f"{name}.parquet")
    assert [Path(split.path).name for split in discover(str(tmp_path))] == ["b.parquet"]


def test_a_file_that_went_away_is_a_config_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id\n1\n")
    (split,) = discover(path)
    Path(path).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read(split, ["id"]))
