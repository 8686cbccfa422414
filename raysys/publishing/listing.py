"""Which snapshots there are, for people and programs: state, size, what is published, and why one was refused."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from raysys.index.canary import Canary
from raysys.index.history import Move
from raysys.index.inventory import Leftover, Snapshot, size_bytes, snapshots, staged, trash
from raysys.index.store import POINTER, SnapshotStore


@dataclass(frozen=True)
class Row:
    """One snapshot. index: kinds over all shards. is_before: a rollback goes back to it.

    refused_at, refused: when it was last refused, as ISO 8601, and for what; None and empty = it was not, or was
    published since.
    """

    snapshot_id: str
    state: str
    problem: str
    age_s: float
    items: int | None
    shards: int | None
    encoder: str | None
    index: tuple[str, ...]
    size_bytes: int
    is_current: bool
    is_before: bool
    is_canary: bool
    is_held: bool
    refused_at: str | None
    refused: tuple[str, ...]

    def marks(self) -> str:
        marks = {
            "current": self.is_current,
            "before": self.is_before,
            "canary": self.is_canary,
            "in use": self.is_held,
            "refused": self.refused_at is not None,
        }
        return ", ".join(name for name, is_set in marks.items() if is_set)


@dataclass(frozen=True)
class Left:
    """What is no snapshot. path: relative to the root."""

    path: str
    size_bytes: int
    is_held: bool


@dataclass(frozen=True)
class Listing:
    """All there is under a root. leftovers: of builds, and of collections that were killed. history: oldest first."""

    root: str
    current: str | None
    canary: Canary | None
    snapshots: tuple[Row, ...]
    leftovers: tuple[Left, ...]
    embeddings_bytes: int
    history: tuple[Move, ...]


def listing(store: SnapshotStore, now_s: float) -> Listing:
    """All snapshots, oldest first, and the rest. now_s: UTC epoch seconds."""
    current = store.current_id() if (store.root / POINTER).exists() else None
    before = None if current is None else store.previous()
    canary = store.canary()
    return Listing(
        root=str(store.root),
        current=current,
        canary=canary,
        snapshots=tuple(_row(store, snapshot, current, before, canary, now_s) for snapshot in snapshots(store)),
        leftovers=tuple(_left(store, one) for one in (*staged(store), *trash(store))),
        embeddings_bytes=size_bytes(store.root / "embeddings"),
        history=tuple(store.history()),
    )


def as_dict(found: Listing) -> dict[str, Any]:
    """As plain values, for JSON."""
    canary = None if found.canary is None else found.canary.model_dump()
    return {**asdict(found), "canary": canary, "history": [move.model_dump() for move in found.history]}


def _left(store: SnapshotStore, one: Leftover) -> Left:
    return Left(one.path.relative_to(store.root).as_posix(), one.size_bytes, one.is_held)


def _row(
    store: SnapshotStore,
    snapshot: Snapshot,
    current: str | None,
    before: str | None,
    canary: Canary | None,
    now_s: float,
) -> Row:
    manifest, snapshot_id = snapshot.manifest, snapshot.snapshot_id
    made_s = snapshot.written_s if manifest is None else datetime.fromisoformat(manifest.created_at).timestamp()
    encoder = None if manifest is None else manifest.encoder_identity
    refusal = store.refusal(snapshot_id)
    return Row(
        snapshot_id,
        "being built" if snapshot.state == "unfinished" and snapshot.is_held else snapshot.state,
        snapshot.problem,
        round(now_s - made_s, 1),
        None if manifest is None else manifest.n_items,
        None if manifest is None else len(manifest.shards),
        None if encoder is None else f"{encoder.name} ({encoder.dim})",
        () if manifest is None else tuple(sorted({shard.index_kind for shard in manifest.shards})),
        snapshot.size_bytes,
        snapshot_id == current,
        snapshot_id == before,
        canary is not None and snapshot_id == canary.snapshot_id,
        snapshot.is_held,
        None if refusal is None else refusal.at,
        () if refusal is None else refusal.reasons,
    )
