"""What did the network look at, and where was it most wrong? Sheets of axial slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from lungml.geometry import Grid, xyz_to_irc
from lungml.planes import planes_at
from lungml.plots import DPI, GREY, INK, ORANGE, SKY, Origin, new_figure, say
from lungml.worst_cases import Case

LUNG_WINDOW_HU = -1350, 150  # radiology's usual lung window: level -600, width 1500
CASE_WINDOW_HU = -1000, 400  # air .. soft tissue and contrast: lung and what lies against its wall in one picture
CASE_SIDE_MM, CASE_DIAMETERS = 60.0, 3.0  # shown around a case: so many mm, or diameters when these are more
CASE_INCHES = 2.4
UNKNOWN_MM = 10.0  # half the size of the mark where no diameter is known
COLUMNS = 4
MIN_WIDTH = 6.5  # inches that a title and the label beside it take


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One place that a network judged.

    Attributes:
        hu: (row, col), or (index, row, col) whose middle slice is shown; HU. A nodule in a whole slice is a few
            pixels: cut it around the place first, with its outlines.
        series_uid: of the scan.
        center: of the place; three numbers, in the frame that `frame` names.
        frame: "irc" for voxels or "xyz" for mm (LPS).
        prob: that the network gave; NaN when it gave none.
        note: a word more, such as the truth's diameter.
        target: (row, col) bool, the truth's outline, where there is one.
        flagged: (row, col) bool, the network's outline, where there is one.
    """

    hu: npt.NDArray[np.generic]
    series_uid: str
    center: tuple[float, float, float]
    frame: str = "xyz"
    prob: float = math.nan
    note: str = ""
    target: npt.NDArray[np.generic] | None = None
    flagged: npt.NDArray[np.generic] | None = None


def middle_slice(hu: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The slice at `depth // 2`, where a crop keeps its centre voxel; a view. A picture is its own middle slice."""
    return hu if hu.ndim == 2 else hu[hu.shape[0] // 2]


def draw_worst(pictures: Sequence[Picture], *, title: str, origin: Origin, total: int | None = None) -> Figure:
    """Places side by side, the worst first, each with its probability, where it is and what outlines it has.

    Args:
        pictures: as many as are to be seen; none at all is said.
        title: which errors these are.
        origin: "phantom" labels the figure as made from synthetic scans.
        total: how many errors of this kind there are.
    """
    shown = f"{title}: {len(pictures)} of {total:,}" if total is not None and pictures else title
    if not pictures:
        return say(new_figure(MIN_WIDTH, 2.0, title, origin), "none")
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = new_figure(max(MIN_WIDTH, 2.25 * columns), 0.7 + 2.75 * rows, shown, origin)
    for axes, picture in zip(_grid(figure, rows, columns), pictures):
        _show(axes, middle_slice(picture.hu), picture.target, picture.flagged)
        numbers = ", ".join(f"{value:.0f}" for value in picture.center)
        unit = " mm" if picture.frame == "xyz" else ""
        head = [] if math.isnan(picture.prob) else [f"p = {picture.prob:.3f}"]
        head += [picture.note] if picture.note else []
        axes.set_title(
            f"{', '.join(head)}\n…{picture.series_uid[-8:]}\n{picture.frame} {numbers}{unit}", fontsize=8, color=INK
        )
    _legend(
        figure,
        target=any(p.target is not None for p in pictures),
        flagged=any(p.flagged is not None for p in pictures),
    )
    return figure


def draw_case(case: Case, hu: npt.NDArray[np.generic], grid: Grid) -> Figure:
    """The axial slice through a case, with a ring of its size and a bar of 10 mm; no words: those stand beside it.

    The patient's right is on the left and the front is up, however the scan's axes run; nothing is resampled. Where no
    diameter is known, four strokes point at the centre instead.

    Args:
        case: the place.
        hu: (index, row, col) HU.
        grid: of that scan.
    """
    center = xyz_to_irc(case.center_xyz, grid).tolist()
    axial, _, _ = planes_at(center, grid)
    _, row, col = center
    plane = np.asarray(hu[axial.index])
    _, row_mm, col_mm = grid.spacing_irc.tolist()
    known = math.isfinite(case.diameter_mm) and case.diameter_mm > 0
    side_mm = max(CASE_SIDE_MM, CASE_DIAMETERS * case.diameter_mm) if known else CASE_SIDE_MM
    figure = Figure(figsize=(CASE_INCHES, CASE_INCHES), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_facecolor("black")
    low, high = CASE_WINDOW_HU
    rows, cols = plane.shape
    # In mm from the centre, so that a pixel that is no square is drawn as what it is.
    edges = ((-0.5 - col) * col_mm, (cols - 0.5 - col) * col_mm, (rows - 0.5 - row) * row_mm, (-0.5 - row) * row_mm)
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest", extent=edges)
    half = side_mm / 2
    to_left, to_back = axial.to_across, axial.to_down
    axes.set_xlim(-half * to_left, half * to_left)
    axes.set_ylim(half * to_back, -half * to_back)
    # Drawn wide and dark below, so that it shows on air as on bone.
    for color, width in (("black", 2.6), (ORANGE, 1.2)):
        if known:
            axes.add_patch(Circle((0, 0), case.diameter_mm / 2, fill=False, edgecolor=color, linewidth=width))
        else:
            for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                axes.plot(*([UNKNOWN_MM / 2 * d, UNKNOWN_MM * d] for d in (x, y)), color=color, linewidth=width)
        start = -0.92 * half * to_left
        bar_y = 0.9 * half * to_back
        axes.plot([start, start + 10 * to_left], [bar_y, bar_y], color=color, linewidth=width + 0.4)
    return figure


def draw_augmentation(
    originals: npt.NDArray[np.generic],
    augmented: npt.NDArray[np.generic],
    *,
    title: str,
    origin: Origin,
    masks: npt.NDArray[np.generic] | None = None,
    augmented_masks: npt.NDArray[np.generic] | None = None,
) -> Figure:
    """Each original on the left, and what training makes of it to the right; middle slices.

    Args:
        originals: (n, [depth,] row, col) HU.
        augmented: (n, versions, [depth,] row, col) HU.
        title: what it is about.
        origin: see `draw_worst`.
        masks: (n, row, col), the targets of the originals.
        augmented_masks: (n, versions, row, col), and of the versions.

    Raises:
        ValueError: when the counts differ.
    """
    if len(originals) != len(augmented):
        raise ValueError(f"{len(originals)} originals, but versions of {len(augmented)}")
    if not len(originals):
        return say(new_figure(MIN_WIDTH, 2.0, title, origin), "no samples")
    versions = augmented.shape[1]
    figure = new_figure(max(MIN_WIDTH, 0.4 + 1.7 * (1 + versions)), 0.6 + 1.8 * len(originals), title, origin)
    axes = _grid(figure, len(originals), 1 + versions)
    for row, (original, variants) in enumerate(zip(originals, augmented)):
        line = axes[row * (1 + versions) : (row + 1) * (1 + versions)]
        _show(line[0], middle_slice(original), None if masks is None else masks[row])
        line[0].set_title("original", fontsize=8, color=INK)
        for column, variant in enumerate(variants):
            mask = None if augmented_masks is None else augmented_masks[row, column]
            _show(line[1 + column], middle_slice(variant), mask)
        if row == 0 and versions:
            line[1].set_title("augmented", fontsize=8, color=INK)
    _legend(figure, target=masks is not None, flagged=False)
    return figure


def draw_outline(
    axes: Axes,
    across: npt.NDArray[np.generic],
    down: npt.NDArray[np.generic],
    inside: npt.NDArray[np.generic],
    color: str,
    style: str = "solid",
) -> None:
    """The outline of some pixels, in one colour upon a dark casing, so that it shows on air as on bone.

    Args:
        axes: the picture's.
        across, down: (cols + 2), (rows + 2), the pixels' centres along the picture's axes, and one beyond either end.
        inside: (rows, cols), above 0 where a pixel belongs to it.
        color, style: of the line.
    """
    padded = np.pad(np.asarray(inside) > 0, 1).astype(np.float32)  # so that it closes at the border
    axes.contour(across, down, padded, levels=[0.5], colors="black", linewidths=2.4, alpha=0.6)
    axes.contour(across, down, padded, levels=[0.5], colors=color, linewidths=1.2, linestyles=style)


def _grid(figure: Figure, rows: int, columns: int) -> list[Axes]:
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for each in axes:
        each.set_axis_off()
    return axes


def _show(
    axes: Axes,
    hu: npt.NDArray[np.generic],
    target: npt.NDArray[np.generic] | None = None,
    flagged: npt.NDArray[np.generic] | None = None,
) -> None:
    low, high = LUNG_WINDOW_HU
    axes.imshow(hu, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    for mask, color, style in ((target, ORANGE, "solid"), (flagged, SKY, "dashed")):
        if mask is not None and np.any(mask):
            across, down = (np.arange(-1, side + 1) for side in mask.shape[::-1])
            draw_outline(axes, across, down, mask, color, style)
    axes.set_xlim(-0.5, hu.shape[1] - 0.5)
    axes.set_ylim(hu.shape[0] - 0.5, -0.5)


def _legend(figure: Figure, *, target: bool, flagged: bool) -> None:
    low, high = LUNG_WINDOW_HU
    lines = []
    if target:
        lines.append(Line2D([], [], color=ORANGE, label="truth"))
    if flagged:
        lines.append(Line2D([], [], color=SKY, linestyle="dashed", label="said"))
    if lines:
        figure.legend(handles=lines, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    figure.supxlabel(f"middle axial slices, {low} .. {high} HU", x=0.01, ha="left", fontsize=8, color=GREY)
