"""What do an evaluation and a scored submission look like on a terminal?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from lungml.wording import left_out

if TYPE_CHECKING:
    from lungml.compare import Difference, Sampled, Statistic
    from lungml.score import Table as ReportTable
    from lungml.scorecard import Losses, SegmentationScore
    from lungml.submission import SubmissionScore
    from tasks.comparison import BundleScore, Evaluation

NAMES: dict[Statistic, str] = {
    "cpm": "CPM",
    "sensitivity_at_1_fps": "sensitivity at 1 FP",
    "found": "nodules found",
    "false_positives": "false positives",
    "malignant_sensitivity": "malignant sensitivity",
    "malignant_false_positives": "false malignant findings",
    "malignancy_auc": "malignancy AUC",
    "end_to_end_malignancy_auc": "  end to end",
}
COUNTS = (NAMES["found"], NAMES["false_positives"], NAMES["malignant_false_positives"])
NOT_CLINICAL = "Not for clinical use."


def show_submission(score: SubmissionScore, console: Console) -> None:
    """Print the official score of a submission: CPM, the seven sensitivities with their band, and every count."""
    from lungml.froc import FPS_PER_SCAN

    result = score.result
    console.print()
    table = Table(title=f"{score.submission.name}: LUNA16's score", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("false positives a scan", "sensitivity", *(["95 % band"] if score.bootstraps else [])):
        table.add_column(column, justify="right")
    bands: list[list[str]] = [[] for _ in FPS_PER_SCAN]
    if score.bootstraps:
        bands = [[f"{low:.4f} to {high:.4f}"] for low, high in zip(result.band_low, result.band_high)]
    for fps, sensitivity, band in zip(FPS_PER_SCAN, result.sensitivity_at, bands):
        table.add_row(f"{fps:g}", f"{sensitivity:.4f}", *band)
    table.add_section()
    low, high = result.cpm_band
    table.add_row("CPM", f"{result.cpm:.4f}", *([f"{low:.4f} to {high:.4f}"] if score.bootstraps else []))
    console.print(table)
    console.print(
        f"{result.nodules} nodules in {result.scans} scans: {result.true_positives} with a mark, "
        f"{result.misses} without",
        soft_wrap=True,
    )
    console.print(
        f"{result.marks} marks: {result.false_positives} false positives, {result.ignored_double_hits} beside a more "
        f"probable one on a nodule, {result.ignored_on_excluded} on excluded findings; "
        f"{result.ignored_beyond_limit} more beyond a scan's limit",
        soft_wrap=True,
    )
    if score.bootstraps:
        console.print(f"Bands are over {score.bootstraps} resamples of whole scans, seed {score.seed}.")
    console.print(NOT_CLINICAL)


def show_evaluation(evaluation: Evaluation, file: Path, console: Console) -> None:
    """Print each bundle's table and scores, the differences, and where the figures lie."""
    tree = evaluation.tree
    data = f"{len(tree.truths)} {tree.name}, {tree.chosen}"
    for judged in evaluation.bundles:
        card = judged.score.card
        console.print()
        console.print(_table(judged, data))
        console.print(_sentence(card.table), soft_wrap=True)
        console.print(_losses(card.losses), soft_wrap=True)
        if card.segmentation:
            console.print(_segmentation(card.segmentation), soft_wrap=True)
        console.print(_scores(judged))
    for judged, differences in zip(evaluation.bundles[1:], evaluation.differences):
        console.print()
        title = f"{judged.bundle.name} less {evaluation.bundles[0].bundle.name} ({data})"
        console.print(_differences({words: differences[name] for name, words in NAMES.items()}, title))
        if told := left_out(differences.values(), len(judged.score.card.samples["cpm"].resampled)):
            console.print(told, soft_wrap=True)
    if evaluation.set_aside:
        console.print(f"{len(evaluation.set_aside)} scans could not be read: their nodules count as missed")
    console.print("Bands are 95 %, over resamples of whole scans; both sides of a difference on the same resamples.")
    console.print("No band: too few scans or resamples tell one. The p values are not corrected for their number.")
    console.print(f"figures    {file}", soft_wrap=True)
    for judged in evaluation.bundles:
        console.print(f"report     {file.parent / judged.bundle.slug / 'report.html'}", soft_wrap=True)
    console.print(NOT_CLINICAL)


def _table(judged: BundleScore, data: str) -> Table:
    from lungml.score import COLUMNS

    table = Table(title=f"{judged.bundle.name} ({data})", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in judged.score.table.rows():
        table.add_row(*row)
    return table


def _sentence(table: ReportTable) -> str:
    return (
        f"{table.found} of {table.nodules} nodules found, "
        f"{table.malignant_flagged} of {table.malignant} malignant flagged"
    )


def _losses(losses: Losses) -> str:
    lost = ", ".join(f"{stage} {count}" for stage, count in losses.lost.items() if count)
    return f"of {losses.nodules} nodules {losses.right} came through; lost to: {lost or 'nothing'}"


def _segmentation(score: SegmentationScore) -> str:
    return (
        f"segmentation on {score.slices} slices: F1 {_plain(score.f1, 4)}, precision {_plain(score.precision, 4)}, "
        f"recall {_plain(score.recall, 4)}; {score.touched} of {score.nodules} nodules touched, "
        f"mean Dice {_plain(score.mean_dice)}"
    )


def _scores(judged: BundleScore) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column()
    card = judged.score.card
    samples, over = card.samples, card.over_diameter
    table.add_row(NAMES["cpm"], *_with_band(samples["cpm"]))
    table.add_row(NAMES["sensitivity_at_1_fps"], *_with_band(samples["sensitivity_at_1_fps"]))
    table.add_row(NAMES["malignancy_auc"], *_with_band(samples["malignancy_auc"]))
    table.add_row("  annotated diameter alone", *_with_band(samples["diameter_auc"]))
    table.add_row("  model less diameter", _signed(over.difference), f"{_band(over)}, p {_plain(over.p_value)}")
    table.add_row("  end to end (0 if not found)", *_with_band(samples["end_to_end_malignancy_auc"]))
    table.add_row("candidates a scan", f"{card.funnel.candidates:.1f}", "")
    table.add_row("false positives a scan", f"{card.table.false_positives / card.table.scans:.1f}", "")
    return table


def _differences(rows: dict[str, Difference], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("", "first", "this", "difference", "95 % band", "p"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        digits = 0 if name in COUNTS else 3
        values = (_plain(row.first, digits), _plain(row.second, digits), _signed(row.difference, digits))
        table.add_row(name, *values, _band(row, digits), _plain(row.p_value))
    return table


def _with_band(sampled: Sampled) -> tuple[str, str]:
    low, high = sampled.band
    if math.isnan(low):
        return _plain(sampled.observed), "-"
    without = f", {sampled.left_out} of {len(sampled.resampled)} resamples left out" if sampled.left_out else ""
    return _plain(sampled.observed), f"{_plain(low)} to {_plain(high)}{without}"


def _band(difference: Difference, digits: int = 3) -> str:
    low, high = difference.band
    return "-" if math.isnan(low) else f"{_signed(low, digits)} to {_signed(high, digits)}"


def _plain(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"
