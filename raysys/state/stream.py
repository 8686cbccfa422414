"""Events from a stream into the state store, each counted once.

An entry is committed after its event is in the store, so a consumer that dies in between gets it again; the store knows
events by their id, so the second time changes nothing. At least once and idempotent together are once.

An entry has a field ``event``: the JSON of one event as in POST /v1/events. An entry that holds no such thing goes to a
file, is committed, and stops nobody.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import orjson

from raysys.errors import InvalidInput, Unavailable
from raysys.state.protocol import StateStore
from raysys.types import Event

FIELD = "event"
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 5.0

log = logging.getLogger(__name__)

Parse = Callable[[dict[str, Any]], Event]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry as it came. ``entry_id``: what ``EventSource.commit`` takes."""

    entry_id: str
    fields: Mapping[str, bytes]


class EventSource(Protocol):
    """Where entries come from.

    A consumer of Kafka would fill it so: ``read`` polls with ``enable.auto.commit`` off, and gives the value of each
    record as the field ``event`` and ``topic:partition:offset`` as its id; ``commit`` commits, of each partition, the
    offset after the last of these. Offsets are thus committed only after the events are in the store, and a partition
    that moves to another consumer is read again from there.
    """

    async def read(self, max_events: int, wait_s: float) -> list[StreamEntry]:
        """Up to so many entries, each until it is committed; none where none come in time. Raises Unavailable."""
        ...

    async def commit(self, entry_ids: Sequence[str]) -> None:
        """These are done and never come again. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class DeadLetters:
    """A file of the entries that hold no event, one JSON object a line: ``entry_id``, ``fields``, ``reason``.

    An entry stands there twice where the consumer died before it could commit it. The file holds what people sent,
    and no erasure reaches it: it is created for its owner alone (0600); look at it, then remove it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def add(self, letters: Sequence[tuple[StreamEntry, str]]) -> None:
        """Append entries with the reason of each; they are on the disk when it returns. Raises OSError."""
        lines = b"".join(_line(*letter) for letter in letters)
        with open(self._path, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            # A line that a crash cut off must not swallow the next one.
            file.write(lines if _ends_a_line(file) else b"\n" + lines)
            file.flush()
            os.fsync(file.fileno())


async def consume(
    source: EventSource,
    parse: Parse,
    state: StateStore,
    dead_letters: DeadLetters,
    stop: asyncio.Event,
    max_events: int = 500,
    wait_s: float = 1.0,
    counts: Counter[str] | None = None,
) -> Counter[str]:
    """Read, store and commit until ``stop`` is set. Returns counts: accepted, duplicate, rejected.

    parse: makes an event of the JSON object of an entry, or raises InvalidInput. counts: where to count, for one who
    looks meanwhile. While the source or the store is Unavailable it tries again, first after 0.1 s, then ever slower up
    to 5 s; it drops nothing and commits nothing. Stopping takes up to ``wait_s``. Raises OSError where the dead letters
    cannot be written; nothing is lost then.
    """
    consumer = _Consumer(source, parse, state, dead_letters, stop, Counter() if counts is None else counts)
    # Unavailable comes out only when told to stop: what was not stored is not committed either.
    with contextlib.suppress(Unavailable):
        while not stop.is_set():
            entries = await consumer.insist(lambda: source.read(max_events, wait_s))
            if entries:
                await consumer.take(entries)
    return consumer.counts


@dataclass
class _Consumer:
    source: EventSource
    parse: Parse
    state: StateStore
    dead_letters: DeadLetters
    stop: asyncio.Event
    counts: Counter[str]

    async def take(self, entries: Sequence[StreamEntry]) -> None:
        """Store the events of these entries, put the others aside, then commit all."""
        good: list[tuple[StreamEntry, Event]] = []
        bad: list[tuple[StreamEntry, str]] = []
        for entry in entries:
            try:
                good.append((entry, self.parse(_json_object(entry))))
            except InvalidInput as error:
                bad.append((entry, str(error)))
        bad += await self._store(good)
        if bad:
            await self._reject(bad)
        await self.insist(lambda: self.source.commit([entry.entry_id for entry in entries]))

    async def _store(self, pairs: Sequence[tuple[StreamEntry, Event]]) -> list[tuple[StreamEntry, str]]:
        """Append the events; returns those that the store refuses. It takes all or none, so then one at a time."""
        if not pairs:
            return []
        try:
            outcomes = await self.insist(lambda: self.state.append([event for _, event in pairs]))
        except InvalidInput as error:
            if len(pairs) == 1:
                return [(pairs[0][0], str(error))]
            return [letter for pair in pairs for letter in await self._store([pair])]
        self.counts.update(outcomes)
        return []

    async def _reject(self, letters: Sequence[tuple[StreamEntry, str]]) -> None:
        await asyncio.to_thread(self.dead_letters.add, letters)
        self.counts["rejected"] += len(letters)
        entry, reason = letters[0]
        log.warning("%d entries of the stream hold no event; the first is %s: %s", len(letters), entry.entry_id, reason)

    async def insist(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """Call until it answers. Raises Unavailable only when told to stop."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                return await call()
            except Unavailable as error:
                log.warning("trying again in %g s: %s", delay_s, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), delay_s)
                if self.stop.is_set():
                    raise
            delay_s = min(2 * delay_s, _LAST_RETRY_S)


def _json_object(entry: StreamEntry) -> dict[str, Any]:
    raw = entry.fields.get(FIELD)
    if raw is None:
        raise InvalidInput(FIELD, "the entry has no such field, or was trimmed from the stream before it was read")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(FIELD, f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(FIELD, "is no JSON object")
    return value


def _ends_a_line(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _line(entry: StreamEntry, reason: str) -> bytes:
    fields = {name: value.decode(errors="backslashreplace") for name, value in entry.fields.items()}
    # What cannot be written as UTF-8 must not keep the entry from being put aside.
    as_text = reason.encode(errors="backslashreplace").decode()
    letter = {"entry_id": entry.entry_id, "fields": fields, "reason": as_text}
    return orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE)
