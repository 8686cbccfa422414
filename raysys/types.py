"""The plain values that travel between stages. Frozen, without behaviour, without Ray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Keys = NDArray[np.uint64]
TextKeys = NDArray[np.void]  # 32 bytes each (``keys.text_key``); they sort as bytes do

# The candidate sources, in the order of the columns of every score matrix.
QUERY, PROFILE, SAID, QUERY_WORDS, WORDS, TRANSITION, RIDGE = range(7)
FACTORS, SEQUENCE, FRIENDS, TRENDING, FRESH, POPULAR = range(7, 13)
SOURCES = (
    *("query", "profile", "said", "query_words", "words", "transition", "ridge"),
    *("factors", "sequence", "friends", "trending", "fresh", "popular"),
)
SPACES = (FACTORS, SEQUENCE)  # those of behaviour models in which items and people are vectors


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

    description: in words, encoded like any text. follows: owners of items by their ids,
    people as ``user:<user id>`` (``profile.follows``). pinned, muted: the evidence (item ids,
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
class Terms:
    """keys: [t] uint64 (``keys.term_key``), each once. weights: [t] float32. See ``index.words``."""

    keys: Keys
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, eq=False)
class FriendLikes:
    """What the people somebody follows like. See ``profile.follows``.

    keys: [f] uint64 item keys, each once, ascending. weights: [f] float32, above 0 and below 1.
    """

    keys: Keys
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RecallQuery:
    """What one request asks of every shard.

    query: [dim] float32, L2-normalised where the metric is cosine; None = not given. profile: [m, dim], one vector an
    interest of the person. said: [s, dim], one a text of theirs. An item is as near to either as to its nearest vector.
    query_words, words: the terms of the query and of what the person likes; None = none.
    placed: one of ``SPACES`` -> the person's vector there, [d] float32; its product with an item's is the item's score.
    history_keys: [h] uint64 item keys of the positive history; history_weights: [h] float32, decayed.
    friends: what the people that they follow like; None = nothing.
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
    query_words: Terms | None = None
    words: Terms | None = None
    placed: Mapping[int, Vectors] = field(default_factory=dict)
    friends: FriendLikes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Items found, one row an item, each scored by every source.

    shard, row: [n] int32, where the item lives. key: [n] uint64 item key (breaks ties).
    scores: [n, len(SOURCES)] float32, higher is better, 0 where the source does not know the item.
    found_by: [n] uint16, bit s set when source s put the item forward.
    exact: every source searched exactly.
    """

    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    key: Keys
    scores: NDArray[np.float32]
    found_by: NDArray[np.uint16]
    exact: bool = True

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, slots=True)
class Cap:
    """At most so many items of one value of a field in a list."""

    field: str
    most: int


@dataclass(frozen=True, slots=True)
class Promotion:
    """An item that is to stand at a slot, counted from 1. label: what the list says of it, such as ``Ad``."""

    item_id: str
    slot: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for: any mix of who they are, what they like, and what they look for.

    user: key of a stored profile; history: item ids seen in this session, oldest first; positive, negative: liked
    and disliked item ids; query: free text; filter: a ``filters.Filter``; limit: items wanted.
    only: item ids to rank instead of looking for candidates.
    The list as a whole (``ranking.rerank``): diversity, calibration: 0..1; caps: before those of the settings, field by
    field; one_per: a field, of whose values each comes once; explore: whether places go to new items. None = as in the
    settings.
    explain: whether each item comes with its reasons; ``full``: also with what would be without the main one of them.
    language: of their sentences, as in BCP 47; None = the person's.
    recommendation_id: of the answer; what is left to chance follows from it alone, and without it nothing is.
    pressure: the level of ``raysys.pressure`` at which it is answered.
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
    diversity: float | None = None
    calibration: float | None = None
    caps: tuple[Cap, ...] = ()
    one_per: str | None = None
    promotions: tuple[Promotion, ...] = ()
    explore: bool | None = None
    recommendation_id: str | None = None
    explain: bool | Literal["full"] = False
    language: str | None = None
    pressure: int = 0


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that a person did or wrote, as a cause of an item's score.

    evidence: the name by which they pin, mute or delete it. kind: of the event, or ``description``. share: 0..1, of all
    that lifts the item. item_id, title: of the item that the event is about. sentence: what they wrote.
    """

    evidence: str
    kind: str
    share: float
    item_id: str | None = None
    title: str | None = None
    sentence: str | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why an item stands where it does.

    kind: a ``source`` of its score, a ``rule`` of the list, or what would be ``without`` a cause. name: of the source,
    the rule, the evidence. text: a sentence for the person. share: of a source, 0..1, of all that lifts the item.
    causes: the weightiest first. words: that matched. rank: without this rule or cause; None = not in the list.
    """

    kind: Literal["source", "rule", "without"]
    name: str
    text: str
    share: float | None = None
    causes: tuple[Cause, ...] = ()
    words: tuple[str, ...] = ()
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One line of an answer. ``sources``: the score that each source gave, for those that found it.

    moved: a rule of the list and the rank ``from`` which it moved the item: its rank without the rule, None = it would
    not be in the list. promoted: it stands here whatever its score, with this label. reasons: where they were asked
    for, the weightiest source first. explored: it is new, and was drawn for this place. propensity: how likely it was
    that the item stands here, None where nothing was left to chance. team: of an interleaved list, who picked it
    (``evaluation.interleaving``).
    """

    item_id: str
    score: float
    rank: int
    sources: Mapping[str, float]
    metadata: Mapping[str, Any]
    moved: tuple[Mapping[str, str | int | None], ...] = ()
    promoted: bool = False
    label: str | None = None
    reasons: tuple[Reason, ...] = ()
    explored: bool = False
    propensity: float | None = None
    team: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back. degraded: parts that did not answer; reasons: why the list is as it is (``cold_start``).

    unmet: rules of the list that could not be fulfilled, each with ``rule``, ``item_id`` of a promotion, and ``why``.
    experiments: those that the person is in, each with ``experiment`` and ``arm``.
    """

    snapshot_id: str
    profile_version: int
    items: tuple[RankedItem, ...]
    underfilled: bool
    exact: bool
    degraded: tuple[str, ...]
    reasons: tuple[str, ...]
    timings_ms: Mapping[str, float]
    unmet: tuple[Mapping[str, str | None], ...] = ()
    experiments: tuple[Mapping[str, str], ...] = ()
