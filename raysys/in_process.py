"""The stages of the path as plain objects in one process: batch jobs, tests, evaluation, ``topology: fused``."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysys.config import RankingSettings
from raysys.encoder.protocol import Encoder, Role
from raysys.index.catalogue import Catalogue
from raysys.ranking.learned import open_ranker
from raysys.recall.shard import Shard
from raysys.trace import Call, record
from raysys.types import Candidates, RecallQuery, Vectors


class LocalEncoder:
    """One text at a time, here and now."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    async def encode(self, text: str, role: Role) -> Vectors:
        vector: Vectors = self._encoder.encode([text], role)[0]
        return vector


class LocalRecall:
    """All shards of one snapshot, one after the other."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        return [shard.recall([query])[0] for shard in self._shards], []


class LocalRanker:
    """The ranker as a plain call. snapshot: the folder of the one whose ranking may be used; None = none."""

    def __init__(self, settings: RankingSettings, snapshot: Path | None = None) -> None:
        self._ranker = open_ranker(settings, snapshot)

    async def score(self, snapshot_id: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        start_s = time.perf_counter()
        ranked = self._ranker.score([scores])[0]
        end_s = time.perf_counter()
        record(Call("ranker", start_s, start_s, end_s, 0.0, end_s - start_s))
        return ranked


def open_shards(folder: Path) -> list[Shard]:
    """Every shard of the snapshot in this folder."""
    return [Shard(number, files) for number, files in enumerate(Catalogue(folder).shards)]
