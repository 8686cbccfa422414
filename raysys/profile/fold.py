"""Events to profile: a pure function of the set of events, whatever the order they came in.

What one item's events say together is decided by one rule:

- An *opinion* (like, dislike, hide, add_to_cart, purchase, anything with a rating) replaces what was said before it,
  so the latest opinion is the weight of the item.
- Everything else (view, click, share, ...) is a *signal*. Signals count only where there is no opinion, and then
  the strongest of them does; of two equally strong ones, the later. A hundred views weigh as much as one.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from raysys.config import ProfileSettings
from raysys.types import Event, Interaction, Profile

# The names of Google Analytics 4, and common spellings, for the kinds in ``config.EVENT_WEIGHTS``.
_ALIASES = {
    "view_item": "view",
    "select_item": "click",
    "add_to_wishlist": "like",
    "view_search_results": "search",
    "rate": "rating",
}
_GRADED = frozenset({"rating", "review"})  # their value, where there is one, is a grade from 1 to 5
_OPINIONS = frozenset({"like", "dislike", "hide", "add_to_cart", "purchase", "rating"})

_NEUTRAL_RATING = 2.5
_WEIGHT_PER_STAR = 1.2


def canonical_kind(name: str) -> str:
    """The kind that goes by this name: ``view_item`` -> ``view``. A name that is no alias is its own kind."""
    return _ALIASES.get(name, name)


def rating_weight(value: float) -> float:
    """The weight of a rating on a scale of 1 to 5: ``(value - 2.5) * 1.2``.

    5 -> 3 (as strong as a purchase), 4 -> 1.8, 3 -> 0.6 (a weak like), 2 -> -0.6, 1 -> -1.8 (about a dislike).
    Values outside 0..5 are clipped, so the weight is never beyond +-3.
    """
    return (min(max(value, 0.0), 5.0) - _NEUTRAL_RATING) * _WEIGHT_PER_STAR


def event_weight(kind: str, value: float | None, weights: Mapping[str, float]) -> float:
    """What one event says about its item: > 0 likes it, < 0 dislikes it, 0 has only seen it.

    A rating or review with a finite value weighs ``rating_weight(value)``; any other event has the weight that
    ``weights`` gives its kind, or 0 for a kind that is not listed, such as a rating without a value.
    """
    kind = canonical_kind(kind)
    if _is_graded(kind, value) and value is not None:
        return rating_weight(value)
    return weights.get(kind, 0.0)


def fold(user: str, events: Iterable[Event], settings: ProfileSettings) -> Profile:
    """The profile that these events of one user amount to.

    The order of ``events`` does not matter: they are taken by timestamp, then event id, so a late event lands where
    its own timestamp puts it. Events with the same id are one event. ``version`` is the number of distinct events.
    The interactions are one an item, oldest first by the item's latest event; of more than
    ``settings.max_interactions`` the most recent stay. Events without an item count in the version only.
    """
    distinct = _distinct(events)
    said: dict[str, list[Event]] = {}
    for event in sorted(distinct, key=lambda e: (e.timestamp_s, e.event_id)):
        if event.item_id is not None:
            # Taken out and put back, so that the items end up in the order of their latest events.
            about_item = said.pop(event.item_id, [])
            about_item.append(event)
            said[event.item_id] = about_item
    recent = list(said.items())[-settings.max_interactions :]
    interactions = (
        Interaction(item_id, _combined(about_item, settings.event_weights), about_item[-1].timestamp_s)
        for item_id, about_item in recent
    )
    return Profile(user, len(distinct), tuple(interactions))


def _distinct(events: Iterable[Event]) -> Collection[Event]:
    """One event an id. Should two differ under one id, the smaller wins, so that the order still does not matter."""
    by_id: dict[str, Event] = {}
    for event in events:
        known = by_id.setdefault(event.event_id, event)
        if known is not event:
            by_id[event.event_id] = min(known, event, key=_content)
    return by_id.values()


def _content(event: Event) -> tuple[float, str, str, str]:
    """Everything of an event that the fold reads, in a form that can be ordered."""
    return event.timestamp_s, event.kind, repr(event.item_id), repr(event.value)


def _combined(about_item: Sequence[Event], weights: Mapping[str, float]) -> float:
    """The weight of one item from its events, oldest first; the rule is at the top of this module."""
    opinion: float | None = None
    signal = 0.0
    for event in about_item:
        weight = event_weight(event.kind, event.value, weights)
        if _is_opinion(event, weights):
            opinion = weight
        elif abs(weight) >= abs(signal):
            signal = weight
    return signal if opinion is None else opinion


def _is_opinion(event: Event, weights: Mapping[str, float]) -> bool:
    # A rating without a value, or a kind that the settings do not list, says nothing and must not undo a like.
    kind = canonical_kind(event.kind)
    return _is_graded(kind, event.value) or (kind in _OPINIONS and kind in weights)


def _is_graded(kind: str, value: float | None) -> bool:
    return kind in _GRADED and value is not None and math.isfinite(value)
