"""What was shown and what came of it: the impression log joined with the events that carry a ``recommendation_id``.

The log is read a piece at a time. In memory are one piece and 16 bytes for each item of a list that earned a reward.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from raysys.data.arrow_values import TIME
from raysys.data.impressions import read_impressions
from raysys.errors import InvalidInput, Unavailable
from raysys.keys import item_keys
from raysys.types import Event, Keys

EVENT_COLUMNS = pa.schema(
    [
        pa.field("user", pa.string()),  # ``types.user_key``
        pa.field("kind", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("timestamp", TIME),
        pa.field("recommendation_id", pa.string()),
    ]
)
SHOWN_COLUMNS = ["recommendation_id", "timestamp", "user", "position", "item_id", "score", "snapshot_id", "propensity"]
PIECE_ROWS = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A piece of the log. rows: ``SHOWN_COLUMNS``, [n], one an item shown, for the new policy to judge.

    users: [n] uint64 keys; where nobody was named, the list stands for the person. propensities: [n] float64, NaN
    where none was logged. rewards: [n] float64, 0 where nothing came of it.
    """

    rows: pa.Table
    users: Keys
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]


class Rewards:
    """What each item of each list earned. ``len``: of how many that is known."""

    def __init__(self, keys: Keys, values: NDArray[np.float64]) -> None:
        """keys: [m] uint64, sorted, each once, of ``_pair_keys``. values: [m] float64."""
        self._keys, self._values = keys, values

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, rows: pa.Table) -> NDArray[np.float64]:
        """The reward of each row, by its ``recommendation_id`` and ``item_id``: [n] float64, 0 where there is none."""
        if not len(self):
            return np.zeros(len(rows))
        wanted = _pair_keys(rows)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self) - 1)
        return np.where(self._keys[at] == wanted, self._values[at], 0.0)


def read_rewards(events: Iterable[pa.RecordBatch], worth: Mapping[str, float]) -> Rewards:
    """Gather what events say of items in lists. Events of other kinds, or without a list or an item, say nothing.

    events: batches with the columns ``recommendation_id``, ``item_id`` and ``kind``, as of ``event_batch`` or
    ``pyarrow.dataset.Dataset.to_batches``. worth: event kind -> reward. Each kind counts once for an item in a list
    (a second click is no second reward); the kinds add up. Raises InvalidInput for a column that is not there and
    for a worth that is not finite.
    """
    for kind, value in worth.items():
        if not np.isfinite(value):
            raise InvalidInput(f"worth.{kind}", f"{value} is not a finite number")
    pieces = [np.empty((2, 0), np.uint64), *(_telling(batch, worth) for batch in events)]
    pairs, kinds = np.unique(np.concatenate(pieces, axis=1), axis=1)
    keys, at = np.unique(pairs, return_inverse=True)
    values = np.array([*worth.values(), 0.0])[kinds.astype(np.intp)]
    return Rewards(keys, np.bincount(at, values, minlength=len(keys)).astype(np.float64))


def read_shown(folder: str | Path, rewards: Rewards, keep: pads.Expression | None = None) -> Iterator[Shown]:
    """The impressions of this folder, a piece at a time, with what each earned.

    keep: which rows, by the columns of ``IMPRESSION_SCHEMA`` and ``day``: of one route, of lists that were explored
    (``field("propensity").is_valid()``), of days whose events have had time to come. Raises Unavailable when a file
    cannot be read now.
    """
    yield from (_shown(rows, rewards) for rows in read_pieces(folder, SHOWN_COLUMNS, keep))


def read_pieces(folder: str | Path, columns: Sequence[str], keep: pads.Expression | None) -> Iterator[pa.Table]:
    """These columns of the impressions, at most ``PIECE_ROWS`` rows at a time. Raises Unavailable as ``read_shown``."""
    try:
        log = read_impressions(folder)
        for file in log.get_fragments(keep):
            pieces = file.to_batches(log.schema, list(columns), keep, batch_size=PIECE_ROWS, batch_readahead=1)
            yield from (pa.Table.from_batches([piece]) for piece in pieces if len(piece))
    except (OSError, pa.ArrowException) as error:  # FileNotFoundError: removed since it was listed
        raise Unavailable(f"could not read the impressions: {error}") from error


def event_batch(events: Sequence[Event]) -> pa.RecordBatch:
    """Events as ``EVENT_COLUMNS``."""
    columns: dict[str, list[Any]] = {
        name: [getattr(event, name) for event in events] for name in EVENT_COLUMNS.names if name != "timestamp"
    }
    columns["timestamp"] = [round(event.timestamp_s * 1e6) for event in events]
    return pa.RecordBatch.from_pydict(columns, schema=EVENT_COLUMNS)


def user_keys(rows: pa.Table) -> Keys:
    """[n] uint64: the person of each row; where nobody was named, the list stands for the person."""
    named = rows["user"].is_valid().to_numpy()
    return np.where(named, _keys(rows["user"].fill_null("")), _keys(rows["recommendation_id"]))


def exposures(rows: pa.Table) -> tuple[NDArray[np.int64], pa.Array, pa.Array]:
    """Of the column ``experiments``: the row, the experiment and the arm of each entry."""
    lists = rows["experiments"].combine_chunks()
    entries = lists.flatten()
    return pc.list_parent_indices(lists).to_numpy(), entries.field("experiment"), entries.field("arm")


def check_columns(batch: pa.RecordBatch, wanted: Sequence[str]) -> None:
    """Raise InvalidInput unless a batch of events has all of these columns."""
    missing = [name for name in wanted if name not in batch.schema.names]
    if missing:
        raise InvalidInput("events", f"no column {', '.join(missing)}; there are {', '.join(batch.schema.names)}")


def _telling(batch: pa.RecordBatch, worth: Mapping[str, float]) -> Keys:
    """[2, n] uint64 of the events that count: the key of the list and item, and the place of the kind in ``worth``."""
    check_columns(batch, ("recommendation_id", "item_id", "kind"))
    kinds = pa.array(list(worth), pa.string())
    rows = pa.table({name: batch[name].cast(pa.string()) for name in ("recommendation_id", "item_id", "kind")})
    rows = rows.filter(pads.field("kind").isin(kinds)).drop_null()
    of_kind = pc.index_in(rows["kind"], kinds).to_numpy().astype(np.uint64)
    return np.stack([_pair_keys(rows), of_kind])


def _shown(rows: pa.Table, rewards: Rewards) -> Shown:
    propensities = rows["propensity"].to_numpy().astype(np.float64)  # Arrow makes NaN of null
    return Shown(rows, user_keys(rows), propensities, rewards.of(rows))


def _pair_keys(rows: pa.Table) -> Keys:
    """[n] uint64: of each list and item; two pairs of a hundred million share one with a chance of 3 in 10,000."""
    # Times an odd number, so that a list and an item that change names with each other are another pair. It wraps.
    return _keys(rows["recommendation_id"]) * np.uint64(0x9E3779B97F4A7C15) + _keys(rows["item_id"])


def _keys(column: pa.ChunkedArray) -> Keys:
    """[n] uint64: each distinct id is hashed once."""
    encoded = column.combine_chunks().dictionary_encode()
    keys: Keys = item_keys(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    return keys
