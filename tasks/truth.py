"""What is known of each scan: LUNA16's tables, LIDC's readings, and the split it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import luna
from lungml.ct import ScanError, find_dicom_series
from lungml.dicom import patient_digest, read_grid
from lungml.home import Home
from lungml.lidc import read_lidc
from lungml.lidc_nodules import LidcNodule, lidc_nodules
from lungml.lidc_report import RATED_CSV, convert_lidc
from lungml.lidc_truth import scan_truth
from lungml.lidc_xml import LidcError, LidcScan
from lungml.luna_archives import LIDC_XML
from lungml.phantom import is_phantom_uid
from lungml.recipes.data import Split
from tasks.caching import kept


@dataclass(frozen=True, kw_only=True)
class ScanTruth:
    """Everything the tables and the readers say about one scan.

    Attributes:
        path: what `read_scan` reads.
        negatives_xyz: (N, 3) mm: known non-nodules; None where the data set has no table of them.
        findings_xyz: (N, 3) mm: annotated and excluded; drawn negatives stay away from them.
        readings: LIDC's nodules with their contours, where LIDC's XML was given.
    """

    series_uid: str
    path: Path
    split: Split
    nodules: tuple[luna.Nodule, ...]
    negatives_xyz: npt.NDArray[np.float64] | None
    excluded: tuple[luna.Excluded, ...]
    findings_xyz: npt.NDArray[np.float64]
    readings: tuple[LidcNodule, ...] = ()


@task(name="rate_nodules", cache_policy=NO_CACHE)
def rate_nodules(luna_dir: Path, tables_dir: Path | None, lidc: Path | None) -> State | Path:
    """Make annotations_with_malignancy.csv from LIDC's XML, where it is not there; the table that is there stays.

    Args:
        luna_dir: LUNA16's scans, and its tables if they do not lie elsewhere.
        tables_dir: holds the tables when `luna_dir` does not.
        lidc: LIDC's XML files; what was downloaded with LUNA16 when not given.
    """
    rated_csv = (tables_dir or luna_dir) / RATED_CSV
    source = lidc or luna_dir / LIDC_XML
    if rated_csv.exists() or not source.exists():
        return kept(rated_csv)  # a missing table is told of by whoever reads it
    report = convert_lidc(
        source, rated_csv.with_name("lidc_nodules.csv"), luna_dir, tables_dir=tables_dir, rated_csv=rated_csv
    )
    for line in report.lines:
        get_run_logger().info(line)
    return rated_csv


@task(name="read_tables", cache_policy=NO_CACHE)
def read_tables(
    luna_dir: Path,
    tables_dir: Path | None,
    val_stride: int,
    home: Home,
    *,
    for_training: bool,
    lidc: Path | None = None,
    more: Path | None = None,
) -> list[ScanTruth]:
    """Read the tables, freeze the split and put together what is known of every scan on disk; says aloud what is not.

    Args as of `read_truths`.
    """
    notes, truths = read_truths(luna_dir, tables_dir, val_stride, home, for_training=for_training, lidc=lidc, more=more)
    for note in notes:
        get_run_logger().warning(note)
    return truths


def read_truths(
    luna_dir: Path,
    tables_dir: Path | None,
    val_stride: int,
    home: Home,
    *,
    for_training: bool,
    lidc: Path | None = None,
    more: Path | None = None,
) -> tuple[tuple[str, ...], list[ScanTruth]]:
    """What should be said aloud about a data set, and what is known of every scan of it that is on disk.

    Args:
        luna_dir, tables_dir: LUNA16's.
        val_stride: of the split, for series that have none yet.
        home: where split.csv lies.
        for_training: refuse a data set that leaves a split without a scan or without a kind of nodules.
        lidc: LIDC's XML files, for contours, and for the truth of scans outside LUNA16.
        more: LIDC's DICOM series; those outside LUNA16 join the training scans.

    Raises:
        TableError: when the folder or a table is missing or malformed.
        SplitError: when the split cannot be frozen, or is of no use for training.
        LidcError: when `lidc` holds nothing to read, or `more` is given without it.
    """
    if more and not lidc:
        raise LidcError(str(more), "without LIDC's XML nothing is known of these series", "give it with --lidc")
    data = luna.read_luna(luna_dir, tables_dir)
    split = luna.freeze_split(data.series_uids, val_stride, home.split_csv)
    if for_training:
        luna.check_split(split, data, val_stride)
        luna.check_nodules(split, data)
    notes = list(data.notes)
    if split != luna.split_series(data.series_uids, val_stride):
        notes.append(
            f"{home.split_csv} was frozen before and is kept; --val-stride {val_stride} is for new series only"
        )
    truths = _truths(data, split)
    if lidc:
        files = read_lidc(lidc)
        notes += [f"not read: {line}" for line in files.damaged]
        truths = [
            replace(truth, readings=lidc_nodules(files.scans[truth.series_uid]))
            if truth.series_uid in files.scans
            else truth
            for truth in truths
        ]
        if more:
            joined, left_out = more_truths(find_dicom_series(more), split, files.scans)
            truths, notes = [*truths, *joined], [*notes, *left_out]
    return tuple(notes), truths


def more_truths(
    series: Mapping[str, Path], split: Mapping[str, Split], readings: Mapping[str, LidcScan]
) -> tuple[list[ScanTruth], list[str]]:
    """The truth of LIDC's series outside LUNA16, all of them training scans, and what is said of those left out.

    A patient may have two series. One whose other series validates or tests is left out, as far as that other series
    lies in the same tree: LUNA16's tables know no patients.

    Args:
        series: series_uid -> DICOM folder or zip; LUNA16's among them tell whose patients must stay out.
        split: of LUNA16's series, on disk or not.
        readings: of LIDC's XML, by series_uid.
    """
    guarded = {patient_digest(path) for uid, path in series.items() if split.get(uid, "train") != "train"} - {""}
    truths: list[ScanTruth] = []
    notes: list[str] = []
    unread, of_guarded = 0, 0
    for series_uid, path in series.items():
        if series_uid in split:
            continue
        if series_uid not in readings:
            unread += 1
            continue
        if patient_digest(path) in guarded:
            of_guarded += 1
            continue
        scan, found = readings[series_uid], lidc_nodules(readings[series_uid])
        try:
            nodules, excluded = scan_truth(scan, found, read_grid(path))
        except ScanError:
            nodules, excluded = (), ()  # the conversion sets it aside, with the reason
        except LidcError as error:
            notes.append(f"left out: {error}")
            continue
        places = [n.center_xyz for n in nodules] + [e.center_xyz for e in excluded]
        truths.append(
            ScanTruth(
                series_uid=series_uid,
                path=path,
                split="train",
                nodules=nodules,
                negatives_xyz=None,
                excluded=excluded,
                findings_xyz=np.asarray(places, dtype=np.float64).reshape(-1, 3),
                readings=found,
            )
        )
    notes.append(f"{len(truths)} LIDC series outside LUNA16 join the training scans")
    if unread:
        notes.append(f"{unread} LIDC series outside LUNA16 have no XML file and are left out")
    if of_guarded:
        notes.append(f"{of_guarded} are left out: another series of their patients validates or tests")
    return truths, notes


def data_origin(truths: Sequence[ScanTruth]) -> Literal["real", "phantom"]:
    """Phantom when any scan was drawn, wherever it lies now: models of such data are never taken for more."""
    return "phantom" if any(is_phantom_uid(truth.series_uid) for truth in truths) else "real"


def _truths(data: luna.LunaData, split: Mapping[str, Split]) -> list[ScanTruth]:
    """What LUNA16's tables say of every scan on disk."""
    nodules, annotated = luna.by_series(data.nodules), luna.by_series(data.annotated)
    excluded = luna.by_series(data.excluded)
    truths = []
    for series_uid, path in sorted(data.scans.items()):
        places = [item.center_xyz for table in (nodules, annotated, excluded) for item in table.get(series_uid, ())]
        truths.append(
            ScanTruth(
                series_uid=series_uid,
                path=path,
                split=split[series_uid],
                nodules=nodules.get(series_uid, ()),
                negatives_xyz=data.negatives.get(series_uid, np.empty((0, 3))) if data.negatives else None,
                excluded=excluded.get(series_uid, ()),
                findings_xyz=np.asarray(places, dtype=np.float64).reshape(-1, 3),
            )
        )
    return truths
