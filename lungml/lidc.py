"""What did LIDC-IDRI's radiologists mark in each scan of a folder or zip of their XML files?"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungml.files import walk
from lungml.lidc_xml import MAX_XML_BYTES, LidcError, LidcScan, OtherKind, Reading, parse_lidc

MAX_MEMBERS = 100_000  # of a zip; LIDC-IDRI's own has 1318, with the DICOM slices of a patient a few hundred
# What zipfile raises for damaged, encrypted and unknown members; NotImplementedError is a RuntimeError.
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
SAME_READING = "another file holds the same reading of its series"
OLDER_READING = "a later or fuller file reads its series"


@dataclass(frozen=True)
class Skipped:
    """A file that was set aside, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class LidcFiles:
    """What a folder or zip of LIDC's XML files holds.

    Attributes:
        scans: by series_uid, sorted.
        files: how many XML files were looked at.
        skipped: sound files that are not used: of another kind, or a second reading of a series.
        damaged: one line for each file that cannot be read: file, what is wrong, what to do.
    """

    scans: Mapping[str, LidcScan]
    files: int
    skipped: tuple[Skipped, ...]
    damaged: tuple[str, ...]

    @property
    def skipped_reasons(self) -> dict[str, int]:
        """How many files were skipped for each reason, the most frequent first."""
        return dict(Counter(skipped.reason for skipped in self.skipped).most_common())


def read_lidc(source: Path) -> LidcFiles:
    """Read every LIDC XML file of a folder and its subfolders, of a zip, or one file.

    A file that cannot be read costs only itself. Of several files for one series the latest reading counts, by the
    date and time of service in the header; of equally late ones the one with most outlined nodules, then the first
    by name. Hidden files and other than `.xml` are passed over; nothing is unpacked.

    Raises:
        LidcError: no such folder or file, no zip, no XML file in it, or none that is the reading of a CT.
    """
    scans: dict[str, LidcScan] = {}
    skipped: list[Skipped] = []
    damaged: list[str] = []
    files = 0
    for name, content in _xml_files(source):
        files += 1
        try:
            if isinstance(content, LidcError):
                raise content
            scan = parse_lidc(content, name)
        except OtherKind as error:
            skipped.append(Skipped(name, error.args[1]))
            continue
        except LidcError as error:
            damaged.append(str(error))
            continue
        rival = scans.setdefault(scan.series_uid, scan)
        if rival is not scan:
            worse, better = sorted((rival, scan), key=lambda s: (s.read_at, len(s.readings)))
            if (worse.read_at, len(worse.readings)) == (better.read_at, len(better.readings)):
                worse, better = scan, rival  # names come sorted
            scans[scan.series_uid] = better
            skipped.append(Skipped(worse.source, SAME_READING if _same(worse, better) else OLDER_READING))
    if not files:
        raise LidcError(source, "no XML file in it", "name the folder or zip of LIDC-IDRI's XML files")
    if not scans:
        why = damaged[0] if damaged else f"{skipped[0].source} is {skipped[0].reason}"
        raise LidcError(source, f"none of its {files} XML files reads a CT ({why})", "name LIDC-IDRI's XML files")
    return LidcFiles(scans=dict(sorted(scans.items())), files=files, skipped=tuple(skipped), damaged=tuple(damaged))


def _same(one: LidcScan, other: LidcScan) -> bool:
    def key(reading: Reading) -> tuple[object, ...]:
        return reading.reader, reading.characteristics, [(c.z_mm, c.inclusion) for c in reading.contours]

    return (
        (one.small_nodules, one.non_nodules) == (other.small_nodules, other.non_nodules)
        and [key(reading) for reading in one.readings] == [key(reading) for reading in other.readings]
        and all(
            np.array_equal(a.points, b.points)
            for mine, others in zip(one.readings, other.readings)
            for a, b in zip(mine.contours, others.contours)
        )
    )


def _xml_files(source: Path) -> Iterator[tuple[str, bytes | LidcError]]:
    """Name and bytes of every XML file, or why they cannot be had; sorted by name."""
    if source.is_dir():
        for path in _in_folder(source):
            yield str(path), _read(path)
    elif source.is_file() and source.suffix.lower() == ".xml":
        yield str(source), _read(source)
    elif source.is_file():
        yield from _in_zip(source)
    else:
        raise LidcError(source, "no such folder or file", "name the folder or zip of LIDC-IDRI's XML files")


def _in_folder(source: Path) -> list[Path]:
    """Plain files only: a pipe would never end. Linked folders are followed, each real folder once."""
    found = [folder / name for folder, _, names in walk(source) for name in names if _is_xml(name)]
    return sorted(path for path in found if path.is_file())


def _in_zip(source: Path) -> Iterator[tuple[str, bytes | LidcError]]:
    try:
        with zipfile.ZipFile(source) as opened:
            entries = opened.infolist()
            if len(entries) > MAX_MEMBERS:
                raise LidcError(source, f"it declares {len(entries)} members, more than {MAX_MEMBERS}")
            wanted = [e for e in entries if not e.is_dir() and _is_xml(e.filename.rpartition("/")[2])]
            for entry in sorted(wanted, key=lambda e: e.filename):
                name = f"{source}/{entry.filename}"
                try:
                    # One byte more than allowed tells a file that is too large, whatever its header declares.
                    with opened.open(entry) as handle:
                        yield name, handle.read(MAX_XML_BYTES + 1)
                except UNREADABLE as error:
                    yield name, LidcError(name, f"its bytes cannot be unpacked ({error})")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, UnicodeDecodeError) as error:
        raise LidcError(source, f"neither a folder nor a zip that can be read ({error})") from error


def _is_xml(name: str) -> bool:
    return name.lower().endswith(".xml") and not name.startswith(".")


def _read(path: Path) -> bytes | LidcError:
    try:
        with path.open("rb") as handle:
            return handle.read(MAX_XML_BYTES + 1)
    except OSError as error:
        return LidcError(path, f"it cannot be read ({error.strerror})", "make it readable")
