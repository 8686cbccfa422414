"""The last stages: one index a shard, then the manifest, then the pointer."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.config import ItemRules
from raysys.data.catalog import ITEM_SCHEMA
from raysys.encoder.protocol import EncoderIdentity
from raysys.errors import CatalogError, RaysysError
from raysys.index import retention, vector_index
from raysys.index.contrast import Contrast, Moments
from raysys.index.manifest import Manifest, ShardRecord, file_record, writers
from raysys.index.shard_files import rows_of, write_shard
from raysys.index.sparse_rows import SparseRows
from raysys.index.store import SnapshotStore, write_manifest
from raysys.keys import item_keys
from raysys.training import behaviour, spaces, words
from raysys.training.items import reject_rows
from raysys.training.plan import BuildPlan
from raysys.training.transition import PairCounts
from raysys.types import Keys, Vectors

QUARANTINE, REPORT = "quarantine.jsonl", "report.json"


def finish_shard(plan: BuildPlan, number: int, identity: EncoderIdentity) -> tuple[ShardRecord, Moments]:
    """Build the index of one shard and write all its files. The moments of its vectors go into the contrast."""
    items, keys, vectors = _settled(plan, number, identity)
    settings = plan.settings.index
    index = vector_index.build(vectors, settings.kind, settings.metric, settings.flat_below)
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
    record = ShardRecord(
        folder=plan.shard_folder(number).name,
        n_items=len(items),
        index_kind=index.kind,
        recall_at_10=measure_recall(index, vectors, settings.recall_sample),
    )
    return record, Moments.of(vectors)


def _settled(plan: BuildPlan, number: int, identity: EncoderIdentity) -> tuple[pa.Table, Keys, Vectors]:
    path = plan.staged("settled") / f"{number:05d}.parquet"
    if not path.is_file():  # no item fell into this shard
        return _item_schema(plan).empty_table(), np.empty(0, np.uint64), np.empty((0, identity.dim), np.float32)
    table = pq.read_table(path)
    vectors = plan.embeddings(identity).load(table["text_key"].to_pylist())
    items = table.select(_item_schema(plan).names).combine_chunks()
    return items, item_keys(table["item_id"].to_pylist()), vectors


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


def measure_recall(index: vector_index.VectorIndex, vectors: Vectors, sample: int) -> float | None:
    """Recall@10 of the index against exact search, for a fixed sample of its own items. None when it is empty."""
    if not len(vectors):
        return None
    if index.kind == "flat":
        return 1.0  # it is the exact search
    chosen = np.random.default_rng(0).choice(len(vectors), min(sample, len(vectors)), replace=False)
    exact = vector_index.build(vectors, "flat", index.metric, flat_below=len(vectors))
    queries = np.ascontiguousarray(vectors[chosen])
    found, truth = index.search(queries, 10, None).rows, exact.search(queries, 10, None).rows
    return float(np.mean([len(np.intersect1d(f, t)) / max(len(t), 1) for f, t in zip(found, truth, strict=True)]))


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
    with (plan.snapshot / QUARANTINE).open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in reject_rows(plan))
    (plan.snapshot / REPORT).write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
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
    write_manifest(plan.snapshot, manifest)
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
