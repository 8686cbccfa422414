from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysys.encoder.batching import padded_length, token_batches

LENGTHS = st.lists(st.integers(1, 600), max_size=200)
BUDGETS = st.integers(1, 4_096)
PADS = st.sampled_from([1, 8, 16])


def test_longest_first_and_full_batches() -> None:
    batches = token_batches([3, 20, 9, 16, 2], batch_tokens=48, pad_to=8)
    # 20 pads to 24: two rows; then 9 pads to 16: three rows.
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0, 4]]


def test_a_text_over_the_budget_is_alone() -> None:
    assert [batch.tolist() for batch in token_batches([5, 900, 5], batch_tokens=64)] == [[1], [0, 2]]


def test_no_texts_give_no_batches() -> None:
    assert token_batches([], 64) == []


def test_equal_lengths_keep_their_order() -> None:
    assert [batch.tolist() for batch in token_batches([4] * 5, batch_tokens=16)] == [[0, 1], [2, 3], [4]]


@given(LENGTHS, BUDGETS, PADS)
def test_every_index_is_there_once(lengths: list[int], budget: int, pad_to: int) -> None:
    batches = token_batches(lengths, budget, pad_to)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)


@given(LENGTHS, BUDGETS, PADS)
def test_the_budget_is_kept_by_all_but_lone_texts(lengths: list[int], budget: int, pad_to: int) -> None:
    for batch in token_batches(lengths, budget, pad_to):
        width = padded_length(max(lengths[index] for index in batch), pad_to)
        assert width % pad_to == 0
        assert len(batch) == 1 or len(batch) * width <= budget


@given(LENGTHS, BUDGETS, PADS)
def test_batches_do_not_overlap_in_length_and_cannot_be_joined(lengths: list[int], budget: int, pad_to: int) -> None:
    batches = token_batches(lengths, budget, pad_to)
    for longer, shorter in pairwise(batches):
        assert min(lengths[index] for index in longer) >= max(lengths[index] for index in shorter)
        width = padded_length(lengths[longer[0]], pad_to)
        assert (len(longer) + 1) * width > budget


def test_little_is_spent_on_padding() -> None:
    lengths = np.random.default_rng(0).integers(4, 200, size=2_000)
    padded = sum(len(batch) * padded_length(lengths[batch].max(), 8) for batch in token_batches(lengths, 2_048))
    assert padded < 1.06 * lengths.sum()
