"""The fields of changed items, plain JSON values, as rows of a shard's item table."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raysys.data.arrow_values import TIME, is_list
from raysys.data.values import BadValue, Parser, as_text, parse_bool, parse_integer, parse_number, parse_time
from raysys.types import ItemChange


def item_table(changes: Sequence[ItemChange], schema: pa.Schema) -> pa.Table:
    """One row a change, none of them deleted, in the columns of ``schema``.

    A value that is missing, or is none of its column's type, is null; so is every ``text_key``. A field without a
    column falls away.
    """
    return pa.Table.from_arrays([_column(changes, field) for field in schema], schema=schema)


def _column(changes: Sequence[ItemChange], field: pa.Field) -> pa.Array:
    if field.name == "item_id":
        return pa.array([change.item_id for change in changes], field.type)
    # Two list types are the same only where their elements have the same name, which a file's format decides.
    read = _texts if is_list(field.type) else _PARSERS.get(field.type)
    if read is None:
        return pa.nulls(len(changes), field.type)
    return pa.array([_value(read, (change.fields or {}).get(field.name)) for change in changes], field.type)


def _value(read: Parser, value: Any) -> Any:
    try:
        return None if value is None else read(value)
    except BadValue:  # whoever wrote the change read it by the catalogue's rules; the snapshot's may have another type
        return None


def _texts(value: Any) -> list[str]:
    return [as_text(element) for element in (value if isinstance(value, list) else [value]) if element is not None]


_PARSERS: dict[pa.DataType, Parser] = {
    pa.int64(): parse_integer,
    pa.float64(): parse_number,
    pa.bool_(): parse_bool,
    pa.string(): as_text,
    TIME: parse_time,
}


def add_rows(chunks: list[pa.Table], rows: pa.Table) -> None:
    """Append to a table that is held in chunks, each more than twice as long as the next.

    So there are few, which keeps filters fast, and a row is copied a few times at most, however small the additions.
    """
    if not len(rows):
        return
    chunks.append(rows)
    while len(chunks) > 1 and len(chunks[-2]) <= 2 * len(chunks[-1]):
        chunks[-2:] = [pa.concat_tables(chunks[-2:]).combine_chunks()]
