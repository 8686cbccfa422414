"""What one build will do, settled in seconds and before any model loads: inputs found, columns matched, paths fixed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from raysys.config import BuildSettings
from raysys.data import catalog, events, readers
from raysys.data.sources import Split
from raysys.encoder.protocol import EncoderIdentity
from raysys.encoder.vectors import EmbeddingStore
from raysys.errors import CatalogError, SnapshotError, of_worker
from raysys.index import leases
from raysys.index.inventory import readable_bytes
from raysys.index.manifest import MANIFEST
from raysys.index.store import SnapshotStore
from raysys.training import changes, prices
from raysys.training.held_out import HeldOut

NICENESS = 10  # a build must not take the cores from replicas that serve on the same machine


@dataclass(frozen=True)
class Inputs:
    """The files of catalogue and events, and which of their columns are which of our fields."""

    items: list[Split]
    item_columns: dict[str, str]
    attributes: dict[str, pa.DataType]
    events: list[Split]
    event_columns: dict[str, str]


@dataclass(frozen=True)
class BuildPlan:
    """Everything a stage needs; small, and the same on every worker. All paths are seen by every node.

    change_sequence: live changes up to this one are in the staging folder, 0 = none. change_store: the identity of
    their store. held_out: what behaviour is fitted without; None = on all events. fit: the name of what is fitted.
    """

    settings: BuildSettings
    inputs: Inputs
    snapshot_id: str
    snapshot: Path
    staging: Path
    change_sequence: int = 0
    change_store: str = ""
    held_out: HeldOut | None = None
    fit: str = "fitted"

    def without(self, held_out: HeldOut, name: str = "without_held_out") -> "BuildPlan":
        """The same items, fitted without these events; for the job itself, in a folder of this name where it stages."""
        return replace(self, held_out=held_out, snapshot=self.staged(name), fit=f"fitted_{name}")

    @property
    def n_shards(self) -> int:
        return self.settings.index.shards

    @property
    def is_left_beside(self) -> bool:
        """Whether the snapshot is finished, and was not to be published."""
        return not self.settings.index.publish and (self.snapshot / MANIFEST).exists()

    def shard_folder(self, number: int) -> Path:
        """Where the finished files of a shard go."""
        return self.snapshot / f"shard-{number:05d}"

    def staged(self, *parts: str) -> Path:
        """A folder for intermediate files, created when asked for."""
        folder = self.staging.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fitted(self, *parts: str) -> Path:
        """A folder for what is fitted on the events, apart for what is fitted without those held out."""
        return self.staged(self.fit, *parts)

    def embeddings(self, identity: EncoderIdentity) -> EmbeddingStore:
        """The vectors that this and earlier builds have made with this encoder."""
        return EmbeddingStore(self.settings.index.root, identity.fingerprint(), identity.dim)


def find_inputs(settings: BuildSettings) -> Inputs:
    """Look at the input files and match their columns. Raises ConfigError that names what is missing, CatalogError."""
    prices.check(settings.workers.prices)
    if settings.state is not None:
        changes.check_location(settings.state)
    items = readers.discover(settings.catalog.path, settings.catalog.format)
    item_columns = catalog.resolve_columns(settings.catalog, readers.columns_of(items[0]))
    wanted = catalog.columns_to_read(settings.catalog, item_columns)
    sample = next((batch for split in items for batch in readers.read(split, wanted) if len(batch.table)), None)
    if sample is None:
        raise CatalogError(f"{settings.catalog.path} holds no rows: there is nothing to recommend")
    attributes = catalog.attribute_types(settings.catalog, sample.table)
    if settings.events is None:
        return Inputs(items, item_columns, attributes, [], {})
    event_splits = readers.discover(settings.events.path, settings.events.format)
    event_columns = events.resolve_event_columns(settings.events, readers.columns_of(event_splits[0]))
    return Inputs(items, item_columns, attributes, event_splits, event_columns)


@contextmanager
def planned(settings: BuildSettings, now_s: float) -> Iterator[BuildPlan]:
    """The plan of one build, and an end without litter: whatever happens, nothing is left but a finished snapshot.

    Its lease says that the build runs, so that nobody collects what it writes. Raises what ``find_inputs`` and
    ``changes.take_log`` raise, and SnapshotError for a disk that cannot be written or read.
    """
    inputs = find_inputs(settings)
    store = SnapshotStore(settings.index.root)
    try:
        with _plan(settings, inputs, store, now_s) as plan:
            yield plan
    except OSError as error:
        raise SnapshotError(
            f"the build has stopped, what was published stays published: {of_worker(error)} "
            f"({_free(store.root)}); the texts encoded so far are kept for the next run"
        ) from error


@contextmanager
def _plan(settings: BuildSettings, inputs: Inputs, store: SnapshotStore, now_s: float) -> Iterator[BuildPlan]:
    with store.locked():  # nobody looks for dead builds between the folders and the lease
        plan = make_plan(settings, inputs, store, now_s)
        lease = store.lease(plan.snapshot_id)
    try:
        with lease:
            yield from _kept_if_finished(plan, store)
    finally:
        if not plan.snapshot.exists():
            with suppress(OSError):
                leases.forget(store.lease_path(plan.snapshot_id))


def _free(root: Path) -> str:
    """How much room there is, for people: the first thing to look at where a disk refuses."""
    try:
        return f"{readable_bytes(shutil.disk_usage(root).free)} are free under {root}"
    except OSError as error:
        return str(error)


def _kept_if_finished(plan: BuildPlan, store: SnapshotStore) -> Iterator[BuildPlan]:
    is_done = False
    try:
        yield _with_changes(plan)
        is_done = True
    finally:
        # Once the pointer has moved, the snapshot may be served already: it must outlive a Ctrl-C that comes late.
        if not (store.is_published(plan.snapshot_id) or (is_done and plan.is_left_beside)):
            shutil.rmtree(plan.snapshot, ignore_errors=True)
        shutil.rmtree(plan.staging, ignore_errors=True)


def _with_changes(plan: BuildPlan) -> BuildPlan:
    """The plan with the log of changes in its staging folder, where the settings say where that is."""
    if plan.settings.state is None:
        return plan
    sequence, store = changes.take_log(plan.settings.state, plan.staging)
    return replace(plan, change_sequence=sequence, change_store=store)


def make_plan(settings: BuildSettings, inputs: Inputs, store: SnapshotStore, now_s: float) -> BuildPlan:
    """Open fresh folders for the snapshot and what it is made of."""
    snapshot_id, folder = store.create(now_s)
    staging = store.staging(snapshot_id)
    staging.mkdir(parents=True)
    return BuildPlan(settings, inputs, snapshot_id, folder, staging)
