"""What a person is after: the interests that their items fall into, and what this session is about.

One vector for somebody who reads of gardens and of engines lies between the two, near neither. So the items are
clustered: groups are joined, the most alike first, for as long as the mean cosine of the pairs between two of them is
at least ``settings.interest_similarity``. This is average-link clustering. All groups that are each other's nearest
are joined in one round, which comes to the same groups (reciprocal agglomerative clustering, Sumengen et al. 2021).

Text vectors lie in a narrow cone, where everything is alike, so the catalogue's mean is taken off before they are
compared.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysys.config import ProfileSettings
from raysys.profile.seeds import decayed_mean
from raysys.types import Vectors

_MINUTE_S = 60.0
_TINY = 1e-6

Kind = Literal["session", "long_term"]
Indices = NDArray[np.intp]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Interest:
    """Items that belong together.

    members: [m] indices into the vectors given, ascending. weight: their share of the whole weight, 0..1.
    vector: [dim] float32, L2-normalised, their ``decayed_mean``.
    """

    members: Indices
    weight: float
    vector: Vectors
    kind: Kind


def interests(
    vectors: Vectors, weights: Floats, timestamps_s: NDArray[np.float64], settings: ProfileSettings, center: Vectors
) -> list[Interest]:
    """The session's interest if it has one of its own, then those of long standing, the weightiest first.

    vectors: [h, dim] float32, L2-normalised; zero vectors, of items without text, belong to no interest.
    weights: [h] float32, >= 0. timestamps_s: [h] epoch seconds, finite. center: [dim] float32, the mean of the
    catalogue's vectors, or zeros. The order of the items does not matter.

    The session is the chain of the latest items without a pause of more than ``settings.session_gap_minutes``. It
    stands for itself where the cosine of its centred mean with that of every other interest is below
    ``settings.interest_similarity``. Any interest has at least two items, or ``settings.interest_share`` of the weight.
    Of long standing there are at most ``settings.max_interests``, and what is left stays with the one that it is most
    alike. Items that do not fall apart are one interest; items that cancel out, or weigh nothing, are none.
    """
    present = np.flatnonzero(np.any(vectors != 0, axis=1))
    if len(present) == 0:
        return []
    present = present[np.lexsort((vectors[present, 0], weights[present], timestamps_s[present]))]
    shares = weights[present] / max(float(weights[present].sum()), _TINY)
    cosines = _cosines(vectors[present] - center)
    start = _session_start(timestamps_s[present], settings.session_gap_minutes * _MINUTE_S)
    found = [
        _interest(kind, np.sort(present[group]), float(shares[group].sum()), vectors, weights)
        for kind, group in _groups(start, cosines, shares, settings)
    ]
    return [interest for interest in found if interest is not None]


def _interest(kind: Kind, members: Indices, share: float, vectors: Vectors, weights: Floats) -> Interest | None:
    vector = decayed_mean(vectors[members], weights[members], vectors[:0], weights[:0])
    return None if vector is None else Interest(members, share, vector, kind)


def _cosines(vectors: Vectors) -> Floats:
    """The cosine of each pair of rows: [h, h] float32; 0 where one of them is zero."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _TINY)
    cosines: Floats = unit @ unit.T
    return cosines


def _session_start(times_s: NDArray[np.float64], gap_s: float) -> int:
    """Where the latest session begins in ascending times: after the last pause that is longer than the gap."""
    pauses = np.flatnonzero(np.diff(times_s) > gap_s)
    return int(pauses[-1]) + 1 if len(pauses) else 0


def _groups(
    session_start: int, cosines: Floats, shares: Floats, settings: ProfileSettings
) -> list[tuple[Kind, Indices]]:
    """The interests as places, oldest first, in the rows of ``cosines``."""
    places = np.arange(len(shares))
    labels = _clusters(cosines, settings.interest_similarity)
    before, session = places[:session_start], places[session_start:]
    if len(session) >= 2 or shares[session].sum() >= settings.interest_share:
        rest = _long_term(before, labels, cosines, shares, settings)
        if rest and all(_likeness(session, group, cosines) < settings.interest_similarity for group in rest):
            return [("session", session), *(("long_term", group) for group in rest)]
    return [("long_term", group) for group in _long_term(places, labels, cosines, shares, settings)]


def _likeness(some: Indices, others: Indices, cosines: Floats) -> float:
    """The cosine between the means of two groups, from the cosines of their members."""
    between, within, within_others = (
        float(cosines[a][:, b].mean()) for a, b in ((some, others), (some, some), (others, others))
    )
    return between / max(math.sqrt(max(within * within_others, 0.0)), _TINY)


def _long_term(
    places: Indices, labels: Indices, cosines: Floats, shares: Floats, settings: ProfileSettings
) -> list[Indices]:
    """These places in at most ``settings.max_interests`` groups of one or more clusters, the weightiest first."""
    if len(places) == 0:
        return []
    labels, cosines, shares = labels[places], cosines[places][:, places], shares[places]
    sizes, weights = np.bincount(labels), np.bincount(labels, weights=shares)
    lasting = np.flatnonzero((sizes >= 2) | (weights >= settings.interest_share))
    if len(lasting) < 2:
        return [places]
    lasting = lasting[np.argsort(-weights[lasting], kind="stable")][: settings.max_interests]
    nearest = _nearest(labels, lasting, cosines)
    return [places[nearest == label] for label in lasting]


def _clusters(cosines: Floats, threshold: float) -> Indices:
    """The cluster of each row: [h], 0 .. n - 1. No two clusters are as alike as ``threshold``; see the top."""
    labels, sums = np.arange(len(cosines)), cosines.astype(np.float64)
    sizes = np.ones(len(labels))
    while True:
        into = _joined(sums / (sizes[:, None] * sizes), threshold)
        is_kept = into == np.arange(len(into))
        if is_kept.all():
            return labels
        into = (np.cumsum(is_kept) - 1)[into]
        join = (np.arange(is_kept.sum())[:, None] == into).astype(np.float64)
        labels, sums, sizes = into[labels], join @ sums @ join.T, join @ sizes


def _joined(likeness: NDArray[np.float64], threshold: float) -> Indices:
    """For each cluster the one it becomes part of: of those that belong together, the first."""
    rows = np.arange(len(likeness))
    likeness = np.maximum(likeness, likeness.T)  # rounding must not make one nearer than the other
    likeness[rows, rows] = np.inf
    is_alike = likeness >= threshold
    first: Indices = is_alike.argmax(axis=1)
    if (is_alike == (first[:, None] == first)).all():
        return first  # whatever is alike is so in all its pairs: no order of joining comes to something else
    likeness[rows, rows] = -np.inf
    nearest = likeness.argmax(axis=1)
    is_mutual = (nearest[nearest] == rows) & is_alike[rows, nearest]
    into: Indices = np.where(is_mutual, np.minimum(rows, nearest), rows)
    return into


def _nearest(labels: Indices, lasting: Indices, cosines: Floats) -> Indices:
    """The lasting cluster of each row: its own, or else the one that its own cluster is most alike."""
    belongs = (np.arange(labels.max() + 1)[:, None] == labels).astype(np.float32)
    sizes = belongs.sum(axis=1)
    likeness = (belongs @ cosines @ belongs.T) / np.maximum(np.outer(sizes, sizes), 1)
    nearest: Indices = lasting[likeness[:, lasting].argmax(axis=1)]
    nearest[lasting] = lasting
    return np.take(nearest, labels)
