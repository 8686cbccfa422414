"""From parsed columns to a table of the rows that stay and a report of what did not."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysys.data.readers import Batch
from raysys.data.rejects import Problem, Reject, excerpt
from raysys.data.values import Parsed

# Where a row came from: the split and the row in its file.
SOURCE_FIELDS = [
    pa.field("source_seq", pa.int64(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a whole row goes: a problem of this field."""

    field: str
    problem: Problem


def place_of_rows(batch: Batch) -> dict[str, list[int]]:
    """The values of ``SOURCE_FIELDS``."""
    return {"source_seq": [batch.number] * len(batch.rows), "source_row": batch.rows.to_pylist()}


def build_table(schema: pa.Schema, values: Mapping[str, Sequence[Any]], dropped: Container[int]) -> pa.Table:
    """A table of the rows that are not dropped; a field without values is null throughout."""
    n_rows = len(values["source_row"])
    keep = [index for index in range(n_rows) if index not in dropped]
    arrays = [
        pa.array([values[field.name][index] for index in keep], field.type)
        if field.name in values
        else pa.nulls(len(keep), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def report(batch: Batch, parsed: Mapping[str, Parsed], dropped: Mapping[int, Fault]) -> list[Reject]:
    """A reject for each broken line, dropped row and unusable value, in the order of the rows."""
    rows = batch.rows.to_pylist()
    ids = parsed["item_id"].values if "item_id" in parsed else [None] * len(rows)

    def reject(fault: Fault, whole_row: bool) -> Reject:
        index, column = fault.problem.index, parsed.get(fault.field)
        return Reject(
            batch.source,
            rows[index],
            ids[index],
            fault.field,
            fault.problem.code,
            fault.problem.message,
            "row" if whole_row else "field",
            None if column is None else excerpt(column.raw[index]),
        )

    rejects = [*batch.rejects, *(reject(fault, True) for fault in dropped.values())]
    for name, column in parsed.items():
        for problem in column.problems:
            if problem.index not in dropped or dropped[problem.index].problem is not problem:
                rejects.append(reject(Fault(name, problem), False))
    return sorted(rejects, key=lambda reject: reject.row)
