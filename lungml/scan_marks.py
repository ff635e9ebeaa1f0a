"""Which nodules are known in one scan, by whose word, and which of its points shall be seen?"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lungml.ct import Scan
from lungml.errors import FileError, LunaError
from lungml.findings import FINDINGS_COLUMNS, Stage, read_findings
from lungml.geometry import Grid, as_triple, irc_to_xyz, xyz_to_irc
from lungml.luna import Nodule
from lungml.masks import NoduleBox, nodule_boxes
from lungml.reading.known import read_known
from lungml.reading.record import KnownTruth

Kind = Literal["malignant", "benign", "filtered", "truth_malignant", "truth"]
NEEDED_COLUMNS = tuple(name for name in FINDINGS_COLUMNS if name != "prob_segmentation")  # older files lack that one


class PlaceError(LunaError):
    """No such place in the scan; the message is one line."""


class MarksError(FileError):
    """A findings.csv that is none, or that belongs to another scan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mark:
    """One nodule, or what was taken for one.

    Attributes:
        center_xyz: mm, LPS.
        diameter_mm: NaN where nothing tells it.
        kind: a finding by its stage; of the truth "truth_malignant", or "truth" for every other nodule.
        number: of a finding, its row in findings.csv, counted from 1.
        box: of the truth, the voxels of the nodule, bounded by its annotated sphere; None outside the scan.
    """

    center_xyz: tuple[float, float, float]
    diameter_mm: float
    kind: Kind
    number: int | None = None
    box: NoduleBox | None = None

    @property
    def sized(self) -> bool:
        """Whether its diameter is known."""
        return math.isfinite(self.diameter_mm) and self.diameter_mm > 0


def finding_marks(path: Path, series_uid: str) -> tuple[Mark, ...]:
    """Every row of a findings.csv as a mark, in its order; of two bundles that were compared, the first one's.

    Raises:
        MarksError: no such file, not a findings.csv, or another scan's.
    """
    advice = "name the findings.csv that `luna read` wrote for this scan"
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            header = reader.fieldnames or []
            rows = list(reader) if "series_uid" in header else []
        missing = [column for column in NEEDED_COLUMNS if column not in header]
        if missing:
            raise MarksError(path, f"it has no column {', '.join(missing)}", advice)
        other = next((row["series_uid"] for row in rows if row["series_uid"] != series_uid), None)
        if other is not None:
            raise MarksError(path, f"it holds findings of series {str(other)[:80]}, not of {series_uid}", advice)
        bundles = [row.get("bundle") for row in rows]  # a table of a pipeline's run names none
        findings = read_findings(path)[: bundles.count(bundles[0]) if bundles else 0]
    except OSError as error:
        raise MarksError(path, f"cannot be read ({error.strerror})", advice) from error
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        if isinstance(error, LunaError):
            raise
        raise MarksError(path, f"not a findings.csv ({str(error)[:120]})", advice) from error
    for row, finding in enumerate(findings, start=1):
        if finding.stage not in get_args(Stage):
            raise MarksError(path, f"row {row} ends at {finding.stage[:40]!r}, which is no stage", advice)
        if not all(map(math.isfinite, finding.center_xyz)):
            raise MarksError(path, f"row {row} has a place that is not a number", advice)
    return tuple(
        Mark(center_xyz=f.center_xyz, diameter_mm=f.diameter_mm, kind=f.stage, number=row)
        for row, f in enumerate(findings, start=1)
    )


def truth_marks(tables: Path, scan: Scan) -> tuple[Mark, ...]:
    """The annotated nodules of a scan with their voxels; excluded findings are no truth and left out.

    Args:
        tables: folder of annotations_with_malignancy.csv or annotations.csv; where both lie there, the rows of the
            latter that the former does not rate count as well.
        scan: whose nodules they are.

    Raises:
        TableError: neither table is there, or one is malformed.
    """
    truth = read_known(tables).of(scan.series_uid) or KnownTruth()
    nodules = [
        Nodule(
            series_uid=scan.series_uid,
            center_xyz=known.center_xyz,
            diameter_mm=known.diameter_mm,
            malignant=bool(known.malignant),
            ratings=(),
        )
        for known in truth.nodules
    ]
    boxes = nodule_boxes(scan.hu, nodules, scan.grid, "bounded").boxes
    return tuple(
        Mark(
            center_xyz=nodule.center_xyz,
            diameter_mm=nodule.diameter_mm,
            kind="truth_malignant" if nodule.malignant else "truth",
            box=boxes.get(position),
        )
        for position, nodule in enumerate(nodules)
    )


def parse_place(text: str) -> int | tuple[float, float, float]:
    """A finding's number, or x, y, z in mm (LPS).

    Raises:
        PlaceError: it is neither.
    """
    if re.fullmatch(r"\s*[1-9][0-9]{0,5}\s*", text):
        return int(text)
    try:
        x, y, z = map(float, text.split(","))
    except ValueError:
        x = y = z = math.nan
    if not all(map(math.isfinite, (x, y, z))):
        raise PlaceError(
            f"--at {text[:80]!r} is no place; give x,y,z in mm such as 56.2,86.3,-115.9, or a row of --findings"
        )
    return x, y, z


def find_place(
    place: int | tuple[float, float, float], findings: Sequence[Mark] | None, grid: Grid
) -> tuple[float, float, float]:
    """Where a place lies, mm (LPS); it lies in the scan.

    Args:
        place: see `parse_place`.
        findings: of the scan; None where none were given.
        grid: of the scan.

    Raises:
        PlaceError: there is no such finding, or the point lies outside the scan.
    """
    if isinstance(place, int):
        if findings is None:
            raise PlaceError(f"--at {place} is a finding's row: name its file with --findings, or give x,y,z in mm")
        if place > len(findings):
            raise PlaceError(f"--at {place}: there are {len(findings)} findings; give the row of one of them")
        place = findings[place - 1].center_xyz
    irc = xyz_to_irc(place, grid).tolist()
    if all(-0.5 <= voxel < size - 0.5 for voxel, size in zip(irc, grid.shape_irc)):
        return place
    low, high = extent_xyz(grid)
    spans = ", ".join(f"{name} {a:.1f} to {b:.1f}" for name, a, b in zip("xyz", low, high))
    tilted = "" if np.allclose(np.abs(np.asarray(grid.direction)), np.eye(3), atol=1e-3) else ", its grid tilted within"
    where = ",".join(f"{mm:g}" for mm in place)
    raise PlaceError(f"{where} mm lies outside the scan, which spans {spans} mm (LPS{tilted}); give a point inside")


def extent_xyz(grid: Grid) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The least and largest x, y, z of a scan's voxels with their edges, mm."""
    corners = irc_to_xyz(list(product(*((-0.5, size - 0.5) for size in grid.shape_irc))), grid)
    return as_triple(corners.min(axis=0)), as_triple(corners.max(axis=0))


def middle_xyz(grid: Grid) -> tuple[float, float, float]:
    """The middle of a scan, mm (LPS)."""
    return as_triple(irc_to_xyz([(size - 1) / 2 for size in grid.shape_irc], grid))
