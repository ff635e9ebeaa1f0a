"""How does a figure of a scan look in print? Its page, its pictures' places, its bars and its words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke

from lungml.files import whole_file
from lungml.phantom import is_phantom_uid
from lungml.pictures import LUNG_WINDOW_HU
from lungml.plots import INK, new_figure, png

Window = Literal["lung", "mediastinum", "bone"]
WINDOWS: dict[
    Window, tuple[int, int]
] = {  # HU; levels -600, 40, 300 and widths 1500, 400, 1500, as on the page of a scan
    "lung": LUNG_WINDOW_HU,
    "mediastinum": (-160, 240),
    "bone": (-450, 1050),
}
DISCLAIMER = "Not for clinical use."
# A figure is drawn 4.8 inches wide: reduced to a journal's column of 3.5 inches, 9 points become 6.5.
WIDTH_IN, EDGE_IN, GAP_IN, PRINT_DPI = 4.8, 0.08, 0.07, 400
TITLE_PT, WORDS_PT, SMALL_PT = 10.0, 9.0, 8.0
HEAD_IN, PANEL_HEAD_IN, LINE_IN = 0.3, 0.2, 0.155
TIMES = " \N{MULTIPLICATION SIGN} "
SIDES = {  # of a picture: x, y and alignment of its letter
    "left": (0.02, 0.5, "left", "center"),
    "right": (0.98, 0.5, "right", "center"),
    "top": (0.5, 0.98, "center", "top"),
    "bottom": (0.5, 0.02, "center", "bottom"),
}


def new_page(
    title: str, series_uid: str, foot: Sequence[str], body_in: float, handles: Sequence[Line2D]
) -> tuple[Figure, float]:
    """A figure with its title, its legend and its foot, and where its body begins, in inches from below."""
    columns = 3 if len(handles) <= 3 else 2
    legend = LINE_IN * 1.25 * -(-len(handles) // columns)
    bottom = EDGE_IN + LINE_IN * (len(foot) + 2) + 0.05 + legend
    height = bottom + body_in + HEAD_IN
    figure = new_figure(WIDTH_IN, height, "", "phantom" if is_phantom_uid(series_uid) else "real")
    figure.set_layout_engine("none")
    style: dict[str, Any] = {"fontsize": SMALL_PT, "color": INK, "va": "baseline"}
    figure.text(EDGE_IN / WIDTH_IN, 1 - 0.2 / height, title, fontsize=TITLE_PT, color=INK, va="baseline")
    for number, line in enumerate([*foot, short_uid(series_uid), DISCLAIMER][::-1]):
        figure.text(EDGE_IN / WIDTH_IN, (EDGE_IN + number * LINE_IN) / height, line, **style)
    if handles:
        figure.legend(
            handles=list(handles),
            loc="lower left",
            bbox_to_anchor=(EDGE_IN / WIDTH_IN, (bottom - 0.03 - legend) / height),
            borderaxespad=0,
            borderpad=0,
            ncols=columns,
            frameon=False,
            fontsize=SMALL_PT,
            labelcolor=INK,
            handlelength=1.6,
            columnspacing=1.2,
            handletextpad=0.5,
        )
    return figure, bottom


def short_uid(series_uid: str) -> str:
    """A series_uid that fits a line of the foot; letters that no font of ours has become question marks."""
    text = f"Series {series_uid}".encode("ascii", "replace").decode()
    return text if len(text) <= 74 else f"{text[:40]}…{text[-30:]}"


def new_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, for a picture."""
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def bar_length_mm(width_mm: float) -> int:
    """A round length of about a quarter of a picture's width, or less."""
    fitting = [mm for mm in (1, 2, 5, 10, 20, 50, 100, 200) if mm <= 0.28 * width_mm]
    return fitting[-1] if fitting else 1


def draw_bar(axes: Axes, length_mm: int, width_mm: float, height_mm: float, scale: float, *, color: str) -> None:
    """A bar in a picture's lower left corner, with its length above.

    Args:
        axes: the picture's.
        length_mm: of the bar.
        width_mm, height_mm: of the picture.
        scale: inches per mm.
        color: of the bar and its words.
    """
    x, y = 0.06 / (scale * width_mm), 0.07 / (scale * height_mm)
    effects = cased(1.6) if color == "white" else []
    ends = [x, x + length_mm / width_mm]
    axes.plot(ends, [y, y], color=color, linewidth=1.6, transform=axes.transAxes, path_effects=effects)
    style: dict[str, Any] = {
        "color": color,
        "fontsize": SMALL_PT - 1,
        "ha": "left",
        "va": "bottom",
        "transform": axes.transAxes,
    }
    effects = cased(0) if color == "white" else []
    axes.text(x, y + 0.03 / (scale * height_mm), f"{length_mm} mm", path_effects=effects, **style)


def cased(width: float) -> list[AbstractPathEffect]:
    """A dark casing, so that a light line or letter shows on air as on bone."""
    return [withStroke(linewidth=width + 1.8, foreground=(0, 0, 0, 0.75))]


def words_of(center_xyz: Sequence[float]) -> str:
    """A place in words."""
    return ", ".join(f"{name} {mm:.1f}" for name, mm in zip("xyz", center_xyz)) + " mm (LPS)"


def minus(text: str) -> str:
    """The text with minus signs for its hyphens."""
    return text.replace("-", "\N{MINUS SIGN}")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure for print, whole or not at all.

    Raises:
        OSError: as `whole_file`.
    """
    with whole_file(path) as handle:
        handle.write(png(figure, PRINT_DPI))
