"""The path that serves, asked offline: a snapshot is built of a fold, histories become profiles, lists come out."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_sets import DataSet
from numpy.typing import NDArray

from raysys.config import (
    BehaviourSettings,
    BuildSettings,
    CatalogSettings,
    EncoderSettings,
    EventsSettings,
    IndexSettings,
    ProfileSettings,
    RankingSettings,
    ServeSettings,
)
from raysys.encoder.build import build_encoder
from raysys.evaluation.lists import Lists, padded
from raysys.evaluation.protocol import LIST_LENGTH
from raysys.evaluation.sequences import Sequences
from raysys.evaluation.splits import Fold
from raysys.in_process import LocalEncoder, LocalRanker
from raysys.index.catalogue import Catalogue
from raysys.index.store import SnapshotStore
from raysys.index.vector_index import set_threads
from raysys.keys import item_keys
from raysys.lookup import Lookup, NothingLive
from raysys.pressure import WITH_FEWER_SOURCES
from raysys.profile.fold import fold
from raysys.profile.follows import MOST_FRIENDS, likes_of, together
from raysys.recall.shard import Shard
from raysys.recommender import Recall, Recommender
from raysys.serving.coalescer import Coalescer
from raysys.training.local import build_here
from raysys.types import SOURCES, Answer, Candidates, Event, FriendLikes, Profile, RecallQuery, Request, Vectors

BATCH = 256
TEXT_SOURCES = {"query", "profile", "said", "query_words", "words"}
BEHAVIOUR_SOURCES = {"transition", "ridge", "factors", "sequence"}
SOCIAL_SOURCES = {"friends"}
COMMON_SOURCES = {"trending", "fresh", "popular"}  # the same for everybody


@dataclass(frozen=True)
class Row:
    """How candidates are ranked. seen_only: nothing of a person is known but what to leave out. by_place: a rule moves
    items against their scores, and where they stand is what counts. pressure: the level of the brown-out.
    """

    ranking: RankingSettings
    seen_only: bool = False
    by_place: bool = False
    pressure: int = 0


def only(sources: set[str]) -> RankingSettings:
    """The weights that ship, of these sources; those of all others are 0."""
    return RankingSettings(learned=False, **{name: 0.0 for name in SOURCES if name not in sources})


ROWS = {
    # What says only "seen" tells nothing of a person, and popularity fills the list.
    "popularity": Row(only({"popular"}), seen_only=True),
    "behaviour alone": Row(only(BEHAVIOUR_SOURCES)),
    "text alone": Row(only(TEXT_SOURCES)),
    "not learned": Row(RankingSettings(learned=False)),
    "the default": Row(RankingSettings()),
    "without friends": Row(RankingSettings(friends=0.0)),
}

# What each rule of the list, and what is left out under pressure, costs the default.
RULES = {
    "MMR, diversity 0.3": Row(RankingSettings(diversity=0.3), by_place=True),
    "MMR, diversity 0.7": Row(RankingSettings(diversity=0.7), by_place=True),
    "DPP, diversity 0.3": Row(RankingSettings(diversity=0.3, diversity_method="dpp"), by_place=True),
    "DPP, diversity 0.7": Row(RankingSettings(diversity=0.7, diversity_method="dpp"), by_place=True),
    "under pressure, level 3": Row(RankingSettings(), pressure=WITH_FEWER_SOURCES),
}
RULES_OF_CATEGORIES = {
    "calibration 0.5": Row(RankingSettings(calibration=0.5), by_place=True),
    "three of a category": Row(RankingSettings(caps={"categories": 3}), by_place=True),
    "one of a category": Row(RankingSettings(one_per="categories"), by_place=True),
}


class AskedAt:
    """A clock that stands at the time of the fold; durations are real."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return time.perf_counter()


class Snapshot:
    """What the indexing job makes of the catalogue and the training events of one fold; other settings are defaults."""

    def __init__(
        self,
        data: DataSet,
        fold: Fold,
        work: Path,
        threads: int,
        encoder: EncoderSettings,
        behaviour: BehaviourSettings,
    ) -> None:
        self.data, self.clock = data, AskedAt(fold.now_s)
        pq.write_table(data.catalogue, work / "items.parquet")
        pq.write_table(_events(data, fold.train), work / "events.parquet")
        settings = BuildSettings(
            catalog=CatalogSettings(path=str(work / "items.parquet")),
            events=EventsSettings(path=str(work / "events.parquet"), default_kind=data.kind),
            index=IndexSettings(root=str(work / "index"), keep=None),  # each is asked after all were built
            encoder=encoder,
            behaviour=behaviour,
        )
        manifest = build_here(settings)
        self.catalogue = Catalogue(SnapshotStore(settings.index.root).folder(manifest.snapshot_id))
        set_threads(threads)
        self.encoder = LocalEncoder(build_encoder(manifest.encoder, threads))
        self.shards = [Shard(number, files) for number, files in enumerate(self.catalogue.shards)]
        self.index_of = {item_id: index for index, item_id in enumerate(data.item_ids)}

    def vectors(self) -> Vectors:
        """[n_items, dim] float32, L2-normalised; zero for items that are not in the catalogue."""
        found = self.catalogue.find(self.data.item_ids)
        vectors = np.zeros((len(found.row), self.catalogue.manifest.encoder_identity.dim), dtype=np.float32)
        vectors[found.known] = self.catalogue.vectors(found)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=vectors, where=norms > 0)

    def recommender(self, recall: Recall, ranking: RankingSettings, profile: ProfileSettings) -> Recommender:
        k = ServeSettings().candidates_per_source
        lookup = Lookup(self.catalogue, NothingLive())
        ranker = LocalRanker(ranking, self.catalogue.folder)
        return Recommender(lookup, self.encoder.encode, recall, ranker, profile, k, self.clock, ranking)


class GatheredRecall:
    """All shards of a snapshot. Requests that wait together go to a shard as one call, as they do in serving."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._coalescer: Coalescer[RecallQuery, list[Candidates]] = Coalescer(
            self._call, max_batch=BATCH, max_in_flight=1, max_waiting=BATCH
        )

    async def _call(self, queries: list[RecallQuery]) -> Sequence[list[Candidates]]:
        return [list(answers) for answers in zip(*(shard.recall(queries) for shard in self._shards), strict=True)]

    async def recall(self, snapshot_id: str, query: RecallQuery) -> tuple[list[Candidates], list[str]]:
        return await self._coalescer.ask(query), []


class Product:
    """A lister: histories in, lists out, by ``Recommender.recommend``."""

    def __init__(self, snapshot: Snapshot, row: Row, recall: Recall | None = None) -> None:
        self._snapshot = snapshot
        self._by_place, self._request = row.by_place, Request(limit=LIST_LENGTH, pressure=row.pressure)
        self._kind = "view" if row.seen_only else snapshot.data.kind
        self._settings = ProfileSettings(event_weights={}) if row.seen_only else ProfileSettings()
        shards = GatheredRecall(snapshot.shards) if recall is None else recall
        self._recommender = snapshot.recommender(shards, row.ranking, self._settings)

    def __call__(self, histories: Sequences) -> Lists:
        return self.lists(histories, [None] * len(histories))

    def lists(self, histories: Sequences, friends: Sequence[FriendLikes | None]) -> Lists:
        """friends: what the friends of each person like."""
        answers = asyncio.run(self._ask(self._profiles(histories), friends))
        index_of: Mapping[str, int] = self._snapshot.index_of
        rows = [
            (np.array([index_of[item.item_id] for item in answer.items], dtype=np.int64), self._scores(answer))
            for answer in answers
        ]
        return padded(rows, LIST_LENGTH)

    def _scores(self, answer: Answer) -> NDArray[np.float64]:
        return np.array([-item.rank if self._by_place else item.score for item in answer.items], dtype=np.float64)

    async def _ask(self, profiles: Sequence[Profile], friends: Sequence[FriendLikes | None]) -> list[Answer]:
        asked = zip(profiles, friends, strict=True)
        return await asyncio.gather(*(self._recommender.recommend(self._request, *person) for person in asked))

    def _profiles(self, histories: Sequences) -> list[Profile]:
        """The fold of each history, as a running service would have it."""
        bounds = zip(histories.starts[:-1].tolist(), histories.starts[1:].tolist(), strict=True)
        return [fold("", [self._event(histories, at) for at in range(*bound)], self._settings) for bound in bounds]

    def _event(self, histories: Sequences, at: int) -> Event:
        value = float(histories.values[at])
        grade = None if self._kind == "view" or np.isnan(value) else value
        item_id = self._snapshot.data.item_ids[histories.items[at]]
        return Event(f"{at:09d}", self._kind, "", item_id, float(histories.times_s[at]), grade)


class WithFriends:
    """A lister for the people of one fold, who are asked in their order: with what their friends like.

    Friends have liked what they met in the training events, and their latest items count.
    """

    def __init__(self, product: Product, data: DataSet, fold: Fold) -> None:
        self._product, self._at = product, 0
        self.friends = _liked_by_friends(data, fold)

    def __call__(self, histories: Sequences) -> Lists:
        part = slice(self._at, self._at + len(histories))
        self._at += len(histories)
        return self._product.lists(histories, self.friends[part])


def _liked_by_friends(data: DataSet, asked: Fold) -> list[FriendLikes | None]:
    """For each row of the task."""
    settings, train, friends = ProfileSettings(), asked.train, data.friends or []
    bounds = zip(train.starts[:-1].tolist(), train.starts[1:].tolist(), strict=True)
    people = [[_like(data, train, at) for at in range(*bound)] for bound in bounds]
    likes = [likes_of(fold("", events, settings), settings) for events in people]
    users, own = asked.task.users.tolist(), item_keys(data.item_ids)
    of_each = ((likes[friend] for friend in friends[user][:MOST_FRIENDS]) for user in users)
    histories = (own[items] for items in asked.task.histories)
    return [together(likes, liked, asked.now_s) for likes, liked in zip(of_each, histories, strict=True)]


def _like(data: DataSet, train: Sequences, at: int) -> Event:
    return Event(f"{at:09d}", "like", "", data.item_ids[train.items[at]], float(train.times_s[at]))


def _events(data: DataSet, train: Sequences) -> pa.Table:
    """Times are integer milliseconds."""
    columns = {
        "user_id": pa.array(map(str, train.owners.tolist())),
        "item_id": pa.array([data.item_ids[item] for item in train.items.tolist()]),
        "timestamp": pa.array((train.times_s * 1_000).astype(np.int64)),
        "value": pa.array(train.values, from_pandas=True),
    }
    return pa.table(columns)
