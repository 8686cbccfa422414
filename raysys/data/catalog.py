"""A catalogue's rows, made into items: checked, cleaned, and with their text. What is wrong is reported."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.config import CatalogSettings, ItemRules
from raysys.data import columns as mapping
from raysys.data.arrow_values import LIST, TIME
from raysys.data.attributes import attribute_types
from raysys.data.cleaning import clean_text, cut, plain_text
from raysys.data.item_text import Template, parse_template, render
from raysys.data.prepared import SOURCE_FIELDS, Fault, build_table, place_of_rows, report
from raysys.data.readers import Batch
from raysys.data.rejects import Problem, Reject
from raysys.data.values import (
    Parsed,
    Parser,
    as_text,
    list_parser,
    parse_bool,
    parse_column,
    parse_id,
    parse_integer,
    parse_not_negative,
    parse_number,
    parse_time,
)
from raysys.errors import ConfigError

__all__ = [
    "ITEM_SCHEMA",
    "Prepared",
    "Reject",
    "attribute_types",
    "columns_to_read",
    "item_schema",
    "last_wins",
    "parsers",
    "prepare",
    "resolve_columns",
    "template_of",
    "text_of",
]

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("text", pa.string()),
        pa.field("categories", LIST),
        pa.field("tags", LIST),
        pa.field("language", pa.string()),
        pa.field("image", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("owner_id", pa.string()),
        pa.field("available_from", TIME),
        pa.field("available_until", TIME),
        pa.field("hidden", pa.bool_()),
        pa.field("updated_at", TIME),
    ]
)
# Behind the fields and attributes: what the encoder reads, and where the row came from.
ROW_FIELDS = [
    pa.field("item_text", pa.string(), nullable=False),
    *SOURCE_FIELDS,
]
_RESERVED = {*ITEM_SCHEMA.names, *(field.name for field in ROW_FIELDS), "text_key"}
_IN_TEMPLATE = ("title", "text", "categories", "tags", "language", "owner_id")
_MAX_LABEL_CHARS = 200
_MAX_URL_CHARS = 2_048


@dataclass(frozen=True, slots=True)
class Prepared:
    """items: a table of ``item_schema``. rejects: what was left out, broken lines included."""

    items: pa.Table
    rejects: list[Reject]


def resolve_columns(settings: CatalogSettings, available: Sequence[str]) -> dict[str, str]:
    """Our field -> the column that holds it.

    Raises ConfigError, naming what was expected, what was found and close matches, when a column is not there; when
    there is neither title nor text; when an attribute has a name of ours; when the template names no such field.
    """
    columns = mapping.resolve(settings.columns, ITEM_SCHEMA.names, ["item_id"], available)
    if "title" not in columns and "text" not in columns:
        mapping.resolve(settings.columns, ITEM_SCHEMA.names, ["title"], available)
    for name in settings.attributes:
        if name in _RESERVED:
            raise ConfigError(_taken(name, settings.attributes[name]))
    mapping.check_present("attributes", settings.attributes, available)
    template_of(settings, settings.attributes)
    return columns


def _taken(name: str, column: str) -> str:
    """What is said of an attribute with a name of ours."""
    if name in ITEM_SCHEMA.names:
        return (
            f"attributes: {name!r} is a field that every catalogue has. Write `columns: {{{name}: {column}}}` instead."
        )
    return f"attributes: {name!r} is a name that Raysys uses itself. Choose another."


def columns_to_read(settings: CatalogSettings, columns: Mapping[str, str]) -> list[str]:
    """The columns that ``prepare`` needs, each once: what to pass to ``readers.read``."""
    return list(dict.fromkeys([*columns.values(), *settings.attributes.values()]))


def item_schema(attributes: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of ``Prepared.items``."""
    return pa.schema([*ITEM_SCHEMA, *(pa.field(name, kind) for name, kind in attributes.items()), *ROW_FIELDS])


def prepare(
    batch: Batch, settings: CatalogSettings, columns: Mapping[str, str], attributes: Mapping[str, pa.DataType]
) -> Prepared:
    """The items of a batch of rows.

    A row without a usable id, or without text, is dropped; an optional value that cannot be used is set to null.
    Both are reported; the rows beside are kept. ``columns`` from ``resolve_columns``, ``attributes`` from
    ``attribute_types``. Duplicate ids stay: ``last_wins``.
    """
    read = parsers(settings, attributes)
    sources = {**columns, **settings.attributes}
    parsed = {name: parse_column(batch.table[column], read[name]) for name, column in sources.items()}
    texts = _texts(template_of(settings, settings.attributes), parsed, settings.max_text_chars)
    dropped = _dropped(parsed, texts)
    values = {name: column.values for name, column in parsed.items()} | place_of_rows(batch) | {"item_text": texts}
    return Prepared(build_table(item_schema(attributes), values, dropped), report(batch, parsed, dropped))


def last_wins(table: pa.Table) -> tuple[pa.Table, int]:
    """The items with one row an id, the last in the source (by source_seq, then source_row), and how many went.

    The rows that stay keep their order.
    """
    if not len(table):
        return table, 0
    ids = table["item_id"].dictionary_encode().combine_chunks()
    codes = ids.indices.to_numpy()
    order = np.lexsort((table["source_row"].to_numpy(), table["source_seq"].to_numpy()))
    last = np.empty(len(ids.dictionary), dtype=np.int64)
    last[codes[order]] = order  # of equal codes the last assignment stays
    keep = np.zeros(len(table), dtype=bool)
    keep[last] = True
    return table.filter(pa.array(keep)), len(table) - len(last)


def template_of(settings: ItemRules, attributes: Iterable[str]) -> Template:
    """The template, parsed. Raises ConfigError where it names a field that there is not."""
    return parse_template(settings.template, [*_IN_TEMPLATE, *attributes])


def parsers(settings: ItemRules, attributes: Mapping[str, pa.DataType]) -> dict[str, Parser]:
    """How the value of each field is read."""

    def prose(value: Any) -> str | None:
        return clean_text(as_text(value), settings.max_text_chars) or None

    labels = list_parser(settings.list_separator, _MAX_LABEL_CHARS)
    label = _plain(_MAX_LABEL_CHARS)
    by_type: dict[pa.DataType, Parser] = {
        pa.int64(): parse_integer,
        pa.float64(): parse_number,
        pa.bool_(): parse_bool,
        pa.string(): _plain(settings.max_text_chars),
        LIST: labels,
        TIME: parse_time,
    }
    return {
        "item_id": parse_id,
        "title": prose,
        "text": prose,
        "categories": labels,
        "tags": labels,
        "language": label,
        "image": _plain(_MAX_URL_CHARS),
        "price": parse_not_negative,
        "owner_id": parse_id,
        "available_from": parse_time,
        "available_until": parse_time,
        "hidden": parse_bool,
        "updated_at": parse_time,
        **{name: by_type[kind] for name, kind in attributes.items()},
    }


def _plain(max_chars: int) -> Parser:
    return lambda value: plain_text(as_text(value), max_chars) or None


def _texts(template: Template, parsed: Mapping[str, Parsed], max_chars: int) -> list[str]:
    """The item text of each row; empty where it has neither title nor text."""
    names = list(parsed)
    rows = zip(*(parsed[name].values for name in names), strict=True)
    return [text_of(template, dict(zip(names, row, strict=True)), max_chars) for row in rows]


def text_of(template: Template, values: Mapping[str, Any], max_chars: int) -> str:
    """What the encoder reads of one item; empty where it has neither title nor text."""
    if values.get("title") is None and values.get("text") is None:
        return ""
    return cut(render(template, values), max_chars)


def _dropped(parsed: Mapping[str, Parsed], texts: Sequence[str]) -> dict[int, Fault]:
    """Row -> why it goes."""
    faults = {problem.index: Fault("item_id", problem) for problem in parsed["item_id"].problems}
    for index, (item_id, text) in enumerate(zip(parsed["item_id"].values, texts, strict=True)):
        if index in faults:
            continue
        if item_id is None:
            faults[index] = Fault("item_id", Problem(index, "missing_id", "there is no id"))
        elif not text:
            faults[index] = Fault("text", Problem(index, "no_text", "there is nothing to read in title and text"))
    return faults
