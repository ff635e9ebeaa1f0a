"""Balls, vessels and walls of a few voxels, drawn as if a segmentation had marked them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lungml.candidates import GroupingSettings
from lungml.findings import Finding, Stage
from lungml.geometry import Grid, irc_to_xyz
from lungml.marked import Marked
from lungml.reading.nodule_masks import NoduleMask, NoduleMasks, labelled, nodule_masks
from lungml.reading.record import Opinion

GRID = Grid(shape_irc=(16, 40, 44), spacing_xyz=(0.7, 0.8, 2.0), origin_xyz=(-40, 10, 5))
Center = tuple[float, float, float]


def ball(center_irc: Center, diameter_mm: float) -> np.ndarray:
    axes = np.ogrid[tuple(slice(n) for n in GRID.shape_irc)]
    squares = sum(((a - c) * mm) ** 2 for a, c, mm in zip(axes, center_irc, GRID.spacing_irc))
    return squares <= (diameter_mm / 2) ** 2


def diameter_of(mask: np.ndarray) -> float:
    return float(np.cbrt(6 / np.pi * mask.sum() * GRID.spacing_irc.prod()))


def found(center_irc: Center, diameter_mm: float, stage: Stage = "benign") -> Finding:
    x, y, z = irc_to_xyz(center_irc, GRID).tolist()
    return Finding(
        center_irc=center_irc,
        center_xyz=(x, y, z),
        diameter_mm=diameter_mm,
        prob_nodule=0.9,
        prob_malignant=0.2,
        stage=stage,
    )


def masks_of(marked: np.ndarray | Marked, findings: Sequence[Finding], threshold: float = 0.5) -> NoduleMasks:
    opinion = Opinion(
        bundle="models:/luna/1",
        asked_as="models:/luna/1",
        recipe="r",
        origin="phantom",
        nodule_threshold=0.5,
        malignant_threshold=0.5,
        grouping=GroupingSettings(threshold=threshold),
        findings=tuple(findings),
        marked=marked if isinstance(marked, Marked) else Marked.of_mask(marked),
    )
    return nodule_masks(opinion, GRID)


def whole(mask: NoduleMask) -> np.ndarray:
    drawn = np.zeros(GRID.shape_irc, dtype=np.bool_)
    drawn[mask.box] = mask.inside
    return drawn


def test_a_lone_ball_is_its_mask_and_its_box_is_tight() -> None:
    there = ball((8, 20, 22), 9)
    (mask,) = masks_of(there, [found((8, 20, 22), diameter_of(there), "malignant")]).masks
    np.testing.assert_array_equal(whole(mask), there)
    assert mask.finding == 1
    assert all(mask.inside.any(axis=axes).all() for axes in ((1, 2), (0, 2), (0, 1)))
    assert mask.volume_mm3(GRID) == pytest.approx(there.sum() * 0.7 * 0.8 * 2.0)


def test_a_vessel_that_leads_away_stays_outside_and_the_volume_is_that_of_the_diameter() -> None:
    there = ball((8, 20, 22), 9)
    vessel = np.zeros_like(there)
    vessel[8, 19:22, 22:] = True
    (mask,) = masks_of(there | vessel, [found((8, 20, 22), diameter_of(there))]).masks
    assert mask.inside.sum() == there.sum()
    off = np.argwhere(whole(mask) & ~there)
    assert (np.abs(off[:, 2] - 22) * 0.7 < 4.5 + 2).all()  # a little of it beside the ball, none far away


def test_a_longer_nodule_is_kept_whole_but_not_beyond_two_radii() -> None:
    there = ball((8, 20, 18), 6) | ball((8, 20, 24), 6)
    (mask,) = masks_of(there, [found((8, 20, 21), diameter_of(there))]).masks
    np.testing.assert_array_equal(whole(mask), there)
    rod = np.zeros_like(there)
    rod[8, 20, :] = True
    (mask,) = masks_of(rod, [found((8, 20, 22), 5.0)]).masks
    slack = float(np.linalg.norm(GRID.spacing_irc)) / 4
    assert np.abs(np.argwhere(whole(mask))[:, 2] - 22).max() * 0.7 <= 2 * (2.5 + slack)


def test_a_wall_that_does_not_touch_is_not_taken() -> None:
    there = ball((8, 20, 22), 6)
    wall = np.zeros_like(there)
    wall[:, :, 29] = True
    (mask,) = masks_of(there | wall, [found((8, 20, 22), diameter_of(there) + 2)]).masks
    np.testing.assert_array_equal(whole(mask), there)


def test_two_findings_share_no_voxel_and_the_nearer_in_radii_has_it() -> None:
    small, large = ball((8, 20, 12), 5), ball((8, 20, 22), 9)
    findings = [found((8, 20, 22), diameter_of(large)), found((8, 20, 12), diameter_of(small))]
    one, two = (whole(mask) for mask in masks_of(small | large, findings).masks)
    assert not (one & two).any()
    np.testing.assert_array_equal(one | two, small | large)
    assert one[8, 20, 17]  # 5 voxels from both: 0.8 radii of the large one, 1.4 of the small one


def test_what_lies_equally_near_to_two_goes_to_the_first() -> None:
    bar = np.zeros(GRID.shape_irc, dtype=np.bool_)
    bar[8, 20, 18:27] = True
    findings = [found((8, 20, 24), 4.0), found((8, 20, 20), 4.0)]
    one, two = (whole(mask) for mask in masks_of(bar, findings).masks)
    assert one[8, 20, 22]
    assert not two[8, 20, 22]
    assert one[8, 20, 22:27].all()
    assert two[8, 20, 18:22].all()


def test_findings_without_voxels_or_diameter_are_told_and_filtered_ones_have_none() -> None:
    there = ball((8, 20, 22), 6)
    findings = [
        found((8, 20, 22), 6.0, "filtered"),
        found((3, 5, 5), 4.0),  # nothing there
        found((8, 20, 22), math.nan),
        found((8, 20, 22), 6.0),
    ]
    masks = masks_of(there, findings)
    assert [mask.finding for mask in masks.masks] == [4]
    assert masks.without == (2, 3)


def test_only_voxels_above_the_threshold_count() -> None:
    probs = np.where(ball((8, 20, 22), 6), 0.9, np.where(ball((8, 20, 22), 10), 0.4, 0.0)).astype(np.float32)
    (mask,) = masks_of(Marked.of(probs, 0.1), [found((8, 20, 22), 12.0)]).masks
    np.testing.assert_array_equal(whole(mask), probs > 0.5)


def test_one_voxel_is_enough_and_a_hollow_centre_is_none() -> None:
    one = np.zeros(GRID.shape_irc, dtype=np.bool_)
    one[8, 20, 22] = True
    (mask,) = masks_of(one, [found((8.3, 20.2, 22.1), 0.4)]).masks
    assert whole(mask)[8, 20, 22]
    assert mask.inside.shape == (1, 1, 1)
    shell = ball((8, 20, 22), 12) & ~ball((8, 20, 22), 6)
    (mask,) = masks_of(shell, [found((8, 20, 22), 12.0)]).masks
    np.testing.assert_array_equal(whole(mask), shell)


@pytest.mark.parametrize("corner", [(0, 0, 0), (15, 39, 43), (0, 39, 0)])
def test_a_nodule_at_the_edge_of_the_scan_is_cut_off_there(corner: Center) -> None:
    there = ball(corner, 8)
    (mask,) = masks_of(there, [found(corner, diameter_of(there))]).masks
    np.testing.assert_array_equal(whole(mask), there)


def test_nothing_marked_and_nothing_found() -> None:
    assert masks_of(np.zeros(GRID.shape_irc, dtype=np.bool_), []) == NoduleMasks(masks=(), without=())
    assert masks_of(np.zeros(GRID.shape_irc, dtype=np.bool_), [found((8, 20, 22), 5.0)]).without == (1,)


def test_labelled_slices_hold_the_masks_in_their_order() -> None:
    first, second = ball((4, 10, 10), 6), ball((10, 30, 30), 6)
    masks = masks_of(first | second, [found((10, 30, 30), 7.0), found((4, 10, 10), 7.0)]).masks
    slices = [3, 4, 9, 10]
    volume = labelled(masks, slices, GRID)
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(volume, (2 * first + second)[slices])
