"""Contrast: worked by hand, the same however the catalogue is cut, and harmless where there is nothing to contrast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import SnapshotError
from raysys.index import contrast
from raysys.index.contrast import MIN_ITEMS, Contrast, Moments


def vectors(*rows):
    return np.array(rows, dtype=np.float32)


def random_units(n, dim, seed):
    """Unit vectors that vary a lot along the first axis and little along the others."""
    raw = np.random.default_rng(seed).normal(size=(n, dim)) * np.array([3, *[1] * (dim - 1)])
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def contrast_of(*parts):
    return Contrast.from_moments([Moments.of(part) for part in parts])


# Mean (3, 0), covariance diag(4, 1) and so ridge 2.5: the inverse is diag(1 / 6.5, 1 / 3.5).
BY_HAND = np.tile(vectors([5, 1], [5, -1], [1, 1], [1, -1]), (25, 1))


def test_worked_by_hand():
    found = contrast_of(BY_HAND)
    assert found.mean.tolist() == [3, 0]
    assert found.inverse == pytest.approx(np.diag([1 / 6.5, 1 / 3.5]))
    assert found.mean.dtype == found.inverse.dtype == np.float32


def test_the_direction_in_which_the_catalogue_varies_counts_less():
    # (4, 1) - (3, 0) = (1, 1) -> (1 / 6.5, 1 / 3.5), which is (7, 13) but for its length.
    sharpened = contrast_of(BY_HAND).sharpen(vectors(4, 1))
    assert sharpened == pytest.approx(np.array([7, 13]) / np.hypot(7, 13))
    assert sharpened.dtype == np.float32


def test_a_taste_that_nothing_sets_apart_stays_as_it_is():
    assert contrast_of(BY_HAND).sharpen(vectors(3, 0)).tolist() == [3, 0]


def test_axes_that_vary_together_are_taken_apart():
    """Where two axes rise together, a taste along both is nothing special; one against the other is."""
    rows = np.tile(vectors([2, 2], [-2, -2], [0.5, -0.5], [-0.5, 0.5]), (25, 1))
    found = contrast_of(rows)
    assert found.inverse[0, 1] < 0
    usual, unusual = (found.inverse @ (vectors(1, sign) / np.sqrt(2)) for sign in (1, -1))
    assert np.linalg.norm(unusual) > np.linalg.norm(usual)


@given(st.lists(st.integers(0, 119), max_size=5), st.integers(0, 2**32 - 1))
def test_any_cut_of_the_catalogue_gives_the_same_contrast(cuts, seed):
    rows = random_units(120, 5, seed)
    whole, cut = contrast_of(rows), contrast_of(*np.split(rows, sorted(cuts)))
    assert cut.mean == pytest.approx(whole.mean, abs=1e-6)
    assert cut.inverse == pytest.approx(whole.inverse, rel=1e-5, abs=1e-5)


def test_the_order_of_the_shards_does_not_matter():
    parts = np.split(random_units(150, 4, 1), [30, 70])
    forth, back = contrast_of(*parts), contrast_of(*reversed(parts))
    assert back.inverse == pytest.approx(forth.inverse, rel=1e-6)


def test_it_is_the_covariance_of_all_items():
    rows = random_units(300, 6, 2).astype(np.float64)
    covariance = np.cov(rows, rowvar=False, bias=True)
    ridge = np.trace(covariance) / 6
    found = contrast_of(*np.split(rows.astype(np.float32), 3))
    assert found.inverse == pytest.approx(np.linalg.inv(covariance + ridge * np.eye(6)), rel=1e-4)


def test_zero_vectors_of_items_without_text_do_not_count():
    rows = random_units(MIN_ITEMS, 3, 3)
    padded = np.concatenate([rows, np.zeros((40, 3), np.float32)])
    assert Moments.of(padded).n == MIN_ITEMS
    assert contrast_of(padded).mean == pytest.approx(contrast_of(rows).mean)


def test_too_few_items_give_no_contrast():
    rows = random_units(MIN_ITEMS, 3, 4)
    padding = np.zeros((MIN_ITEMS, 3), np.float32)
    assert contrast_of(rows) is not None
    assert contrast_of(rows[:-1]) is None
    assert contrast_of(np.concatenate([rows[:-1], padding])) is None


def test_nothing_at_all_gives_no_contrast():
    assert Contrast.from_moments([]) is None
    assert contrast_of(np.empty((0, 3), np.float32)) is None


def test_items_that_are_all_alike_give_no_contrast():
    assert contrast_of(np.tile(vectors([0.6, 0.8]), (200, 1))) is None


def test_an_empty_shard_adds_nothing():
    rows = random_units(120, 3, 5)
    assert contrast_of(rows, rows[:0]).inverse == pytest.approx(contrast_of(rows).inverse)


def test_a_flat_catalogue_still_has_an_inverse():
    """Vectors that never leave a plane: the ridge keeps the axis without variance from exploding."""
    rows = np.pad(random_units(200, 2, 6), ((0, 0), (0, 1)))
    sharpened = contrast_of(rows).sharpen(vectors(0.6, 0.0, 0.8))
    assert np.isfinite(sharpened).all()
    assert np.linalg.norm(sharpened) == pytest.approx(1)


@given(st.integers(0, 2**32 - 1))
def test_what_comes_out_is_a_unit_vector(seed):
    found = contrast_of(random_units(200, 4, 7))
    sharpened = found.sharpen(random_units(1, 4, seed)[0])
    assert np.linalg.norm(sharpened) == pytest.approx(1, abs=1e-6)


def test_sharpening_leaves_its_input_alone():
    taste = random_units(1, 2, 8)[0]
    before = taste.copy()
    contrast_of(BY_HAND).sharpen(taste)
    assert np.array_equal(taste, before)


def test_a_contrast_comes_back_from_disk(tmp_path):
    found = contrast_of(random_units(200, 4, 9))
    found.save(tmp_path)
    again = Contrast.load(tmp_path)
    assert np.array_equal(again.mean, found.mean)
    assert np.array_equal(again.inverse, found.inverse)


def test_a_missing_file_is_named(tmp_path):
    contrast_of(BY_HAND).save(tmp_path)
    (tmp_path / "contrast-inverse.npy").unlink()
    with pytest.raises(SnapshotError, match=r"contrast-inverse\.npy cannot be opened"):
        Contrast.load(tmp_path)


def test_sums_block_by_block_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    every = np.concatenate([random_units(50, 4, seed=1), np.zeros((3, 4), np.float32), random_units(20, 4, seed=2)])
    whole = Moments.of(every)
    monkeypatch.setattr(contrast, "BLOCK", 16)
    blocks = Moments.of(every)
    assert whole.n == blocks.n == 70
    np.testing.assert_allclose(blocks.total, whole.total, atol=1e-12)
    np.testing.assert_allclose(blocks.outer, whole.outer, atol=1e-12)
