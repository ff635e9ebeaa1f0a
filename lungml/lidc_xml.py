"""What does one LIDC-IDRI file say: who outlined what, where, and how was it rated?

The format: https://wiki.cancerimagingarchive.net, LIDC-IDRI, "LIDC-XML-documentation"; Armato et al. 2011, Med. Phys.
38:915. Up to four radiologists read each scan, each in a `readingSession` of his own; nodules carry a number that
means nothing beyond its session. Pixels are those of the DICOM slices: xCoord is a column, yCoord a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from lungml.errors import FileError

NAMESPACE = "http://www.nih.gov"  # LidcReadMessage.xsd; a file that lost its namespace is read too
ROOT = "LidcReadMessage"
CHEST_XRAY_ROOT = "IdriReadMessage"  # the readings of the X-rays that came with some scans
MAX_XML_BYTES = 8 << 20  # the largest of 317 real files has 1.2 MB; this keeps a hostile one's tree below 1 GB
MAX_PIXEL = 4096  # the largest CT matrix there is has 2048 rows; a bound keeps a hostile contour's area small


class LidcError(FileError):
    """An LIDC file, or what it says of a scan, cannot be used; one line: file, what is wrong, what to do."""

    def __init__(self, path: Path | str, problem: str, advice: str = "download it again, or delete it") -> None:
        super().__init__(path, problem, advice)


class OtherKind(LidcError):
    """A sound file that is no reading of one CT series; its second argument says what it is."""


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed line on one slice.

    Attributes:
        z_mm: LPS z of the slice's first pixel, as in DICOM's ImagePositionPatient.
        inclusion: False around a hole.
        points: (N, 2) int32 (row, col), in the file's order. They run along the outer border: a pixel on the line
            is not part of the nodule, what lies inside is.
        sop_uid: of the DICOM slice.
    """

    z_mm: float
    inclusion: bool
    points: npt.NDArray[np.int32]
    sop_uid: str


@dataclass(frozen=True, kw_only=True)
class Characteristics:
    """How one radiologist rated one nodule; None where the file holds no value of the scale.

    1..5, but internalStructure 1..4 and calcification 1..6. Malignancy: 1 highly unlikely .. 3 indeterminate .. 5
    highly suspicious.
    """

    subtlety: int | None = None
    internal_structure: int | None = None
    calcification: int | None = None
    sphericity: int | None = None
    margin: int | None = None
    lobulation: int | None = None
    spiculation: int | None = None
    texture: int | None = None
    malignancy: int | None = None


SCALES = {"internal_structure": 4, "calcification": 6}  # highest value; 5 elsewhere
TAGS = {field.name: field.name for field in fields(Characteristics)} | {"internal_structure": "internalStructure"}


@dataclass(frozen=True, eq=False)
class Reading:
    """One radiologist's outline of one nodule >= 3 mm.

    Attributes:
        reader: the session's place in the file, from 0; nothing ties it to the same place in another file.
        nodule_id: the reader's own name for it.
    """

    reader: int
    nodule_id: str
    characteristics: Characteristics
    contours: tuple[Contour, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place that one radiologist marked without outlining it: a nodule < 3 mm, or no nodule at all."""

    reader: int
    z_mm: float
    row: int
    col: int


@dataclass(frozen=True, eq=False)
class LidcScan:
    """Everything one file says of one CT series.

    Attributes:
        source: the file's name, in its folder or zip.
        read_at: the header's date and time of service, as it stands there; sorts by time.
        readers: reading sessions, also those that found nothing.
        readings: nodules >= 3 mm, by reader, in the file's order.
        small_nodules: nodules < 3 mm, which nobody rates or outlines: their centres.
        non_nodules: lesions >= 3 mm that the reader does not take for a nodule: their centres.
    """

    series_uid: str
    source: str
    read_at: str
    readers: int
    readings: tuple[Reading, ...]
    small_nodules: tuple[Point, ...]
    non_nodules: tuple[Point, ...]


def parse_lidc(content: bytes, source: str) -> LidcScan:
    """Read one LIDC file.

    A nodule counts as >= 3 mm when at least one of its contours has more than one point: smaller ones are marked by
    one. Document types are refused, so neither entities nor foreign files are ever expanded.

    Raises:
        OtherKind: a well-formed file of another kind, or one that names no series or several.
        LidcError: too large, not well-formed, a document type, or a mark without a place.
    """
    root = _tree(content, source)
    if root.tag.rpartition("}")[2] == CHEST_XRAY_ROOT:
        raise OtherKind(source, f"a reading of a chest X-ray ({CHEST_XRAY_ROOT})")
    if root.tag != ROOT:
        raise OtherKind(source, f"no {ROOT} of {NAMESPACE}")
    sessions = root.findall("readingSession")
    readings: list[Reading] = []
    small: list[Point] = []
    non_nodules: list[Point] = []
    for reader, session in enumerate(sessions):
        for nodule in session.iterfind("unblindedReadNodule"):
            reading = _reading(nodule, reader, source)
            if any(len(contour.points) > 1 for contour in reading.contours):
                readings.append(reading)
            else:
                first = reading.contours[0]
                row, col = first.points[0].tolist()
                small.append(Point(reader=reader, z_mm=first.z_mm, row=row, col=col))
        for mark in session.iterfind("nonNodule"):
            row, col = _points(mark, "locus", source)[0].tolist()
            non_nodules.append(Point(reader=reader, z_mm=_z_mm(mark, source), row=row, col=col))
    header = root.find("ResponseHeader")
    return LidcScan(
        series_uid=_series_uid(root, source),
        source=source,
        read_at=" ".join(_text(header, tag) for tag in ("DateService", "TimeService")).strip(),
        readers=len(sessions),
        readings=tuple(readings),
        small_nodules=tuple(small),
        non_nodules=tuple(non_nodules),
    )


def _tree(content: bytes, source: str) -> Element:
    """The file's elements. Expat is asked directly: ElementTree's own parser hides where a document type starts."""
    if len(content) > MAX_XML_BYTES:
        raise LidcError(source, f"larger than the {MAX_XML_BYTES} bytes that an LIDC file may have", "delete it")

    def refuse(*_: object) -> None:
        raise LidcError(source, "it declares a document type, which no LIDC file does", "do not trust it, delete it")

    builder = TreeBuilder()

    def start(tag: str, attributes: dict[str, str]) -> None:
        # What belongs to another namespace keeps it in its name, and so is never found.
        builder.start(tag.removeprefix(NAMESPACE + "}"), attributes)

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except LidcError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: an encoding nobody knows
        raise LidcError(source, f"not well-formed XML ({error})") from error
    return builder.close()


def _series_uid(root: Element, source: str) -> str:
    header = root.find("ResponseHeader")
    uids = sorted(
        {_text(e, ".") for e in ([] if header is None else header) if e.tag.lower().endswith("seriesinstanceuid")}
    )
    uids = [uid for uid in uids if uid]
    if len(uids) != 1:
        raise OtherKind(source, "it names several series" if uids else "it names no series")
    if not re.fullmatch(r"[\w.\-]{1,128}", uids[0]) or set(uids[0]) == {"."}:
        raise LidcError(source, f"{uids[0][:80]!r} is no series_uid")
    return uids[0]


def _reading(nodule: Element, reader: int, source: str) -> Reading:
    contours = tuple(_contours(nodule, source))
    if not contours:
        raise LidcError(source, "a nodule without a place (no roi)")
    rated = nodule.find("characteristics")
    values = {} if rated is None else {name: _rating(_text(rated, TAGS[name]), name) for name in TAGS}
    return Reading(
        reader=reader,
        nodule_id=_text(nodule, "noduleID"),
        characteristics=Characteristics(**values),
        contours=contours,
    )


def _rating(text: str, name: str) -> int | None:
    """A value outside its scale is no rating: the reading keeps its contours and its other ratings."""
    return int(text) if re.fullmatch("[1-9]", text) and int(text) <= SCALES.get(name, 5) else None


def _contours(nodule: Element, source: str) -> Iterator[Contour]:
    for roi in nodule.iterfind("roi"):
        inclusion = _text(roi, "inclusion").upper()
        if inclusion not in ("TRUE", "FALSE"):
            raise LidcError(source, f"inclusion is {inclusion[:20]!r}, neither TRUE nor FALSE")
        yield Contour(
            z_mm=_z_mm(roi, source),
            inclusion=inclusion == "TRUE",
            points=_points(roi, "edgeMap", source),
            sop_uid=_text(roi, "imageSOP_UID"),
        )


def _points(parent: Element, tag: str, source: str) -> npt.NDArray[np.int32]:
    """(N, 2) int32 (row, col) of the pixels under an element, at least one."""
    try:
        # int() would take "1_0" and other digits than 0..9; neither makes a place wrong that was right.
        pairs = [(int(p.findtext("yCoord", "")), int(p.findtext("xCoord", ""))) for p in parent.iterfind(tag)]
    except ValueError as error:
        raise LidcError(source, f"a pixel that is not two whole numbers ({error})") from error
    if not pairs:
        raise LidcError(source, "a mark without a pixel")
    if min(map(min, pairs)) < 0 or max(map(max, pairs)) >= MAX_PIXEL:
        raise LidcError(source, f"a pixel outside 0..{MAX_PIXEL - 1}")
    return np.array(pairs, dtype=np.int32)


def _z_mm(parent: Element, source: str) -> float:
    text = _text(parent, "imageZposition")
    try:
        z_mm = float(text)
    except ValueError:
        z_mm = math.nan
    if not math.isfinite(z_mm):
        raise LidcError(source, f"imageZposition is {text[:40]!r}, not a number of mm")
    return z_mm


def _text(parent: Element | None, tag: str) -> str:
    """The stripped text of a child, or of the element itself for "."; "" where there is none."""
    found = parent if tag == "." or parent is None else parent.find(tag)
    return "" if found is None or found.text is None else found.text.strip()
