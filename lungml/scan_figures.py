"""What does this scan show at a place? Three orthogonal slices, with what is known there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from lungml.ct import Scan
from lungml.geometry import Grid, xyz_to_irc
from lungml.masks import NoduleBox
from lungml.pictures import UNKNOWN_MM, draw_outline
from lungml.planes import Plane, cut_radius_mm, planes_at, side_letters
from lungml.plots import INK
from lungml.print_page import (
    EDGE_IN,
    GAP_IN,
    PANEL_HEAD_IN,
    SIDES,
    SMALL_PT,
    WIDTH_IN,
    WINDOWS,
    WORDS_PT,
    Window,
    bar_length_mm,
    cased,
    draw_bar,
    minus,
    new_axes,
    new_page,
    words_of,
)
from lungml.reading.colors import MARK_COLORS
from lungml.scan_marks import Kind, Mark

KINDS: dict[Kind, tuple[str, str, str]] = {  # colour, line, words
    "malignant": (MARK_COLORS["malignant"], "-", "finding, malignant"),
    "benign": (MARK_COLORS["benign"], "-", "finding, benign"),
    "filtered": (MARK_COLORS["filtered"], "--", "finding, filtered"),
    "truth_malignant": (MARK_COLORS["truth-malignant"], "-", "truth, malignant"),
    "truth": (MARK_COLORS["truth"], "-", "truth"),
}
LEAST_HEIGHT_IN, MOST_HEIGHT_IN = 0.55, 6.0  # of a panel: letters need some room, a page has no more
LEAST_RING_PT = 2.6  # radius of a ring that can be seen as one


def draw_slices(
    scan: Scan,
    center_xyz: tuple[float, float, float],
    *,
    size_mm: float | None = None,
    marks: Sequence[Mark] = (),
    window: Window = "lung",
    subject: str = "a point",
) -> Figure:
    """Three orthogonal slices through a place, in true proportions and as stored, with what is known there.

    Args:
        scan: the scan.
        center_xyz: mm (LPS), inside the scan.
        size_mm: how much is shown around the place, with a crosshair; None for the whole scan, without one.
        marks: drawn where a slice cuts them: the outline of a nodule's voxels where they are known, else the circle
            in which the slice cuts its sphere.
        window: which HU become grey.
        subject: what the place is, in words.
    """
    center = xyz_to_irc(center_xyz, scan.grid).tolist()
    planes = planes_at(center, scan.grid)
    spans = [_spans_mm(plane, center, scan.grid, size_mm) for plane in planes]
    widths = [abs(across[1] - across[0]) for _, across in spans]
    heights = [abs(down[1] - down[0]) for down, _ in spans]
    room = WIDTH_IN - 2 * EDGE_IN - 2 * GAP_IN
    scale = min(room / sum(widths), MOST_HEIGHT_IN / max(heights))  # inches per mm, of all three
    tall = max(LEAST_HEIGHT_IN, scale * max(heights))
    cut = [
        [mark for mark in marks if _is_cut(mark, plane, center, span, scan.grid)] for plane, span in zip(planes, spans)
    ]
    kinds = {mark.kind for one in cut for mark in one}
    least_mm = 0.0 if size_mm else LEAST_RING_PT / 72 / scale
    low, high = WINDOWS[window]
    foot = [minus(f"{'Point' if size_mm else 'Centre'} {words_of(center_xyz)}; {window} window, {low} to {high} HU")]
    if kinds and least_mm:
        foot.append(f"Rings smaller than {2 * least_mm:.0f} mm are drawn {2 * least_mm:.0f} mm wide")
    title = f"Slices around {subject}, {size_mm:g} mm wide" if size_mm else "CT scan: three slices through its centre"
    handles = [handle_of(kind) for kind in KINDS if kind in kinds]
    figure, bottom = new_page(title, scan.series_uid, foot, PANEL_HEAD_IN + tall, handles)
    left = EDGE_IN + (room - scale * sum(widths)) / 2
    for plane, (down, across), width, height, seen in zip(planes, spans, widths, heights, cut):
        side = max(LEAST_HEIGHT_IN, scale * height)
        axes = new_axes(figure, left, bottom + tall - side, scale * width, side)
        _show_plane(axes, scan, plane, center, window)
        spare = (side / scale - height) / 2 * math.copysign(1, down[1] - down[0])
        axes.set_xlim(*across)
        axes.set_ylim(down[1] + spare, down[0] - spare)
        for mark in seen:
            numbered = size_mm is not None or mark.kind != "filtered"
            _draw_mark(axes, mark, plane, center, scan.grid, least_mm=least_mm, numbered=numbered)
        if size_mm:
            _crosshair(axes, size_mm)
        _dress(axes, plane, scan.grid, width, side / scale, scale, bar_length_mm(min(widths)))
        axes.set_title(plane.name, fontsize=WORDS_PT, color=INK, pad=3)
        left += scale * width + GAP_IN
    return figure


def _spans_mm(
    plane: Plane, center: Sequence[float], grid: Grid, size_mm: float | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """From where to where a plane's picture goes, downwards and across, in mm of the voxel axes from the centre."""
    spans = []
    for axis, to in ((plane.down, plane.to_down), (plane.across, plane.to_across)):
        ends = (-size_mm / 2, size_mm / 2) if size_mm else _ends_mm(axis, center, grid)
        spans.append(ends if to > 0 else ends[::-1])
    return spans[0], spans[1]


def _ends_mm(axis: int, center: Sequence[float], grid: Grid) -> tuple[float, float]:
    """Where a voxel axis begins and ends, with its voxels' edges, in mm from the centre."""
    mm = float(grid.spacing_irc[axis])
    return (-0.5 - center[axis]) * mm, (grid.shape_irc[axis] - 0.5 - center[axis]) * mm


def _show_plane(axes: Axes, scan: Scan, plane: Plane, center: Sequence[float], window: Window) -> None:
    """One plane in mm from the centre, so that a pixel that is no square is drawn as what it is."""
    picture = np.take(scan.hu, plane.index, axis=plane.cut)
    (left, right), (top, bottom) = (_ends_mm(axis, center, scan.grid) for axis in (plane.across, plane.down))
    low, high = WINDOWS[window]
    edges = (left, right, bottom, top)
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest", extent=edges, aspect="auto")


def _is_cut(
    mark: Mark,
    plane: Plane,
    center: Sequence[float],
    spans: tuple[tuple[float, float], tuple[float, float]],
    grid: Grid,
) -> bool:
    """Whether something of a mark is seen in a plane's picture."""
    place = xyz_to_irc(mark.center_xyz, grid)
    reach = mark.diameter_mm / 2 if mark.sized else UNKNOWN_MM
    for axis, (start, end) in ((plane.down, spans[0]), (plane.across, spans[1])):
        away = (float(place[axis]) - center[axis]) * float(grid.spacing_irc[axis])
        if not min(start, end) - reach <= away <= max(start, end) + reach:
            return False
    if mark.box is not None:
        return _outline(mark.box, plane) is not None
    return abs(float(place[plane.cut]) - plane.index) * float(grid.spacing_irc[plane.cut]) < (
        reach if mark.sized else UNKNOWN_MM / 2
    )


def _outline(box: NoduleBox, plane: Plane) -> npt.NDArray[np.bool_] | None:
    """Which pixels of a plane, within a nodule's box, belong to it: (down, across) bool; None where none does."""
    (slices, inside) = box
    at = plane.index - slices[plane.cut].start
    if not 0 <= at < inside.shape[plane.cut]:
        return None
    part = np.take(inside, at, axis=plane.cut)
    return part if part.any() else None


def _draw_mark(
    axes: Axes,
    mark: Mark,
    plane: Plane,
    center: Sequence[float],
    grid: Grid,
    *,
    least_mm: float = 0.0,
    numbered: bool = True,
) -> None:
    """The outline of a nodule's voxels, the circle of its sphere, or, of unknown size, four strokes at its centre.

    Args:
        axes, plane, center, grid: of the picture.
        mark: what this plane cuts.
        least_mm: radius of a ring that is drawn for a smaller one, and for an outline; 0 draws all as they are.
        numbered: write the number of a finding beside it.
    """
    color, line, _ = KINDS[mark.kind]
    mm = grid.spacing_irc
    place = xyz_to_irc(mark.center_xyz, grid)
    away = (place - center) * mm
    x, y = float(away[plane.across]), float(away[plane.down])
    from_plane_mm = float((place[plane.cut] - plane.index) * mm[plane.cut])
    part = None if mark.box is None else _outline(mark.box, plane)
    radius = cut_radius_mm(mark.diameter_mm, from_plane_mm) if mark.sized else UNKNOWN_MM / 2
    if mark.box is not None and part is not None and radius >= least_mm:
        across_mm, down_mm = (
            (np.arange(mark.box[0][axis].start - 1, mark.box[0][axis].stop + 1) - center[axis]) * mm[axis]
            for axis in (plane.across, plane.down)
        )
        draw_outline(axes, across_mm, down_mm, part, color)
    elif mark.sized:
        radius = max(radius, least_mm)
        width = 1.0 if least_mm else 1.2
        ring = Circle((x, y), radius, fill=False, edgecolor=color, linestyle=line, linewidth=width)
        ring.set_path_effects(cased(width))
        axes.add_patch(ring)
    else:
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            ends = ([x + radius * across, x + 2 * radius * across], [y + radius * down, y + 2 * radius * down])
            axes.plot(*ends, color=color, linewidth=1.2, path_effects=cased(1.2))
    if mark.number is not None and numbered:
        reach = radius * math.sqrt(0.5)
        words = axes.annotate(
            str(mark.number),
            (x + reach * plane.to_across, y - reach * plane.to_down),
            (1.5, 0.5),
            textcoords="offset points",
            color=color,
            fontsize=SMALL_PT,
            fontweight="bold",
            ha="left",
            va="bottom",
            annotation_clip=True,
        )
        words.set_path_effects(cased(0))


def _crosshair(axes: Axes, size_mm: float) -> None:
    """Two lines through the place, which leave its surroundings open."""
    far, near = 0.34 * size_mm, 0.2 * size_mm  # short of the letters at the sides
    for ends in ([-far, -near], [near, far]):
        for line in ((ends, [0, 0]), ([0, 0], ends)):
            axes.plot(*line, color="white", linewidth=0.7, alpha=0.75, path_effects=cased(0.7))


def _dress(axes: Axes, plane: Plane, grid: Grid, width_mm: float, height_mm: float, scale: float, bar_mm: int) -> None:
    """Letters at the four sides and a bar of a round length."""
    style: dict[str, Any] = {
        "color": "white",
        "fontsize": WORDS_PT,
        "path_effects": cased(0),
        "transform": axes.transAxes,
    }
    for side, text in side_letters(plane, grid).items():
        x, y, ha, va = SIDES[side]
        axes.text(x, y, text, ha=ha, va=va, **style)
    draw_bar(axes, bar_mm, width_mm, height_mm, scale, color="white")


def handle_of(kind: Kind) -> Line2D:
    """A legend's line for one kind of mark."""
    color, line, words = KINDS[kind]
    style: dict[str, Any] = {"linestyle": line, "linewidth": 1.4, "path_effects": cased(1.4)}
    return Line2D([], [], color=color, label=words, **style)
