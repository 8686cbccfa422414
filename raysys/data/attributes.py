"""Which Arrow type a further column of the catalogue gets: settled once, from a sample, so that all workers agree."""

import re
from collections.abc import Sequence

import pyarrow as pa

from raysys.config import CatalogSettings
from raysys.data.arrow_values import LIST, TIME, is_list, is_text, python_values

# Numbers as a program writes them. "007" and "+1" are none: they would not come back as they were.
_PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLEAN = re.compile("true|false", re.IGNORECASE)


def attribute_types(settings: CatalogSettings, sample: pa.Table) -> dict[str, pa.DataType]:
    """The Arrow type that each attribute gets in every split: int64, float64, bool, string, list<string> or a UTC time.

    Strings are looked at: a column whose sampled values are all integers, numbers or true/false becomes that, but
    "007" stays text. Zone-less times, and types that filters do not know, become text.
    """
    return {name: _attribute_type(sample[column]) for name, column in settings.attributes.items()}


def _attribute_type(column: pa.ChunkedArray) -> pa.DataType:
    kind = column.type.value_type if isinstance(column.type, pa.DictionaryType) else column.type
    types = pa.types
    if is_text(kind):
        return infer_type([value for value in python_values(column) if value is not None and value.strip()])
    if is_list(kind):
        return LIST
    if types.is_timestamp(kind) and kind.tz is not None:
        return TIME
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind) or types.is_decimal(kind):
        return pa.float64()
    return pa.bool_() if types.is_boolean(kind) else pa.string()


def infer_type(values: Sequence[str]) -> pa.DataType:
    """int64, float64, bool or string: the first that every value is written as; string when there are none."""
    for pattern, kind in ((_PLAIN_INTEGER, pa.int64()), (_PLAIN_NUMBER, pa.float64()), (_BOOLEAN, pa.bool_())):
        if values and all(pattern.fullmatch(value.strip()) for value in values):
            return kind
    return pa.string()
