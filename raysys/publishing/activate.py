"""Puts the pointer on a snapshot that is whole and not too much unlike the one in use, or some of the people first."""

from collections.abc import Iterator
from dataclasses import dataclass

from raysys.errors import SnapshotError, SnapshotRefused
from raysys.index.canary import Canary
from raysys.index.manifest import Manifest, read_manifest
from raysys.index.store import POINTER, SnapshotStore
from raysys.publishing.replay import N_ASKED, Agreement, compare, some_people

MOST_ITEMS_LOST = 0.2  # of those there are
MOST_ITEMS_GAINED = 1.0
LEAST_OVERLAP = 0.3
MOST_EMPTY = 0.01
MOST_TIMES_SLOWER, SLOW_FROM_MS = 3.0, 20.0


@dataclass(frozen=True)
class Comparison:
    """A snapshot beside the published one. agreement: None where their answers could not be compared."""

    old: Manifest
    new: Manifest
    agreement: Agreement | None
    note: str = ""

    def reasons(self) -> list[str]:
        """What speaks against it, each with its figure and what is allowed."""
        return [
            *self._of_servers(),
            *self._of_items(),
            *(() if self.agreement is None else _of_answers(self.agreement)),
        ]

    def lines(self) -> list[str]:
        """The figures, for people."""
        lines = [f"items: {self.old.n_items:,} -> {self.new.n_items:,}"]
        old, new = self.old.encoder_identity, self.new.encoder_identity
        if old != new:
            models = f"{old.name} ({old.dim}) -> {new.name} ({new.dim})"
            lines.append(f"encoder: {models}; servers load it beside the one they have")
        if self.agreement is None:
            return [*lines, self.note]
        a = self.agreement
        return [
            *lines,
            f"asked: {a.n_asked}, of whom {a.n_people} are known",
            f"overlap of the answers: {a.overlap:.2f}; empty only now: {a.empty:.1%}",
            f"median time in this process: {a.old_ms:.1f} ms -> {a.new_ms:.1f} ms",
        ]

    def _of_servers(self) -> Iterator[str]:
        """What a running application refuses to take up."""
        if len(self.old.shards) != len(self.new.shards):
            shards = f"{len(self.old.shards)} -> {len(self.new.shards)} shards"
            yield f"{shards}: a running tiered application stays with the old snapshot until it is deployed again"

    def _of_items(self) -> Iterator[str]:
        growth = self.new.n_items / self.old.n_items - 1
        if growth < -MOST_ITEMS_LOST:
            yield f"{-growth:.0%} of the items are gone, {MOST_ITEMS_LOST:.0%} may be"
        if growth > MOST_ITEMS_GAINED:
            yield f"{growth:.0%} more items, {MOST_ITEMS_GAINED:.0%} may be"


def _of_answers(agreement: Agreement) -> Iterator[str]:
    if agreement.overlap < LEAST_OVERLAP:
        yield f"the answers overlap by {agreement.overlap:.2f}, at least {LEAST_OVERLAP} is wanted"
    if agreement.empty > MOST_EMPTY:
        yield f"{agreement.empty:.1%} of the answers are empty that were not, {MOST_EMPTY:.0%} may be"
    if agreement.new_ms > max(SLOW_FROM_MS, MOST_TIMES_SLOWER * agreement.old_ms):
        yield (
            f"an answer takes {agreement.new_ms:.0f} ms in place of {agreement.old_ms:.0f}, "
            f"up to {MOST_TIMES_SLOWER:g} times as long is allowed"
        )


@dataclass(frozen=True)
class Activation:
    """The pointer was moved. comparison: None where nothing was published before. forced: what was set aside."""

    snapshot_id: str
    before: str | None
    comparison: Comparison | None
    forced: tuple[str, ...] = ()


def activate(
    store: SnapshotStore,
    snapshot_id: str,
    impressions: str | None = None,
    state: str | None = None,
    force: bool = False,
    n_asked: int = N_ASKED,
) -> Activation:
    """Verify every file of the snapshot, compare it with the published one, and move the pointer to it.

    impressions, state: the folder and the store that people who ask, ``n_asked``, come from (``replay.some_people``).
    Raises UnknownSnapshot; SnapshotDamaged for one that is not whole, whatever ``force``; SnapshotRefused, with the
    reasons, for one that is too much unlike the published one, unless ``force``. Either way the pointer is unmoved, and
    the reasons are written down (``SnapshotStore.refusal``).
    """
    read_manifest(store.existing(snapshot_id))  # of one that is not there no lease is left
    with store.lease(snapshot_id):
        manifest = _whole(store, snapshot_id)
        before = store.current_id() if (store.root / POINTER).exists() else None
        if before is None or before == snapshot_id:
            store.move(snapshot_id, "activate")
            return Activation(snapshot_id, before, None)
        comparison, reasons = _examined(store, before, manifest, impressions, state, force, n_asked)
        store.move(snapshot_id, "activate", reasons, before)
    return Activation(snapshot_id, before, comparison, reasons)


@dataclass(frozen=True)
class Start:
    """A canary that was started, or given another share; then nothing was compared anew, and comparison is None."""

    canary: Canary
    comparison: Comparison | None


def start_canary(
    store: SnapshotStore,
    snapshot_id: str,
    share: float,
    impressions: str | None = None,
    state: str | None = None,
    force: bool = False,
    n_asked: int = N_ASKED,
) -> Start:
    """Give a share of the people this snapshot, once it was verified and compared as for ``activate``.

    The one that is the canary already is only given the share. Raises as ``activate``, and SnapshotConflict for the
    published one, or where another one is the canary; then all stays as it is, but for the reasons of a refusal.
    """
    read_manifest(store.existing(snapshot_id))  # of one that is not there no lease is left
    before, running = store.current_id(), store.canary()
    if running is not None and running.snapshot_id == snapshot_id:
        return Start(store.set_canary(snapshot_id, share, before, running.forced), None)
    store.check_free(snapshot_id, before)  # now, as the comparison takes long
    with store.lease(snapshot_id):
        manifest = _whole(store, snapshot_id)
        comparison, reasons = _examined(store, before, manifest, impressions, state, force, n_asked)
        return Start(store.set_canary(snapshot_id, share, before, reasons), comparison)


def _examined(
    store: SnapshotStore,
    before: str,
    manifest: Manifest,
    impressions: str | None,
    state: str | None,
    force: bool,
    n_asked: int,
) -> tuple[Comparison | None, tuple[str, ...]]:
    """How the snapshot compares with the published one, and the reasons against it that ``force`` set aside.

    Raises SnapshotRefused.
    """
    comparison = _compared(store, before, manifest, impressions, state, n_asked)
    reasons = () if comparison is None else tuple(comparison.reasons())
    if reasons and not force:
        store.refuse(manifest.snapshot_id, reasons)
        raise SnapshotRefused(
            f"{manifest.snapshot_id} is refused, {before} stays published: {'; '.join(reasons)}. "
            "`force` (--force) takes it all the same",
            reasons,
        )
    return comparison, reasons


def _whole(store: SnapshotStore, snapshot_id: str) -> Manifest:
    try:
        return store.verify(snapshot_id)
    except SnapshotError as error:
        store.refuse(snapshot_id, [str(error)])
        raise


def _compared(
    store: SnapshotStore, before: str, manifest: Manifest, impressions: str | None, state: str | None, n_asked: int
) -> Comparison | None:
    """None where the published one is not there any more: then there is nothing to compare with."""
    try:
        old = store.manifest(before)
    except SnapshotError:
        return None
    try:
        people = some_people(store.folder(before), impressions, state, n_asked)
        agreement = compare(store.folder(before), store.folder(manifest.snapshot_id), people)
    except SnapshotError as error:
        return Comparison(old, manifest, None, f"the answers were not compared: {error}")
    return Comparison(old, manifest, agreement)
