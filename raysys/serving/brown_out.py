"""How much of each list is left out while it gets late, so that fewer are sent away: a level from 0 to 3.

It follows the pressure: how long one who comes in now is expected to be in, over how long may be waited
(``serving.admission``); at 1 people are sent away. What each level leaves out is in ``raysys.pressure``.
"""

from bisect import bisect_right
from contextvars import ContextVar

from raysys.clock import Clock

FROM = (0.5, 0.65, 0.8)  # the pressure from which each level is: all of them are before anybody is sent away
BACK = 0.7  # of that: a level ends below it, as to leave something out lowers the pressure by itself
CALM_S = 2.0  # and only after so long below it, one level at a time

LEVEL: ContextVar[int] = ContextVar("brown_out_level", default=0)  # of the request that is being answered


class BrownOut:
    """For one event loop. Up at once, as a queue grows quickly; down slowly."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._level, self._calm_from_s = clock, 0, 0.0

    @property
    def is_last(self) -> bool:
        """Whether no more can be left out."""
        return self._level == len(FROM)

    def level(self, pressure: float) -> int:
        """The level at this pressure, which is looked at here and nowhere else."""
        wanted = bisect_right(FROM, pressure)
        if wanted > self._level:
            self._level, self._calm_from_s = wanted, self._clock.monotonic_s()
        elif self._level:
            self._go_down(pressure)
        return self._level

    def _go_down(self, pressure: float) -> None:
        """One level for each CALM_S since the pressure was last too high for the level below; nobody asked in between
        where nobody looked."""
        now_s = self._clock.monotonic_s()
        while self._level and pressure < BACK * FROM[self._level - 1]:
            if now_s - self._calm_from_s < CALM_S:
                return
            self._level -= 1
            self._calm_from_s += CALM_S
        self._calm_from_s = now_s
