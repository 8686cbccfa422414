"""Which items may be shown at what time: hidden ones never, others within their window."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


class Availability:
    """The rows of one item table that may be shown. ``items`` has hidden, available_from and available_until."""

    def __init__(self, items: pa.Table) -> None:
        self._items = items
        self._held_period: tuple[int, Mask] | None = None

    def mask(self, now_s: float) -> Mask | None:
        """[n] bool, what may be shown at this time; None = everything. The same object until a window opens or
        closes."""
        if self._window_s is None:
            return self._always
        begin, end = self._window_s
        period = int(np.searchsorted(self._turns_s, now_s, side="right"))
        held = self._held_period
        if held is None or held[0] != period:
            within = (begin <= now_s) & (now_s < end)
            held = (period, within if self._always is None else within & self._always)
            self._held_period = held
        return held[1]

    @cached_property
    def _always(self) -> Mask | None:
        """Rows that are not hidden; None when none is."""
        hidden = pc.fill_null(self._items["hidden"], False).to_numpy()
        return ~hidden if hidden.any() else None

    @cached_property
    def _window_s(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """From when until when each row is available, epoch seconds; None when all always are."""
        columns = [self._items[name] for name in ("available_from", "available_until")]
        if all(column.null_count == len(column) for column in columns):
            return None
        return epoch_s(columns[0], -np.inf), epoch_s(columns[1], np.inf)

    @cached_property
    def _turns_s(self) -> NDArray[np.float64]:
        """The times at which a window opens or closes, sorted."""
        assert self._window_s is not None  # noqa: S101  # asked for only then
        turns: NDArray[np.float64] = np.unique(np.concatenate(self._window_s))
        return turns


def epoch_s(column: pa.ChunkedArray, missing: float) -> NDArray[np.float64]:
    """[n] float64: the times of a column in epoch seconds, ``missing`` where there is none."""
    microseconds = pc.cast(column, pa.timestamp("us", "UTC")).cast(pa.int64()).cast(pa.float64(), safe=False)
    seconds: NDArray[np.float64] = pc.fill_null(pc.divide(microseconds, 1e6), missing).to_numpy()
    return seconds
