"""How much memory the tasks of a shard take, so that no machine is given more of them than fit.

Estimates on the safe side of what ``benchmarks/build_memory.py`` measures. They grow with the shard alone: no task
holds the whole catalogue.
"""

TASK_BYTES = 350_000_000  # an interpreter with everything imported, and the buffers of readers and writers
SETTLE_COPIES = 6  # of the items: as read, without repeats, sorted, with the buffers of the writer
SHARD_COPIES = 3  # of the items: as read, in one piece, written
VECTOR_COPIES = 4  # of the vectors: themselves, in the index, in the exact one that it is measured against, in blocks
ROW_BYTES = 800  # keys, terms and links of the index of one item


def settle_bytes(n_bytes: int, n_shards: int) -> int:
    """Of settling one shard. n_bytes: of all cleaned items, which hashing spreads evenly."""
    return TASK_BYTES + SETTLE_COPIES * n_bytes // n_shards


def shard_bytes(n_items: int, item_bytes: int, dim: int) -> int:
    """Of building one shard of ``n_items`` items, their fields ``item_bytes`` in all, with [n_items, dim] vectors."""
    return TASK_BYTES + SHARD_COPIES * item_bytes + n_items * (VECTOR_COPIES * 4 * dim + ROW_BYTES)
