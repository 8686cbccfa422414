"""How every store writes events, people, items and vectors as bytes, and what none of them can keep.

A record leaves out what a store keeps beside it: the person it belongs to, which a link may change, and the sequence.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from raysys.errors import InvalidInput
from raysys.types import Event, ItemChange, ItemDraft, Person, Vectors

# Without these, orjson would write dates and our own values in silence, and they would read back as something else.
_PLAIN = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_VECTOR = np.dtype("<f4")


def check_key(key: str, field: str) -> None:
    """Raise InvalidInput for an id, a user key or a kind that not every store can keep: NUL, a lone surrogate."""
    if "\0" in key:
        raise InvalidInput(field, "holds a NUL character")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(field, f"is no Unicode text: {error.reason}") from error


def check_link(session: str, user: str) -> None:
    """Raise InvalidInput unless these are the key of a session (``s:...``) and that of a user (``u:...``)."""
    for field, key, prefix in (("session", session, "s:"), ("user", user, "u:")):
        check_key(key, field)
        if not key.startswith(prefix):
            raise InvalidInput(field, f"{key!r} is no key of a {field}; it starts with {prefix!r}")


def check_event(event: Event, field: str) -> None:
    """Raise InvalidInput, which names ``field``, for keys and numbers that cannot be kept."""
    for key in (event.event_id, event.user, event.kind, event.item_id):
        if key is not None:
            check_key(key, field)
    for name, number in (("timestamp", event.timestamp_s), ("value", event.value), ("expires_s", event.expires_s)):
        if number is not None and not math.isfinite(number):
            raise InvalidInput(f"{field}.{name}", f"{number} is not a finite number")


def event_to_json(event: Event, field: str) -> bytes:
    """All of an event but its user. Raises InvalidInput, which names ``field``, for one that cannot be kept."""
    check_event(event, field)
    head = {
        "event_id": event.event_id,
        "kind": event.kind,
        "item_id": event.item_id,
        "timestamp_s": event.timestamp_s,
        "value": event.value,
        "expires_s": event.expires_s,
    }
    return _to_json({name: value for name, value in head.items() if value is not None} | _details(event), field)


def event_from_json(record: bytes | str, user: str) -> Event:
    """The event of a record of ``event_to_json``."""
    return Event(**({"user": user, "item_id": None} | orjson.loads(record)))


def details_to_json(event: Event, field: str) -> bytes:
    """What no store sorts or looks up events by: text, recommendation id, properties. Raises as ``event_to_json``."""
    check_event(event, field)
    return _to_json(_details(event), field)


def details_from_json(record: bytes | str) -> dict[str, Any]:
    """The fields of ``Event`` in a record of ``details_to_json``."""
    return dict(orjson.loads(record))


def person_to_json(person: Person, field: str = "person") -> bytes:
    """All of a person but their key. Raises InvalidInput, which names ``field``, for one that cannot be kept."""
    check_key(person.user, f"{field}.user")
    if not math.isfinite(person.updated_s):
        raise InvalidInput(f"{field}.updated_s", f"{person.updated_s} is not a finite number")
    record = {
        "description": person.description,
        "language": person.language,
        "attributes": dict(person.attributes),
        "follows": list(person.follows),
        "pinned": sorted(person.pinned),
        "muted": sorted(person.muted),
        "updated_s": person.updated_s,
    }
    return _to_json(record, field)


def person_from_json(record: bytes | str, user: str) -> Person:
    """The person of a record of ``person_to_json``."""
    values = orjson.loads(record)
    sets = {"follows": tuple(values["follows"])} | {name: frozenset(values[name]) for name in ("pinned", "muted")}
    return Person(**(values | sets), user=user)


def item_to_json(draft: ItemDraft, field: str) -> bytes:
    """Fields and text of an item. Raises InvalidInput, which names ``field``, for a draft that cannot be kept."""
    check_key(draft.item_id, f"{field}.item_id")
    return _to_json({"fields": None if draft.fields is None else dict(draft.fields), "text": draft.text}, field)


def item_from_json(record: bytes | str, sequence: int, item_id: str, changed_s: float, created_s: float) -> ItemChange:
    """The state of an item from a record of ``item_to_json`` and what stands beside it."""
    values = orjson.loads(record)
    return ItemChange(sequence, item_id, values["fields"], values["text"], changed_s, created_s)


def vector_to_bytes(vector: Vectors) -> bytes:
    """[dim] float32 as little-endian bytes. Raises InvalidInput for an array of another shape or dtype."""
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise InvalidInput("vectors", f"want [dim] float32, got {vector.shape} {vector.dtype}")
    return vector.astype(_VECTOR).tobytes()


def vector_from_bytes(data: bytes) -> Vectors:
    """[dim] float32, read-only, of the bytes of ``vector_to_bytes``."""
    return np.frombuffer(data, dtype=_VECTOR)


def _details(event: Event) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if event.text is not None:
        details["text"] = event.text
    if event.recommendation_id is not None:
        details["recommendation_id"] = event.recommendation_id
    if event.properties:
        details["properties"] = dict(event.properties)
    return details


def _to_json(values: Mapping[str, Any], field: str) -> bytes:
    try:
        return orjson.dumps(values, option=_PLAIN)
    except TypeError as error:  # also a lone surrogate, a whole number of more than 64 bits, too deep a nesting
        raise InvalidInput(field, f"cannot be kept as JSON: {error}") from error
