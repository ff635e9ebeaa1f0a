"""The `luna show` command: figures of one scan, for papers and bug reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from flows.terminal import MAX_SEED, out, print_note
from lungml.errors import FileError
from lungml.files import check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lungml.ct import Scan
    from lungml.geometry import Grid
    from lungml.scan_marks import Mark

AT_HELP = "x,y,z in mm (LPS), or the row of a finding in --findings; the whole scan when not given"
TABLES_HELP = "folder of LUNA16's annotation tables: marks the truth"
AUGMENTED_HELP = "pictures with all changes at once in augmentation.png"
RECIPE_HELP = "whose augmentation is shown: report, best or demo"


class OutError(FileError):
    """The folder for the figures cannot be written to."""


def show(
    scan_path: Annotated[
        Path, typer.Argument(metavar="SCAN", help=".mhd, .mha, .nii, .nii.gz, or a DICOM folder or zip")
    ],
    at: Annotated[str | None, typer.Option("--at", metavar="X,Y,Z", help=AT_HELP)] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="folder; else show/<series_uid> here")] = None,
    findings: Annotated[Path | None, typer.Option(help="findings.csv of `luna read`: marks what it found")] = None,
    tables: Annotated[Path | None, typer.Option(help=TABLES_HELP)] = None,
    size_mm: Annotated[float, typer.Option("--size-mm", min=5, max=1000, help="side of what --at shows")] = 60.0,
    window: Annotated[str, typer.Option(help="lung, mediastinum or bone")] = "lung",
    augmented: Annotated[int, typer.Option(min=0, max=30, help=AUGMENTED_HELP)] = 3,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of the augmentation")] = 0,
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP)] = "report",
    volume: Annotated[bool, typer.Option("--volume", help="also lungs and nodules in 3D")] = False,
) -> None:
    """Figures of a scan: three slices, what augmentation makes of a crop, and, when asked for, a 3D picture."""
    from lungml.augmentation_sheet import draw_augmented
    from lungml.ct import read_scan
    from lungml.print_page import Window
    from lungml.recipes import by_name
    from lungml.scan_figures import draw_slices
    from lungml.scan_marks import find_place, finding_marks, middle_xyz, parse_place, truth_marks

    if window not in get_args(Window):
        raise typer.BadParameter(f"--window {window!r} is none of {', '.join(get_args(Window))}")
    place = None if at is None else parse_place(at)
    settings = by_name(recipe).classification.augmentation
    scan = read_scan(scan_path)
    for line in scan.warnings:
        print_note(line)
    found = None if findings is None else finding_marks(findings, scan.series_uid)
    truth = () if tables is None else truth_marks(tables, scan)
    if tables is not None and not truth:
        print_note(f"{tables} names no nodule of this scan")
    center = None if place is None else find_place(place, found, scan.grid)
    folder = out_dir or Path("show") / scan.series_uid
    _check_folder(folder)
    marks = (*(found or ()), *truth)
    middle = middle_xyz(scan.grid)
    slices = draw_slices(
        scan,
        center or middle,
        size_mm=None if center is None else size_mm,
        marks=marks,
        window=window,  # type: ignore[arg-type]  # checked above
        subject=f"finding {place}" if isinstance(place, int) else "a point",
    )
    _write(folder / "slices.png", slices)
    cropped, which = (center, "") if center else _telling_place(marks, middle, scan.grid)
    if which:
        print_note(f"augmentation.png shows {which}: name another place with --at")
    sheet = draw_augmented(
        scan,
        cropped,
        settings,
        recipe=recipe,
        versions=augmented,
        seed=seed,
        window=window,  # type: ignore[arg-type]  # checked above
    )
    _write(folder / "augmentation.png", sheet)
    if volume:
        _show_volume(scan, marks, folder)
    out.print("Not for clinical use.")


def _show_volume(scan: Scan, marks: Sequence[Mark], folder: Path) -> None:
    from lungml.rendering import check_extra, render
    from lungml.volume_figure import draw_volume, scene_of

    check_extra()
    scene, note = scene_of(scan, marks)
    if note:
        print_note(note)
    _write(folder / "volume.png", draw_volume(scan, scene, render(scene), marks))


def _telling_place(
    marks: Sequence[Mark], middle: tuple[float, float, float], grid: Grid
) -> tuple[tuple[float, float, float], str]:
    """Where to look when no place is named, and which place that is, in words."""
    from lungml.scan_marks import PlaceError, find_place

    kept = [mark for mark in marks if mark.kind not in ("filtered", "truth", "truth_malignant")]
    truth = sorted((mark for mark in marks if mark.number is None), key=lambda mark: -mark.diameter_mm)
    for mark in (*kept, *truth):
        try:
            find_place(mark.center_xyz, None, grid)
        except PlaceError:
            continue
        return mark.center_xyz, f"finding {mark.number}" if mark.number else "the largest annotated nodule"
    return middle, "the middle of the scan"


def _check_folder(folder: Path) -> None:
    """See that figures can be written, before any is drawn."""
    try:
        check_writable(folder)
    except OSError as error:
        raise OutError(folder, f"cannot be written to ({error.strerror})", "name another folder with --out") from error


def _write(path: Path, figure: Figure) -> None:
    from lungml.print_page import write_figure

    write_figure(path, figure)
    out.print(str(path), soft_wrap=True)
