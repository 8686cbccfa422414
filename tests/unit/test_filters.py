"""Filters: limits, error paths, and masks equal to a slow evaluation in plain Python."""

import math
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import InvalidInput, UnknownField
from raysys.index import filters
from raysys.index.filters import Attributes, Filter, check, parse


def must(**condition):
    return {"must": [{name.rstrip("_"): value for name, value in condition.items()}]}


JANUARY, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
TABLE = pa.table(
    {
        "title": pa.array(["Alien", "Brazil", None, ""]),
        "language": pa.array(["en", "en", "fr", None]).dictionary_encode(),
        "categories": pa.array([["Horror", "SciFi"], ["SciFi", None], [], None], pa.list_(pa.string())),
        "year": pa.array([1979, 1985, None, 2**53 + 1], pa.int64()),
        "stock": pa.array([0, 5, 200, None], pa.uint8()),
        "price": pa.array([19.99, None, math.nan, 0.0], pa.float32()),
        "hidden": pa.array([False, True, None, False]),
        "ratings": pa.array([[5, 1], None, [3], []], pa.large_list(pa.int8())),
        "available": pa.array([JANUARY, None, JANUARY + timedelta(days=90), LATER], pa.timestamp("s", "UTC")),
        "size": pa.array([{"w": 1}, None, {"w": 2}, {"w": 3}]),
    }
)
ITEMS = Attributes(TABLE)


def kept(raw):
    return np.flatnonzero(ITEMS.mask(parse(raw))).tolist()


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ({"field": "title", "match": "Alien"}, [0]),
        ({"field": "title", "match": ""}, [3]),
        ({"field": "title", "in": ["Brazil", "Alien", "Nobody"]}, [0, 1]),
        ({"field": "title", "in": []}, []),
        ({"field": "title", "exists": True}, [0, 1, 3]),
        ({"field": "title", "exists": False}, [2]),
        ({"field": "language", "match": "en"}, [0, 1]),
        ({"field": "categories", "match": "SciFi"}, [0, 1]),
        ({"field": "categories", "in": ["Horror", "Drama"]}, [0]),
        ({"field": "categories", "exists": False}, [2, 3]),
        ({"field": "year", "match": 1979.0}, [0]),
        ({"field": "year", "match": 1979.5}, []),
        ({"field": "year", "match": 2**53}, []),
        ({"field": "year", "match": float(2**53)}, []),
        ({"field": "year", "range": {"gte": 1979, "lt": 1985}}, [0]),
        ({"field": "year", "range": {"gt": 1978.5, "lte": 1985.5}}, [0, 1]),
        ({"field": "year", "range": {"gt": float(2**53)}}, [3]),
        ({"field": "year", "range": {"gt": 5, "lt": 3}}, []),
        ({"field": "stock", "match": 0}, [0]),
        ({"field": "stock", "match": 256}, []),
        ({"field": "stock", "range": {"lt": 2**63, "gte": -1}}, [0, 1, 2]),
        ({"field": "price", "match": 19.99}, [0]),
        ({"field": "price", "range": {"gte": 19.99}}, [0]),
        ({"field": "price", "range": {"lt": 1e300}}, [0, 3]),
        ({"field": "price", "match": -0.0}, [3]),
        ({"field": "price", "exists": True}, [0, 2, 3]),
        ({"field": "hidden", "match": False}, [0, 3]),
        ({"field": "hidden", "in": [True]}, [1]),
        ({"field": "ratings", "range": {"gte": 3, "lt": 5}}, [2]),
        ({"field": "ratings", "match": 5}, [0]),
        ({"field": "available", "range": {"gte": "2026-01-01T01:00:00+01:00"}}, [0, 2, 3]),
        ({"field": "available", "range": {"gt": "2026-01-01T00:00:00Z", "lt": "2027-01-01T00:00:00Z"}}, [2]),
        ({"field": "available", "range": {"gte": "2025-12-31T23:59:59.5Z", "lt": "2026-01-01T00:00:00.5Z"}}, [0]),
        ({"field": "available", "match": 1_767_225_600_000}, [0]),
        ({"field": "size", "exists": True}, [0, 2, 3]),
    ],
)
def test_a_condition_keeps_the_rows_worked_out_by_hand(condition, rows):
    assert kept({"must": [condition]}) == rows
    assert kept({"must_not": [condition]}) == [row for row in range(4) if row not in rows]


def test_must_should_and_must_not_combine():
    english = {"field": "language", "match": "en"}
    old = {"field": "year", "range": {"lt": 1980}}
    horror = {"field": "categories", "match": "Horror"}
    assert kept({"must": [english], "should": [old, horror]}) == [0]
    assert kept({"must": [english], "must_not": [horror]}) == [1]
    assert kept({"should": [{"must": [english, old]}, {"must_not": [english]}]}) == [0, 2, 3]
    assert kept({}) == [0, 1, 2, 3]
    assert kept({"must": [], "should": [], "must_not": []}) == [0, 1, 2, 3]


def test_a_must_not_on_a_null_keeps_the_item():
    assert 2 in kept({"must_not": [{"field": "year", "range": {"lt": 3000}}]})


@pytest.mark.parametrize(
    ("raw", "path", "says"),
    [
        (must(field="year"), "filter.must[0]", "exactly one of"),
        (must(field="year", match=1, exists=True), "filter.must[0]", "2 given"),
        (must(field="year", match=math.nan), "filter.must[0].match", "finite"),
        (must(field="year", match=[1]), "filter.must[0].match", "must be a string"),
        (must(field="year", match=2**64), "filter.must[0].match", "64 bits"),
        (must(field="title", match="é" * 513), "filter.must[0].match", "1026 given"),
        (must(field="title", match="\ud800"), "filter.must[0].match", "Unicode"),
        (must(field="title", in_=["a", None]), "filter.must[0].in[1]", "must be a string"),
        (must(field="title", in_=["a"] * 1001), "filter.must[0].in", "1000"),
        (must(field="year", range={}), "filter.must[0].range", "at least one of"),
        (must(field="year", range={"gte": math.inf}), "filter.must[0].range.gte", "finite"),
        (must(field="year", range={"from": 1}), "filter.must[0].range.from", "not permitted"),
        (must(field="title", exists="yes"), "filter.must[0].exists", "boolean"),
        (must(field="", exists=True), "filter.must[0].field", "at least 1"),
        ({"should": [{"must": [{"field": "year", "like": 3}]}]}, "filter.should[0].must[0].like", "not permitted"),
        ({"all": []}, "filter.all", "not permitted"),
        ({"must": [3]}, "filter.must[0]", ""),
        ([], "filter", ""),
        ({"must": [{"field": "year", "match": 1}] * 257}, "filter.must", "256"),
        ({"must": [{"must": [{"field": "year", "match": 1}] * 200}] * 2}, "filter", "400 given"),
        ({"must": [{"must": [{}] * 200}] * 6}, "filter", "1024 conditions and filters"),
        ({"must": [{"field": "year", "in": [1] * 1_000}] * 11}, "filter", "10000 values"),
    ],
)
def test_a_malformed_filter_is_refused_with_the_path_of_the_fault(raw, path, says):
    with pytest.raises(InvalidInput) as caught:
        parse(raw)
    assert caught.value.field == path
    assert says in caught.value.message


@pytest.mark.parametrize("depth", [6, 200, 5_000])
def test_nesting_is_limited_however_deep_it_is(depth):
    raw = {}
    for _ in range(depth - 1):
        raw = {"must": [raw]}
    with pytest.raises(InvalidInput):
        parse(raw)
    assert parse({"must": [{"must": [{"must": [{"must": [{"must": []}]}]}]}]})


@pytest.mark.parametrize(
    ("condition", "path", "says"),
    [
        ({"field": "year", "match": "1979"}, "match", "'year' (int64) is compared with a number, not with '1979'"),
        ({"field": "year", "match": True}, "match", "not with True"),
        ({"field": "hidden", "match": 1}, "match", "true or false, not with 1"),
        ({"field": "title", "in": ["a", 1]}, "in[1]", "a string, not with 1"),
        ({"field": "title", "range": {"gte": "a"}}, "range", "has no range"),
        ({"field": "hidden", "range": {"gte": False}}, "range", "has no range"),
        ({"field": "price", "range": {"gte": "cheap"}}, "range.gte", "float"),
        ({"field": "available", "range": {"gte": "2026-01-01T00:00:00"}}, "range.gte", "offset"),
        ({"field": "available", "range": {"lt": "2026-02-31T00:00:00Z"}}, "range.lt", "RFC 3339"),
        ({"field": "available", "range": {"lt": "2026-01-01"}}, "range.lt", "RFC 3339"),
        ({"field": "available", "range": {"lt": 1.5}}, "range.lt", "1.5"),
        ({"field": "size", "match": 1}, "match", "use exists"),
        ({"field": "size", "range": {"lt": 1}}, "range.lt", "use exists"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_the_schema_alone(condition, path, says):
    with pytest.raises(InvalidInput) as caught:
        check(parse({"should": [{"must": [condition]}]}), TABLE.schema)
    assert caught.value.field == f"filter.should[0].must[0].{path}"
    assert says in caught.value.message


def test_an_unknown_field_is_named_with_those_that_exist():
    with pytest.raises(UnknownField) as caught:
        ITEMS.check(parse({"must_not": [{"field": "yeer", "exists": True}]}))
    assert caught.value.field == "filter.must_not[0].field"
    assert "'yeer'" in caught.value.message
    assert "title, year" in caught.value.message


def test_filters_are_values():
    raw = {"must": [{"field": "title", "in": ["a", "b"]}, {"should": [{"field": "year", "range": {"gte": 1}}]}]}
    one, other = parse(raw), parse(raw)
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert Filter.model_validate_json(one.model_dump_json()) == one


def test_a_mask_is_kept_and_cannot_be_written_to():
    items = Attributes(TABLE)
    mask = items.mask(parse(must(field="title", match="Alien")))
    assert items.mask(parse(must(field="title", match="Alien"))) is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = False


def test_the_oldest_masks_are_dropped_when_the_cache_is_full():
    items = Attributes(TABLE, cache_bytes=2 * len(TABLE))
    first, second, third = (parse(must(field="year", match=year)) for year in (1, 2, 3))
    mask = items.mask(first)
    other = items.mask(second)
    items.mask(first)
    items.mask(third)
    assert items.mask(first) is mask
    assert items.mask(second) is not other


def test_a_kept_mask_does_not_let_a_wrong_type_pass():
    items = Attributes(TABLE)
    items.mask(parse(must(field="hidden", match=True)))
    with pytest.raises(InvalidInput):
        items.mask(parse(must(field="hidden", match=1)))


def test_no_items_give_an_empty_mask():
    items = Attributes(TABLE.slice(0, 0))
    assert items.mask(parse(must(field="categories", match="Drama"))).shape == (0,)
    assert Attributes(TABLE.schema.empty_table()).mask(parse({})).shape == (0,)


def test_columns_may_be_mapped_from_a_file_in_many_batches(tmp_path: Path):
    table = pa.table({"tags": [["a"], ["b", "a"], None, [], ["c"]] * 7, "n": list(range(35))})
    path = tmp_path / "items.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with pa.memory_map(str(path)) as source:
        mapped = pa.ipc.open_file(source).read_all()
        assert mapped["n"].num_chunks > 1
        mask = Attributes(mapped).mask(parse(must(field="tags", match="a")))
    assert np.flatnonzero(mask).tolist() == [row for row in range(35) if row % 5 < 2]


# The oracle: the same meaning, item by item, without Arrow or numpy.

WORDS = st.sampled_from(["a", "b", "c", ""])
WHOLE = st.integers(-3, 3)
REAL = st.sampled_from([-1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
TIMES = st.integers(-3, 3).map(lambda hours: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hours))
COLUMNS = {
    "word": (pa.string(), WORDS),
    "words": (pa.list_(pa.string()), st.lists(st.none() | WORDS, max_size=3)),
    "whole": (pa.int32(), WHOLE),
    "wholes": (pa.list_(pa.int64()), st.lists(st.none() | WHOLE, max_size=3)),
    "real": (pa.float64(), REAL),
    "flag": (pa.bool_(), st.booleans()),
    "time": (pa.timestamp("ms", "UTC"), TIMES),
}
VALUES = {"word": WORDS, "words": WORDS, "flag": st.booleans(), "time": TIMES.map(datetime.isoformat)}
NUMBERS = WHOLE | REAL


@st.composite
def conditions(draw):
    field = draw(st.sampled_from(sorted(COLUMNS)))
    values = VALUES.get(field, NUMBERS)
    operators = ["match", "in", "exists"] + ["range"] * (field not in ("word", "words", "flag"))
    operator = draw(st.sampled_from(operators))
    value = {
        "match": values,
        "in": st.lists(values, max_size=3),
        "exists": st.booleans(),
        "range": st.dictionaries(st.sampled_from(["gte", "gt", "lt", "lte"]), values, min_size=1, max_size=2),
    }[operator]
    return {"field": field, operator: draw(value)}


def trees(depth=3):
    clause = conditions() if depth == 1 else conditions() | trees(depth - 1)
    names = st.sampled_from(["must", "should", "must_not"])
    return st.dictionaries(names, st.lists(clause, max_size=3))


def oracle(clause, item):
    if "field" in clause:
        return condition_oracle(clause, item[clause["field"]])
    should = [oracle(inner, item) for inner in clause.get("should", [])]
    return (
        all(oracle(inner, item) for inner in clause.get("must", []))
        and (not should or any(should))
        and not any(oracle(inner, item) for inner in clause.get("must_not", []))
    )


def condition_oracle(condition, stored):
    values = [value for value in (stored if isinstance(stored, list) else [stored]) if value is not None]
    if "exists" in condition:
        return condition["exists"] == bool(values)
    return any(value_oracle(condition, value) for value in values)


def value_oracle(condition, stored):
    def read(value):
        return datetime.fromisoformat(value) if isinstance(stored, datetime) else value

    if "match" in condition:
        return stored == read(condition["match"])
    if "in" in condition:
        return stored in [read(value) for value in condition["in"]]
    compare = {
        "gte": lambda bound: stored >= bound,
        "gt": lambda bound: stored > bound,
        "lt": lambda bound: stored < bound,
        "lte": lambda bound: stored <= bound,
    }
    return all(compare[name](read(bound)) for name, bound in condition["range"].items())


ITEM = st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()})


@settings(max_examples=150, deadline=None)
@given(raw=trees(), items=st.lists(ITEM, max_size=8))
def test_masks_equal_a_plain_evaluation(raw, items):
    schema = pa.schema([(name, type_) for name, (type_, _) in COLUMNS.items()])
    table = pa.Table.from_pylist(items, schema)
    table = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    mask = Attributes(table).mask(parse(raw))
    assert mask.tolist() == [oracle(raw, item) for item in items]


def test_error_paths_drop_only_the_names_of_the_union():
    assert (
        filters.error_path(("must", 0, "filter", "should", 2, "condition", "in", 4)) == "filter.must[0].should[2].in[4]"
    )
    assert filters.error_path((), "body.filter") == "body.filter"
