"""Which scans were set aside, and why?"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path

from lungml.errors import one_line
from lungml.files import locked, write_csv_atomic

COLUMNS = ("series_uid", "path", "reason", "time", "key")


def set_aside(quarantine_csv: Path, series_uid: str, path: Path, reason: str, *, key: str = "") -> None:
    """Write a scan into the quarantine; an older row of the same scan is replaced.

    Safe with several threads and processes at once: the file is rewritten under a lock.

    Args:
        quarantine_csv: made when there is none.
        series_uid: of the scan.
        path: where it was read from.
        reason: one line.
        key: what the verdict depends on; while it is the same, the scan need not be tried again. Empty: try always.
    """
    with locked(quarantine_csv):
        rows = [row for row in read_quarantine(quarantine_csv) if row["series_uid"] != series_uid]
        time = datetime.now(UTC).isoformat(timespec="seconds")
        rows.append({"series_uid": series_uid, "path": one_line(str(path)), "reason": reason, "time": time, "key": key})
        write_csv_atomic(quarantine_csv, COLUMNS, [tuple(row[c] for c in COLUMNS) for row in rows])


def release(quarantine_csv: Path, series_uid: str) -> None:
    """Take a scan out of the quarantine again, once it reads well."""
    if not any(row["series_uid"] == series_uid for row in read_quarantine(quarantine_csv)):
        return
    with locked(quarantine_csv):
        rows = [row for row in read_quarantine(quarantine_csv) if row["series_uid"] != series_uid]
        write_csv_atomic(quarantine_csv, COLUMNS, [tuple(row[c] for c in COLUMNS) for row in rows])


def known_reason(quarantine_csv: Path, series_uid: str, key: str) -> str | None:
    """Why a scan was set aside under exactly this key; None when it was not, or must be tried again."""
    for row in read_quarantine(quarantine_csv):
        if row["series_uid"] == series_uid and row["key"] and row["key"] == key:
            return row["reason"]
    return None


def read_quarantine(quarantine_csv: Path) -> list[dict[str, str]]:
    """The scans set aside, oldest first: dicts of series_uid, path, reason, time, key.

    What is damaged counts for nothing: such scans are looked at again and the file is written anew.
    """
    if not quarantine_csv.exists():
        return []
    with quarantine_csv.open(newline="", encoding="utf-8") as handle:
        try:
            rows = list(csv.DictReader(handle))
        except (csv.Error, UnicodeDecodeError):
            return []
    return [
        {**row, "key": row.get("key") or ""}  # older files have no key
        for row in rows
        if all(isinstance(row.get(column), str) for column in COLUMNS[:4])
    ]
