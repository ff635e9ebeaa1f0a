"""Is this csv the table that it claims to be? If not: which file, which line, and what to do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lungml.errors import FileError

SERIES_COLUMN = "seriesuid"  # LUNA16's word for series_uid


class TableError(FileError):
    """A table that cannot be used; its text is one line: file, what is wrong, what to do."""


def read_table(path: Path, numbers: Sequence[str], texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read one csv table: `seriesuid` and `texts` as text, `numbers` as finite float64, indexed by line.

    A byte-order mark, CRLF, blank lines and further columns are fine.

    Raises:
        TableError: names the file and, where there is one, the line.
    """
    columns = [SERIES_COLUMN, *texts, *numbers]
    advice = "copy the table again"
    if path.exists() and not path.is_file():  # a pipe would never end
        raise TableError(path, "not a plain file", advice)
    try:
        with warnings.catch_warnings():
            # Rows wider than the header would be cut with a mere warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                encoding="utf-8-sig",
                dtype=dict.fromkeys((SERIES_COLUMN, *texts), str),
                index_col=False,
                skip_blank_lines=False,  # so that a row's number tells its line
                skipinitialspace=True,
                low_memory=False,
            )
    except pd.errors.EmptyDataError as error:
        raise TableError(path, "it is empty", advice) from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise TableError(path, f"not a table ({' '.join(str(error).split())})", advice) from error
    # A line break within a quoted field moves every later row down by a line.
    texts_in = table.select_dtypes(["object", "string"])
    breaks = sum((texts_in[c].str.count("\n").fillna(0).astype(int) for c in texts_in), start=pd.Series(0, table.index))
    table.index = table.index + 2 + breaks.cumsum() - breaks
    missing = [column for column in columns if column not in table.columns]
    if missing:
        found = ",".join(str(column) for column in table.columns)
        if len(table.columns) == 1 and any(mark in found for mark in ";\t"):
            advice = "save it with commas between its columns"
        raise TableError(path, f"line 1 has no column {', '.join(missing)} but {found[:120]}", advice)
    table = table[columns].dropna(how="all")
    for column in numbers:
        if table[column].dtype.kind == "b":
            table[column] = np.nan
        elif table[column].dtype.kind not in "if":
            table[column] = pd.to_numeric(table[column], errors="coerce")
        table[column] = table[column].astype(np.float64)
        refuse_where(~np.isfinite(table[column]), path, f"{column} is not a finite number")
    for column in (SERIES_COLUMN, *texts):
        refuse_where(table[column].isna(), path, f"{column} is empty")
    table[SERIES_COLUMN] = table[SERIES_COLUMN].str.strip()
    for line, series_uid in table[SERIES_COLUMN].drop_duplicates().items():
        check_uid(series_uid, path, int(str(line)))
    return table


def check_uid(series_uid: str, path: Path, line: int) -> None:
    """A series_uid becomes file names, so it must not be able to name another folder."""
    if not re.fullmatch(r"[\w.\-]+", series_uid) or set(series_uid) == {"."}:
        raise TableError(path, f"line {line}: {series_uid[:80]!r} is no series_uid", "copy the table again")


def refuse_where(wrong: pd.Series, path: Path, problem: str) -> None:
    """Raise for the first row that is wrong."""
    if wrong.any():
        raise TableError(path, f"line {wrong.idxmax()}: {problem}", "correct it, or copy the table again")
