"""What a person is after, as vectors: arithmetic over vectors that exist already, of their items and of their words."""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raysys.config import ProfileSettings
from raysys.index.spaces import PlacesItems
from raysys.lookup import Lookup
from raysys.profile.interests import Indices, interests
from raysys.profile.seeds import NEGATIVE_SHARE, Seeds, decayed_mean, seeds
from raysys.types import Profile, Terms, Vectors
from raysys.words import whole_term

T = TypeVar("T")

MOST_KNOWN = 5_000  # people: some 40 MB at 384 dimensions
MOST_SAID = 3  # texts that recall looks at, the weightiest
_NO_MORE = np.empty((0, 0), np.float32), np.empty(0, np.float32)  # no vectors, no weights


@dataclass(frozen=True, slots=True, eq=False)
class Tastes:
    """liked: [m, dim] float32, one vector an interest. said: [s, dim] float32, one a text. words: the terms of what
    they like and follow. None where there is none. placed: as in ``RecallQuery``.

    is_final: all that they said is encoded; what is not is left out. members: of each interest, the places of its items
    in ``Seeds.items``. sayings: the texts of ``said``.
    """

    liked: Vectors | None = None
    said: Vectors | None = None
    words: Terms | None = None
    placed: Mapping[int, Vectors] = field(default_factory=dict)
    is_final: bool = True
    members: tuple[Indices, ...] = ()
    sayings: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Known:
    """A profile and what was worked out from it; the tastes while the catalogue is at this position."""

    profile: Profile
    seeds: Seeds
    tastes: Tastes | None = None
    position: int = -1


class KnownPeople:
    """What was worked out last for each person.

    Who asks again, having done nothing, has the same: a profile that has not changed is the same object
    (``profile.reader``). Of at most ``MOST_KNOWN`` people; those not asked for the longest go.
    """

    def __init__(self, settings: ProfileSettings) -> None:
        self._settings = settings
        self._known: OrderedDict[str, Known] = OrderedDict()

    def of(self, profile: Profile) -> Known:
        """What is known of this profile, by the requests before and by this one."""
        known = self._known.get(profile.user)
        if known is None or known.profile is not profile:
            known = self._known[profile.user] = Known(profile, seeds(profile, self._settings))
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(profile.user)
        return known


async def tastes(known: Seeds, lookup: Lookup, settings: ProfileSettings, now_s: float) -> Tastes:
    """The tastes of a person, each of them away from what they dislike. Raises Unavailable."""
    disliked, is_disliked = await lookup.vectors(known.negatives)
    disliked_weights = known.negative_weights[is_disliked]
    said, said_weights, texts = await _spoken(known, lookup)
    against = said_weights < 0
    negatives = np.concatenate([disliked, said[against]])
    negative_weights = np.concatenate([disliked_weights, -said_weights[against]])
    vectors, is_known = await lookup.vectors(known.items)
    liked, members = _there(_liked(known, vectors, is_known, lookup, settings, now_s, negatives, negative_weights))
    for_them = np.argsort(-said_weights, kind="stable")[:MOST_SAID]
    for_them = for_them[said_weights[for_them] > 0]
    wanted = [(decayed_mean(said[[i]], said_weights[[i]], negatives, negative_weights), texts[i]) for i in for_them]
    spoken, sayings = _there(wanted)
    words, placed = await _words(known, lookup, settings), _placed(known, vectors, is_known, lookup)
    is_final = len(said) == len(known.sayings)
    return Tastes(liked, spoken, words, placed, is_final, members, sayings)


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


async def _words(known: Seeds, lookup: Lookup, settings: ProfileSettings) -> Terms | None:
    """The weighted sum of the terms of the liked items, and of one more that all the followed owners have."""
    if not known.items and not known.owners:
        return None
    owners = lookup.catalogue.vocabulary.weigh(Counter(whole_term("owner_id", owner) for owner in known.owners))
    terms = [*await lookup.terms(known.items), owners]
    each = [*known.weights, settings.event_weights.get("follow", 0.0)]
    weights = np.concatenate([w * t.weights for t, w in zip(terms, each, strict=True)])
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
) -> list[tuple[Vectors | None, Indices]]:
    """The vector of each interest, and the places of its items."""
    places = np.flatnonzero(is_known)
    weights, times_s = known.weights[is_known], np.minimum(known.timestamps_s[is_known], now_s)
    contrast = lookup.catalogue.contrast
    center = np.zeros(vectors.shape[1], dtype=np.float32) if contrast is None else contrast.mean
    found = interests(vectors, weights, times_s, settings, center)
    strengths = _strengths([i.vector for i in found], decayed_mean(negatives, negative_weights, *_NO_MORE), center)
    means = [decayed_mean(vectors[i.members], weights[i.members], negatives, negative_weights) for i in found]
    sharpened = [
        mean if mean is None else np.float32(strength) * (mean if contrast is None else contrast.sharpen(mean))
        for mean, strength in zip(means, strengths, strict=True)
    ]
    return [(vector, places[i.members]) for vector, i in zip(sharpened, found, strict=True)]


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


async def _spoken(known: Seeds, lookup: Lookup) -> tuple[Vectors, NDArray[np.float32], list[str]]:
    """([s, dim], [s], texts): what they said that has a vector, and the weights, below 0 for what they reject."""
    found = await lookup.live.sayings(known.sayings) if known.sayings else []
    there = np.fromiter((vector is not None and vector.any() for vector in found), dtype=np.bool_)
    vectors = [vector for vector in found if vector is not None and vector.any()]
    dim = lookup.catalogue.manifest.encoder_identity.dim
    return (
        np.stack(vectors) if vectors else np.empty((0, dim), dtype=np.float32),
        known.saying_weights[there] if len(found) else known.saying_weights[:0],
        list(itertools.compress(known.sayings, there.tolist())),
    )


def _there(found: Sequence[tuple[Vectors | None, T]]) -> tuple[Vectors | None, tuple[T, ...]]:
    """The vectors that there are, one a row, and what each of them is of."""
    there = [(vector, of) for vector, of in found if vector is not None]
    return np.stack([vector for vector, _ in there]) if there else None, tuple(of for _, of in there)
