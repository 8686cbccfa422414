from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import CatalogSettings
from raysys.data.catalog import (
    ITEM_SCHEMA,
    Prepared,
    attribute_types,
    columns_to_read,
    item_schema,
    last_wins,
    prepare,
    resolve_columns,
)
from raysys.data.item_text import parse_template, render
from raysys.data.readers import Batch, columns_of, discover, read
from raysys.errors import ConfigError

SETTINGS = CatalogSettings(path="x")


def prepared(table: pa.Table | Mapping[str, Any], **settings: Any) -> Prepared:
    table = table if isinstance(table, pa.Table) else pa.table(table)
    chosen = CatalogSettings(path="x", **settings)
    batch = Batch("x.csv", 3, table, pa.array(range(10, 10 + len(table)), pa.int64()))
    return prepare(batch, chosen, resolve_columns(chosen, table.column_names), attribute_types(chosen, table))


def field(name: str, values: Sequence[Any] | pa.Array, **settings: Any) -> tuple[list[Any], list[str]]:
    """What one column gives: its values, and the codes of what was reported."""
    n = len(values)
    result = prepared({"item_id": [f"i{k}" for k in range(n)], "title": ["t"] * n, name: values}, **settings)
    assert len(result.items) == n
    assert all(reject.dropped == "field" and reject.field == name for reject in result.rejects)
    return result.items[name].to_pylist(), [reject.code for reject in result.rejects]


# Columns


def test_columns_are_found_by_mapping_and_by_name() -> None:
    settings = CatalogSettings(path="x", columns={"item_id": "asin", "text": "body"})
    columns = resolve_columns(settings, ["asin", "title", "body", "price", "junk"])
    assert columns == {"item_id": "asin", "title": "title", "text": "body", "price": "price"}
    assert columns_to_read(settings, columns) == ["asin", "title", "body", "price"]


@pytest.mark.parametrize(
    ("settings", "available", "words"),
    [
        ({}, ["Item_ID", "title"], "'item_id', which is required. Did you mean 'Item_ID'?"),
        ({}, ["item_id", "titel"], "'title', which is required. Did you mean 'titel'?"),
        ({"columns": {"item_id": "asn"}}, ["asin", "title"], "'asn', which is not there. Did you mean 'asin'?"),
        ({"columns": {"titel": "title"}}, ["item_id", "title"], "'titel' is not a field. Did you mean 'title'?"),
        ({"attributes": {"brand": "marke"}}, ["item_id", "title"], "'brand' is to come from column 'marke'"),
        ({"attributes": {"item_text": "title"}}, ["item_id", "title"], "Raysys uses itself"),
        ({"attributes": {"price": "cost"}}, ["item_id", "title", "cost"], "`columns: {price: cost}`"),
        ({"template": "{titel}"}, ["item_id", "title"], "{titel} is none of its fields"),
        ({"template": "{title"}, ["item_id", "title"], "template"),
        ({"template": "words"}, ["item_id", "title"], "no field in it"),
    ],
)
def test_a_wrong_mapping_is_explained(settings: dict[str, Any], available: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_columns(CatalogSettings(path="x", **settings), available)
    assert words in str(caught.value)


# Item text


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{title}. {categories}. {tags}. {text}", {"title": "A", "categories": ["x", "y"], "text": "b"}, "A. x, y. b"),
        ("{title}. {categories}. {tags}. {text}", {"title": "A"}, "A"),
        ("{title}. {categories}. {tags}. {text}", {"text": "b"}, "b"),
        ("{title}. {text}", {"title": "What?", "text": "That."}, "What? That."),
        ("{title}. {text}.", {"title": "A", "text": "b"}, "A. b."),
        ("{title} ({categories}), {text}", {"title": "A", "text": "b"}, "A, b"),
        ("{title} ({categories}), {text}", {"title": "A", "categories": ["x"], "text": "b"}, "A (x), b"),
        ("Title: {title}. By {owner_id}", {"owner_id": "me"}, "By me"),
        ("{title} ({categories})", {"title": "A"}, "A"),
        ("{{{title}}}", {"title": "A"}, "{A}"),
        ("{title}, {year}", {"title": "A", "year": 1999}, "A, 1999"),
        ("{title}. {text}", {}, ""),
    ],
)
def test_templates(template: str, values: dict[str, Any], text: str) -> None:
    fields = ["title", "text", "categories", "tags", "owner_id", "year"]
    assert render(parse_template(template, fields), values) == text


def test_item_text_is_clean_and_cut() -> None:
    table = {"item_id": ["1"], "title": ["<b>Hi</b>!"], "text": ["x" * 50], "categories": ["Books &amp; Music||a"]}
    items = prepared(table, max_text_chars=30).items
    assert items["categories"].to_pylist() == [["Books & Music", "a"]]
    assert items["item_text"].to_pylist() == ["Hi! Books & Music, a. xxxxxxxx"]


# Ids


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (pa.array(["007", " a ", "é", "e\u0301"]), ["007", " a ", "é", "e\u0301"]),
        (pa.array([2**60 + 1, -1]), [str(2**60 + 1), "-1"]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([1.0, 12.0]), ["1", "12"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array([UUID(int=7).bytes], pa.uuid()), [str(UUID(int=7))]),
        (pa.array(["a"], pa.large_string()), ["a"]),
    ],
)
def test_ids_are_exact(ids: pa.Array, wanted: list[str]) -> None:
    result = prepared({"item_id": ids, "title": ["t"] * len(ids)})
    assert result.items["item_id"].to_pylist() == wanted
    assert result.rejects == []


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (pa.array(["ok", None]), "missing_id"),
        (pa.array(["ok", ""]), "missing_id"),
        (pa.array(["ok", "a\0b"]), "bad_id"),
        (pa.array(["ok", "x" * 257]), "bad_id"),
        (pa.array([b"ok", b"a\xed\xa0\x80"]), "bad_id"),
        (pa.array([b"ok", b"caf\xe9"]), "bad_id"),
        (pa.array([1.0, 1.5]), "bad_id"),
        (pa.array([1.0, float("nan")]), "bad_id"),
        (pa.array([1.0, 2.0**60]), "inexact_id"),
    ],
)
def test_a_row_with_a_bad_id_goes_and_its_neighbour_stays(bad: pa.Array, code: str) -> None:
    result = prepared({"item_id": bad, "title": ["t", "t"]})
    assert len(result.items) == 1
    (reject,) = result.rejects
    assert (reject.source, reject.row, reject.field, reject.dropped, reject.code) == (
        "x.csv",
        11,
        "item_id",
        "row",
        code,
    )


def test_a_row_without_text_goes() -> None:
    result = prepared({"item_id": ["1", "2", "3"], "title": [" ", None, "t"], "text": ["<p></p>", "words", None]})
    assert result.items["item_id"].to_pylist() == ["2", "3"]
    assert result.items["source_row"].to_pylist() == [11, 12]
    assert result.items["source_seq"].to_pylist() == [3, 3]
    assert [(reject.item_id, reject.code, reject.dropped) for reject in result.rejects] == [("1", "no_text", "row")]


# Optional fields


def test_prices() -> None:
    values, codes = field("price", ["1.50", "abc", "-1", "nan", "1e400", "", " 2 ", "1,5", "1_000", "٣", None])
    assert values == [1.5, None, None, None, None, None, 2.0, None, None, None, None]
    assert codes == ["not_a_number", "negative", "not_a_number", "not_finite"] + ["not_a_number"] * 3
    assert field("price", [1.5, float("nan"), float("-inf"), -0.0]) == ([1.5, None, None, 0.0], ["not_finite"] * 2)


def test_times_are_utc_or_refused_with_a_reason() -> None:
    at = datetime(2026, 1, 31, 17, 30, tzinfo=UTC)
    ms = str(int(at.timestamp() * 1000))
    given_times = ["2026-01-31T18:30:00+01:00", "2026-01-31t17:30:00z", ms]
    bad = ["2026-01-31T18:30:00", "2026-01-31", "soon", str(int(at.timestamp())), "9" * 5_000, "0001-01-01T00:00+23:00"]
    values, codes = field("available_from", given_times + bad)
    assert values == [at] * 3 + [None] * 6
    assert codes == ["zoneless_time", "zoneless_time", "bad_time", "time_in_seconds", "bad_time", "bad_time"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_times(unit: str) -> None:
    at = datetime(2026, 1, 31, 17, 30, tzinfo=UTC)
    zoned = pa.array([at.astimezone(timezone(timedelta(hours=5)))], pa.timestamp(unit, "+05:00"))
    assert field("updated_at", zoned) == ([at], [])
    assert field("updated_at", pa.array([at.replace(tzinfo=None)], pa.timestamp(unit))) == ([None], ["zoneless_time"])


def test_arrow_times_with_nanoseconds_dates_and_far_futures() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    nanoseconds = int(at.timestamp()) * 10**9 + 1_001
    assert field("updated_at", pa.array([nanoseconds], pa.timestamp("ns", "UTC")))[0] == [at.replace(microsecond=1)]
    assert field("updated_at", pa.array([date(2026, 1, 1)])) == ([None], ["zoneless_time"])
    (far,), codes = field("available_until", pa.array([2**62], pa.timestamp("us", "UTC")))
    assert far == datetime.max.replace(tzinfo=UTC)
    assert codes == []


def test_hidden() -> None:
    assert field("hidden", ["true", "NO", "1", "maybe", ""]) == ([True, False, True, None, None], ["not_a_boolean"])
    assert field("hidden", [0, 1, 2]) == ([False, True, None], ["not_a_boolean"])


def test_lists() -> None:
    assert field("tags", ["a|b||a", " ", None, "a,b"])[0] == [["a", "b"], None, None, ["a,b"]]
    assert field("tags", ["a,b"], list_separator=",")[0] == [["a", "b"]]
    assert field("tags", ["a,b"], list_separator="")[0] == [["a,b"]]
    assert field("tags", [["a", None, " b "], [], None])[0] == [["a", "b"], [], None]
    assert field("tags", pa.array([[1, 2]]))[0] == [["1", "2"]]
    assert field("tags", pa.array([[b"\xed\xa0\x80"]]))[0] == [["\ufffd"]]


def test_text_of_other_types() -> None:
    assert field("text", [1, 2])[0] == ["1", "2"]
    assert field("text", pa.array([b"caf\xe9", b"ok"]))[0] == ["caf\ufffd", "ok"]
    assert field("text", [{"a": 1}]) == ([None], ["not_text"])
    assert field("owner_id", [7.0, None])[0] == ["7", None]
    assert field("image", ["https://x/?a=1&copy=<b>"])[0] == ["https://x/?a=1&copy=<b>"]


# Attributes


@pytest.mark.parametrize(
    ("values", "kind", "read_as"),
    [
        (["1", "-20", None], pa.int64(), [1, -20, None]),
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (["007", "12"], pa.string(), ["007", "12"]),
        (["true", "False"], pa.bool_(), [True, False]),
        (["a", "1"], pa.string(), ["a", "1"]),
        ([None, ""], pa.string(), [None, None]),
        ([1, 2**60 + 1], pa.int64(), [1, 2**60 + 1]),
        ([1.5, None], pa.float64(), [1.5, None]),
        ([["a"], None], pa.list_(pa.string()), [["a"], None]),
        ([True, None], pa.bool_(), [True, None]),
        ([date(2026, 1, 31)], pa.string(), ["2026-01-31"]),
        (["R&amp;D <b>"], pa.string(), ["R&amp;D <b>"]),
    ],
)
def test_attribute_types(values: list[Any], kind: pa.DataType, read_as: list[Any]) -> None:
    n = len(values)
    table = {"item_id": [f"i{k}" for k in range(n)], "title": ["t"] * n, "column": values}
    items = prepared(table, attributes={"mine": "column"}).items
    assert items.schema.field("mine").type == kind
    assert items["mine"].to_pylist() == read_as


def test_zoned_times_stay_times() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    table = {"item_id": ["1"], "title": ["t"], "when": pa.array([at], pa.timestamp("s", "Europe/Berlin"))}
    items = prepared(table, attributes={"at": "when"}).items
    assert items.schema.field("at").type == pa.timestamp("us", "UTC")
    assert items["at"].to_pylist() == [at]


def test_a_value_unlike_the_sample_is_reported_and_the_schema_holds() -> None:
    settings = CatalogSettings(path="x", attributes={"year": "year"})
    sample = pa.table({"item_id": ["1"], "title": ["t"], "year": ["1999"]})
    types = attribute_types(settings, sample)
    other = pa.table({"item_id": ["2", "3", "4"], "title": ["t"] * 3, "year": ["MCMXCIX", "9" * 30, "1e3"]})
    batch = Batch("x.csv", 1, other, pa.array([2, 3, 4]))
    result = prepare(batch, settings, resolve_columns(settings, other.column_names), types)
    assert result.items.schema == item_schema(types)
    assert result.items["year"].to_pylist() == [None, None, 1_000]
    assert [reject.code for reject in result.rejects] == ["not_a_number", "not_an_integer"]


# Whole files


def test_the_same_items_from_every_format(tmp_path: Path) -> None:
    table = pa.table({"item_id": ["1", "2"], "title": ["A", "B"], "price": [1.5, None], "tags": [["x", "y"], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("item_id,title,price,tags\n1,A,1.5,x|y\n2,B,,\n")
    (tmp_path / "a.jsonl").write_text(
        '{"item_id":"1","title":"A","price":1.5,"tags":["x","y"]}\n{"item_id":"2","title":"B"}\n'
    )
    found = []
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        (split,) = discover(str(tmp_path / name))
        columns = resolve_columns(SETTINGS, columns_of(split))
        (batch,) = read(split, columns_to_read(SETTINGS, columns))
        result = prepare(batch, SETTINGS, columns, {})
        assert result.rejects == []
        found.append(result.items.drop_columns(["source_row"]).to_pylist())
    assert found[0] == found[1] == found[2]
    assert found[0][0]["item_text"] == "A. x, y"


def test_an_empty_batch_keeps_the_schema() -> None:
    table = pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())})
    assert prepared(table).items.schema == item_schema({})
    assert ITEM_SCHEMA.names == item_schema({}).names[: len(ITEM_SCHEMA)]


# Duplicates


@given(
    st.lists(st.tuples(st.sampled_from("abcdé"), st.integers(0, 2), st.integers(0, 5)), max_size=20, unique=True),
    st.integers(1, 4),
)
def test_the_last_row_of_an_id_wins(rows: list[tuple[str, int, int]], chunk: int) -> None:
    schema = pa.schema({"item_id": pa.string(), "source_seq": pa.int64(), "source_row": pa.int64()})
    parts = [rows[k : k + chunk] for k in range(0, len(rows), chunk)]
    tables = [pa.Table.from_pylist([dict(zip(schema.names, r, strict=True)) for r in p], schema) for p in parts]
    table = pa.concat_tables([schema.empty_table(), *tables])
    kept, n_duplicates = last_wins(table)
    last = {}
    for item, seq, row in sorted(rows, key=lambda r: r[1:]):
        last[item] = (item, seq, row)
    same_place = len({r[1:] for r in rows}) < len(rows)
    got = [tuple(r.values()) for r in kept.to_pylist()]
    assert n_duplicates == len(rows) - len(last)
    assert sorted(r[0] for r in got) == sorted(last)
    assert same_place or set(got) == set(last.values())
    assert got == [r for r in rows if r in set(got)]


def test_many_duplicates() -> None:
    n = 50_000
    table = pa.table(
        {
            "item_id": [f"i{k % 1_000}" for k in range(n)],
            "source_seq": np.zeros(n, np.int64),
            "source_row": np.arange(n)[::-1],
        }
    )
    kept, n_duplicates = last_wins(table)
    assert n_duplicates == n - 1_000
    assert kept["source_row"].to_pylist() == list(range(n - 1, n - 1_001, -1))
