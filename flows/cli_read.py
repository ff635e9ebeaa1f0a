"""The `luna read` command: scans in, findings and a page for a reader out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flows.terminal import err, out, print_note, start
from lungml.errors import one_line

if TYPE_CHECKING:
    from flows.read import ReadScan

BUNDLE_HELP = "models:/luna/N or models:/luna@alias"
COMPARE_HELP = "a second bundle: its findings stand beside the first's on the same page"
TRUTH_HELP = "folder with annotations.csv or annotations_with_malignancy.csv: hits, misses and false alarms are marked"
DEVICE_HELP = "auto, cpu or cuda"


def read(
    scans: Annotated[
        list[Path],  # one that cannot be read costs only itself: it is not the command line's to refuse
        typer.Argument(metavar="SCAN", readable=False, help=".mhd, .mha, .nii, .nii.gz, or DICOM folders or zips"),
    ],
    bundle: Annotated[str, typer.Option(help=BUNDLE_HELP)],
    out_dir: Annotated[Path, typer.Option("--out", readable=False, help="folder of the results, a folder a scan")],
    compare: Annotated[str | None, typer.Option(metavar="URI", help=COMPARE_HELP)] = None,
    truth: Annotated[Path | None, typer.Option(help=TRUTH_HELP)] = None,
    grouping: Annotated[str | None, typer.Option(help="report, union or best; else the bundle's own")] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Find the nodules of scans, and write what a reader needs to check and correct them.

    OUT/<series_uid>/ gets index.html (the page to open), findings.csv
    and .json with every candidate, submission.csv as LUNA16 takes it,
    markups.mrk.json for 3D Slicer, and for a DICOM series
    segmentation.dcm and report.dcm.
    """
    home = start(flows=False)
    from flows.read import ReadingError, read_scans
    from lungml.reading.deliver import prepare_folder

    try:
        prepare_folder(out_dir)
    except OSError as error:  # said here: elsewhere a disk that is mounted for reading is that of LUNA_HOME
        raise ReadingError(f"{out_dir}: {error.strerror}") from error
    delivered: list[bool] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,  # else it leaves an empty line in a file
    ) as progress:
        bar = progress.add_task("loading models", total=None)

        def on_start(place: int, _path: Path) -> None:
            progress.reset(bar, total=None, description=f"scan {place + 1} of {len(scans)}: reading")

        def on_slice(done: int, total: int) -> None:
            stage = "segmenting" if done < total else "judging"
            description = str(progress.tasks[0].description).partition(":")[0]
            progress.update(bar, completed=done, total=total, description=f"{description}: {stage}")

        def on_scan(one: ReadScan) -> None:
            progress.stop()  # else what is printed to stdout stands behind the bar
            show_scan(one)
            delivered.append(one.page is not None)
            progress.start()

        lacking = read_scans(
            scans,
            bundle,
            out_dir,
            home=home,
            compare=compare,
            truth=truth,
            grouping=grouping,
            device=device,
            on_start=on_start,
            on_slice=on_slice,
            on_scan=on_scan,
        )
    if any(delivered):
        out.print("A model's opinion, not for clinical use.")
    raise typer.Exit(1 if lacking else 0)


def show_scan(one: ReadScan) -> None:
    """Print what became of one scan."""
    for warning in one.warnings:
        print_note(one_line(f"{one.series_uid}: {warning}"))
    for problem in one.problems:
        _tell("[red]not written:[/]" if one.opinions else "[red]not read:[/]", problem)
    if one.page:
        # A name between colons is no emoji.
        out.print(one_line(f"{one.series_uid}: {one.summary} -> {one.page}"), soft_wrap=True, emoji=False)


def _tell(kind: str, text: str) -> None:
    err.print(f"{kind} {escape(one_line(text))}", soft_wrap=True, emoji=False)
