"""A scan in which every voxel has its own value shows which plane is cut, which way up, and in which proportions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Text

from lungml.ct import Scan
from lungml.geometry import Grid, as_triple, irc_to_xyz
from lungml.print_page import WINDOWS, write_figure
from lungml.scan_figures import draw_slices
from lungml.scan_marks import Kind, Mark
from tests.lungml.test_planes import DIRECTIONS, SHAPE, grid


def scan(name: str = "straight", series_uid: str = "1.2.3") -> Scan:
    hu = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return Scan(series_uid=series_uid, hu=hu, grid=grid(name))


def mark(irc: tuple[float, float, float], diameter_mm: float, kind: Kind = "benign", **more: object) -> Mark:
    return Mark(center_xyz=as_triple(irc_to_xyz(irc, grid())), diameter_mm=diameter_mm, kind=kind, **more)  # type: ignore[arg-type]


def at(name: str, irc: tuple[float, float, float]) -> tuple[float, float, float]:
    return as_triple(irc_to_xyz(irc, grid(name)))


def texts(artist: Figure | Axes) -> list[str]:
    return [text.get_text() for text in artist.findobj(Text)]


def rings(axes: Axes) -> list[Circle]:
    return [patch for patch in axes.patches if isinstance(patch, Circle)]


def seen(axes: Axes) -> np.ndarray:
    """The picture as a reader sees it: first row on top, first column on the left."""
    picture = np.asarray(axes.images[0].get_array())
    left, right, bottom, top = axes.images[0].get_extent()
    across = (axes.get_xlim()[1] - axes.get_xlim()[0]) * (right - left)
    down = (axes.get_ylim()[0] - axes.get_ylim()[1]) * (bottom - top)
    return picture[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_planes_next_to_a_point_are_cut(name: str) -> None:
    hu = scan(name).hu
    figure = draw_slices(scan(name), at(name, (4.4, 10.5, 21.6)))  # the nearest voxel; halves go up
    axial, coronal, sagittal = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert axial.tolist() == hu[4].tolist()
    assert coronal.tolist() == hu[:, 11].tolist()
    assert sagittal.tolist() == hu[:, :, 22].tolist()


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_head_and_the_front_are_up_and_the_right_is_on_the_left(name: str) -> None:
    figure = draw_slices(scan(name), at(name, (6, 10, 15)))
    axial, coronal, sagittal = (seen(axes) for axes in figure.axes)
    hu = scan(name).hu
    left_first = hu[:, :, ::-1] if name == "flipped" else hu
    left_first = left_first[:, ::-1] if name == "flipped" else left_first
    col, row = (14, 9) if name == "flipped" else (15, 10)
    head_last = left_first[::-1] if name == "feet last" else left_first
    index = 5 if name == "feet last" else 6
    assert axial.tolist() == head_last[index].tolist()
    assert coronal.tolist() == head_last[::-1, row].tolist()
    assert sagittal.tolist() == head_last[::-1, :, col].tolist()


def test_letters_are_drawn() -> None:
    said = texts(draw_slices(scan(), at("straight", (6, 10, 15))).axes[1])
    assert {"R", "L", "S", "I", "coronal"} <= set(said)


@pytest.mark.parametrize("size_mm", [None, 12.0])
def test_a_millimetre_is_as_long_in_every_direction_of_every_plane(size_mm: float | None) -> None:
    figure = draw_slices(scan(), at("straight", (6, 10, 15)), size_mm=size_mm)
    wide, tall = figure.get_size_inches()
    scales = []
    for axes in figure.axes:
        box = axes.get_position()
        scales += [box.width * wide / np.ptp(axes.get_xlim()), box.height * tall / np.ptp(axes.get_ylim())]
    assert scales == pytest.approx([scales[0]] * 6)
    left, right, bottom, top = figure.axes[1].images[0].get_extent()
    assert (right - left, bottom - top) == (30 * 1.0, 12 * 2.5)  # columns of 1 mm, slices of 2.5 mm


def test_a_crop_lies_around_its_point() -> None:
    point = at("straight", (4.2, 10.4, 20.3))
    for axes in draw_slices(scan(), point, size_mm=12).axes:
        assert sorted(axes.get_xlim()) == [-6, 6]
        assert sorted(axes.get_ylim()) == [-6, 6]
    left, _, _, top = draw_slices(scan(), point, size_mm=12).axes[0].images[0].get_extent()
    assert (left, top) == pytest.approx(((-0.5 - 20.3) * 1.0, (-0.5 - 10.4) * 1.5))


def test_rings_have_the_radius_and_the_place_of_their_cut() -> None:
    # The planes lie at voxel (6, 10, 15), next to the point. The sphere of 13 mm lies one slice above the first, two
    # rows behind the second and 6 columns to the left of the third.
    finding, point = mark((7, 12, 21), 13.0, number=4), at("straight", (6.4, 10.4, 15.4))
    axial, coronal, sagittal = draw_slices(scan(), point, size_mm=40, marks=[finding]).axes
    for axes, center, away in ((axial, (5.6, 2.4), 2.5), (coronal, (5.6, 1.5), 3.0), (sagittal, (2.4, 1.5), 6.0)):
        (ring,) = rings(axes)
        assert ring.center == pytest.approx(center)
        assert ring.radius == pytest.approx(math.sqrt(6.5**2 - away**2))
        assert ring.get_linestyle() == "-"
        assert "4" in texts(axes)


def test_a_sphere_that_no_plane_cuts_is_neither_drawn_nor_in_the_legend() -> None:
    far = mark((9, 18, 28), 4.0, "malignant")
    figure = draw_slices(scan(), at("straight", (6, 10, 15)), size_mm=60, marks=[far, mark((6, 10, 15), 4.0)])
    assert [len(rings(axes)) for axes in figure.axes] == [1, 1, 1]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["finding, benign"]
    assert not draw_slices(scan(), at("straight", (6, 10, 15)), size_mm=60, marks=[far]).legends


def test_filtered_findings_are_dashed_and_those_of_unknown_size_are_pointed_at() -> None:
    filtered, unknown = mark((6, 10, 15), 8.0, "filtered"), mark((6, 10, 20), math.nan)
    figure = draw_slices(scan(), at("straight", (6, 10, 15)), size_mm=60, marks=[filtered, unknown])
    bare = draw_slices(scan(), at("straight", (6, 10, 15)), size_mm=60)
    assert [ring.get_linestyle() for ring in rings(figure.axes[0])] == ["--"]
    # Four strokes in the planes that it lies in; the sagittal one is 5 mm away.
    assert [len(a.lines) - len(b.lines) for a, b in zip(figure.axes, bare.axes)] == [4, 4, 0]


def test_small_rings_of_a_whole_scan_are_drawn_larger_and_it_is_said() -> None:
    figure = draw_slices(scan(), at("straight", (6, 10, 15)), marks=[mark((6, 10, 15), 0.1)])
    said = "\n".join(texts(figure))
    assert rings(figure.axes[0])[0].radius > 0.05
    assert "Rings smaller than" in said
    assert "Rings smaller than" not in "\n".join(texts(draw_slices(scan(), at("straight", (6, 10, 15)))))


def test_an_outline_follows_the_nodules_voxels() -> None:
    inside = np.zeros((3, 3, 4), dtype=np.bool_)
    inside[1, 1, 1:3] = True
    truth = mark((6, 10, 15), 6.0, "truth", box=((slice(5, 8), slice(9, 12), slice(13, 17)), inside))
    axial = draw_slices(scan(), at("straight", (6, 10, 15)), size_mm=30, marks=[truth]).axes[0]
    outline = axial.collections[0].get_paths()[0].get_extents()
    # Half a voxel around row 10 and columns 14 and 15, in mm from voxel (10, 15); rows are 1.5 mm.
    assert outline.get_points().tolist() == [[-1.5, -0.75], [0.5, 0.75]]
    assert not rings(axial)
    off = draw_slices(scan(), at("straight", (7, 10, 15)), size_mm=30, marks=[truth])
    assert [len(axes.collections) for axes in off.axes] == [0, 2, 2]  # no voxel of it in slice 7


def test_words_tell_the_place_the_window_and_the_series_and_nothing_clinical() -> None:
    point = at("straight", (6, 10, 15))
    said = texts(draw_slices(scan(), point, size_mm=25, window="bone", subject="finding 3"))
    assert "Slices around finding 3, 25 mm wide" in said
    assert "Point x 8.0, y 26.0, z 45.0 mm (LPS); bone window, \N{MINUS SIGN}450 to 1050 HU" in said
    assert {"Series 1.2.3", "Not for clinical use."} <= set(said)
    assert draw_slices(scan(), point, window="bone").axes[0].images[0].get_clim() == WINDOWS["bone"] == (-450, 1050)


def test_a_synthetic_scan_is_labelled() -> None:
    drawn = "1.2.826.0.1.3680043.8.498.6.1" + "1" * 28
    assert "synthetic scans" in texts(draw_slices(scan(series_uid=drawn), at("straight", (6, 10, 15))))
    assert "synthetic scans" not in texts(draw_slices(scan(), at("straight", (6, 10, 15))))


def test_two_slices_make_figures_too(tmp_path: Path) -> None:
    thin = Scan(
        series_uid="1.2",
        hu=np.arange(2 * 20 * 30, dtype=np.int16).reshape(2, 20, 30),
        grid=Grid(shape_irc=(2, 20, 30), spacing_xyz=(1, 1, 2.5), origin_xyz=(0, 0, 0)),
    )
    figure = draw_slices(thin, (10, 10, 1))
    height = figure.axes[1].get_position().height * figure.get_size_inches()[1]
    assert height >= 0.55  # letters need some room; what is beyond the scan is black
    write_figure(tmp_path / "a.png", figure)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
