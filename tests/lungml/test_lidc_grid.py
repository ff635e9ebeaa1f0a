import math
from dataclasses import replace

import numpy as np
import pytest

from lungml.geometry import Grid, irc_to_xyz
from lungml.lidc_grid import bounding_box_xyz, center_xyz, consensus_box, diameter_mm, z_to_index
from lungml.lidc_nodules import LidcNodule, lidc_nodules
from lungml.lidc_xml import LidcError, parse_lidc
from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square

GRID = Grid(shape_irc=(10, 64, 64), spacing_xyz=(0.5, 0.5, 2), origin_xyz=(-16, 8, -100))
TURNED = replace(GRID, direction=((-1, 0, 0), (0, -1, 0), (0, 0, 1)))
UPSIDE_DOWN = replace(GRID, origin_xyz=(-16, 8, -82), direction=((1, 0, 0), (0, -1, 0), (0, 0, -1)))
GRIDS = pytest.mark.parametrize("grid", [GRID, TURNED, UPSIDE_DOWN], ids=["plain", "turned", "upside down"])


def read(*sessions: str) -> LidcNodule:
    (found,) = lidc_nodules(parse_lidc(lidc_xml(*sessions), "x"))
    return found


def at(row: int, col: int, side: int = 6, z: tuple[float, ...] = (-96.0,)) -> str:
    return nodule("".join(roi(z_mm, square(row, col, side)) for z_mm in z))


@GRIDS
def test_columns_and_rows_are_the_scans_and_slices_are_found_by_z(grid: Grid) -> None:
    found = read(at(10, 20, z=(-96, -94)))
    index = np.mean([z_to_index(-96, grid), z_to_index(-94, grid)])
    assert index == (6.5 if grid is UPSIDE_DOWN else 2.5)
    assert center_xyz(found, grid) == pytest.approx(irc_to_xyz((index, 12.5, 22.5), grid))
    box, inside = consensus_box(found, grid)
    first = 6 if grid is UPSIDE_DOWN else 2
    assert box == (slice(first, first + 2), slice(11, 15), slice(21, 25))
    assert inside.all()


@GRIDS
def test_the_bounding_box_holds_the_lines_and_low_is_low(grid: Grid) -> None:
    low, high = bounding_box_xyz(read(at(10, 20), at(12, 22, z=(-96, -94))), grid)
    # The mean of 10..15 and 12..17, of 20..25 and 22..27; of slices 2..2 and 2..3, rounded to the even 2.
    corners = irc_to_xyz([(z_to_index(-96, grid), row, col) for row, col in ((11, 21), (16, 26))], grid)
    if grid is UPSIDE_DOWN:  # slices 7..7 and 6..7: from the even 6 to 7
        corners[0, 2], corners[1, 2] = -96, -94
    np.testing.assert_allclose((low, high), (corners.min(axis=0), corners.max(axis=0)))


def test_the_diameter_is_the_mean_of_the_spheres_of_the_readers_voxels() -> None:
    one, other = (np.cbrt(6 * voxels * 0.5 * 0.5 * 2 / math.pi) for voxels in (16, 64))
    assert diameter_mm(read(at(10, 20), at(10, 20, side=10)), GRID) == pytest.approx((one + other) / 2)


@pytest.mark.parametrize(("readers", "columns"), [(1, (21, 25)), (2, (21, 27)), (3, (23, 27)), (4, (23, 29))])
def test_half_of_the_readers_who_outlined_it_are_enough(readers: int, columns: tuple[int, int]) -> None:
    """Squares of 4 x 4 pixels, each two columns right of the last: 1 of 1, 1 of 2, 2 of 3, 2 of 4 must agree."""
    found = read(*(at(10, 20 + 2 * reader) for reader in range(readers)), "")
    box, inside = consensus_box(found, GRID)
    assert box == (slice(2, 3), slice(11, 15), slice(*columns))
    assert inside.all()


def test_two_outlines_of_one_reader_are_one_vote() -> None:
    found = read(at(10, 20) + at(10, 20, side=8), at(10, 20), at(10, 20))
    assert consensus_box(found, GRID)[1].sum() == 16


def test_readers_who_share_no_voxel_have_no_consensus() -> None:
    found = read(at(10, 10), at(10, 13), at(10, 16), at(10, 19), at(10, 22))  # three of five must agree
    box, inside = consensus_box(found, GRID)
    assert inside.shape == (1, 1, 1)
    assert not inside.any()
    assert box == (slice(2, 3), slice(12, 13), slice(18, 19))


@pytest.mark.parametrize(
    "outside",
    [at(60, 20), at(10, 60), at(10, 20, z=(-102,)), at(10, 20, z=(-80,))],
    ids=["row", "col", "below", "above"],
)
def test_an_outline_outside_the_scan_is_refused(outside: str) -> None:
    with pytest.raises(LidcError, match=r"1\.2\.3: a nodule is outlined outside the scan's \(10, 64, 64\) voxels"):
        consensus_box(read(outside), GRID)


def test_slices_that_are_not_axial_are_refused() -> None:
    coronal = replace(GRID, direction=((1, 0, 0), (0, 0, 1), (0, -1, 0)))
    with pytest.raises(LidcError, match="not axial"):
        center_xyz(read(at(10, 20)), coronal)
