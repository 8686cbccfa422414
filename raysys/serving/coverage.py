"""How much of the catalogue an answer was chosen from."""

from collections.abc import Collection

from raysys.index.manifest import Manifest


def coverage(manifest: Manifest, degraded: Collection[str]) -> float:
    """The share of the items of the snapshot that are in shards which answered, 0 to 1.

    degraded: the parts that did not, shards among them by the names of their deployments.
    """
    sizes = {f"shard-{number:02d}": shard.n_items for number, shard in enumerate(manifest.shards)}
    missing = sum(sizes.get(part, 0) for part in set(degraded))
    return 1.0 - missing / max(sum(sizes.values()), 1)
