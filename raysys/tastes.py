"""What a person is after, as vectors: arithmetic over vectors that exist already, of their items and of their words."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raysys.config import ProfileSettings
from raysys.index.spaces import PlacesItems
from raysys.lookup import Lookup
from raysys.profile.interests import interests
from raysys.profile.seeds import NEGATIVE_SHARE, Seeds, decayed_mean
from raysys.types import Profile, Terms, Vectors

MOST_KNOWN = 5_000  # people: some 30 MB at 384 dimensions
MOST_SAID = 3  # texts that recall looks at, the weightiest
_NO_MORE = np.empty((0, 0), np.float32), np.empty(0, np.float32)  # no vectors, no weights


@dataclass(frozen=True, slots=True, eq=False)
class Tastes:
    """liked: [m, dim] float32, one vector an interest. said: [s, dim] float32, one a text. words: the terms of what
    they like. None where there is none. placed: as in ``RecallQuery``.

    is_final: all that they said is encoded; what is not is left out.
    """

    liked: Vectors | None = None
    said: Vectors | None = None
    words: Terms | None = None
    placed: Mapping[int, Vectors] = field(default_factory=dict)
    is_final: bool = True


class KnownTastes:
    """The tastes worked out last, with what they were worked out from.

    Who asks again, having done nothing, has the same: a profile that has not changed is the same object
    (``profile.reader``). Of at most ``MOST_KNOWN`` people; those not asked for the longest go.
    """

    def __init__(self) -> None:
        self._tastes: OrderedDict[str, tuple[Profile, int, Tastes]] = OrderedDict()

    def get(self, profile: Profile, position: int) -> Tastes | None:
        """The tastes of this profile, while the catalogue is as it was."""
        known, at_position, tastes = self._tastes.get(profile.user, (None, 0, None))
        if known is not profile or at_position != position:
            return None
        self._tastes.move_to_end(profile.user)
        return tastes

    def put(self, profile: Profile, position: int, tastes: Tastes) -> None:
        if tastes.is_final:
            self._tastes[profile.user] = (profile, position, tastes)
            self._tastes.move_to_end(profile.user)
            if len(self._tastes) > MOST_KNOWN:
                self._tastes.popitem(last=False)


async def tastes(known: Seeds, lookup: Lookup, settings: ProfileSettings, now_s: float) -> Tastes:
    """The tastes of a person, each of them away from what they dislike. Raises Unavailable."""
    disliked, is_disliked = await lookup.vectors(known.negatives)
    disliked_weights = known.negative_weights[is_disliked]
    said, said_weights = await _spoken(known, lookup)
    against = said_weights < 0
    negatives = np.concatenate([disliked, said[against]])
    negative_weights = np.concatenate([disliked_weights, -said_weights[against]])
    vectors, is_known = await lookup.vectors(known.items)
    liked = _liked(known, vectors, is_known, lookup, settings, now_s, negatives, negative_weights)
    for_them = np.argsort(-said_weights, kind="stable")[:MOST_SAID]
    for_them = for_them[said_weights[for_them] > 0]
    wanted = [decayed_mean(said[[i]], said_weights[[i]], negatives, negative_weights) for i in for_them]
    words, placed = await _words(known, lookup), _placed(known, vectors, is_known, lookup)
    return Tastes(liked, _stack(wanted), words, placed, is_final=len(said) == len(known.sayings))


def _placed(known: Seeds, text: Vectors, has_text: NDArray[np.bool_], lookup: Lookup) -> dict[int, Vectors]:
    """Where each behaviour model with vectors places the person: by the liked items that it knows.

    text: [n_with, dim], has_text: [n] bool, which items these are: some models know new items by them.
    """
    if not (known.items and lookup.catalogue.models):
        return {}
    found, people = lookup.catalogue.find(known.items), {}
    is_new = has_text & ~found.known
    for source, model in lookup.catalogue.models.items():
        settled = lookup.catalogue.placed(found, source)
        placed = np.zeros((len(known.items), settled.shape[1]), dtype=np.float32)
        placed[found.known] = settled
        if isinstance(model, PlacesItems) and is_new.any():
            placed[is_new] = model.items(text[is_new[has_text]])
        people[source] = model.person(placed, known.weights)
    return {source: vector for source, vector in people.items() if vector is not None}


async def _words(known: Seeds, lookup: Lookup) -> Terms | None:
    """The weighted sum of the terms of the liked items."""
    if not known.items:
        return None
    terms = await lookup.terms(known.items)
    weights = np.concatenate([w * t.weights for t, w in zip(terms, known.weights, strict=True)])
    found = lookup.catalogue.vocabulary.wanted(Terms(np.concatenate([t.keys for t in terms]), weights))
    return found if len(found) else None


def _liked(
    known: Seeds,
    vectors: Vectors,
    is_known: NDArray[np.bool_],
    lookup: Lookup,
    settings: ProfileSettings,
    now_s: float,
    negatives: Vectors,
    negative_weights: NDArray[np.float32],
) -> Vectors | None:
    weights, times_s = known.weights[is_known], np.minimum(known.timestamps_s[is_known], now_s)
    contrast = lookup.catalogue.contrast
    center = np.zeros(vectors.shape[1], dtype=np.float32) if contrast is None else contrast.mean
    found = interests(vectors, weights, times_s, settings, center)
    strengths = _strengths([i.vector for i in found], decayed_mean(negatives, negative_weights, *_NO_MORE), center)
    means = [decayed_mean(vectors[i.members], weights[i.members], negatives, negative_weights) for i in found]
    return _stack(
        [
            mean if mean is None else np.float32(strength) * (mean if contrast is None else contrast.sharpen(mean))
            for mean, strength in zip(means, strengths, strict=True)
        ]
    )


def _strengths(liked: list[Vectors], disliked: Vectors | None, center: Vectors) -> list[float]:
    """How much each interest counts beside the strongest: less, the more it is like what they dislike.

    An interest that only moved away from the dislikes would still point at them: of several, it has to step back.
    """
    if disliked is None or len(liked) < 2:
        return [1.0] * len(liked)
    likeness = [_cosine(vector - center, disliked - center) for vector in liked]
    strengths = [1 - NEGATIVE_SHARE * max(cosine, 0.0) for cosine in likeness]
    return [strength / max(strengths) for strength in strengths]


def _cosine(one: Vectors, other: Vectors) -> float:
    return float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-6)


async def _spoken(known: Seeds, lookup: Lookup) -> tuple[Vectors, NDArray[np.float32]]:
    """([s, dim], [s]): the vectors of what they said that are there, and the weights, below 0 for what they reject."""
    found = await lookup.live.sayings(known.sayings) if known.sayings else []
    there = np.fromiter((vector is not None and vector.any() for vector in found), dtype=np.bool_)
    vectors = [vector for vector in found if vector is not None and vector.any()]
    dim = lookup.catalogue.manifest.encoder_identity.dim
    return (
        np.stack(vectors) if vectors else np.empty((0, dim), dtype=np.float32),
        known.saying_weights[there] if len(found) else known.saying_weights[:0],
    )


def _stack(vectors: list[Vectors | None]) -> Vectors | None:
    given = [vector for vector in vectors if vector is not None]
    return np.stack(given) if given else None
