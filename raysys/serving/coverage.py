"""How much of the catalogue an answer was chosen from, and the next one would be."""

from collections.abc import Collection, Mapping
from typing import Any

from raysys.index.manifest import Manifest


def coverage(manifest: Manifest, degraded: Collection[str]) -> float:
    """The share of the items of the snapshot that are in shards which answered, 0 to 1.

    degraded: the parts that did not, shards among them by the names of their deployments.
    """
    sizes = {f"shard-{number:02d}": shard.n_items for number, shard in enumerate(manifest.shards)}
    missing = sum(sizes.get(part, 0) for part in set(degraded))
    return 1.0 - missing / max(sum(sizes.values()), 1)


def presence(manifest: Manifest, shards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What of the snapshot is there, by what each shard says of itself: ``coverage``, ``away``, and ``partial``."""
    away = [name for name, status in shards.items() if manifest.snapshot_id not in status.get("snapshots", ())]
    return {"partial": bool(away), "coverage": coverage(manifest, away), "away": away}
