"""The `luna evaluate` command: how good are some bundles on these scans, and is one better than another?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flows.cli_data import TABLES_HELP
from flows.terminal import MAX_SEED, out, start

if TYPE_CHECKING:
    from lungml.compare import Difference, Sampled, Statistic
    from lungml.score import Table as ReportTable
    from tasks.comparison import BundleScore, Evaluation

NAMES: dict[Statistic, str] = {
    "cpm": "CPM",
    "sensitivity_at_1_fps": "sensitivity at 1 FP",
    "found": "nodules found",
    "false_positives": "false positives",
    "malignancy_auc": "malignancy AUC",
    "end_to_end_malignancy_auc": "  end to end",
}
COUNTS = (NAMES["found"], NAMES["false_positives"])


def evaluate(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="models:/luna/N or models:/luna@alias")],
    luna_dir: Annotated[Path, typer.Option(help="folder that holds **/<series_uid>.mhd")],
    tables: Annotated[Path | None, typer.Option(help=TABLES_HELP)] = None,
    split: Annotated[
        str, typer.Option(help="all (scans that no bundle learned from), val, test or train: as split.csv has them")
    ] = "all",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of the resamples")] = 0,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="folder of evaluation.json; else under reports/")
    ] = None,
) -> None:
    """Find and judge the nodules of a tree of scans with each bundle; further bundles are compared with the first."""
    home = start()
    from flows.evaluate import evaluate_bundles
    from flows.settings import tell_the_story
    from lungml.devices import resolve_device
    from tasks.comparison import check_unseen, read_tree
    from tasks.evaluation import Chosen

    tell_the_story()
    # What a person can get wrong is said before anything starts.
    if split not in get_args(Chosen):
        raise typer.BadParameter(f"--split {split!r} is none of {', '.join(get_args(Chosen))}")
    resolve_device(device)
    _, tree = read_tree(luna_dir, tables, split, home)  # type: ignore[arg-type]
    for bundle in bundles:
        check_unseen(tree, bundle, home)
    evaluation, file = evaluate_bundles(
        bundles,
        str(luna_dir.absolute()),
        str(tables.absolute()) if tables else None,
        split,
        device,
        seed,
        str(out_dir.absolute()) if out_dir else None,
    )
    show_evaluation(evaluation, file, out)


def show_evaluation(evaluation: Evaluation, file: Path, console: Console) -> None:
    """Print each bundle's table and scores, the differences, and where the figures lie."""
    tree = evaluation.tree
    data = f"{len(tree.truths)} {tree.words}, {tree.name}, {tree.chosen}"
    for bundle in evaluation.bundles:
        console.print()
        console.print(_table(bundle, data))
        console.print(_sentence(bundle.score.table), soft_wrap=True)
        console.print(_scores(bundle))
    for bundle, differences in zip(evaluation.bundles[1:], evaluation.differences):
        console.print()
        title = f"{bundle.bundle_uri} less {evaluation.bundles[0].bundle_uri} ({data})"
        console.print(_differences({words: differences[name] for name, words in NAMES.items()}, title))
    if evaluation.set_aside:
        console.print(f"{len(evaluation.set_aside)} scans could not be read: their nodules count as missed")
    console.print("Bands are 95 %, over resamples of whole scans; both sides of a difference on the same resamples.")
    console.print(f"figures    {file}", soft_wrap=True)
    console.print("Not for clinical use.")


def _table(bundle: BundleScore, data: str) -> Table:
    from lungml.score import COLUMNS

    table = Table(title=f"{bundle.bundle_uri} ({data})", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in bundle.score.table.rows():
        table.add_row(*row)
    return table


def _sentence(table: ReportTable) -> str:
    return (
        f"{table.found} of {table.nodules} nodules found, "
        f"{table.malignant_flagged} of {table.malignant} malignant flagged"
    )


def _scores(bundle: BundleScore) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column()
    samples, scans = bundle.samples, bundle.score.table.scans
    over = bundle.over_diameter
    table.add_row(NAMES["cpm"], *_with_band(samples["cpm"]))
    table.add_row(NAMES["sensitivity_at_1_fps"], *_with_band(samples["sensitivity_at_1_fps"]))
    table.add_row(NAMES["malignancy_auc"], *_with_band(samples["malignancy_auc"]))
    table.add_row("  annotated diameter alone", *_with_band(samples["diameter_auc"]))
    table.add_row("  model less diameter", _signed(over.difference), f"{_band(over)}, p {_p(over.p_value)}")
    table.add_row("  end to end (0 if not found)", *_with_band(samples["end_to_end_malignancy_auc"]))
    table.add_row("candidates a scan", f"{bundle.score.candidates / scans:.1f}", "")
    table.add_row("false positives a scan", f"{bundle.score.table.false_positives / scans:.1f}", "")
    return table


def _differences(rows: dict[str, Difference], title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("", "first", "this", "difference", "95 % band", "p"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        digits = 0 if name in COUNTS else 3
        values = (f"{row.first:.{digits}f}", f"{row.second:.{digits}f}", _signed(row.difference, digits))
        table.add_row(name, *values, _band(row, digits), _p(row.p_value))
    return table


def _with_band(sampled: Sampled) -> tuple[str, str]:
    low, high = sampled.band
    return f"{sampled.observed:.3f}", f"{low:.3f} to {high:.3f}"


def _band(difference: Difference, digits: int = 3) -> str:
    low, high = difference.band
    return f"{_signed(low, digits)} to {_signed(high, digits)}"


def _signed(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
