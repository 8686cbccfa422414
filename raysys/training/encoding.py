"""The encode stage while it runs: how fast it may be, how fast it is, what it will cost, and when it must stop."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from raysys.clock import Clock, SystemClock
from raysys.config import WorkerSettings
from raysys.errors import OverBudget
from raysys.training.prices import Unit, usd_per_million

# From here on what was encoded says enough about the rest.
FIRST_LOOK_S, FIRST_LOOK_SHARE = 30.0, 0.1
MIN_TEXTS_FOR_SPEED = 1_000  # with fewer, a speed would only tell of the start-up


class Turns:
    """One file at a time for an encoder that several threads share, no sooner than ``texts_per_s`` allows.

    texts_per_s: None = any. It holds over files: in any span of time at most the texts of one file more are begun.
    """

    def __init__(
        self, texts_per_s: float | None = None, clock: Clock | None = None, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._texts_per_s, self._wait = texts_per_s, wait
        self._clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._next_s = float("-inf")  # when the next file may begin

    @contextmanager
    def __call__(self, n_texts: int) -> Iterator[None]:
        """Wait for the turn of a file of so many texts, and keep it for the length of a ``with`` block."""
        with self._lock:
            if self._texts_per_s is not None:
                self._pace(n_texts / self._texts_per_s)
            yield

    def _pace(self, file_s: float) -> None:
        early_s = self._next_s - self._clock.monotonic_s()
        if early_s > 0:
            self._wait(early_s)
        self._next_s = max(self._next_s, self._clock.monotonic_s()) + file_s


class Encoding:
    """How far the encode stage is, told by the counts of each file as they come in.

    todo: texts in all. encoders: workers that encode side by side. spent_s: seconds of the build before this stage.
    """

    def __init__(self, todo: int, encoders: int, workers: WorkerSettings, spent_s: float, clock: Clock) -> None:
        self._todo, self._encoders, self._workers = todo, encoders, workers
        self._spent_s, self._clock = spent_s, clock
        self._start_s = self._now_s = clock.monotonic_s()
        self._first_s: float | None = None  # when the first worker began its first file
        self._files, self._texts, self._busy_s = 0, 0, 0.0

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add a file that was encoded: what ``items.encode_file`` returns.

        Raises OverBudget where the settings have a ``max_cost``: when it is reached, or when it would be.
        """
        self._now_s = self._clock.monotonic_s()
        self._files += 1
        self._texts += counts["texts"]
        self._busy_s += counts["seconds"]
        self._begun(counts["begun_s"], counts["seconds"])
        self._check_cost()

    def _begun(self, at_s: float, seconds: float) -> None:
        """By the worker's own clock, as its counts may be long on their way; whatever that clock says, not before the
        stage, and ``seconds`` before now at the latest."""
        begun_s = min(self._now_s - seconds, self._now_s - (self._clock.now_s() - at_s))
        earliest_s = begun_s if self._first_s is None else min(begun_s, self._first_s)
        self._first_s = max(earliest_s, self._start_s)

    @property
    def is_done(self) -> bool:
        return self._texts >= self._todo

    @property
    def start_up_s(self) -> float:
        """From the beginning of the stage to the first text: workers start, models load."""
        return 0.0 if self._first_s is None else self._first_s - self._start_s

    @property
    def steady_s(self) -> float:
        """From the first text on."""
        return 0.0 if self._first_s is None else self._now_s - self._first_s

    def left_s(self) -> float:
        """Seconds until the last text, if it goes on like this."""
        return max(self._todo - self._texts, 0) / self._speed()

    def _speed(self) -> float:
        """Texts per second of all workers. Until each has brought two files, by how fast one is: most of what they have
        in hand is not counted yet."""
        if self._files >= 2 * self._encoders:
            speed = self._texts / max(self.steady_s, 1e-9)
        else:
            speed = self._encoders * self._texts / max(self._busy_s, 1e-9)
        limit = self._workers.limit_rate
        return speed if limit is None else min(speed, limit)

    def cost_usd(self, left_s: float = 0.0) -> float | None:
        """What the build has cost up to now, or will have in ``left_s``; None without a price."""
        price = self._workers.usd_per_hour
        return None if price is None else price * (self._spent_s + self._now_s - self._start_s + left_s) / 3600

    def _check_cost(self) -> None:
        limit, now, end = self._workers.max_cost, self.cost_usd(), self.cost_usd(self.left_s())
        if limit is None or now is None or end is None or self.is_done:
            return
        enough = self.steady_s >= FIRST_LOOK_S or self._texts >= FIRST_LOOK_SHARE * self._todo
        if now >= limit:
            raise OverBudget(f"the build has cost ${now:.2f} by now, and max_cost is ${limit:.2f}; {self._kept(end)}")
        if enough and end > limit:
            raise OverBudget(
                f"up to the last text the build would cost about ${end:.2f}, and max_cost is ${limit:.2f}; "
                f"{self._kept(end)}"
            )

    def _kept(self, end_usd: float) -> str:
        return (
            f"stopped after {self._texts:,} of {self._todo:,} texts, which are kept: the next run goes on from there. "
            f"All machines together cost ${self._workers.usd_per_hour:.2f} an hour by workers.usd_per_hour; "
            f"to encode every text in one run, allow --max-cost {end_usd * 1.1:.2f} (workers.max_cost)"
        )

    def text(self) -> str:
        """A line for people."""
        elapsed = f"encoded {self._texts:,} of {self._todo:,} texts in {duration(self._now_s - self._start_s)}"
        if self.is_done or not self._texts:
            return f"{elapsed}, start-up included"
        left_s = self.left_s()
        end = self.cost_usd(left_s)
        cost = "" if end is None else f"; ${self.cost_usd():.2f} up to now, about ${end:.2f} then"
        return f"{elapsed}, start-up included; about {duration(left_s)} to go{cost}"

    def figures(self) -> dict[str, Any]:
        """The cost of the stage, for the report."""
        per_encoder = self._workers.gpus_per_encoder
        unit: Unit = "accelerator" if per_encoder > 0 else "core"
        held_s = self.steady_s * self._encoders * (per_encoder if per_encoder > 0 else 1)
        known = self._texts >= MIN_TEXTS_FOR_SPEED and held_s > 0
        per_unit_s = self._texts / held_s if known else None
        return {
            "encoders": self._encoders,
            "start_up_s": round(self.start_up_s, 3),
            "steady_s": round(self.steady_s, 3),
            "busy_share": round(self._busy_s / (self.steady_s * self._encoders), 3) if held_s > 0 else None,
            "texts_per_s": round(self._texts / self.steady_s, 1) if known else None,
            "unit": unit,
            "texts_per_unit_s": None if per_unit_s is None else round(per_unit_s, 2),
            "usd_per_million_texts": {} if per_unit_s is None else usd_per_million(per_unit_s, unit, self._workers),
            "usd_up_to_here": self.cost_usd(),
        }


def duration(seconds: float) -> str:
    """In the unit that people would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"
