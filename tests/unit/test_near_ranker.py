"""Who ranks: the gateway for a few, the tier for many. Both by the same code."""

import numpy as np
import pytest
from numpy.typing import NDArray

from raysys.config import RankingSettings
from raysys.errors import Unavailable
from raysys.in_process import LocalRanker
from raysys.serving.local_stages import MANY, NearRanker
from raysys.types import SOURCES


class Away:
    """A tier whose replicas are gone."""

    async def score(self, snapshot_id: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        raise Unavailable("ranker is away")


async def test_a_lone_request_needs_no_tier_and_a_crowd_goes_there() -> None:
    crowd = [0]
    here = LocalRanker(RankingSettings())
    scores = np.random.default_rng(0).random((20, len(SOURCES)), np.float32)
    alone, together = (NearRanker(here, tier, lambda: crowd[0]) for tier in (Away(), LocalRanker(RankingSettings())))
    expected = await here.score("", scores)
    for crowd[0] in range(MANY):
        assert np.array_equal(await alone.score("", scores), expected)
    crowd[0] = MANY
    with pytest.raises(Unavailable, match="away"):
        await alone.score("", scores)
    assert np.array_equal(await together.score("", scores), expected)
