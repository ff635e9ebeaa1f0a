"""What does a finished run look like on a terminal?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from flows.end_to_end import Summary
from lungml.home import Home
from lungml.score import COLUMNS
from tasks.evaluation import SplitScore
from tasks.tracking import tracking_uri
from tasks.training import TrainedModel

METRICS = ("precision", "recall", "f1", "auc", "diameter_auc")
SPLIT_NAMES = {"val": "validation", "test": "test"}


def show_summary(summary: Summary, home: Home, console: Console) -> None:
    """Print the models' metrics, the end-to-end tables, and where to look next."""
    data = "synthetic scans" if summary.origin == "phantom" else "real scans"
    trained = summary.trained
    console.print()
    console.print(_models((trained.segmentation, trained.nodule, trained.malignancy), trained.others, data))
    for score in summary.scores:
        console.print(_end_to_end(score, data))
        console.print(_sentence(score))
        console.print()
    console.print(f"bundle      {trained.bundle_uri}")
    console.print(f"artifacts   {home.root}", soft_wrap=True)
    console.print(f"compare     mlflow ui --backend-store-uri {tracking_uri(home)} --workers 1", soft_wrap=True)
    console.print("            then open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning")
    console.print("Not for clinical use.")


def _models(kept: Sequence[TrainedModel], others: Sequence[TrainedModel], data: str) -> Table:
    table = Table(
        title=f"The models ({data}); diameter AUC: the annotated diameter alone",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("model")
    table.add_column("split")
    for metric in METRICS:
        table.add_column(metric.replace("_", " "), justify="right")
    for model in (*kept, *others):
        name = f"{model.name} (epoch {model.best_epoch})"
        if model in others:
            name += ", not kept"
        table.add_row(name, "validation", *_cells(model.val))
        table.add_row("", "test", *_cells(model.test))
    return table


def _cells(metrics: Mapping[str, float]) -> list[str]:
    return ["" if m not in metrics else "-" if math.isnan(metrics[m]) else f"{metrics[m]:.3f}" for m in METRICS]


def _end_to_end(score: SplitScore, data: str) -> Table:
    table = Table(
        title=f"End to end, {SPLIT_NAMES[score.split]} ({score.table.scans} {data})",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in score.table.rows():
        table.add_row(*row)
    return table


def _sentence(score: SplitScore) -> str:
    table, result = score.table, score.froc
    low, high = result.cpm_band
    return (
        f"{table.found} of {table.nodules} nodules found, {table.malignant_flagged} of {table.malignant} malignant "
        f"flagged, {table.false_positives / table.scans:.1f} false positives a scan; "
        f"CPM {result.cpm:.3f} (95 % band {low:.3f} to {high:.3f})"
    )
