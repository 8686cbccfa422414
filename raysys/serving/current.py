"""What one gateway serves from: a snapshot, what changed since, and the encoder behind both. Replaced as a whole."""

from collections.abc import Iterable
from dataclasses import dataclass

from raysys.clock import Clock
from raysys.config import ServeSettings
from raysys.data.item_entry import ItemEntry
from raysys.errors import Unavailable
from raysys.index.catalogue import Catalogue
from raysys.lookup import Lookup
from raysys.recommender import Encode, Ranker, Recall, Recommender
from raysys.serving.edge import Metrics
from raysys.serving.live import LiveItems
from raysys.serving.near_line import NearLine
from raysys.state.position import first_position
from raysys.state.protocol import StateStore


@dataclass(frozen=True)
class Current:
    """The parts that belong to one snapshot."""

    recommender: Recommender
    live: LiveItems
    texts: NearLine
    entry: ItemEntry

    @property
    def catalogue(self) -> Catalogue:
        return self.recommender.catalogue

    @property
    def lookup(self) -> Lookup:
        return self.recommender.lookup

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
) -> Current:
    """The parts for one snapshot, caught up with the changes after it. Raises Unavailable, and ConfigError for rules of
    the list that do not fit the snapshot."""
    texts = NearLine(encode, state, catalogue.manifest.encoder_identity.fingerprint(), clock, metrics.freshness)
    live = LiveItems(state, catalogue, texts, clock, await first_position(state, catalogue.manifest), metrics.freshness)
    await live.catch_up()
    recommender = Recommender(
        Lookup(catalogue, live),
        encode,
        shards,
        ranker,
        settings.profile,
        settings.candidates_per_source,
        clock,
        settings.ranking,
    )
    return Current(recommender, live, texts, ItemEntry(catalogue.manifest.item_rules, catalogue.schema))
