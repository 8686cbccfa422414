"""What one gateway serves from: a snapshot, what changed since, and the encoder behind both. Replaced as a whole."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raysys.clock import Clock
from raysys.config import RankingSettings, ServeSettings
from raysys.data.item_entry import ItemEntry
from raysys.errors import ConfigError, Unavailable
from raysys.in_process import LocalRanker
from raysys.index.canary import Canary
from raysys.index.catalogue import Catalogue
from raysys.lookup import Lookup
from raysys.ranking.explore import TimesShown
from raysys.recommender import Encode, Ranker, Recall, Recommender
from raysys.serving.edge import Metrics
from raysys.serving.experiments import Arms, common_caps, interleave, rankings
from raysys.serving.live import LiveItems
from raysys.serving.near_line import NearLine
from raysys.serving.query_cache import QueryCache
from raysys.serving.sides import Side
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


class InUse:
    """Holds the current parts, and those of a canary. A request takes one of both once, and is answered by it alone."""

    def __init__(self) -> None:
        self._current: Current | None = None
        self._canary: tuple[Current, Canary] | None = None
        self.spaces: set[str] = set()  # fingerprints of all encoders that were used since the start

    def now(self) -> Current:
        """The parts of the published snapshot. Raises Unavailable before the first one."""
        if self._current is None:
            raise Unavailable("no snapshot is loaded yet; try again in a moment")
        return self._current

    def all(self) -> tuple[Current, ...]:
        """All parts that requests are answered from, those of the published snapshot first. Raises Unavailable."""
        return (self.now(),) if self._canary is None else (self.now(), self._canary[0])

    @property
    def canary(self) -> Canary | None:
        """The canary that some people are answered from here."""
        return None if self._canary is None else self._canary[1]

    def side_of(self, user: str | None) -> Side | None:
        """The side of this user key; None where there are no two, and for nobody, who is answered as always."""
        if self._canary is None or user is None:
            return None
        return "canary" if self._canary[1].has(user) else "current"

    def on(self, side: Side | None) -> Current:
        """The parts for people of this side."""
        return self._canary[0] if side == "canary" and self._canary is not None else self.now()

    def read_soon(self, texts: Iterable[str]) -> None:
        """Have what people wrote encoded now; before a snapshot is loaded, the first reader asks for it."""
        if self._current is not None:
            for text in filter(None, map(str.strip, texts)):
                for current in self.all():
                    current.texts.submit(text, "query")

    async def replace(self, current: Current) -> None:
        """Use these parts from the next request on."""
        previous, self._current = self._current, current
        self._start(current)
        await _end(previous)

    async def set_canary(self, current: Current, canary: Canary) -> None:
        """Answer the people of the canary from these parts from the next request on."""
        previous, self._canary = self._canary, (current, canary)
        self._start(current)
        await _end(None if previous is None else previous[0])

    def set_share(self, canary: Canary) -> None:
        """The canary with another share."""
        assert self._canary is not None  # noqa: S101  # whoever calls this has set it
        self._canary = (self._canary[0], canary)

    async def promote(self) -> None:
        """Answer everybody from the canary's parts from the next request on."""
        assert self._canary is not None  # noqa: S101  # whoever calls this has set it
        previous, self._current, self._canary = self._current, self._canary[0], None
        await _end(previous)

    async def end_canary(self) -> None:
        """Answer everybody from the current parts from the next request on."""
        previous, self._canary = self._canary, None
        await _end(None if previous is None else previous[0])

    async def stop(self) -> None:
        """End what runs in the background; requests are answered no more."""
        await self.end_canary()
        previous, self._current = self._current, None
        await _end(previous)

    def _start(self, current: Current) -> None:
        self.spaces.add(current.texts.fingerprint)
        current.texts.start()
        current.live.start()


async def _end(previous: Current | None) -> None:
    """Stop what runs behind these parts. Requests that have them are still answered."""
    if previous is not None:
        await previous.live.stop()
        await previous.texts.stop()


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
    queries: QueryCache,
    encode_query: Encode | None = None,
    beside: Sequence[Current] = (),
) -> Current:
    """The parts for one snapshot, caught up with the changes after it. Raises Unavailable, and ConfigError for rules of
    the list, in whatever arm, that do not fit the snapshot.

    encode_query: for the queries of requests; None = as all other texts. What is kept, of items and people, is encoded
    by ``encode`` always. beside: what requests are answered from now. Where that is of other encoders, the items that
    changed after the snapshot are encoded by this one before it is used.
    """
    fingerprint = catalogue.manifest.encoder_identity.fingerprint()
    texts = NearLine(encode, state, fingerprint, clock, metrics.freshness)
    live = LiveItems(state, catalogue, texts, clock, await first_position(state, catalogue.manifest), metrics.freshness)
    await live.catch_up()
    if beside and all(one.texts.fingerprint != fingerprint for one in beside):
        await live.encode_changes()
    recommender = Recommender(
        Lookup(catalogue, live),
        queries.before(encode if encode_query is None else encode_query, fingerprint),
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
