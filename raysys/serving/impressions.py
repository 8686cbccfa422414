"""The impression log: what was shown to whom, written beside the requests. ``data/impressions.py`` has the files.

A request only puts its finished answer into a queue, just before the response goes out; one background thread makes
rows and files of it. An impression is not an acknowledged write: a kill -9 loses those that no file holds yet, which
are at most those of the last ``seconds_per_file``. A full queue or a disk that cannot be written to costs
impressions, which are counted, and never a request.
"""

import itertools
import logging
import math
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from raysys.clock import Clock
from raysys.config import ImpressionSettings
from raysys.data.impressions import IMPRESSION_SCHEMA, SOURCE_SCORES, ImpressionFolder
from raysys.types import Answer

Route = Literal["recommendations", "rank", "similar", "search"]

TICK_S = 0.2
STEP_ROWS = 200  # made into columns in one go: the interpreter is the requests' too
STEP_PAUSE_S = 0.001
CLOSE_DEADLINE_S = 10.0
HOUSEKEEPING_S = 3_600.0
COMPLAIN_EVERY_S = 60.0
DAY_S = 86_400

log = logging.getLogger(__name__)


class _Shown(NamedTuple):
    timestamp_s: float
    recommendation_id: str
    route: Route
    user: str | None
    degraded: Sequence[str]
    answer: Answer


class ImpressionLog:
    """Keeps every answer that was given. Any number of logs, in any number of processes, may share one folder.

    on_dropped: called with the number of rows lost, from any thread.
    """

    def __init__(
        self, folder: str | Path, settings: ImpressionSettings, clock: Clock, on_dropped: Callable[[int], None]
    ) -> None:
        self._files, self._settings = ImpressionFolder(folder), settings
        self._clock, self._on_dropped = clock, on_dropped
        self._writer, self._numbers = f"{os.getpid()}-{secrets.token_hex(4)}", itertools.count(1)
        self._queue: deque[_Shown] = deque()
        self._queued_rows = 0
        self._gate = threading.Lock()  # over the queue: held for an instant
        self._batches: list[pa.RecordBatch] = []
        self._day, self._opened_s = 0, 0.0  # of the first batch
        self._writing = threading.Lock()  # over the batches: held while a file is written
        self._housekept_s, self._complained_s = -math.inf, -math.inf
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._thread.start()

    def add(
        self, recommendation_id: str, route: Route, user: str | None, answer: Answer, degraded: Sequence[str]
    ) -> None:
        """Keep an answer that is on its way; ``degraded``: every part that it was given without. Never raises."""
        n_rows = len(answer.items)
        if not n_rows:
            return
        shown = _Shown(self._clock.now_s(), recommendation_id, route, user, degraded, answer)
        with self._gate:
            fits = self._queued_rows + n_rows <= self._settings.max_waiting_rows and not self._closing.is_set()
            if fits:
                self._queue.append(shown)
                self._queued_rows += n_rows
        if not fits:
            self._on_dropped(n_rows)

    def flush(self) -> None:
        """Write what waits, now. Blocking. What cannot be written is dropped and counted."""
        with self._writing:
            self._take_in()
            self._write()

    def rows_of(self, *users: str) -> pa.Table:
        """Every row of these user keys, oldest first, those that waited here included. Blocking.

        What other processes have not written yet is not there. Raises Unavailable when a file cannot be read now.
        """
        self.flush()
        return self._files.rows_of(*users)

    def erase(self, *users: str) -> int:
        """Remove every row of these user keys: one person's own and those of their sessions. Blocking.

        Returns how many rows were removed from files; what other processes still hold never gets into one. Raises
        Unavailable when a file cannot be rewritten now: every other one is done, and it is safe to call again.
        """
        self.flush()
        return self._files.erase(users, self._clock.now_s())

    def close(self) -> None:
        """Write what waits and end the thread. Later impressions are dropped; closing twice is harmless. Blocking."""
        with self._gate:
            self._closing.set()
        self._thread.join(CLOSE_DEADLINE_S)

    def _run(self) -> None:
        while not self._closing.wait(TICK_S):
            self._guarded(self._tick)
        self._guarded(self.flush)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, the next answers shall be logged
            self._complain(error)

    def _tick(self) -> None:
        with self._writing:
            self._take_in()
            if self._batches and self._clock.monotonic_s() - self._opened_s >= self._settings.seconds_per_file:
                self._write()
            if self._clock.monotonic_s() - self._housekept_s >= HOUSEKEEPING_S:
                self._housekept_s = self._clock.monotonic_s()
                now_s = self._clock.now_s()
                self._files.remove_before(_date(now_s) - timedelta(days=self._settings.keep_days), now_s)

    def _take_in(self) -> None:
        """Make the queue into batches of columns, a few answers at a time, and files of those that are full."""
        while step := self._next_step():
            day = int(step[0].timestamp_s // DAY_S)
            if day != self._day:
                self._write()
            if not self._batches:
                self._day, self._opened_s = day, self._clock.monotonic_s()
            try:
                self._batches.append(_to_batch(step))
            except (TypeError, ValueError) as error:  # what Arrow says of a value that fits no column
                self._lose(sum(len(shown.answer.items) for shown in step), error)
            if sum(len(batch) for batch in self._batches) >= self._settings.rows_per_file:
                self._write()
            self._closing.wait(STEP_PAUSE_S)

    def _next_step(self) -> list[_Shown]:
        """The first answers of the queue, of one day."""
        step: list[_Shown] = []
        n_rows = 0
        with self._gate:
            while self._queue and n_rows < min(STEP_ROWS, self._settings.rows_per_file):
                if step and self._queue[0].timestamp_s // DAY_S != step[0].timestamp_s // DAY_S:
                    break
                step.append(self._queue.popleft())
                n_rows += len(step[-1].answer.items)
            self._queued_rows -= n_rows
        return step

    def _write(self) -> None:
        """Make a file of the batches. Where it cannot be written they are dropped: waiting would only fill memory."""
        batches, self._batches = self._batches, []
        if not batches:
            return
        rows = pa.Table.from_batches(batches)
        time = datetime.fromtimestamp(self._clock.now_s(), UTC).strftime("%Y%m%dT%H%M%S")
        try:
            self._files.write(rows, _date(self._day * DAY_S), f"{time}-{self._writer}-{next(self._numbers):06d}")
        except (OSError, pa.ArrowException) as error:
            self._lose(len(rows), error)

    def _lose(self, n_rows: int, error: Exception) -> None:
        self._on_dropped(n_rows)
        self._complain(error)

    def _complain(self, error: Exception) -> None:
        if self._clock.monotonic_s() - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = self._clock.monotonic_s()
            # What Arrow says may quote a value; what the system says names a path.
            why = str(error) if isinstance(error, OSError) else type(error).__name__
            log.error("the impression log fails, serving goes on: %s", why, exc_info=error)


def _date(timestamp_s: float) -> date:
    return datetime.fromtimestamp(timestamp_s, UTC).date()


def _to_batch(answers: Sequence[_Shown]) -> pa.RecordBatch:
    """One row an item shown, of ``IMPRESSION_SCHEMA``."""
    items = [item for shown in answers for item in shown.answer.items]
    columns: dict[str, Any] = {
        **_of_answers(answers),
        "position": [item.rank for item in items],
        "item_id": [item.item_id for item in items],
        "score": [item.score for item in items],
        "sources": _source_scores([item.sources for item in items]),
        "propensity": [item.propensity for item in items],
        "team": [item.team for item in items],
    }
    return pa.RecordBatch.from_pydict(columns, schema=IMPRESSION_SCHEMA)


def _of_answers(answers: Sequence[_Shown]) -> dict[str, pa.Array]:
    """What all items of an answer share, repeated for each: by Arrow, as it is most of the columns."""
    columns = {
        "recommendation_id": [shown.recommendation_id for shown in answers],
        "timestamp": [round(shown.timestamp_s * 1e6) for shown in answers],
        "route": [shown.route for shown in answers],
        "user": [shown.user for shown in answers],
        "snapshot_id": [shown.answer.snapshot_id for shown in answers],
        "profile_version": [shown.answer.profile_version for shown in answers],
        "degraded": [shown.degraded for shown in answers],
        "experiments": [shown.answer.experiments for shown in answers],
    }
    of_row = pa.array(np.repeat(np.arange(len(answers)), [len(shown.answer.items) for shown in answers]))
    return {name: pa.array(values, IMPRESSION_SCHEMA.field(name).type).take(of_row) for name, values in columns.items()}


def _source_scores(sources: Sequence[Mapping[str, float]]) -> pa.Array:
    """[n] of ``SOURCE_SCORES``; from flat arrays, as Arrow takes a dictionary a row ten times as long."""
    ends = itertools.accumulate((len(scores) for scores in sources), initial=0)
    names = pa.array([name for scores in sources for name in scores], pa.string())
    scores = pa.array([score for scores in sources for score in scores.values()], pa.float64())
    pairs = pa.StructArray.from_arrays([names, scores], fields=list(SOURCE_SCORES.value_type))
    return pa.ListArray.from_arrays(pa.array(list(ends), pa.int32()), pairs, type=SOURCE_SCORES)
