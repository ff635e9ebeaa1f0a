"""Which findings do these scans hold? Scans in, a folder for each out, no server needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.revive import run_again_later
from flows.watched import watched
from lungml.candidates import Grouping
from lungml.ct import DuplicateScanError, ScanError, read_scan_and_headers, scan_name
from lungml.errors import FindingError, LunaError, one_line
from lungml.files import sweep
from lungml.home import Home
from lungml.reading.deliver import PAGE, deliver, header_warnings, prepare_folder
from lungml.reading.known import Known, read_known
from lungml.reading.record import KnownTruth, Opinion, Reading, found_nodules
from tasks.gpus import cuda_name, gpu_slots
from tasks.promotion import resolve
from tasks.reading import Reader, open_reader

TOO_LARGE = "there is not enough memory for a scan of its size; read it where there is more"
NOTHING_NEW = "nothing of this scan is new there, mend that or name another --out"
NAMED_TWICE = "named more than once: it is read once"


@dataclass(frozen=True, kw_only=True)
class ReadScan:
    """What became of one scan that was to be read.

    Attributes:
        path: as it was given.
        series_uid: of the scan; what its path suggests where it could not be read.
        folder: that holds the results; None where there are none, since it could not be read, its results could not be
            written, or it was named before.
        opinions: of the bundle, or of both.
        known: nodules of the truth and how many of them each bundle found; None where no truth is known.
        problems: why it was not read, or what of its results could not be written.
        warnings: what a person should know of it.
    """

    path: Path
    series_uid: str
    folder: Path | None = None
    opinions: tuple[Opinion, ...] = ()
    known: tuple[int, tuple[int, ...]] | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def page(self) -> Path | None:
        """The page to open."""
        return self.folder and self.folder / PAGE

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        parts = [_counts(opinion) for opinion in self.opinions]
        if self.known:
            nodules, found = self.known
            parts = [f"{part}, {hits} of {nodules} known nodules found" for part, hits in zip(parts, found)]
        if len(parts) == 1:
            return parts[0]
        return "; ".join(f"{opinion.bundle}: {part}" for opinion, part in zip(self.opinions, parts))


def _counts(opinion: Opinion) -> str:
    kept = sum(finding.stage != "filtered" for finding in opinion.findings)
    malignant = sum(finding.stage == "malignant" for finding in opinion.findings)
    return f"{len(opinion.findings)} candidates, {kept} taken for nodules, {malignant} of them for malignant"


def read_scans(
    paths: Sequence[Path],
    bundle_uri: str,
    out: Path,
    *,
    home: Home,
    compare: str | None = None,
    truth: Path | None = None,
    grouping: str | None = None,
    device: str = "auto",
    on_start: Callable[[int, Path], None] | None = None,
    on_slice: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ReadScan], None] | None = None,
) -> int:
    """Read every scan and write `OUT/<series_uid>/`; a scan that cannot be read costs only itself.

    A scan that is named twice is read once. Of two scans with one series_uid the second is not read, unless nothing
    was written for the first.

    Args:
        paths: scans of any kind that `read_scan` takes.
        bundle_uri: `models:/luna/N` or an alias.
        out: folder of the results, see `lungml.reading.deliver`.
        home: where models live.
        compare: a second bundle, whose findings stand beside the first's.
        truth: folder of tables that know the nodules, see `lungml.reading.known`.
        grouping: a rule that replaces the bundles' own.
        device: auto, cpu or cuda.
        on_start: called with (the scan's place in the list, its path).
        on_slice: progress within a scan.
        on_scan: called with what became of each scan.

    Returns:
        how many scans lack something that was asked for.

    Raises:
        OSError: nothing can be written to `out`.
        LunaError: the bundle, the rule or the truth is not there, or both bundles are one.
    """
    prepare_folder(out)
    sweep(out)
    known = read_known(truth) if truth else None
    if compare is not None:
        _check_differing(home, bundle_uri, compare)
    readers = [
        open_reader(home, uri, device=device, grouping=grouping) for uri in (bundle_uri, compare) if uri is not None
    ]
    lacking = 0
    written: dict[str, Path] = {}
    named: set[str] = set()
    for place, path in enumerate(paths):
        if on_start:
            on_start(place, path)
        real = os.path.realpath(path)
        if real in named:
            result = ReadScan(path=path, series_uid=scan_name(path), warnings=(NAMED_TWICE,))
        else:
            result = _read_one(path, readers, out, known, written, on_slice)
        named.add(real)
        lacking += bool(result.problems)
        if on_scan:
            on_scan(result)
    return lacking


def _check_differing(home: Home, bundle_uri: str, compare: str) -> None:
    """Refuse to compare a bundle with itself, before either is loaded."""
    first, second = resolve(home, bundle_uri), resolve(home, compare)
    if first == second:
        names = first if bundle_uri == compare else f"{bundle_uri} and {compare} are both {first}"
        raise ReadingError(f"{names}: a bundle differs in nothing from itself; compare it with another, or with none")


def _read_one(
    path: Path,
    readers: Sequence[Reader],
    out: Path,
    known: Known | None,
    written: dict[str, Path],
    on_slice: Callable[[int, int], None] | None,
) -> ReadScan:
    """One scan, whatever may be wrong with it; `written` learns its series_uid."""
    try:
        scan, headers = read_scan_and_headers(path)
        folder = out / scan.series_uid
        if scan.series_uid in written:
            raise DuplicateScanError(
                path, f"the same series_uid as {written[scan.series_uid]}", "read it into another --out"
            )
        prepare_folder(folder)  # before the models are asked, which takes minutes
        truth = known.of(scan.series_uid) if known else None
        opinions = tuple(reader.read(scan, on_slice) for reader in readers)
    except (ScanError, FindingError, OSError) as error:
        return ReadScan(path=path, series_uid=scan_name(path), problems=(_words(error),))
    except (MemoryError, torch.OutOfMemoryError):
        return ReadScan(path=path, series_uid=scan_name(path), problems=(one_line(f"{path}: {TOO_LARGE}"),))
    warnings = (*scan.warnings, *header_warnings(headers), *_limits(opinions))
    if known and truth is None:
        warnings = (*warnings, "no table of the truth names this scan: nothing is marked as a hit or a miss")
    result = ReadScan(
        path=path,
        series_uid=scan.series_uid,
        opinions=opinions,
        known=None if truth is None else (len(truth.nodules), _hits(opinions, truth)),
        warnings=warnings,
    )
    reading = Reading(
        series_uid=scan.series_uid,
        hu=scan.hu,
        grid=scan.grid,
        opinions=opinions,
        made=datetime.now(UTC),
        warnings=warnings,
        truth=truth,
    )
    try:
        delivered = deliver(folder, reading, headers)
    except OSError as error:
        return replace(result, problems=(f"{_words(error)}; {NOTHING_NEW}",))
    written[scan.series_uid] = path
    return replace(result, folder=folder, problems=delivered.problems)


def _hits(opinions: Sequence[Opinion], truth: KnownTruth) -> tuple[int, ...]:
    return tuple(len(found_nodules(opinion.findings, truth)) for opinion in opinions)


def _words(error: Exception) -> str:
    """What is wrong, in one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}")
    return one_line(str(error))


def _limits(opinions: Sequence[Opinion]) -> tuple[str, ...]:
    return tuple(
        f"{opinion.left_out} further places are beyond the limit of candidates a scan"
        for opinion in opinions
        if opinion.left_out
    )


def _lacks(one: ReadScan) -> str:
    """What did not become of a scan, in a word or two."""
    if one.folder:
        return "lacks a part"
    if not one.problems:
        return "was named before"
    return "was not written" if one.opinions else "was not read"


class ReadingError(LunaError):
    """Scans could not be read; the message is one line."""


@flow(name="luna", flow_run_name="read {bundle}", on_failure=[run_again_later])
@watched
def read_in_background(
    scans: list[str],
    out: str,
    bundle: str = "models:/luna@champion",
    grouping: Grouping | None = None,
    device: str = "auto",
    compare: str | None = None,
    truth: str | None = None,
) -> None:
    """Find the nodules of scans as `read_scans` does, where nobody waits for it; a GPU is held from first to last.

    The table that it leaves shows no path, and a scan that could not be read by its place in the list: a patient's
    name may be in its path. The run's parameters and its log hold the paths as they were given.

    Args:
        scans: a path each: .mhd, .mha, .nii, .nii.gz, a DICOM folder or zip.
        out: folder of the results, a folder for each scan in it.
        bundle: models:/luna/N or models:/luna@alias.
        grouping: report, union or best; the bundle's own when not given.
        device: auto, cpu or cuda.
        compare: a second bundle, whose findings stand beside the first's on the same page.
        truth: folder of tables that know the scans' nodules, to mark hits, misses and false positives.

    Raises:
        ReadingError: at the end, when a scan lacks something that was asked for; the others' results are written.
        TrainingError: the device is not there.
    """
    log = get_run_logger()
    rows: list[dict[str, str | int]] = []

    def on_scan(one: ReadScan) -> None:
        place = len(rows) + 1
        for warning in one.warnings:
            log.warning("%s: %s", one.series_uid, warning)
        for problem in one.problems:
            log.error("scan %d of %d %s: %s", place, len(scans), _lacks(one), problem)
        if not one.folder:
            what = _lacks(one).removeprefix("was ")
            rows.append({"scan": place, "series": "", "candidates": what, "nodules": "", "malignant": ""})
            return
        log.info("%s: %s", one.series_uid, one.summary)
        for opinion in one.opinions:
            stages = [finding.stage for finding in opinion.findings]
            rows.append(
                {
                    "scan": place,
                    "series": one.series_uid,
                    "candidates": len(stages),
                    "nodules": len(stages) - stages.count("filtered"),
                    "malignant": stages.count("malignant"),
                    **({"bundle": opinion.bundle} if compare else {}),
                }
            )

    with gpu_slots(device) as gpus:
        lacking = read_scans(
            [Path(scan) for scan in scans],
            bundle,
            Path(out),
            home=Home.from_env(),
            compare=compare,
            truth=Path(truth) if truth else None,
            grouping=grouping,
            device=cuda_name(gpus, device),
            on_scan=on_scan,
        )
    create_table_artifact(rows, key="read", description=f"Read with {bundle}. A model's opinion, not for clinical use.")
    if lacking:
        raise ReadingError(
            f"{lacking} of {len(scans)} scans were not read, or not wholly; the run's log says why, the rest is written"
        )
