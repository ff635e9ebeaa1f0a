"""Which split is a scan in, for good? And does each of the three have what a run needs?"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lungml.errors import LunaError, one_line
from lungml.files import locked, write_csv_atomic
from lungml.luna import LunaData, Nodule
from lungml.patients import HELD_OUT_FIRST, is_mark, patient_mark

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PATIENT_COLUMN = "patient"  # of split.csv
MIN_VAL_STRIDE = 3  # below it no series is left for training


class SplitError(LunaError):
    """Three splits cannot be had, or split.csv is damaged; its text is one line."""


def split_series(
    series_uids: Iterable[str], val_stride: int, patients: Mapping[str, str] | None = None
) -> dict[str, Split]:
    """Split series by their place in the sorted list: [0::n] validation, [1::n] test, the rest training.

    A patient goes where its first series goes: its later ones follow, and keep their places in the count.

    Args:
        series_uids: of the data set.
        val_stride: n.
        patients: series_uid -> mark, of the series whose patient is known.

    Raises:
        SplitError: a stride below 3 leaves nothing for training.
    """
    split, home_of, marks = dict[str, Split](), dict[str, Split](), patients or {}
    for place, uid in enumerate(sorted(set(series_uids))):
        split[uid] = _follow(marks.get(uid, ""), _split_at(place, val_stride), home_of)
    return split


def freeze_split(
    series_uids: Iterable[str], val_stride: int, split_csv: Path, patients: Mapping[str, str] | None = None
) -> dict[str, Split]:
    """The split of every given series, as first written to `split_csv`: a series once assigned never moves.

    Series that are not there yet are appended, sorted, and continue the stride behind those of the given list
    that are; a list of which none is there gets exactly `split_series`. A patient with a series there already keeps
    its split: the most held-out one, where older series stand on several sides. The file may hold other data sets'
    series, and further columns, which stay. Safe with several processes at once; unchanged when nothing is new.

    Args:
        series_uids: all series of the data set, on disk or not.
        val_stride: applies to the new ones only.
        split_csv: columns series_uid, split (train, val or test), and, once a patient is known, patient (its mark).
        patients: series_uid -> mark, of the given series whose patient is known; written to the file.

    Returns:
        series_uid -> split of the given series, sorted by series_uid.

    Raises:
        SplitError: a damaged split.csv, or a stride below 3.
        OSError: split.csv cannot be written; it is then as before.
    """
    given = sorted(set(series_uids))
    known_marks = {uid: mark for uid in given if (mark := (patients or {}).get(uid, ""))}
    _split_at(0, val_stride)
    with locked(split_csv):
        header, rows = _read_split(split_csv)
        before = [header, *map(list, rows)]
        if known_marks and PATIENT_COLUMN not in header:
            header, rows = [*header, PATIENT_COLUMN], [[*row, ""] for row in rows]
        column = header.index(PATIENT_COLUMN) if PATIENT_COLUMN in header else None
        frozen = {row[0]: row[1] for row in rows}
        new = [uid for uid in given if uid not in frozen]
        rows += [[uid, "", *[""] * (len(header) - 2)] for uid in new]
        marks = {**_marks(header, rows), **known_marks}
        if column is not None and known_marks:
            for row in rows:
                row[column] = marks[row[0]]
        home_of: dict[str, Split] = {}
        for name in HELD_OUT_FIRST:
            for uid, mark in marks.items():
                if mark and frozen.get(uid) == name:
                    home_of.setdefault(mark, name)
        known = len(given) - len(new)
        for place, uid in enumerate(new, start=known):
            frozen[uid] = _follow(marks.get(uid, ""), _split_at(place, val_stride), home_of)
        for row in rows:
            row[1] = frozen[row[0]]
        if [header, *rows] != before:
            write_csv_atomic(split_csv, header, rows)
    return {uid: frozen[uid] for uid in given}  # type: ignore[misc]  # _read_split checked the names


def frozen_patients(split_csv: Path) -> tuple[dict[str, Split], dict[str, str]]:
    """What split.csv says: series_uid -> split of every series in it, and -> mark of those whose patient is known.

    Raises:
        SplitError: it is damaged.
    """
    header, rows = _read_split(split_csv)
    marks = _marks(header, rows)
    return {row[0]: row[1] for row in rows}, {uid: mark for uid, mark in marks.items() if mark}  # type: ignore[misc]


def check_split(split: Mapping[str, str], data: LunaData, val_stride: int | None) -> None:
    """See that training, validation and test each have a scan on disk; the stride, where there is one, is for words.

    Raises:
        SplitError: one line with what is there and what is needed.
    """
    counts = Counter(split[series_uid] for series_uid in data.scans)
    empty = [name for name in SPLITS if not counts[name]]
    if not empty:
        return
    there = ", ".join(f"{counts[name]} {name}" for name in SPLITS)
    wanted = [next((uid for uid, name in sorted(split.items()) if name == lacking), None) for lacking in empty]
    such_as = " and ".join(f"{uid} ({name})" for uid, name in zip(wanted, empty) if uid)
    by_stride = "" if val_stride is None else f" at --val-stride {val_stride}"
    raise SplitError(
        f"{len(data.scans)} scans are on disk ({there}); three splits{by_stride} "
        f"need at least {len(SPLITS)}, one of each; add " + (such_as or "more scans")
    )


def check_nodules(scans: Iterable[tuple[str, Sequence[Nodule]]], advice: str = "add scans") -> None:
    """See that training and validation each have malignant and benign nodules on disk.

    Without them the last model would fail, hours after the first was trained.

    Args:
        scans: of each one on disk its split and its nodules.
        advice: what to do where a kind is missing.

    Raises:
        SplitError: one line that names the split and the kind it lacks.
    """
    scans = list(scans)
    for name in ("train", "val"):
        there = [nodules for split, nodules in scans if split == name]
        for kind, malignant in (("malignant", True), ("benign", False)):
            if not any(nodule.malignant == malignant for nodules in there for nodule in nodules):
                raise SplitError(
                    f"the {len(there)} {name} scans on disk hold no {kind} nodule, and the malignancy models need "
                    f"one; {advice}"
                )


def _follow(mark: str, own: Split, home_of: dict[str, Split]) -> Split:
    """Where a series goes: to its patient's other series, or to its own place, which later ones will follow."""
    return home_of.setdefault(mark, own) if mark else own


def _marks(header: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, str]:
    """The marks in a split table; what a person wrote there by hand counts as the mark that it would get."""
    if PATIENT_COLUMN not in header:
        return {}
    column = header.index(PATIENT_COLUMN)
    return {row[0]: row[column] if is_mark(row[column]) else patient_mark(row[column]) for row in rows}


def _split_at(place: int, val_stride: int) -> Split:
    if val_stride < MIN_VAL_STRIDE:
        raise SplitError(f"--val-stride {val_stride} leaves no scan for training; give {MIN_VAL_STRIDE} or more")
    return {0: SPLITS[1], 1: SPLITS[2]}.get(place % val_stride, SPLITS[0])


def _read_split(split_csv: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of split.csv, checked; an empty table when there is none yet."""
    advice = "restore it, or delete it to split anew (older models then saw other scans)"
    header: list[str] = ["series_uid", "split"]
    rows: list[list[str]] = []
    try:
        with split_csv.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            if header[:2] != ["series_uid", "split"]:
                raise SplitError(
                    one_line(f"{split_csv}: its first line is not 'series_uid,split' but {header}; {advice}")
                )
            seen: set[str] = set()
            for row in reader:
                if not row:
                    continue
                where = f"{split_csv}: line {reader.line_num}"
                if len(row) != len(header) or not row[0] or row[1] not in SPLITS:
                    raise SplitError(one_line(f"{where} is not a series and train, val or test; {advice}"))
                if row[0] in seen:
                    raise SplitError(one_line(f"{where} names {row[0]} a second time; {advice}"))
                seen.add(row[0])
                rows.append(row)
    except FileNotFoundError:
        return header, []
    except (csv.Error, UnicodeDecodeError) as error:
        raise SplitError(one_line(f"{split_csv}: not a csv file ({error}); {advice}")) from error
    return header, rows
