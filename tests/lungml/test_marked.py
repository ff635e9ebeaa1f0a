import numpy as np
import pytest

from lungml.marked import Marked

PROBS = np.array([[[0.1, 0.3], [0.5, 0.9]], [[0.3, 0.31], [0.0, 1.0]]], np.float32)


def test_what_lies_above_the_floor_is_kept_in_order() -> None:
    marked = Marked.of(PROBS, 0.3)
    assert marked.shape == (2, 2, 2)
    assert marked.voxels.tolist() == [2, 3, 5, 7]  # 0.3 itself is not above it
    assert marked.probs.tolist() == PROBS.reshape(-1)[[2, 3, 5, 7]].tolist()
    assert (marked.voxels.dtype, marked.probs.dtype) == (np.int64, np.float32)


def test_a_probability_that_is_no_number_is_not_kept() -> None:
    assert Marked.of(np.array([[[np.nan, 0.9]]]), 0.3).voxels.tolist() == [1]


def test_a_higher_threshold_leaves_what_a_higher_floor_would_have() -> None:
    higher, other = Marked.of(PROBS, 0.3).at(0.5), Marked.of(PROBS, 0.5)
    assert higher.voxels.tolist() == other.voxels.tolist() == [3, 7]
    assert higher.probs.tolist() == other.probs.tolist()
    assert higher.floor == other.floor == 0.5
    assert Marked.of(PROBS, 0.3).above(0.5).tolist() == [3, 7]


def test_the_mask_is_the_volume_above_the_threshold() -> None:
    np.testing.assert_array_equal(Marked.of(PROBS, 0.2).mask(0.3), PROBS > 0.3)


def test_a_lower_threshold_than_the_floor_is_refused() -> None:
    marked = Marked.of(PROBS, 0.5)
    for ask in (marked.at, marked.above, marked.mask):
        with pytest.raises(ValueError, match=r"voxels above 0\.3 were asked for, only those above 0\.5 were kept"):
            ask(0.3)


def test_a_mask_is_certain_at_every_threshold() -> None:
    mask = np.zeros((2, 3, 4), np.bool_)
    mask[1, 2, 3] = mask[0, 0, 1] = True
    marked = Marked.of_mask(mask)
    assert (marked.shape, marked.voxels.tolist(), marked.probs.tolist()) == ((2, 3, 4), [1, 23], [1, 1])
    for threshold in (0.0, 0.3, 0.99):
        np.testing.assert_array_equal(marked.mask(threshold), mask)


def test_a_mask_in_another_memory_order_is_the_same() -> None:
    mask = np.random.default_rng(0).random((4, 5, 6)) < 0.4
    assert Marked.of_mask(np.asfortranarray(mask)).voxels.tolist() == Marked.of_mask(mask).voxels.tolist()


def test_nothing_marked() -> None:
    empty = Marked.of_mask(np.zeros((2, 3, 4), np.bool_))
    assert len(empty.voxels) == len(empty.probs) == 0
    assert not empty.mask(0.5).any()
