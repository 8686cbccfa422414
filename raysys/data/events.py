"""Past behaviour from files, made into events: checked, with an id each and a time in epoch seconds."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysys.config import EventsSettings
from raysys.data import columns as mapping
from raysys.data.cleaning import clean_text, plain_text
from raysys.data.prepared import SOURCE_FIELDS, Fault, build_table, place_of_rows, report
from raysys.data.readers import Batch
from raysys.data.rejects import Problem, Reject
from raysys.data.values import Parsed, Parser, as_text, parse_column, parse_event_time_s, parse_id, parse_number
from raysys.errors import ConfigError

EVENT_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("timestamp_s", pa.float64(), nullable=False),
        pa.field("text", pa.string()),
    ]
)
FIELDS = ("event_id", "kind", "user_id", "item_id", "value", "timestamp", "text")
REQUIRED = ("user_id", "item_id", "timestamp")
IN_THE_API = {"type": "kind"}  # what events are called there, so that what was sent can also be read
MAX_KIND_CHARS = 64
MAX_TEXT_CHARS = 8_000


@dataclass(frozen=True, slots=True)
class PreparedEvents:
    """events: ``EVENT_SCHEMA``, then ``SOURCE_FIELDS``. rejects: what was left out, broken lines included."""

    events: pa.Table
    rejects: list[Reject]


def resolve_event_columns(settings: EventsSettings, available: Sequence[str]) -> dict[str, str]:
    """Our field -> the column that holds it; user_id, item_id and timestamp are required. ``type`` is another name of
    ``kind``, in the settings and in the file.

    Raises ConfigError, naming what was expected, what was found and close matches.
    """
    mapped = dict(settings.columns)
    for theirs, ours in IN_THE_API.items():
        if theirs in mapped and ours in mapped:
            raise ConfigError(f"columns: {theirs!r} and {ours!r} are one field. Leave one of them out.")
        if theirs in mapped:
            mapped[ours] = mapped.pop(theirs)
        elif theirs in available and ours not in mapped and ours not in available:
            mapped[ours] = theirs
    return mapping.resolve(mapped, FIELDS, REQUIRED, available)


def prepare_events(batch: Batch, settings: EventsSettings, columns: Mapping[str, str]) -> PreparedEvents:
    """The events of a batch of rows; ``columns`` from ``resolve_event_columns``.

    A row without a usable user, item or time is dropped; another value that cannot be used is set to null. Both are
    reported. Times: as in ``values.parse_event_time_s``. An event without an id gets one made of its user, item,
    kind, time and value, so that reading a file again, or a row that stands there twice, gives the same event.
    """
    parsers = _parsers()
    parsed = {name: parse_column(batch.table[column], parsers[name]) for name, column in columns.items()}
    values = {name: column.values for name, column in parsed.items()} | place_of_rows(batch)
    n_rows = len(batch.rows)
    values["timestamp_s"] = values.pop("timestamp")
    values["kind"] = _given(values.get("kind"), [settings.default_kind] * n_rows)
    value = values.setdefault("value", [None] * n_rows)
    identity = zip(values["user_id"], values["item_id"], values["kind"], values["timestamp_s"], value, strict=True)
    values["event_id"] = _given(values.get("event_id"), [event_id_of(*parts) for parts in identity])
    dropped = _dropped(parsed)
    return PreparedEvents(
        build_table(pa.schema([*EVENT_SCHEMA, *SOURCE_FIELDS]), values, dropped), report(batch, parsed, dropped)
    )


def event_id_of(user_id: str, item_id: str, kind: str, timestamp_s: float, value: float | None) -> str:
    """32 hex digits that name an event which came without an id: BLAKE2b over its parts, each with its length."""
    parts = (str(part).encode() for part in (user_id, item_id, kind, timestamp_s, value))
    return hashlib.blake2b(b"".join(b"%d:%b" % (len(part), part) for part in parts), digest_size=16).hexdigest()


def _given(values: list[Any] | None, defaults: list[Any]) -> list[Any]:
    """Each value, or the default where there is none."""
    if values is None:
        return defaults
    return [default if value is None else value for value, default in zip(values, defaults, strict=True)]


def _parsers() -> dict[str, Parser]:
    return {
        "event_id": parse_id,
        "kind": lambda value: plain_text(as_text(value), MAX_KIND_CHARS) or None,
        "user_id": parse_id,
        "item_id": parse_id,
        "value": parse_number,
        "timestamp": parse_event_time_s,
        "text": lambda value: clean_text(as_text(value), MAX_TEXT_CHARS) or None,
    }


def _dropped(parsed: Mapping[str, Parsed]) -> dict[int, Fault]:
    """Row -> why it goes."""
    faults: dict[int, Fault] = {}
    for name in REQUIRED:
        for problem in parsed[name].problems:
            faults.setdefault(problem.index, Fault(name, problem))
        for index, value in enumerate(parsed[name].values):
            if value is None and index not in faults:
                problem = Problem(index, f"missing_{name}", f"there is no {name}")
                faults[index] = Fault(name, problem)
    return faults
