"""What people are given while a canary runs, counted apart for those on either side."""

from collections.abc import Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

Side = Literal["current", "canary"]

SIDES: tuple[Side, ...] = ("current", "canary")
BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class SideMetrics:
    """Counts lists of people, while there is a canary: requests that name nobody are on no side and not in here.

    The label ``snapshot`` is the side. What people did after a list counts for the side that they are on now.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, f"{text}, while a canary runs", ["snapshot"], registry=registry)

        self._lists = counter("raysys_side_lists", "Lists that were given to people of this side")
        self._failed = counter("raysys_side_failures", "Lists that could not be given")
        self._empty = counter("raysys_side_empty", "Lists without an item")
        self._degraded = counter("raysys_side_degraded", "Lists given without a part")
        self._followed = counter("raysys_side_events", "Events that name a list")
        self._took_s = Histogram(
            "raysys_side_seconds",
            "Time to a list, while a canary runs",
            ["snapshot"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        for side in SIDES:  # from 0 on, so that the first one is seen as a rise
            for metric in (self._lists, self._failed, self._empty, self._degraded, self._followed, self._took_s):
                metric.labels(side)

    def answered(self, side: Side, took_s: float, is_empty: bool, is_degraded: bool) -> None:
        """Count a list."""
        self._lists.labels(side).inc()
        self._took_s.labels(side).observe(took_s)
        self._empty.labels(side).inc(is_empty)
        self._degraded.labels(side).inc(is_degraded)

    def failed(self, side: Side) -> None:
        """Count a list that could not be given."""
        self._failed.labels(side).inc()

    def followed(self, sides: Iterable[Side]) -> None:
        """Count events that name a list, by the sides of those who did that."""
        for side in sides:
            self._followed.labels(side).inc()
