import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lungml.candidates import GroupingSettings, erode, group_candidates

REPORT = GroupingSettings(rule="report")
UNION = GroupingSettings(rule="union", min_voxels=1)


def random_mask(seed: int, shape: tuple = (9, 12, 11), share: float = 0.8) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@given(st.integers(0, 1000))
def test_erosion_equals_scipy(seed: int) -> None:
    mask = random_mask(seed)
    np.testing.assert_array_equal(erode(mask), ndimage.binary_erosion(mask))


@given(st.integers(0, 200))
def test_the_report_rule_equals_its_scipy_definition(seed: int) -> None:
    mask = random_mask(seed, share=0.9)
    hu = np.random.default_rng(seed).integers(-3000, 3000, mask.shape, dtype=np.int16)
    labels, count = ndimage.label(ndimage.binary_erosion(mask))
    weights = np.clip(hu, -1000, 1000).astype(np.float64) + 1001
    expected = ndimage.center_of_mass(weights, labels, np.arange(1, count + 1))
    np.testing.assert_allclose(group_candidates(mask, hu, REPORT), np.reshape(expected, (-1, 3)))


@pytest.mark.parametrize("settings", [REPORT, UNION])
def test_an_empty_segmentation_gives_no_candidates(settings: GroupingSettings) -> None:
    empty = np.zeros((5, 6, 7), bool)
    assert group_candidates(empty, np.zeros(empty.shape, np.int16), settings).shape == (0, 3)


def test_a_nodule_of_two_slices_is_kept_by_union_only() -> None:
    mask = np.zeros((10, 20, 20), bool)
    mask[4:6, 5:10, 5:10] = True
    hu = np.zeros(mask.shape, np.int16)
    assert len(group_candidates(mask, hu, REPORT)) == 0
    np.testing.assert_allclose(group_candidates(mask, hu, UNION), [[4.5, 7, 7]])


def test_union_never_offers_a_place_twice() -> None:
    mask = np.zeros((10, 20, 20), bool)
    mask[2:7, 5:10, 5:10] = True
    hu = np.zeros(mask.shape, np.int16)
    assert len(group_candidates(mask, hu, REPORT)) == 1
    assert len(group_candidates(mask, hu, UNION)) == 1


def test_union_leaves_out_specks() -> None:
    mask = np.zeros((10, 20, 20), bool)
    mask[4, 5, 5:8] = True
    hu = np.zeros(mask.shape, np.int16)
    assert len(group_candidates(mask, hu, GroupingSettings(rule="union", min_voxels=4))) == 0
    assert len(group_candidates(mask, hu, GroupingSettings(rule="union", min_voxels=3))) == 1


def test_dense_voxels_pull_the_centre() -> None:
    mask = np.zeros((5, 5, 7), bool)
    mask[1:4, 1:4, 1:6] = True  # the erosion leaves columns 2, 3, 4 of one row
    hu = np.full(mask.shape, -1000, np.int16)  # weight 1
    hu[2, 2, 4] = 5000  # clipped: weight 2001
    center = group_candidates(mask, hu, REPORT)[0]
    np.testing.assert_allclose(center, [2, 2, (2 + 3 + 4 * 2001) / 2003])


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of report, union"):
        GroupingSettings(rule="magic")  # type: ignore[arg-type]
