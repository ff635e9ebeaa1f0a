"""Which scans does each fold of a cross-validation test, validate and train on?

LUNA16 comes in ten subsets, and its challenge scores ten models together, each on the subset that it never saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lungml.ct import find_scans
from lungml.errors import LunaError, one_line
from lungml.frozen_split import SPLITS, Split
from lungml.patients import PATIENTS_CSV, read_patients
from lungml.tables import SERIES_COLUMN, TableError, read_table, refuse_where

SUBSETS = 10
SUBSETS_CSV = "subset_to_series.csv"  # not LUNA16's own: for trees that keep the scans in other folders
MIN_FOLDS = 3  # one tests, one validates, one trains


class FoldError(LunaError):
    """A cross-validation that these scans do not allow; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How the scans on disk fall into folds.

    Attributes:
        count: how many folds.
        fold_of: series_uid -> its fold, 0..count-1, of every scan on disk; sorted.
        by: "subset": LUNA16's, modulo `count`; "order": every `count`-th of the sorted list, where no subset is known.
    """

    count: int
    fold_of: Mapping[str, int]
    by: Literal["subset", "order"]

    @property
    def words(self) -> str:
        """What the folds are, for wherever a figure of them is printed."""
        if self.by == "order":
            return "the sorted list of series dealt out (no LUNA16 subset is known)"
        return "LUNA16's own subsets" + ("" if self.count == SUBSETS else f" modulo {self.count}")

    def split(self, fold: int) -> dict[str, Split]:
        """The side of every scan in one fold, as `fold_split` has it.

        Raises:
            FoldError: there is no such fold, or one of its sides has no scan on disk.
        """
        if not 0 <= fold < self.count:
            raise FoldError(f"there is no fold {fold} of {self.count}; give some of 0 to {self.count - 1}")
        split = fold_split(self.fold_of, fold, self.count)
        lacking = [name for name in SPLITS if name not in split.values()]
        if lacking:
            tests, validates = fold, (fold + 1) % self.count
            raise FoldError(
                f"fold {fold} of {self.count} has no {' and no '.join(lacking)} scan on disk: it tests on part {tests} "
                f"of {self.words}, validates on part {validates} and trains on the rest; add scans, or give other folds"
            )
        return split


def fold_split(fold_of: Mapping[str, int], fold: int, folds: int) -> dict[str, Split]:
    """One fold's sides: it tests its own part, validates on the next, behind the last on the first, trains on the rest.

    So each series is tested once and validates once. Patients are not looked at: of those who stand on two sides,
    `lungml.patients.divided` tells which series to leave out.

    Args:
        fold_of: series_uid -> its part, 0..folds-1.
        fold: which.
        folds: how many.
    """
    sides: dict[int, Split] = {(fold + 1) % folds: "val", fold: "test"}
    return {uid: sides.get(part, "train") for uid, part in fold_of.items()}


def read_folds(luna_dir: Path, tables_dir: Path | None, count: int) -> Folds:
    """Put the scans on disk into folds: by LUNA16's subsets where they are known, else by their order.

    The subset of a scan is that of the folder it lies in (`.../subset3/<series_uid>.mhd`) or its line in
    subset_to_series.csv (`subset,seriesuid`).

    Args:
        luna_dir: holds `**/<series_uid>.mhd`.
        tables_dir: holds the csv tables; `luna_dir` itself when not given.
        count: of folds.

    Raises:
        FoldError: too few or too many folds, or only some scans' subsets are known, or folder and table disagree.
        ScanError, TableError: no such folder, no scan, a scan twice, or a malformed table.
    """
    tables = tables_dir or luna_dir
    scans = find_scans(luna_dir)
    if not scans:
        raise TableError(luna_dir, "no scans here (**/<series_uid>.mhd)", "unpack LUNA16's subsets here")
    listed = read_subsets(tables / SUBSETS_CSV) if (tables / SUBSETS_CSV).exists() else {}
    patients = read_patients(tables / PATIENTS_CSV) if (tables / PATIENTS_CSV).exists() else {}
    subsets: dict[str, int] = {}
    for series_uid, path in scans.items():
        in_folder, in_table = _subset_of(path, luna_dir), listed.get(series_uid)
        if in_folder is not None and in_table is not None and in_folder != in_table:
            raise FoldError(
                one_line(
                    f"{path}: lies in subset{in_folder}, {tables / SUBSETS_CSV} says {in_table}; correct one of the two"
                )
            )
        known = in_table if in_folder is None else in_folder
        if known is not None:
            subsets[series_uid] = known
    return assign_folds(scans, count, subsets, patients)


def assign_folds(
    scans: Mapping[str, Path], count: int, subsets: Mapping[str, int], patients: Mapping[str, str] | None = None
) -> Folds:
    """Put scans into folds: each into its subset modulo `count`, or, where none is known, by its place in the list.

    By place, a patient's later series follow the first one. A subset is never divided, whosever scans it holds.

    Args:
        scans: series_uid -> path.
        count: of folds.
        subsets: series_uid -> LUNA16's subset, 0..9.
        patients: series_uid -> mark, of the series whose patient is known.

    Raises:
        FoldError: too few or too many folds, or only some scans' subsets are known.
    """
    most = SUBSETS if subsets else len(scans)
    if not MIN_FOLDS <= count <= most:
        raise FoldError(
            f"{count} folds cannot be had: one tests, one validates and the rest train; give {MIN_FOLDS} to {most}"
        )
    unknown = sorted(scans.keys() - subsets.keys())
    if subsets and unknown:
        raise FoldError(
            f"the subsets of {len(unknown)} of {len(scans)} scans are not known, such as {unknown[0]}; put them into "
            f"LUNA16's folders subset0..9, or name them in {SUBSETS_CSV}"
        )
    if subsets:
        fold_of = {uid: subsets[uid] % count for uid in sorted(scans)}
        return Folds(count=count, fold_of=fold_of, by="subset")
    fold_of, home_of = {}, dict[str, int]()
    for place, uid in enumerate(sorted(scans)):
        mark = (patients or {}).get(uid, "")
        fold_of[uid] = home_of.setdefault(mark, place % count) if mark else place % count
    return Folds(count=count, fold_of=fold_of, by="order")


def read_subsets(path: Path) -> dict[str, int]:
    """Read subset_to_series.csv: series_uid -> 0..9, in the table's order.

    Raises:
        TableError: it is missing or malformed, holds another subset, or names a series twice.
    """
    table = read_table(path, ["subset"])
    refuse_where(~table["subset"].isin(range(SUBSETS)), path, f"subset is none of 0 to {SUBSETS - 1}")
    refuse_where(table.duplicated(SERIES_COLUMN), path, "a series that an earlier line names already")
    return {uid: int(subset) for uid, subset in zip(table[SERIES_COLUMN], table["subset"])}


def parse_folds(text: str) -> tuple[int, tuple[int, ...]]:
    """What `--folds` asks for: how many folds there are, and which of them to run, sorted.

    "10" is all ten; "0,3" and "0-3" are some of ten; "0,3/5" and "2/5" are some of five.

    Raises:
        FoldError: it is none of these.
    """
    wanted, _, of = text.replace(" ", "").partition("/")
    pieces = re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", wanted)
    if not pieces or ("/" in text and not re.fullmatch(r"\d{1,4}", of)):
        raise FoldError(one_line(f"--folds {text!r} is no number of folds; give 10, or some of ten such as 0,3 or 0-4"))
    if "/" not in text and wanted.isdigit():
        return int(wanted), tuple(range(int(wanted)))
    count, chosen = int(of or SUBSETS), set[int]()
    for piece in wanted.split(","):
        first, _, last = piece.partition("-")
        chosen |= set(range(int(first), int(last or first) + 1))
    if not chosen or max(chosen) >= count:
        raise FoldError(f"--folds {text}: there are folds 0 to {count - 1}; give some of those")
    return count, tuple(sorted(chosen))


def _subset_of(path: Path, luna_dir: Path) -> int | None:
    """The number of the nearest folder called subset0..9 that a scan lies in, as far up as `luna_dir`."""
    for folder in path.parents:
        match = re.fullmatch(rf"subset([0-{SUBSETS - 1}])", folder.name, re.IGNORECASE)
        if match:
            return int(match[1])
        if folder == luna_dir:
            break
    return None
