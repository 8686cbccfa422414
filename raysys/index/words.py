"""The words of items, weighed by how rare they are: which rows hold a term, and which terms a row holds.

A term's weight in an item is ``(1 + log(count)) * idf`` with ``idf = log(1 + N / n)``, N items in all and n with the
term; the weights of an item have length 1 (TF-IDF, Salton and Buckley 1988). So the score of a request is a cosine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysys.index.arrays import open_array, save_array
from raysys.index.sparse_rows import SparseRows
from raysys.keys import term_keys
from raysys.types import Keys, Terms

MOST_TERMS = 48  # that a request looks for
MOST_HELD = 10_000  # items that hold them, each counted once a term: some 0.3 ms of one core

NO_TERMS = Terms(np.empty(0, np.uint64), np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Every term of a catalogue. terms: [v] uint64 keys, ascending. n_with: [v] int64, the items that hold each.

    n_items: of the whole catalogue.
    """

    terms: Keys
    n_with: NDArray[np.int64]
    n_items: int

    @classmethod
    def from_parts(cls, parts: Iterable[tuple[Keys, NDArray[np.int64]]], n_items: int) -> "Vocabulary":
        """From parts of the catalogue: the terms of each, and how many of its items hold them. Holds one at a time."""
        terms, n_with = np.empty(0, np.uint64), np.empty(0, np.int64)
        for more, with_more in parts:
            terms, at = np.unique(np.concatenate([terms, more]), return_inverse=True)
            n_with = np.bincount(at, weights=np.concatenate([n_with, with_more]), minlength=len(terms)).astype(np.int64)
        return cls(terms, n_with, n_items)

    def idf(self, terms: Keys) -> NDArray[np.float32]:
        """[t] float32: how much it says that an item holds this term. One that no item holds counts like the rarest."""
        return np.log1p(self.n_items / self._count(terms)).astype(np.float32)

    def wanted(self, terms: Terms) -> Terms:
        """What a request looks for: of these terms, which may repeat, the weightiest that ``MOST_TERMS`` and
        ``MOST_HELD`` allow. So the work of a request is bounded, whatever the catalogue. Their length is 1."""
        keys, at = np.unique(terms.keys, return_inverse=True)
        weights = np.bincount(at, weights=terms.weights, minlength=len(keys)).astype(np.float32)
        first = np.argsort(-weights, kind="stable")
        kept = first[np.cumsum(self._count(keys[first])) <= MOST_HELD][:MOST_TERMS]
        kept.sort()
        return unit(Terms(keys[kept], weights[kept]))

    def _count(self, terms: Keys) -> NDArray[np.int64]:
        """[t]: how many items hold each term; 1 where none does."""
        if not len(self.terms):
            return np.ones(len(terms), dtype=np.int64)
        at = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
        return np.where(self.terms[at] == terms, self.n_with[at], 1)

    def weigh(self, counts: Mapping[str, int]) -> Terms:
        """The terms of one item or text, with a length of 1; nothing where there are none."""
        if not counts:
            return NO_TERMS
        keys, tf = term_keys(counts), np.fromiter(counts.values(), dtype=np.float32)
        return unit(Terms(keys, (1 + np.log(tf)) * self.idf(keys)))

    def save(self, folder: Path) -> None:
        """Write the arrays into the snapshot's folder."""
        save_array(folder / "terms.npy", self.terms)
        save_array(folder / "terms-n-with.npy", self.n_with)
        save_array(folder / "terms-n-items.npy", np.array([self.n_items], dtype=np.int64))

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Map what ``save`` wrote; an empty one where a snapshot has none. Raises SnapshotError."""
        if not (folder / "terms.npy").exists():
            return cls(np.empty(0, np.uint64), np.empty(0, np.int64), 0)
        n_items = int(open_array(folder / "terms-n-items.npy")[0])
        return cls(open_array(folder / "terms.npy"), open_array(folder / "terms-n-with.npy"), n_items)


def unit(terms: Terms) -> Terms:
    """These terms with a length of 1."""
    length = float(np.linalg.norm(terms.weights))
    return NO_TERMS if length == 0 else Terms(terms.keys, terms.weights / np.float32(length))


@dataclass(frozen=True, eq=False)
class WordRows:
    """The terms of the items of one shard, both ways.

    by_term: term x row. offsets: [n + 1] int64; the terms of row i are ``offsets[i]:offsets[i + 1]`` of terms,
    [nnz] uint64, and weights, [nnz] float32.
    """

    by_term: SparseRows
    offsets: NDArray[np.int64]
    terms: Keys
    weights: NDArray[np.float32]

    @classmethod
    def build(
        cls, n_rows: int, rows: NDArray[np.int32], terms: Keys, counts: NDArray[np.float32], vocabulary: Vocabulary
    ) -> "WordRows":
        """From [m] rows, ascending, with a term and how often the row holds it; each pair once."""
        weights = (1 + np.log(counts)) * vocabulary.idf(terms)
        lengths = np.sqrt(np.bincount(rows, weights=weights.astype(np.float64) ** 2, minlength=n_rows))
        weights = (weights / lengths[rows]).astype(np.float32)
        offsets = np.searchsorted(rows, np.arange(n_rows + 1)).astype(np.int64)
        return cls(SparseRows.from_pairs(terms, rows, weights), offsets, terms, weights)

    def of(self, row: int) -> Terms:
        """The terms of one row."""
        start, end = self.offsets[row], self.offsets[row + 1]
        return Terms(self.terms[start:end], self.weights[start:end])

    def save(self, folder: Path) -> None:
        """Write all arrays into a folder."""
        self.by_term.save(folder / "by-term")
        save_array(folder / "offsets.npy", self.offsets)
        save_array(folder / "terms.npy", self.terms)
        save_array(folder / "weights.npy", self.weights)

    @classmethod
    def load(cls, folder: Path, n_rows: int) -> "WordRows":
        """Map what ``save`` wrote; without terms where a snapshot has none. Raises SnapshotError."""
        if not folder.is_dir():
            return cls.empty(n_rows)
        arrays = (open_array(folder / f"{name}.npy") for name in ("offsets", "terms", "weights"))
        return cls(SparseRows.load(folder / "by-term"), *arrays)

    @classmethod
    def empty(cls, n_rows: int) -> "WordRows":
        """Rows without a term."""
        return cls(SparseRows.empty(), np.zeros(n_rows + 1, dtype=np.int64), NO_TERMS.keys, NO_TERMS.weights)
