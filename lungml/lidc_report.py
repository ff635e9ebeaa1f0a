"""What came of turning LIDC's XML into tables?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lungml.lidc import LidcFiles, read_lidc
from lungml.lidc_luna import NO_FILE, LunaMatch, match_luna, write_rated_csv
from lungml.lidc_nodules import all_nodules, write_nodules_csv
from lungml.luna import Annotation
from lungml.textures import TEXTURES, TEXTURES_CSV, Textured, texture_of, write_textures

RATED_CSV = "annotations_with_malignancy.csv"


@dataclass(frozen=True, kw_only=True)
class LidcReport:
    """What was read and written.

    Attributes:
        nodules: rows of nodules.csv.
        match: what became of annotations.csv; None without LUNA16's folder.
        rated_csv: the annotations_with_malignancy.csv that was written; None without LUNA16's folder, or where one
            is kept.
        textures_csv: the textures.csv; the same.
    """

    files: LidcFiles
    nodules: int
    nodules_csv: Path
    match: LunaMatch | None = None
    rated_csv: Path | None = None
    textures_csv: Path | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """The report for a person: counts first, then what was set aside, one line each."""
        files = self.files
        readings = sum(len(scan.readings) for scan in files.scans.values())
        lines = [
            f"{files.files} files: {len(files.scans)} scans, {sum(files.skipped_reasons.values())} skipped, "
            f"{len(files.damaged)} damaged",
            f"{readings} readings of {self.nodules} nodules of 3 mm or more -> {self.nodules_csv}",
        ]
        lines += [f"skipped {count}: {reason}" for reason, count in files.skipped_reasons.items()]
        lines += [f"damaged: {line}" for line in files.damaged]
        if self.match:
            rated, unmatched = self.match.rated, self.match.unmatched
            lines.append(
                f"{len(rated)} of {len(rated) + len(unmatched)} annotated nodules have their readings "
                f"({sum(r.nodule.malignant for r in rated)} malignant; {self.match.by_z} found by z alone, "
                f"{self.match.ambiguous} with a choice)" + (f" -> {self.rated_csv}" if self.rated_csv else "")
            )
            counts = Counter(row.texture for row in nodule_textures(self.match))
            said = ", ".join(f"{counts[texture]} {texture}" for texture in TEXTURES)
            lines += [f"their textures: {said} -> {self.textures_csv}"] if self.textures_csv else []
            lines += [f"header not used: {note}" for note in self.match.notes]
            without = {annotation.series_uid for annotation, why in unmatched if why == NO_FILE}
            lines += [f"{len(without)} annotated series: {NO_FILE}"] if without else []
            lines += [f"unmatched: {_place(annotation)}: {why}" for annotation, why in unmatched if why != NO_FILE]
        return tuple(lines)


def convert_lidc(
    source: Path,
    nodules_csv: Path,
    luna_dir: Path | None = None,
    *,
    tables_dir: Path | None = None,
    rated_csv: Path | None = None,
    keep: Collection[Path] = (),
) -> LidcReport:
    """Write nodules.csv from LIDC's XML files and, with LUNA16's folder, two tables of its nodules anew.

    These are annotations_with_malignancy.csv, and beside it textures.csv.

    Args:
        source: folder or zip of XML files.
        nodules_csv: one row per nodule >= 3 mm of every scan, sorted by (series_uid, z, row, col).
        luna_dir: LUNA16's scans, of which the headers are read, and annotations.csv.
        tables_dir: holds annotations.csv when `luna_dir` does not.
        rated_csv: where the second table goes; beside `nodules_csv` when not given. A table that is there is replaced,
            also when the XML files cover fewer of its nodules.
        keep: of these two tables, those that are left as they are.

    Raises:
        LidcError: nothing to read in `source`.
        TableError, ScanError: of annotations.csv and LUNA16's folder; nothing has been written then.
        OSError: a table cannot be written.
    """
    files = read_lidc(source)
    nodules = all_nodules(files.scans)
    match = match_luna(nodules, luna_dir, tables_dir) if luna_dir else None
    write_nodules_csv(nodules_csv, [nodule for of_scan in nodules.values() for nodule in of_scan])
    rated_csv = rated_csv or nodules_csv.with_name(RATED_CSV)
    textures_csv = rated_csv.with_name(TEXTURES_CSV)
    if match and rated_csv not in keep:
        write_rated_csv(rated_csv, match)
    if match and textures_csv not in keep:
        write_textures(textures_csv, nodule_textures(match))
    return LidcReport(
        files=files,
        nodules=sum(map(len, nodules.values())),
        nodules_csv=nodules_csv,
        match=match,
        rated_csv=rated_csv if match and rated_csv not in keep else None,
        textures_csv=textures_csv if match and textures_csv not in keep else None,
    )


def nodule_textures(match: LunaMatch) -> list[Textured]:
    """What the readers say of the texture of each rated nodule, in the order of annotations.csv; not all say something.

    Every reading counts, two of one radiologist as well, as for malignancy.
    """
    rows = []
    for rated in match.rated:
        said = [reading.characteristics.texture for reading in rated.nodule.readings]
        ratings = [rating for rating in said if rating is not None]
        if ratings:
            rows.append(
                Textured(
                    series_uid=rated.annotation.series_uid,
                    center_xyz=rated.annotation.center_xyz,
                    diameter_mm=rated.annotation.diameter_mm,
                    texture=texture_of(ratings),
                )
            )
    return rows


def _place(finding: Annotation) -> str:
    x, y, z = finding.center_xyz
    return f"{finding.series_uid} at ({x:.1f}, {y:.1f}, {z:.1f}) mm, {finding.diameter_mm:.1f} mm wide"
