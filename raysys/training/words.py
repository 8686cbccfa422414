"""The stages that turn the fields of items into terms: counted shard by shard, weighed over the whole catalogue."""

from collections.abc import Iterator
from itertools import chain
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

ROW_BATCH = 4_096  # rows that are Python objects at a time
_SCHEMA = pa.schema([("row", pa.int32()), ("term", pa.uint64()), ("count", pa.float32())])


def stage(plan: BuildPlan, number: int, items: pa.Table) -> None:
    """Write how often each row of a shard's settled items holds each of its terms, and how many rows hold each term."""
    path = plan.staged("words") / f"{number:05d}.parquet"
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for table in _terms_of(items, [*plan.inputs.attributes]):
            writer.write_table(table)
    terms, n_with = np.unique(pq.read_table(path, columns=["term"])["term"].to_numpy(), return_counts=True)
    pq.write_table(pa.table({"term": terms, "n_with": n_with}), plan.staged("terms") / path.name)


def _terms_of(items: pa.Table, attributes: list[str]) -> Iterator[pa.Table]:
    """Tables of ``_SCHEMA``, some thousands of items each."""
    fields = items.select([*dict.fromkeys((*READ, *WHOLE, *attributes))])
    first = 0
    for batch in fields.to_batches(max_chunksize=ROW_BATCH):
        found = [item_terms(values, attributes) for values in batch.to_pylist()]
        rows = np.repeat(np.arange(first, first + len(found), dtype=np.int32), [len(terms) for terms in found])
        terms = term_keys(chain.from_iterable(found))
        counts = np.fromiter((n for terms in found for n in terms.values()), dtype=np.float32)
        yield pa.table([rows, terms, counts], schema=_SCHEMA)
        first += len(batch)


def count_all(plan: BuildPlan) -> None:
    """Write the vocabulary of all settled items. Once: tasks map it, where each would else hold every term."""
    parts = (pq.read_table(path) for path in _files(plan, "terms"))
    n_items = sum(pq.read_metadata(path).num_rows for path in _files(plan, "settled"))
    counted = ((part["term"].to_numpy(), part["n_with"].to_numpy()) for part in parts)
    Vocabulary.from_parts(counted, n_items).save(plan.staged("vocabulary"))


def vocabulary(plan: BuildPlan) -> Vocabulary:
    """The terms of all settled items, mapped from what ``count_all`` wrote."""
    return Vocabulary.load(plan.staged("vocabulary"))


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
