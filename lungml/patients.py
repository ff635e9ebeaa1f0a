"""Whose scan is this? An anonymous mark of each series' patient, and which series must not be learned from for it."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from lungml.tables import TableError

PATIENTS_CSV = "patients.csv"
SERIES_COLUMNS = ("series_uid", "seriesuid")  # ours, and LUNA16's
# The patient with scans on several sides keeps those of the most held-out one: what tests must stay what it was.
HELD_OUT_FIRST: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")


def patient_mark(patient: str) -> str:
    """16 hexadecimal digits that stand for a patient's id or name, spaces around it left out; empty for none.

    It is what `lungml.dicom.patient_digest` makes of a PatientID. Whoever has a list of ids can find them in it again.
    """
    name = patient.strip()
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else ""


def is_mark(text: str) -> bool:
    """Whether a text looks like a mark, and not like what it stands for."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def read_patients(path: Path) -> dict[str, str]:
    """Read a table of `series_uid` (or `seriesuid`) and `patient`; a series without a patient is left out.

    Where scans come as DICOM too, the column `patient` holds their PatientID, so that both give one mark.

    Returns:
        series_uid -> mark, in the table's order; no name or id of a patient leaves this function.

    Raises:
        TableError: names the file and the line, never what stands there.
    """
    advice = "correct it, or take the table away"
    marks: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True, skipinitialspace=True)
            header = [name.strip().lower() for name in next(reader, [])]
            of_series = [place for place, name in enumerate(header) if name in SERIES_COLUMNS]
            of_patient = [place for place, name in enumerate(header) if name == "patient"]
            if len(of_series) != 1 or len(of_patient) != 1:
                raise TableError(path, "its first line has no columns series_uid and patient, one of each", advice)
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                where = f"line {reader.line_num}"
                if len(row) != len(header):
                    raise TableError(path, f"{where} has {len(row)} fields, its first line {len(header)}", advice)
                series_uid, mark = row[of_series[0]].strip(), patient_mark(row[of_patient[0]])
                if not re.fullmatch(r"[\w.\-]+", series_uid):  # not shown: it may be a name in the wrong column
                    raise TableError(path, f"{where}: its series_uid is none", advice)
                if mark and marks.get(series_uid, mark) != mark:
                    raise TableError(path, f"{where} gives {series_uid} to a second patient", advice)
                if mark:
                    marks[series_uid] = mark
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(path, f"not a csv table ({type(error).__name__})", advice) from None
    return marks


def divided(split: Mapping[str, str], patients: Mapping[str, str]) -> dict[str, str]:
    """The series to leave out because another series of their patient is held out more.

    Args:
        split: series_uid -> train, val or test.
        patients: series_uid -> mark, of those that are known.

    Returns:
        series_uid -> that other series' split: test or val; sorted by series_uid.
    """
    sides: dict[str, set[str]] = {}
    for series_uid, mark in patients.items():
        if mark and series_uid in split:
            sides.setdefault(mark, set()).add(split[series_uid])
    kept = {mark: _most_held_out(names) for mark, names in sides.items()}
    return {
        uid: kept[patients[uid]]
        for uid in sorted(patients.keys() & split.keys())
        if patients[uid] and split[uid] != kept[patients[uid]]
    }


def _most_held_out(names: Iterable[str]) -> str:
    return min(names, key=[str(name) for name in HELD_OUT_FIRST].index)
