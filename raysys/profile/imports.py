"""Past events from files into a profile store. Safe to repeat: events are known by their id."""

from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa

from raysys.config import EventsSettings
from raysys.data import events, readers
from raysys.profile.fold import canonical_kind
from raysys.profile.store import ProfileStore, user_key
from raysys.types import Event


def import_events(settings: EventsSettings, store: ProfileStore, say: Callable[[str], None]) -> Counter[str]:
    """Append every usable event. Returns counts: read, accepted, duplicates, rejected. Raises ConfigError."""
    splits = readers.discover(settings.path, settings.format)
    columns = events.resolve_event_columns(settings, readers.columns_of(splits[0]))
    counts: Counter[str] = Counter()
    for split in splits:
        for batch in readers.read(split, list(dict.fromkeys(columns.values()))):
            prepared = events.prepare_events(batch, settings, columns)
            outcomes = store.append(list(_events(prepared.events)))
            counts["read"] += len(batch.table) + len(batch.rejects)
            counts["rejected"] += sum(reject.dropped == "row" for reject in prepared.rejects)
            counts["accepted"] += outcomes.count("accepted")
            counts["duplicates"] += outcomes.count("duplicate")
            say(f"events read {counts['read']:,}")
    return counts


def _events(table: pa.Table) -> Iterator[Event]:
    for row in table.to_pylist():
        user = user_key(row["user_id"], None)
        assert user is not None  # noqa: S101  # an event without a user was rejected before
        yield Event(
            event_id=row["event_id"],
            kind=canonical_kind(row["kind"]),
            user=user,
            item_id=row["item_id"],
            timestamp_s=row["timestamp_s"],
            value=row["value"],
            text=row["text"],
        )
