"""What do a folder's tables know of the scans that are read, so that a reading can be compared with it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lungml.luna import (
    Annotation,
    Excluded,
    Nodule,
    by_series,
    read_annotations,
    read_excluded,
    read_nodules,
    read_series_list,
    unrated,
)
from lungml.reading.record import KnownNodule, KnownTruth
from lungml.tables import TableError

RATED, ANNOTATED = "annotations_with_malignancy.csv", "annotations.csv"


@dataclass(frozen=True, kw_only=True)
class Known:
    """The truth of a data set.

    Attributes:
        truths: by series_uid, of the scans that a table names.
        listed: every scan that was looked at, with or without a nodule; None where no list says.
    """

    truths: Mapping[str, KnownTruth]
    listed: frozenset[str] | None = None

    def of(self, series_uid: str) -> KnownTruth | None:
        """What is known of a scan; None where nobody says that it was looked at."""
        found = self.truths.get(series_uid)
        return KnownTruth() if found is None and self.listed and series_uid in self.listed else found


def read_known(tables: Path) -> Known:
    """Read the truth from LUNA16's tables, or from one's own in their format.

    Args:
        tables: holds annotations_with_malignancy.csv or annotations.csv, or both: a nodule of the second that no row
            of the first rates is one whose malignancy is not known. annotations_excluded.csv and seriesuids.csv are
            read where they are there.

    Raises:
        TableError: neither of the two is there, or one is malformed.
    """
    rated_csv, annotated_csv = tables / RATED, tables / ANNOTATED
    if not rated_csv.exists() and not annotated_csv.exists():
        raise TableError(tables, f"neither {RATED} nor {ANNOTATED} is here", "name the folder that holds the truth")
    rated = by_series(read_nodules(rated_csv)) if rated_csv.exists() else {}
    annotated = by_series(read_annotations(annotated_csv)) if annotated_csv.exists() else {}
    excluded = by_series(read_excluded(tables / "annotations_excluded.csv", []))
    listed = read_series_list(tables / "seriesuids.csv")
    return Known(
        truths={
            uid: _truth(rated.get(uid, ()), annotated.get(uid, ()), excluded.get(uid, ()))
            for uid in sorted({*rated, *annotated, *excluded})
        },
        listed=None if listed is None else frozenset(listed),
    )


def _truth(rated: tuple[Nodule, ...], annotated: tuple[Annotation, ...], excluded: tuple[Excluded, ...]) -> KnownTruth:
    nodules = [
        KnownNodule(center_xyz=n.center_xyz, diameter_mm=n.diameter_mm, malignant=n.malignant) for n in rated
    ] + [KnownNodule(center_xyz=a.center_xyz, diameter_mm=a.diameter_mm) for a in unrated(annotated, rated)]
    return KnownTruth(nodules=tuple(nodules), excluded=excluded)
