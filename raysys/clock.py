"""Time as a parameter: UTC epoch seconds, and durations from a clock that never goes back."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from. Tests pass their own."""

    def now_s(self) -> float:
        """UTC epoch seconds."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never decreases."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.perf_counter()
