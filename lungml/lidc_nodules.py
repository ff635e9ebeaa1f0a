"""Which readings of different radiologists are of one nodule, and how did they rate it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungml.contours import Region, centroid, fill_contours, overlap, union
from lungml.files import write_csv_atomic
from lungml.lidc_xml import LidcScan, Reading

NODULE_COLUMNS = ["series_uid", "z_min_mm", "z_max_mm", "z_mm", "row", "col", "readers", "ratings"]
MALIGNANT_RATING, MALIGNANT_VOTES = 4, 2  # annotations_with_malignancy.csv: two or more rated 4 or 5


@dataclass(frozen=True, kw_only=True, eq=False)
class LidcNodule:
    """One nodule >= 3 mm with every reading of it.

    Attributes:
        z_min_mm, z_max_mm: first and last slice that any reader outlined it on.
        z_mm, row, col: its centre: the mean over the readings of the centroid of the pixels inside; row and col are
            fractional pixels of the DICOM slices.
        readers: how many radiologists outlined it.
        ratings: malignancy 1..5, one of each reading that has one, in the order of the file: by reading session,
            then as listed. A radiologist with two readings of it gives two, as in the published table.
        readings, regions: the outlines, and the pixels inside each.
    """

    series_uid: str
    z_min_mm: float
    z_max_mm: float
    z_mm: float
    row: float
    col: float
    readers: int
    ratings: tuple[int, ...]
    readings: tuple[Reading, ...]
    regions: tuple[Region, ...]

    @property
    def malignant(self) -> bool:
        """Two or more ratings of 4 or 5."""
        return sum(rating >= MALIGNANT_RATING for rating in self.ratings) >= MALIGNANT_VOTES

    @property
    def reader_regions(self) -> tuple[Region, ...]:
        """The pixels of each radiologist, by session; two readings of one are joined."""
        by_reader: dict[int, list[Region]] = {}
        for reading, region in zip(self.readings, self.regions):
            by_reader.setdefault(reading.reader, []).append(region)
        return tuple(union(by_reader[reader]) for reader in sorted(by_reader))


def lidc_nodules(scan: LidcScan) -> tuple[LidcNodule, ...]:
    """Group a scan's readings into nodules.

    Two readings are of one nodule when they share a pixel inside both on the same slice, and so are all that hang
    together by such pairs: two outlines of one radiologist that overlap, or that another's outline connects, too.
    Neither the order of the readers nor of their nodules changes the groups.

    Returns:
        sorted by (z_mm, row, col).
    """
    readings = [(reading, fill_contours(reading.contours)) for reading in scan.readings]
    readings = [(reading, region) for reading, region in readings if region]
    leader = list(range(len(readings)))  # the first reading of each one's group
    for late in range(len(readings)):
        for early in range(late):
            if leader[early] != leader[late] and overlap(readings[early][1], readings[late][1]):
                first, other = sorted((leader[early], leader[late]))
                leader = [first if lead == other else lead for lead in leader]
    groups: dict[int, list[tuple[Reading, Region]]] = {}
    for lead, reading in zip(leader, readings):
        groups.setdefault(lead, []).append(reading)
    found = [_nodule(scan.series_uid, group) for group in groups.values()]
    return tuple(sorted(found, key=lambda nodule: (nodule.z_mm, nodule.row, nodule.col)))


def all_nodules(scans: Mapping[str, LidcScan]) -> dict[str, tuple[LidcNodule, ...]]:
    """The nodules of every scan by series_uid; empty for a scan that has none."""
    return {series_uid: lidc_nodules(scan) for series_uid, scan in scans.items()}


def write_nodules_csv(path: Path, nodules: Iterable[LidcNodule]) -> None:
    """Write one row per nodule (`NODULE_COLUMNS`); ratings look like [4, 2, 5], floats keep their value.

    Raises:
        OSError: the file cannot be written; it is then as before.
    """
    rows = [
        [n.series_uid, n.z_min_mm, n.z_max_mm, n.z_mm, n.row, n.col, n.readers, str(list(n.ratings))] for n in nodules
    ]
    write_csv_atomic(path, NODULE_COLUMNS, rows)


def _nodule(series_uid: str, group: Sequence[tuple[Reading, Region]]) -> LidcNodule:
    readings = tuple(reading for reading, _ in group)
    regions = tuple(region for _, region in group)
    outlined_mm = [contour.z_mm for reading in readings for contour in reading.contours if contour.inclusion]
    z_mm, row, col = np.mean([centroid(region) for region in regions], axis=0).tolist()
    rated = (reading.characteristics.malignancy for reading in readings)
    return LidcNodule(
        series_uid=series_uid,
        z_min_mm=min(outlined_mm),
        z_max_mm=max(outlined_mm),
        z_mm=z_mm,
        row=row,
        col=col,
        readers=len({reading.reader for reading in readings}),
        ratings=tuple(rating for rating in rated if rating is not None),
        readings=readings,
        regions=regions,
    )
