"""What sets a taste apart from the rest of the catalogue.

The mean of the items a person liked lies near the mean of all items, and most of its direction says only "an item of
this shop". Linear discriminant analysis (Fisher 1936) takes that out: with the catalogue's mean m and covariance S,

    sharpened = unit((unit(taste) - m) @ inverse(S + r I)),    r = the mean eigenvalue of S

The items' vectors and the index stay as they are; the product with one [dim, dim] matrix is made once a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysys.index.arrays import open_array, save_array
from raysys.types import Vectors

BLOCK = 65_536  # vectors that are in float64 at a time
MIN_ITEMS = 100  # fewer say too little about a covariance
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the vectors of some items: count, [dim] sum, [dim, dim] sum of outer products, float64. They add up."""

    n: int
    total: NDArray[np.float64]
    outer: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Vectors) -> "Moments":
        """The sums over [n, dim] vectors; zero vectors, of items without text, are left out."""
        n, dim = 0, vectors.shape[1]
        total, outer = np.zeros(dim), np.zeros((dim, dim))
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            present = block[np.any(block != 0, axis=1)].astype(np.float64)
            n, total, outer = n + len(present), total + present.sum(axis=0), outer + present.T @ present
        return cls(n, total, outer)


@dataclass(frozen=True, eq=False)
class Contrast:
    """mean: [dim] float32. inverse: [dim, dim] float32, of the covariance with its ridge."""

    mean: Vectors
    inverse: Vectors

    @classmethod
    def from_moments(cls, parts: Sequence[Moments]) -> "Contrast | None":
        """The contrast of a catalogue from the sums of its parts; None where it is too small or does not vary."""
        n = sum(part.n for part in parts)
        if n < MIN_ITEMS:
            return None
        mean = np.sum([part.total for part in parts], axis=0) / n
        covariance = np.sum([part.outer for part in parts], axis=0) / n - np.outer(mean, mean)
        ridge = float(np.trace(covariance)) / len(mean)
        if ridge < _TINY:
            return None
        inverse = np.linalg.inv(covariance + ridge * np.eye(len(mean)))
        return cls(mean.astype(np.float32), inverse.astype(np.float32))

    def sharpen(self, taste: Vectors) -> Vectors:
        """[dim] float32, L2-normalised, from an L2-normalised taste; the taste itself where nothing sets it apart."""
        sharpened = (taste - self.mean) @ self.inverse
        norm = float(np.linalg.norm(sharpened))
        return taste if norm < _TINY else (sharpened / np.float32(norm)).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write both arrays into the snapshot's folder."""
        save_array(folder / "contrast-mean.npy", self.mean)
        save_array(folder / "contrast-inverse.npy", self.inverse)

    @classmethod
    def load(cls, folder: Path) -> "Contrast":
        """Read what ``save`` wrote. Raises SnapshotError."""
        return cls(
            np.array(open_array(folder / "contrast-mean.npy")), np.array(open_array(folder / "contrast-inverse.npy"))
        )
