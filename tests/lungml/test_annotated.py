"""A nodule on a vessel, whose two masks differ: pixels are counted by the report's, nodules are met by the bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungml.annotated import Annotated, meet_masks, read_annotated, write_annotated
from lungml.geometry import Grid
from lungml.luna import Nodule
from lungml.marked import Marked
from lungml.masks import nodule_boxes

GRID = Grid(shape_irc=(9, 9, 40), spacing_xyz=(1.0, 1.0, 1.0), origin_xyz=(0.0, 0.0, 0.0))
NODULE = Nodule(series_uid="1.1", center_xyz=(20.0, 4.0, 4.0), diameter_mm=3.0, malignant=True, ratings=(5, 5))


def on_a_vessel() -> np.ndarray:
    """Lung, and a cube of 3 mm on a straight vessel from side to side, one voxel thick."""
    hu = np.full(GRID.shape_irc, -850, dtype=np.int16)
    hu[4, 4] = 40
    hu[3:6, 3:6, 19:22] = 40
    return hu


def marked(*voxels: tuple[int, int, int], prob: float, floor: float) -> Marked:
    probs = np.zeros(GRID.shape_irc, dtype=np.float32)
    for voxel in voxels:
        probs[voxel] = prob
    return Marked.of(probs, floor)


def test_pixels_are_of_the_reports_masks_and_nodules_of_the_bounded_ones() -> None:
    hu = on_a_vessel()
    (box, report), (_, bounded) = (nodule_boxes(hu, [NODULE], GRID, rule).boxes[0] for rule in ("report", "bounded"))
    # 27 voxels and the vessel: the report's box runs along it from side to side.
    assert (report.sum(), box[2]) == (27 + 37, slice(0, 40))
    assert bounded.sum() < 40
    far = (4, 4, 5)  # on the vessel, 15 mm away
    seen = meet_masks(marked(far, (4, 0, 0), prob=0.9, floor=0.5), hu, [NODULE], GRID, 0.5)
    assert (seen.tp, seen.fp, seen.fn) == (1, 1, int(report.sum()) - 1)
    assert seen.slices == 3
    assert not seen.nodules[0].touched


def test_what_is_faintly_marked_is_touched() -> None:
    hu, middle = on_a_vessel(), (4, 4, 20)
    for floor, touched in ((0.3, True), (0.5, False)):
        seen = meet_masks(marked(middle, prob=0.4, floor=floor), hu, [NODULE], GRID, 0.5)
        assert (seen.nodules[0].touched, seen.nodules[0].dice, seen.flagged, seen.tp) == (touched, 0.0, 0, 0)


def test_a_nodule_outside_of_the_scan_is_missed_and_has_no_pixels() -> None:
    outside = Nodule(series_uid="1.1", center_xyz=(0.0, 0.0, 90.0), diameter_mm=3.0, malignant=False, ratings=(1, 1))
    seen = meet_masks(marked((4, 4, 20), prob=0.9, floor=0.5), on_a_vessel(), [outside, NODULE], GRID, 0.5)
    assert [nodule.touched for nodule in seen.nodules] == [False, True]
    assert seen.tp == 1


def test_what_was_met_is_kept_under_its_key(tmp_path: Path) -> None:
    segmented = meet_masks(marked((4, 4, 20), prob=0.9, floor=0.5), on_a_vessel(), [NODULE], GRID, 0.5)
    kept = Annotated(prob_malignant=np.array([0.25]), segmented=segmented)
    write_annotated(tmp_path / "annotated.npz", kept, "key")
    again = read_annotated(tmp_path / "annotated.npz", "key")
    assert again is not None
    assert (again.segmented, again.prob_malignant.tolist()) == (segmented, [0.25])
    assert again.segmented.nodules[0].dice == pytest.approx(segmented.nodules[0].dice)
    assert read_annotated(tmp_path / "annotated.npz", "another") is None
