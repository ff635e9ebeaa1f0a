"""What is known of each scan: LUNA16's tables, LIDC's readings, and the split it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import frozen_split, luna
from lungml.ct import ScanError, find_dicom_series, find_scans
from lungml.dicom import patient_digest, read_grid
from lungml.files import write_text_atomic
from lungml.home import Home
from lungml.lidc import read_lidc
from lungml.lidc_nodules import LidcNodule, lidc_nodules
from lungml.lidc_report import RATED_CSV, convert_lidc
from lungml.lidc_truth import scan_truth
from lungml.lidc_xml import LidcError, LidcScan
from lungml.luna_archives import LIDC_XML
from lungml.patients import divided
from lungml.phantom import is_phantom_uid
from lungml.recipes.data import Split
from lungml.textures import TEXTURES_CSV, match_textures
from tasks.caching import CONTOUR_MODULES, code_digest, digest, file_digest, kept


@dataclass(frozen=True, kw_only=True)
class ScanTruth:
    """Everything the tables and the readers say about one scan.

    Attributes:
        path: what `read_scan` reads.
        negatives_xyz: (N, 3) mm: known non-nodules; None where the data set has no table of them.
        excluded: neither hits nor false positives; those of `unrated` are among them.
        findings_xyz: (N, 3) mm: annotated and excluded; drawn negatives stay away from them.
        readings: LIDC's nodules with their contours, where LIDC's XML was given.
        patient: an anonymous mark of the patient; empty where it is not known.
        unrated: annotated nodules without a malignancy rating: nothing learns from them, the official score counts
            them.
        textures: of each nodule, "" where it is not known; empty where nothing is known of any.
        reason: why the scan is set aside; empty for one that reads well.
        unjudged: nodules of unknown malignancy that readers added: learned from as nodules, on training scans only.
        rejected_xyz: places that readers rejected: always cut as non-nodules, on training scans only; mm.
        disputed: of `excluded`, what is there because of readers: not even as background does the U-Net learn from it.
    """

    series_uid: str
    path: Path
    split: Split
    nodules: tuple[luna.Nodule, ...]
    negatives_xyz: npt.NDArray[np.float64] | None
    excluded: tuple[luna.Excluded, ...]
    findings_xyz: npt.NDArray[np.float64]
    readings: tuple[LidcNodule, ...] = ()
    patient: str = ""
    unrated: tuple[luna.Annotation, ...] = ()
    textures: tuple[str, ...] = ()
    reason: str = ""
    unjudged: tuple[luna.Annotation, ...] = ()
    rejected_xyz: tuple[tuple[float, float, float], ...] = ()
    disputed: tuple[luna.Excluded, ...] = ()

    @property
    def drawn(self) -> tuple[luna.Nodule, ...]:
        """What masks show: the nodules and, behind them, those of unknown malignancy, whose label says nothing."""
        unjudged = (
            luna.Nodule(
                series_uid=one.series_uid,
                center_xyz=one.center_xyz,
                diameter_mm=one.diameter_mm,
                malignant=False,
                ratings=(),
            )
            for one in self.unjudged
        )
        return (*self.nodules, *unjudged)


@task(name="rate_nodules", task_run_name="rate nodules", cache_policy=NO_CACHE)
def rate_nodules(luna_dir: Path, tables_dir: Path | None, lidc: Path | None) -> State | Path:
    """Make annotations_with_malignancy.csv and textures.csv from LIDC's XML, where they are not there or of less.

    A table that was not made here, such as the published one, or was edited since, stays. Where only the textures are
    missing and cannot be made there, the run goes on without: they are for one table of the report.

    Args:
        luna_dir: LUNA16's scans, and its tables if they do not lie elsewhere.
        tables_dir: holds the tables when `luna_dir` does not.
        lidc: LIDC's XML files; what was downloaded with LUNA16 when not given.
    """
    tables = tables_dir or luna_dir
    rated_csv, textures_csv, made_of = tables / RATED_CSV, tables / TEXTURES_CSV, tables / f".{RATED_CSV}.json"
    source = lidc or luna_dir / LIDC_XML
    if not source.exists():
        if lidc:
            raise LidcError(source, "no such folder or file", "name the folder or zip of LIDC's XML files")
        return kept(rated_csv)  # a missing table is told of by whoever reads it
    inputs = digest(
        [
            sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _files(source)),
            file_digest(tables / "annotations.csv"),
            sorted(find_scans(luna_dir)),  # a scan whose header is there is matched in 3D
            code_digest((*CONTOUR_MODULES, "textures.py")),
        ]
    )
    made, log = _read_stamp(made_of), get_run_logger()
    there = {name: path for name, path in (("table", rated_csv), ("textures", textures_csv)) if path.exists()}
    foreign = [path for name, path in there.items() if made.get(name) != file_digest(path)]
    if len(there) == 2 and (len(foreign) == 2 or made.get("inputs") == inputs):
        return kept(rated_csv)
    if rated_csv in foreign and not ((tables / "annotations.csv").exists() and os.access(tables, os.W_OK)):
        log.warning("%s cannot be made: no annotations.csv there, or no writing; no score by texture", textures_csv)
        return kept(rated_csv)
    report = convert_lidc(
        source,
        rated_csv.with_name("lidc_nodules.csv"),
        luna_dir,
        tables_dir=tables_dir,
        rated_csv=rated_csv,
        keep=foreign,
    )
    ours = {"table": report.rated_csv, "textures": report.textures_csv}
    stamp = {"inputs": inputs, **{name: file_digest(path) for name, path in ours.items() if path}}
    write_text_atomic(made_of, json.dumps(stamp) + "\n")
    for line in report.lines:
        log.info(line)
    if report.match and report.match.unmatched:
        log.warning("%d annotated nodules have no readings in %s", len(report.match.unmatched), source)
    return rated_csv


@task(name="read_tables", task_run_name="read tables", cache_policy=NO_CACHE)
def read_tables(
    luna_dir: Path,
    tables_dir: Path | None,
    val_stride: int,
    home: Home,
    *,
    for_training: bool,
    lidc: Path | None = None,
    more: Path | None = None,
    sides: Mapping[str, Split] | None = None,
) -> list[ScanTruth]:
    """Read the tables, freeze the split and put together what is known of every scan on disk; says aloud what is not.

    Args as of `read_truths`.
    """
    notes, truths = read_truths(
        luna_dir, tables_dir, val_stride, home, for_training=for_training, lidc=lidc, more=more, sides=sides
    )
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
    sides: Mapping[str, Split] | None = None,
) -> tuple[tuple[str, ...], list[ScanTruth]]:
    """What should be said aloud about a data set, and what is known of every scan of it that is on disk.

    Args:
        luna_dir, tables_dir: LUNA16's.
        val_stride: of the split, for series that have none yet.
        home: where split.csv lies.
        for_training: refuse a data set that leaves a split without a scan; of nodules see `correct_truths`.
        lidc: LIDC's XML files, for contours, and for the truth of scans outside LUNA16.
        more: LIDC's DICOM series; those outside LUNA16 join the training scans.
        sides: of every scan on disk, instead of the split that the home keeps: that one is neither used nor changed.

    Raises:
        TableError: when the folder or a table is missing or malformed.
        SplitError: when the split cannot be frozen, or is of no use for training.
        LidcError: when `lidc` holds nothing to read, or `more` is given without it.
    """
    if more and not lidc:
        raise LidcError(str(more), "without LIDC's XML nothing is known of these series", "give it with --lidc")
    data = luna.read_luna(luna_dir, tables_dir)
    series = find_dicom_series(more) if more else {}
    # Where both know a patient, the table has the last word.
    patients = {**_patients_of(series.keys() & set(data.series_uids), series), **data.patients}
    if sides is None:
        split = frozen_split.freeze_split(data.series_uids, val_stride, home.split_csv, patients)
    everywhere, frozen = frozen_split.frozen_patients(home.split_csv)
    if sides is not None:
        split = everywhere = _sides_of_all(data, sides)
    patients |= frozen
    twice = {uid: side for uid, side in divided(everywhere, patients).items() if uid in split}
    data = replace(data, scans={uid: path for uid, path in data.scans.items() if uid not in twice})
    if for_training:
        frozen_split.check_split(split, data, val_stride if sides is None else None)
    notes = list(data.notes)
    if sides is None:
        notes += _split_notes(split, data, val_stride, home, patients)
    if twice:
        such_as = ", ".join(f"{uid} ({split[uid]}, the other in {side})" for uid, side in list(twice.items())[:3])
        since = ", and the split was frozen before that was known" if sides is None else ""
        notes.append(
            f"{len(twice)} series are left out: another series of their patients tests or validates{since}; such as "
            f"{such_as}"
        )
    truths = truths_of(data, split, patients)
    unrated = sum(len(truth.unrated) for truth in truths)
    if unrated:
        notes.append(
            f"{unrated} annotated nodules have no malignancy rating: nothing is learned from them, no candidate there "
            "is a false positive, and only the official score counts them"
        )
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
            joined, left_out = more_truths(series, split, files.scans, patients)
            truths, notes = [*truths, *joined], [*notes, *left_out]
    return tuple(notes), truths


def _split_notes(
    split: Mapping[str, Split],
    data: luna.LunaData,
    val_stride: int,
    home: Home,
    patients: Mapping[str, str],
) -> list[str]:
    """What should be said of the split: that it is an older one, and what the patients changed."""
    notes = []
    by_stride = frozen_split.split_series(data.series_uids, val_stride)
    by_patient = frozen_split.split_series(data.series_uids, val_stride, patients)
    moved = sum(by_patient[uid] != name for uid, name in by_stride.items())
    if split != by_patient:
        notes.append(
            f"{home.split_csv} was frozen before and is kept; --val-stride {val_stride} is for new series only"
        )
    elif moved:
        notes.append(f"{moved} series stand in the split of their patient's first series, not in that of their place")
    return notes


def _sides_of_all(data: luna.LunaData, sides: Mapping[str, Split]) -> dict[str, Split]:
    """The side of every series of the data set; one that is not on disk trains, as far as that means anything.

    Raises:
        SplitError: a scan on disk has none.
    """
    unknown = sorted(data.scans.keys() - sides.keys())
    if unknown:
        raise frozen_split.SplitError(f"{len(unknown)} scans were given no side, such as {unknown[0]}; run again")
    return {uid: sides[uid] if uid in data.scans else "train" for uid in data.series_uids}


def more_truths(
    series: Mapping[str, Path],
    split: Mapping[str, Split],
    readings: Mapping[str, LidcScan],
    patients: Mapping[str, str] | None = None,
) -> tuple[list[ScanTruth], list[str]]:
    """The truth of LIDC's series outside LUNA16, all of them training scans, and what is said of those left out.

    A patient may have two series. One whose other series validates or tests is left out, as far as that other series
    lies in the same tree or its patient is known: LUNA16's own tables know no patients.

    Args:
        series: series_uid -> DICOM folder or zip; LUNA16's among them tell whose patients must stay out.
        split: of LUNA16's series, on disk or not.
        readings: of LIDC's XML, by series_uid.
        patients: series_uid -> mark, of the series whose patient is known from elsewhere.
    """
    held_out, known = {uid for uid, name in split.items() if name != "train"}, patients or {}
    # Both marks count: a table may name the patients in other words than the headers.
    guarded = {*_patients_of(held_out & series.keys(), series).values(), *(known.get(uid, "") for uid in held_out)}
    guarded.discard("")
    unseen = held_out - series.keys() - known.keys()
    truths: list[ScanTruth] = []
    notes: list[str] = []
    if unseen:
        notes.append(
            f"{len(unseen)} of {len(held_out)} validation and test series do not lie among the DICOM series, and no "
            "table names their patients: that none of these is trained on cannot be seen"
        )
    unread, of_guarded = 0, 0
    for series_uid, path in series.items():
        if series_uid in split:
            continue
        if series_uid not in readings:
            unread += 1
            continue
        marks = {known.get(series_uid, ""), _patient(path)} - {""}
        if not marks or marks & guarded:  # one who is not known may be one of them
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
                patient=known.get(series_uid) or min(marks),
            )
        )
    notes.append(f"{len(truths)} LIDC series outside LUNA16 join the training scans")
    if unread:
        notes.append(f"{unread} LIDC series outside LUNA16 have no XML file and are left out")
    if of_guarded:
        notes.append(f"{of_guarded} are left out: another series of their patients validates or tests, or may")
    return truths, notes


def _patients_of(series_uids: Iterable[str], series: Mapping[str, Path]) -> dict[str, str]:
    """series_uid -> mark of those DICOM series whose headers name a patient."""
    return {uid: mark for uid in sorted(series_uids) if (mark := _patient(series[uid]))}


def _patient(path: Path) -> str:
    """An anonymous mark of a series' patient; empty where it cannot be told."""
    try:
        return patient_digest(path)
    except ScanError:
        return ""


def data_name(series_uids: Iterable[str], origin: Literal["real", "phantom"]) -> str:
    """What some scans are called wherever it is written down: their kind and a mark of which they are.

    A folder's name would be plainer, and may say more of a patient than anybody should read there.
    """
    kind = "synthetic scans" if origin == "phantom" else "real scans"
    return f"{kind} {digest(sorted(series_uids))[:6]}"


def data_origin(truths: Sequence[ScanTruth]) -> Literal["real", "phantom"]:
    """Phantom when any scan was drawn, wherever it lies now: models of such data are never taken for more."""
    return "phantom" if any(is_phantom_uid(truth.series_uid) for truth in truths) else "real"


def truths_of(data: luna.LunaData, split: Mapping[str, Split], patients: Mapping[str, str]) -> list[ScanTruth]:
    """What LUNA16's tables say of every scan on disk."""
    nodules, annotated = luna.by_series(data.nodules), luna.by_series(data.annotated)
    excluded, textures = luna.by_series(data.excluded), luna.by_series(data.textures)
    truths = []
    for series_uid, path in sorted(data.scans.items()):
        rated = nodules.get(series_uid, ())
        # An annotated nodule without a malignancy row is no benign one, but nor is it a non-nodule to learn from.
        unrated = luna.unrated(annotated.get(series_uid, ()), rated)
        left_out = (
            luna.Excluded(series_uid=series_uid, center_xyz=found.center_xyz, diameter_mm=found.diameter_mm)
            for found in unrated
        )
        places = [item.center_xyz for table in (nodules, annotated, excluded) for item in table.get(series_uid, ())]
        truths.append(
            ScanTruth(
                series_uid=series_uid,
                path=path,
                split=split[series_uid],
                nodules=rated,
                negatives_xyz=data.negatives.get(series_uid, np.empty((0, 3))) if data.negatives else None,
                excluded=(*excluded.get(series_uid, ()), *left_out),
                findings_xyz=np.asarray(places, dtype=np.float64).reshape(-1, 3),
                patient=patients.get(series_uid, ""),
                unrated=unrated,
                textures=match_textures(rated, textures.get(series_uid, ())) if textures else (),
            )
        )
    return truths


def _read_stamp(path: Path) -> dict[str, str]:
    """What the tables were made of, and what they were then; empty where nothing says so."""
    try:
        made = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def _files(source: Path) -> list[Path]:
    return [file for file in source.rglob("*") if file.is_file()] if source.is_dir() else [source]
