"""The stages that turn the fields of items into terms: counted shard by shard, weighed over the whole catalogue."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from raysys.index.shard_files import rows_of
from raysys.index.words import Vocabulary, WordRows
from raysys.keys import term_keys
from raysys.training.plan import BuildPlan
from raysys.types import Keys
from raysys.words import READ, WHOLE, item_terms

ROW_BATCH = 1_024  # rows that are Python objects at a time


def stage(plan: BuildPlan, number: int, items: pa.Table) -> None:
    """Write how often each row of a shard's settled items holds each of its terms."""
    attributes = [*plan.inputs.attributes]
    fields = items.select([*dict.fromkeys((*READ, *WHOLE, *attributes))])
    rows, terms, counts = [np.empty(0, np.int32)], [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
    first = 0
    for batch in fields.to_batches(max_chunksize=ROW_BATCH):
        for row, values in enumerate(batch.to_pylist(), start=first):
            found = item_terms(values, attributes)
            rows.append(np.full(len(found), row, dtype=np.int32))
            terms.append(term_keys(found))
            counts.append(np.fromiter(found.values(), dtype=np.float32))
        first += len(batch)
    columns = {"row": np.concatenate(rows), "term": np.concatenate(terms), "count": np.concatenate(counts)}
    pq.write_table(pa.table(columns), plan.staged("words") / f"{number:05d}.parquet")


def vocabulary(plan: BuildPlan) -> Vocabulary:
    """The terms of all settled items."""
    parts = [pq.read_table(path, columns=["term"])["term"].to_numpy() for path in _files(plan, "words")]
    n_items = sum(pq.read_metadata(path).num_rows for path in _files(plan, "settled"))
    return Vocabulary.from_parts(parts, n_items)


def settled_keys(plan: BuildPlan) -> Keys:
    """The keys of all settled items."""
    parts = [pq.read_table(path, columns=["item_key"])["item_key"].to_numpy() for path in _files(plan, "settled")]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def matrix(plan: BuildPlan, keys: Keys) -> sp.csr_array:
    """[len(keys), v] float32: the unit term weights of these items, keys ascending; an empty row of an unknown one."""
    known = vocabulary(plan)
    rows, columns, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for path in _files(plan, "settled"):
        settled = pq.read_table(path, columns=["item_key"])["item_key"].to_numpy()
        mine = shard_words(plan, int(path.stem), len(settled), known)
        row = np.repeat(rows_of(keys, settled), np.diff(mine.offsets))
        wanted = row >= 0
        rows.append(row[wanted])
        columns.append(rows_of(known.terms, mine.terms[wanted]))
        weights.append(mine.weights[wanted])
    places = (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_array((np.concatenate(weights), places), shape=(len(keys), len(known.terms)))


def shard_words(plan: BuildPlan, number: int, n_rows: int, known: Vocabulary) -> WordRows:
    """The terms of one shard, weighed by those of all items."""
    path = plan.staged("words") / f"{number:05d}.parquet"
    if not path.is_file():  # no item fell into this shard
        return WordRows.empty(n_rows)
    table = pq.read_table(path)
    rows, terms, counts = (table[name].to_numpy() for name in ("row", "term", "count"))
    return WordRows.build(n_rows, rows, terms, counts, known)


def _files(plan: BuildPlan, folder: str) -> list[Path]:
    return sorted(plan.staged(folder).glob("*.parquet"))
