"""The stages that turn catalogue files into the settled items of each shard, and list the texts to encode.

Every stage reads and writes files; what it returns is small. A stage that is run again writes the same files again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data import catalog, readers
from raysys.data.rejects import Reject, rejects_table
from raysys.encoder.protocol import Encoder, EncoderIdentity
from raysys.keys import item_keys, text_key
from raysys.training import changes, words
from raysys.training.plan import BuildPlan

KEY, TEXT = "item_key", "item_text"


def stage_items(plan: BuildPlan, number: int) -> dict[str, Any]:
    """Read, clean and cut by shard one split of the catalogue. Returns counts."""
    split = plan.inputs.items[number]
    wanted = catalog.columns_to_read(plan.settings.catalog, plan.inputs.item_columns)
    kept, rejects, n_read = [], [], 0
    for batch in readers.read(split, wanted):
        n_read += len(batch.table) + len(batch.rejects)
        prepared = catalog.prepare(batch, plan.settings.catalog, plan.inputs.item_columns, plan.inputs.attributes)
        rejects += prepared.rejects
        kept.append(prepared.items)
    table = pa.concat_tables(kept) if kept else None
    n_kept = 0 if table is None else len(table)
    if table is not None and n_kept:
        _write_by_shard(plan, "items", number, table)
    write_rejects(plan, f"items-{number:06d}", rejects)
    return {"read": n_read, "kept": n_kept, "rejected": by_code(rejects)}


def stage_changes(plan: BuildPlan) -> dict[str, Any]:
    """Cut the live changes by shard. Returns counts: ``folded``, deletions included, and ``rejected``."""
    n_folded, rejects = 0, []
    first = len(plan.inputs.items)  # they come after every row of the catalogue
    for number, batch in enumerate(changes.batches(plan.staging), start=first):
        folded = changes.prepare(batch, plan.settings.catalog, plan.inputs.attributes, number)
        n_folded += len(batch)
        rejects += folded.rejects
        _write_by_shard(plan, "changes", number, folded.items)
        _write_by_shard(plan, "gone", number, folded.gone)
    write_rejects(plan, f"items-{first:06d}", rejects)
    return {"folded": n_folded, "rejected": by_code(rejects)}


def _write_by_shard(plan: BuildPlan, kind: str, number: int, table: pa.Table) -> None:
    keys = item_keys(table["item_id"].to_pylist())
    table = table.append_column(KEY, pa.array(keys))
    shard = keys % np.uint64(plan.n_shards)
    for s in np.unique(shard):
        path = plan.staged(kind, f"{s:05d}") / f"{number:06d}.parquet"
        pq.write_table(table.filter(pa.array(shard == s)), path)


def write_rejects(plan: BuildPlan, name: str, rejects: list[Reject]) -> None:
    """Keep the rejects of one split for the quarantine file."""
    if rejects:
        pq.write_table(rejects_table(rejects), plan.staged("rejects") / f"{name}.parquet")


def by_code(rejects: list[Reject]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reject in rejects:
        name = f"{reject.field or 'row'}: {reject.code} ({reject.dropped} dropped)"
        counts[name] = counts.get(name, 0) + 1
    return counts


def settle_shard(plan: BuildPlan, number: int, identity: EncoderIdentity) -> dict[str, Any]:
    """All items of one shard, the last of each id, sorted by key; and files of the texts that have no vector yet.

    Returns counts. ``duplicates``: rows of the catalogue with a later one. ``replaced_by_change``: those with a live
    change. ``deleted_by_change``: items of the catalogue that stay away, as a live change says.
    """
    items, counts = _latest(plan, number)
    if not len(items):
        return {**counts, "items": 0, "collisions": 0, "todo": 0, "unchanged": 0}
    items, collisions = _without_collisions(items.sort_by(KEY))
    fingerprint = identity.fingerprint()
    texts = items[TEXT].to_pylist()
    keys = [text_key(fingerprint, text) for text in texts]
    items = items.append_column("text_key", pa.array(keys, pa.binary(32)))
    pq.write_table(items, plan.staged("settled") / f"{number:05d}.parquet")
    words.stage(plan, number, items)
    done = plan.embeddings(identity).keys()
    todo = {key: text for key, text in zip(keys, texts, strict=True) if key not in done}
    _write_todo(plan, number, todo)
    return {
        **counts,
        "items": len(items),
        "collisions": collisions,
        "todo": len(todo),
        "unchanged": len(set(keys)) - len(todo),
    }


def _latest(plan: BuildPlan, number: int) -> tuple[pa.Table, dict[str, int]]:
    """The last row of each item of a shard; a live change wins over every row of the catalogue."""
    schema = catalog.item_schema(plan.inputs.attributes)
    items, duplicates = catalog.last_wins(_staged(plan, "items", number, schema))
    items, replaced = catalog.last_wins(pa.concat_tables([items, _staged(plan, "changes", number, schema)]))
    kept = changes.without(items, _staged(plan, "gone", number, changes.GONE_SCHEMA)["item_id"])
    counts = {"duplicates": duplicates, "replaced_by_change": replaced, "deleted_by_change": len(items) - len(kept)}
    return kept, counts


def _staged(plan: BuildPlan, kind: str, number: int, schema: pa.Schema) -> pa.Table:
    """What ``_write_by_shard`` has written for a shard."""
    nothing = schema.append(pa.field(KEY, pa.uint64())).empty_table()
    files = sorted(plan.staged(kind, f"{number:05d}").glob("*.parquet"))
    return pa.concat_tables([nothing, *(pq.read_table(file, partitioning=None) for file in files)])


def _without_collisions(items: pa.Table) -> tuple[pa.Table, int]:
    """Two ids with one 64-bit key cannot both be addressed: the first stays. Expected once in some 10^9 items."""
    keys = items[KEY].to_numpy()
    first = np.ones(len(keys), dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    return (items, 0) if first.all() else (items.filter(pa.array(first)), int((~first).sum()))


def _write_todo(plan: BuildPlan, number: int, todo: dict[bytes, str]) -> None:
    """Files of texts of like length: an encoder then pads little, whatever file it gets."""
    ordered = sorted(todo.items(), key=lambda pair: len(pair[1]))
    size = plan.settings.workers.texts_per_file
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        table = pa.table({"text_key": pa.array([k for k, _ in part], pa.binary(32)), "text": [t for _, t in part]})
        pq.write_table(table, plan.staged("todo") / f"{number:05d}-{start // size:06d}.parquet")


def todo_files(plan: BuildPlan) -> list[Path]:
    """The files of texts to encode, the longest texts first, so that no worker ends alone with them."""
    return sorted(plan.staged("todo").glob("*.parquet"), key=lambda path: -path.stat().st_size)


def encode_file(plan: BuildPlan, path: Path, encoder: Encoder) -> dict[str, int]:
    """Encode the texts of one file into the embedding store. Returns counts."""
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    store = plan.embeddings(encoder.identity)
    vectors, n_tokens = encoder.encode_counted(texts, "item")
    written = store.write(table["text_key"].to_pylist(), vectors)
    return {"texts": len(texts), "tokens": n_tokens, "bytes": written.stat().st_size}


def reject_rows(plan: BuildPlan) -> Iterator[dict[str, Any]]:
    """All rejects of the build, in the order of the splits."""
    for path in sorted(plan.staged("rejects").glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()
