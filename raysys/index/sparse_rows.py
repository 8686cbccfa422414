"""Weights that lead to the items of one shard: from which source to which of its rows.

The sources of the transition model (``training.transition``) are items, those of ``words`` are terms. A shard keeps
the pairs whose target it owns, by source, so that a request is scored where the candidates are. Its work and memory
grow with the pairs that its sources touch, never with the catalogue.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.errors import InvalidInput, SnapshotError
from raysys.index.arrays import save_array
from raysys.types import Keys

DENSE_ROWS_PER_PAIR = 16  # measured: up to here counting is several times faster than sorting

_DTYPES = {"sources": np.uint64, "offsets": np.int64, "rows": np.int32, "weights": np.float32}


class SparseRows:
    """A sparse matrix, source x row of the shard. Build it with ``from_pairs``, open it with ``load``.

    sources: [s] uint64 keys, ascending. offsets: [s + 1] int64; the pairs of source i are
    ``offsets[i]:offsets[i + 1]`` of rows, [nnz] int32, ascending within a source, and weights, [nnz] float32.
    """

    def __init__(
        self, sources: Keys, offsets: NDArray[np.int64], rows: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> None:
        self.sources = sources
        self.offsets = offsets
        self.rows = rows
        self.weights = weights

    def __len__(self) -> int:
        """How many pairs have a weight."""
        return len(self.rows)

    @classmethod
    def from_pairs(
        cls, source_keys: Keys, target_rows: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> "SparseRows":
        """From [m] uint64 source keys, [m] int32 target rows and [m] float32 weights, in any order.

        The weights of a pair that comes twice are added. Raises InvalidInput when the lengths differ, a row is
        negative, or a weight is not finite.
        """
        if not len(source_keys) == len(target_rows) == len(weights):
            lengths = f"{len(source_keys)}, {len(target_rows)}, {len(weights)}"
            raise InvalidInput("pairs", f"sources, rows and weights differ in length: {lengths}")
        if (target_rows < 0).any() or not np.isfinite(weights).all():
            raise InvalidInput("pairs", "rows must be 0 or more, and weights finite")
        order = np.lexsort((target_rows, source_keys))
        keys, rows = source_keys[order], target_rows[order]
        is_new = np.ones(len(order), dtype=np.bool_)
        is_new[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
        starts = np.flatnonzero(is_new)
        sources, offsets = np.unique(keys[starts], return_index=True)
        return cls(
            sources.astype(np.uint64),
            np.append(offsets, len(starts)).astype(np.int64),
            rows[starts].astype(np.int32),
            _sums(weights[order], starts).astype(np.float32),
        )

    @classmethod
    def empty(cls) -> "SparseRows":
        """Without a weight."""
        return cls.from_pairs(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.float32))

    def save(self, folder: Path) -> None:
        """Write four .npy files, each so that a reader sees all of it or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _DTYPES:
            save_array(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "SparseRows":
        """Map the files of ``save`` read-only. Raises SnapshotError when one is missing or damaged."""
        arrays = {name: _open(folder / f"{name}.npy", np.dtype(dtype)) for name, dtype in _DTYPES.items()}
        offsets = arrays["offsets"]
        if (
            len(offsets) != len(arrays["sources"]) + 1
            or offsets[-1] != len(arrays["rows"])
            or len(arrays["rows"]) != len(arrays["weights"])
        ):
            sizes = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise SnapshotError(f"the files in {folder} do not belong together: {sizes}; build the snapshot again")
        return cls(**arrays)

    def score(self, keys: Keys, key_weights: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What these sources lead to: (rows [m] int32, unique and ascending; scores [m] float32).

        keys: [h] uint64, unknown ones score nothing and repeated ones add up; key_weights: [h] float32. A row's score
        is the sum over the sources of their weight times the pair's.
        """
        at, known = self._find(keys)
        lengths = self.offsets[at + 1] - self.offsets[at]
        ends = np.cumsum(lengths)
        pairs = np.arange(lengths.sum()) + np.repeat(self.offsets[at] - (ends - lengths), lengths)
        contributions = np.repeat(key_weights[known], lengths) * self.weights[pairs]
        return _sum_by_row(self.rows[pairs], contributions)

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(positions in ``sources`` of the keys that are there, which keys these are: [h] bool)."""
        if len(self.sources) == 0:
            return np.empty(0, dtype=np.int64), np.zeros(len(keys), dtype=np.bool_)
        at = np.minimum(np.searchsorted(self.sources, keys), len(self.sources) - 1)
        known = self.sources[at] == keys
        return at[known], known


def _sum_by_row(rows: NDArray[np.int32], weights: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(rows, unique and ascending, and the sum of the weights of each), by counting or, where rows lie far apart, by
    sorting: counting takes time and memory by the highest row."""
    if rows.max(initial=0) < DENSE_ROWS_PER_PAIR * len(rows):
        sums = np.bincount(rows, weights=weights)
        is_there = np.zeros(len(sums), dtype=np.bool_)
        is_there[rows] = True  # a sum of 0 does not say that nothing was added
        found = np.flatnonzero(is_there)
        return found.astype(np.int32), sums[found].astype(np.float32)
    unique, inverse = np.unique(rows, return_inverse=True)
    return unique, np.bincount(inverse, weights=weights, minlength=len(unique)).astype(np.float32)


def _sums(weights: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of each run of weights; run i begins at starts[i]."""
    return np.add.reduceat(weights, starts, dtype=np.float64) if len(starts) else np.empty(0)


def _open(path: Path, dtype: np.dtype[np.generic]) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SnapshotError(f"{path} cannot be opened: {error}; build the snapshot again") from error
    if array.ndim != 1 or array.dtype != dtype:
        raise SnapshotError(f"{path} holds {array.ndim}-d {array.dtype}, not 1-d {dtype}; build the snapshot again")
    return np.asarray(array)  # a plain view: np.memmap is slow to index
