"""Made-up vectors with the structure of text embeddings: groups within groups of very unequal size, and a spectrum.

Uniform noise has no neighbours worth finding, and groups of round noise are too easy for lists and too hard for codes.
"""

from collections.abc import Iterator

import numpy as np

from raysys.types import Vectors

# The lengths of the parts of a vector, and the fall i ** -SPECTRUM of the deviation along the i-th axis: so chosen that
# 9,000 of these are like MiniLM's vectors of as many films (in brackets). Intrinsic dimension 26 (24), effective rank
# 70 (62), mean cosine of any two .39 (.35), of a vector and its 10th neighbour .68 (.65), its 100th .63 (.58).
COMMON, TOPIC, GROUP, OWN, SPECTRUM = 0.6, 0.3, 0.4, 0.6, 0.3
ITEMS_PER_GROUP = 200
BLOCK_ROWS = 65_536


def clustered(n: int, dim: int, n_queries: int, seed: int = 0, out: Vectors | None = None) -> tuple[Vectors, Vectors]:
    """([n, dim], [n_queries, dim]) float32, normalised: items, and queries of the same groups that are no items.

    out: [n + n_queries, dim], where both are to be written, such as a mapped file.
    """
    random = np.random.default_rng(seed)
    n_groups = max(n // ITEMS_PER_GROUP, 2)
    scale = _spectrum(dim)
    topics = _lengthened(random.standard_normal((max(int(n_groups**0.5), 1), dim)) * scale, TOPIC)
    groups = _lengthened(random.standard_normal((n_groups, dim)) * scale, GROUP)
    groups += topics[random.integers(len(topics), size=n_groups)] + np.float32(COMMON / dim**0.5)
    shares = 1 / np.arange(1, n_groups + 1) ** 0.5
    rotation = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
    chosen = random.choice(n_groups, size=n + n_queries, p=shares / shares.sum())
    made = np.empty((n + n_queries, dim), dtype=np.float32) if out is None else out
    for start, part in _blocks(chosen):
        own = _lengthened(random.standard_normal((len(part), dim), dtype=np.float32) * scale, OWN)
        rotated = (groups[part] + own).astype(np.float32) @ rotation
        made[start : start + len(part)] = rotated / np.linalg.norm(rotated, axis=1, keepdims=True)
    return made[:n], made[n:]


def _spectrum(dim: int) -> Vectors:
    return (np.arange(1, dim + 1) ** -SPECTRUM).astype(np.float32)


def _lengthened(vectors: Vectors, length: float) -> Vectors:
    """Of this length on average: what differs between vectors stays."""
    return np.asarray(vectors * (length / np.sqrt((vectors**2).sum(axis=1).mean())), dtype=np.float32)


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(values), BLOCK_ROWS):
        yield start, values[start : start + BLOCK_ROWS]
