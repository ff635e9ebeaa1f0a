import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lungml.crops import (
    CROP_SHAPE,
    clip_hu,
    cut_box,
    cut_boxes,
    cut_slab,
    cut_slabs,
    index_boxes,
    place_in_boxes,
    resample_mm,
)
from lungml.geometry import Grid

GRID = Grid(shape_irc=(40, 60, 70), spacing_xyz=(0.7, 0.7, 2.0), origin_xyz=(-10, 20, 5))


def ramp(shape: tuple = GRID.shape_irc) -> np.ndarray:
    """Every voxel holds its own flat number."""
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def test_clipping_leaves_the_scan_alone() -> None:
    hu = np.array([-3024, -500, 5892], dtype=np.int16)
    assert clip_hu(hu).tolist() == [-1000, -500, 1000]
    assert hu.tolist() == [-3024, -500, 5892]


@given(st.tuples(st.integers(0, 39), st.integers(0, 59), st.integers(0, 69)))
def test_a_box_holds_its_centre_voxel(center: tuple[int, int, int]) -> None:
    volume = ramp()
    box = cut_box(volume, center, CROP_SHAPE)
    assert box.shape == CROP_SHAPE
    assert volume[center] in box
    inside = all(n // 2 <= c < size - n // 2 for c, n, size in zip(center, CROP_SHAPE, volume.shape))
    if inside:
        assert box[16, 24, 24] == volume[center]


def test_a_box_at_the_border_is_shifted_inward() -> None:
    np.testing.assert_array_equal(cut_box(ramp(), (0, 0, 69), CROP_SHAPE), ramp()[:32, :48, -48:])


def test_a_scan_thinner_than_the_box_still_gives_the_right_shape() -> None:
    thin = ramp((10, 60, 70))
    box = cut_box(thin, (5, 30, 30), CROP_SHAPE)
    assert box.shape == CROP_SHAPE
    np.testing.assert_array_equal(box[11:21], thin[:, 6:54, 6:54])
    np.testing.assert_array_equal(box[0], box[11])


def test_a_box_is_a_copy() -> None:
    volume = ramp()
    cut_box(volume, (20, 30, 30), (4, 4, 4))[...] = -1
    assert (volume >= 0).all()


@pytest.mark.parametrize("index", [2.5, 3.5, 4.5])
def test_halves_round_the_same_way_for_even_and_odd_centres(index: float) -> None:
    slab = cut_slab(ramp((40, 100, 100)), (index, 50, 50))
    assert slab.shape == (7, 96, 96)
    np.testing.assert_array_equal(slab[3], ramp((40, 100, 100))[int(index + 0.5), 2:98, 2:98])


@pytest.mark.parametrize(("index", "expected"), [(0, [0, 0, 0, 0, 1, 2, 3]), (39, [36, 37, 38, 39, 39, 39, 39])])
def test_a_slab_repeats_the_edge_slices(index: int, expected: list[int]) -> None:
    volume = np.broadcast_to(np.arange(40, dtype=np.int16)[:, None, None], (40, 100, 100))
    assert cut_slab(volume, (index, 50, 50))[:, 0, 0].tolist() == expected


def test_a_slab_of_a_small_scan_is_padded() -> None:
    assert cut_slab(ramp((3, 60, 70)), (1, 10, 10)).shape == (7, 96, 96)


@pytest.mark.parametrize("shape", [GRID.shape_irc, (10, 40, 120)])
def test_many_are_cut_as_one_is(shape: tuple) -> None:
    volume = ramp(shape)
    centers = np.random.default_rng(0).uniform(-0.4, np.array(shape) - 0.6, (20, 3))
    np.testing.assert_array_equal(
        cut_boxes(volume, centers, CROP_SHAPE), [cut_box(volume, c, CROP_SHAPE) for c in centers]
    )
    np.testing.assert_array_equal(cut_slabs(volume, centers, 3, 96), [cut_slab(volume, c) for c in centers])


def test_none_are_cut_to_nothing_of_the_right_shape() -> None:
    assert cut_boxes(ramp(), [], CROP_SHAPE).shape == (0, *CROP_SHAPE)
    assert cut_slabs(ramp(), [], 3, 96).shape == (0, 7, 96, 96)


def where(axis: int, shape: tuple = (80, 90, 100)) -> np.ndarray:
    """Every voxel holds its own position along one axis."""
    return np.broadcast_to(np.moveaxis(np.arange(shape[axis])[:, None, None], 0, axis), shape).astype(np.int16)


def box_in_mm(
    volume: np.ndarray, center_irc: tuple, shape: tuple, spacing_irc_mm: tuple, out_spacing_irc_mm: tuple
) -> np.ndarray:
    """A crop as the cache keeps it, resampled around its place as the networks see it."""
    crop = torch.from_numpy(cut_box(volume, center_irc, CROP_SHAPE)).float()[None, None]
    place = torch.from_numpy(place_in_boxes(volume.shape, center_irc, CROP_SHAPE))
    spacing = torch.tensor([spacing_irc_mm], dtype=torch.float64)
    return resample_mm(crop, place, spacing, shape, out_spacing_irc_mm)[0, 0].numpy()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_in_mm_has_the_point_in_its_middle_and_its_own_steps(axis: int) -> None:
    center, spacing, out = (40.25, 45.5, 50.0), (2.5, 0.5, 0.8), (1.0, 0.6, 0.8)
    box = box_in_mm(where(axis), center, (8, 6, 7), spacing, out)
    assert box.shape == (8, 6, 7)
    assert box.dtype == np.float32
    size = box.shape[axis]
    expected = center[axis] + (np.arange(size) - (size - 1) / 2) * out[axis] / spacing[axis]
    np.testing.assert_allclose(np.moveaxis(box, axis, 0)[:, 0, 0], expected, atol=1e-4)


def test_a_box_in_mm_stays_in_the_middle_at_the_border_and_repeats_the_edge() -> None:
    box = box_in_mm(where(0), (1, 45, 50), (5, 3, 3), (1, 1, 1), (1.0, 1.0, 1.0))
    np.testing.assert_allclose(box[:, 1, 1], [0, 0, 1, 2, 3], atol=1e-5)


def test_a_box_in_mm_sees_no_more_than_the_cached_voxels() -> None:
    box = box_in_mm(where(0), (40, 45, 50), (41, 3, 3), (1, 1, 1), (1.0, 1.0, 1.0))
    assert (box[:, 1, 1].min(), box[:, 1, 1].max()) == (24, 55)  # 32 voxels around voxel 40


def test_each_crop_is_resampled_around_its_own_place() -> None:
    crops = torch.arange(20.0)[None, None, :, None, None].expand(2, 1, 20, 4, 4)
    places = torch.tensor([[5.0, 2, 2], [9.0, 2, 2]], dtype=torch.float64)
    spacings = torch.tensor([[1.0, 1, 1], [2.0, 1, 1]], dtype=torch.float64)
    seen = resample_mm(crops, places, spacings, (3, 1, 1), (2.0, 1.0, 1.0))
    assert seen[:, 0, :, 0, 0].tolist() == [[3, 5, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    ("center", "place"),
    [((20.25, 30, 35.5), (16.25, 24, 23.5)), ((2, 30, 35), (2, 24, 24)), ((39, 59, 69), (31, 47, 47))],
)
def test_where_a_centre_lies_in_its_box(center: tuple, place: tuple) -> None:
    assert place_in_boxes(GRID.shape_irc, center, CROP_SHAPE).tolist() == [list(place)]


def test_where_a_centre_lies_in_the_box_of_a_thin_scan() -> None:
    assert place_in_boxes((10, 60, 70), (5, 30, 35), CROP_SHAPE).tolist() == [[16, 24, 24]]
    assert place_in_boxes((10, 60, 70), [], CROP_SHAPE).shape == (0, 3)


@pytest.mark.parametrize("shape", [(40, 60, 70), (20, 60, 70), (33, 47, 100), (3, 50, 50)])
def test_boxes_by_their_voxels_are_those_that_are_copied(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(-2000, 2000, shape).astype(np.int16)
    inside = rng.uniform(-1, np.array(shape) + 1, (40, 3))
    centers = np.concatenate([inside, np.floor(inside) + 0.5])  # halves, where rounding is a matter of choice
    boxes = volume[index_boxes(shape, centers, CROP_SHAPE)]
    np.testing.assert_array_equal(boxes, cut_boxes(volume, centers, CROP_SHAPE))
