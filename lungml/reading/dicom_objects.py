"""What do all DICOM objects made from a reading share: the source they name, their identifiers, how they are written?

These objects alone carry what names a patient: an archive files them by it. Texts of their own are plain ASCII, so
that the source's character set, whatever it is, holds for them too.
"""

from __future__ import annotations

import hashlib
import io
import logging
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from lungml.errors import LunaError, one_line
from lungml.files import whole_file
from lungml.findings import Finding, findings_text
from lungml.geometry import irc_to_xyz
from lungml.reading.record import Opinion, Reading, luna_version

MAKER = "luna"
NOT_CLINICAL = "Not for clinical use"
EMPTY_IF_MISSING = (  # type 2: the standard wants them there, if only empty
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
DATES, TIMES = ("PatientBirthDate", "StudyDate"), ("StudyTime",)
SEXES = ("M", "F", "O")
ONE_OF = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "SOPClassUID")
LONG_STRING = 64  # characters of DICOM's LO
# Names that are made of the same words are the same identifier, here and elsewhere: it never changes.
IDENTIFIERS = uuid.UUID("5a1e6e0c-3b0f-4a5e-9a53-2f3c7c1d8b64")


class DicomObjectError(LunaError):
    """A segmentation or report that cannot be made of these headers; the message is one line.

    It costs these files only: the rest of a reading needs no headers.
    """

    def __init__(self, series_uid: str, problem: str) -> None:
        super().__init__(series_uid, problem)

    def __str__(self) -> str:
        return one_line(f"{self.args[0]}: {self.args[1]}")


def source_of(reading: Reading, headers: Sequence[Dataset]) -> list[Dataset]:
    """The headers of a reading's series, checked, and complete where the standard wants an empty value.

    A date, time or sex that is none becomes empty: it must not keep the findings from being filed. A slice that does
    not say how thick it is counts as thick as the next one is far.

    Args:
        reading: of the series.
        headers: one a slice, in its order, as `lungml.dicom.read_headers` gives them.

    Raises:
        DicomObjectError: they are of another scan, or contradict each other.
    """
    uid = reading.series_uid
    if len(headers) != reading.grid.shape_irc[0]:
        raise DicomObjectError(uid, f"{len(headers)} headers for {reading.grid.shape_irc[0]} slices; read it again")
    with refusing(uid, "the headers of its slices"):
        made = [_completed(header, reading.grid.spacing_xyz[2]) for header in headers]
        for keyword in ONE_OF:
            if len({str(header.get(keyword) or "") for header in made}) > 1:
                raise DicomObjectError(uid, f"its slices differ in {keyword}; export the series again")
        first = made[0]
        if str(first.get("SeriesInstanceUID")) != uid:
            raise DicomObjectError(uid, "the headers are of another series; read it again")
        if not _is_uid(first.get("StudyInstanceUID")):
            raise DicomObjectError(uid, "its slices have no StudyInstanceUID; export the series again")
        names = [str(header.get("SOPInstanceUID") or "") for header in made]
        if not all(map(_is_uid, names)) or len(set(names)) < len(names):
            raise DicomObjectError(uid, "two slices have one SOPInstanceUID, or one has none; export the series again")
        _check_places(reading, made)
    return made


def check_frame_of_reference(reading: Reading, source: Sequence[Dataset]) -> None:
    """Refuse slices whose coordinates belong to no named system: one that we made up would match no other object.

    Raises:
        DicomObjectError: they have no FrameOfReferenceUID.
    """
    if not _is_uid(source[0].get("FrameOfReferenceUID")):
        raise DicomObjectError(
            reading.series_uid,
            "its slices have no FrameOfReferenceUID, without which no mask has a place; export it again",
        )


@contextmanager
def refusing(series_uid: str, what: str) -> Iterator[None]:
    """Turn whatever pydicom and highdicom raise into one line, and keep what they say to themselves.

    Their warnings and errors quote values, names among them: only the kind of error is repeated.

    Raises:
        DicomObjectError: for every other error.
    """
    logging.getLogger("highdicom").setLevel("CRITICAL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DicomObjectError:
        raise
    except Exception as error:  # neither library promises a kind of error for headers that are odd
        kind = type(error).__name__
        raise DicomObjectError(series_uid, f"{what} cannot be made into DICOM ({kind}); export it again") from None


def derived_uid(*words: str) -> str:
    """A DICOM UID (2.25., PS3.5 B.2) that the words decide: reading a scan twice names what it gives alike."""
    return f"2.25.{uuid.uuid5(IDENTIFIERS, chr(0).join(words)).int}"


def object_uid(kind: str, reading: Reading, *content: str) -> str:
    """The UID of one object, or one series, of a reading's first opinion; equal for equal content."""
    digest = hashlib.sha256(chr(0).join(content).encode()).hexdigest()
    return derived_uid(kind, reading.series_uid, reading.opinions[0].bundle, luna_version(), digest)


def tracking_uid(reading: Reading, number: int, finding: Finding) -> str:
    """Of one finding, in every object that speaks of it."""
    place = " ".join(f"{mm:.4f}" for mm in finding.center_xyz)
    return object_uid("finding", reading, str(number), place)


def tracking_id(number: int) -> str:
    """What a person reads where the finding's segment or measurements are listed."""
    return f"finding {number}"


def content_of(reading: Reading) -> str:
    """All that was said of the scan by its first bundle, as text."""
    opinion = reading.opinions[0]
    limits = f"{opinion.nodule_threshold} {opinion.malignant_threshold} {opinion.left_out}"
    return limits + findings_text(reading.series_uid, opinion.findings)


def parameters_of(opinion: Opinion) -> dict[str, str]:
    """What an algorithm is told apart by from another run of the same program."""
    return {
        "bundle": ascii_text(opinion.bundle),
        "recipe": ascii_text(opinion.recipe),
        "trained on scans that are": ascii_text(opinion.origin),
        "nodule threshold": f"{opinion.nodule_threshold:.6g}",
        "malignancy threshold": f"{opinion.malignant_threshold:.6g}",
        "segmentation threshold": f"{opinion.grouping.threshold:.6g}",
        "note": NOT_CLINICAL,
    }


def ascii_text(text: str, most: int = 1024) -> str:
    """Text that every character set of DICOM holds, and that a backslash does not split."""
    return one_line(text).encode("ascii", "replace").decode().replace("\\", "/")[:most]


def finished(made: Dataset, reading: Reading, source: Sequence[Dataset]) -> None:
    """Date an object by its reading, not by the clock, and name the character set of its source."""
    moment = reading.made.astimezone(UTC)
    day, time = DA(moment.strftime("%Y%m%d")), TM(moment.strftime("%H%M%S"))
    made.InstanceCreationDate, made.InstanceCreationTime = day, time
    made.ContentDate, made.ContentTime = day, time
    for item in made.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S+0000")
    charset = source[0].get("SpecificCharacterSet")
    if charset:
        made.SpecificCharacterSet = charset


def write_object(path: Path, made: Dataset, reading: Reading) -> None:
    """Write a DICOM file, whole or not at all.

    Raises:
        DicomObjectError: it cannot be encoded.
        OSError: as `lungml.files.whole_file`.
    """
    content = io.BytesIO()
    with refusing(reading.series_uid, path.name):
        pydicom.dcmwrite(content, made, enforce_file_format=True)
    with whole_file(path) as handle:
        handle.write(content.getbuffer())


def _completed(header: Dataset, between_slices_mm: float) -> Dataset:
    made = deepcopy(header)
    if not made.get("SliceThickness"):
        made.SliceThickness = f"{between_slices_mm:.6g}"
    for keyword in EMPTY_IF_MISSING:
        if made.get(keyword) is None:
            setattr(made, keyword, "")
    for keyword in DATES:
        made[keyword].value = _day(made.get(keyword))
    for keyword in TIMES:
        try:
            TM(made.get(keyword))
        except (ValueError, TypeError, AttributeError):
            made[keyword].value = ""
    if made.PatientSex not in SEXES:
        made.PatientSex = ""
    if made.get("PatientIdentityRemoved") == "YES" and not (
        made.get("DeidentificationMethod") or made.get("DeidentificationMethodCodeSequence")
    ):
        made.DeidentificationMethod = "not said by the source"  # the standard wants one then
    return made


def _day(value: Any) -> str:
    """A date in DICOM's form; empty for what is none."""
    try:
        day = DA(value)
    except (ValueError, TypeError, AttributeError):
        return ""
    return day.strftime("%Y%m%d") if day else ""


def _check_places(reading: Reading, source: Sequence[Dataset]) -> None:
    """Every header is of the slice that its place says."""
    grid = reading.grid
    corners = irc_to_xyz([(index, 0, 0) for index in range(len(source))], grid)
    said = np.array([[float(mm) for mm in header.ImagePositionPatient] for header in source])
    sizes = {(int(header.Rows), int(header.Columns)) for header in source}
    far = np.linalg.norm(said - corners, axis=1).max() > grid.spacing_irc[0] / 2
    if far or sizes != {grid.shape_irc[1:]}:
        raise DicomObjectError(reading.series_uid, "the headers do not lie on the scan's grid; read it again")


def _is_uid(value: object) -> bool:
    return bool(value) and UID(str(value)).is_valid
