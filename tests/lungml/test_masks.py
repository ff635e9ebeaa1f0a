import numpy as np
import pytest

from lungml.geometry import Grid, irc_to_xyz
from lungml.luna import Nodule
from lungml.masks import THRESHOLD_HU, annotation_mask, growth_box

AIR, TISSUE = -850, 30


def grid(shape: tuple[int, int, int] = (20, 30, 30), spacing: tuple = (1.0, 1.0, 1.0)) -> Grid:
    return Grid(shape_irc=shape, spacing_xyz=spacing, origin_xyz=(-5, 7, 11))


def nodule(center_irc: tuple, diameter_mm: float, on: Grid) -> Nodule:
    x, y, z = irc_to_xyz(center_irc, on).tolist()
    return Nodule(series_uid="1", center_xyz=(x, y, z), diameter_mm=diameter_mm, malignant=False, ratings=())


def ball(shape: tuple, center: tuple, radius: float, value: int = TISSUE) -> np.ndarray:
    hu = np.full(shape, AIR, dtype=np.int16)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    hu[sum((a - c) ** 2 for a, c in zip(axes, center)) <= radius**2] = value
    return hu


def test_growth_box_of_a_cube_by_hand() -> None:
    hu = np.full((20, 30, 30), AIR, dtype=np.int16)
    hu[7:14, 10:21, 11:20] = TISSUE  # half widths 3, 5, 4 around (10, 15, 15)
    box = growth_box(hu, np.array([10, 15, 15]))
    # The radius stops one voxel past the tissue, as in the report's loop; the threshold then removes that shell.
    assert [(s.start, s.stop) for s in box] == [(6, 15), (9, 22), (10, 21)]
    mask = annotation_mask(hu, [nodule((10, 15, 15), 9, grid())], grid(), "report")
    np.testing.assert_array_equal(mask, hu > THRESHOLD_HU)


@pytest.mark.parametrize("rule", ["report", "bounded"])
def test_a_nodule_at_index_0_does_not_wrap_around(rule: str) -> None:
    hu = ball((20, 30, 30), (0, 1, 15), 4)
    hu[-3:] = TISSUE
    mask = annotation_mask(hu, [nodule((0, 1, 15), 8, grid())], grid(), rule)
    assert mask[0, 1, 15] == 1
    assert not mask[10:].any()
    assert not mask[:, 20:].any()


def test_a_ground_glass_nodule_below_the_threshold_keeps_a_mask() -> None:
    hu = ball((20, 30, 30), (10, 15, 15), 5, value=-740)
    mask = annotation_mask(hu, [nodule((10, 15, 15), 10, grid())], grid(), "bounded")
    inside = ball((20, 30, 30), (10, 15, 15), 5) == TISSUE
    assert (mask.astype(bool) & inside).sum() > 0.9 * inside.sum()
    assert mask.sum() < 1.3 * inside.sum()


def test_vessels_do_not_leak_past_the_annotated_diameter() -> None:
    hu = ball((20, 30, 30), (10, 15, 15), 4)
    hu[9:12, 14:17, :] = TISSUE  # a vessel right through
    on = grid()
    bounded = annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on, "bounded")
    columns = np.flatnonzero(bounded.any(axis=(0, 1)))
    assert columns.min() >= 10
    assert columns.max() <= 20
    report = annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on, "report")
    assert np.flatnonzero(report.any(axis=(0, 1))).max() == 29


def test_spacing_is_respected() -> None:
    on = grid(shape=(20, 60, 60), spacing=(0.5, 0.5, 2.5))
    hu = np.full(on.shape_irc, TISSUE, dtype=np.int16)
    mask = annotation_mask(hu, [nodule((10, 30, 30), 10, on)], on, "bounded")
    extents = [np.ptp(np.flatnonzero(mask.any(axis=axes))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
    assert extents[0] in (5, 6)
    assert 20 <= extents[1] == extents[2] <= 24


def test_a_nodule_outside_the_scan_is_left_out() -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    assert not annotation_mask(hu, [nodule((25, 15, 15), 8, on)], on).any()


def test_the_scan_is_not_changed() -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    hu.setflags(write=False)
    annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on, "report")
    annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on, "bounded")
