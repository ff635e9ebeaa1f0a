"""What do LUNA16's tables say of each scan?

LUNA16's `seriesuid` becomes `series_uid` here, once. All coordinates are mm in patient axes (LPS).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from lungml.ct import ScanError, find_scans
from lungml.errors import one_line
from lungml.patients import PATIENTS_CSV, read_patients
from lungml.tables import SERIES_COLUMN, TableError, check_uid, read_table, refuse_where
from lungml.textures import TEXTURES_CSV, Textured, match_textures, read_textures

EXCLUDED_DIAMETER_MM = 10.0  # LUNA16's evaluation script: what a negative diameter means
CENTER_COLUMNS = ["coordX", "coordY", "coordZ"]
MAX_DIAMETER_MM = 300.0  # as wide as a chest; LUNA16's nodules go to 33 mm, its excluded findings to 39


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """One nodule of the truth: a row of annotations_with_malignancy.csv.

    Attributes:
        malignant: at least two radiologists rated it 4 or 5.
        ratings: the radiologists' malignancy ratings, 1..5; how many there are differs.
    """

    series_uid: str
    center_xyz: tuple[float, float, float]
    diameter_mm: float
    malignant: bool
    ratings: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One row of annotations.csv: a nodule that the challenge counts, without ratings."""

    series_uid: str
    center_xyz: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A finding that is neither a hit nor a false positive; a negative diameter was read as 10 mm."""

    series_uid: str
    center_xyz: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True, kw_only=True)
class LunaData:
    """Everything the tables and the folder say.

    Attributes:
        series_uids: sorted; the list that the split is made from, whatever is on disk.
        scans: series_uid -> header path of what is on disk, sorted.
        nodules: the positives, of all series, on disk or not.
        negatives: series_uid -> (N, 3) float64 mm, in the table's order; only series that have some. Empty
            without a candidates table.
        excluded: neither hits nor false positives.
        annotated: every annotated nodule, for staying away from them.
        notes: what a person should be told once, with counts.
        patients: series_uid -> anonymous mark of its patient, of all series that patients.csv names.
        textures: the rows of textures.csv; empty without one.
    """

    series_uids: tuple[str, ...]
    scans: Mapping[str, Path]
    nodules: tuple[Nodule, ...]
    negatives: Mapping[str, npt.NDArray[np.float64]]
    excluded: tuple[Excluded, ...]
    annotated: tuple[Annotation, ...]
    notes: tuple[str, ...]
    patients: Mapping[str, str] = field(default_factory=dict)
    textures: tuple[Textured, ...] = ()


class _OfSeries(Protocol):
    @property
    def series_uid(self) -> str: ...


_Item = TypeVar("_Item", bound=_OfSeries)


def by_series(items: Iterable[_Item]) -> dict[str, tuple[_Item, ...]]:
    """Group nodules, annotations or excluded findings by their scan, in their order."""
    grouped: dict[str, list[_Item]] = {}
    for item in items:
        grouped.setdefault(item.series_uid, []).append(item)
    return {series_uid: tuple(found) for series_uid, found in grouped.items()}


def unrated(annotated: Iterable[Annotation], rated: Sequence[Nodule]) -> tuple[Annotation, ...]:
    """The annotated nodules of one scan that no row of annotations_with_malignancy.csv rates.

    A row rates an annotated nodule when it lies within its radius. LUNA16's tables leave 4 of 1186 unrated.
    """
    return tuple(
        found
        for found in annotated
        if not any(math.dist(found.center_xyz, nodule.center_xyz) < found.diameter_mm / 2 for nodule in rated)
    )


def read_luna(luna_dir: Path, tables_dir: Path | None = None) -> LunaData:
    """Read LUNA16's tables and find its scans.

    The positives are the rows of annotations_with_malignancy.csv, the negatives the class-0 rows of
    candidates_V2.csv or else candidates.csv; class-1 candidates repeat annotated nodules and are dropped.
    Only annotations_with_malignancy.csv must be there: what stands in for the others is said in `notes`.

    Args:
        luna_dir: holds `**/<series_uid>.mhd`.
        tables_dir: holds the csv files; `luna_dir` itself when not given.

    Raises:
        TableError: no such folder, no scans, a series twice, or a table that is missing or malformed.
    """
    for folder in filter(None, (luna_dir, tables_dir)):
        if not folder.is_dir():
            raise TableError(folder, "no such folder", "name a folder in LUNA16's layout")
    try:
        scans = find_scans(luna_dir)
    except ScanError as error:
        raise TableError(*error.args) from error
    unreadable = {uid for uid in scans if any(0xD800 <= ord(letter) <= 0xDFFF for letter in uid)}
    scans = {uid: path for uid, path in scans.items() if uid not in unreadable}
    if not scans:
        raise TableError(
            luna_dir,
            "no scans here (**/<series_uid>.mhd)",
            "unpack LUNA16's subsets here, or name another folder",
        )
    tables = tables_dir or luna_dir
    notes: list[str] = []
    if unreadable:  # no table could name them
        notes.append(f"{len(unreadable)} scans have names that are no UTF-8 text and are left out; rename them")
    nodules = read_nodules(tables / "annotations_with_malignancy.csv")
    annotated = _read_annotated(tables / "annotations.csv", nodules, notes)
    excluded = read_excluded(tables / "annotations_excluded.csv", notes)
    negatives = _read_negatives(tables, notes)
    in_tables = {item.series_uid for table in (nodules, annotated, excluded) for item in table} | negatives.keys()
    listed = read_series_list(tables / "seriesuids.csv")
    if listed is None:
        listed = tuple(sorted(in_tables | scans.keys()))
        notes.append(
            f"{tables / 'seriesuids.csv'} is missing: the split is made from the {len(listed)} series "
            "that the tables and the disk name"
        )
    unlisted = scans.keys() - set(listed)
    if unlisted:
        notes.append(
            f"{len(unlisted)} scans on disk are not in seriesuids.csv and are left out "
            f"(such as {min(unlisted)}); append them there to use them"
        )
    scans = {series_uid: path for series_uid, path in scans.items() if series_uid not in unlisted}
    if not scans:
        raise TableError(
            tables / "seriesuids.csv",
            "it lists none of the scans on disk",
            "name the --tables that belong to the scans",
        )
    absent = (set(listed) | in_tables) - scans.keys()
    if absent:
        lost = sum(nodule.series_uid in absent for nodule in nodules)
        notes.append(
            f"{len(absent)} of {len(absent) + len(scans)} series in the tables are not on disk "
            f"({lost} of {len(nodules)} nodules); the {len(scans)} scans that are there are used"
        )
    patients = _read_patients(tables / PATIENTS_CSV, listed, notes)
    textures = _read_textures(tables / TEXTURES_CSV, nodules, notes)
    return LunaData(
        series_uids=listed,
        scans=scans,
        nodules=nodules,
        negatives=negatives,
        excluded=excluded,
        annotated=annotated,
        notes=tuple(one_line(note) for note in notes),
        patients=patients,
        textures=textures,
    )


def read_nodules(path: Path) -> tuple[Nodule, ...]:
    """Read annotations_with_malignancy.csv.

    Raises:
        TableError: it is missing or malformed.
    """
    if not path.exists():
        raise TableError(
            path,
            "missing: without it no nodule is known",
            "name its folder with --tables, or make it from LIDC's XML",
        )
    table = read_table(path, [*CENTER_COLUMNS, "diameter_mm"], ["mal_bool", "mal_details"])
    _check_findings(table, path)
    truth = table["mal_bool"].str.strip().str.lower().map({"true": True, "false": False, "1": True, "0": False})
    refuse_where(truth.isna(), path, "mal_bool is neither True nor False")
    details = table["mal_details"].str.strip()
    refuse_where(
        ~details.str.fullmatch(r"\[\s*([1-5]\s*(,\s*[1-5]\s*)*)?\]").fillna(False).astype(bool),
        path,
        "mal_details is not a list of ratings 1..5 such as [4, 2]",
    )
    return tuple(
        Nodule(
            series_uid=series_uid,
            center_xyz=(x, y, z),
            diameter_mm=diameter_mm,
            malignant=bool(malignant),
            ratings=tuple(int(rating) for rating in re.findall("[1-5]", ratings)),
        )
        for (series_uid, x, y, z, diameter_mm), malignant, ratings in zip(_findings(table), truth, details)
    )


def _read_annotated(path: Path, nodules: Sequence[Nodule], notes: list[str]) -> tuple[Annotation, ...]:
    if not path.exists():
        notes.append(f"{path} is missing: the rows of annotations_with_malignancy.csv stand in for it")
        return tuple(
            Annotation(series_uid=n.series_uid, center_xyz=n.center_xyz, diameter_mm=n.diameter_mm) for n in nodules
        )
    return read_annotations(path)


def read_annotations(path: Path) -> tuple[Annotation, ...]:
    """Read annotations.csv.

    Raises:
        TableError: it is missing or malformed.
    """
    table = read_table(path, [*CENTER_COLUMNS, "diameter_mm"])
    _check_findings(table, path)
    return tuple(
        Annotation(series_uid=series_uid, center_xyz=(x, y, z), diameter_mm=diameter_mm)
        for series_uid, x, y, z, diameter_mm in _findings(table)
    )


def read_excluded(path: Path, notes: list[str]) -> tuple[Excluded, ...]:
    """The rows of annotations_excluded.csv; none, with a note, where there is no such file."""
    if not path.exists():
        notes.append(f"{path} is missing: no finding is excluded from the score")
        return ()
    table = read_table(path, [*CENTER_COLUMNS, "diameter_mm"])
    refuse_where(table["diameter_mm"] > MAX_DIAMETER_MM, path, f"diameter_mm is above {MAX_DIAMETER_MM:g}")
    return tuple(
        Excluded(
            series_uid=series_uid,
            center_xyz=(x, y, z),
            diameter_mm=EXCLUDED_DIAMETER_MM if diameter_mm < 0 else diameter_mm,
        )
        for series_uid, x, y, z, diameter_mm in _findings(table)
    )


def _check_findings(table: pd.DataFrame, path: Path) -> None:
    """Refuse nodules without a size, of a size that no nodule has, or named twice."""
    refuse_where(table["diameter_mm"] <= 0, path, "diameter_mm is not positive")
    refuse_where(table["diameter_mm"] > MAX_DIAMETER_MM, path, f"diameter_mm is above {MAX_DIAMETER_MM:g}")
    repeated = table.duplicated([SERIES_COLUMN, *CENTER_COLUMNS])
    refuse_where(repeated, path, "a nodule that an earlier line names already")


def _read_negatives(tables: Path, notes: list[str]) -> dict[str, npt.NDArray[np.float64]]:
    """The class-0 rows of the candidates table as one array per series."""
    # LUNA16 itself says to prefer V2: its nodules lie where V1's detectors missed some.
    path = next((p for p in (tables / "candidates_V2.csv", tables / "candidates.csv") if p.exists()), None)
    if path is None:
        notes.append(f"{tables / 'candidates.csv'} is missing: negatives are lung positions, not known look-alikes")
        return {}
    table = read_table(path, [*CENTER_COLUMNS, "class"])
    refuse_where(~table["class"].isin([0, 1]), path, "class is neither 0 nor 1")
    table = table[table["class"] == 0]
    if table.empty:
        notes.append(f"{path} has no class-0 row: negatives are lung positions, not known look-alikes")
        return {}
    codes, series_uids = pd.factorize(table[SERIES_COLUMN])
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))[:-1]
    places = np.split(table[CENTER_COLUMNS].to_numpy(dtype=np.float64)[order], ends)
    return dict(sorted(zip((str(uid) for uid in series_uids), places)))


def read_series_list(path: Path) -> tuple[str, ...] | None:
    """The sorted series of seriesuids.csv, which has no header; None when there is no such file."""
    if not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(path, f"cannot be read ({error})", "copy the table again") from error
    numbered = [(number, line.strip().strip('"')) for number, line in enumerate(lines, start=1) if line.strip()]
    if numbered and numbered[0][1] == SERIES_COLUMN:
        del numbered[0]
    if not numbered:
        raise TableError(
            path, "it is empty", "copy the table again, or delete it to use the series of the other tables"
        )
    seen: set[str] = set()
    for number, series_uid in numbered:
        check_uid(series_uid, path, number)
        if series_uid in seen:
            raise TableError(path, f"line {number} names {series_uid} a second time", "delete one of the two lines")
        seen.add(series_uid)
    return tuple(sorted(seen))


def _read_patients(path: Path, listed: Sequence[str], notes: list[str]) -> dict[str, str]:
    """series_uid -> mark of every series that patients.csv names; there need not be such a file."""
    if not path.exists():
        return {}
    patients = read_patients(path)
    named = sum(uid in patients for uid in listed)
    if named < len(listed):
        notes.append(
            f"{path} names the patients of {named} of {len(listed)} series: for the others it cannot be seen "
            "whether a patient stands in two splits"
        )
    return patients


def _read_textures(path: Path, nodules: Sequence[Nodule], notes: list[str]) -> tuple[Textured, ...]:
    """The rows of textures.csv; there need not be such a file."""
    if not path.exists():
        return ()
    textures = read_textures(path)
    of_series = by_series(textures)
    named = [name for uid, own in by_series(nodules).items() for name in match_textures(own, of_series.get(uid, ()))]
    if not all(named):
        notes.append(f"{path} knows the textures of {sum(map(bool, named))} of {len(named)} nodules")
    return textures


def _findings(table: pd.DataFrame) -> Iterable[tuple[str, float, float, float, float]]:
    columns = [SERIES_COLUMN, *CENTER_COLUMNS, "diameter_mm"]
    return zip(*(table[column].tolist() for column in columns))
