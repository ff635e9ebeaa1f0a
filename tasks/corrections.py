"""Which corrections of readers does a home keep, and what do they change of the scans that are learned from?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml import frozen_split, luna, store
from lungml.data_folders import known_folders
from lungml.errors import FileError, LunaError, one_line
from lungml.geometry import xyz_to_irc
from lungml.groups import StoreError
from lungml.home import Home
from lungml.patients import divided
from lungml.reading.corrected_scan import SAME_PLACE_MM, USES, Corrected, Outcome, Tables
from lungml.reading.correction_rules import SPLIT_WORDS, Placed, Resolved, replaced_by, resolve
from lungml.reading.correction_schema import MAX_BYTES, CorrectionError, CorrectionFile, parse_corrections
from lungml.reading.corrections import (
    Undo,
    Version,
    add_versions,
    corrections_folder,
    read_versions,
    taken_back,
    undo_version,
)
from tasks import promotion
from tasks.truth import ScanTruth, truths_of

METRICS = "corrections/"  # how the metrics begin that tell of corrections
CLOCKS_APART = timedelta(days=1)  # of a reader's and this one; what comes later would stand above all that follows


@dataclass(frozen=True, kw_only=True)
class Added:
    """What became of one file: the version it is, and whether that is new; or why it was refused.

    Attributes:
        path: of the file.
        version: None where it was refused.
        new: False where its content was added before.
        undone_by: the version that undid it since; None where none did.
        split: of its scan.
        problem: empty where it was taken.
        note: what should be said aloud.
    """

    path: Path
    version: Version | None = None
    new: bool = False
    undone_by: int | None = None
    split: str = ""
    problem: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One row of the list: a correction or an undoing, and what becomes of it."""

    name: str
    added: str
    series_uid: str
    split: str
    reader: str
    bundle: str
    what: str
    outcome: str
    uses: tuple[str, ...] = ()
    text: str = ""


def add_files(home: Home, files: Iterable[Path], reader: str | None = None) -> list[Added]:
    """Check and keep some exported files, each for itself: a bad one costs only itself.

    Args:
        home: whose versions they join.
        files: as the page exported them.
        reader: an alias that takes the place of those in the files.

    Returns:
        one for each file, in their order.

    Raises:
        SplitError: split.csv is damaged.
        CorrectionStoreError: a kept version is missing or damaged.
    """
    splits, folder = frozen_split.frozen_patients(home.split_csv)[0], corrections_folder(home)
    read_versions(folder)  # what is damaged is told before anything is looked at
    checked: list[tuple[Added, CorrectionFile | None]] = []
    registered: set[str] = set()
    for path in files:
        try:
            with path.open("rb") as handle:
                file = parse_corrections(handle.read(MAX_BYTES + 1), reader)
            note = _check(home, file, splits, registered)
        except (LunaError, OSError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            checked.append((Added(path=path, problem=one_line(words)), None))
            continue
        checked.append((Added(path=path, split=splits[file.series_uid], note=note), file))
    added, versions = [], iter(add_versions(folder, [file for _, file in checked if file is not None]))
    for one, taken in checked:
        version, new = next(versions) if taken is not None else (None, False)
        added.append(replace(one, version=version, new=new))
    return _told(added, read_versions(folder))


def _told(added: Iterable[Added], versions: Sequence[Version]) -> list[Added]:
    """The same with what became of their versions since, and which other ones they replace."""
    taken, replaced = taken_back(versions), replaced_by(versions)
    told = []
    for one in added:
        notes = [one.note] if one.note else []
        by = None
        if one.version is not None:
            number = one.version.number
            by = None if one.new else taken.get(Undo(version=number))
            earlier = [str(other) for other, last in replaced.items() if last == number]
            if one.new and earlier:
                notes.append(f"version {' and '.join(earlier)}, exported earlier from the same page, is replaced by it")
            if number in replaced:
                notes.append(f"version {replaced[number]}, exported later from the same page, stands instead of it")
        told.append(replace(one, undone_by=by, note="; ".join(notes)))
    return told


def _check(home: Home, file: CorrectionFile, splits: Mapping[str, str], registered: set[str]) -> str:
    """See that a file fits the home: its time, its series, its bundles, its places; returns what could not be seen.

    Args:
        registered: bundles that were seen already; those of this file join them.
    """
    if file.exported_at > datetime.now(UTC) + CLOCKS_APART:
        raise CorrectionError(
            f"exported is {file.exported}, which is still to come; set the clock of that computer and export again"
        )
    if file.series_uid not in splits:
        raise CorrectionError(
            f"{file.series_uid} is no series of {home.split_csv}; prepare its scan here first "
            "(scans of --more stand in no split and cannot be corrected)"
        )
    for bundle in file.bundles:
        if bundle not in registered:
            promotion.resolve(home, bundle)
            registered.add(bundle)
    try:
        grid = store.read_grid(home.scans / f"{file.series_uid}.zarr")
    except StoreError:
        return "its scan is not prepared here: that the places lie in it was not checked"
    centers = np.array([one.center_xyz for one in file.corrections], dtype=np.float64).reshape(-1, 3)
    for number, center_irc in enumerate(xyz_to_irc(centers, grid), start=1):
        if not all(-0.5 <= c < n - 0.5 for c, n in zip(center_irc, grid.shape_irc)):
            where = ", ".join(f"{mm:g}" for mm in centers[number - 1])
            raise CorrectionError(f"correction {number}: ({where}) mm lies outside the scan")
    return ""


def undo(home: Home, what: Undo) -> Version:
    """Take back a version, or one of its corrections, by a version that says so; errors as of `undo_version`."""
    return undo_version(corrections_folder(home), what)


def list_corrections(home: Home) -> tuple[list[Listed], str]:
    """Every kept correction and undoing, in order, with what becomes of it; and what could not be seen.

    Raises:
        CorrectionStoreError: a version is missing or damaged.
        SplitError: split.csv is damaged.
    """
    versions = read_versions(corrections_folder(home))
    splits, patients = frozen_split.frozen_patients(home.split_csv)
    corrected = {version.file.series_uid for version in versions if version.file}
    tables, note = _tables(home, splits, patients, corrected) if corrected else ({}, "")
    resolved = resolve(versions, splits, tables)
    told_of: dict[int, list[tuple[Placed, Outcome]]] = {}
    for placed, told in zip(resolved.placed, resolved.outcomes):
        told_of.setdefault(placed.version, []).append((placed, told))
    taken, rows = taken_back(versions), list[Listed]()
    for version in versions:
        if version.undoes:
            by = taken.get(Undo(version=version.number))
            outcome = f"undone by version {by}" if by else "stands"
            rows.append(_row(f"{version.number}", version, f"undoes {version.undoes.name}", outcome))
        elif version.file and not version.file.corrections:
            rows.append(_row(f"{version.number}", version, "nothing", "an empty file, kept", splits))
        for one, told in told_of.get(version.number, ()):
            row = _row(one.name, version, _what(one), told.words, splits)
            uses = tuple(use for use in USES if use in told.uses)
            rows.append(replace(row, bundle=one.correction.bundle, uses=uses, text=one.correction.text))
    return rows, note


def _row(name: str, version: Version, what: str, outcome: str, splits: Mapping[str, str] | None = None) -> Listed:
    uid = version.file.series_uid if version.file else ""
    return Listed(
        name=name,
        added=version.added,
        series_uid=uid,
        split=(splits or {}).get(uid, ""),
        reader=version.file.reader if version.file else "",
        bundle=version.file.bundle if version.file else "",
        what=what,
        outcome=outcome,
    )


def _what(placed: Placed) -> str:
    """`accept 12, malignant` or `add 8.2 mm`."""
    one = placed.correction
    place = f" {one.finding}" if one.finding is not None else ""
    size = f" {one.diameter_mm:g} mm" if one.kind == "add" and one.diameter_mm else ""
    return f"{one.kind}{place}{size}" + (f", {one.label}" if one.label else "")


def _tables(
    home: Home, splits: Mapping[str, str], patients: Mapping[str, str], series_uids: Iterable[str]
) -> tuple[dict[str, Tables], str]:
    """What the tables that the home was last prepared from say of some training scans.

    Those whose patient is held out with another series are left out, as `read_truths` leaves them out.
    """
    training = {uid for uid in series_uids if splits.get(uid) == "train"}
    try:
        folders = known_folders(home)
        data = luna.read_luna(folders.luna_dir, folders.tables_dir)
    except LunaError as error:
        why = error.args[1] if isinstance(error, FileError) else str(error)  # its advice is for other commands
        note = f"what the tables say of these places is not known ({why}); luna data prepare reads them"
        return {uid: Tables() for uid in training}, note
    twice = divided(splits, {**data.patients, **patients})
    scans = {uid: path for uid, path in data.scans.items() if uid in training and uid not in twice}
    data = replace(data, scans=scans)
    return {truth.series_uid: _known(truth) for truth in truths_of(data, dict.fromkeys(training, "train"), {})}, ""


def correct_truths(
    truths: Sequence[ScanTruth], versions: Sequence[Version], home: Home, *, for_training: bool = False
) -> tuple[list[ScanTruth], Resolved]:
    """What is learned from each scan once the corrections are applied, and what became of them.

    Scans without a correction that changes something, and all that validate or test, are the very same objects.

    Args:
        truths: of all scans on disk.
        versions: of the corrections.
        home: whose split it is.
        for_training: refuse what leaves training or validation without a kind of nodules.

    Raises:
        SplitError: split.csv is damaged, or naming the split and the kind of nodules that it lacks.
    """
    splits = {**frozen_split.frozen_patients(home.split_csv)[0], **{truth.series_uid: truth.split for truth in truths}}
    corrected = {version.file.series_uid for version in versions if version.file}
    tables = {t.series_uid: _known(t) for t in truths if t.split == "train" and t.series_uid in corrected}
    resolved = resolve(versions, splits, tables)
    learned = [
        _corrected(truth, resolved.scans[truth.series_uid]) if truth.series_uid in resolved.scans else truth
        for truth in truths
    ]
    if for_training:
        advice = "add scans" if not resolved.scans else "add scans, or see luna corrections list for what took the last"
        frozen_split.check_nodules([(truth.split, truth.nodules) for truth in learned], advice)
    return learned, resolved


def used_corrections(resolved: Resolved, series_uids: Iterable[str]) -> dict[str, int]:
    """The version that corrections were looked at up to, and how many were used as what, of the scans that are ready.

    `labels` are those that gave a nodule its malignancy, `disputed` those whose place nobody learns from or whose
    malignancy nobody knows, `held_out` those of validation and test scans.
    """
    return {"version": resolved.version, **resolved.counts(series_uids)}


def metrics_of(used: Mapping[str, int]) -> dict[str, float]:
    """What MLflow shows of corrections; nothing where there are none."""
    return {f"{METRICS}{name}": float(count) for name, count in used.items()} if used.get("version") else {}


def corrections_of(metrics: Mapping[str, float]) -> dict[str, int]:
    """The same, read from a run's metrics; empty where it used none."""
    used = {name: int(metrics.get(f"{METRICS}{name}", 0)) for name in ("version", *USES)}
    return used if used["version"] else {}


def words_of(used: Mapping[str, int]) -> str:
    """The same in a line; empty where there are none."""
    if not used.get("version"):
        return ""
    held = " and ".join(SPLIT_WORDS.values())
    return (
        f"readers' corrections up to version {used['version']}: {used['positives']} used as positives, "
        f"{used['negatives']} as hard negatives, {used['labels']} as malignancy labels; {used['disputed']} disputed, "
        f"{used['held_out']} kept of {held} scans"
    )


def _known(truth: ScanTruth) -> Tables:
    return Tables(nodules=truth.nodules, excluded=truth.excluded, unrated=truth.unrated)


def _corrected(truth: ScanTruth, change: Corrected) -> ScanTruth:
    """A training scan's truth, corrected; the tables' non-nodules at places that may be nodules now are dropped."""
    textures = (
        tuple("" if place is None else truth.textures[place] for place in change.from_tables) if truth.textures else ()
    )
    left_out = {(one.center_xyz, one.diameter_mm) for one in change.excluded}
    places = np.array([center for center, _ in change.new], dtype=np.float64).reshape(-1, 3)
    return replace(
        truth,
        nodules=change.nodules,
        negatives_xyz=None if truth.negatives_xyz is None else _away_from(truth.negatives_xyz, change.new),
        excluded=change.excluded,
        findings_xyz=np.concatenate([truth.findings_xyz, places]),
        unrated=tuple(one for one in truth.unrated if (one.center_xyz, one.diameter_mm) in left_out),
        textures=textures,
        unjudged=change.unjudged,
        rejected_xyz=change.rejected_xyz,
        disputed=tuple(one for one in change.excluded if one not in truth.excluded),
    )


def _away_from(points_xyz: npt.NDArray[np.float64], places: Sequence[tuple[Any, float]]) -> npt.NDArray[np.float64]:
    """Of some points (n, 3), mm, those that lie at none of some places of a diameter; the order stays."""
    away = np.ones(len(points_xyz), dtype=np.bool_)
    for center_xyz, diameter_mm in places:
        away &= np.linalg.norm(points_xyz - np.asarray(center_xyz), axis=1) >= max(diameter_mm / 2, SAME_PLACE_MM)
    return points_xyz[away]
