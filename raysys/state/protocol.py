"""What every state store is. Writes are for good when they return; reads see them through every store on the same data.

Two implementations: SQLite in WAL mode for one machine (``sqlite.py``), Redis for a cluster (``redis.py``). Both pass
one behaviour suite. Calls are coroutines of one event loop. Each raises Unavailable where the store cannot answer
now, and then has changed nothing.

One *sequence* numbers everything that is written, people and items alike: it only grows, also where the clock jumps
back, and is never used twice. The version of a profile is the sequence of the last write about that person.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from raysys.types import Event, ItemChange, ItemDraft, Person, Vectors

Outcome = Literal["accepted", "duplicate"]
Link = Literal["merged", "already", "conflict"]


@dataclass(frozen=True, slots=True)
class History:
    """What is written about one person, from one state of the store.

    version: 0 for a stranger. events: the latest by (timestamp, event id), newest first.
    """

    user: str
    version: int = 0
    events: tuple[Event, ...] = ()
    person: Person | None = None


class StateStore(Protocol):
    """See the top of this module."""

    # Events and people

    async def append(self, events: Sequence[Event]) -> list[Outcome]:
        """Add events, all or none; one outcome an event, in order.

        An event whose id is known, or came earlier in ``events``, is a duplicate and changes nothing. An event of a
        session that was linked to a user becomes that user's. Raises InvalidInput for an event that cannot be kept.
        """
        ...

    async def history(self, user: str, limit: int, known_version: int = -1) -> History | None:
        """The latest ``limit`` events of a user, their person and version; None where the version is the known one.

        ``user`` is a user key (``types.user_key``); a linked session answers for its user.
        """
        ...

    async def histories(self, users: Sequence[str], limit: int) -> dict[str, History]:
        """``history`` of several users in one go, by the key asked for; all from one state of the store."""
        ...

    async def versions(self, users: Sequence[str]) -> dict[str, int]:
        """The version of each of these users, 0 for a stranger."""
        ...

    async def put_person(self, person: Person) -> int:
        """Replace who a person is. Returns their version."""
        ...

    async def link(self, session: str, user: str) -> tuple[Link, int]:
        """Make the events of a session the user's, those to come included. Returns (what happened, user's version).

        ``already``: it was linked to this user before, nothing changes. ``conflict``: it belongs to another user.
        """
        ...

    async def sessions(self, user: str) -> list[str]:
        """The keys of the sessions linked to a user, ascending; a linked session answers for its user."""
        ...

    async def forget(self, user: str, event_ids: Sequence[str], text_keys: Sequence[bytes] = ()) -> int:
        """Remove these events of a user for good, and the vectors of these texts. Returns how many events went.

        Events of others, and ids that nobody has, are passed over. The version grows where an event went. A linked
        session stands for its user. An id that went is unknown from then on: sent again, it counts again.
        """
        ...

    async def erase(self, user: str, text_keys: Sequence[bytes] = ()) -> dict[str, int]:
        """Remove a person wholly: events, person, links of their sessions, and the vectors of these texts.

        Returns how many went from each place: ``events``, ``person``, ``links``, ``vectors``. Sequences go on growing.
        The key of the person stays in ``erased``, so that the next build can leave out their past.
        """
        ...

    async def erased(self) -> dict[str, float]:
        """The user keys that were erased, and when, epoch seconds."""
        ...

    async def expire(self, now_s: float, limit: int = 10_000) -> int:
        """Remove events whose ``expires_s`` has passed, up to ``limit`` of them. Returns how many went."""
        ...

    async def events_after(self, sequence: int, limit: int) -> list[tuple[int, Event]]:
        """Events of everyone by their sequence, ascending, from the first after this one. Erased ones are not there."""
        ...

    # Items: the log is compacted by item, so that each item stands in it once, with its latest state

    async def change_items(self, drafts: Sequence[ItemDraft], now_s: float) -> list[ItemChange | None]:
        """Write new states of items, each with a sequence of its own, in order.

        None for a draft whose ``expected`` sequence is not that of the item's latest change: nothing was written for
        it, read again and retry. ``created_s`` stays that of the first change.
        """
        ...

    async def item_changes(self, after: int, limit: int) -> list[ItemChange]:
        """Items whose latest change has a sequence above ``after``, ascending by it."""
        ...

    async def items(self, item_ids: Sequence[str]) -> dict[str, ItemChange]:
        """The latest change of each of these items that was ever changed, deleted ones included."""
        ...

    async def identity(self) -> str:
        """32 hex digits that name this data: sequences of one store mean nothing to another."""
        ...

    async def last_sequence(self) -> int:
        """The highest sequence given so far, 0 at the start."""
        ...

    # Vectors of texts

    async def put_vectors(self, vectors: Mapping[bytes, Vectors], item_ids: Sequence[str] = ()) -> None:
        """Keep one [dim] float32 a ``keys.text_key``; the items get a new sequence, so that followers look again."""
        ...

    async def vectors(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors that are there, [dim] float32 each."""
        ...

    async def size(self) -> dict[str, Any]:
        """``events``, ``people``, ``items``, ``vectors``: how many there are; ``bytes``: what they take."""
        ...

    async def close(self) -> None:
        """Let go of files and connections. Calls after it raise Unavailable; closing twice is harmless."""
        ...
