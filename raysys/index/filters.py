"""The filter tree of the HTTP API, and its exact evaluation over the item columns of one shard.

A filter is ``{"must": [...], "should": [...], "must_not": [...]}``; its clauses are conditions or further filters:

    {"field": "categories", "match": "Drama"}           equal; on a list, any element equal
    {"field": "year", "range": {"gte": 1990, "lt": 2000}}
    {"field": "language", "in": ["en", "fr"]}
    {"field": "price", "exists": true}                   has a value: not null, and not a list without values

``must``: all hold. ``should``: at least one holds, when any is given. ``must_not``: none holds. An empty filter keeps
every item. Null and NaN match nothing, so a ``must_not`` keeps them. A number is rounded to the type of a
floating-point column before it is compared (19.99 finds the float32 that was stored for 19.99); everything else is
compared exactly. Times are RFC 3339 strings with an offset, or integer milliseconds since 1970.
"""

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from threading import Lock
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raysys.errors import InvalidInput, UnknownField

MAX_DEPTH = 5
MAX_CONDITIONS = 256
MAX_CLAUSES = 1_024  # conditions and filters: those that hold nothing cost time as well
MAX_IN_VALUES = 1_000
MAX_VALUES = 10_000  # in all lists of a filter together
MAX_STRING_BYTES = 1_024
MAX_NAME_CHARS = 256

Mask = NDArray[np.bool_]
Scalar = bool | int | float | str
Kind = Literal["text", "bool", "integer", "float", "time", "other"]

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Each operator, and how its bound is rounded for whole numbers: x >= 1.5 is x >= 2, x > 1.5 is x > 1.
_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[[Fraction], int]]] = {
    "gte": (np.greater_equal, math.ceil),
    "gt": (np.greater, math.floor),
    "lt": (np.less, math.ceil),
    "lte": (np.less_equal, math.floor),
}
_EXAMPLES: dict[Kind, str] = {
    "text": "a string",
    "bool": "true or false",
    "integer": "a number",
    "float": "a number",
    "time": "an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z",
    "other": "no value; use exists",
}


def _limited(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str)):
        raise PydanticCustomError("bad_value", "must be a string, a number, true or false")
    if isinstance(value, str):
        return _limited_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("bad_value", "must be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise PydanticCustomError("bad_value", "must fit into 64 bits")
    return value


def _limited_text(text: str) -> str:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise PydanticCustomError("bad_value", "must be valid Unicode, without lone surrogates") from None
    if size_bytes > MAX_STRING_BYTES:
        message = f"must have at most {MAX_STRING_BYTES} bytes ({size_bytes} given)"
        raise PydanticCustomError("bad_value", message)
    return text


def given(name: str) -> dict[str, Any]:
    """The JSON Schema of an object in which this field is there and not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


_VALUE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "boolean"}, {"type": "number"}, {"type": "string", "maxLength": MAX_STRING_BYTES}],
    "description": f"Whole numbers have 64 bits at most, texts {MAX_STRING_BYTES:,} UTF-8 bytes.",
}
Value = Annotated[Scalar, BeforeValidator(_limited), WithJsonSchema(_VALUE_SCHEMA)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class Range(_Part):
    """Bounds of a number or a time. At least one is given; all given ones hold."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [given(name) for name in ("gte", "gt", "lt", "lte")]})

    gte: Value | None = None
    gt: Value | None = None
    lt: Value | None = None
    lte: Value | None = None

    def bounds(self) -> Iterator[tuple[str, Scalar]]:
        """The bounds that are given: (operator, value)."""
        return ((name, value) for name in ("gte", "gt", "lt", "lte") if (value := getattr(self, name)) is not None)

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Range":
        if not any(self.bounds()):
            raise ValueError("give at least one of gte, gt, lt, lte")
        return self


class Condition(_Part):
    """One field, one operator. An empty ``in`` matches nothing."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [given(name) for name in ("match", "range", "in", "exists")]})

    field: Name
    match: Value | None = None
    range: Range | None = None
    any_of: Annotated[tuple[Value, ...], Field(max_length=MAX_IN_VALUES, fail_fast=True)] | None = Field(
        default=None, alias="in"
    )
    exists: Annotated[bool, Field(strict=True)] | None = None

    def values(self) -> Iterator[tuple[str, Scalar]]:
        """Each value compared with, and where it stands: ("match", v), ("in[2]", v), ("range.gte", v)."""
        if self.match is not None:
            yield "match", self.match
        for i, value in enumerate(self.any_of or ()):
            yield f"in[{i}]", value
        for name, value in self.range.bounds() if self.range is not None else ():
            yield f"range.{name}", value

    @model_validator(mode="after")
    def _has_one_operator(self) -> "Condition":
        given = [operator for operator in (self.match, self.range, self.any_of, self.exists) if operator is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of match, range, in, exists ({len(given)} given)")
        return self


def _tag(clause: Any) -> str:
    is_condition = "field" in clause if isinstance(clause, dict) else isinstance(clause, Condition)
    return "condition" if is_condition else "filter"


Clause = Annotated[
    Annotated[Condition, Tag("condition")] | Annotated["Filter", Tag("filter")],
    Discriminator(_tag),
]
Clauses = Annotated[tuple[Clause, ...], Field(max_length=MAX_CONDITIONS, fail_fast=True)]


class Filter(_Part):
    """A tree of conditions: all of ``must`` hold, one of ``should`` and none of ``must_not``. Frozen and hashable.

    Nested 5 deep at most, with 256 conditions at most, and 10,000 values in all lists of ``in`` together.
    """

    must: Clauses = ()
    should: Clauses = ()
    must_not: Clauses = ()

    def clauses(self) -> Iterator[tuple[str, "Condition | Filter"]]:
        """Each clause and where it stands: ("must[0]", clause), ("should[0]", clause), ..."""
        for name in ("must", "should", "must_not"):
            for i, clause in enumerate(getattr(self, name)):
                yield f"{name}[{i}]", clause

    @model_validator(mode="before")
    @classmethod
    def _can_be_built(cls, raw: Any) -> Any:
        _check_size(raw)
        return raw

    @model_validator(mode="after")
    def _is_small(self) -> "Filter":
        conditions = _n_conditions(self)
        if conditions > MAX_CONDITIONS:
            raise _too_large(f"may hold {MAX_CONDITIONS} conditions at most ({conditions} given)")
        return self


def _check_size(raw: Any) -> None:
    """Refuse what is too deep or too wide before anything is made of it: that alone takes seconds."""
    level, n_clauses, n_values = [raw], 0, 0
    for depth in range(MAX_DEPTH + 1):
        if depth == MAX_DEPTH and any(_tag(clause) == "filter" for clause in level):
            raise _too_large(f"may be nested {MAX_DEPTH} deep at most")
        inner = [each for clause in level for each in _inner(clause)]
        n_clauses += len(inner)
        n_values += sum(_n_values(clause) for clause in level)
        if n_clauses > MAX_CLAUSES:
            raise _too_large(f"may hold {MAX_CLAUSES} conditions and filters at most")
        if n_values > MAX_VALUES:
            raise _too_large(f"may hold {MAX_VALUES} values at most, in all its lists together")
        level = inner


def _too_large(message: str) -> PydanticCustomError:
    return PydanticCustomError("filter_too_large", message)


def _inner(clause: Any) -> list[Any]:
    """The clauses of a filter, read or not."""
    if isinstance(clause, Filter):
        return [each for _, each in clause.clauses()]
    if not isinstance(clause, dict) or _tag(clause) == "condition":
        return []
    parts = [clause.get(name) for name in ("must", "should", "must_not")]
    return [each for part in parts if isinstance(part, (list, tuple)) for each in part]


def _n_values(clause: Any) -> int:
    """How many values a condition lists, read or not."""
    values = clause.get("in") if isinstance(clause, dict) else getattr(clause, "any_of", None)
    return len(values) if isinstance(values, (list, tuple)) else 0


def _n_conditions(clause: "Condition | Filter") -> int:
    if isinstance(clause, Condition):
        return 1
    return sum(_n_conditions(inner) for _, inner in clause.clauses())


def parse(raw: Any, path: str = "filter") -> Filter:
    """A filter from plain values. Raises InvalidInput with the path of the first value that is wrong."""
    try:
        return Filter.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(error_path(first["loc"], path), message) from error


def error_path(location: tuple[int | str, ...], path: str = "filter") -> str:
    """``filter.must[0].match`` from the location that pydantic gives: ("must", 0, "condition", "match")."""
    previous: int | str = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not (isinstance(previous, int) and step in ("condition", "filter")):
            path += f".{step}" if len(step) <= MAX_NAME_CHARS else f".{step[:MAX_NAME_CHARS]}…"
        previous = step
    return path


def check(filter: Filter, schema: pa.Schema, path: str = "filter") -> None:
    """Whether every field exists in the schema and can be compared as the filter asks; needs no data.

    Raises UnknownField that names the fields there are, InvalidInput that names the field, its type and the value.
    """
    for where, clause in filter.clauses():
        if isinstance(clause, Filter):
            check(clause, schema, f"{path}.{where}")
        else:
            _check_condition(clause, schema, f"{path}.{where}")


def _check_condition(condition: Condition, schema: pa.Schema, path: str) -> None:
    if condition.field not in schema.names:
        fields = ", ".join(sorted(schema.names))
        raise UnknownField(f"{path}.field", f"there is no field {condition.field!r}; the catalogue has: {fields}")
    type_ = schema.field(condition.field).type
    kind = _kind(_element(type_))
    if condition.range is not None and kind in ("text", "bool"):
        message = f"field {condition.field!r} ({type_}) has no range; use match, in or exists"
        raise InvalidInput(f"{path}.range", message)
    for where, value in condition.values():
        if not _fits(kind, value):
            message = f"field {condition.field!r} ({type_}) is compared with {_EXAMPLES[kind]}, not with {value!r}"
            raise InvalidInput(f"{path}.{where}", message)


def _fits(kind: Kind, value: Scalar) -> bool:
    if isinstance(value, bool):  # a bool is an int to Python, and must not be one here
        return kind == "bool"
    if isinstance(value, str):
        return kind == "text" or (kind == "time" and _is_time(value))
    return kind in ("integer", "float") or (kind == "time" and isinstance(value, int))


def _element(type_: pa.DataType) -> pa.DataType:
    """The type that values are compared with: of the elements of a list, of what a dictionary stands for."""
    while _is_list(type_) or pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return type_


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _kind(type_: pa.DataType) -> Kind:
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "integer"
    if pa.types.is_floating(type_):
        return "float"
    return "time" if pa.types.is_timestamp(type_) else "other"


def _seconds(value: Scalar) -> Fraction:
    """UTC epoch seconds of a time, exact to the microsecond. Raises ValueError where it is none."""
    if not isinstance(value, str):
        return Fraction(int(value), 1_000)
    if _RFC3339.fullmatch(value) is None:
        raise ValueError(value)
    return Fraction((datetime.fromisoformat(value.upper()) - _EPOCH) // timedelta(microseconds=1), 10**6)


def _is_time(text: str) -> bool:
    try:
        _seconds(text)
    except ValueError:
        return False
    return True


class Attributes:
    """The item columns of one shard, row i = item i, and the masks of the filters last asked for.

    ``table`` may be memory-mapped: columns are read when a filter names them. ``cache_bytes`` bounds the masks kept.
    Safe to call from several threads.
    """

    def __init__(self, table: pa.Table, cache_bytes: int = 32 * 2**20) -> None:
        self._table = table
        self._masks: OrderedDict[bytes, Mask] = OrderedDict()
        self._most_masks = cache_bytes // max(len(table), 1)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    def check(self, filter: Filter) -> None:
        """As ``filters.check`` against the schema of these columns."""
        check(filter, self._table.schema)

    def mask(self, filter: Filter) -> Mask:
        """[n_rows] bool, read-only: which items the filter keeps. Raises as ``check``."""
        self.check(filter)
        # A digest, not the filter itself: a filter of a megabyte must not live on in the cache.
        key = hashlib.sha256(filter.model_dump_json().encode()).digest()
        mask = self._recall(key)
        if mask is None:
            mask = self._keeps(filter)
            mask.setflags(write=False)
            self._remember(key, mask)
        return mask

    def _recall(self, key: bytes) -> Mask | None:
        with self._lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
            return mask

    def _remember(self, key: bytes, mask: Mask) -> None:
        with self._lock:
            self._masks[key] = mask
            while len(self._masks) > self._most_masks:
                self._masks.popitem(last=False)

    def _keeps(self, clause: Condition | Filter) -> Mask:
        if isinstance(clause, Condition):
            chunks = self._table[clause.field].chunks
            hits = np.concatenate([np.zeros(0, dtype=np.bool_), *(_hits(chunk, clause) for chunk in chunks)])
            return ~hits if clause.exists is False else hits
        keeps = np.ones(len(self._table), dtype=np.bool_)
        for must in clause.must:
            keeps &= self._keeps(must)
        if clause.should:
            keeps &= np.logical_or.reduce([self._keeps(should) for should in clause.should])
        for must_not in clause.must_not:
            keeps &= ~self._keeps(must_not)
        return keeps


def _hits(array: pa.Array, condition: Condition) -> Mask:
    """[len(array)] bool: which values meet the condition, ``exists`` taken as true; of a list, if any element does."""
    if _is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        parents = np.repeat(np.arange(len(array)), lengths)
        hits = np.zeros(len(array), dtype=np.bool_)
        hits[parents[_hits(array.flatten(), condition)]] = True
        return hits
    if pa.types.is_dictionary(array.type):
        return _hits(array.dictionary_decode(), condition)
    if condition.exists is not None:
        return _bools(array.is_valid())
    if _kind(array.type) == "text":
        return _bools(pc.is_in(array, value_set=pa.array([value for _, value in condition.values()], array.type)))
    return _number_hits(array, condition)


def _bools(array: pa.Array) -> Mask:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _number_hits(array: pa.Array, condition: Condition) -> Mask:
    """As ``_hits`` for numbers, times and booleans."""
    valid = _bools(array.is_valid())
    plain = array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array
    numbers = plain.fill_null(False if pa.types.is_boolean(plain.type) else 0).to_numpy(zero_copy_only=False)
    if condition.range is None:
        wanted = [_exact(value, array.type) for _, value in condition.values()]
        return valid & np.isin(numbers, _as_column(wanted, numbers.dtype))
    for operator, bound in condition.range.bounds():
        valid &= _within(numbers, operator, _exact(bound, array.type))
    return valid


def _exact(value: Scalar, type_: pa.DataType) -> Fraction:
    """The value in the unit of the column, without rounding."""
    return _seconds(value) * _UNITS_PER_S[type_.unit] if pa.types.is_timestamp(type_) else Fraction(value)


def _as_column(values: list[Fraction], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values that a column of this type can hold, in its type."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = [value for value in values if value.denominator == 1 and limits.min <= value <= limits.max]
        return np.array([int(value) for value in values], dtype=dtype)
    with np.errstate(over="ignore"):  # 1e300 is infinite to a float32, which is what it should be here
        return np.array([float(value) for value in values]).astype(dtype)


def _within(numbers: NDArray[Any], operator: str, bound: Fraction) -> Mask:
    """[n] bool: numbers >= bound, > bound, < bound or <= bound."""
    compare, to_whole = _OPERATORS[operator]
    limit = to_whole(bound) if numbers.dtype.kind in "iu" else _as_column([bound], numbers.dtype)[0]
    return np.asarray(compare(numbers, limit), dtype=np.bool_)
