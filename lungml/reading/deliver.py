"""Which files does a reading leave, and what could not be written?"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from lungml.files import beside_path, check_writable, naming, write_text_atomic
from lungml.reading.dicom_objects import DicomObjectError
from lungml.reading.markups import markups_json
from lungml.reading.page import write_page
from lungml.reading.record import Reading, reading_csv, reading_json, submission_csv

FINDINGS_CSV, FINDINGS_JSON, SUBMISSION = "findings.csv", "findings.json", "submission.csv"
COMPARED_SUBMISSION = "submission-compared.csv"  # of the second bundle
PAGE, MARKUPS = "index.html", "markups.mrk.json"
SEGMENTATION, REPORT = "segmentation.dcm", "report.dcm"
CONTRAST = "a contrast agent was given: vessels are bright, and how well the models do on such scans was not measured"
LOSSY = "its slices were compressed with loss: their HU are not quite those that were measured"
OPTIONAL = (COMPARED_SUBMISSION, SEGMENTATION, REPORT)  # that not every reading leaves


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What lies in a scan's folder now.

    Attributes:
        files: that were written.
        problems: what was asked for and could not be, one line each.
    """

    files: tuple[Path, ...]
    problems: tuple[str, ...] = ()


def prepare_folder(out: Path) -> None:
    """See that results can be written to a folder, before hours of work; it need not be there yet.

    Raises:
        OSError: it is a file or a link to nowhere, or nothing can be written there.
    """
    try:
        if out.is_symlink() and not out.exists():
            raise FileNotFoundError(errno.ENOENT, "a link to nowhere", str(out))
        check_writable(out)
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror}: name another --out", str(out)) from error


def header_warnings(headers: Sequence[Dataset] | None) -> tuple[str, ...]:
    """What a person should know of a series by its headers, one line each; no value of a header is quoted."""
    found = []
    if any(header.get("ContrastBolusAgent") for header in headers or ()):
        found.append(CONTRAST)
    if any(header.get("LossyImageCompression") == "01" for header in headers or ()):
        found.append(LOSSY)
    return tuple(found)


def deliver(folder: Path, reading: Reading, headers: Sequence[Dataset] | None) -> Delivered:
    """Write everything that a reading leaves; each file appears whole or not at all.

    They are written in a hidden folder beside and moved together once all of them are there: a disk that fills up
    leaves the folder as it was. Of an earlier reading in it nothing stays that does not belong to this one.

    Args:
        folder: of the scan.
        reading: the scan and what was said of it; of two bundles that are compared, the DICOM objects hold the first's.
        headers: of the DICOM series that was read: SEG and SR name its patient and study, no other file does. Without
            them there are no such objects.

    Raises:
        OSError: a file cannot be written; it names the one, and none is new.
    """
    with _together(folder) as beside:
        names, problems = _write_all(beside, reading, headers)
    for name in OPTIONAL:
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    return Delivered(files=tuple(folder / name for name in names), problems=tuple(problems))


@contextmanager
def _together(folder: Path) -> Iterator[Path]:
    """A hidden folder beside another, whose files are moved there at the end, all of them or none.

    Raises:
        OSError: it names the file that the folder would have held.
    """
    beside = beside_path(folder)
    try:
        with naming(folder):
            beside.mkdir(parents=True)
        try:
            yield beside
        except OSError as error:
            if error.errno is None or error.filename is None:
                raise
            raise OSError(error.errno, error.strerror, str(folder / Path(error.filename).name)) from error
        files = sorted(beside.iterdir())
        with naming(folder):
            folder.mkdir(exist_ok=True)
        _refuse_folders(folder, {*OPTIONAL, *(file.name for file in files)})
        with naming(folder):
            for file in files:
                file.replace(folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _refuse_folders(folder: Path, names: Collection[str]) -> None:
    """See that no folder stands where a file belongs, before the first file is moved: else some would be new.

    Raises:
        IsADirectoryError: it names the file.
    """
    for name in sorted(names):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise IsADirectoryError(errno.EISDIR, "a folder stands where this file belongs", str(folder / name))


def _write_all(folder: Path, reading: Reading, headers: Sequence[Dataset] | None) -> tuple[list[str], list[str]]:
    """The files of a reading: which were written, and why one was not."""
    texts = {
        FINDINGS_CSV: reading_csv(reading),
        FINDINGS_JSON: reading_json(reading),
        MARKUPS: markups_json(reading),
    }
    for name, opinion in zip((SUBMISSION, COMPARED_SUBMISSION), reading.opinions):
        texts[name] = submission_csv(reading.series_uid, opinion.findings)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    write_page(folder / PAGE, reading)
    written, problems = [*texts, PAGE], list[str]()
    if headers is not None:
        objects, problems = _write_objects(folder, reading, headers)
        written += objects
    return written, problems


def _write_objects(folder: Path, reading: Reading, headers: Sequence[Dataset]) -> tuple[list[str], list[str]]:
    """SEG and SR: which were written, and why one was not; a report needs no segmentation."""
    # Here: highdicom is slow to load, and most scans are no DICOM series.
    from lungml.reading.dicom_seg import write_segmentation
    from lungml.reading.dicom_sr import write_report

    written, problems = [], []
    segmentation = None
    try:
        segmentation = write_segmentation(folder / SEGMENTATION, reading, headers)
        written += [] if segmentation is None else [SEGMENTATION]
    except DicomObjectError as error:
        problems.append(f"{SEGMENTATION}: {error}")
    try:
        write_report(folder / REPORT, reading, headers, segmentation)
        written.append(REPORT)
    except DicomObjectError as error:
        problems.append(f"{REPORT}: {error}")
    return written, problems
