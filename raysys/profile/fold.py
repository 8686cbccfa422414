"""Events to profile: a pure function of the set of events, whatever the order they came in.

What one item's events say together is decided by one rule:

- An *opinion* (like, dislike, hide, add_to_cart, purchase, anything with a grade) replaces what was said before it,
  so the latest opinion is the weight of the item.
- Everything else (view, click, share, kinds of your own, ...) is a *signal*. Signals count only where there is no
  opinion, and then the strongest of them does; of two equally strong ones, the later. A hundred views weigh as much
  as one.

What a person wrote, in whatever event, is kept beside it as *sayings*: recall can start from words, too.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from raysys.config import CUSTOM_WEIGHT, DWELL_FULL_S, EVENT_WEIGHTS, ProfileSettings
from raysys.types import Event, Interaction, Person, Profile, Saying

DAY_S = 86_400.0
WEIGHT_CAP = 3.0  # one item counts at most like three plain views
DESCRIPTION = "description"  # the evidence, kind and event id of what people say about themselves

_KINDS = frozenset({*EVENT_WEIGHTS, "rating"})
_GRADED = frozenset({"rating", "review"})  # their value, where there is one, is a grade from 1 to 5
_OPINIONS = frozenset({"like", "dislike", "hide", "add_to_cart", "purchase", "rating"})

# The names of Google Analytics 4, and what else these kinds are commonly called.
_OTHER_NAMES = {
    "view": ("view_item", "view_item_list", "page_view"),
    "click": ("select_item", "select_content", "select_promotion"),
    "dwell": ("dwell_time", "time_spent"),
    "search": ("view_search_results",),
    "chat": ("chat_message", "message"),
    "like": ("add_to_wishlist", "favorite", "favourite", "bookmark", "upvote", "thumbs_up"),
    "dislike": ("downvote", "thumbs_down"),
    "hide": ("not_interested",),
    "follow": ("subscribe",),
    "rating": ("rate",),
    "add_to_cart": ("begin_checkout", "cart_add"),
    "purchase": ("buy",),
}

_NEUTRAL_RATING = 2.5
_WEIGHT_PER_STAR = 1.2


def _squeezed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


_BY_NAME = {_squeezed(name): kind for kind in _KINDS for name in (kind, *_OTHER_NAMES.get(kind, ()))}


@lru_cache(maxsize=1_024)
def canonical_kind(name: str) -> str:
    """The kind that goes by this name: ``view_item``, ``viewItem`` -> ``view``. Any other name is its own kind."""
    return _BY_NAME.get(_squeezed(name), name)


def rating_weight(value: float) -> float:
    """The weight of a rating on a scale of 1 to 5: ``(value - 2.5) * 1.2``.

    5 -> 3 (as strong as a purchase), 4 -> 1.8, 3 -> 0.6 (a weak like), 2 -> -0.6, 1 -> -1.8 (about a dislike).
    Values outside 0..5 are clipped, so the weight is never beyond +-3.
    """
    return (min(max(value, 0.0), 5.0) - _NEUTRAL_RATING) * _WEIGHT_PER_STAR


def event_weight(
    kind: str,
    value: float | None,
    weights: Mapping[str, float],
    custom_weight: float = CUSTOM_WEIGHT,
    dwell_full_s: float = DWELL_FULL_S,
) -> float:
    """What one event says about its item: > 0 likes it, < 0 dislikes it, 0 has only seen it.

    A rating or review with a finite value weighs ``rating_weight(value)``; any other event has the weight that
    ``weights`` gives its kind. A dwell of ``value`` seconds has its part of that below ``dwell_full_s``.
    Not listed there, a kind of ours weighs 0, as does a rating without a value, and any other ``custom_weight``.
    """
    kind = canonical_kind(kind)
    if _is_graded(kind, value) and value is not None:
        return rating_weight(value)
    weight = weights.get(kind, 0.0 if kind in _KINDS else custom_weight)
    if kind == "dwell" and value is not None and math.isfinite(value):
        return weight * min(max(value, 0.0) / dwell_full_s, 1.0)
    return weight


def expires_s(kind: str, timestamp_s: float, settings: ProfileSettings) -> float | None:
    """From when an event no longer counts, UTC epoch seconds; None = it always does."""
    days = settings.ttl_days.get(canonical_kind(kind), settings.default_ttl_days)
    return None if days is None else timestamp_s + days * DAY_S


def evidence(saying: Saying) -> str:
    """The name by which a person pins or mutes a saying: ``text:<event id>``, or ``description``."""
    return DESCRIPTION if saying.kind == saying.event_id == DESCRIPTION else f"text:{saying.event_id}"


def latest(names: Sequence[str], limit: int, pinned: Collection[str]) -> list[int]:
    """The places of the last ``limit`` names, ascending. Pinned ones stay before any other."""
    if len(names) <= limit:
        return list(range(len(names)))
    by_claim = sorted(range(len(names)), key=lambda at: (names[at] in pinned, at))
    return sorted(by_claim[len(names) - limit :])


def fold(
    user: str,
    events: Iterable[Event],
    settings: ProfileSettings,
    now_s: float = -math.inf,
    person: Person | None = None,
) -> Profile:
    """The profile that these events of one user amount to at ``now_s``; without it nothing has expired yet.

    The order of ``events`` does not matter: they are taken by timestamp, then event id, so a late event lands where
    its own timestamp puts it. Events with the same id are one event. ``version`` is the number of distinct events.
    Of them the latest ``settings.max_events`` count, but for those that have expired.

    The interactions are one an item, oldest first by the item's latest event; of more than
    ``settings.max_interactions`` the most recent stay. What the person muted has weight 0: seen, and nothing else.
    The sayings are one a text, however it is cased, each where it was said last; of more than
    ``settings.max_sayings`` the most recent stay. What the person muted is not there. The person's description is a
    saying like any other. What the person pinned stays before anything that is more recent.
    """
    distinct = _distinct(events)
    person_or_blank = Person(user) if person is None else person
    taken = _taken(distinct, settings.max_events, now_s)
    return Profile(
        user,
        len(distinct),
        _interactions(taken, settings, person_or_blank),
        _sayings(taken, settings, person_or_blank),
        _counts(taken),
        person,
        min((event.expires_s for event in taken if event.expires_s is not None), default=math.inf),
    )


def _distinct(events: Iterable[Event]) -> Collection[Event]:
    """One event an id. Should two differ under one id, the smaller wins, so that the order still does not matter."""
    given = list(events)
    by_id = {event.event_id: event for event in given}
    if len(by_id) < len(given):
        for event in given:
            by_id[event.event_id] = min(by_id[event.event_id], event, key=_content)
    return by_id.values()


def _content(event: Event) -> tuple[float, str, str]:
    """Everything of an event that the fold reads, in a form that can be ordered."""
    return event.timestamp_s, event.kind, repr((event.item_id, event.value, event.text, event.expires_s))


def _taken(events: Collection[Event], limit: int, now_s: float) -> list[Event]:
    """The events that count, newest first."""
    newest = sorted(events, key=attrgetter("timestamp_s", "event_id"), reverse=True)[:limit]
    return [event for event in newest if event.expires_s is None or event.expires_s > now_s]


class _Meaning(NamedTuple):
    """What an event says about its item."""

    kind: str
    weight: float
    is_opinion: bool


def _interactions(taken: Sequence[Event], settings: ProfileSettings, person: Person) -> tuple[Interaction, ...]:
    known: dict[tuple[str, float | None], _Meaning] = {}
    said: dict[str, tuple[float, _Meaning]] = {}  # by item: when it was met last, and what counts of all that was said
    for event in taken:
        item_id = event.item_id
        if item_id is None:
            continue
        meaning = known.get((event.kind, event.value))
        if meaning is None:
            meaning = known[event.kind, event.value] = _meaning(event.kind, event.value, settings)
        later = said.get(item_id)
        if later is None:
            said[item_id] = event.timestamp_s, meaning
        elif _still_counts(meaning, later[1]):
            said[item_id] = later[0], meaning
    items = list(reversed(said))
    kept = (items[at] for at in latest(items, settings.max_interactions, person.pinned))
    return tuple(_interaction(item_id, *said[item_id], item_id in person.muted) for item_id in kept)


def _interaction(item_id: str, timestamp_s: float, meaning: _Meaning, is_muted: bool) -> Interaction:
    return Interaction(item_id, 0.0 if is_muted else meaning.weight, timestamp_s, meaning.kind)


def _still_counts(earlier: _Meaning, later: _Meaning) -> bool:
    """Whether an earlier event decides over what was said after it; the rule is at the top of this module."""
    if later.is_opinion:
        return False
    return earlier.is_opinion or abs(earlier.weight) > abs(later.weight)


def _meaning(name: str, value: float | None, settings: ProfileSettings) -> _Meaning:
    kind = canonical_kind(name)
    weight = event_weight(kind, value, settings.event_weights, settings.custom_weight, settings.dwell_full_s)
    # A rating without a value, or a kind that the settings do not list, says nothing and must not undo a like.
    is_opinion = _is_graded(kind, value) or (kind in _OPINIONS and kind in settings.event_weights)
    return _Meaning(kind, weight, is_opinion)


def _is_graded(kind: str, value: float | None) -> bool:
    return kind in _GRADED and value is not None and math.isfinite(value)


def _sayings(taken: Sequence[Event], settings: ProfileSettings, person: Person) -> tuple[Saying, ...]:
    """Oldest first. A text is muted where it was said last, so that an earlier wording of it does not come back."""
    found = _said_last(taken, settings, person)
    description = "" if person.description is None else person.description.strip()
    if description:
        weight = settings.text_weights.get(DESCRIPTION, 1.0)
        found[description.casefold()] = Saying(description, weight, person.updated_s, DESCRIPTION, DESCRIPTION)
    heard = [saying for saying in found.values() if evidence(saying) not in person.muted]
    heard.sort(key=attrgetter("timestamp_s", "event_id"))
    return tuple(heard[at] for at in latest([*map(evidence, heard)], settings.max_sayings, person.pinned))


def _said_last(taken: Sequence[Event], settings: ProfileSettings, person: Person) -> dict[str, Saying]:
    """Each text, folded in case, as it was said last; only those that can still be among the ones that stay."""
    found: dict[str, Saying] = {}
    enough = settings.max_sayings + len(person.muted) + 1
    for event in taken:
        if not event.text or (len(found) >= enough and f"text:{event.event_id}" not in person.pinned):
            continue
        text = event.text.strip()
        if text:
            found.setdefault(text.casefold(), _saying(event, text, settings))
    return found


def _saying(event: Event, text: str, settings: ProfileSettings) -> Saying:
    """A text weighs what its kind does: times the weight of its grade if it has one, less than 0 in a dislike."""
    meaning = _meaning(event.kind, event.value, settings)
    weight = settings.text_weights.get(meaning.kind, settings.default_text_weight)
    if _is_graded(meaning.kind, event.value):
        weight *= meaning.weight
    elif meaning.weight < 0:
        weight = -weight
    return Saying(text, weight, event.timestamp_s, meaning.kind, event.event_id)


def _counts(taken: Sequence[Event]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, n in Counter([event.kind for event in taken]).items():
        counts[canonical_kind(name)] += n
    return dict(counts)
