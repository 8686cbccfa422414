"""What people did, as flat arrays: 10 million events are 240 MB, and the events of a user are a slice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """One sequence of events a user, oldest first.

    starts: [n_users + 1] int64; the events of user u are those from ``starts[u]`` up to ``starts[u + 1]``.
    items: [n_events] int64 item indices. times_s: [n_events] float64 UTC epoch seconds, not falling within a user.
    values: [n_events] float64 grades, NaN = none was given.
    """

    starts: Items
    items: Items
    times_s: Floats
    values: Floats

    @classmethod
    def of(cls, rows: Sequence[Items], times_s: Floats | None = None, values: Floats | None = None) -> "Sequences":
        """From one array of items a user. Without times, an event has its place in the sequence as seconds."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        items = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64)
        places = (np.arange(len(items)) - np.repeat(starts[:-1], np.diff(starts))).astype(np.float64)
        given = np.full(len(items), np.nan) if values is None else values
        return cls(starts, items, places if times_s is None else times_s, given)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Items]:
        """The items of one user after the other."""
        return (self.items[a:b] for a, b in zip(self.starts[:-1], self.starts[1:], strict=True))

    @property
    def lengths(self) -> Items:
        """[n_users] int64, events of each."""
        return np.diff(self.starts)

    @property
    def owners(self) -> Items:
        """[n_events] int64, whose event it is."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def keep(self, mask: NDArray[np.bool_]) -> "Sequences":
        """The same users with only these of their events. mask: [n_events]."""
        kept = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        return Sequences(kept[self.starts], self.items[mask], self.times_s[mask], self.values[mask])

    def take(self, users: Items) -> "Sequences":
        """These users, in this order. users: [k] int64."""
        lengths = self.lengths[users]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        at = np.arange(starts[-1]) + np.repeat(self.starts[users] - starts[:-1], lengths)
        return Sequences(starts, self.items[at], self.times_s[at], self.values[at])

    def latest(self, n: int) -> "Sequences":
        """The last ``n`` events of each user."""
        return self.keep(self.steps_back < n)

    @property
    def steps_back(self) -> Items:
        """[n_events] int64: how many later events of the same user there are."""
        return np.repeat(self.starts[1:], self.lengths) - 1 - np.arange(len(self.items))


def counts_of(sequences: Sequences, n_items: int) -> Items:
    """[n_items] int64: events of each item."""
    return np.bincount(sequences.items, minlength=n_items).astype(np.int64)
