import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lungml.components import Runs, erode, find_runs, label, spread

# One slice, one row, one column, thin and thick; rows short enough that full ones meet.
SHAPES = st.sampled_from([(1, 9, 9), (9, 1, 9), (9, 9, 1), (2, 7, 8), (3, 5, 4), (1, 1, 12), (6, 7, 8), (5, 2, 3)])
SHARES = st.sampled_from([0.1, 0.5, 0.8, 0.95, 1.0])


def random_mask(seed: int, shape: tuple[int, int, int], share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def runs_of(mask: np.ndarray) -> Runs:
    return find_runs(np.flatnonzero(mask), mask.shape)


def mask_of(runs: Runs) -> np.ndarray:
    mask = np.zeros(runs.shape, np.bool_)
    mask.reshape(-1)[runs.voxels()] = True
    return mask


def test_runs_end_with_their_rows() -> None:
    # Rows of 4: the last two voxels of one row and the first of the next are neighbours in memory only.
    runs = find_runs(np.array([0, 2, 3, 4, 5, 6, 7, 8, 11]), (1, 3, 4))
    assert runs.starts.tolist() == [0, 2, 4, 8, 11]
    assert runs.ends.tolist() == [1, 4, 8, 9, 12]


@given(st.integers(0, 1000), SHAPES, SHARES)
def test_runs_hold_their_voxels(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = random_mask(seed, shape, share)
    runs = runs_of(mask)
    assert runs.voxels().tolist() == np.flatnonzero(mask).tolist()
    assert (runs.starts // shape[2] == (runs.ends - 1) // shape[2]).all()


@given(st.integers(0, 1000), SHAPES, st.integers(-2, 2), st.integers(-2, 2))
def test_shifted_runs_leave_the_scan_and_never_enter_another_slice(
    seed: int, shape: tuple[int, int, int], index: int, row: int
) -> None:
    mask = random_mask(seed, shape, 0.6)
    expected = np.zeros_like(mask)
    for there in np.argwhere(mask):
        moved = there + np.array([index, row, 0])
        if (moved >= 0).all() and (moved < shape).all():
            expected[tuple(moved)] = True
    runs = runs_of(mask)
    moved_runs, which = runs.shifted(index, row)
    np.testing.assert_array_equal(mask_of(moved_runs), expected)
    assert moved_runs.lengths.tolist() == runs.lengths[which].tolist()


@given(st.integers(0, 1000), SHAPES, SHARES)
def test_common_and_without_are_those_of_sets(seed: int, shape: tuple[int, int, int], share: float) -> None:
    one, other = random_mask(seed, shape, share), random_mask(seed + 1, shape, 0.5)
    both, _, _ = runs_of(one).common(runs_of(other))
    np.testing.assert_array_equal(mask_of(both), one & other)
    rest, _ = runs_of(one).without(runs_of(other))
    np.testing.assert_array_equal(mask_of(rest), one & ~other)


@given(st.integers(0, 1000), SHAPES, SHARES)
def test_erosion_equals_scipy(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = random_mask(seed, shape, share)
    np.testing.assert_array_equal(mask_of(erode(runs_of(mask))), ndimage.binary_erosion(mask))


@given(st.integers(0, 1000), SHAPES, SHARES)
def test_components_and_their_numbers_equal_scipys(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = random_mask(seed, shape, share)
    expected, count = ndimage.label(mask)
    runs = runs_of(mask)
    labels, found = label(runs)
    assert found == count
    assert np.repeat(labels, runs.lengths).tolist() == (expected[mask] - 1).tolist()


def test_a_row_full_to_its_end_does_not_touch_the_next_rows_start() -> None:
    mask = np.zeros((2, 3, 4), np.bool_)
    mask[0, 0, 3] = mask[0, 1, 0] = True  # neighbours in memory
    mask[0, 2, 1] = mask[1, 0, 1] = True  # the last row and the next slice's first
    assert label(runs_of(mask))[1] == 4


@given(st.integers(0, 1000), SHAPES, st.integers(0, 2))
def test_spreading_is_a_dilation_within_the_mask(seed: int, shape: tuple[int, int, int], steps: int) -> None:
    mask = random_mask(seed, shape, 0.7)
    seeds = mask & random_mask(seed + 1, shape, 0.2)
    labels = ndimage.label(seeds)[0]
    runs = runs_of(seeds)
    grown, numbers = runs, label(runs)[0]
    for _ in range(steps):
        grown, numbers = spread(grown, numbers, runs_of(mask))
    expected = ndimage.binary_dilation(seeds, iterations=steps, mask=mask) if steps else seeds
    np.testing.assert_array_equal(mask_of(grown), expected)
    assert grown.lengths.sum() == expected.sum()  # no voxel twice
    volume = np.full(shape, -1)
    volume.reshape(-1)[grown.voxels()] = np.repeat(numbers, grown.lengths)
    np.testing.assert_array_equal(volume[seeds], labels[seeds] - 1)  # nobody loses its own
    if steps == 1:
        for there in np.argwhere(expected & ~seeds):
            beside = [tuple(there + step) for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])]
            inside = [b for b in beside if all(0 <= a < n for a, n in zip(b, shape))]
            assert volume[tuple(there)] in {labels[b] - 1 for b in inside if seeds[b]}


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5)])
def test_nothing_has_no_components(shape: tuple[int, int, int]) -> None:
    none = runs_of(np.zeros(shape, np.bool_))
    assert (len(erode(none)), label(none)[1]) == (0, 0)
    grown, labels = spread(none, np.empty(0, np.int64), none)
    assert len(grown) == len(labels) == 0
