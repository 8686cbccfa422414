"""What a request knows of its user, as weighted items: where recall starts from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysys.config import ProfileSettings
from raysys.types import Profile, Vectors

# Weights of the ids that come with a request: ``history`` counts as a view, ``positive`` and ``negative`` as a like
# and a dislike.
_VIEW, _LIKE, _DISLIKE = 1.0, 2.0, 2.0
_WEIGHT_CAP = 3.0  # one item counts at most like three plain views
_NEGATIVE_SHARE = 0.5
_TINY = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Seeds:
    """Items a user likes and dislikes, each list with the most recent last, and all that they have seen.

    weights, negative_weights: [len(items)], [len(negatives)] float32. A plain view just now weighs 1.
    """

    items: tuple[str, ...]
    weights: NDArray[np.float32]
    negatives: tuple[str, ...]
    negative_weights: NDArray[np.float32]
    seen: frozenset[str]


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
    ``settings.step_decay ** (steps back from the last) * min(weight, 3)``.
    ``seen``: every item of the profile and of ``history``.
    """
    liked = {i.item_id: i.weight for i in profile.interactions if i.weight > 0}
    disliked = {i.item_id: -i.weight for i in profile.interactions if i.weight < 0}
    for item_id in history:
        if item_id not in disliked:
            _put_last(liked, item_id, _VIEW)
    for item_id in positive:
        disliked.pop(item_id, None)
        _put_last(liked, item_id, _LIKE)
    for item_id in negative:
        liked.pop(item_id, None)
        _put_last(disliked, item_id, _DISLIKE)
    seen = frozenset(i.item_id for i in profile.interactions).union(history)
    return Seeds(*_decayed(liked, settings), *_decayed(disliked, settings), seen)


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
        direction = direction - _NEGATIVE_SHARE * away
    norm = float(np.linalg.norm(direction))
    return (direction / norm).astype(np.float32) if norm > _TINY else None


def _mean(vectors: Vectors, weights: NDArray[np.float32]) -> Vectors | None:
    total = float(weights.sum())
    # Weights of long ago can underflow to zero; with nothing but those there is no mean either.
    return weights @ vectors / np.float32(total) if total > 0 else None


def _put_last(weights: dict[str, float], item_id: str, weight: float) -> None:
    weights[item_id] = max(weights.pop(item_id, weight), weight)


def _decayed(weights: dict[str, float], settings: ProfileSettings) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    recent = list(weights.items())[-settings.history :]
    steps_back = np.arange(len(recent) - 1, -1, -1)
    capped = np.array([min(weight, _WEIGHT_CAP) for _, weight in recent], dtype=np.float64)
    return tuple(item_id for item_id, _ in recent), (settings.step_decay**steps_back * capped).astype(np.float32)
