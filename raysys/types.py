"""The plain values that travel between stages. Frozen, without behaviour, without Ray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Keys = NDArray[np.uint64]

# The candidate sources, in the order of the columns of every score matrix.
QUERY, PROFILE, SAID, TRANSITION, TRENDING, FRESH, POPULAR = range(7)
SOURCES = ("query", "profile", "said", "transition", "trending", "fresh", "popular")


def user_key(user_id: str | None, session_id: str | None) -> str | None:
    """The one key of a person: ``u:<user_id>``, or ``s:<session_id>`` for a visitor without a user id.

    The prefixes keep a session from ever being taken for a user of the same name. None where neither is given.
    """
    if user_id is not None:
        return f"u:{user_id}"
    return None if session_id is None else f"s:{session_id}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something a person did. ``user`` is a ``user_key``; ``expires_s``: when it stops counting, None = never."""

    event_id: str
    kind: str
    user: str
    item_id: str | None
    timestamp_s: float
    value: float | None = None
    text: str | None = None
    recommendation_id: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """Who somebody is, and what they say about their own profile.

    description: in words, encoded like any text. follows: item or owner ids. pinned, muted: the evidence (item ids,
    ``text:<event id>``, or ``description``) that must not fade, or must not count.
    """

    user: str
    description: str | None = None
    language: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    pinned: frozenset[str] = frozenset()
    muted: frozenset[str] = frozenset()
    updated_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ItemDraft:
    """A new state of one item. fields: plain JSON values without the id; None = deleted. text: what is encoded.

    expected: the sequence that the item's latest change must have, 0 = it was never changed; None = whatever it is.
    """

    item_id: str
    fields: Mapping[str, Any] | None
    text: str = ""
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class ItemChange:
    """The state of one item after its latest change; ``fields`` and ``text`` as in ``ItemDraft``.

    sequence: numbers all changes. changed_s, created_s: when it was changed last and first, epoch seconds.
    """

    sequence: int
    item_id: str
    fields: Mapping[str, Any] | None
    text: str
    changed_s: float
    created_s: float

    @property
    def deleted(self) -> bool:
        return self.fields is None


@dataclass(frozen=True, slots=True)
class Interaction:
    """What a person's events say about one item: weight > 0 likes, < 0 dislikes, 0 only seen.

    kind: of the event that decided the weight.
    """

    item_id: str
    weight: float
    timestamp_s: float
    kind: str = "view"


@dataclass(frozen=True, slots=True)
class Saying:
    """A text that a person wrote, with where it comes from: ``event_id``, or ``description`` for who they are."""

    text: str
    weight: float
    timestamp_s: float
    kind: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The state of one user: the fold of their events. ``version`` grows with every write about them.

    interactions: one an item, oldest first. sayings: oldest first. counts: events by kind.
    valid_until_s: from when an event has expired, and the fold must be made again.
    """

    user: str
    version: int = 0
    interactions: tuple[Interaction, ...] = ()
    sayings: tuple[Saying, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    person: Person | None = None
    valid_until_s: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class RecallQuery:
    """What one request asks of every shard.

    query: [dim] float32, L2-normalised where the metric is cosine; None = not given. profile: [m, dim], one vector an
    interest of the person. said: [s, dim], one a text of theirs. An item is as near to either as to its nearest vector.
    history_keys: [h] uint64 item keys of the positive history; history_weights: [h] float32, decayed.
    exclude_keys: [e] uint64 item keys that must not come back.
    filter: a ``filters.Filter``; None keeps everything. now_s: UTC epoch seconds, for availability.
    k: candidates per source and shard.
    only: [c] uint64 item keys to score instead of looking for candidates; None = look for them.
    """

    query: Vectors | None
    profile: Vectors | None
    said: Vectors | None
    history_keys: Keys
    history_weights: NDArray[np.float32]
    exclude_keys: Keys
    filter: Any | None
    now_s: float
    k: int
    only: Keys | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Items found, one row an item, each scored by every source.

    shard, row: [n] int32, where the item lives. key: [n] uint64 item key (breaks ties).
    scores: [n, len(SOURCES)] float32, higher is better, 0 where the source does not know the item.
    found_by: [n] uint8, bit s set when source s put the item forward.
    exact: every source searched exactly.
    """

    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    key: Keys
    scores: NDArray[np.float32]
    found_by: NDArray[np.uint8]
    exact: bool = True

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for: any mix of who they are, what they like, and what they look for.

    user: key of a stored profile; history: item ids seen in this session, oldest first; positive, negative: liked
    and disliked item ids; query: free text; filter: a ``filters.Filter``; limit: items wanted.
    only: item ids to rank instead of looking for candidates.
    """

    limit: int
    user: str | None = None
    query: str | None = None
    history: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    filter: Any | None = None
    exclude_seen: bool = True
    only: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One line of an answer. ``sources``: the score that each source gave, for those that found it."""

    item_id: str
    score: float
    rank: int
    sources: Mapping[str, float]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back. degraded: parts that did not answer; reasons: why the list is as it is (``cold_start``)."""

    snapshot_id: str
    profile_version: int
    items: tuple[RankedItem, ...]
    underfilled: bool
    exact: bool
    degraded: tuple[str, ...]
    reasons: tuple[str, ...]
    timings_ms: Mapping[str, float]
