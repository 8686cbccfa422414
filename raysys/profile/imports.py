"""Past events from files into a state store. Safe to repeat: events are known by their id."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from raysys.config import EventsSettings, ProfileSettings
from raysys.data import events, readers
from raysys.profile.fold import canonical_kind, expires_s
from raysys.state.open import open_state
from raysys.state.protocol import Outcome, StateStore
from raysys.types import Event, user_key

EVENTS_PER_WRITE = 1_000


def import_into(location: str, settings: EventsSettings, say: Callable[[str], None]) -> Counter[str]:
    """``import_events`` into the store at this location, opened for it. Raises ConfigError, Unavailable."""

    async def run() -> Counter[str]:
        state = open_state(location)
        try:
            return await import_events(settings, state, ProfileSettings(), say)
        finally:
            await state.close()

    return asyncio.run(run())


async def import_events(
    settings: EventsSettings, state: StateStore, profile: ProfileSettings, say: Callable[[str], None]
) -> Counter[str]:
    """Append every usable event. Returns counts: read, accepted, duplicates, rejected. Raises ConfigError."""
    splits = readers.discover(settings.path, settings.format)
    columns = events.resolve_event_columns(settings, readers.columns_of(splits[0]))
    counts: Counter[str] = Counter()
    for split in splits:
        for batch in readers.read(split, list(dict.fromkeys(columns.values()))):
            prepared = events.prepare_events(batch, settings, columns)
            outcomes = await _append(state, list(_events(prepared.events, profile)))
            counts["read"] += len(batch.table) + len(batch.rejects)
            counts["rejected"] += sum(reject.dropped == "row" for reject in prepared.rejects)
            counts["accepted"] += outcomes.count("accepted")
            counts["duplicates"] += outcomes.count("duplicate")
            say(f"events read {counts['read']:,}")
    return counts


async def _append(state: StateStore, events: Sequence[Event]) -> list[Outcome]:
    """In parts: a store must not be held up by one long write."""
    parts = [events[start : start + EVENTS_PER_WRITE] for start in range(0, len(events), EVENTS_PER_WRITE)]
    return [outcome for part in parts for outcome in await state.append(part)]


def _events(table: pa.Table, profile: ProfileSettings) -> Iterator[Event]:
    for row in table.to_pylist():
        user = user_key(row["user_id"], None)
        assert user is not None  # noqa: S101  # an event without a user was rejected before
        kind = canonical_kind(row["kind"])
        yield Event(
            event_id=row["event_id"],
            kind=kind,
            user=user,
            item_id=row["item_id"],
            timestamp_s=row["timestamp_s"],
            value=row["value"],
            text=row["text"],
            expires_s=expires_s(kind, row["timestamp_s"], profile),
        )
