"""Which figures does an evaluation of a bundle leave? One idea each, narrow enough to be read on a telephone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lungml.accounting import Funnel, Group, Losses, Lost
from lungml.froc import FPS_PER_SCAN, FrocResult
from lungml.plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    Origin,
    caption,
    label_axes,
    mark_point,
    new_figure,
    say,
    style_of,
    unit_square,
)
from lungml.scored import Scored
from lungml.wording import amount

WIDTH = 5.0  # inches: at 360 pixels the smallest letters are still 8 pixels high
NOTHING = 1.4  # inches high where there is nothing to draw
FPS_SHOWN = 1 / 10, 10.0
FPS_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")
LOST: dict[Lost, tuple[str, str]] = {
    "quarantine": ("scan not read", GREY),
    "segmentation": ("not marked", VERMILLION),
    "grouping": ("lost in grouping", ORANGE),
    "classifier": ("filtered out", SKY),
    "malignancy": ("called benign", PALE),
}
FUNNEL = {
    "voxels": "voxels",
    "flagged": "flagged voxels",
    "candidates": "candidates",
    "nodules": "taken for nodules",
    "malignant": "called malignant",
}
FUNNEL_TICKS = {1.0: "1", 1e3: "1 thousand", 1e6: "1 million"}


def draw_froc(
    curves: Mapping[str, FrocResult],
    *,
    origin: Origin,
    band: npt.NDArray[np.float64] | None = None,
    threshold_fps: float = math.nan,
) -> Figure:
    """Sensitivity against false positives a scan, by LUNA16's rules, on its axis from 1/8 to 8.

    Args:
        curves: name -> what was scored; the first is the one that the figure is about.
        origin: "phantom" labels the figure as made from synthetic scans.
        band: (3, points) of the first one: false positives a scan, and the edges of its 95 % band there.
        threshold_fps: false positives a scan at the threshold that is used; NaN draws none.
    """
    drawn = any(result.nodules for result in curves.values())
    figure = new_figure(WIDTH, 4.4 if drawn else NOTHING, "FROC", origin)
    if not drawn:
        return say(figure, "no nodules: there is no sensitivity")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    shaded = band is not None and bool(np.isfinite(band[1:]).any())
    if band is not None and shaded:
        shown = band[0] > 0
        axes.fill_between(band[0][shown], band[1][shown], band[2][shown], color=BLUE, alpha=0.18, linewidth=0)
    for number, (name, result) in enumerate(curves.items()):
        if not result.nodules:
            continue
        color, line = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, ":"))[number % 3]
        fps, sensitivity = np.array(result.fps_per_scan), np.array(result.sensitivity)
        grid = np.geomspace(*FPS_SHOWN, 400)
        inside = grid <= fps[-1]
        label = f"{name}: CPM {result.cpm:.3f}"
        axes.plot(grid[inside], np.interp(grid[inside], fps, sensitivity), color=color, linestyle=line, label=label)
        # Beyond its last mark a curve is read as flat.
        axes.plot(grid[~inside], np.full((~inside).sum(), sensitivity[-1]), color=color, linestyle=(0, (1, 3)))
        axes.plot(FPS_PER_SCAN, result.sensitivity_at, ".", color=color, markersize=7)
    if FPS_SHOWN[0] <= threshold_fps <= FPS_SHOWN[1]:
        axes.axvline(threshold_fps, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="at the threshold used")
    axes.set_xticks(FPS_PER_SCAN, FPS_NAMES)
    axes.set_xticks([], minor=True)
    axes.set_xlim(*FPS_SHOWN)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(color=PALE, linewidth=0.6)
    label_axes(axes, "false positives a scan", "sensitivity", "")
    low = any(result.sensitivity_at[-2] < 0.55 for result in curves.values())
    axes.legend(loc="upper left" if low else "lower right", frameon=False, fontsize=8)
    caption(figure, ["dots: where the CPM reads it", *(["shaded: 95 % band over scans"] if shaded else [])])
    return figure


def draw_roc_and_diameter(
    malignancy: Scored, diameters_mm: npt.ArrayLike, *, threshold: float, origin: Origin
) -> Figure:
    """How well a malignancy model ranks some nodules, and how well their diameter alone does.

    Args:
        malignancy: of annotated nodules.
        diameters_mm: (n,) annotated, of the same nodules.
        threshold: from which probability on malignant is said.
        origin: see `draw_froc`.

    Raises:
        ValueError: when the numbers of nodules differ.
    """
    diameters = np.asarray(diameters_mm, dtype=np.float64)
    if diameters.shape != np.shape(malignancy.probs):
        raise ValueError(f"{len(malignancy.probs)} nodules, but {diameters.size} diameters")
    figure = new_figure(WIDTH, NOTHING if malignancy.one_class else 4.6, "ROC: malignant or benign", origin)
    if malignancy.one_class:
        return say(figure, _one_class(malignancy))
    # Only the order counts: ranks are scores in [0, 1].
    _, ranks = np.unique(diameters, return_inverse=True)
    alone = Scored(targets=malignancy.targets, probs=ranks / max(1, ranks.max()))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1.2, zorder=1)
    for scored, name, color, line in (
        (malignancy, "model", BLUE, "-"),
        (alone, "diameter alone", VERMILLION, "--"),
    ):
        axes.plot(*scored.roc(), color=color, linestyle=line, label=f"{name}: AUC {scored.auc:.3f}")
    tp, fp, _, _ = malignancy.counts(threshold)
    mark_point(axes, fp / malignancy.negatives, tp / malignancy.positives, BLUE)
    axes.plot([], [], "o", color=BLUE, markersize=6, label=f"model at threshold {threshold:.3g}")
    unit_square(axes)
    label_axes(axes, "benign called malignant", "malignant called malignant", "")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    caption(figure, [f"{malignancy.positives:,} malignant and {malignancy.negatives:,} benign nodules"])
    return figure


def draw_groups(groups: Mapping[str, Sequence[Group]], *, origin: Origin) -> Figure:
    """Sensitivity at one false positive a scan of nodules of some kinds, with bands.

    Args:
        groups: what they are told apart by -> the kinds; those without a nodule are left out.
        origin: see `draw_froc`.
    """
    shown = {name: [g for g in kinds if g.nodules and not math.isnan(g.sensitivity)] for name, kinds in groups.items()}
    shown = {name: kinds for name, kinds in shown.items() if kinds}
    rows = sum(len(kinds) + 1 for kinds in shown.values())
    figure = new_figure(
        WIDTH, 1.2 + 0.27 * rows if shown else NOTHING, "Sensitivity at one false positive a scan", origin
    )
    if not shown:
        return say(figure, "no nodules")
    axes = figure.subplots()
    ticks: list[tuple[int, str]] = []
    row = 0
    for number, (name, kinds) in enumerate(shown.items()):
        color, _ = style_of("", number)
        ticks.append((row, name))
        for group in kinds:
            row += 1
            low, high = group.band
            if not math.isnan(low):
                axes.plot([low, high], [row, row], color=color, linewidth=2, alpha=0.45, solid_capstyle="butt")
            axes.plot([group.sensitivity], [row], "o", color=color, markersize=6)
            ticks.append((row, f"{group.name} ({group.nodules:,})"))
        row += 1
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_ylim(row - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    label_axes(axes, "sensitivity", "", "")
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels():
        if label.get_text() in shown:
            label.set_fontweight("bold")
    caption(figure, ["in brackets: nodules", "bars: 95 % band over scans"])
    return figure


def draw_funnel(funnels: Mapping[str, Funnel], *, origin: Origin) -> Figure:
    """How much is left of a scan after each stage, on a logarithmic axis.

    Args:
        funnels: name -> means a scan; the first as bars, others as marks.
        origin: see `draw_froc`.
    """
    (_, main), *others = funnels.items()
    values = [getattr(main, stage) for stage in FUNNEL]
    nothing = math.isnan(values[0]) or not values[0]
    figure = new_figure(WIDTH, NOTHING if nothing else 3.4, "What is left of a scan", origin)
    if nothing:
        return say(figure, "no scan was read")
    axes = figure.subplots()
    floor = 10.0 ** math.floor(math.log10(min([1.0, *(v for v in values if v > 0)])))
    for row, value in enumerate(values):
        if value > 0:
            axes.barh(row, value - floor, left=floor, color=BLUE, height=0.62)
        text = amount(value)
        axes.text(1, row, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9, color=INK)
    for number, (other, funnel) in enumerate(others):
        color, _ = style_of("", number + 1)
        points = [(getattr(funnel, stage), row) for row, stage in enumerate(FUNNEL) if getattr(funnel, stage) > 0]
        axes.plot(*zip(*points), "|", color=color, markersize=15, markeredgewidth=2.5, linestyle="", label=other)
    axes.set_xscale("log")
    axes.set_xlim(floor, max(values) * 10**3.2)  # room for the numbers
    axes.set_xticks(list(FUNNEL_TICKS), FUNNEL_TICKS.values())
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(values)), FUNNEL.values())
    axes.invert_yaxis()
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    label_axes(axes, "a scan, on average", "", "")
    axes.tick_params(axis="y", length=0)
    if others:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", frameon=False, fontsize=8)
    return figure


def draw_losses(losses: Mapping[str, Losses], *, origin: Origin) -> Figure:
    """Where nodules were lost: a bar each, its parts in the order of the stages.

    Args:
        losses: whose -> their losses; those without a nodule are left out.
        origin: see `draw_froc`.
    """
    shown = {name: of for name, of in losses.items() if of.nodules}
    figure = new_figure(WIDTH, 1.7 + 0.65 * len(shown) if shown else NOTHING, "Where nodules were lost", origin)
    if not shown:
        return say(figure, "no nodules")
    axes = figure.subplots()
    for row, of in enumerate(shown.values()):
        start = 0.0
        parts = [("came through", GREEN, of.right), *((*LOST[stage], of.lost.get(stage, 0)) for stage in LOST)]
        for name, color, count in parts:
            share = count / of.nodules
            axes.barh(row, share, left=start, color=color, height=0.6, edgecolor="white", label="" if row else name)
            if share >= 0.06:
                _write_in(axes, start + share / 2, row, f"{count:,}", color)
            start += share
    axes.set_yticks(range(len(shown)), [f"{name} ({of.nodules:,})" for name, of in shown.items()])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    label_axes(axes, "share of the nodules", "", "")
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _write_in(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    ink = INK if color in (PALE, SKY, ORANGE) else "white"
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=9)


def _one_class(scored: Scored) -> str:
    if not scored.positives and not scored.negatives:
        return "no nodules"
    return "no malignant nodules" if not scored.positives else "no benign nodules"
