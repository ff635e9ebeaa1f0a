from dataclasses import replace

import numpy as np
import pytest

from lungml.geometry import Grid, irc_to_xyz
from lungml.lidc_nodules import lidc_nodules
from lungml.lidc_truth import consensus_boxes, scan_truth
from lungml.lidc_xml import LidcScan, parse_lidc
from lungml.masks import nodule_boxes
from tests.lungml.fixtures.lidc import lidc_xml, nodule, non_nodule, roi, square

GRID = Grid(
    shape_irc=(10, 64, 64),
    spacing_xyz=(1, 1, 1),
    origin_xyz=(-30, -20, -10),
    direction=((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
)


def at(row: int, col: int, malignancy: int | None = 3) -> str:
    return nodule("".join(roi(z_mm, square(row, col, 6)) for z_mm in (-8, -7, -6, -5)), malignancy)


def scan() -> LidcScan:
    agreed = at(10, 10, 4)
    return parse_lidc(
        lidc_xml(
            agreed + at(40, 40),
            agreed + at(40, 40) + non_nodule(-3, 50, 8),
            agreed + nodule(roi(-2, [(30, 31)]), None),
            at(25, 25, None) + nodule(roi(-2, [(30, 31)]), None),
            at(25, 25, None),
            at(25, 25, None),
        ),
        "x",
    )


def test_three_readers_make_a_nodule_and_the_rest_is_excluded() -> None:
    read = scan()
    truth, excluded = scan_truth(read, lidc_nodules(read), GRID)
    (nodule_,) = truth
    assert nodule_.series_uid == "1.2.3"
    assert nodule_.center_xyz == pytest.approx(irc_to_xyz((3.5, 12.5, 12.5), GRID))
    assert nodule_.diameter_mm == pytest.approx(np.cbrt(6 * 64 / np.pi))
    assert (nodule_.malignant, nodule_.ratings) == (True, (4, 4, 4))
    fewer, unrated = [finding for finding in excluded if finding.diameter_mm != 10]
    assert {fewer.center_xyz, unrated.center_xyz} == {
        tuple(irc_to_xyz((3.5, place, place), GRID).tolist()) for place in (42.5, 27.5)
    }
    points = [finding.center_xyz for finding in excluded if finding.diameter_mm == 10]
    assert points == [tuple(irc_to_xyz(irc, GRID).tolist()) for irc in ((8, 30, 31), (8, 30, 31), (7, 50, 8))]


def test_the_consensus_fits_the_masks() -> None:
    read = scan()
    readings = lidc_nodules(read)
    truth, _ = scan_truth(read, readings, GRID)
    contours = consensus_boxes(truth, readings, GRID)
    masks = nodule_boxes(np.zeros(GRID.shape_irc, np.int16), truth, GRID, "consensus", contours)
    box, inside = masks.boxes[0]
    assert box == (slice(2, 6), slice(11, 15), slice(11, 15))
    assert inside.all()
    elsewhere = [replace(truth[0], center_xyz=(0.0, 0.0, 0.0))]
    assert consensus_boxes(elsewhere, readings, GRID) == {}
