"""Which findings does this scan hold? One scan in, one `findings.csv` out, no server needed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.revive import run_again_later
from flows.watched import watched
from lungml.candidates import Grouping
from lungml.ct import DuplicateScanError, ScanError, read_scan, scan_name
from lungml.errors import FindingError, LunaError
from lungml.findings import Finding, ask, judge, write_findings
from lungml.home import Home
from tasks.bundles import load_bundle, with_grouping
from tasks.gpus import cuda_name, gpu_slots


def read_scans(
    paths: Sequence[Path],
    bundle_uri: str,
    out: Path,
    *,
    home: Home,
    grouping: str | None = None,
    device: str = "auto",
    on_scan: Callable[[str, tuple[Finding, ...] | None, str], None] | None = None,
    on_slice: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> int:
    """Write `OUT/<series_uid>/findings.csv` for every scan; a scan that cannot be read costs only itself.

    Args:
        paths: scans of any kind that `read_scan` takes.
        bundle_uri: `models:/luna/N` or an alias.
        out: folder of the results.
        home: where models live.
        grouping: a rule that replaces the bundle's own.
        device: auto, cpu or cuda.
        on_scan: called with (series_uid, findings or None, the file written or the reason it was not).
        on_slice: progress within a scan.
        on_warning: called with what a person should know of a scan that was read, one line each.

    Returns:
        how many scans could not be read, or have the series_uid of another one.

    Raises:
        NotADirectoryError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder: name another --out", str(out))
    bundle = load_bundle(home, bundle_uri, device)
    if grouping is not None:
        bundle = with_grouping(bundle, grouping)
    failed = 0
    read: dict[str, Path] = {}
    for path in paths:
        try:
            scan = read_scan(path)
            if scan.series_uid in read:
                raise DuplicateScanError(
                    path, f"the same series_uid as {read[scan.series_uid]}", "read it into another --out"
                )
            read[scan.series_uid] = path
            if on_warning:
                for warning in scan.warnings:
                    on_warning(f"{scan.series_uid}: {warning}")
            answers = ask(scan.hu, scan.grid, bundle, on_slice=on_slice)
            findings = judge(answers, scan.grid, bundle)
        except (ScanError, FindingError, OSError) as error:
            failed += 1
            if on_scan:
                on_scan(scan_name(path), None, str(error))
            continue
        left_out = answers.candidates.left_out
        if left_out and on_warning:
            on_warning(f"{scan.series_uid}: {left_out} further places are beyond the limit of candidates a scan")
        file = out / scan.series_uid / "findings.csv"
        write_findings(file, scan.series_uid, findings)
        if on_scan:
            on_scan(scan.series_uid, findings, str(file))
    return failed


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

    Raises:
        ReadingError: at the end, when a scan could not be read; the others' findings are written.
        TrainingError: the device is not there.
    """
    log = get_run_logger()
    rows: list[dict[str, str | int]] = []

    def on_scan(series_uid: str, findings: tuple[Finding, ...] | None, where: str) -> None:
        place = len(rows) + 1
        if findings is None:
            log.error("scan %d of %d was not read: %s", place, len(scans), where)
            rows.append({"scan": place, "series": "", "candidates": "not read", "nodules": "", "malignant": ""})
            return
        nodules = sum(finding.stage != "filtered" for finding in findings)
        malignant = sum(finding.stage == "malignant" for finding in findings)
        log.info("%s: %d candidates, %d nodules, %d malignant", series_uid, len(findings), nodules, malignant)
        rows.append(
            {
                "scan": place,
                "series": series_uid,
                "candidates": len(findings),
                "nodules": nodules,
                "malignant": malignant,
            }
        )

    with gpu_slots(device) as gpus:
        failed = read_scans(
            [Path(scan) for scan in scans],
            bundle,
            Path(out),
            home=Home.from_env(),
            grouping=grouping,
            device=cuda_name(gpus, device),
            on_scan=on_scan,
            on_warning=log.warning,
        )
    create_table_artifact(rows, key="read", description=f"Read with {bundle}. A model's opinion, not for clinical use.")
    if failed:
        raise ReadingError(
            f"{failed} of {len(scans)} scans were not read; the run's log says why, the others' findings are written"
        )
