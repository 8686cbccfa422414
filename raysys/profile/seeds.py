"""What a request knows of its user, as weighted items and texts: where recall starts from."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysys.config import STEP_DECAY, ProfileSettings
from raysys.keys import item_keys
from raysys.profile.fold import DAY_S, DESCRIPTION, WEIGHT_CAP, evidence, latest
from raysys.profile.follows import owners_of
from raysys.types import Interaction, Keys, Profile, Saying, Vectors

# Weights of the ids that come with a request: ``history`` counts as a view, ``positive`` and ``negative`` as a like
# and a dislike.
_VIEW, _LIKE, _DISLIKE = 1.0, 2.0, 2.0
NEGATIVE_SHARE = 0.5
LEAST_SHARE = 0.01  # of the weight of what counts most in a history; what counts less changes no list
_TINY = 1e-6
_NOW_S = math.inf  # what has no time of its own is as new as can be


@dataclass(frozen=True, eq=False)
class Seeds:
    """Items a user likes and dislikes, each list with the most recent last, all they have seen, and what they said.

    weights, negative_weights: [len(items)], [len(negatives)] float32. A plain view just now weighs 1.
    timestamps_s: [len(items)] float64, of each liked item's latest event; inf for an id of the request.
    seen_keys, disliked_keys: uint64, of all that they have seen, and of all that they dislike, each once.
    sayings: texts, the description first, then oldest first. saying_weights: [len(sayings)] float32, < 0 away from it.
    owners: of items, those that the user follows.
    """

    items: tuple[str, ...]
    weights: NDArray[np.float32]
    timestamps_s: NDArray[np.float64]
    negatives: tuple[str, ...]
    negative_weights: NDArray[np.float32]
    seen_keys: Keys
    disliked_keys: Keys
    sayings: tuple[str, ...]
    saying_weights: NDArray[np.float32]
    owners: tuple[str, ...] = ()

    @cached_property
    def history(self) -> tuple[Keys, NDArray[np.float32]]:
        """The liked items that count: their keys, [h] uint64, and weights, [h] float32."""
        counting = self.weights >= LEAST_SHARE * self.weights.max(initial=0)
        return item_keys(itertools.compress(self.items, counting)), self.weights[counting]


def seeds(
    profile: Profile,
    settings: ProfileSettings,
    history: Sequence[str] = (),
    positive: Sequence[str] = (),
    negative: Sequence[str] = (),
) -> Seeds:
    """Profile and request together. The ids of a request are more recent than anything in the profile.

    Liked, oldest first: the interactions of weight > 0, then ``history`` (but for what the profile dislikes), then
    ``positive``. Disliked: the interactions of weight < 0, then ``negative``. ``positive`` and ``negative`` overrule
    the profile, and ``negative`` overrules ``positive``. An item given twice counts once, at its latest place, with
    its greatest weight. Of each list the last ``settings.history`` stay, and the weight of an item is
    ``settings.step_decay ** (steps back from the last) * 0.5 ** (age / half-life of its kind) * min(weight, 3)``.
    Ages count from the newest of the list, so that a long absence changes nothing; an id of the request has none.
    Texts weigh by the same rule, and neither they nor the items take a step from each other. What the person pinned
    stays before anything more recent and does not fade, nor does the person's description.
    Seen is every item of the profile and of ``history``; disliked are not only the latest, which shape the taste.
    """
    liked = {i.item_id: i for i in profile.interactions if i.weight > 0}
    disliked = {i.item_id: i for i in profile.interactions if i.weight < 0}
    for item_id in history:
        if item_id not in disliked:
            _put_last(liked, item_id, _VIEW)
    for item_id in positive:
        disliked.pop(item_id, None)
        _put_last(liked, item_id, _LIKE)
    for item_id in negative:
        liked.pop(item_id, None)
        _put_last(disliked, item_id, _DISLIKE)
    seen = {i.item_id for i in profile.interactions}.union(history)
    pinned: frozenset[str] = frozenset() if profile.person is None else profile.person.pinned
    items, weights = _recent(liked, settings, pinned)
    negatives, negative_weights = _recent(disliked, settings, pinned)
    sayings, saying_weights = _spoken(profile.sayings, settings, pinned)
    times_s = np.array([liked[item_id].timestamp_s for item_id in items], dtype=np.float64)
    return Seeds(
        items,
        weights,
        times_s,
        negatives,
        negative_weights,
        item_keys(seen),
        item_keys(disliked),
        sayings,
        saying_weights,
        owners_of(profile.person),
    )


def decayed_mean(
    vectors: Vectors,
    weights: NDArray[np.float32],
    negative_vectors: Vectors,
    negative_weights: NDArray[np.float32],
) -> Vectors | None:
    """The vector of a user: [dim] float32, L2-normalised.

    It is the weighted mean of ``vectors`` [h, dim] less half the weighted mean of ``negative_vectors`` [m, dim]
    (weights: [h] and [m] float32). Means rather than sums, as in Rocchio (1971), so that many dislikes never
    drown a few likes. None where there is nothing to like (h = 0), or where it all cancels out to zero.
    """
    direction = _mean(vectors, weights)
    if direction is None:
        return None
    away = _mean(negative_vectors, negative_weights)
    if away is not None:
        direction = direction - NEGATIVE_SHARE * away
    norm = float(np.linalg.norm(direction))
    return (direction / norm).astype(np.float32) if norm > _TINY else None


def _mean(vectors: Vectors, weights: NDArray[np.float32]) -> Vectors | None:
    total = float(weights.sum())
    # Weights of long ago can underflow to zero; with nothing but those there is no mean either.
    return weights @ vectors / np.float32(total) if total > 0 else None


def _put_last(found: dict[str, Interaction], item_id: str, weight: float) -> None:
    known = found.pop(item_id, None)
    found[item_id] = Interaction(item_id, weight if known is None else max(abs(known.weight), weight), _NOW_S)


def _recent(
    found: Mapping[str, Interaction], settings: ProfileSettings, pinned: frozenset[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    names = list(found)
    names = [names[at] for at in latest(names, settings.history, pinned)]
    return tuple(names), np.abs(_faded(names, [found[name] for name in names], settings, pinned))


def _spoken(
    sayings: Sequence[Saying], settings: ProfileSettings, pinned: frozenset[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    # First and of now, the description takes no step from what was said, and makes nothing older.
    said = [replace(s, timestamp_s=_NOW_S) for s in sayings if evidence(s) == DESCRIPTION and s.weight != 0]
    said += [s for s in sayings if evidence(s) != DESCRIPTION and s.weight != 0]
    return tuple(s.text for s in said), _faded([*map(evidence, said)], said, settings, pinned | {DESCRIPTION})


def _faded(
    names: Sequence[str], found: Sequence[Interaction | Saying], settings: ProfileSettings, pinned: frozenset[str]
) -> NDArray[np.float32]:
    """[n] float32 weights that fade with the steps and the days back from the newest; pinned ones do not."""
    steps_back = np.arange(len(names) - 1, -1, -1)
    capped = np.clip(np.array([each.weight for each in found], dtype=np.float64), -WEIGHT_CAP, WEIGHT_CAP)
    step_decay = STEP_DECAY if settings.step_decay is None else settings.step_decay
    fade = step_decay**steps_back * 0.5 ** _half_lives(found, settings)
    if pinned:
        fade[np.array([name in pinned for name in names], dtype=bool)] = 1.0
    return (fade * capped).astype(np.float32)


def _half_lives(found: Sequence[Interaction | Saying], settings: ProfileSettings) -> NDArray[np.float64]:
    """How many half-lives each is older than the newest that has a time: [n] float64."""
    newest_s = max((each.timestamp_s for each in found if each.timestamp_s < _NOW_S), default=0.0)
    days = [settings.half_life_days.get(each.kind, settings.default_half_life_days) for each in found]
    ages_s = [max(newest_s - each.timestamp_s, 0.0) for each in found]
    return np.array(ages_s, dtype=np.float64) / DAY_S / np.array(days, dtype=np.float64)
