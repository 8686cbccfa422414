"""Who comes in while there is more to do than can be done in time.

A queue only makes everybody late. So a request is let in while those who are in can be expected to be answered within
the patience, by Little's law: as many as are in, over how many are answered a second. The others are told when to come
back, which costs next to nothing, and those that are given answers get them as fast as the machine can. Who asks again
at once, whatever they were told, could still take all of the core with being sent away; so that has a pace. Before
anybody is sent away, lists go without what can be done without (``serving.brown_out``).
"""

import math

from raysys.clock import Clock
from raysys.errors import Overloaded
from raysys.serving.brown_out import BrownOut

PATIENCE = 0.25  # of the deadline: requests also wait where nobody counts them, in sockets and in the event loop
# A gateway is taken to answer so many at least: what that is within the deadline is no queue. Answers also take long
# where a part is awaited that was lost, or processes start on the same cores, though there is little to do.
LEAST_PER_S = 16.0
WHOLE_LISTS = 8  # so few are no pressure, and of so few answers lately nobody knows how long the next will take
MEMORY_S = 2.0  # by which the past fades
SENT_AWAY_PER_S = 400.0  # a tenth of a core or so
LONGEST_HOLD_S = 1.0


class Admission:
    """For one event loop. ``deadline_s``: from when on an answer is of no use. brown_out: None = lists are whole."""

    def __init__(self, deadline_s: float, clock: Clock, brown_out: BrownOut | None = None) -> None:
        self.deadline_s, self.patience_s = deadline_s, deadline_s * PATIENCE
        self._clock, self._brown_out = clock, brown_out
        self.always_in = math.ceil(deadline_s * LEAST_PER_S)
        self._n_in, self._at_s = 0, clock.monotonic_s()
        self._in_since_s = self._at_s  # from when on there was somebody
        self._answered, self._busy_s = 0.0, 0.0  # lately: how many, in how many seconds with somebody in
        self._away_at_s = self._at_s  # when the next one may be sent away

    def enter(self) -> int:
        """Take a place, which ``leave`` gives back. Returns the level of the brown-out at which to answer.

        Raises Overloaded, with the time after which there may be room.
        """
        self._fade()
        wait_s = self.expected_s()
        self._refuse_if_late(wait_s)
        level = self._level(wait_s)
        self._in_since_s = self._in_since_s if self._n_in else self._at_s
        self._n_in += 1
        return level

    def check(self) -> None:
        """Raise what ``enter`` would raise now, to whom has not sent the body yet."""
        if self._n_in >= self.always_in:
            self._fade()
            self._refuse_if_late(self.expected_s())

    def leave(self) -> None:
        """A request was answered, or is not wanted any more."""
        self._fade()
        self._n_in -= 1
        self._answered += 1

    def hold_s(self) -> float:
        """How long to keep the answer to one who is sent away: not at all while there are few of them."""
        now_s = self._clock.monotonic_s()
        hold_s = min(max(self._away_at_s - now_s, 0.0), LONGEST_HOLD_S)
        self._away_at_s = now_s + hold_s + 1 / SENT_AWAY_PER_S
        return hold_s

    def now(self) -> tuple[int, float]:
        """How many are in, and how long one who comes in now is expected to be."""
        self._fade()
        return self._n_in, self.expected_s()

    def level(self) -> int:
        """The level of the brown-out now."""
        self._fade()
        return self._level(self.expected_s())

    def expected_s(self) -> float:
        """How long one who comes in now is expected to be in.

        Before anybody was answered, for how long somebody has waited: those who came while a gateway was started come
        all at once then, and can be answered.
        """
        if self._n_in == 0:
            return 0.0
        return self._n_in * self._busy_s / self._answered if self._answered else self._at_s - self._in_since_s

    def _is_late(self, wait_s: float) -> bool:
        return self._n_in >= self.always_in and wait_s > self.patience_s

    def _refuse_if_late(self, wait_s: float) -> None:
        """Nobody is sent away before somebody had a list without all that it can do without."""
        if not self._is_late(wait_s) or not (self._brown_out is None or self._brown_out.is_last):
            return
        self._level(wait_s)
        back_s = max(wait_s - self.patience_s, 1.0)
        raise Overloaded(f"{self._n_in} requests are being answered, and one more would be late", back_s)

    def _level(self, wait_s: float) -> int:
        if self._brown_out is None:
            return 0
        if self._is_late(wait_s):
            return self._brown_out.level(math.inf)
        if self._answered < WHOLE_LISTS:  # the first after a pause, or nothing is answered: for how long is known
            wait_s = self._busy_s
        return self._brown_out.level(wait_s / self.patience_s if self._n_in >= WHOLE_LISTS else 0.0)

    def _fade(self) -> None:
        now_s = self._clock.monotonic_s()
        keep = math.exp((self._at_s - now_s) / MEMORY_S)
        self._answered *= keep
        self._busy_s = self._busy_s * keep + (MEMORY_S * (1 - keep) if self._n_in else 0.0)
        self._at_s = now_s
