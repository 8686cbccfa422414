"""Where the time of a request went: its stages, and the calls to tiers in them.

A tier says of each question how it was answered (``record``). Which request that was for is known from the context of
the asker, so the protocols of the stages have nothing to do with it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from raysys.clock import Clock

PARTED = {  # stages that ask one tier once, and the names of their parts; ``explain`` asks many times
    stage: (f"{stage}.queue", f"{stage}.compute", f"{stage}.network") for stage in ("encode", "recall", "rank")
}


class Call(NamedTuple):
    """How a tier answered one question. Times are seconds of this process's ``monotonic_s``.

    sent_s: when the batch with the question went out. waited_s, compute_s: of the batch, in the replica, until it was
    begun and from then on. batch_size: questions in it. is_remote: whether it went to another process.
    """

    tier: str
    asked_s: float
    sent_s: float
    answered_s: float
    waited_s: float
    compute_s: float
    batch_size: int = 1
    is_remote: bool = False

    @property
    def queue_s(self) -> float:
        """Here, until others had been served, and in the replica, until it was free."""
        return self.sent_s - self.asked_s + self.waited_s

    @property
    def network_s(self) -> float:
        """All that was neither waiting nor computing: serialisation, both ways, turns of the event loops."""
        return max(self.answered_s - self.sent_s - self.waited_s - self.compute_s, 0.0)


class Stage(NamedTuple):
    """One stage of a request, and the calls that tiers answered in it."""

    name: str
    start_s: float
    end_s: float
    calls: Sequence[Call]


@dataclass
class Watched:
    """What became of a request that somebody watches."""

    traces: list["Trace"] = field(default_factory=list)
    snapshot_id: str | None = None
    degraded: Sequence[str] = ()


_asking: ContextVar["Trace | None"] = ContextVar("asking", default=None)
_watched: ContextVar[Watched | None] = ContextVar("watched", default=None)


class Trace:
    """Milliseconds spent in each stage of one request, and what did not answer.

    is_request: False for what is only tried out within another request, or without one.
    """

    def __init__(self, clock: Clock, is_request: bool = True) -> None:
        self._clock, self._start = clock, clock.monotonic_s()
        self._last = self._start
        self._calls: list[Call] = []
        self.timings_ms: dict[str, float] = {}
        self.stages: list[Stage] = []
        self.degraded: list[str] = []
        if is_request:
            _asking.set(self)
            watched = _watched.get()
            if watched is not None:
                watched.traces.append(self)

    def mark(self, stage: str) -> None:
        """What was done since the last mark was this stage. Of its calls, the one that it waited for last has parts."""
        now = self._clock.monotonic_s()
        calls, self._calls = self._calls, []
        self.timings_ms[stage] = round((now - self._last) * 1e3, 3)
        if stage not in PARTED:
            calls = []
        if calls:
            self._add_parts(PARTED[stage], max(calls, key=lambda call: call.answered_s))
        self.stages.append(Stage(stage, self._last, now, calls))
        self._last = now

    def _add_parts(self, names: tuple[str, str, str], call: Call) -> None:
        queue, compute, network = names
        self.timings_ms[queue] = round(call.queue_s * 1e3, 3)
        self.timings_ms[compute] = round(call.compute_s * 1e3, 3)
        if call.is_remote:
            self.timings_ms[network] = round(call.network_s * 1e3, 3)

    def add(self, call: Call) -> None:
        """A tier has answered for this request."""
        self._calls.append(call)

    def finish(self) -> dict[str, float]:
        _asking.set(None)
        self.timings_ms["total"] = round((self._clock.monotonic_s() - self._start) * 1e3, 3)
        return self.timings_ms


def record(call: Call) -> None:
    """Say how a question was answered to the request that it was asked for; without one, nothing happens."""
    trace = _asking.get()
    if trace is not None:
        trace.add(call)


@contextmanager
def watching() -> Iterator[Watched]:
    """Collect what becomes of the request that is answered within."""
    watched = Watched()
    token = _watched.set(watched)
    try:
        yield watched
    finally:
        _watched.reset(token)


def note(snapshot_id: str, degraded: Sequence[str]) -> None:
    """Say from what a request was answered, and without which parts, to those who watch it."""
    watched = _watched.get()
    if watched is not None:
        watched.snapshot_id, watched.degraded = snapshot_id, degraded
