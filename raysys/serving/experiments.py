"""Experiments on recommendations: who is in which arm, how an arm ranks, and one list of two rankings.

An arm follows from the experiment and the user key alone (``evaluation.experiments``): nothing is stored, and every
gateway agrees. Who is not named is in no experiment.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raysys.config import ExperimentSettings, RankingSettings
from raysys.evaluation.experiments import Experiment
from raysys.evaluation.interleaving import team_draft
from raysys.keys import seed_of
from raysys.ranking.promote import at_slots
from raysys.types import Answer, Cap, RankedItem, Request

Arms = tuple[str, ...]  # of one person, one an experiment, in the order of the settings; () = in none


class Assignment:
    """Who is in which arm."""

    def __init__(self, experiments: Sequence[ExperimentSettings]) -> None:
        self._experiments = [Experiment(one.name, {arm.name: arm.share for arm in one.arms}) for one in experiments]

    def arms(self, user: str | None) -> Arms:
        """The arms of this user key; none where nobody is named."""
        return () if user is None else tuple(experiment.arm_of(user) for experiment in self._experiments)

    def exposures(self, arms: Arms) -> tuple[Mapping[str, str], ...]:
        """As in ``Answer.experiments``."""
        pairs = zip(self._experiments, arms, strict=False)  # who is in none has no arms
        return tuple({"experiment": experiment.name, "arm": arm} for experiment, arm in pairs)


def rankings(
    experiments: Sequence[ExperimentSettings], base: RankingSettings
) -> dict[Arms, tuple[RankingSettings, ...]]:
    """For every combination of arms the ranking of its lists, or the two that are interleaved; () has ``base``."""
    found: dict[Arms, tuple[RankingSettings, ...]] = {(): (base,)}
    for arms in itertools.product(*(experiment.arms for experiment in experiments)):
        sides: tuple[RankingSettings, ...] = (base,)
        for arm in arms:
            sides = tuple(ranking for side in sides for ranking in arm.rankings(side))
        found[tuple(arm.name for arm in arms)] = sides
    return found


def common_caps(first: Mapping[str, Cap], second: Mapping[str, Cap]) -> list[Cap]:
    """The caps that both rankings have, each as the one that allows more has it."""
    shared = [name for name in first if name in second]
    return [max(first[name], second[name], key=lambda cap: cap.most) for name in shared]


def interleave(first: Answer, second: Answer, request: Request, caps: Sequence[Cap]) -> Answer:
    """The answers of two rankings to one request as one list, each item with the team that picked it.

    Promotions stand at their slots and for neither team. The caps hold in the list as a whole. The coins of the draft
    follow from the recommendation id.
    """
    lists = {item.item_id: item for item in second.items} | {item.item_id: item for item in first.items}
    promoted = {item_id: item for item_id, item in lists.items() if item.promoted}
    ranked = [[item.item_id for item in answer.items if item.item_id not in promoted] for answer in (first, second)]
    rng = np.random.default_rng(seed_of(request.recommendation_id or ""))
    n = request.limit - len(promoted)
    drafted = team_draft(ranked[0], ranked[1], n, rng, _within(caps, lists, promoted))
    teams = dict(zip(drafted.items, drafted.teams, strict=True))
    picked = {item.item_id: item for item in second.items if teams.get(item.item_id) == "second"}
    ids = _around(request, promoted, drafted.items)
    items = [replace(picked.get(i, lists[i]), rank=rank, team=teams.get(i)) for rank, i in enumerate(ids, start=1)]
    return _of_both(first, second, tuple(items), request.limit)


def _within(
    caps: Sequence[Cap], items: Mapping[str, RankedItem], promoted: Collection[str]
) -> Callable[[Collection[str], str], bool]:
    """Whether every cap allows one more item."""

    def fits(taken: Collection[str], item_id: str) -> bool:
        others = [items[other].metadata for other in (*promoted, *taken)]
        return all(_allows(cap, items[item_id].metadata, others) for cap in caps)

    return fits


def _allows(cap: Cap, metadata: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    taken = [value for other in others for value in _values(other, cap.field)]
    return all(taken.count(value) < cap.most for value in _values(metadata, cap.field))


def _values(metadata: Mapping[str, Any], field: str) -> set[Any]:
    value = metadata.get(field)
    return set(value) if isinstance(value, list) else set() if value is None else {value}


def _around(request: Request, promoted: Collection[str], others: Sequence[str]) -> list[str]:
    """Every promoted item at its slot, and the others in their order around."""
    ids = [*promoted, *others]
    shown = [promotion for promotion in request.promotions if promotion.item_id in promoted]
    slots = {promotion.slot: ids.index(promotion.item_id) for promotion in shown}
    return [ids[at] for at in at_slots(slots, range(len(promoted), len(ids)), request.limit)]


def _of_both(first: Answer, second: Answer, items: tuple[RankedItem, ...], limit: int) -> Answer:
    """One answer that lacks what either lacks, and took as long as the slower one."""
    slower = max(first, second, key=lambda answer: answer.timings_ms["total"])
    unmet = [*first.unmet, *(one for one in second.unmet if one not in first.unmet)]
    return replace(
        first,
        items=items,
        underfilled=len(items) < limit,
        exact=first.exact and second.exact,
        degraded=tuple(dict.fromkeys([*first.degraded, *second.degraded])),
        timings_ms=slower.timings_ms,
        unmet=tuple(unmet),
    )
