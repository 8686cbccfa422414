"""Asks two snapshots the same, by the path that serves, and says how far their answers agree."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.clock import Clock, SystemClock
from raysys.config import ProfileSettings, RankingSettings, ServeSettings
from raysys.data.impressions import read_impressions
from raysys.encoder.protocol import Role
from raysys.errors import Unavailable
from raysys.in_process import LocalRanker, LocalRecall, open_shards
from raysys.index.catalogue import Catalogue
from raysys.lookup import Lookup, NothingLive
from raysys.profile.reader import Profiles
from raysys.recommender import Recommender
from raysys.state.open import open_state
from raysys.types import Profile, Request, Vectors

N_ASKED = 200
N_SHOWN = 10
MADE_HISTORY = (1, 3)  # the fewest and the most items of a made-up history
LATEST_FILES = 50  # of the impression log


@dataclass(frozen=True)
class Asked:
    """Somebody who asks: what they ask for, and who they are."""

    request: Request
    profile: Profile


@dataclass(frozen=True)
class Agreement:
    """How two snapshots answer the same people.

    overlap: mean share of the first ``N_SHOWN`` items that both show. empty: share of the people who get something of
    the old one and nothing of the new. old_ms, new_ms: median time of an answer in this process, asked in turn.
    """

    n_asked: int
    n_people: int
    overlap: float
    empty: float
    old_ms: float
    new_ms: float


def compare(old: Path, new: Path, asked: Sequence[Asked], clock: Clock | None = None) -> Agreement:
    """Ask the snapshots in these folders. Raises SnapshotError for one that cannot be opened."""
    clock = SystemClock() if clock is None else clock
    return asyncio.run(_compare(_recommender(old, clock), _recommender(new, clock), asked))


async def _compare(old: Recommender, new: Recommender, asked: Sequence[Asked]) -> Agreement:
    overlaps, empty, old_ms, new_ms = [], [], [], []
    for one in asked:
        before, took_before = await _answer(old, one)
        after, took_after = await _answer(new, one)
        old_ms.append(took_before)
        new_ms.append(took_after)
        empty.append(bool(before) and not after)
        if before:
            overlaps.append(len(before & after) / len(before))
    n_people = sum(one.profile.version > 0 for one in asked)
    return Agreement(
        len(asked),
        n_people,
        float(np.mean(overlaps)) if overlaps else 1.0,
        float(np.mean(empty)) if empty else 0.0,
        median(old_ms) if old_ms else 0.0,
        median(new_ms) if new_ms else 0.0,
    )


async def _answer(recommender: Recommender, one: Asked) -> tuple[set[str], float]:
    start_s = time.perf_counter()
    answer = await recommender.recommend(one.request, one.profile)
    return {item.item_id for item in answer.items}, (time.perf_counter() - start_s) * 1e3


def _recommender(folder: Path, clock: Clock) -> Recommender:
    ranker, k = LocalRanker(RankingSettings(), folder), ServeSettings().candidates_per_source
    recall = LocalRecall(open_shards(folder))
    return Recommender(Lookup(Catalogue(folder), NothingLive()), _no_text, recall, ranker, ProfileSettings(), k, clock)


async def _no_text(text: str, role: Role) -> Vectors:
    raise Unavailable("nobody asks by text here")


def some_people(folder: Path, impressions: str | None, state: str | None, n: int = N_ASKED) -> list[Asked]:
    """Up to n people of the impression log with what the store has of them, latest first, a stranger, and people who
    are made up from items of the snapshot in this folder, the same each time; n in all.

    A log or a store that is not there, or cannot be read now, gives nobody.
    """
    known = _known_people(impressions, state, n - 1)
    made = _made_up(Catalogue(folder), n - 1 - len(known))
    return [*known, Asked(Request(limit=N_SHOWN), Profile("")), *made]


def _known_people(impressions: str | None, state: str | None, n: int) -> list[Asked]:
    if impressions is None or state is None or not ("://" in state or Path(state).exists()):
        return []
    users = _latest_users(impressions, n)
    if not users:
        return []
    try:
        profiles = asyncio.run(_profiles(state, users))
    except Unavailable:
        return []
    return [Asked(Request(limit=N_SHOWN, user=profile.user), profile) for profile in profiles if profile.version > 0]


async def _profiles(state: str, users: Sequence[str]) -> list[Profile]:
    store = open_state(state)
    try:
        profiles = Profiles(store, ProfileSettings(), SystemClock())
        return [await profiles.of(user) for user in users]
    finally:
        await store.close()


def _latest_users(impressions: str, n: int) -> list[str]:
    users: dict[str, None] = {}
    for file in sorted(read_impressions(impressions).files, reverse=True)[:LATEST_FILES]:
        if len(users) >= n:
            break
        try:
            with pq.ParquetFile(file) as opened:
                users |= dict.fromkeys(reversed(opened.read(["user"])["user"].drop_null().to_pylist()))
        except (OSError, pa.ArrowException):  # removed since it was listed
            continue
    return list(users)[:n]


def _made_up(catalogue: Catalogue, n: int) -> list[Asked]:
    rng = np.random.default_rng(0)
    places = np.array([len(shard.keys) for shard in catalogue.shards])
    ends = np.cumsum(places)
    if n <= 0 or not ends[-1]:
        return []
    cuts = np.cumsum([0, *rng.integers(MADE_HISTORY[0], MADE_HISTORY[1] + 1, n)])
    rows = rng.integers(0, ends[-1], cuts[-1])
    shards = np.searchsorted(ends, rows, side="right")
    ids = [catalogue.item_id(int(s), int(r - ends[s] + places[s])) for s, r in zip(shards, rows, strict=True)]
    plain = Request(limit=N_SHOWN)
    return [Asked(replace(plain, history=tuple(ids[a:b])), Profile("")) for a, b in pairwise(cuts.tolist())]
