"""The log of live item changes, as the last rows of the catalogue.

The driver reads the log once, before any work, into files that every node sees; the stages read only those. The log
holds each item once, in its latest state, so an item that is changed again while it is read may be missing here. Its
new state has a sequence above the one that the snapshot names, and servers apply it live.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.config import ItemRules
from raysys.data import catalog
from raysys.data.arrow_values import LIST
from raysys.data.cleaning import plain_text
from raysys.data.prepared import Fault, build_table, place_of_rows, report
from raysys.data.readers import BATCH_ROWS, Batch
from raysys.data.rejects import Problem, Reject
from raysys.data.values import BadValue, Parsed, Parser, as_text
from raysys.errors import ConfigError
from raysys.state.open import open_state
from raysys.state.protocol import StateStore
from raysys.types import ItemChange

SOURCE = "live changes"  # not the address of the store, which may hold a password
PAGE = 1_000

_CHANGES, _ERASED = "changes.parquet", "erased.parquet"
_CHANGE_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("fields", pa.binary()),  # JSON; null = deleted
    ]
)
GONE_SCHEMA = pa.schema([pa.field("item_id", pa.string(), nullable=False)])
_USER_PREFIX = "u:"  # of ``types.user_key``; a file of events names no sessions


@dataclass(frozen=True, slots=True)
class Folded:
    """items: a table of ``catalog.item_schema``, the row of each being its sequence. rejects: what cannot be used.

    gone: a table of ``GONE_SCHEMA``, the items that must not be in the snapshot, whatever the catalogue's files say:
    those deleted, and those whose state cannot be used.
    """

    items: pa.Table
    rejects: list[Reject]
    gone: pa.Table


def check_location(location: str) -> None:
    """Raises ConfigError for a file that is not there: opening it would make an empty one, and fold nothing."""
    if "://" not in location and not Path(location).is_file():
        raise ConfigError(
            f"state: there is no file {location}. Give the `state` of the server's settings (a server makes the file "
            "when it first starts), or leave `state` out to fold no changes."
        )


def take_log(location: str, folder: Path) -> tuple[int, str]:
    """Write all changes up to now, and who was erased, into ``folder``. Returns the sequence they go up
    to, and the identity of the store that gave it.

    Raises ConfigError for a store that cannot be used, Unavailable for one that does not answer. Not for use inside
    an event loop.
    """
    check_location(location)
    return asyncio.run(_take(location, folder))


async def _take(location: str, folder: Path) -> tuple[int, str]:
    state = open_state(location)
    try:
        identity = await state.identity()
        last = await state.last_sequence()  # before the pages: what is written from here on stays in the log
        with pq.ParquetWriter(folder / _CHANGES, _CHANGE_SCHEMA) as writer:
            async for page in _pages(state, last):
                writer.write_table(_table(page))
        _write_erased(await state.erased(), folder)
    finally:
        await state.close()
    return last, identity


async def _pages(state: StateStore, last: int) -> AsyncIterator[list[ItemChange]]:
    position = 0
    while position < last and (page := await state.item_changes(position, PAGE)):
        position = page[-1].sequence
        yield [change for change in page if change.sequence <= last]


def _table(page: list[ItemChange]) -> pa.Table:
    rows = [
        {
            "sequence": change.sequence,
            "item_id": change.item_id,
            "fields": None if change.fields is None else orjson.dumps(dict(change.fields)),
        }
        for change in page
    ]
    return pa.Table.from_pylist(rows, schema=_CHANGE_SCHEMA)


def _write_erased(erased: Mapping[str, float], folder: Path) -> None:
    users = {key.removeprefix(_USER_PREFIX): at_s for key, at_s in erased.items() if key.startswith(_USER_PREFIX)}
    columns = {"user_id": pa.array(users.keys(), pa.string()), "at_s": pa.array(users.values(), pa.float64())}
    pq.write_table(pa.table(columns), folder / _ERASED)


def erased_users(folder: Path) -> dict[str, float]:
    """User id -> when it was erased, epoch seconds, from the files of ``take_log``; empty where there are none."""
    path = folder / _ERASED
    if not path.is_file():
        return {}
    user_ids, times_s = pq.read_table(path).columns
    return dict(zip(user_ids.to_pylist(), times_s.to_pylist(), strict=True))


def batches(folder: Path) -> Iterator[pa.Table]:
    """The changes of ``take_log``, by their sequence, ascending; none where there are no files."""
    path = folder / _CHANGES
    if path.is_file():
        for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
            yield pa.Table.from_batches([batch])


def prepare(changes: pa.Table, rules: ItemRules, attributes: Mapping[str, pa.DataType], number: int) -> Folded:
    """What one table of ``batches`` says about its items. ``number``: their ``source_seq``.

    As in ``catalog.prepare``, an optional value that cannot be used is set to null, and an item without text is
    dropped; both are reported. Its text is rendered by the template of this build.
    """
    shown = changes.filter(changes["fields"].is_valid())
    batch = Batch(SOURCE, number, shown, shown["sequence"].combine_chunks())
    parsed = _parse(shown, _parsers(rules, attributes))
    texts = _texts(parsed, rules, attributes)
    dropped = {index: _no_text(index) for index, text in enumerate(texts) if not text}
    values = {name: column.values for name, column in parsed.items()} | place_of_rows(batch) | {"item_text": texts}
    items = build_table(catalog.item_schema(attributes), values, dropped)
    deleted = changes.filter(changes["fields"].is_null())["item_id"].to_pylist()
    gone = [*deleted, *(parsed["item_id"].values[index] for index in dropped)]
    return Folded(items, report(batch, parsed, dropped), pa.table({"item_id": gone}, schema=GONE_SCHEMA))


def without(items: pa.Table, gone: pa.ChunkedArray) -> pa.Table:
    """The items whose id is not among those gone."""
    return items.filter(pc.invert(pc.is_in(items["item_id"], gone)))


def _parse(shown: pa.Table, parsers: Mapping[str, Parser]) -> dict[str, Parsed]:
    ids = shown["item_id"].to_pylist()
    rows = [orjson.loads(fields) for fields in shown["fields"].to_pylist()]
    columns = {name: _column([row.get(name) for row in rows], parser) for name, parser in parsers.items()}
    return columns | {"item_id": Parsed(ids, ids, [])}


def _column(raw: list[Any], parser: Parser) -> Parsed:
    values: list[Any] = [None] * len(raw)
    problems: list[Problem] = []
    for index, value in enumerate(raw):
        try:
            values[index] = None if value is None else parser(value)
        except BadValue as error:
            problems.append(Problem(index, error.code, error.message))
    return Parsed(values, raw, problems)


def _parsers(rules: ItemRules, attributes: Mapping[str, pa.DataType]) -> dict[str, Parser]:
    """Those of the catalogue, but for markup, which went when the change was written.

    Taken away again, it would take the words "<b>" of a text about HTML, written as "&lt;b&gt;", for a tag.
    """
    parsers = catalog.parsers(rules, attributes)
    kinds = {field.name: field.type for field in catalog.item_schema(attributes)}
    lists = {name: _list(parser) for name, parser in parsers.items() if kinds[name] == LIST}
    return parsers | lists | dict.fromkeys(("title", "text"), _prose(rules.max_text_chars))


def _list(parser: Parser) -> Parser:
    return lambda value: [as_text(part) for part in value] if isinstance(value, list) else parser(value)


def _prose(max_chars: int) -> Parser:
    return lambda value: plain_text(as_text(value), max_chars) or None


def _texts(parsed: Mapping[str, Parsed], rules: ItemRules, attributes: Mapping[str, pa.DataType]) -> list[str]:
    template = catalog.template_of(rules, attributes)
    rows = zip(*(column.values for column in parsed.values()), strict=True)
    return [catalog.text_of(template, dict(zip(parsed, row, strict=True)), rules.max_text_chars) for row in rows]


def _no_text(index: int) -> Fault:
    return Fault("text", Problem(index, "no_text", "there is nothing to read in title and text"))
