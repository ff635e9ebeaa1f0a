"""What does a bundle answer when MLflow loads or serves it? See docs/serving.md."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from lungml.candidates import GroupingError
from lungml.ct import DuplicateScanError, Scan, read_scan, scan_name
from lungml.errors import FileError, LunaError, one_line
from lungml.files import csv_text
from lungml.findings import FINDINGS_COLUMNS, Bundle, ask, findings_text, judge
from tasks.bundles import load_copy, with_grouping
from tasks.packing import TEXT_COLUMNS

log = logging.getLogger(__name__)

NOT_READ = "not read"  # stage of the one row of a scan that cannot be read, or judged


class FindingsModel(PythonModel):
    """Paths of scans in, the rows of their `findings.csv` out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Rebuild the bundle from the model's own folder.

        Raises:
            TrackingError: a file is not the one that was registered.
        """
        device = (context.model_config or {}).get("device", "auto")
        self._bundle = load_copy(Path(context.artifacts["bundle"]), device)
        self._one_at_a_time = threading.Lock()  # a server asks from several threads

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Find the nodules of some scans.

        A scan without candidates has no rows. One that cannot be read, or of which a network says no number, has one:
        its name, the stage `not read` and the reason; it costs the others nothing.

        Args:
            context: not used.
            model_input: one column, `path` or without a name: paths on this machine of scans that `read_scan` takes.
            params: `grouping` may name a rule that replaces the bundle's own.

        Returns:
            the columns of `findings.csv`, a row for every candidate, scans in the order given, the most probable
            nodule of a scan first. What is not known is NaN; for a server's answer, as JSON has no NaN, it is None.

        Raises:
            MlflowException: a path is no text, the column has another name, or no grouping is called so.
        """
        bundle = self._with_grouping((params or {}).get("grouping"))
        parts, read = [], set[str]()
        for path in _paths(model_input):
            name = path.name
            try:
                name = scan_name(path)
                scan = read_scan(path)
                if scan.series_uid in read:
                    raise DuplicateScanError(path, "the same series_uid as a scan before it", "ask for it alone")
                name = scan.series_uid
                parts.append(self._found(scan, bundle))
                read.add(name)
            except FileError as error:
                _, problem, advice = error.args  # whoever asked knows the path
                parts.append(_not_read(name, f"{problem}; {advice}"))
            except OSError as error:  # a name too long, a folder that is not ours to look into, a disk that fails
                parts.append(_not_read(name, f"{error.strerror or type(error).__name__}; check the path"))
            except ValueError as error:  # a LunaError is one, and so is what `ask` and `judge` say of no number
                log.warning("%s: not read: %s", one_line(name), error, exc_info=not isinstance(error, LunaError))
                parts.append(_not_read(name, str(error)))
        table = _table(parts)
        return table.astype(object).where(table.notna(), None) if _MLFLOW_IS_IN_SERVING_ENVIRONMENT.get() else table

    def _found(self, scan: Scan, bundle: Bundle) -> str:
        """The text of a scan's `findings.csv`; what a person should know of the scan is logged."""
        for warning in scan.warnings:
            log.warning("%s: %s", scan.series_uid, warning)
        with self._one_at_a_time:
            answers = ask(scan.hu, scan.grid, bundle)
        if left_out := answers.candidates.left_out:
            log.warning("%s: %d further places are beyond the limit of candidates a scan", scan.series_uid, left_out)
        return findings_text(scan.series_uid, judge(answers, scan.grid, bundle))

    def _with_grouping(self, rule: str | None) -> Bundle:
        try:
            return self._bundle if rule is None else with_grouping(self._bundle, rule)
        except GroupingError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _paths(model_input: pd.DataFrame) -> list[Path]:
    (name,) = model_input.columns
    if isinstance(name, str) and name != "path":
        raise MlflowException.invalid_parameter_value(
            f"the first column is called {name!r}; give a list of paths, or a table whose first column is `path`"
        )
    for path in model_input[name]:
        if not isinstance(path, str | Path) or not str(path):
            raise MlflowException.invalid_parameter_value(f"{path!r} is no path of a scan")
    return [Path(path) for path in model_input[name]]


def _not_read(name: str, reason: str) -> str:
    told = {"series_uid": one_line(name), "stage": NOT_READ, "reason": one_line(reason)}
    return csv_text(FINDINGS_COLUMNS, [[told.get(column, "") for column in FINDINGS_COLUMNS]])


def _table(parts: Sequence[str]) -> pd.DataFrame:
    """The texts of several `findings.csv` as one table."""
    header = ",".join(FINDINGS_COLUMNS) + "\n"
    text = header + "".join(part.removeprefix(header) for part in parts)
    numbers = [column for column in FINDINGS_COLUMNS if column not in TEXT_COLUMNS]
    return pd.read_csv(
        io.StringIO(text),
        dtype=dict.fromkeys(numbers, float) | dict.fromkeys(TEXT_COLUMNS, str),
        keep_default_na=False,  # a series called NA is one
        na_values={number: [""] for number in numbers},
        float_precision="round_trip",
    )
