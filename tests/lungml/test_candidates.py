from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lungml.candidates import Candidates, GroupingError, GroupingSettings, group_candidates
from lungml.geometry import Grid
from lungml.marked import Marked
from tests.lungml.fixtures.segmentations import SceneSettings, draw_scene, missed

REPORT = GroupingSettings(rule="report")
UNION = GroupingSettings(rule="union", min_voxels=1)
BEST = GroupingSettings(rule="best")
RULES = [REPORT, UNION, BEST]
SHAPES = st.sampled_from([(9, 12, 11), (1, 12, 12), (2, 9, 9), (3, 3, 3), (3, 4, 30), (12, 3, 5), (7, 1, 9), (6, 8, 1)])


def grid_of(shape: tuple[int, ...], spacing_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Grid:
    slices, rows, cols = shape
    return Grid(shape_irc=(slices, rows, cols), spacing_xyz=spacing_xyz, origin_xyz=(0.0, 0.0, 0.0))


def group(
    mask: np.ndarray,
    settings: GroupingSettings,
    hu: np.ndarray | None = None,
    spacing_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Candidates:
    hu = np.zeros(mask.shape, np.int16) if hu is None else hu
    return group_candidates(Marked.of_mask(mask), hu, grid_of(mask.shape, spacing_xyz), settings)


def ball(shape: tuple[int, int, int], center: tuple[float, ...], radius: float) -> np.ndarray:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((a - c) ** 2 for a, c in zip(axes, center)) <= radius**2


# report


def scipy_report(mask: np.ndarray, hu: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(ndimage.binary_erosion(mask))
    weights = np.clip(hu, -1000, 1000).astype(np.float64) + 1001
    return np.reshape(ndimage.center_of_mass(weights, labels, np.arange(1, count + 1)), (-1, 3))


@given(st.integers(0, 1000), SHAPES, st.sampled_from([0.6, 0.9, 0.97, 1.0]))
def test_the_report_rule_equals_its_scipy_definition(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    hu = np.random.default_rng(seed).integers(-3000, 3000, shape, dtype=np.int16)
    np.testing.assert_allclose(group(mask, REPORT, hu).centers_irc, scipy_report(mask, hu), rtol=0, atol=1e-6)


@given(st.integers(0, 50))
def test_the_report_rule_equals_its_scipy_definition_with_many_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.binary_dilation(rng.random((20, 30, 40)) < 0.01, iterations=2)
    hu = rng.integers(-1100, 400, mask.shape, dtype=np.int16)
    np.testing.assert_allclose(group(mask, REPORT, hu).centers_irc, scipy_report(mask, hu), rtol=0, atol=1e-6)


def test_voxels_on_the_scans_border_go_with_the_erosion() -> None:
    full = np.ones((4, 5, 6), np.bool_)
    np.testing.assert_allclose(group(full, REPORT).centers_irc, [[1.5, 2, 2.5]])


def test_dense_voxels_pull_the_centre() -> None:
    mask = np.zeros((5, 5, 7), np.bool_)
    mask[1:4, 1:4, 1:6] = True  # the erosion leaves columns 2, 3, 4 of one row
    hu = np.full(mask.shape, -1000, np.int16)  # weight 1
    hu[2, 2, 4] = 5000  # clipped: weight 2001
    center = group(mask, REPORT, hu).centers_irc[0]
    np.testing.assert_allclose(center, [2, 2, (2 + 3 + 4 * 2001) / 2003])


def test_the_threshold_is_exclusive() -> None:
    probs = np.zeros((5, 5, 5), np.float32)
    probs[1:4, 1:4, 1:4] = 0.5
    hu, grid = np.zeros(probs.shape, np.int16), grid_of(probs.shape)
    for floor in (0.1, 0.5):
        assert len(group_candidates(Marked.of(probs, floor), hu, grid, REPORT)) == 0
    assert len(group_candidates(Marked.of(probs, 0.1), hu, grid, replace(REPORT, threshold=0.49))) == 1


def test_the_diameter_is_of_what_the_erosion_took_as_well() -> None:
    mask = ball((15, 15, 15), (7, 7, 7), 4.2)
    found = group(mask, REPORT, spacing_xyz=(0.5, 0.5, 2.0))
    assert found.diameters_mm == pytest.approx([(6 / np.pi * mask.sum() * 0.5) ** (1 / 3)])


def test_of_two_cores_in_one_mask_each_has_what_is_near_it() -> None:
    mask = np.zeros((5, 5, 30), np.bool_)
    mask[1:4, 1:4, 1:6] = mask[1:4, 1:4, 20:29] = True  # two boxes
    mask[2, 2, 6:20] = True  # joined by a thread
    found = group(mask, REPORT)
    # The cores end with the boxes where the thread begins, and a voxel before their other ends. Two steps from them
    # reach two voxels of the thread, and all of a box but the corners at that other end.
    volumes = np.array([45 - 4 + 2, 81 - 4 + 2])
    assert found.diameters_mm == pytest.approx(np.cbrt(6 / np.pi * volumes))


def test_the_score_is_the_mean_probability_of_that_volume() -> None:
    probs = np.zeros((5, 5, 12), np.float32)
    probs[1:4, 1:4, 1:4] = 0.6
    probs[2, 2, 2] = 1.0
    probs[1:4, 1:4, 8:11] = 0.9
    found = group_candidates(Marked.of(probs, 0.5), np.zeros(probs.shape, np.int16), grid_of(probs.shape), REPORT)
    # Of the cube's 27 voxels, the 19 within two steps of its middle.
    np.testing.assert_allclose(found.scores, [(18 * 0.6 + 1) / 19, 0.9], rtol=1e-6)


# union


@pytest.mark.parametrize("rule", [UNION, BEST])
def test_a_nodule_of_two_slices_is_kept_by_all_but_report(rule: GroupingSettings) -> None:
    mask = np.zeros((10, 20, 20), np.bool_)
    mask[4:6, 5:10, 5:10] = True
    assert len(group(mask, REPORT)) == 0
    found = group(mask, rule)
    np.testing.assert_allclose(found.centers_irc, [[4.5, 7, 7]])
    assert found.diameters_mm == pytest.approx([(6 / np.pi * 50) ** (1 / 3)])
    assert found.scores.tolist() == [1]


@given(st.integers(0, 200), SHAPES)
def test_union_adds_the_components_that_the_erosion_deleted(seed: int, shape: tuple[int, int, int]) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.6
    labels, count = ndimage.label(mask)
    deleted = [
        number
        for number in range(1, count + 1)
        if (labels == number).sum() >= 2 and not (ndimage.binary_erosion(mask) & (labels == number)).any()
    ]
    expected = np.reshape(ndimage.center_of_mass(np.ones(shape), labels, deleted), (-1, 3))
    found = group(mask, GroupingSettings(rule="union", min_voxels=2)).centers_irc
    report = group(mask, REPORT).centers_irc
    np.testing.assert_allclose(found, np.concatenate([report, expected]), atol=1e-9)


@pytest.mark.parametrize("rule", [UNION, BEST])
def test_no_place_is_offered_twice(rule: GroupingSettings) -> None:
    mask = np.zeros((10, 20, 20), np.bool_)
    mask[2:7, 5:10, 5:10] = True
    assert len(group(mask, rule)) == len(group(mask, REPORT)) == 1


def test_union_leaves_out_specks() -> None:
    mask = np.zeros((10, 20, 20), np.bool_)
    mask[4, 5, 5:8] = True
    assert len(group(mask, GroupingSettings(rule="union", min_voxels=4))) == 0
    assert len(group(mask, GroupingSettings(rule="union", min_voxels=3))) == 1


# best


def test_best_finds_both_of_two_that_touch_and_report_the_middle() -> None:
    shape = (21, 21, 41)
    mask = ball(shape, (10, 10, 10), 7) | ball(shape, (10, 10, 24), 7) | ball(shape, (10, 10, 17), 3)
    np.testing.assert_allclose(group(mask, REPORT).centers_irc, [[10, 10, 17]])
    centers = group(mask, BEST).centers_irc
    np.testing.assert_allclose(centers[np.argsort(centers[:, 2])], [[10, 10, 10], [10, 10, 24]], atol=1.0)


def test_a_vessel_neither_pulls_the_centre_of_best_nor_adds_to_the_diameter() -> None:
    shape = (21, 21, 61)
    nodule = ball(shape, (10, 10, 10), 3.5)
    mask = nodule.copy()
    mask[9:12, 9:12, 10:55] = True
    (report,), (best,) = group(mask, REPORT).centers_irc, group(mask, BEST).centers_irc
    assert np.linalg.norm(report - [10, 10, 10]) > 3.5  # the nodule is lost
    assert np.linalg.norm(best - [10, 10, 10]) < 1
    (diameter,) = group(mask, BEST).diameters_mm
    assert diameter == pytest.approx((6 / np.pi * nodule.sum()) ** (1 / 3), rel=0.15)


def test_a_hollow_nodule_is_looked_at_in_its_middle() -> None:
    mask = ball((25, 25, 25), (12, 12, 12), 9) & ~ball((25, 25, 25), (12, 12, 12), 4)
    found = group(mask, BEST)
    off = np.linalg.norm(found.centers_irc - 12, axis=1)
    assert off.min() < 0.1
    assert found.diameters_mm[off.argmin()] == pytest.approx((6 / np.pi * mask.sum()) ** (1 / 3))


def test_what_low_probabilities_join_high_ones_part() -> None:
    shape = (15, 15, 35)
    probs = np.where(ball(shape, (7, 7, 8), 5) | ball(shape, (7, 7, 22), 5), np.float32(0.9), np.float32(0))
    probs[3:12, 3:12, 12:19] = np.maximum(probs[3:12, 3:12, 12:19], 0.6)  # a broad bridge
    found = group_candidates(Marked.of(probs, 0.3), np.zeros(shape, np.int16), grid_of(shape), BEST)
    near = np.linalg.norm(found.centers_irc[:, None] - [[7, 7, 8], [7, 7, 22]], axis=2).min(axis=0)
    assert (near < 2).all()


def test_best_sees_what_stays_below_the_threshold_and_measures_it_by_what_it_has() -> None:
    shape = (11, 11, 11)
    probs = np.where(ball(shape, (5, 5, 5), 3), np.float32(0.4), np.float32(0))
    hu = np.zeros(shape, np.int16)
    found = group_candidates(Marked.of(probs, BEST.floor), hu, grid_of(shape), BEST)
    assert found.diameters_mm == pytest.approx([(6 / np.pi * (probs > 0).sum()) ** (1 / 3)])
    assert found.scores == pytest.approx([0.4])
    probs[5, 5, 3:8] = 0.8
    found = group_candidates(Marked.of(probs, BEST.floor), hu, grid_of(shape), BEST)
    assert found.diameters_mm == pytest.approx([(6 / np.pi * 5) ** (1 / 3)])  # now there is something above it
    assert found.scores == pytest.approx([0.8])


def test_the_surest_come_first_and_the_limit_leaves_out_the_others() -> None:
    shape = (11, 11, 60)
    probs = np.zeros(shape, np.float32)
    for col, prob in ((5, 0.7), (18, 0.9), (31, 0.6), (44, 0.8)):
        probs[ball(shape, (5, 5, col), 3)] = prob
    marked, hu = Marked.of(probs, 0.3), np.zeros(shape, np.int16)
    found = group_candidates(marked, hu, grid_of(shape), BEST)
    assert found.centers_irc[:, 2].round(6).tolist() == [18, 44, 5, 31]
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7, 0.6], rtol=1e-6)
    assert found.left_out == 0
    few = group_candidates(marked, hu, grid_of(shape), replace(BEST, max_candidates=3))
    assert few.centers_irc[:, 2].round(6).tolist() == [18, 44, 5]
    assert (len(few.diameters_mm), len(few.scores), few.left_out) == (3, 3, 1)


# No nodule that the segmentation saw is lost. A nodule that something is attached to is at least two slices wide here,
# and a neighbour lies within 45 degrees of the slice: between two slices nothing shows where one ends and another
# begins. Without these limits best loses some 9 of 1000 at 2.0 and 2.5 mm, see the next test. These are no numbers of
# a lucky seed: in other scenes 3 of 17 655 were lost, all below 3.5 mm.
RESOLVED = SceneSettings(slices_attached=2, steepest=0.7)


def scenes(seed: int, slice_mm: float, count: int, settings: SceneSettings) -> dict[str, int]:
    """Nodules and candidates of some scenes, and how many each rule loses."""
    rng = np.random.default_rng([seed, int(100 * slice_mm)])
    sums = dict.fromkeys(["nodules", "best", "best loses", "report", "report loses"], 0)
    for _ in range(count):
        pixel_mm = rng.uniform(0.5, 0.9)
        marked, grid, nodules = draw_scene(rng, (slice_mm, pixel_mm, pixel_mm), settings)
        sums["nodules"] += len(nodules)
        for settings_of_rule in (BEST, REPORT):
            found = group_candidates(marked, np.zeros(marked.shape, np.int16), grid, settings_of_rule)
            sums[settings_of_rule.rule] += len(found)
            sums[f"{settings_of_rule.rule} loses"] += len(missed(found.centers_irc, grid, nodules))
    return sums


@pytest.mark.parametrize("slice_mm", [0.6, 1.0, 1.25, 2.0, 2.5])
def test_best_loses_no_nodule_of_3_mm_and_report_does(slice_mm: float) -> None:
    found = scenes(1, slice_mm, 4, RESOLVED)
    assert found["nodules"] > 80
    assert found["best loses"] == 0
    assert found["report loses"] > 4
    if slice_mm < 2:  # with thicker slices report loses a third, and what it does not offer costs nothing
        assert found["best"] <= 1.2 * found["report"]


@pytest.mark.parametrize("slice_mm", [1.25, 2.5])
def test_best_loses_few_of_those_that_thick_slices_blend_with_their_neighbours(slice_mm: float) -> None:
    found = scenes(2, slice_mm, 4, SceneSettings())
    assert found["best loses"] <= 0.03 * found["nodules"]
    assert found["best loses"] < 0.2 * found["report loses"]


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("pixel_mm", [0.5, 0.7, 0.9])
def test_a_nodule_of_3_mm_in_slices_of_2_5_mm_is_kept_wherever_it_lies(pixel_mm: float, place: float) -> None:
    shape, spacing = (7, 15, 15), np.array([2.5, pixel_mm, pixel_mm])
    for off in (0.0, 0.25, 0.5):
        center = np.array([3 + place, 7 + off, 7 + place])
        axes = np.ogrid[tuple(slice(n) for n in shape)]
        mask = sum(((a - c) * s) ** 2 for a, c, s in zip(axes, center, spacing)) <= 1.5**2
        assert 1 <= mask.any(axis=(1, 2)).sum() <= 2
        found = group(mask, BEST, spacing_xyz=(pixel_mm, pixel_mm, 2.5))
        assert np.linalg.norm((found.centers_irc - center) * spacing, axis=1).min() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("slice_mm", [0.6, 1.0, 1.25, 2.0, 2.5])
def test_best_loses_none_of_a_thousand_nodules(slice_mm: float) -> None:
    found = scenes(3, slice_mm, 45, RESOLVED)
    assert found["nodules"] > 1000
    assert found["best loses"] == 0


# settings and bad input


@pytest.mark.parametrize("settings", RULES)
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 1, 1)])
def test_an_empty_segmentation_gives_no_candidates(settings: GroupingSettings, shape: tuple[int, int, int]) -> None:
    found = group(np.zeros(shape, np.bool_), settings)
    assert found.centers_irc.shape == (0, 3)
    assert len(found) == len(found.diameters_mm) == len(found.scores) == found.left_out == 0


@pytest.mark.parametrize("settings", RULES)
@given(seed=st.integers(0, 100), shape=SHAPES, share=st.sampled_from([0.02, 0.3, 0.9, 1.0]))
def test_whatever_is_marked_every_number_makes_sense(
    settings: GroupingSettings, seed: int, shape: tuple[int, int, int], share: float
) -> None:
    rng = np.random.default_rng(seed)
    probs = np.where(rng.random(shape) < share, rng.random(shape), 0).astype(np.float32)
    hu = rng.integers(-3000, 3000, shape, dtype=np.int16)
    before = hu.copy()
    grid = grid_of(shape, (0.7, 0.7, 1.25))
    found = group_candidates(Marked.of(probs, settings.floor), hu, grid, settings)
    np.testing.assert_array_equal(hu, before)
    assert found.centers_irc.shape == (len(found), 3)
    assert (found.centers_irc > -1e-9).all()
    assert (found.centers_irc < np.array(shape) - 1 + 1e-9).all()
    assert (found.diameters_mm > 0).all()
    assert (found.scores > settings.floor).all()
    assert (found.scores <= 1).all()
    again = group_candidates(Marked.of(probs, settings.floor / 2), hu, grid, settings)  # more was kept than is needed
    np.testing.assert_array_equal(again.centers_irc, found.centers_irc)
    np.testing.assert_array_equal(again.scores, found.scores)


def test_a_segmentation_that_kept_too_little_is_refused() -> None:
    marked = Marked.of(np.full((3, 3, 3), 0.9, np.float32), 0.5)
    with pytest.raises(ValueError, match=r"voxels above 0\.3 were asked for, only those above 0\.5 were kept"):
        group_candidates(marked, np.zeros((3, 3, 3), np.int16), grid_of((3, 3, 3)), BEST)


def test_a_segmentation_of_another_scan_is_refused() -> None:
    marked = Marked.of_mask(np.ones((3, 3, 3), np.bool_))
    with pytest.raises(ValueError, match=r"a segmentation of \(3, 3, 3\), a scan of \(3, 3, 4\)"):
        group_candidates(marked, np.zeros((3, 3, 4), np.int16), grid_of((3, 3, 4)), REPORT)


def test_unknown_rules_and_settings_are_refused_in_one_line() -> None:
    with pytest.raises(GroupingError, match=r"^unknown grouping 'magic'; choose one of report, union, best$"):
        GroupingSettings(rule="magic")  # type: ignore[arg-type]
    for threshold in (1.0, -0.1, float("nan")):
        with pytest.raises(GroupingError, match=r"^grouping threshold .* is not in \[0, 1\)$"):
            GroupingSettings(threshold=threshold)
    with pytest.raises(GroupingError, match=r"^0 candidates at most"):
        GroupingSettings(max_candidates=0)


def test_the_floor_is_the_lowest_level_that_the_rule_looks_at() -> None:
    assert (REPORT.levels, REPORT.floor, UNION.floor) == ((0.5,), 0.5, 0.5)
    assert BEST.levels == pytest.approx((0.3, 0.5, 0.7, 0.85))
    assert BEST.floor == BEST.levels[0]
    for threshold in (0.0, 0.15, 0.9):
        levels = GroupingSettings(rule="best", threshold=threshold).levels
        assert threshold in levels
        assert list(levels) == sorted(levels)
        assert levels[-1] < 1
