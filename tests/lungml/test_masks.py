import hashlib
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from lungml.geometry import Grid, irc_to_xyz
from lungml.luna import Nodule
from lungml.masks import MASK_VERSION, THRESHOLD_HU, MaskError, annotation_mask, growth_box, nodule_boxes

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


@pytest.mark.parametrize("center", [(25, 15, 15), (-0.6, 15, 15), (10, 29.6, 15), (1e12, 15, 15)])
def test_a_nodule_outside_the_scan_is_left_out_and_named(center: tuple) -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    inside = nodule((10, 15, 15), 8, on)
    for rule in ("report", "bounded"):
        found = nodule_boxes(hu, [nodule(center, 8, on), inside], on, rule)
        assert found.left_out == (0,)
        assert list(found.boxes) == [1]
        assert not annotation_mask(hu, [nodule(center, 8, on)], on, rule).any()


def test_boxes_are_of_the_nodules_size_and_make_up_the_mask() -> None:
    on = grid()
    hu = np.maximum(ball(on.shape_irc, (10, 12, 12), 4), ball(on.shape_irc, (10, 16, 14), 5))
    two = [nodule((10, 12, 12), 8, on), nodule((10, 16, 14), 10, on)]  # they overlap
    found = nodule_boxes(hu, two, on)
    whole = np.zeros(on.shape_irc, dtype=bool)
    for box, inside in found.boxes.values():
        assert inside.size < 14**3
        whole[box] |= inside
    np.testing.assert_array_equal(whole, annotation_mask(hu, two, on) == 1)
    np.testing.assert_array_equal(whole, hu > THRESHOLD_HU)


def the_specification(hu: np.ndarray, center: tuple) -> np.ndarray:
    """The growth rule as its page words it, voxel by voxel; outside the scan nothing lies above -700 HU."""
    radii = [2, 2, 2]
    for axis in range(3):

        def above(step: int, axis: int = axis) -> bool:
            at = [c + step * (a == axis) for a, c in enumerate(center)]
            return all(0 <= c < n for c, n in zip(at, hu.shape)) and hu[tuple(at)] > -700

        while above(radii[axis]) and above(-radii[axis]):
            radii[axis] += 1
    mask = np.zeros(hu.shape, dtype=bool)
    mask[tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(center, radii))] = True
    return mask & (hu > -700)


@pytest.mark.parametrize("seed", range(20))
def test_the_reports_rule_is_the_specifications_wherever_the_nodule_lies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    on = grid(shape=(9, 12, 14))
    hu = np.where(rng.random(on.shape_irc) < 0.85, TISSUE, AIR).astype(np.int16)
    center = tuple(rng.integers(0, on.shape_irc).tolist())
    ours = annotation_mask(hu, [nodule(center, 5, on)], on, "report")
    np.testing.assert_array_equal(ours, the_specification(hu, center))


def test_a_box_in_solid_tissue_grows_to_the_nearest_border_along_each_axis() -> None:
    hu = np.full((20, 30, 30), TISSUE, dtype=np.int16)
    box = growth_box(hu, np.array([3, 15, 29]))
    assert [(s.start, s.stop) for s in box] == [(0, 8), (0, 30), (27, 30)]


def test_a_tilted_scan_has_the_same_mask() -> None:
    turn = math.radians(20)
    direction = ((math.cos(turn), -math.sin(turn), 0), (math.sin(turn), math.cos(turn), 0), (0, 0, 1))
    straight = grid(spacing=(0.8, 0.8, 2.0))
    tilted = replace(straight, direction=direction)
    hu = ball(straight.shape_irc, (10, 15, 15), 4)
    masks = [annotation_mask(hu, [nodule((10.2, 15.1, 14.9), 6, on)], on) for on in (straight, tilted)]
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


def test_a_noisy_ground_glass_nodule_is_whole() -> None:
    on = grid()
    rng = np.random.default_rng(0)
    hu = ball(on.shape_irc, (10, 15, 15), 5, value=-740) + rng.normal(0, 20, on.shape_irc)
    mask = annotation_mask(hu.astype(np.int16), [nodule((10, 15, 15), 10, on)], on) == 1
    inside = ball(on.shape_irc, (10, 15, 15), 5) == TISSUE
    assert 2 * (mask & inside).sum() / (mask.sum() + inside.sum()) > 0.95


def test_a_nodule_that_does_not_stand_out_is_its_sphere() -> None:
    on = grid()
    hu = np.full(on.shape_irc, AIR, dtype=np.int16)
    mask = annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on)
    axes = np.ogrid[tuple(slice(n) for n in on.shape_irc)]
    distance = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, (10, 15, 15))))
    np.testing.assert_array_equal(mask, distance <= 4 + math.sqrt(3) / 4)


def test_a_vessel_that_passes_by_is_left_out_and_one_that_runs_through_is_cut_at_the_sphere() -> None:
    on = grid()
    lone = ball(on.shape_irc, (10, 15, 15), 2)
    beside = lone.copy()
    beside[9:12, 19, :] = TISSUE  # one voxel of air lies between
    through = lone.copy()
    through[10, 15, :] = TISSUE
    noted = [nodule((10, 15, 15), 8, on)]  # annotated wider than it is: the sphere reaches the vessel
    np.testing.assert_array_equal(annotation_mask(beside, noted, on), lone == TISSUE)
    added = annotation_mask(through, noted, on) - (lone == TISSUE)
    assert np.argwhere(added).tolist() == [[10, 15, col] for col in (11, 12, 18, 19)]


@pytest.mark.parametrize("diameter_mm", [math.nan, math.inf, 0.0, -4.0])
@pytest.mark.parametrize("rule", ["report", "bounded"])
def test_a_size_that_is_none_is_refused(diameter_mm: float, rule: str) -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    with pytest.raises(MaskError, match=r"^1: a nodule at \(10, 22, 21\) mm of .* mm is no nodule; correct"):
        nodule_boxes(hu, [nodule((10, 15, 15), diameter_mm, on)], on, rule)


def test_a_place_that_is_none_is_refused() -> None:
    lost = replace(nodule((10, 15, 15), 8, grid()), center_xyz=(math.nan, 0, 0))
    with pytest.raises(MaskError, match="nan"):
        nodule_boxes(ball((20, 30, 30), (10, 15, 15), 4), [lost], grid())


@pytest.mark.parametrize("diameter_mm", [1e3, 1e9, 1e300])
def test_a_nodule_larger_than_the_scan_is_the_scan(diameter_mm: float) -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = annotation_mask(hu, [nodule((10, 15, 15), diameter_mm, on)], on)
    # The core is the scan as well, and mostly air; no lung is left around it to compare with.
    assert mask.all()


def test_contours_are_the_mask_and_without_one_the_sphere_is() -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    two = [nodule((10, 15, 15), 8, on), nodule((10, 15, 15), 6, on)]
    box = (slice(8, 10), slice(14, 17), slice(0, 2))
    contour = np.zeros((2, 3, 2), dtype=bool)
    contour[0, 1, 1] = True
    found = nodule_boxes(hu, two, on, "consensus", {0: (box, contour)})
    assert found.boxes[0][0] == box
    np.testing.assert_array_equal(found.boxes[0][1], contour)
    np.testing.assert_array_equal(found.boxes[1][1], nodule_boxes(hu, two, on, "bounded").boxes[1][1])
    # An empty one, like none at all, leaves it to the sphere; other rules do not look at contours.
    sphere = annotation_mask(hu, two, on)
    for rule, contours in (
        ("consensus", {0: (box, contour & False)}),
        ("consensus", None),
        ("bounded", {0: (box, contour)}),
    ):
        np.testing.assert_array_equal(annotation_mask(hu, two, on, rule, contours), sphere)


@pytest.mark.parametrize("box", [(slice(19, 21), slice(0, 3), slice(0, 2)), (slice(0, 2), slice(0, 3), slice(0, 3))])
def test_a_contour_that_does_not_fit_is_refused(box: tuple) -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    with pytest.raises(MaskError, match="does not fit"):
        nodule_boxes(hu, [nodule((10, 15, 15), 8, on)], on, "consensus", {0: (box, np.ones((2, 3, 2), dtype=bool))})


def test_equal_versions_mean_equal_masks() -> None:
    """Raise MASK_VERSION when this fails: masks under the old one are then drawn anew."""
    on = grid(shape=(24, 40, 40), spacing=(0.7, 0.7, 1.25))
    hu = np.maximum(ball(on.shape_irc, (12, 20, 12), 5), ball(on.shape_irc, (2, 30, 30), 6, value=-740))
    hu[12, 20] = TISSUE
    hu += np.random.default_rng(0).integers(-15, 16, hu.shape, dtype=np.int16)
    noted = [nodule((12.3, 20, 12), 6.3, on), nodule((2, 30.2, 30), 7.7, on)]
    digests = [hashlib.sha256(annotation_mask(hu, noted, on, rule)).hexdigest()[:12] for rule in ("report", "bounded")]
    assert (MASK_VERSION, digests) == (2, ["dca6d2c19fa1", "1657967829f6"])


def test_the_scan_is_not_changed() -> None:
    on = grid()
    hu = ball(on.shape_irc, (10, 15, 15), 4)
    hu.setflags(write=False)
    annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on, "report")
    annotation_mask(hu, [nodule((10, 15, 15), 8, on)], on, "bounded")
