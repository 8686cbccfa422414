"""The stages that turn catalogue files into the settled items of each shard, and list the texts to encode.

Every stage reads and writes files; what it returns is small. A stage that is run again writes the same files again.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data import catalog, readers
from raysys.data.rejects import Reject, rejects_table
from raysys.encoder.protocol import Encoder, EncoderIdentity
from raysys.encoder.vectors import key_column, keys_of
from raysys.keys import item_keys, text_keys
from raysys.training import changes, words
from raysys.training.encoding import Turns
from raysys.training.plan import BuildPlan

KEY, TEXT = "item_key", "item_text"
PART_BYTES = 64_000_000  # of cleaned items that are cut by shard together: more memory, or more and smaller files


def stage_items(plan: BuildPlan, number: int) -> dict[str, Any]:
    """Read, clean and cut by shard one split of the catalogue, of any size. Returns counts.

    ``kept_bytes``: what the kept rows take in memory.
    """
    counts: dict[str, Any] = {"read": 0, "kept": 0, "kept_bytes": 0, "rejected": Counter()}
    for part, table in enumerate(_gathered(_cleaned(plan, number, counts))):
        counts["kept"] += len(table)
        counts["kept_bytes"] += table.nbytes
        _write_by_shard(plan, "items", f"{number:06d}-{part:06d}", table)
    return counts | {"rejected": dict(counts["rejected"])}


def _cleaned(plan: BuildPlan, number: int, counts: dict[str, Any]) -> Iterator[pa.Table]:
    """The items of a split, batch by batch. Counts what was read, counts and puts aside what was rejected."""
    wanted = catalog.columns_to_read(plan.settings.catalog, plan.inputs.item_columns)
    for part, batch in enumerate(readers.read(plan.inputs.items[number], wanted)):
        prepared = catalog.prepare(batch, plan.settings.catalog, plan.inputs.item_columns, plan.inputs.attributes)
        counts["read"] += len(batch.table) + len(batch.rejects)
        counts["rejected"].update(by_code(prepared.rejects))
        write_rejects(plan, f"items-{number:06d}-{part:06d}", prepared.rejects)
        yield prepared.items


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of some ``PART_BYTES``."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.nbytes for one in held) >= PART_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def stage_changes(plan: BuildPlan) -> dict[str, Any]:
    """Cut the live changes by shard. Returns counts: ``folded``, deletions included, and ``rejected``."""
    n_folded, rejects = 0, []
    first = len(plan.inputs.items)  # they come after every row of the catalogue
    for number, batch in enumerate(changes.batches(plan.staging), start=first):
        folded = changes.prepare(batch, plan.settings.catalog, plan.inputs.attributes, number)
        n_folded += len(batch)
        rejects += folded.rejects
        _write_by_shard(plan, "changes", f"{number:06d}", folded.items)
        _write_by_shard(plan, "gone", f"{number:06d}", folded.gone)
    write_rejects(plan, f"items-{first:06d}", rejects)
    return {"folded": n_folded, "rejected": by_code(rejects)}


def _write_by_shard(plan: BuildPlan, kind: str, name: str, table: pa.Table) -> None:
    keys = item_keys(table["item_id"].to_pylist())
    table = table.append_column(KEY, pa.array(keys))
    shard = keys % np.uint64(plan.n_shards)
    for s in np.unique(shard):
        path = plan.staged(kind, f"{s:05d}") / f"{name}.parquet"
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
    change. ``deleted_by_change``: items of the catalogue that stay away, as a live change says. ``unchanged``: texts
    that have a vector, ``unchanged_chars`` in all; ``todo``: those that have none, likewise. ``item_bytes``: of the
    items.
    """
    items, counts = _latest(plan, number)
    if not len(items):
        return {**counts, "items": 0, "collisions": 0, "todo": 0, "unchanged": 0}
    items, collisions = _without_collisions(items.sort_by(KEY))
    keys = text_keys(identity.fingerprint(), (text.as_py() for text in items[TEXT]))
    items = items.append_column("text_key", key_column(keys))
    pq.write_table(items, plan.staged("settled") / f"{number:05d}.parquet")
    words.stage(plan, number, items)
    texts = items.select(["text_key", TEXT]).take(np.sort(np.unique(keys, return_index=True)[1]))
    known = plan.embeddings(identity).holds(keys_of(texts["text_key"]))
    chars = pc.utf8_length(texts[TEXT]).to_numpy()
    _write_todo(plan, number, texts, np.flatnonzero(~known)[np.argsort(chars[~known], kind="stable")])
    return {
        **counts,
        "items": len(items),
        "item_bytes": items.nbytes,
        "collisions": collisions,
        "todo": int((~known).sum()),
        "todo_chars": int(chars[~known].sum()),
        "unchanged": int(known.sum()),
        "unchanged_chars": int(chars[known].sum()),
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


def _write_todo(plan: BuildPlan, number: int, texts: pa.Table, todo: NDArray[np.intp]) -> None:
    """Files of the texts in these rows, the shortest first. Those of a file are of like length: an encoder then pads
    little, whatever file it gets."""
    size = plan.settings.workers.texts_per_file
    texts = texts.rename_columns(["text_key", "text"])
    for start in range(0, len(todo), size):
        path = plan.staged("todo") / f"{number:05d}-{start // size:06d}.parquet"
        pq.write_table(texts.take(todo[start : start + size]), path)


def todo_files(plan: BuildPlan) -> list[Path]:
    """The files of texts to encode, the longest texts first, so that no worker ends alone with them."""
    return sorted(plan.staged("todo").glob("*.parquet"), key=lambda path: -path.stat().st_size)


def encode_file(plan: BuildPlan, path: Path, encoder: Encoder, turns: Turns) -> dict[str, Any]:
    """Encode the texts of one file into the embedding store. Returns counts, and when the encoder began (``begun_s``,
    UTC epoch seconds) and how long it worked (``seconds``).

    turns: one is taken while the encoder works, not while files are read and written, so that other threads encode.
    """
    table = pq.read_table(path)
    texts = table["text"].to_pylist()
    store = plan.embeddings(encoder.identity)
    with turns(len(texts)):
        begun_s, start_s = time.time(), time.perf_counter()
        vectors, n_tokens = encoder.encode_counted(texts, "item")
        seconds = time.perf_counter() - start_s
    written = store.write(table["text_key"].to_pylist(), vectors)
    counts = {"texts": len(texts), "tokens": n_tokens, "chars": sum(map(len, texts)), "bytes": written.stat().st_size}
    return {**counts, "begun_s": begun_s, "seconds": seconds}


def reject_rows(plan: BuildPlan) -> Iterator[dict[str, Any]]:
    """All rejects of the build, in the order of the splits."""
    for path in sorted(plan.staged("rejects").glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()
