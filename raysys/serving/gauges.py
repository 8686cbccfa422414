"""What /metrics reads of a gateway when somebody asks for it, so that it costs the requests nothing."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from raysys.clock import Clock
from raysys.errors import Unavailable
from raysys.serving.admission import Admission
from raysys.serving.current import Current, InUse


class Gauges(Collector):
    """Who is in, where lists come from, and what is served from; the last only where there is a snapshot."""

    def __init__(self, admission: Admission, in_use: InUse, clock: Clock, first_sources: Mapping[str, int]) -> None:
        """first_sources: how many lists had a first item that this source found."""
        self._admission, self._in_use, self._clock = admission, in_use, clock
        self._first_sources = first_sources

    def collect(self) -> Iterator[Metric]:
        yield self._of_lists()
        n_in, wait_s = self._admission.now()
        yield GaugeMetricFamily("raysys_requests_in_progress", "Requests for lists that were let in", n_in)
        yield GaugeMetricFamily(
            "raysys_expected_wait_seconds",
            "How long a request for a list that comes in now is expected to be in",
            wait_s,
        )
        yield GaugeMetricFamily(
            "raysys_brown_out_level", "How much is left out of lists: 0 nothing, 3 the most", self._admission.level()
        )
        canary = self._in_use.canary
        yield GaugeMetricFamily(
            "raysys_canary_share",
            "Share of the people who are answered from another snapshot; 0 = there is no canary",
            0.0 if canary is None else canary.share,
        )
        name = "" if canary is None else canary.snapshot_id
        yield InfoMetricFamily("raysys_canary", "The canary; no name = there is none", {"snapshot_id": name})
        try:
            yield from self._of_snapshot(self._in_use.now())
        except Unavailable:
            return

    def _of_lists(self) -> Metric:
        family = CounterMetricFamily(
            "raysys_first_item_sources", "Lists whose first item this source found", labels=["source"]
        )
        for source, n_lists in self._first_sources.items():
            family.add_metric([source], n_lists)
        return family

    def _of_snapshot(self, current: Current) -> Iterator[Metric]:
        manifest = current.catalogue.manifest
        age_s = self._clock.now_s() - datetime.fromisoformat(manifest.created_at).timestamp()
        yield InfoMetricFamily("raysys_snapshot", "The snapshot in use", {"snapshot_id": current.catalogue.snapshot_id})
        yield GaugeMetricFamily("raysys_snapshot_age_seconds", "Since the snapshot in use was made", age_s)
        yield GaugeMetricFamily(
            "raysys_texts_waiting", "Texts of people and items that wait to be encoded", current.texts.n_waiting
        )
        yield GaugeMetricFamily(
            "raysys_change_log_lag_seconds",
            "Since the log of item changes was last read to its end: no older change is missing here",
            current.live.lag_s(),
        )
        yield GaugeMetricFamily(
            "raysys_change_log_position", "Sequence of the last item change taken in", current.live.position
        )
