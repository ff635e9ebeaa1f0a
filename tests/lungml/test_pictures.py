"""Small volumes in which every slice has its own value."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Text

from lungml.geometry import Grid, irc_to_xyz
from lungml.pictures import (
    CASE_WINDOW_HU,
    LUNG_WINDOW_HU,
    Picture,
    draw_augmentation,
    draw_case,
    draw_worst,
    middle_slice,
)
from lungml.plots import write_figures
from lungml.worst_cases import Case

UID = "1.2.826.0.1.3680043.8.498.12345678"
MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[2:4, 2:5] = 1


def volume(depth: int) -> np.ndarray:
    return np.broadcast_to(np.arange(depth, dtype=np.int16)[:, None, None], (depth, 8, 8))


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def shown(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_a_crop_shows_its_centre_voxel() -> None:
    # crops.cut_box keeps the centre at depth // 2; slabs have an odd depth.
    assert middle_slice(volume(32)).tolist() == np.full((8, 8), 16).tolist()
    assert middle_slice(volume(7))[0, 0] == 3
    assert middle_slice(MASK) is MASK


def test_errors_tell_probability_scan_and_place() -> None:
    pictures = [
        Picture(hu=volume(32), series_uid=UID, center=(-12.4, 30.6, 100), prob=0.9876, note="6.5 mm"),
        Picture(hu=volume(7), series_uid=UID, center=(3, 40, 50), frame="irc", note="12 of 40 pixels missed"),
    ]
    figure = draw_worst(pictures, title="worst false positives, val", origin="phantom", total=61)
    said = texts(figure)
    assert "worst false positives, val: 2 of 61" in said
    assert "p = 0.988, 6.5 mm\n…12345678\nxyz -12, 31, 100 mm" in said
    assert "\n12 of 40 pixels missed\n…12345678\nirc 3, 40, 50" in f"\n{said}"
    assert UID not in said  # the whole one is long, and nobody needs it to find the place
    assert "synthetic scans" in said
    assert [int(picture[0, 0]) for picture in shown(figure)] == [16, 3]
    assert figure.axes[0].images[0].get_clim() == LUNG_WINDOW_HU == (-1350, 150)


def test_outlines_follow_the_pixels() -> None:
    picture = Picture(hu=volume(7), series_uid=UID, center=(0, 0, 0), target=MASK, flagged=np.ones((8, 8), bool))
    figure = draw_worst([picture], title="a", origin="real")
    said = texts(figure)
    assert ("truth" in said, "said" in said, "synthetic" in said) == (True, True, False)
    outlines = [c.get_paths()[0].get_extents() for c in figure.axes[0].collections]
    # Half a voxel around rows 2..3 and columns 2..4; and the whole picture's closes at its border.
    assert outlines[0].get_points().tolist() == outlines[1].get_points().tolist() == [[1.5, 1.5], [4.5, 3.5]]
    assert outlines[2].get_points().tolist() == [[-0.5, -0.5], [7.5, 7.5]]


def test_an_empty_mask_has_no_outline() -> None:
    picture = Picture(hu=volume(7), series_uid=UID, center=(0, 0, 0), target=MASK * 0)
    assert not draw_worst([picture], title="a", origin="real").axes[0].collections


def test_no_errors_are_said(tmp_path: Path) -> None:
    figure = draw_worst([], title="worst false negatives, test", origin="phantom", total=0)
    assert "none" in texts(figure).splitlines()
    write_figures(tmp_path, {"it": figure})


def test_an_augmentation_sheet_has_originals_on_the_left(tmp_path: Path) -> None:
    originals = np.stack([volume(4), volume(4) + 10])
    versions = np.stack([originals + 100, originals + 200, originals + 300], axis=1)
    masks = np.stack([MASK, MASK])
    figure = draw_augmentation(
        originals,
        versions,
        masks=masks,
        augmented_masks=np.stack([masks, masks * 0, masks], axis=1),
        title="a",
        origin="phantom",
    )
    assert [int(p[0, 0]) for p in shown(figure)] == [2, 102, 202, 302, 12, 112, 212, 312]
    assert [len(axes.collections) for axes in figure.axes] == [2, 2, 0, 2] * 2
    said = texts(figure)
    assert all(word in said for word in ("original", "augmented", "truth", "synthetic scans"))
    write_figures(tmp_path, {"it": figure})


def test_an_augmentation_sheet_without_samples_is_said() -> None:
    empty = np.empty((0, 4, 8, 8))
    figure = draw_augmentation(empty, np.empty((0, 3, 4, 8, 8)), title="a", origin="real")
    assert "no samples" in texts(figure)


def test_versions_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="2 originals, but versions of 1"):
        draw_augmentation(np.zeros((2, 8, 8)), np.zeros((1, 3, 8, 8)), title="a", origin="real")


def case(grid: Grid, center_irc: tuple[float, float, float], diameter_mm: float) -> Case:
    x, y, z = irc_to_xyz(center_irc, grid).tolist()
    return Case(series_uid=UID, center_xyz=(x, y, z), diameter_mm=diameter_mm, kind="missed", words="a nodule")


def pixel_at(figure: Figure, x_share: float, y_share: float) -> int:
    """What is seen at a place of a drawn case, as a share of its width and height; grey, 0 to 255."""
    figure.canvas.draw()
    seen = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return int(seen[round(y_share * (len(seen) - 1)), round(x_share * (seen.shape[1] - 1)), 0])


def test_a_case_shows_the_nearest_slice_with_a_ring_of_its_size_in_the_middle() -> None:
    grid = Grid(shape_irc=(9, 100, 100), spacing_xyz=(0.5, 0.8, 2.0), origin_xyz=(-20, 30, 7))
    hu = np.full(grid.shape_irc, -1000, dtype=np.int16) + np.arange(9, dtype=np.int16)[:, None, None]
    figure = draw_case(case(grid, (3.6, 40, 60), 12.0), hu, grid)
    (axes,) = figure.axes
    (image,) = axes.images
    assert np.unique(np.asarray(image.get_array())).tolist() == [-996]  # slice 4
    assert image.get_clim() == CASE_WINDOW_HU == (-1000, 400)
    rings = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert {(ring.center, ring.radius) for ring in rings} == {((0, 0), 6.0)}
    assert (axes.get_xlim(), axes.get_ylim()) == ((-30, 30), (30, -30))  # mm
    # Voxel (row 40, column 60) is in the middle: the picture's edges lie as many mm away as there are voxels.
    assert image.get_extent() == [-30.25, 19.75, 47.6, -32.4]


def test_a_large_nodule_is_seen_whole() -> None:
    grid = Grid(shape_irc=(3, 10, 10), spacing_xyz=(10, 10, 2), origin_xyz=(0, 0, 0))
    figure = draw_case(case(grid, (1, 5, 5), 40.0), np.zeros(grid.shape_irc, dtype=np.int16), grid)
    assert figure.axes[0].get_xlim() == (-60, 60)


def test_without_a_diameter_strokes_point_at_the_centre() -> None:
    grid = Grid(shape_irc=(3, 10, 10), spacing_xyz=(1, 1, 2), origin_xyz=(0, 0, 0))
    figure = draw_case(case(grid, (1, 5, 5), math.nan), np.zeros(grid.shape_irc, dtype=np.int16), grid)
    (axes,) = figure.axes
    assert not axes.patches
    ends = {tuple(map(tuple, line.get_xydata().tolist())) for line in axes.lines}
    assert {((5, 0), (10, 0)), ((-5, 0), (-10, 0)), ((0, 5), (0, 10)), ((0, -5), (0, -10))} < ends


@pytest.mark.parametrize("flips", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_the_patients_right_is_on_the_left_and_the_front_is_up(flips: tuple[int, int], tmp_path: Path) -> None:
    direction = ((flips[0], 0, 0), (0, flips[1], 0), (0, 0, flips[0] * flips[1]))
    grid = Grid(shape_irc=(3, 80, 80), spacing_xyz=(1, 1, 2), origin_xyz=(0, 0, 0), direction=direction)
    hu = np.full(grid.shape_irc, -1000, dtype=np.int16)
    # LPS: x grows to the patient's left, y to the back. Bright: 20 mm to the right and 20 mm to the front.
    center = (1.0, 40.0, 40.0)
    row, col = 40 - 20 * flips[1], 40 - 20 * flips[0]
    hu[:, row - 3 : row + 4, col - 3 : col + 4] = 400
    figure = draw_case(case(grid, center, 6.0), hu, grid)
    assert pixel_at(figure, 1 / 6, 1 / 6) > 200
    assert pixel_at(figure, 5 / 6, 1 / 6) < 50
    assert pixel_at(figure, 1 / 6, 5 / 6) < 50
    write_figures(tmp_path, {"it": figure})


def test_a_case_beside_the_scan_is_drawn_on_black() -> None:
    grid = Grid(shape_irc=(3, 20, 20), spacing_xyz=(1, 1, 2), origin_xyz=(0, 0, 0))
    figure = draw_case(case(grid, (-4, 0, 0), 6.0), np.full(grid.shape_irc, 400, dtype=np.int16), grid)
    assert pixel_at(figure, 0.6, 0.6) > 200
    assert pixel_at(figure, 0.2, 0.2) == 0
