"""The last stages: one index a shard, then the manifest, then the pointer."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.config import IndexSettings, ItemRules
from raysys.data.catalog import ITEM_SCHEMA
from raysys.encoder.protocol import EncoderIdentity
from raysys.encoder.vectors import keys_of
from raysys.errors import CatalogError, RaysysError
from raysys.index import choose, retention
from raysys.index.contrast import Contrast, Moments
from raysys.index.manifest import Manifest, ShardRecord, file_record, writers
from raysys.index.shard_files import rows_of, write_shard
from raysys.index.sparse_rows import SparseRows
from raysys.index.store import SnapshotStore, write_manifest
from raysys.index.vector_index import VectorIndex
from raysys.training import behaviour, spaces, words
from raysys.training.items import KEY, reject_rows
from raysys.training.plan import BuildPlan
from raysys.training.student import stage as student
from raysys.training.transition import PairCounts
from raysys.types import Keys, Vectors

QUARANTINE, REPORT = "quarantine.jsonl", "report.json"


def finish_shard(plan: BuildPlan, number: int, identity: EncoderIdentity) -> tuple[ShardRecord, Moments]:
    """Build the index of one shard and write all its files. The moments of its vectors go into the contrast."""
    items, keys, vectors = _settled(plan, number, identity)
    index, tried = _indexed(plan, number, vectors)
    write_shard(
        plan.shard_folder(number),
        items,
        keys,
        vectors,
        behaviour.relative_popularity(behaviour.item_counts(plan), keys),
        _leading_to(keys, behaviour.shard_weights(plan, number)),
        _leading_to(keys, behaviour.shard_ridge(plan, number)),
        words.shard_words(plan, number, len(items), words.vocabulary(plan)),
        spaces.of_shard(plan, keys, vectors),
        index,
    )
    return _record(plan.shard_folder(number).name, len(items), index, tried), Moments.of(vectors)


def _indexed(plan: BuildPlan, number: int, vectors: Vectors) -> tuple[VectorIndex, Sequence[choose.Trial]]:
    """The index of a shard and what was tried for it: once, however often behaviour is fitted over these items."""
    settings = plan.settings.index
    file, found = (plan.staged("indexes") / f"{number:05d}.{suffix}" for suffix in ("faiss", "json"))
    if found.is_file():
        trials = [choose.Trial.from_dict(trial) for trial in orjson.loads(found.read_bytes())]
        taken = next(trial for trial in trials if trial.taken)
        return VectorIndex.load(file, vectors, taken.kind, settings.metric, taken.effort), trials
    index, tried = choose.choose(vectors, settings.metric, _wanted(settings))
    if index.kind != "flat":
        index.save(file)
        found.write_bytes(orjson.dumps([trial.as_dict() for trial in tried]))
    return index, tried


def _wanted(settings: IndexSettings) -> choose.Wanted:
    """Of one shard: items are spread evenly."""
    return choose.Wanted(
        kind=settings.kind,
        memory_bytes=None if settings.memory is None else settings.memory / settings.shards,
        recall=settings.recall,
        flat_below=settings.flat_below,
        sample=settings.recall_sample,
    )


def _record(folder: str, n_items: int, index: VectorIndex, tried: Sequence[choose.Trial]) -> ShardRecord:
    taken = next((trial for trial in tried if trial.taken), None)
    return ShardRecord(
        folder=folder,
        n_items=n_items,
        index_kind=index.kind,
        effort=index.effort,
        recall_at_10=None if taken is None else taken.recall_10,
        recall_at_100=None if taken is None else taken.recall_100,
        index_bytes=None if taken is None else taken.memory_bytes,
        tried=tuple(trial.as_dict() for trial in tried),
    )


def _settled(plan: BuildPlan, number: int, identity: EncoderIdentity) -> tuple[pa.Table, Keys, Vectors]:
    path = plan.staged("settled") / f"{number:05d}.parquet"
    if not path.is_file():  # no item fell into this shard
        return _item_schema(plan).empty_table(), np.empty(0, np.uint64), np.empty((0, identity.dim), np.float32)
    table = pq.read_table(path, columns=[*_item_schema(plan).names, KEY])
    vectors = plan.embeddings(identity).load(keys_of(table["text_key"]))
    return table.select(_item_schema(plan).names).combine_chunks(), table[KEY].to_numpy(), vectors


def _item_schema(plan: BuildPlan) -> pa.Schema:
    """The columns of a shard's item table."""
    attributes = (pa.field(name, kind) for name, kind in plan.inputs.attributes.items())
    return pa.schema([*ITEM_SCHEMA, *attributes, pa.field("text_key", pa.binary(32))])


def _leading_to(keys: Keys, weights: PairCounts) -> SparseRows:
    """Weights that lead to the items of a shard; behaviour about items that are not in the catalogue falls away."""
    rows = rows_of(keys, weights.target)
    known = rows >= 0
    return SparseRows.from_pairs(
        weights.source[known], rows[known].astype(np.int32), weights.weight[known].astype(np.float32)
    )


def publish(
    plan: BuildPlan,
    identity: EncoderIdentity,
    finished: Sequence[tuple[ShardRecord, Moments]],
    report: dict[str, Any],
) -> Manifest:
    """``seal``, then move the pointer, unless the settings leave that to somebody."""
    manifest = seal(plan, identity, finished, report)
    store = SnapshotStore(plan.settings.index.root)
    if plan.settings.index.publish:
        store.publish(plan.snapshot_id)
    else:
        store.verify(plan.snapshot_id)
    return manifest


def retire(plan: BuildPlan) -> str:
    """Remove old snapshots after one was published, as the settings say. Returns what was removed, for people."""
    store, keep = SnapshotStore(plan.settings.index.root), plan.settings.index.keep
    try:
        removed = retention.collect(store, keep) if plan.settings.index.publish else []
    except (RaysysError, OSError) as error:  # the snapshot is published, whatever else goes wrong
        return f"old snapshots stay: {error}"
    return f"old snapshots: {retention.said(removed)}" if removed else ""


def seal(
    plan: BuildPlan,
    identity: EncoderIdentity,
    finished: Sequence[tuple[ShardRecord, Moments]],
    report: dict[str, Any],
) -> Manifest:
    """Write what belongs to the whole, then the manifest: it is finished. Raises CatalogError for no items."""
    shards = [record for record, _ in finished]
    n_items = sum(shard.n_items for shard in shards)
    if not n_items:
        raise CatalogError(f"no row of {plan.settings.catalog.path} can be indexed; the reasons: {report['rejected']}")
    contrast = _contrast(plan, identity, [moments for _, moments in finished])
    words.vocabulary(plan).save(plan.snapshot)
    spaces.publish(plan)
    student.publish(plan)
    with (plan.snapshot / QUARANTINE).open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in reject_rows(plan))
    indexes = {shard.folder: shard.tried for shard in shards}
    (plan.snapshot / REPORT).write_bytes(orjson.dumps({**report, "indexes": indexes}, option=orjson.OPT_INDENT_2))
    files = {
        path.relative_to(plan.snapshot).as_posix(): file_record(path)
        for path in sorted(plan.snapshot.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        snapshot_id=plan.snapshot_id,
        created_at=datetime.now(UTC).isoformat(),
        encoder=plan.settings.encoder,
        identity={name: getattr(identity, name) for name in identity.__slots__},
        metric=plan.settings.index.metric,
        n_items=n_items,
        shards=shards,
        files=files,
        has_contrast=contrast is not None,
        data_hash=_hash("".join(f.sha256 for name, f in files.items() if name.endswith("items.arrow"))),
        template_hash=_hash(plan.settings.catalog.template),
        item_rules=ItemRules(**plan.settings.catalog.model_dump(include=set(ItemRules.model_fields))),
        change_sequence=plan.change_sequence,
        change_store=plan.change_store,
        written_by=writers(),
    )
    write_manifest(plan.snapshot, manifest, plan.settings.index.signing_key)
    return manifest


def _contrast(plan: BuildPlan, identity: EncoderIdentity, moments: list[Moments]) -> Contrast | None:
    """Written where it makes sense: for scores that are inner products of unit vectors."""
    if plan.settings.index.metric == "l2" or not identity.normalized:
        return None
    contrast = Contrast.from_moments(moments)
    if contrast is not None:
        contrast.save(plan.snapshot)
    return contrast


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
