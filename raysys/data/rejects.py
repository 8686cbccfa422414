"""What could not be used, said so that its owner can find and mend it: the rows of a quarantine file."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

import pyarrow as pa

REJECT_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("field", pa.string()),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("dropped", pa.string(), nullable=False),
        pa.field("value", pa.string()),
    ]
)
EXCERPT_CHARS = 120


@dataclass(frozen=True, slots=True)
class Reject:
    """One value or row that was left out.

    source: the file. row: as in ``readers.Batch.rows``. item_id: where it could be read. field: ours, None when the
    whole line is broken. code: for counting. message: for people. dropped: what was left out, this field or the
    whole row. value: how the value begins.
    """

    source: str
    row: int
    item_id: str | None
    field: str | None
    code: str
    message: str
    dropped: Literal["row", "field"]
    value: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one value of a column could not be read; ``index`` is its place in the column."""

    index: int
    code: str
    message: str


@overload
def excerpt(value: None) -> None: ...
@overload
def excerpt(value: str) -> str: ...
@overload
def excerpt(value: Any) -> str | None: ...
def excerpt(value: Any) -> str | None:
    """The beginning of a value as text that any file can hold; None for None."""
    if value is None:
        return None
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if len(text) > EXCERPT_CHARS:
        text = text[: EXCERPT_CHARS - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """The rejects as a table of ``REJECT_SCHEMA``."""
    return pa.Table.from_pylist([asdict(reject) for reject in rejects], schema=REJECT_SCHEMA)
