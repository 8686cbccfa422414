"""What every profile store is: events go in for good, profiles come out up to date."""

from collections.abc import Sequence
from typing import Literal, Protocol

from raysys.types import Event, Profile

Outcome = Literal["accepted", "duplicate"]


class ProfileStore(Protocol):
    """The log of events and the profiles folded from it. Safe to call from several threads; every call blocks.

    Any number of stores, in any number of processes, may share one log. Once ``append`` has returned, the next
    ``profile`` of that user sees those events through every one of them.
    """

    def append(self, events: Sequence[Event]) -> list[Outcome]:
        """Add events to the log, all or none; one outcome an event, in order.

        When it returns, the events are durable: they survive a kill -9 of any process. An event whose id is in the
        log already, or came earlier in ``events``, is a duplicate and changes nothing.
        Raises InvalidInput for an event that cannot be kept, Unavailable where the log cannot be written now.
        """
        ...

    def profile(self, user: str) -> Profile:
        """The profile of a user key as of now. A user without events has version 0 and no interactions.

        Raises Unavailable where the log cannot be read now.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections. Calls after it raise Unavailable; closing twice is harmless."""
        ...


def user_key(user_id: str | None, session_id: str | None) -> str | None:
    """The one key of a person: ``u:<user_id>``, or ``s:<session_id>`` for a visitor without a user id.

    The prefixes keep a session from ever being taken for a user of the same name. None where neither is given.
    """
    if user_id is not None:
        return f"u:{user_id}"
    return None if session_id is None else f"s:{session_id}"
