from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import EventsSettings
from raysys.data.events import (
    EVENT_SCHEMA,
    REQUIRED,
    PreparedEvents,
    event_id_of,
    prepare_events,
    resolve_event_columns,
)
from raysys.data.readers import Batch, columns_of, discover, read
from raysys.errors import ConfigError

NOON_S = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


def prepared(table: dict[str, Any], **settings: Any) -> PreparedEvents:
    chosen = EventsSettings(path="x", **settings)
    arrow = pa.table(table)
    batch = Batch("x.csv", 2, arrow, pa.array(range(len(arrow)), pa.int64()))
    return prepare_events(batch, chosen, resolve_event_columns(chosen, arrow.column_names))


def times(values: Any) -> tuple[list[float | None], list[str]]:
    n = len(values)
    result = prepared({"user_id": ["u"] * n, "item_id": ["i"] * n, "timestamp": values})
    by_row = dict(zip(result.events["source_row"].to_pylist(), result.events["timestamp_s"].to_pylist(), strict=True))
    return [by_row.get(row) for row in range(n)], [reject.code for reject in result.rejects]


def test_a_ratings_file() -> None:
    settings = {"columns": {"value": "rating", "user_id": "userId"}, "default_kind": "rating"}
    table = {"userId": [1, 2], "item_id": [2**60 + 1, 5], "rating": [4.5, None], "timestamp": [1_260_759_144, 0]}
    events = prepared(table, **settings).events
    assert events.schema.names == [*EVENT_SCHEMA.names, "source_seq", "source_row"]
    assert events["user_id"].to_pylist() == ["1", "2"]
    assert events["item_id"].to_pylist() == [str(2**60 + 1), "5"]
    assert events["kind"].to_pylist() == ["rating", "rating"]
    assert events["value"].to_pylist() == [4.5, None]
    assert events["timestamp_s"].to_pylist() == [1_260_759_144.0, 0.0]


def test_times_of_files() -> None:
    ms = int(NOON_S * 1000)
    strings = [str(int(NOON_S)), str(ms), f"{NOON_S}5", "2026-01-31T13:00:00+01:00"]
    assert times(strings) == ([NOON_S, NOON_S, pytest.approx(NOON_S + 0.05), NOON_S], [])
    assert times([NOON_S, float(ms)]) == ([NOON_S, NOON_S], [])
    assert times([datetime(2026, 1, 31, 12, tzinfo=UTC)]) == ([NOON_S], [])


def test_times_that_are_refused() -> None:
    bad = ["2026-01-31T12:00:00", "noon", "-5", str(int(NOON_S * 1e6)), "nan", None]
    codes = ["zoneless_time", "bad_time", "bad_time", "bad_time", "bad_time", "missing_timestamp"]
    assert times(bad) == ([None] * 6, codes)
    assert times([float("nan"), -1.0]) == ([None, None], ["not_finite", "bad_time"])


def test_bad_rows_go_and_their_neighbours_stay() -> None:
    result = prepared(
        {
            "event_id": ["a", None, "c", "d\0"],
            "user_id": ["u", "u", None, "u"],
            "item_id": ["i", "x" * 257, "i", "i"],
            "timestamp": [1, 1, 1, 1],
            "value": ["5", "5", "5", "five"],
            "kind": ["like", None, "like", " "],
        }
    )
    assert result.events["source_row"].to_pylist() == [0, 3]
    assert result.events["event_id"].to_pylist() == ["a", event_id_of("u", "i", "view", 1.0, None)]
    assert result.events["value"].to_pylist() == [5.0, None]
    assert result.events["kind"].to_pylist() == ["like", "view"]
    assert [(reject.row, reject.field, reject.code, reject.dropped) for reject in result.rejects] == [
        (1, "item_id", "bad_id", "row"),
        (2, "user_id", "missing_user_id", "row"),
        (3, "event_id", "bad_id", "field"),
        (3, "value", "not_a_number", "field"),
    ]


def test_a_missing_column_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"'item_id', which is required. Did you mean 'itemId'\?"):
        resolve_event_columns(EventsSettings(path="x"), ["user_id", "itemId", "timestamp"])


@pytest.mark.parametrize(
    ("mapped", "available"),
    [({}, ["type"]), ({"type": "did"}, ["did"]), ({"kind": "did"}, ["did", "type"]), ({}, ["kind", "type"])],
)
def test_a_kind_may_be_called_a_type_as_in_the_api(mapped: dict[str, str], available: list[str]) -> None:
    found = resolve_event_columns(EventsSettings(path="x", columns=mapped), [*REQUIRED, *available])
    assert found["kind"] == available[0]


def test_a_kind_and_a_type_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="'type' and 'kind' are one field"):
        resolve_event_columns(EventsSettings(path="x", columns={"kind": "a", "type": "b"}), [*REQUIRED, "a", "b"])


def test_event_ids_stay_the_same_between_releases() -> None:
    assert event_id_of("u", "i", "view", 1.0, None) == "6321fa540a9b3654c86cdf41a3d692d7"


PART = st.text(alphabet="ab:1", min_size=1, max_size=3)


@given(st.tuples(PART, PART, PART), st.tuples(PART, PART, PART))
def test_different_events_have_different_ids(one: tuple[str, str, str], two: tuple[str, str, str]) -> None:
    assert (event_id_of(*one, 1.0, None) == event_id_of(*two, 1.0, None)) == (one == two)


def test_events_from_a_csv_file_with_a_broken_line(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\nu,i,1\nu,i\nu,007,2026-01-31T12:00:00Z\n")
    (split,) = discover(str(tmp_path / "e.csv"))
    settings = EventsSettings(path="x")
    columns = resolve_event_columns(settings, columns_of(split))
    (batch,) = read(split, list(columns.values()))
    result = prepare_events(batch, settings, columns)
    assert result.events["item_id"].to_pylist() == ["i", "007"]
    assert result.events["source_row"].to_pylist() == [2, 4]
    assert [(reject.row, reject.code, reject.field) for reject in result.rejects] == [(3, "wrong_field_count", None)]
