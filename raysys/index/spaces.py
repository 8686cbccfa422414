"""The behaviour models of a snapshot in which items and people are vectors, and how a person gets theirs.

A shard has the vectors of its items (``ShardFiles.spaces``) and multiplies them with the vector of the person. That
one is made when they ask, of the vectors of the items in their history, by what lies in ``spaces/<source>/`` of the
snapshot. A further model is one more of ``types.SPACES``, one more loader here, and its fit (``training.spaces``).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from raysys.index.fold_in import FoldIn
from raysys.index.manifest import Manifest
from raysys.index.sequence import SequenceEncoder
from raysys.types import FACTORS, SEQUENCE, SOURCES, Vectors


class PersonModel(Protocol):
    """What makes a person of a history."""

    def person(self, vectors: Vectors, weights: NDArray[np.float32]) -> Vectors | None:
        """[d] float32 from the vectors, [h, d], and weights, [h], of their items, oldest first; None = nowhere."""
        ...


@runtime_checkable
class PlacesItems(Protocol):
    """What knows new items by their text."""

    def items(self, text: Vectors) -> Vectors:
        """[n, d] float32 from the vectors of their texts, [n, dim]; zero for an item without text."""
        ...


_LOADERS: Mapping[int, Callable[[Path], PersonModel]] = {FACTORS: FoldIn.load, SEQUENCE: SequenceEncoder.load}
_ITEM_LOADERS: Mapping[int, Callable[[Path], PlacesItems]] = {SEQUENCE: SequenceEncoder.load}


def open_models(folder: Path, manifest: Manifest) -> dict[int, PersonModel]:
    """One of ``types.SPACES`` -> its model, of those that the snapshot in this folder has. Raises SnapshotError."""
    folders = {source: f"spaces/{SOURCES[source]}/" for source in _LOADERS}
    there = {source for source, name in folders.items() if any(file.startswith(name) for file in manifest.files)}
    return {source: _LOADERS[source](folder / folders[source]) for source in sorted(there)}


def open_item_models(folder: Path) -> dict[int, PlacesItems]:
    """One of ``types.SPACES`` -> its model, of those of the snapshot in this folder that know new items.

    Raises SnapshotError.
    """
    opened = {source: open_item_model(SOURCES[source], folder / "spaces" / SOURCES[source]) for source in _ITEM_LOADERS}
    return {source: model for source, model in opened.items() if model is not None}


def open_item_model(name: str, folder: Path) -> PlacesItems | None:
    """That of the space of this name, from its folder; None where it knows no new items, or is not there."""
    load = _ITEM_LOADERS.get(SOURCES.index(name))
    return None if load is None or not folder.is_dir() else load(folder)
