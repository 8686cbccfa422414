"""One item as the API takes it: read by the rules of the catalogue, but strictly, as its sender can still mend it."""

from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from raysys.config import ItemRules
from raysys.data import catalog
from raysys.data.rejects import excerpt
from raysys.data.values import BadValue
from raysys.errors import InvalidInput
from raysys.types import ItemDraft

_INTERNAL = ("item_id", "text_key")


class ItemEntry:
    """Reads items for one catalogue: its rules, and the fields of ``schema``, which are ours and its attributes."""

    def __init__(self, rules: ItemRules, schema: pa.Schema) -> None:
        ours = {*catalog.ITEM_SCHEMA.names, *_INTERNAL}
        attributes = {field.name: field.type for field in schema if field.name not in ours}
        self._max_chars = rules.max_text_chars
        self._parsers = catalog.parsers(rules, attributes)
        self._template = catalog.template_of(rules, attributes)

    def draft(self, raw: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> ItemDraft:
        """The whole state of an item from plain JSON values; null means not given.

        kept: fields that it has already and ``raw`` does not name. They were read before, and are not cleaned again.
        Raises InvalidInput that names the field: an unknown one, a value that cannot be read, no id, nothing to read.
        """
        values = {**(kept or {}), **{name: self._read(name, value) for name, value in raw.items()}}
        item_id = values.pop("item_id", None)
        if not item_id:
            raise InvalidInput("item_id", "there is no id")
        fields = {name: _plain(value) for name, value in values.items() if value is not None}
        text = catalog.text_of(self._template, values, self._max_chars)
        if not text:
            raise InvalidInput("title", "there is nothing to read in title and text")
        return ItemDraft(item_id, fields, text)

    def _read(self, name: str, value: Any) -> Any:
        if name not in self._parsers:
            shown = excerpt(name)
            close = get_close_matches(shown, self._parsers, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InvalidInput(shown, f"there is no such field; {hint}the catalogue has: {', '.join(self._parsers)}")
        if name == "item_id" and not isinstance(value, str):
            raise InvalidInput(name, "must be a string")
        if value is None or (isinstance(value, str) and name != "item_id" and not value.strip()):
            return None
        try:
            return self._parsers[name](value)
        except BadValue as error:
            raise InvalidInput(name, error.message) from error


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
