"""What is a pipeline doing at this moment? Told by what lies in its home, not by a clock."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from lungml.home import Home

HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{6}-\d+-[0-9a-f]{8}")  # as `lungml.files.beside_path` names them
PENDING, READY = 1, 2  # MLflow's states of a logged model
Moment = Callable[[Home], object]


def ask(database: Path, question: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of an SQLite database that others write to; none while it or the table is not there yet, or is locked."""
    if not database.exists():
        return []
    elsewhere = database.parts[1] == "proc"  # another mount namespace, which SQLite would leave: it follows links
    try:
        with closing(sqlite3.connect(":memory:" if elsewhere else f"file:{database}?mode=ro", 0.5, uri=True)) as db:
            if elsewhere:
                db.deserialize(database.read_bytes())
            return db.execute(question, values).fetchall()
    except sqlite3.DatabaseError:  # also of one that was read while it was written, and is not whole
        return []


def half_written(folder: Path) -> list[Path]:
    """What lies in a folder, at any depth, that a process has begun to write and not put in its place."""
    return sorted(path for path in _hidden(folder) if HALF_WRITTEN.fullmatch(path.name))


def converting(home: Home) -> bool:
    """A scan is written, and another one is there."""
    scans = home.root / "scans"
    return any(scans.glob("*.zarr/zarr.json")) and any(".zarr." in path.name for path in _beside(scans))


def drawing_masks(home: Home) -> bool:
    """A mask is written."""
    return any(".zarr-mask" in path.name for path in _beside(home.root / "scans"))


def cutting_crops(home: Home) -> bool:
    """A scan's crops are written."""
    return any(_beside(folder) for folder in home.crops.glob("*.zarr"))


def mining(home: Home) -> bool:
    """Crops at the segmenter's candidates are there of one scan, not of all four."""
    return 1 <= mined(home) < 4


def mined(home: Home) -> int:
    """How many scans have crops at the segmenter's candidates; those half-written are hidden."""
    return len([*home.crops.glob("*-mined-*.zarr/[!.]*/zarr.json")])


def learned(model: str, epochs: int) -> Moment:
    """A training has logged so many epochs and goes on."""
    question = """select 1 from metrics join runs using (run_uuid) where runs.name like ? and status = 'RUNNING'
        and metrics.key = 'train/loss' and step >= ?"""
    return lambda home: ask(home.mlflow_db, question, f"{model} %", epochs)


def keeping_model(model: str) -> Moment:
    """A model is on its way into MLflow."""
    return lambda home: ask(home.mlflow_db, "select 1 from logged_models where name = ? and status = ?", model, PENDING)


def asking(home: Home) -> bool:
    """The bundle has been asked about one validation scan at least, and is not registered yet."""
    return any(home.reports.glob("answers/*/*/answers.npz")) and not registered(home)


def registering(home: Home) -> bool:
    """The bundle's models are registered, the bundle is not."""
    models = ask(home.mlflow_db, "select count(distinct name) from model_versions where name like 'luna-%'")
    return models == [(3,)] and not registered(home)


def registered(home: Home) -> bool:
    """The bundle is a version of `luna`."""
    return bool(ask(home.mlflow_db, "select 1 from model_versions where name = 'luna'"))


def reporting(home: Home) -> bool:
    """The report of the validation scans is there, the one of the test scans is not."""
    return any(home.reports.glob("evaluations/*/val/report.html")) and not any(
        home.reports.glob("evaluations/*/test/report.html")
    )


def logging_row(home: Home) -> bool:
    """The evaluation's row is being written."""
    return bool(ask(home.mlflow_db, f"{END_TO_END} and runs.name not like 'gate%' and status = 'RUNNING'"))


def moving_aliases(home: Home) -> bool:
    """A promotion is written down, and the bundle does not bear its alias yet."""
    written = ask(home.mlflow_db, "select 1 from model_version_tags where name = 'luna' and key like 'luna.history.%'")
    return bool(written) and not promoted(home)


def recording_gate(home: Home) -> bool:
    """The gate's decision is being written."""
    return bool(ask(home.mlflow_db, f"{END_TO_END} and runs.name like 'gate%' and status = 'RUNNING'"))


def promoted(home: Home) -> bool:
    """The bundle is the demo."""
    return bool(ask(home.mlflow_db, "select 1 from registered_model_aliases where name = 'luna' and alias = 'demo'"))


END_TO_END = """select 1 from runs join experiments using (experiment_id) where experiments.name = 'luna-end-to-end'"""


def _beside(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*") if HALF_WRITTEN.fullmatch(path.name)]


def _hidden(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob(".*") if path.exists())
