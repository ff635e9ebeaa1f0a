"""Which of LIDC's nodules are LUNA16's, and how malignant are they?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from lungml.ct import ScanError, find_scans, read_header
from lungml.files import write_csv_atomic
from lungml.geometry import Grid
from lungml.lidc_grid import bounding_box_xyz, center_xyz, z_to_index
from lungml.lidc_nodules import LidcNodule
from lungml.lidc_xml import LidcError
from lungml.luna import CENTER_COLUMNS, Annotation, Nodule, read_annotations
from lungml.tables import SERIES_COLUMN

LUNA_READERS = 3  # Setio et al. 2017: a nodule that at least 3 of the 4 radiologists outlined
BOX_COLUMNS = ["bboxLowX", "bboxLowY", "bboxLowZ", "bboxHighX", "bboxHighY", "bboxHighZ"]
RATED_COLUMNS = [
    SERIES_COLUMN, *CENTER_COLUMNS, "diameter_mm", "mal_bool", "mal_details", *BOX_COLUMNS, "len_mal_details"
]  # fmt: skip
NO_FILE = "no LIDC file reads its series"
FEW_READERS_MM, FORBIDDEN_MM = 1e6, 1e12  # added to a distance; larger than any sum of distances in a scan


@dataclass(frozen=True, kw_only=True)
class RatedAnnotation:
    """A nodule of annotations.csv and the readings it was matched with.

    Attributes:
        grid: of its scan; None when only z could be compared.
        rivals: other nodules that lie close enough to have been it.
    """

    annotation: Annotation
    nodule: LidcNodule
    grid: Grid | None
    rivals: int


@dataclass(frozen=True, kw_only=True)
class LunaMatch:
    """What became of every row of annotations.csv.

    Attributes:
        rated: in the table's order.
        unmatched: rows that no reading was found for, and why, in the table's order.
        notes: scans whose header could not be used, one line each.
    """

    rated: tuple[RatedAnnotation, ...]
    unmatched: tuple[tuple[Annotation, str], ...]
    notes: tuple[str, ...] = ()

    @property
    def by_z(self) -> int:
        """How many were matched by z alone, for want of a header."""
        return sum(rated.grid is None for rated in self.rated)

    @property
    def ambiguous(self) -> int:
        """How many had more than one nodule to choose from."""
        return sum(rated.rivals > 0 for rated in self.rated)


def match_luna(
    nodules: Mapping[str, Sequence[LidcNodule]], luna_dir: Path, tables_dir: Path | None = None
) -> LunaMatch:
    """Match annotations.csv with LIDC's nodules, by the headers that are on disk; see `match_annotations`.

    Args:
        nodules: by series_uid; empty for a series that was read and has none.
        luna_dir: holds `**/<series_uid>.mhd`; of these only the header is read. None need be there.
        tables_dir: holds annotations.csv; `luna_dir` itself when not given.

    Raises:
        TableError: annotations.csv is missing or malformed.
        ScanError: no such folder, or a scan twice.
    """
    annotations = read_annotations((tables_dir or luna_dir) / "annotations.csv")
    grids: dict[str, Grid] = {}
    notes = []
    for series_uid, path in find_scans(luna_dir).items():
        if series_uid in nodules:
            try:
                grid = read_header(path).grid
                z_to_index(0.0, grid)
            except (ScanError, LidcError) as error:
                notes.append(f"{series_uid}: {error}")
            else:
                grids[series_uid] = grid
    found = match_annotations(annotations, nodules, grids)
    return LunaMatch(rated=found.rated, unmatched=found.unmatched, notes=tuple(notes))


def match_annotations(
    annotations: Sequence[Annotation], nodules: Mapping[str, Sequence[LidcNodule]], grids: Mapping[str, Grid]
) -> LunaMatch:
    """Find each annotated nodule among LIDC's.

    Pair by pair the distance of the centres must be below the annotated radius, as for a hit in LUNA16. With the
    scan's grid it is the distance in 3D; without one, x and y of an outline are pixels of unknown size and only z is
    compared. Within a series every nodule serves once. Of all ways to pair them the one with the most pairs is taken;
    of these, that with the fewest nodules of less than 3 readers (LUNA16 has none of them); then, the least sum of
    distances. A row of a series without LIDC file, without a nodule near, or whose readings carry no malignancy
    stays unmatched.
    """
    rated: dict[int, RatedAnnotation] = {}
    reasons: dict[int, str] = {}
    places: dict[str, list[int]] = {}
    for place, annotation in enumerate(annotations):
        places.setdefault(annotation.series_uid, []).append(place)
    for series_uid, rows in places.items():
        if series_uid not in nodules:
            reasons |= dict.fromkeys(rows, NO_FILE)
            continue
        candidates, grid = nodules[series_uid], grids.get(series_uid)
        pairs = pair_nodules([annotations[row] for row in rows], candidates, grid)
        for number, row in enumerate(rows):
            chosen, near = pairs[number]
            if chosen is None:
                reasons[row] = "no outlined nodule within its radius" + ("" if grid else " of its z")
            elif not candidates[chosen].ratings:
                reasons[row] = "none of its readings rates malignancy"
            else:
                rated[row] = RatedAnnotation(
                    annotation=annotations[row], nodule=candidates[chosen], grid=grid, rivals=near - 1
                )
    return LunaMatch(
        rated=tuple(rated[row] for row in sorted(rated)),
        unmatched=tuple((annotations[row], reasons[row]) for row in sorted(reasons)),
    )


def pair_nodules(
    annotations: Sequence[Annotation | Nodule], nodules: Sequence[LidcNodule], grid: Grid | None
) -> list[tuple[int | None, int]]:
    """Pair the annotated nodules of one series with LIDC's, by the rule of `match_annotations`.

    Returns:
        for each annotation the position of its nodule, if any, and how many lie within its radius.
    """
    if not annotations or not nodules:
        return [(None, 0)] * len(annotations)
    axes = slice(None) if grid else slice(2, 3)
    wanted = np.array([annotation.center_xyz for annotation in annotations])[:, axes]
    centers = [center_xyz(n, grid) if grid else (0.0, 0.0, n.z_mm) for n in nodules]
    distances_mm = np.linalg.norm(wanted[:, None] - np.array(centers)[None, :, axes], axis=-1)
    near = distances_mm < np.array([[annotation.diameter_mm / 2] for annotation in annotations])
    few = np.array([nodule.readers < LUNA_READERS for nodule in nodules])
    costs_mm = np.where(near, distances_mm + FEW_READERS_MM * few, FORBIDDEN_MM)
    chosen = dict(zip(*(places.tolist() for places in linear_sum_assignment(costs_mm))))
    return [
        (chosen[row] if row in chosen and near[row, chosen[row]] else None, int(near[row].sum()))
        for row in range(len(annotations))
    ]


def write_rated_csv(path: Path, match: LunaMatch) -> None:
    """Write annotations_with_malignancy.csv as it is published, in the order of annotations.csv.

    mal_bool is "two or more rated 4 or 5", mal_details the ratings. Without a header the box has no x and y, and its z
    are the readings' mean first and last slice, not rounded. Unmatched rows are not written: `luna` would take them
    for benign.

    Raises:
        OSError: the file cannot be written; it is then as before.
    """
    rows = []
    for rated in match.rated:
        nodule, annotation = rated.nodule, rated.annotation
        box: tuple[tuple[float | str, ...], ...]
        if rated.grid is None:
            ends = [[c.z_mm for c in reading.contours if c.inclusion] for reading in nodule.readings]
            box = tuple(("", "", float(np.mean([end(z_mm) for z_mm in ends]))) for end in (min, max))
        else:
            box = bounding_box_xyz(nodule, rated.grid)
        rows.append(
            [
                annotation.series_uid,
                *annotation.center_xyz,
                annotation.diameter_mm,
                nodule.malignant,
                str(list(nodule.ratings)),
                *box[0],
                *box[1],
                len(nodule.ratings),
            ]
        )
    write_csv_atomic(path, RATED_COLUMNS, rows)
