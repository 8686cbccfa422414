"""What the sequence model reads: every event once, the same for one worker as for many, and the same when resumed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysys.config import SequenceSettings
from raysys.training.sequence.examples import (
    NO_TARGET,
    Batch,
    HeldOut,
    Histories,
    Negatives,
    Share,
    Windows,
    epoch,
)

N_ITEMS = 30


def histories_of(rows: list[list[int]]) -> Histories:
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    return Histories(starts, items, np.random.default_rng(0).normal(size=(N_ITEMS, 8)).astype(np.float32))


def batches(histories: Histories, settings: SequenceSettings, number: int, share: Share) -> list[Batch]:
    windows = Windows.of(histories, HeldOut.of(histories, settings.seed), settings.max_history)
    return list(epoch(histories, windows, Negatives(histories, settings), settings, number, share))


def pairs(found: list[Batch]) -> list[tuple[int, int]]:
    """(what stands before, what is predicted), as items of the catalogue."""
    return sorted(
        (int(batch.items[read]), int(batch.items[target]))
        for batch in found
        for read, target in zip(batch.inputs.ravel(), batch.targets.ravel(), strict=True)
        if target != NO_TARGET
    )


people = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=12), min_size=1, max_size=12)


@given(people, st.integers(1, 5))
def test_every_event_is_predicted_once_but_the_first_and_the_held_out(rows: list[list[int]], max_history: int) -> None:
    rows.append([1, 2])  # somebody to fit on
    histories = histories_of(rows)
    held_out = set(HeldOut.of(histories, 0).users.tolist())
    kept = [row[:-1] if user in held_out else row for user, row in enumerate(rows)]
    expected = sorted(pair for row in kept for pair in pairwise(row))
    settings = SequenceSettings(max_history=max_history, batch=4, negatives=8)
    found = batches(histories, settings, 0, Share())
    assert pairs(found) == expected
    assert all(batch.inputs.shape[1] <= max_history for batch in found)
    assert sum(batch.n_predicted for batch in found) == len(expected)


@given(people, st.integers(2, 4))
def test_the_shares_of_many_workers_are_the_batches_of_one(rows: list[list[int]], n_workers: int) -> None:
    rows += [[1, 2, 3]] * n_workers
    histories, settings = histories_of(rows), SequenceSettings(batch=n_workers, max_history=4, negatives=8)
    alone = batches(histories, settings, 1, Share())
    together = [batches(histories, settings, 1, Share(rank, n_workers)) for rank in range(n_workers)]
    for step, whole in enumerate(alone):
        parts = [of_worker[step] for of_worker in together]
        assert sorted(pair for part in parts for pair in pairs([part])) == pairs([whole])
        for part in parts:
            assert np.array_equal(part.items[part.negatives], whole.items[whole.negatives])
            assert part.n_predicted == whole.n_predicted
            assert np.array_equal(part.text, histories.text[part.items])


def test_an_epoch_is_drawn_from_its_number_alone() -> None:
    histories = histories_of([list(range(user % 7, 20)) for user in range(40)])
    settings = SequenceSettings(batch=8, negatives=16)
    first, again, other = (batches(histories, settings, number, Share()) for number in (3, 3, 4))
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert all(np.array_equal(a.items, b.items) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.items, b.items) for a, b in zip(first, other, strict=True))


def test_negatives_come_as_often_as_they_say() -> None:
    histories = histories_of([[0] * 60, [1] * 30, [2] * 10])
    draws = [
        Negatives(histories, SequenceSettings(negatives=64)).draw(np.random.default_rng(seed)) for seed in range(300)
    ]
    drawn = np.concatenate([rows for rows, _ in draws])
    expected = {int(row): np.exp(log) for rows, logs in draws for row, log in zip(rows, logs, strict=True)}
    assert len(expected) == N_ITEMS  # also those that nobody met
    for row, per_draw in expected.items():
        assert abs(np.count_nonzero(drawn == row) / 300 - per_draw) < 5 * np.sqrt(per_draw / 300)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    histories = histories_of([[1, 2, 3], [], [4]])
    histories.save(tmp_path)
    found = Histories.load(tmp_path)
    assert all(np.array_equal(getattr(found, name), getattr(histories, name)) for name in ("starts", "items", "text"))
