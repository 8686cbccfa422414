"""CSV records that survive their neighbours: one broken line is reported, and reading goes on at the next.

The C++ reader of pyarrow is faster, and gives up the file at a quote that is never closed or a byte that is not
UTF-8. Here such a line costs itself only.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, AnyStr

# A quote that is never closed makes the rest of the file one field; so long a field is taken for that.
MAX_FIELD_CHARS = 1 << 20
# Of a JSON line so many bytes: a file without line breaks is not held in memory.
MAX_LINE_CHARS = MAX_RECORD_CHARS = 8 << 20
_ONE_MORE = MAX_LINE_CHARS + 1
# How often, on average, a line is read again that stood behind an open quote. In a file where every quote stays open,
# each record would otherwise reach to its end, which takes hours for a megabyte.
_READ_AGAIN = 4
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that is not a record. ``excerpt`` is how it begins."""

    line: int
    code: str
    message: str
    excerpt: str


@dataclass(slots=True)
class _Lines:
    """Physical lines, counted from 1, of which the most recently taken can be given back.

    Raises csv.Error where the line, or the record that it continues, is too long, or was read again too often.
    """

    stream: IO[str]
    number: int = 0
    chars: int = 0  # of all lines so far
    chars_again: int = 0  # of those that were given back and taken once more
    begin_chars: int = 0  # where the record begins
    taken: list[str] = field(default_factory=list)
    returned: deque[str] = field(default_factory=deque)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again() if self.returned else bounded_line(self.stream)
        if not line:
            raise StopIteration
        self.taken.append(line)
        self.number += 1
        self.chars += len(line)
        if self.chars - self.begin_chars > MAX_RECORD_CHARS:
            raise csv.Error(f"a record of more than {MAX_RECORD_CHARS:,} characters")
        return line

    def _again(self) -> str:
        once = self.chars - self.chars_again
        if self.taken and self.chars_again > 4 * MAX_FIELD_CHARS + _READ_AGAIN * once:
            raise csv.Error("so many are open in this file that it cannot be told which lines belong together")
        line = self.returned.popleft()
        self.chars_again += len(line)
        return line

    def begin(self) -> None:
        """What is taken from here on is a new record."""
        self.taken.clear()
        self.begin_chars = self.chars

    def give_back_all_but_first(self) -> None:
        self.returned.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def bounded_line(stream: IO[AnyStr]) -> AnyStr:
    """The next line; of one that is longer than MAX_LINE_CHARS, so many and one more. Empty at the end."""
    line = rest = stream.readline(_ONE_MORE)
    while len(rest) == _ONE_MORE and not _ends_line(rest):
        rest = stream.readline(_ONE_MORE)
    return line


def _ends_line(text: str | bytes) -> bool:
    return text[-1:] in ("\n", "\r", b"\n")


def text_lines(binary: io.BufferedReader) -> io.TextIOWrapper:
    """The text of a UTF-8 file, with or without a byte order mark; other bytes become U+DC80..U+DCFF."""
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")


def csv_records(stream: IO[str]) -> Iterator[tuple[int, list[str]] | BrokenLine]:
    """(line it begins at, its fields) of each record, blank lines left out; a BrokenLine for each that is none.

    Time grows with the length of the file, whatever stands in it, and memory with MAX_RECORD_CHARS at most.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
    lines = _Lines(stream)
    records = csv.reader(lines, strict=True)
    while True:
        lines.begin()
        begin = lines.number + 1
        try:
            fields = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield BrokenLine(begin, "bad_quotes", f"quotes do not match: {error}", lines.taken[0])
            lines.give_back_all_but_first()
            continue
        if fields:
            yield (begin, fields)


def check_record(line: int, fields: list[str], header: list[str]) -> BrokenLine | None:
    """What is wrong with a record under this header, if anything."""
    if len(fields) != len(header):
        message = f"{len(fields)} fields, but the header has {len(header)}"
        return BrokenLine(line, "wrong_field_count", message, ",".join(fields))
    for name, value in zip(header, fields, strict=True):
        found = None if value.isascii() else _UNDECODED.search(value)
        if found:
            byte = ord(found[0]) - 0xDC00
            message = f"byte 0x{byte:02X} at character {found.start()} of column {name!r} is not UTF-8: save as UTF-8"
            return BrokenLine(line, "not_utf8", message, value)
    return None
