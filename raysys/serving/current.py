"""What one gateway serves from: a snapshot, what changed since, and the encoder behind both. Replaced as a whole."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raysys.clock import Clock
from raysys.config import RankingSettings, ServeSettings
from raysys.data.item_entry import ItemEntry
from raysys.errors import ConfigError, Unavailable
from raysys.in_process import LocalRanker
from raysys.index.catalogue import Catalogue
from raysys.lookup import Lookup
from raysys.ranking.explore import TimesShown
from raysys.recommender import Encode, Ranker, Recall, Recommender
from raysys.serving.edge import Metrics
from raysys.serving.experiments import Arms, common_caps, interleave, rankings
from raysys.serving.live import LiveItems
from raysys.serving.near_line import NearLine
from raysys.serving.query_cache import QueryCache
from raysys.state.position import first_position
from raysys.state.protocol import StateStore
from raysys.types import SOURCES, Answer, FriendLikes, Profile, Request


@dataclass(frozen=True)
class Current:
    """The parts that belong to one snapshot.

    by_arms: what makes the lists of people in these arms, two where a list is made of two.
    """

    recommender: Recommender
    by_arms: Mapping[Arms, tuple[Recommender, ...]]
    live: LiveItems
    texts: NearLine
    entry: ItemEntry

    @property
    def catalogue(self) -> Catalogue:
        return self.recommender.catalogue

    @property
    def lookup(self) -> Lookup:
        return self.recommender.lookup

    def check(self, request: Request, arms: Arms) -> None:
        """As ``Recommender.check``, for somebody in these arms."""
        for one in self.by_arms[arms]:
            one.check(request)

    async def recommend(self, request: Request, profile: Profile, friends: FriendLikes | None, arms: Arms) -> Answer:
        """The list of somebody in these arms."""
        recommenders = self.by_arms[arms]
        if len(recommenders) == 1:
            return await recommenders[0].recommend(request, profile, friends)
        plain = replace(request, explore=False)  # a draw for new items would have no team
        first, second = await asyncio.gather(*(one.recommend(plain, profile, friends) for one in recommenders))
        return interleave(first, second, plain, common_caps(*(one.caps(plain) for one in recommenders)))

    async def stop(self) -> None:
        await self.live.stop()
        await self.texts.stop()


class InUse:
    """Holds the current parts. A request takes them once, so that it is answered by one snapshot."""

    def __init__(self) -> None:
        self._current: Current | None = None

    def now(self) -> Current:
        """Raises Unavailable before the first snapshot."""
        if self._current is None:
            raise Unavailable("no snapshot is loaded yet; try again in a moment")
        return self._current

    def read_soon(self, texts: Iterable[str]) -> None:
        """Have what people wrote encoded now; before a snapshot is loaded, the first reader asks for it."""
        if self._current is not None:
            for text in filter(None, map(str.strip, texts)):
                self._current.texts.submit(text, "query")

    async def replace(self, current: Current) -> None:
        """Use these parts from the next request on."""
        previous, self._current = self._current, current
        current.texts.start()
        current.live.start()
        if previous is not None:
            await previous.stop()

    async def stop(self) -> None:
        """End what runs in the background; requests are answered no more."""
        previous, self._current = self._current, None
        if previous is not None:
            await previous.stop()


async def open_current(
    catalogue: Catalogue,
    encode: Encode,
    shards: Recall,
    ranker: Ranker,
    settings: ServeSettings,
    state: StateStore,
    metrics: Metrics,
    clock: Clock,
    times_shown: TimesShown,
    encode_query: Encode | None = None,
) -> Current:
    """The parts for one snapshot, caught up with the changes after it. Raises Unavailable, and ConfigError for rules of
    the list, in whatever arm, that do not fit the snapshot.

    encode_query: for the queries of requests; None = as all other texts. What is kept, of items and people, is encoded
    by ``encode`` always.
    """
    texts = NearLine(encode, state, catalogue.manifest.encoder_identity.fingerprint(), clock, metrics.freshness)
    live = LiveItems(state, catalogue, texts, clock, await first_position(state, catalogue.manifest), metrics.freshness)
    await live.catch_up()
    size, encode_query = settings.cached_queries, encode if encode_query is None else encode_query
    recommender = Recommender(
        Lookup(catalogue, live),
        QueryCache(encode_query, size, metrics.query_vectors).encode if size else encode_query,
        shards,
        ranker,
        settings.profile,
        settings.candidates_per_source,
        clock,
        settings.ranking,
        times_shown,
        settings.student,
    )
    by_arms = {
        arms: _of_arms(arms, recommender, of_lists, settings.ranking, ranker)
        for arms, of_lists in rankings(settings.experiments, settings.ranking).items()
    }
    return Current(recommender, by_arms, live, texts, ItemEntry(catalogue.manifest.item_rules, catalogue.schema))


def _of_arms(
    arms: Arms, base: Recommender, of_lists: Sequence[RankingSettings], of_base: RankingSettings, ranker: Ranker
) -> tuple[Recommender, ...]:
    try:
        return tuple(_ranked_by(base, ranking, of_base, ranker) for ranking in of_lists)
    except ConfigError as error:
        raise ConfigError(f"experiments, for people in {' and '.join(arms)}: {error}") from error


def _ranked_by(base: Recommender, ranking: RankingSettings, of_base: RankingSettings, ranker: Ranker) -> Recommender:
    """The path for an arm. The rankers of the tier rank by ``of_base``; others do right here. Weights of an arm's own
    count as they are, without what the snapshot has learned."""
    if ranking == of_base:
        return base
    same_weights = all(getattr(ranking, name) == getattr(of_base, name) for name in SOURCES)
    if same_weights and ranking.learned == of_base.learned:
        return base.ranked_by(ranking, ranker)
    return base.ranked_by(ranking, LocalRanker(ranking, base.catalogue.folder if same_weights else None))
