"""Values of fields, each read strictly: one that cannot be read is a Problem with a reason, not a guess."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

from raysys.data.arrow_values import Unreadable, python_values
from raysys.data.cleaning import clean_text, id_problem
from raysys.data.rejects import Problem

Parser = Callable[[Any], Any]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_TRUE, _FALSE = {"true", "yes", "1"}, {"false", "no", "0"}
_MAX_LABELS = 1_000
_EXACT_FLOAT = 2**53  # beyond it a float does not hold every integer
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Milliseconds below this are before 1973, and far more likely seconds; seconds above it are after the year 5138.
SMALLEST_MS = 100_000_000_000
_LAST_MS = 253_402_300_799_999  # the end of the year 9999


class BadValue(Exception):
    """A value that cannot be read. ``code`` is for counting, ``message`` for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


@dataclass(frozen=True, slots=True)
class Parsed:
    """values: one a row, None where there is none or it cannot be read. raw: as found. problems: of some rows."""

    values: list[Any]
    raw: list[Any]
    problems: list[Problem]


def parse_column(column: pa.ChunkedArray, parser: Parser) -> Parsed:
    """Every value through the parser. Nulls and blank strings are None without a problem; an id may be of spaces."""
    raw = python_values(column)
    values: list[Any] = []
    problems: list[Problem] = []
    for index, value in enumerate(raw):
        parsed = None
        if not _is_missing(value, parser is parse_id):
            try:
                parsed = parser(value)
            except BadValue as error:
                problems.append(Problem(index, error.code, error.message))
        values.append(parsed)
    return Parsed(values, raw, problems)


def _is_missing(value: Any, exact: bool) -> bool:
    return value is None or value == "" or (isinstance(value, str) and not exact and value.isspace())


def parse_id(value: Any) -> str:
    """An id, exactly: strings as they are, integers by their digits, floats only where they hold an integer exactly."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal, UUID)):
        raise BadValue("bad_id", f"an id must be a string or an integer, but this is a {type(value).__name__}")
    if isinstance(value, (float, Decimal)):
        if value != value or abs(value) == float("inf") or value != int(value):
            raise BadValue("bad_id", f"an id must be a string or an integer, but this is {value}")
        if isinstance(value, float) and abs(value) >= _EXACT_FLOAT:
            raise BadValue("inexact_id", f"the id {value!r} was stored as a float, which has lost its last digits")
        value = int(value)
    text = str(value)
    problem = id_problem(text)
    if problem is not None:
        raise BadValue("bad_id", f"this cannot be an id: {problem}")
    return text


def parse_number(value: Any) -> float:
    """A finite number, from a number or its text with a decimal point."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value.strip()):
            raise BadValue("not_a_number", "this is not a number (a decimal point, no units, no thousands separators)")
    elif isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise BadValue("not_a_number", f"a number was expected, but this is a {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if number != number or abs(number) == float("inf"):
        raise BadValue("not_finite", "NaN and infinity are not numbers that can be used")
    return number


def parse_not_negative(value: Any) -> float:
    """A finite number of 0 or more."""
    number = parse_number(value)
    if number < 0:
        raise BadValue("negative", "this must not be below 0")
    return number


def parse_integer(value: Any) -> int:
    """An integer of 64 bits, from an integer, its text, or a float that holds one exactly."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        found = parse_number(value)
        if found != int(found):
            raise BadValue("not_an_integer", "this column holds integers, and this is none")
        number = int(found)
    if not -(2**63) <= number < 2**63:
        raise BadValue("not_an_integer", "this integer is longer than 64 bits")
    return number


def parse_bool(value: Any) -> bool:
    """True or false, from a boolean, 0 or 1, or the words true, false, yes, no."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else str(int(value)) if value in (0, 1) else ""
    if word not in _TRUE | _FALSE:
        raise BadValue("not_a_boolean", "true or false was expected")
    return word in _TRUE


def list_parser(separator: str, max_chars: int) -> Parser:
    """A parser of lists, real ones or strings cut at the separator: cleaned, without blanks and repetitions."""

    def parse(value: Any) -> list[str]:
        if isinstance(value, list):
            parts = [as_text(element) for element in value if element is not None]
        else:
            text = as_text(value)
            parts = text.split(separator) if separator else [text]
        if len(parts) > _MAX_LABELS:
            raise BadValue("too_many", f"a list may hold {_MAX_LABELS:,} values, and this one has {len(parts):,}")
        cleaned = (clean_text(part, max_chars) for part in parts)
        return list(dict.fromkeys(part for part in cleaned if part))

    return parse


def as_text(value: Any) -> str:
    """The text of a string, a number, a boolean or a time."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value == value and abs(value) < _EXACT_FLOAT and value == int(value):
        return str(int(value))  # a nullable integer column of pandas
    if isinstance(value, Unreadable):
        raise BadValue("not_text", f"this is {value}")
    if isinstance(value, (list, dict)):
        raise BadValue("not_text", f"text was expected, but this is a {type(value).__name__}")
    return str(value)


def parse_time(value: Any) -> datetime:
    """An aware UTC time, from RFC 3339 text with an offset, an Arrow time with a zone, or integer milliseconds.

    Milliseconds before 1973 are refused: they are nearly always seconds.
    """
    number = _whole_number(value)
    if number is None:
        return _zoned(value)
    if 0 <= number < SMALLEST_MS:
        raise BadValue("time_in_seconds", f"integer times are milliseconds, and {number} looks like seconds")
    return _from_ms(number)


def parse_event_time_s(value: Any) -> float:
    """Epoch seconds, from what ``parse_time`` takes, or from a number of seconds.

    The rule of event files, and of files only: a number below 1e11 is seconds (that is, up to the year 5138), one
    from there on milliseconds (from 1973 on).
    """
    is_number = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else isinstance(value, (int, float, Decimal))
    if not is_number:
        return _zoned(value).timestamp()
    seconds = parse_number(value)
    if seconds < 0:
        raise BadValue("bad_time", "times before 1970 are not taken")
    return seconds if seconds < SMALLEST_MS else _from_ms(int(seconds)).timestamp()


def _whole_number(value: Any) -> int | None:
    """The integer that a value is, or None."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        number = parse_number(value)
        return int(value) if number == int(number) else None
    return None


def _from_ms(number: int) -> datetime:
    if not 0 <= number <= _LAST_MS:
        raise BadValue("bad_time", f"{number} is no time in milliseconds between the years 1970 and 9999")
    return _EPOCH + timedelta(milliseconds=number)


def _zoned(value: Any) -> datetime:
    time = _from_iso(value) if isinstance(value, str) else value
    if isinstance(time, date) and not isinstance(time, datetime):
        time = datetime(time.year, time.month, time.day)
    if not isinstance(time, datetime):
        raise BadValue(
            "bad_time", "a time was expected, as 2026-01-31T18:30:00+01:00 or in integer milliseconds, but this is none"
        )
    if time.tzinfo is None:
        raise BadValue("zoneless_time", "this time has no zone: add Z or an offset such as +01:00")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise BadValue("bad_time", "this time is before year 1 or after year 9999") from error


def _from_iso(value: str) -> datetime | None:
    try:
        return datetime.fromisoformat(value.strip().upper())
    except ValueError:
        return None
