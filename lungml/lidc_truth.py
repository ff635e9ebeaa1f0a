"""What is the truth of a scan by its readings alone, and which voxels do the readers agree on?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from lungml.geometry import Grid
from lungml.lidc_grid import center_xyz, consensus_box, diameter_mm, pixel_xyz
from lungml.lidc_luna import LUNA_READERS, pair_nodules
from lungml.lidc_nodules import LidcNodule
from lungml.lidc_xml import LidcError, LidcScan
from lungml.luna import EXCLUDED_DIAMETER_MM, Excluded, Nodule
from lungml.masks import NoduleBox


def consensus_boxes(nodules: Sequence[Nodule], readings: Sequence[LidcNodule], grid: Grid) -> dict[int, NoduleBox]:
    """The readers' consensus of one scan's nodules by their position, as `masks.nodule_boxes` takes it.

    A nodule that no reading matches is left out, and so is one whose outlines do not fit the scan.

    Args:
        nodules: of this scan, from LUNA16's tables or from `scan_truth`.
        readings: of the same series.
        grid: the scan's.

    Raises:
        LidcError: the scan's slices are not the ones that were read.
    """
    boxes = {}
    for position, (place, _) in enumerate(pair_nodules(nodules, readings, grid)):
        if place is not None:
            with suppress(LidcError):  # an outline that does not fit the scan costs only itself
                boxes[position] = consensus_box(readings[place], grid)
    return boxes


def scan_truth(
    scan: LidcScan, nodules: Sequence[LidcNodule], grid: Grid
) -> tuple[tuple[Nodule, ...], tuple[Excluded, ...]]:
    """The truth of a scan that is not in LUNA16, by LUNA16's rules.

    What at least 3 radiologists outlined is a nodule. What fewer outlined is excluded with its size, and so is, with
    LUNA16's 10 mm, every place that a reader marked as a nodule < 3 mm or as no nodule, one record a reader. In the
    223 series of LUNA16 at hand, the nodules of 3 readers are exactly LUNA16's: 299, none missing and none more.

    Args:
        scan: the readings.
        nodules: `lidc_nodules(scan)`.
        grid: the scan's.

    Returns:
        the nodules, and what is excluded: also a nodule whose malignancy nobody rated.

    Raises:
        LidcError: as `z_to_index`.
    """
    truth = []
    excluded = []
    for nodule in nodules:
        center, size = center_xyz(nodule, grid), diameter_mm(nodule, grid)
        if nodule.readers >= LUNA_READERS and nodule.ratings:
            truth.append(
                Nodule(
                    series_uid=scan.series_uid,
                    center_xyz=center,
                    diameter_mm=size,
                    malignant=nodule.malignant,
                    ratings=nodule.ratings,
                )
            )
        else:
            excluded.append(Excluded(series_uid=scan.series_uid, center_xyz=center, diameter_mm=size))
    for point in (*scan.small_nodules, *scan.non_nodules):
        excluded.append(
            Excluded(
                series_uid=scan.series_uid,
                center_xyz=pixel_xyz(point.z_mm, point.row, point.col, grid),
                diameter_mm=EXCLUDED_DIAMETER_MM,
            )
        )
    return tuple(truth), tuple(excluded)
