"""Python values of Arrow columns, whatever their type, without losing what Arrow holds and Python does not."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

TIME = pa.timestamp("us", "UTC")
LIST = pa.list_(pa.string())

# A date after the year 9999, a zone that there is not, bytes that are no UTF-8 inside of something.
_BEYOND = (ValueError, OverflowError, LookupError, pa.ArrowException)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value of an Arrow column that Python has nothing for."""

    kind: str

    def __str__(self) -> str:
        return f"a {self.kind} beyond what can be read"


def python_values(column: pa.ChunkedArray) -> list[Any]:
    """Python values of a column of any type.

    Text keeps bytes that are no UTF-8 as lone surrogates. Times with a zone become aware datetimes (nanoseconds
    cut), those without become naive ones. A value that Python cannot hold becomes an Unreadable.
    """
    if isinstance(column.type, pa.DictionaryType):
        column = column.cast(column.type.value_type)
    kind = column.type
    if is_text(kind):
        return [None if value is None else _decode(value) for value in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_timestamp(kind):
        return _times(column)
    if is_list(kind) and is_text(kind.value_type):
        lists = column.cast(pa.large_list(pa.large_binary())).to_pylist()
        return [None if value is None else [_decode(e) for e in value if e is not None] for value in lists]
    try:
        values: list[Any] = column.to_pylist()
    except _BEYOND:
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _BEYOND:
        return Unreadable(str(scalar.type))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, or bytes that may be such."""
    types = pa.types
    strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(strings or types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _times(column: pa.ChunkedArray) -> list[datetime | None]:
    kind = column.type
    per_s = _UNITS_PER_S[kind.unit]
    epoch = _EPOCH if kind.tz is not None else _EPOCH.replace(tzinfo=None)
    return [None if v is None else _at(epoch, v * 10**6 // per_s) for v in column.cast(pa.int64()).to_pylist()]


def _at(epoch: datetime, microseconds: int) -> datetime:
    # Outside of what Python's datetime can hold there are only the sentinels of other systems: taken as the ends.
    first, last = (end.replace(tzinfo=epoch.tzinfo) for end in (datetime.min, datetime.max))
    bounded = min(max(microseconds, (first - epoch) // _MICROSECOND), (last - epoch) // _MICROSECOND)
    return epoch + bounded * _MICROSECOND


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        pass
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return value.decode("utf-8", "surrogateescape")
