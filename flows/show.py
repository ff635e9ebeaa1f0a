"""What does a finished run look like on a terminal?"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from flows.end_to_end import Summary
from flows.folds import CrossValidation
from lungml.gate import Decision
from lungml.home import Home
from lungml.score import COLUMNS
from tasks.evaluation import SplitScore
from tasks.folds import in_words
from tasks.links import Links
from tasks.pipeline import TrainedModel
from tasks.tracking import experiment_page, shown_uri

METRICS = ("precision", "recall", "f1", "auc", "diameter_auc")
MLFLOW_UI = "http://127.0.0.1:5000/"
SPLIT_NAMES = {"val": "validation", "test": "test"}


def show_summary(summary: Summary, home: Home, console: Console) -> None:
    """Print the models' metrics, the end-to-end tables, and where to look next."""
    data = "synthetic scans" if summary.origin == "phantom" else "real scans"
    console.print()
    trained = summary.trained
    models = (*trained.members, *trained.others)
    console.print(
        _models(models, data, "" if not trained.others else "; of the two malignancy models the first is kept")
    )
    for score in summary.scores:
        console.print(_end_to_end(score, data))
        console.print(_sentence(score))
        console.print()
    console.print(f"bundle     {summary.trained.bundle_uri}")
    decision = summary.evaluated.decision
    console.print(f"gate       {_verdict(decision) if decision else 'it stands already'}", soft_wrap=True)
    console.print(f"drift      {summary.evaluated.drift.verdict}", soft_wrap=True)
    for report in summary.evaluated.reports:
        console.print(f"report     {report.page}", soft_wrap=True)
    _where_next(home, "end-to-end", console)


def show_folds(result: CrossValidation, home: Home, console: Console) -> None:
    """Print the pooled table and score of a cross-validation, and where to look next."""
    data = "synthetic scans" if result.origin == "phantom" else "real scans"
    chosen = in_words(result.chosen, result.folds.count)
    console.print()
    console.print(_table(result.score, f"Cross-validation, {chosen} ({result.score.table.scans} {data})"))
    console.print(_sentence(result.score))
    console.print(f"the folds are {result.folds.words}; each is judged at its own thresholds", soft_wrap=True)
    for fold in result.evidence:
        nodule, malignant = fold.thresholds
        console.print(f"fold {fold.fold}     {fold.bundle.name}, nodule {nodule:.3g}, malignant {malignant:.3g}")
    console.print(f"report     {result.report.page}", soft_wrap=True)
    _where_next(home, "end-to-end", console)


def _verdict(decision: Decision) -> str:
    """The gate's decision and its reasons, one a line."""
    return "\n           ".join([decision.verdict, *decision.reasons])


def show_models(models: Sequence[TrainedModel], origin: str, home: Home, console: Console) -> None:
    """Print trained models' metrics and URIs, and where to look next."""
    console.print()
    console.print(_models(models, "synthetic scans" if origin == "phantom" else "real scans"))
    for model in models:
        console.print(f"{model.name}  {model.uri}", soft_wrap=True)
    _where_next(home, models[0].stage, console)


def _where_next(home: Home, stage: str, console: Console) -> None:
    console.print(f"artifacts  {home.root}", soft_wrap=True)
    base = Links.of(home).base
    if base:
        console.print(f"compare    {base}/{experiment_page(home, stage)}", soft_wrap=True)
    else:
        console.print(f"compare    {_beside_python('mlflow')} ui --backend-store-uri {shown_uri(home)}", soft_wrap=True)
        console.print(f"           and open {MLFLOW_UI}{experiment_page(home, stage)}", soft_wrap=True)
    console.print("Not for clinical use.")


def _beside_python(command: str) -> Path:
    """A command of this environment as it can be typed from here, whether or not the environment is activated."""
    path = Path(sys.executable).with_name(command)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _models(models: Sequence[TrainedModel], data: str, more: str = "") -> Table:
    table = Table(
        title=f"The models ({data})",
        caption=f"diam. auc: by the diameter alone{more}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        collapse_padding=True,
    )
    for column in ("model", "split"):
        table.add_column(column, no_wrap=True)
    for column in ("epoch", *METRICS):
        header = column.replace("diameter_", "diam.\n")  # in two lines: 80 columns are enough
        table.add_column(header, justify="right", no_wrap=True)
    for model in models:
        table.add_row(model.name.partition("-")[2], "val", str(model.best_epoch), *_cells(model.val))
        table.add_row("", "test", "", *_cells(model.test))
    return table


def _cells(metrics: Mapping[str, float]) -> list[str]:
    return ["" if m not in metrics else "-" if math.isnan(metrics[m]) else f"{metrics[m]:.3f}" for m in METRICS]


def _end_to_end(score: SplitScore, data: str) -> Table:
    return _table(score, f"End to end, {SPLIT_NAMES[score.split]} ({score.table.scans} {data})")


def _table(score: SplitScore, title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in score.table.rows():
        table.add_row(*row)
    return table


def _sentence(score: SplitScore) -> str:
    table, result = score.table, score.froc
    low, high = score.cpm_band
    band = "" if math.isnan(low) else f" (95 % band {low:.3f} to {high:.3f})"  # too few scans tell of none
    return (
        f"{table.found} of {table.nodules} nodules found, {table.malignant_flagged} of {table.malignant} malignant "
        f"flagged, {table.false_positives / table.scans:.1f} false positives a scan; "
        f"CPM {result.cpm:.3f}{band}"
    )
