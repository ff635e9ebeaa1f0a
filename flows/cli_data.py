"""The `luna data` commands: make, fetch, prepare and verify scans, and sweep what nothing needs any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows.terminal import MAX_SEED, err, out, print_note, start

if TYPE_CHECKING:
    from lungml.masks import MaskRule

app = typer.Typer(no_args_is_help=True, help="Make, fetch, prepare and verify scans; sweep what is left over.")

# Where The Cancer Imaging Archive is said to keep them; no checksum is published.
LIDC_XML_URL = "https://www.cancerimagingarchive.net/wp-content/uploads/LIDC-XML-only.zip"
LIDC_HELP = "LIDC-IDRI's XML files, a folder or a zip"
MORE_HELP = "LIDC-IDRI's DICOM series, to train on those outside LUNA16"
MASKS_HELP = "report, bounded or consensus (needs LIDC's XML); else the recipe's"
TABLES_HELP = "folder of the csv tables, when they lie elsewhere"


@app.command()
def phantom(
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    scans: Annotated[int, typer.Option(min=1, help="how many")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="decides every voxel")] = 0,
    size: Annotated[str, typer.Option(help="rows x cols x slices")] = "512x512x130",
    nodules: Annotated[str, typer.Option(help="fewest and most of a scan")] = "0-4",
    malignant: Annotated[float, typer.Option(min=0, max=1, show_default="1/3", help="share of the nodules")] = 1 / 3,
    noise: Annotated[str, typer.Option(help="least and most standard deviation, HU")] = "12-32",
    slice_mm: Annotated[str, typer.Option(help="least and most slice spacing, mm")] = "1-2.5",
    pixel_mm: Annotated[str, typer.Option(help="least and most pixel spacing, mm")] = "0.6-0.9",
    workers: Annotated[int | None, typer.Option(min=1, help="processes; one per core when not given")] = None,
) -> None:
    """Write synthetic scans as a LUNA16 tree."""
    from lungml.phantom import PhantomSettings, write_phantoms

    rows, cols, slices = _parse_size(size)
    fewest, most = _parse_range(nodules, "--nodules")
    settings = PhantomSettings(
        size_irc=(slices, rows, cols),
        nodules=(int(fewest), int(most)),
        malignant_share=malignant,
        noise_hu=_parse_range(noise, "--noise"),
        slice_mm=_parse_range(slice_mm, "--slice-mm"),
        pixel_mm=_parse_range(pixel_mm, "--pixel-mm"),
    )
    with _bar("drawing", scans) as bar:
        write_phantoms(
            out_dir, scans=scans, seed=seed, settings=settings, workers=workers, progress=lambda done, _: bar(done)
        )
    out.print(f"{scans} synthetic scans in {out_dir}", soft_wrap=True)


@app.command()
def prepare(
    luna_dir: Annotated[Path, typer.Option(help="folder that holds **/<series_uid>.mhd, or will after --download")],
    tables: Annotated[Path | None, typer.Option(help=TABLES_HELP)] = None,
    recipe: Annotated[str, typer.Option(help="best, report or demo: decides masks and crops")] = "best",
    val_stride: Annotated[int, typer.Option(help="every n-th series validates, the one after it tests")] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of the choice of negatives")] = 0,
    download: Annotated[bool, typer.Option("--download", help="first fetch what of LUNA16 is missing")] = False,
    subsets: Annotated[str | None, typer.Option(help="of LUNA16 to fetch, such as 0,3 or 0-4; else all ten")] = None,
    drop_archives: Annotated[
        bool, typer.Option("--no-keep-archives", help="drop an archive once it is unpacked and proved")
    ] = False,
    zenodo_url: Annotated[
        str, typer.Option(show_default="zenodo.org", help="where LUNA16's records are published")
    ] = "https://zenodo.org",
    lidc_url: Annotated[
        str,
        typer.Option(
            show_default="TCIA's",
            help="of LIDC-IDRI's XML files as a zip: fetched where the malignancy table is not there yet",
        ),
    ] = LIDC_XML_URL,
    lidc: Annotated[Path | None, typer.Option(help=LIDC_HELP)] = None,
    more: Annotated[Path | None, typer.Option(help=MORE_HELP)] = None,
    masks: Annotated[str | None, typer.Option(help=MASKS_HELP)] = None,
    recheck: Annotated[bool, typer.Option("--recheck", help="read scans that were set aside once more")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="do again what is finished, as when in doubt")] = False,
    corrections: Annotated[
        int | None, typer.Option(metavar="VERSION", min=0, help="readers' corrections up to this version; 0 for none")
    ] = None,
) -> None:
    """Fetch (if asked), convert, mask and crop every scan of a LUNA16 tree, whatever of it is not done yet."""
    from lungml.download import DownloadSettings
    from lungml.lidc_report import RATED_CSV
    from lungml.luna_archives import parse_subsets

    settings = None
    if download:
        rated = lidc or ((tables or luna_dir) / RATED_CSV).exists()
        settings = DownloadSettings(
            zenodo_url=zenodo_url, lidc_xml_url=None if rated else lidc_url or None, keep_archives=not drop_archives
        )
    if subsets is not None:
        parse_subsets(subsets)  # what a person can get wrong is said before anything starts
    rule = mask_rule(masks)
    home = start()
    from flows.prepare import prepare as prepare_flow
    from flows.settings import tell_the_story
    from flows.temporary_server import ready_server

    tell_the_story()
    ready_server()
    prepared = prepare_flow(
        str(luna_dir.absolute()),
        str(tables.absolute()) if tables else None,
        recipe,
        val_stride,
        seed,
        recheck=recheck,
        download=settings,
        subsets=subsets,
        lidc=str(lidc.absolute()) if lidc else None,
        more=str(more.absolute()) if more else None,
        masks=rule,
        refresh=refresh,
        corrections=corrections,
    )
    out.print(
        f"{len(prepared.scans)} scans ready under {home.scans}, {len(prepared.set_aside)} set aside", soft_wrap=True
    )
    if prepared.set_aside:
        out.print(f"reasons: {home.quarantine_csv}", soft_wrap=True)


@app.command()
def lidc(
    source: Annotated[Path, typer.Argument(metavar="XML", help="LIDC-IDRI's XML files: a folder or a zip")],
    nodules_csv: Annotated[Path, typer.Option("--out", help="the table to write: a row a nodule of 3 mm or more")],
    luna_dir: Annotated[
        Path | None, typer.Option(help="LUNA16's headers and tables: annotations_with_malignancy.csv is written too")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help=TABLES_HELP)] = None,
) -> None:
    """Every radiologist's contours and ratings as one row a nodule; with --luna-dir, as LUNA16's malignancy table."""
    from lungml.lidc_report import convert_lidc

    for line in convert_lidc(source, nodules_csv, luna_dir, tables_dir=tables).lines:
        out.print(line, soft_wrap=True)


@app.command()
def verify(
    luna_dir: Annotated[Path, typer.Option(help="folder that holds the scans' sources")],
    more: Annotated[Path | None, typer.Option(help="folder of LIDC-IDRI's DICOM series, as given to prepare")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="delete what is wrong: the next prepare makes it anew")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="scans read at once")] = 2,
) -> None:
    """Read every store again, to the last byte, against its source and its checksums."""
    from lungml.ct import find_dicom_series, find_scans
    from lungml.verify import verify_stores

    home = start(flows=False)
    sources = {**find_scans(luna_dir), **(find_dicom_series(more) if more else {})}
    with _bar("verifying", None) as bar:
        report = verify_stores(home, sources, repair=repair, workers=workers, progress=bar)
    for location, difference in [*report.wrong, *report.unread]:
        deleted = "; deleted" if location in report.deleted else ""
        err.print(f"{location}: {difference}{deleted}", style="red", markup=False, soft_wrap=True)
    counts = [
        f"{report.scans} scans equal to their sources",
        f"{report.masks} masks and {report.crops} scans' crops whole",
        f"{len(report.wrong)} wrong",
    ]
    if report.unread:
        counts.append(f"{len(report.unread)} whose source cannot be read")
    if report.without_source:
        counts.append(f"{report.without_source} whole, but without a source there to compare")
    out.print(", ".join(counts), soft_wrap=True)
    if report.wrong and not repair:
        out.print("delete them with --repair; the next `luna data prepare` makes them anew")
    raise typer.Exit(1 if report.wrong or report.unread else 0)


@app.command()
def sweep(
    days: Annotated[int, typer.Option(min=1, help="what was written or used in so many days stays")] = 14,
    keep: Annotated[int, typer.Option(min=0, help="so many of the latest bundles keep their answers")] = 5,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without this it is only listed")] = False,
) -> None:
    """List what runs left under LUNA_HOME and nothing needs any more, with its size; remove it with --yes.

    What nothing has used for --days: crops; the answers and findings of
    bundles that have no alias (champion, previous, demo or another) and are
    not among the latest --keep; the state of trainings that nobody went on
    with; and what killed processes left half-written. What a run wants of it
    again, it makes again, the same.

    Never: scans and their stores, tables, the split, the quarantine,
    corrections, models and all else of MLflow's, reports, the files of
    Prefect and logs, what lies behind a link, and whatever luna did not name.
    While a run works on the home nothing is removed.
    """
    home = start(flows=False)
    from flows.show_sweep import sweep_table, swept_lines
    from tasks.sweeping import sweep_home
    from tasks.unneeded import SweepRules, survey

    rules = SweepRules(days=days, keep=keep)
    swept = sweep_home(home, rules) if yes else None
    found = swept.survey if swept else survey(home, rules)
    for note in found.notes:
        print_note(note)
    if not found.entries:
        out.print("everything here is needed")
        return
    out.print(sweep_table(found))
    lines = swept_lines(swept) if swept else ["nothing was removed; luna data sweep --yes does it"]
    for line in lines:
        out.print(line, soft_wrap=True)


def mask_rule(name: str | None) -> MaskRule | None:
    """The rule of that name, None for none; another name is the person's to correct."""
    if name is None:
        return None
    from lungml.masks import MaskRule  # here: it takes PyTorch along, and other commands need to start fast

    if name not in get_args(MaskRule):
        raise typer.BadParameter(f"--masks {name!r} is none of {', '.join(get_args(MaskRule))}")
    return cast("MaskRule", name)


@contextmanager
def _bar(doing: str, total: int | None) -> Iterator[Callable[..., None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(doing, total=total)

        def show(done: int, of: int | None = None) -> None:
            progress.update(task, completed=done, total=of or total)

        yield show


def _parse_range(text: str, option: str) -> tuple[float, float]:
    try:
        least, most = (float(part) for part in text.split("-"))
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not LEAST-MOST, such as 1-2.5") from None
    return least, most


def _parse_size(size: str) -> tuple[int, int, int]:
    try:
        rows, cols, slices = (int(part) for part in size.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"{size!r} is not ROWSxCOLSxSLICES, such as 512x512x130") from None
    return rows, cols, slices
