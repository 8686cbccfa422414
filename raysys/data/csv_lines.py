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

# A quote that is never closed makes the rest of the file one field; so long a field is taken for that.
MAX_FIELD_CHARS = 1 << 20
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
    """Physical lines, counted from 1, of which the most recently taken can be given back."""

    stream: Iterator[str]
    number: int = 0
    taken: list[str] = field(default_factory=list)
    returned: deque[str] = field(default_factory=deque)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.returned.popleft() if self.returned else next(self.stream)
        self.taken.append(line)
        self.number += 1
        return line

    def give_back_all_but_first(self) -> None:
        self.returned.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def text_lines(binary: io.BufferedReader) -> io.TextIOWrapper:
    """The text of a UTF-8 file, with or without a byte order mark; other bytes become U+DC80..U+DCFF."""
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")


def csv_records(stream: Iterator[str]) -> Iterator[tuple[int, list[str]] | BrokenLine]:
    """(line it begins at, its fields) of each record, blank lines left out; a BrokenLine for each that is none."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
    lines = _Lines(stream)
    records = csv.reader(lines, strict=True)
    while True:
        lines.taken.clear()
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
