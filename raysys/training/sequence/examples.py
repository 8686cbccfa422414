"""What the sequence model is fitted on: histories cut into windows, batches for any number of workers, negatives.

Everything that is drawn comes from (seed, epoch, step), never from what was drawn before: a run that is resumed draws
what it would have drawn, and all workers draw the same and take their share of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysys.config import SequenceSettings
from raysys.index.arrays import open_array, save_array
from raysys.types import Vectors

Items = NDArray[np.int32]
Places = NDArray[np.int64]

HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 2_000  # users whose last event tells when to stop
LEAST_EVENTS = 3  # of a user, from which on the last may be held out
BATCHES_SORTED = 32  # windows of so many batches are sorted by length, so that a batch pads little
NO_TARGET = -1
FITTED, FITTED_VECTORS = "fitted", "vectors.npy"  # the folder of what was fitted, and its items' vectors


@dataclass(frozen=True, slots=True, eq=False)
class Histories:
    """What people liked, and the texts of it.

    starts: [n_users + 1] int64, the events of user u are those from ``starts[u]`` up to ``starts[u + 1]``, oldest
    first. items: [n_events] int32, rows of ``text``. text: [n_items, dim] float32, zero where an item has none.
    """

    starts: Places
    items: Items
    text: Vectors

    @property
    def n_items(self) -> int:
        return len(self.text)

    @property
    def lengths(self) -> Places:
        return np.diff(self.starts)

    def save(self, folder: Path) -> None:
        """Write one file an array."""
        for name in self.__slots__:
            save_array(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "Histories":
        """Map what ``save`` wrote, so that the workers of one machine share it."""
        return cls(*(open_array(folder / f"{name}.npy") for name in cls.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """users: [n] of whom the last event is not fitted on."""

    users: Places

    @classmethod
    def of(cls, histories: Histories, seed: int) -> "HeldOut":
        able = np.flatnonzero(histories.lengths >= LEAST_EVENTS)
        n = min(int(HELD_OUT_SHARE * len(able)), MOST_HELD_OUT)
        return cls(np.sort(np.random.default_rng(seed).choice(able, n, replace=False)))


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Runs of events of one user: all but the last of a run are read, all but the first are predicted.

    begin: [n] int64, places in ``Histories.items``. length: [n] int64, 2 to ``max_history`` + 1.
    """

    begin: Places
    length: Places

    def __len__(self) -> int:
        return len(self.begin)

    @classmethod
    def of(cls, histories: Histories, held_out: HeldOut, max_history: int) -> "Windows":
        """Cut from the end and overlapping by one event, so that every event but a user's first is predicted."""
        ends = histories.starts[1:].copy()
        ends[held_out.users] -= 1
        n_predicted = np.maximum(ends - histories.starts[:-1] - 1, 0)
        per_user = -(-n_predicted // max_history)
        user = np.repeat(np.arange(len(per_user)), per_user)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
        end = ends[user] - nth * max_history
        begin = np.maximum(end - max_history - 1, histories.starts[user])
        return cls(begin, end - begin)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Places]:
        """The windows in batches of ``size`` or a few more, in random order, those of like length together."""
        order = rng.permutation(len(self))
        chunks = [order[at : at + size * BATCHES_SORTED] for at in range(0, len(order), size * BATCHES_SORTED)]
        ordered = [chunk[np.argsort(self.length[chunk], kind="stable")] for chunk in chunks]
        batches = [batch for chunk in ordered for batch in np.array_split(chunk, max(1, len(chunk) // size))]
        yield from (batches[at] for at in rng.permutation(len(batches)))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one worker computes in one step. Items are numbered by their place in ``items``.

    items: [u] int64 rows of the catalogue, each once. text: [u, dim] float32, theirs. inputs: [b, l] int64.
    targets: [b, l] int64, ``NO_TARGET`` where nothing is predicted. negatives: [k] int64.
    log_expected: [k] float32, the logarithm of how often each negative is drawn on average.
    n_predicted: how many targets all workers have together in this step.
    """

    items: Places
    text: Vectors
    inputs: Places
    targets: Places
    negatives: Places
    log_expected: NDArray[np.float32]
    n_predicted: int


class Negatives:
    """Items drawn with replacement, a share of them as often as people met them, the others evenly."""

    def __init__(self, histories: Histories, settings: SequenceSettings) -> None:
        counts = np.bincount(histories.items, minlength=histories.n_items)
        popular = settings.popular_negatives
        self._chance = popular * counts / counts.sum() + (1 - popular) / histories.n_items
        self._up_to = np.cumsum(self._chance)
        self._n = settings.negatives

    def draw(self, rng: np.random.Generator) -> tuple[Places, NDArray[np.float32]]:
        """(rows, log of the expected number of times that each is drawn), both [k]."""
        drawn = self._up_to.searchsorted(rng.random(self._n) * self._up_to[-1], side="right")
        drawn = np.minimum(drawn, len(self._up_to) - 1)
        return drawn, np.log(self._n * self._chance[drawn]).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Of all batches, the part of one worker: every ``size``-th window from the ``rank``-th on."""

    rank: int = 0
    size: int = 1


def epoch(
    histories: Histories, windows: Windows, negatives: Negatives, settings: SequenceSettings, number: int, share: Share
) -> Iterator[Batch]:
    """The batches of one epoch for one worker. Needs as many windows as there are workers."""
    for step, rows in enumerate(windows.batches(settings.batch, np.random.default_rng((settings.seed, number)))):
        drawn, log_expected = negatives.draw(np.random.default_rng((settings.seed, number, step)))
        mine = rows[share.rank :: share.size]
        inputs, targets = _read(histories, windows.begin[mine], windows.length[mine])
        is_target = targets >= 0
        n_predicted = int((windows.length[rows] - 1).sum())
        items, at = np.unique(np.concatenate([inputs.ravel(), targets[is_target], drawn]), return_inverse=True)
        targets[is_target] = at[inputs.size : -len(drawn)]
        yield Batch(
            items=items,
            text=histories.text[items],
            inputs=at[: inputs.size].reshape(inputs.shape),
            targets=targets,
            negatives=at[-len(drawn) :],
            log_expected=log_expected,
            n_predicted=n_predicted,
        )


def _read(histories: Histories, begin: Places, length: Places) -> tuple[Places, Places]:
    """(what is read, what is predicted), both [b, l], filled up at the end with item 0 and ``NO_TARGET``."""
    step = np.arange(length.max() - 1)
    there = step < length[:, None] - 1
    at = np.where(there, begin[:, None] + step, 0)
    inputs = np.where(there, histories.items[at], 0).astype(np.int64)
    targets = np.where(there, histories.items[np.where(there, at + 1, 0)], NO_TARGET).astype(np.int64)
    return inputs, targets
