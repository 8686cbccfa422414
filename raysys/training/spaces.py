"""Behaviour models with vectors, from their fit to the files of a snapshot: what ``index.spaces`` reads.

A model that is fitted leaves in the staging folder the keys and vectors of its items, and the files that make a
vector of a person. Each shard takes the rows of its own items.
"""

import shutil
from pathlib import Path

import numpy as np

from raysys.index.arrays import open_array
from raysys.index.shard_files import rows_of
from raysys.index.spaces import open_item_model
from raysys.training.plan import BuildPlan
from raysys.types import Keys, Vectors


def stage(plan: BuildPlan, name: str, keys: Keys, vectors: Vectors) -> Path:
    """Keep the vectors, [n, d] float32, of these items, keys ascending.

    Returns the folder for the files that make a vector of a person.
    """
    folder = plan.fitted("spaces", name)
    np.save(folder / "keys.npy", keys)
    np.save(folder / "vectors.npy", vectors)
    return plan.fitted("spaces", name, "person")


def of_shard(plan: BuildPlan, keys: Keys, text: Vectors) -> dict[str, Vectors]:
    """By name of the space, [len(keys), d] float32, from the items' keys and the vectors of their texts.

    Zero for items that the model of a space knows neither from its fit nor by their text.
    """
    return {folder.name: _rows(folder, keys, text) for folder in _folders(plan)}


def _rows(folder: Path, keys: Keys, text: Vectors) -> Vectors:
    vectors: Vectors = open_array(folder / "vectors.npy")
    rows = rows_of(open_array(folder / "keys.npy"), keys)
    model = open_item_model(folder.name, folder / "person")
    others = np.float32(0) if model is None else model.items(text)
    return np.where(rows[:, None] >= 0, vectors[rows], others)


def publish(plan: BuildPlan) -> None:
    """Put into the snapshot what belongs to the whole of it."""
    for folder in _folders(plan):
        shutil.copytree(folder / "person", plan.snapshot / "spaces" / folder.name)


def _folders(plan: BuildPlan) -> list[Path]:
    return sorted(plan.fitted("spaces").iterdir())
