"""The stages of the build around the fit: what it reads is written for all workers, what it found goes into the shards.

staging/<id>/fitted/sequence/         keys.npy, starts.npy, items.npy, text.npy: what people liked, and its texts
staging/<id>/fitted/sequence/fitted/  the model, and vectors.npy, [n, dim] float32 of these items
"""

import numpy as np
import pyarrow.parquet as pq

from raysys.encoder.protocol import EncoderIdentity
from raysys.encoder.vectors import KEY, keys_of
from raysys.index.arrays import open_array, save_array
from raysys.index.sequence import SequenceEncoder
from raysys.index.shard_files import rows_of
from raysys.training import behaviour, spaces, words
from raysys.training.plan import BuildPlan
from raysys.training.sequence.examples import FITTED, FITTED_VECTORS, HeldOut, Histories, Windows
from raysys.types import SEQUENCE, SOURCES, Keys, TextKeys, Vectors


def write_histories(plan: BuildPlan, identity: EncoderIdentity) -> dict[str, int]:
    """Write what the model is fitted on: the settled items that were met, and who liked them, oldest first.

    Returns ``sequence_items`` and ``sequence_windows``, the runs of events to fit on; nothing where there are none.
    """
    settings = plan.settings.behaviour.sequence
    assert settings is not None  # noqa: S101  # nobody asks without
    keys = np.intersect1d(behaviour.item_counts(plan).keys, words.settled_keys(plan))
    parts = list(behaviour.histories(plan, keys))
    if not parts:
        return {}
    users, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    begins = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    starts = np.concatenate([begins, [len(users)]]).astype(np.int64)
    histories = Histories(starts, items.astype(np.int32), _text(plan, identity, keys))
    windows = Windows.of(histories, HeldOut.of(histories, settings.seed), settings.max_history)
    if not len(windows):
        return {}
    histories.save(plan.fitted("sequence"))
    save_array(plan.fitted("sequence") / "keys.npy", keys)
    return {"sequence_items": len(keys), "sequence_windows": len(windows)}


def _text(plan: BuildPlan, identity: EncoderIdentity, keys: Keys) -> Vectors:
    """[len(keys), text_dim] float32: the vectors of the texts of these settled items, keys ascending."""
    text_keys: TextKeys = np.empty(len(keys), KEY)
    for path in sorted(plan.staged("settled").glob("*.parquet")):
        table = pq.read_table(path, columns=["item_key", "text_key"])
        rows = rows_of(keys, table["item_key"].to_numpy())
        text_keys[rows[rows >= 0]] = keys_of(table["text_key"])[rows >= 0]
    return plan.embeddings(identity).load(text_keys)


def conclude(plan: BuildPlan) -> None:
    """Hand the vectors of the items that were met, and what makes a vector of a person, to the snapshot."""
    folder = plan.fitted("sequence")
    vectors = open_array(folder / FITTED / FITTED_VECTORS)
    person = spaces.stage(plan, SOURCES[SEQUENCE], open_array(folder / "keys.npy"), vectors)
    SequenceEncoder.load(folder / FITTED).save(person)
