"""The factor model (``training.factors``) over the files of a build, by parts of the people and shards of items.

    events of a part  -->  likes of a block  --solve-->  its vectors  --join-->  vectors of its side  --> the other side

A task that solves a block holds its likes, below 100 bytes each, and maps the vectors of the other side, 4 dim bytes a
row, of which the tasks of a machine share one copy. One task joins a side, and holds it twice. What comes out does not
depend on the number of blocks: people and items stand in the order of their keys, and so do the sums of a row.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from raysys.index.arrays import open_array
from raysys.index.shard_files import rows_of
from raysys.training import behaviour, factors, spaces
from raysys.training.plan import BuildPlan
from raysys.types import FACTORS, SOURCES, Keys

NAME = SOURCES[FACTORS]
Task = Callable[[BuildPlan], None]
Name = Literal["people", "items"]
OTHER: dict[Name, Name] = {"people": "items", "items": "people"}


def stages(plan: BuildPlan) -> Iterator[list[Task]]:
    """The fit as tasks: those of a list may run side by side, each list after the one before; none without a fit.

    To be asked for when everything is counted and settled.
    """
    if not _is_wanted(plan):
        return
    blocks = range(plan.n_shards)
    yield [partial(stage_likes, part=part) for part in blocks]
    yield [begin]
    for _ in range(plan.settings.behaviour.factors_iterations):
        for side in OTHER:
            yield [partial(solve_block, side=side, block=block) for block in blocks]
            yield [partial(join, side=side)]
    yield [conclude]


def _is_wanted(plan: BuildPlan) -> bool:
    settings = plan.settings.behaviour
    if settings.factors == "never":
        return False
    n_items = len(behaviour.met_twice(plan))
    return n_items > max(1, 0 if settings.factors == "always" else settings.ridge_items)


def stage_likes(plan: BuildPlan, part: int) -> None:
    """What one part of the people like, each pair once with its greatest weight, for the blocks of both sides."""
    liked = behaviour.liked_by(plan, part)
    if liked is None:
        return
    known = np.flatnonzero(rows_of(behaviour.met_twice(plan), liked.item) >= 0)
    order = known[np.lexsort((liked.weight[known], liked.item[known], liked.user[known]))]
    people, items, weights = liked.user[order], liked.item[order], liked.weight[order]
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = (people[1:] != people[:-1]) | (items[1:] != items[:-1])
    people, items, weights = people[last], items[last], weights[last]
    _write_likes(plan, "people", f"{part:05d}", part, people, items, weights)
    for block, mine in behaviour.cut(items, plan.n_shards):
        _write_likes(plan, "items", block, part, items[mine], people[mine], weights[mine])


def _write_likes(
    plan: BuildPlan, side: Name, block: str, part: int, row: Keys, column: Keys, weight: NDArray[np.float32]
) -> None:
    behaviour.write(plan, (NAME, side, block), f"{part:05d}", row=row, column=column, weight=weight)


def begin(plan: BuildPlan) -> None:
    """Number people and items by their keys, and give the items their first vectors."""
    for side in OTHER:
        rows = [np.unique(_likes(plan, side, block)[0]) for block in range(plan.n_shards)]
        np.save(_path(plan, side, "keys"), np.sort(np.concatenate(rows)))
    _save(plan, "items", factors.start(len(_keys(plan, "items")), plan.settings.behaviour.factors_dim))


def solve_block(plan: BuildPlan, side: Name, block: int) -> None:
    """The vectors of one block, from those of the other side."""
    row, column, weight = _likes(plan, side, block)
    rows, places = np.unique(row, return_inverse=True)
    columns = rows_of(_keys(plan, OTHER[side]), column)
    others = _load(plan, OTHER[side])
    likes = sp.csr_array((weight, (places, columns)), shape=(len(rows), len(others.vectors)))
    likes.sort_indices()
    settings = plan.settings.behaviour
    fold_in = others.fold_in(settings.factors_unobserved, settings.factors_penalty)
    np.save(_path(plan, side, f"block-{block:05d}"), factors.solve_rows(likes, others.vectors, fold_in))


def join(plan: BuildPlan, side: Name) -> None:
    """Lay the blocks of a side together, by key, along their principal axes."""
    keys = _keys(plan, side)
    vectors = np.empty((len(keys), plan.settings.behaviour.factors_dim), dtype=np.float32)
    for block in range(plan.n_shards):
        vectors[keys % np.uint64(plan.n_shards) == block] = open_array(_path(plan, side, f"block-{block:05d}"))
    _save(plan, side, factors.along_axes(vectors))


def conclude(plan: BuildPlan) -> None:
    """Hand the vectors of the items, and what makes a vector of a person, to the snapshot."""
    items, settings = _load(plan, "items"), plan.settings.behaviour
    folder = spaces.stage(plan, NAME, _keys(plan, "items"), items.vectors)
    items.fold_in(settings.factors_unobserved, settings.factors_penalty).save(folder)


def counts(plan: BuildPlan) -> dict[str, int]:
    """``factors_items`` and ``factors_people``: how many took part, where there was a fit."""
    return {f"{NAME}_{side}": len(_keys(plan, side)) for side in OTHER if _path(plan, side, "keys").is_file()}


def _likes(plan: BuildPlan, side: Name, block: int) -> list[NDArray[Any]]:
    """(row keys, column keys, weights) of one block."""
    nothing = [np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.float32)]
    parts = [nothing, *behaviour.read(plan, (NAME, side, f"{block:05d}"))]
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def _path(plan: BuildPlan, side: Name, what: str) -> Path:
    return plan.staged(NAME) / f"{side}-{what}.npy"


def _keys(plan: BuildPlan, side: Name) -> Keys:
    return open_array(_path(plan, side, "keys"))


def _save(plan: BuildPlan, side: Name, placed: factors.Side) -> None:
    np.save(_path(plan, side, "vectors"), placed.vectors)
    np.save(_path(plan, side, "energy"), placed.energy)


def _load(plan: BuildPlan, side: Name) -> factors.Side:
    return factors.Side(open_array(_path(plan, side, "vectors")), open_array(_path(plan, side, "energy")))
