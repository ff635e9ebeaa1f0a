"""Where in the lungs do the nodules lie? A figure in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import ndimage

from lungml.ct import Scan
from lungml.geometry import irc_to_xyz
from lungml.lungs import NoLungsError, lung_field, lung_region
from lungml.plots import INK
from lungml.print_page import (
    EDGE_IN,
    GAP_IN,
    PANEL_HEAD_IN,
    SIDES,
    WIDTH_IN,
    WORDS_PT,
    bar_length_mm,
    draw_bar,
    new_axes,
    new_page,
)
from lungml.rendering import LUNG_COLOR, VIEWS, RenderingError, Scene
from lungml.scan_figures import KINDS
from lungml.scan_marks import Mark

SHELL_OPACITY = 0.25  # of the truth, where findings lie in it
LEAST_SHARE = 0.2  # of the largest part's volume: smaller parts are gas in the bowel
UNKNOWN_DIAMETER_MM = 6.0  # drawn for a finding of unknown size
MARGIN_XYZ_MM = (14.0, 14.0, 22.0)  # room for letters and the bar
LEAST_SIDE_MM = 20.0  # of a scan; the lungs are looked for in steps of 3 mm
MOST_HEIGHT_IN = 4.5


def scene_of(scan: Scan, marks: Sequence[Mark]) -> tuple[Scene, str]:
    """What is to be drawn of a scan, and a line about what is wrong with it, or "".

    Filtered findings are left out: they lie everywhere.

    Raises:
        RenderingError: neither lungs nor nodules are seen, or the scan is too thin for any.
    """
    sides_mm = scan.grid.spacing_irc * scan.grid.shape_irc
    if sides_mm.min() < LEAST_SIDE_MM:
        sides = " x ".join(f"{mm:.0f}" for mm in sides_mm)
        raise RenderingError(f"{scan.series_uid}: {sides} mm are too thin for a picture in 3D; give the whole series")
    note = ""
    try:
        field = lung_field(scan.hu, scan.grid, 0.0)
        lungs, step = field.near, field.step
    except NoLungsError as why:
        lungs, step = lung_region(scan.hu, scan.grid)
        note = f"the lungs in the picture may not be all of them: {why}"
    lungs = large_parts(lungs)
    drawn = [mark for mark in marks if mark.kind != "filtered"]
    if not lungs.any() and not drawn:
        raise RenderingError(f"{scan.series_uid}: no lungs are seen and no nodule is known: nothing to draw in 3D")
    columns = irc_to_xyz(np.concatenate([np.diag(step), np.zeros((1, 3))]), scan.grid)
    origin = columns[3]
    to_xyz = np.column_stack([*(columns[:3] - origin), origin])
    diameters = [mark.diameter_mm if mark.sized else UNKNOWN_DIAMETER_MM for mark in drawn]
    found = any(mark.number is not None for mark in drawn)
    centers = np.array([mark.center_xyz for mark in drawn], dtype=np.float64).reshape(-1, 3)
    places = np.argwhere(lungs) @ to_xyz[:, :3].T + origin
    radii = np.array(diameters).reshape(-1, 1) / 2
    points = np.concatenate([places, centers - radii, centers + radii])
    scene = Scene(
        lungs=lungs,
        to_xyz=to_xyz,
        centers_xyz=centers,
        diameters_mm=np.array(diameters, dtype=np.float64),
        colors=np.array([_color(mark, found) for mark in drawn], dtype=np.float64).reshape(-1, 4),
        low_xyz=points.min(axis=0) - np.array(MARGIN_XYZ_MM),
        high_xyz=points.max(axis=0) + np.array(MARGIN_XYZ_MM),
    )
    return scene, note


def large_parts(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The parts of a region that may be lungs: the largest, and those of a fifth of its volume or more."""
    labels, count = ndimage.label(region)
    if not count:
        return region
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    large: npt.NDArray[np.bool_] = sizes >= LEAST_SHARE * sizes.max()
    return large[labels]


def _color(mark: Mark, found: bool) -> tuple[float, float, float, float]:
    """Of a mark's ball; the truth is a shell where there are findings, which may lie in it."""
    return to_rgba(KINDS[mark.kind][0], SHELL_OPACITY if found and mark.number is None else 1.0)


def draw_volume(scan: Scan, scene: Scene, views: Sequence[npt.NDArray[np.uint8]], marks: Sequence[Mark]) -> Figure:
    """The views side by side, in one scale, with letters, a bar, and a legend of what is drawn.

    Args:
        scan: the scan.
        scene: what was drawn.
        views: as `render` gives them.
        marks: as given to `scene_of`.
    """
    spans = scene.high_xyz - scene.low_xyz
    room = WIDTH_IN - 2 * EDGE_IN - GAP_IN
    scale = min(room / float(spans[0] + spans[1]), MOST_HEIGHT_IN / float(spans[2]))
    height = scale * float(spans[2])
    kinds = [kind for kind in KINDS if kind != "filtered" and any(mark.kind == kind for mark in marks)]
    hidden = sum(mark.kind == "filtered" for mark in marks)
    foot = ["Lungs from the scan's air, smoothed; parallel projection"]
    foot += [f"Filtered findings are not shown ({hidden})"] if hidden else []
    title = "Lungs and nodules" if kinds else "Lungs"
    legend = [_patch(LUNG_COLOR, "lungs"), *(_patch(KINDS[kind][0], KINDS[kind][2]) for kind in kinds)]
    figure, bottom = new_page(title, scan.series_uid, foot, PANEL_HEAD_IN + height, legend)
    bar_mm = bar_length_mm(float(min(spans[:2])))
    left = EDGE_IN + (room - scale * float(spans[0] + spans[1])) / 2
    for view, (name, (axis, letters)) in zip(views, VIEWS.items()):
        width_mm = float(spans[axis])
        axes = new_axes(figure, left, bottom, scale * width_mm, height)
        axes.set_facecolor("white")
        axes.imshow(view, interpolation="antialiased", aspect="auto")
        axes.set_title(name, fontsize=WORDS_PT, color=INK, pad=3)
        for text, (x, y, ha, va) in zip(letters, SIDES.values()):
            axes.text(x, y, text, ha=ha, va=va, fontsize=WORDS_PT, color=INK, transform=axes.transAxes)
        draw_bar(axes, bar_mm, width_mm, float(spans[2]), scale, color=INK)
        left += scale * width_mm + GAP_IN
    return figure


def _patch(color: str, words: str) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", markersize=6, color=color, label=words)
