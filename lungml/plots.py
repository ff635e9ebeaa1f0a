"""Which figures does a run leave? Curves, tables and bars, and how all figures look.

Scans themselves are drawn by `pictures`, what a whole evaluation says by `evaluation_plots`.

Figures are made without pyplot, whose list of open figures is global: any thread or process may draw. Colours are
Okabe and Ito's (2008, Color Universal Design), which colour-blind readers can tell apart; line styles and labels say
the same again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from lungml.files import whole_file
from lungml.scored import CALIBRATION_BINS, Scored
from lungml.wording import part_of

Origin = Literal["real", "phantom"]
BLUE, VERMILLION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
INK, GREY, PALE = "#222222", "#6E6E6E", "#E4E4E4"
STYLES = {"train": (GREEN, ":"), "val": (BLUE, "-"), "test": (VERMILLION, "--")}
OTHER_STYLES = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, ":"), (ORANGE, "-."), (SKY, "-"))
DPI = 110  # 990 pixels for 9 inches: MLflow shows a figure at its own size, beside the list of files
_BLUES = LinearSegmentedColormap.from_list("to blue", ["#FFFFFF", BLUE])


def draw_curves(splits: Mapping[str, Scored], *, threshold: float, title: str, origin: Origin) -> Figure:
    """ROC and precision-recall curves of some splits, the operating threshold marked on each.

    Args:
        splits: name of the split -> what the model said of it; a split of one class is named, not drawn.
        threshold: where the model says yes.
        title: what it is about.
        origin: "phantom" labels the figure as made from synthetic scans.
    """
    figure = new_figure(9.0, 4.6, title, origin)
    roc, pr = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=PALE, linewidth=1.2, zorder=1)
    lacking = []
    for number, (split, scored) in enumerate(splits.items()):
        color, line = style_of(split, number)
        counted = f"{split}: {part_of(scored.positives, scored.positives + scored.negatives)} positive"
        false, true = scored.roc()
        recall, precision = scored.precision_recall()
        tp, fp, fn, _ = scored.counts(threshold)
        if len(true):
            roc.plot(false, true, color=color, linestyle=line, label=f"{counted}, AUC {_number(scored.auc)}")
            mark_point(roc, fp / scored.negatives, tp / scored.positives, color)
        else:
            lacking.append(_lacking(split, scored))
        if len(recall):
            label = f"{split}: average precision {_number(scored.average_precision)}"
            pr.plot(recall, precision, color=color, linestyle=line, label=label)
            if tp + fp:
                mark_point(pr, tp / (tp + fn), tp / (tp + fp), color)
            share = scored.positives / (scored.positives + scored.negatives)
            pr.axhline(share, color=color, linewidth=0.8, linestyle=(0, (1, 4)), zorder=1)
    label_axes(roc, "false positive rate", "true positive rate (recall)", "ROC")
    label_axes(pr, "recall", "precision", "precision and recall")
    for axes in (roc, pr):
        unit_square(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.plot([], [], "o", color=GREY, markersize=6, label=f"at threshold {threshold:.3g}")
            axes.legend(loc="lower right" if axes is roc else "best", frameon=False, fontsize=8)
        else:
            tell(axes, "\n".join(lacking) or "no samples")
    caption(figure, ["dotted: precision of saying yes to everything", *lacking])
    return figure


def draw_confusion(
    splits: Mapping[str, Scored],
    *,
    threshold: float,
    title: str,
    origin: Origin,
    names: tuple[str, str] = ("negative", "positive"),
) -> Figure:
    """Truth against decision, one table per split: counts, and shares of their row; `names` are the classes'."""
    figure = new_figure(max(4.5, 4.2 * len(splits)), 4.4, title, origin)
    empty = []
    for axes, (split, scored) in zip(_row_of_axes(figure, len(splits)), splits.items()):
        tp, fp, fn, tn = scored.counts(threshold)
        table = np.array([[tn, fp], [fn, tp]])
        rows = table.sum(axis=1, keepdims=True)
        shares = np.divide(table, rows, out=np.zeros((2, 2)), where=rows > 0)
        axes.imshow(shares, cmap=_BLUES, vmin=0, vmax=1)
        for row in range(2):
            for column in range(2):
                share = f"{shares[row, column]:.1%}" if rows[row, 0] else "none there"
                text = f"{table[row, column]:,}\n{share}"
                color = "white" if shares[row, column] > 0.8 else INK  # the better contrast on that blue
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=11)
        axes.set_xticks([0, 1], [f"said {name}" for name in names])
        axes.set_yticks([0, 1], [f"{name}\n({total:,})" for name, total in zip(names, rows[:, 0])])
        axes.tick_params(length=0)
        axes.axhline(0.5, color=PALE, linewidth=1)
        axes.axvline(0.5, color=PALE, linewidth=1)
        label_axes(axes, "", "truth", f"{split}, {names[1]}: {part_of(tp + fn, int(table.sum()))}")
        if not table.any():
            empty.append(f"{split}: no samples")
    caption(figure, [f"said {names[1]}: probability of at least {threshold:.3g}", *empty])
    return figure


def draw_calibration(splits: Mapping[str, Scored], *, title: str, origin: Origin, width: float = 7.0) -> Figure:
    """Probability said against share that came true, and below how often each probability was said; width in inches."""
    figure = new_figure(width, 6.2, title, origin)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=PALE, linewidth=1.2, zorder=1, label="perfect")
    edges, lacking = np.linspace(0, 1, CALIBRATION_BINS + 1), []
    width = 0.8 / CALIBRATION_BINS / max(1, len(splits))
    for number, (split, scored) in enumerate(splits.items()):
        color, line = style_of(split, number)
        found = scored.reliability
        there = found.samples > 0
        if not there.any():
            lacking.append(f"{split}: no samples")
            continue
        label = f"{split}, {found.samples.sum():,} samples: ECE {found.ece:.3f}, Brier {found.brier:.3f}"
        upper.plot(found.said[there], found.true[there], color=color, linestyle=line, marker="o", label=label)
        middles = (edges[:-1] + edges[1:]) / 2 + (number - (len(splits) - 1) / 2) * width
        lower.bar(middles, found.samples, width=width, color=color, label=split)
        if scored.one_class:
            lacking.append(_lacking(split, scored))
    unit_square(upper)
    label_axes(upper, "", "share that is positive", "")
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)  # above: curves may go anywhere
    if not lower.patches:
        tell(upper, "\n".join(lacking) or "no samples")
    lower.set_yscale("symlog", linthresh=1)  # a few probable ones among thousands of others stay visible
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.set_ylim(bottom=0)
    lower.grid(color=PALE, linewidth=0.6)
    label_axes(lower, "probability said", "samples", "")
    caption(figure, [f"means of {CALIBRATION_BINS} bins of equal width", *lacking])
    return figure


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write figures as `<name>.png`, each whole or not at all; returns the paths in the given order.

    Raises:
        OSError: as `whole_file`.
    """
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        with whole_file(path) as handle:
            handle.write(png(figure))
        paths.append(path)
    return paths


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as a PNG file; without the version of matplotlib in it, so that equal figures are equal files."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def new_figure(width: float, height: float, title: str, origin: Origin) -> Figure:
    """An empty figure of that many inches with a title, labelled when its scans are synthetic."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    if origin == "phantom":
        box = {"boxstyle": "round", "facecolor": PALE, "edgecolor": "none"}
        # Placed from the corner in points, so that it keeps clear of the edge whatever the figure's size.
        figure.text(
            1,
            1,
            "synthetic scans",
            ha="right",
            va="top",
            fontsize=9,
            style="italic",
            color=INK,
            bbox=box,
            transform=figure.transFigure + ScaledTranslation(-8 / 72, -6 / 72, figure.dpi_scale_trans),
        )
    return figure


def say(figure: Figure, text: str) -> Figure:
    """Let a figure say that there is nothing to draw."""
    axes = figure.subplots()
    axes.set_axis_off()
    tell(axes, text)
    return figure


def tell(axes: Axes, text: str) -> None:
    """Words in the middle of axes that have nothing else to show."""
    box = {"facecolor": "white", "edgecolor": "none"}
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, color=GREY, transform=axes.transAxes, bbox=box)


def style_of(split: str, number: int) -> tuple[str, Any]:
    """Colour and line of a split, or of the n-th curve of anything else."""
    return STYLES.get(split, OTHER_STYLES[number % len(OTHER_STYLES)])


def mark_point(axes: Axes, x: float, y: float, color: str) -> None:
    """An operating point on a curve."""
    axes.plot([x], [y], "o", color=color, markersize=7, markeredgecolor="white", zorder=5)


def unit_square(axes: Axes) -> None:
    """Both axes from 0 to 1, with a grid."""
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(color=PALE, linewidth=0.6)


def label_axes(axes: Axes, x: str, y: str, title: str) -> None:
    """Titles and the common look."""
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def caption(figure: Figure, lines: Sequence[str]) -> None:
    """What must be known to read a figure, below it."""
    figure.supxlabel("; ".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)


def _row_of_axes(figure: Figure, count: int) -> Sequence[Axes]:
    if not count:
        say(figure, "no samples")
        return []
    return list(np.atleast_1d(figure.subplots(1, count)))


def _lacking(split: str, scored: Scored) -> str:
    if not scored.positives and not scored.negatives:
        return f"{split}: no samples"
    return f"{split}: no positives" if not scored.positives else f"{split}: no negatives"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3f}"
