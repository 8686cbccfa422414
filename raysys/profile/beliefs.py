"""What a profile amounts to, in words that the person can read and act on.

Interests are those that recommendations start from. What a person muted is grouped as it would be if it still counted,
so that an interest keeps its members and its id when it is muted, and when it counts again.
"""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raysys.config import ProfileSettings
from raysys.keys import item_key
from raysys.profile.fold import DESCRIPTION, evidence
from raysys.profile.interests import interests
from raysys.profile.seeds import seeds
from raysys.types import Interaction, Profile, Saying, Vectors

Kind = Literal["session", "long_term", "text", "description"]

_MAX_LABELS = 3
_COMMON = 0.5  # of the weight of an interest, from which a label names it
_MAX_TITLE_CHARS = 60
_WEIGHT_CAP = 3.0  # as in the seeds: beyond it nothing stands out
_TINY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What the catalogue has of a person's items, by id.

    vectors: [dim] float32 each. fields: plain JSON values. center: [dim] float32, as ``interests`` wants it.
    """

    vectors: Mapping[str, Vectors]
    fields: Mapping[str, Mapping[str, Any]]
    center: Vectors


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that a person did or said, by the name that pins or mutes it.

    sentence: what they wrote, None for an item. source: the kind of the event. weight: how much it counts now, < 0
    for a dislike; 0 = it is older than all that is looked at.
    """

    evidence: str
    source: str
    timestamp_s: float
    weight: float
    pinned: bool
    muted: bool
    item_id: str | None = None
    title: str | None = None
    sentence: str | None = None


@dataclass(frozen=True, slots=True)
class Belief:
    """An interest. share: 0..1, of all items or of all texts that count; 0 where it is muted, or where the catalogue
    has no text of the items. pinned, muted: all of its evidence is. evidence: the weightiest first."""

    interest_id: str
    words: str
    kind: Kind
    share: float
    pinned: bool
    muted: bool
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class Beliefs:
    """interests: those of items before those of texts, what counts before what is muted. dislikes: as interests."""

    interests: tuple[Belief, ...]
    dislikes: tuple[Evidence, ...]


def beliefs(profile: Profile, unmuted: Profile, settings: ProfileSettings, known: Known) -> Beliefs:
    """What the system believes of a person.

    profile: what recommendations start from. unmuted: the fold of the same events as if nothing were muted.
    Liked items of ``profile`` further back than ``settings.history`` are in no interest. What is muted is listed
    however old it is.
    """
    muted: Collection[str] = () if profile.person is None else profile.person.muted
    counting, silent = _Reader(profile, settings, known), _Reader(unmuted, settings, known, muted)
    return Beliefs(
        (*counting.of_items(), *counting.of_texts(), *silent.of_items(), *silent.of_texts()),
        (*counting.dislikes(), *silent.dislikes()),
    )


class _Reader:
    """Reads one profile: all of it, or the part of it that is muted."""

    def __init__(
        self, profile: Profile, settings: ProfileSettings, known: Known, muted: Collection[str] | None = None
    ) -> None:
        self._settings, self._known, self._muted = settings, known, muted
        self._pinned: Collection[str] = () if profile.person is None else profile.person.pinned
        self._interactions = {i.item_id: i for i in profile.interactions if i.weight != 0}
        self._sayings = {saying.text: saying for saying in profile.sayings}
        self._seeds = found = seeds(profile, settings)
        likes = zip(found.items, found.weights.tolist(), strict=True)
        dislikes = zip(found.negatives, (-found.negative_weights).tolist(), strict=True)
        self._weights = {**dict(likes), **dict(dislikes)}

    def of_items(self) -> list[Belief]:
        groups = self._groups()
        grouped = {item_id for _, _, members in groups for item_id in members}
        groups.append(("long_term", 0.0, [item_id for item_id in self._liked() if item_id not in grouped]))
        wanted = [(kind, share, [i for i in members if self._wants(i)]) for kind, share, members in groups]
        return [self._of_items(kind, share, members) for kind, share, members in wanted if members]

    def _groups(self) -> list[tuple[Kind, float, list[str]]]:
        """Kind, share and item ids of each interest that the vectors show."""
        places = [at for at, item_id in enumerate(self._seeds.items) if item_id in self._known.vectors]
        if not places:
            return []
        ids = [self._seeds.items[at] for at in places]
        vectors = np.stack([self._known.vectors[item_id] for item_id in ids])
        weights, times_s = self._seeds.weights[places], self._seeds.timestamps_s[places]
        found = interests(vectors, weights, times_s, self._settings, self._known.center)
        return [(each.kind, each.weight, [ids[at] for at in each.members]) for each in found]

    def _liked(self) -> Sequence[str]:
        """Of what counts the recent items, of what is muted all."""
        if self._muted is None:
            return self._seeds.items
        return [item_id for item_id, seen in self._interactions.items() if seen.weight > 0]

    def _wants(self, name: str) -> bool:
        return self._muted is None or name in self._muted

    def _of_items(self, kind: Kind, share: float, members: Sequence[str]) -> Belief:
        found = sorted(map(self._item, members), key=_by_weight)
        strongest = min((self._interactions[item_id] for item_id in members), key=_standing)
        return self._belief(strongest.item_id, _words(found, self._known.fields), kind, share, found)

    def of_texts(self) -> list[Belief]:
        said = [each for each in self._texts() if each.weight > 0]
        total = max(sum(each.weight for each in said), _TINY)
        return [
            self._belief(each.evidence, str(each.sentence), _kind_of(each), each.weight / total, [each])
            for each in said
            if self._wants(each.evidence)
        ]

    def dislikes(self) -> list[Evidence]:
        items = [self._item(item_id) for item_id, seen in self._interactions.items() if seen.weight < 0]
        found = [*items, *(each for each in self._texts() if each.weight < 0)]
        return sorted((each for each in found if self._wants(each.evidence)), key=_by_weight)

    def _belief(self, name: str, words: str, kind: Kind, share: float, found: Sequence[Evidence]) -> Belief:
        is_muted = self._muted is not None
        is_pinned = all(each.pinned for each in found)
        share = 0.0 if is_muted else round(share, 4)
        return Belief(f"i_{item_key(name):016x}", words, kind, share, is_pinned, is_muted, tuple(found))

    def _item(self, item_id: str) -> Evidence:
        title = self._known.fields.get(item_id, {}).get("title")
        weight = self._weights.get(item_id, 0.0)
        return self._evidence(item_id, weight, self._interactions[item_id], item_id=item_id, title=title)

    def _texts(self) -> list[Evidence]:
        weighted = zip(self._seeds.sayings, self._seeds.saying_weights.tolist(), strict=True)
        said = [(self._sayings[text], weight) for text, weight in weighted]
        return [self._evidence(evidence(saying), weight, saying, sentence=saying.text) for saying, weight in said]

    def _evidence(self, name: str, weight: float, found: Interaction | Saying, **content: str | None) -> Evidence:
        return Evidence(
            evidence=name,
            source=found.kind,
            timestamp_s=found.timestamp_s,
            weight=round(weight, 6),
            pinned=name in self._pinned,
            muted=self._muted is not None,
            **content,
        )


def _by_weight(found: Evidence) -> tuple[float, float, str]:
    """The weightiest first, then the latest."""
    return -abs(found.weight), -found.timestamp_s, found.evidence


def _standing(interaction: Interaction) -> tuple[float, float, str]:
    """What gives an interest its id: weight before it fades, then age, so that later events seldom change it."""
    return -min(interaction.weight, _WEIGHT_CAP), interaction.timestamp_s, interaction.item_id


def _kind_of(saying: Evidence) -> Kind:
    return "description" if saying.evidence == DESCRIPTION else "text"


def _words(found: Sequence[Evidence], fields: Mapping[str, Mapping[str, Any]]) -> str:
    """What these items, the weightiest first, have in common, in a few words; else the first two by name."""
    weights: dict[str, float] = {}
    for each in found:
        for label in _labels(fields.get(each.evidence, {})):
            weights[label] = weights.get(label, 0.0) + each.weight + _TINY
    enough = _COMMON * sum(each.weight + _TINY for each in found)
    common = [label for label in sorted(weights, key=weights.__getitem__, reverse=True) if weights[label] >= enough]
    if common:
        return _listed(common[:_MAX_LABELS])
    return "like " + _listed([_short(each.title or each.evidence) for each in found[:2]])


def _labels(fields: Mapping[str, Any]) -> list[str]:
    """Categories and tags, each once."""
    return list(dict.fromkeys([*fields.get("categories", ()), *fields.get("tags", ())]))


def _short(title: str) -> str:
    return textwrap.shorten(title, _MAX_TITLE_CHARS, placeholder="…")


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
