"""The stages that turn event files into popularity and transition weights, partitioned by hash, without a shuffle.

    events, by split  --user-->  counts, by user part  --source-->  weights, by source part  --target-->  shards

A user's events stay together, so that pairs can be counted; all targets of a source come together, so that only the
strongest are kept; and each shard reads the weights that lead to its own items.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data import events, readers
from raysys.index.shard_files import rows_of
from raysys.keys import item_keys
from raysys.profile.fold import event_weight
from raysys.training import changes, log, popularity, ridge, transition, words
from raysys.training.items import by_code, write_rejects
from raysys.training.plan import BuildPlan
from raysys.types import Keys

LEAST_MET = 2  # events of an item, from which on the regression looks at it


def stage_events(plan: BuildPlan, number: int) -> dict[str, Any]:
    """Read and check one split of the events, cut by user. Returns counts and the time of the latest event.

    What people did before they were erased is left out, and counted as ``erased``.
    """
    settings = plan.settings.events
    assert settings is not None  # noqa: S101  # there are no event splits without settings
    wanted = list(dict.fromkeys(plan.inputs.event_columns.values()))
    kept, rejects, n_read, n_erased = [], [], 0, 0
    erased = changes.erased_users(plan.staging)
    for batch in readers.read(plan.inputs.events[number], wanted):
        n_read += len(batch.table) + len(batch.rejects)
        prepared = events.prepare_events(batch, settings, plan.inputs.event_columns)
        rejects += prepared.rejects
        stays = _stays(prepared.events, erased)
        n_erased += int(np.count_nonzero(~stays))
        kept.append(prepared.events.filter(pa.array(stays)))
    write_rejects(plan, f"events-{number:06d}", rejects)
    latest_s = _write_by_user(plan, number, pa.concat_tables(kept)) if kept else -np.inf
    n_kept = sum(map(len, kept))
    return {"read": n_read, "kept": n_kept, "erased": n_erased, "rejected": by_code(rejects), "latest_s": latest_s}


def _stays(table: pa.Table, erased: Mapping[str, float]) -> NDArray[np.bool_]:
    """[n] bool: which events are later than the erasure of their user."""
    erased_s = np.array([erased.get(user_id, -np.inf) for user_id in table["user_id"].to_pylist()], dtype=np.float64)
    stays: NDArray[np.bool_] = table["timestamp_s"].to_numpy() > erased_s
    return stays


def _write_by_user(plan: BuildPlan, number: int, table: pa.Table) -> float:
    if not len(table):
        return -np.inf
    columns = {
        "event": _hashed(table["event_id"]),
        "user": _hashed(table["user_id"]),
        "item": _hashed(table["item_id"]),
        "timestamp_s": table["timestamp_s"].to_numpy(),
        "weight": _weights(table, plan.settings.behaviour.event_weights),
        "kind": table["kind"].combine_chunks().dictionary_encode(),
        "value": table["value"].combine_chunks(),
    }
    part = columns["user"] % np.uint64(plan.n_shards)
    for p in np.unique(part):
        mine = pa.table(columns).filter(pa.array(part == p))
        pq.write_table(mine, plan.staged("events", f"{p:05d}") / f"{number:06d}.parquet")
    return float(columns["timestamp_s"].max())


def _hashed(column: pa.ChunkedArray) -> Keys:
    """[n] uint64 keys; each distinct id is hashed once."""
    encoded = column.combine_chunks().dictionary_encode()
    keys: Keys = item_keys(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]
    return keys


def _weights(table: pa.Table, weights: dict[str, float]) -> NDArray[np.float32]:
    pairs = zip(table["kind"].to_pylist(), table["value"].to_pylist(), strict=True)
    return np.array([event_weight(kind, value, weights) for kind, value in pairs], dtype=np.float32)


def count_part(plan: BuildPlan, part: int, latest_s: float) -> None:
    """Count items and item pairs in the events of one part of the users; write pair counts by source."""
    liked = log.liked(plan, part)
    if liked is None:
        return
    settings = plan.settings.behaviour
    counts = popularity.count_items(
        liked.item, liked.time_s, liked.weight, latest_s, settings.popularity_half_life_days
    )
    write(plan, ("item_counts",), f"{part:05d}", keys=counts.keys, count=counts.count, popularity=counts.popularity)
    pairs = transition.count_pairs(liked.user, liked.item, liked.time_s, settings.window, settings.reverse)
    for p, mine in cut(pairs.source, plan.n_shards):
        taken = pairs.take(mine)
        write(plan, ("pairs", p), f"{part:05d}", source=taken.source, target=taken.target, weight=taken.weight)


def weigh_part(plan: BuildPlan, part: int) -> None:
    """The weights of all pairs whose source falls in this part, the strongest of each source; written by shard."""
    counts = item_counts(plan)
    pairs = transition.merge([transition.PairCounts(*arrays) for arrays in read(plan, ("pairs", f"{part:05d}"))])
    weights = transition.normalise(pairs, (counts.keys, counts.count), plan.settings.behaviour.shrink)
    weights = transition.prune(weights, plan.settings.behaviour.targets_per_item)
    for shard, mine in cut(weights.target, plan.n_shards):
        taken = weights.take(mine)
        write(plan, ("weights", shard), f"{part:05d}", source=taken.source, target=taken.target, weight=taken.weight)


def fit_ridge(plan: BuildPlan) -> dict[str, int]:
    """Ridge regression over the events of all users and the settled items; weights written by shard.

    Returns ``ridge_items``, how many items took part, or ``ridge_too_many``, why there is none.
    """
    settings = plan.settings.behaviour
    items = met_twice(plan)
    if len(items) > settings.ridge_items:
        return {"ridge_too_many": len(items)}
    if len(items) < 2:
        return {}
    sums = None
    for user, item in histories(plan, items):
        part = ridge.moments(user, item, len(items), settings.ridge_decay, settings.reverse)
        sums = part if sums is None else sums.plus(part)
    assert sums is not None  # noqa: S101  # items were met in the events
    terms = words.matrix(plan, items)
    weights = ridge.solve(sums, terms, settings.ridge_penalty, settings.ridge_words, settings.targets_per_item, items)
    for shard, mine in cut(weights.target, plan.n_shards):
        taken = weights.take(mine)
        write(plan, ("ridge", shard), "all", source=taken.source, target=taken.target, weight=taken.weight)
    return {"ridge_items": len(items)}


def met_twice(plan: BuildPlan) -> Keys:
    """[n] ascending keys of the settled items that are in two events or more."""
    counts = item_counts(plan)
    keys: Keys = np.intersect1d(counts.keys[counts.count >= LEAST_MET], words.settled_keys(plan))
    return keys


def histories(plan: BuildPlan, items: Keys) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
    """For each part of the users, what they liked of these items, as users and positions: by user, oldest first.

    Events of one user at one time stay in the order of the files.
    """
    for part in range(plan.n_shards):
        liked = log.liked(plan, part)
        if liked is not None:
            at = rows_of(items, liked.item)
            known = at >= 0
            order = np.lexsort((liked.time_s[known], liked.user[known]))
            yield liked.user[known][order], at[known][order]


def item_counts(plan: BuildPlan) -> popularity.ItemCounts:
    """Counts and popularity of every item in the events."""
    return popularity.merge([popularity.ItemCounts(*arrays) for arrays in read(plan, ("item_counts",))])


def shard_weights(plan: BuildPlan, number: int) -> transition.PairCounts:
    """The transition weights that lead to the items of one shard."""
    return transition.merge([transition.PairCounts(*arrays) for arrays in read(plan, ("weights", f"{number:05d}"))])


def shard_ridge(plan: BuildPlan, number: int) -> transition.PairCounts:
    """The weights of the regression that lead to the items of one shard."""
    return transition.merge([transition.PairCounts(*arrays) for arrays in read(plan, ("ridge", f"{number:05d}"))])


def relative_popularity(counts: popularity.ItemCounts, keys: Keys) -> NDArray[np.float32]:
    """[n] float32 in 0..1 for these items: log(1 + popularity), the most popular item of all = 1."""
    top = float(np.log1p(counts.popularity).max(initial=0))
    if top <= 0:
        return np.zeros(len(keys), dtype=np.float32)
    at = np.minimum(np.searchsorted(counts.keys, keys), len(counts) - 1)
    known = counts.keys[at] == keys
    return np.where(known, np.log1p(counts.popularity[at]) / top, 0).astype(np.float32)


def cut(keys: Keys, n: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """The parts that these keys fall into, of n, each by its name: (name, [len(keys)] bool which are in it)."""
    part = keys % np.uint64(n)
    return [(f"{p:05d}", part == p) for p in np.unique(part)]


def write(plan: BuildPlan, folder: tuple[str, ...], name: str, **arrays: NDArray[Any]) -> None:
    """Keep these columns as one file of a staging folder."""
    table = pa.table({column: pa.array(values) for column, values in arrays.items()})
    pq.write_table(table, plan.fitted(*folder) / f"{name}.parquet")


def read(plan: BuildPlan, folder: tuple[str, ...]) -> list[list[NDArray[Any]]]:
    """The columns of every file of a staging folder."""
    tables = [pq.read_table(path, partitioning=None) for path in sorted(plan.fitted(*folder).glob("*.parquet"))]
    return [[column.to_numpy() for column in table.columns] for table in tables]
