"""How well did the segmentation mark annotated nodules: pixel by pixel, and nodule by nodule?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lungml.marked import Marked
from lungml.masks import NoduleBox
from lungml.metrics import precision_recall_f1
from lungml.score import finite_or_none


@dataclass(frozen=True, kw_only=True)
class SegmentedNodule:
    """What the segmentation did with one annotated nodule.

    Attributes:
        touched: whether it marked any of its voxels, however faintly: above the lowest probability at which grouping
            looks, which may lie below the threshold.
        dice: of the components above the threshold that touch it and its annotation mask; 0 where none does.
    """

    touched: bool
    dice: float


@dataclass(frozen=True, kw_only=True)
class SegmentedScan:
    """What the segmentation did with one scan.

    Attributes:
        voxels: in all.
        flagged: above the threshold.
        tp, fp, fn: pixels of the full slices that hold any of the report's annotation masks, as in its table.
        slices: how many these are.
        nodules: in the order of the truth, by masks of their own.
    """

    voxels: int
    flagged: int
    tp: int
    fp: int
    fn: int
    slices: int
    nodules: tuple[SegmentedNodule, ...]


@dataclass(frozen=True, kw_only=True)
class SegmentationScore:
    """Pixels on full slices as in the report's table, and nodules one by one; NaN where nothing is to be counted.

    Attributes:
        slices: that hold any of the report's annotation masks.
        precision, recall, f1: of all their pixels together, see `precision_recall_f1`.
        nodules: annotated.
        touched: of them, those with a marked voxel, see `SegmentedNodule`.
        mean_dice, median_dice: over all nodules, those not touched included with 0.
    """

    slices: int
    precision: float
    recall: float
    f1: float
    nodules: int
    touched: int
    mean_dice: float
    median_dice: float

    def as_dict(self) -> dict[str, float | None]:
        """JSON-able; None for NaN."""
        return {name: finite_or_none(value) for name, value in asdict(self).items()}


def score_segmentation(
    marked: Marked,
    boxes: Sequence[NoduleBox | None],
    threshold: float,
    *,
    pixel_boxes: Sequence[NoduleBox | None] | None = None,
) -> SegmentedScan:
    """Compare the marked voxels of a scan with its annotation masks, without an array of the scan's size.

    Pixels are counted on every slice that holds any of the masks, all of the slice. A nodule's Dice coefficient is
    2 |A and B| / (|A| + |B|), B its mask and A all voxels of the marked components (6-connected, in 3D) that share a
    voxel with it: a component that runs on along a vessel, or into another nodule, counts whole. Whether a nodule was
    touched is asked of all that `marked` holds: grouping may make a candidate of what lies below the threshold.

    Args:
        marked: by the segmentation.
        boxes: of every annotated nodule, see `lungml.masks.nodule_boxes`; None for one whose centre lies outside the
            scan, which counts as not touched.
        threshold: a voxel is flagged above it; pixels and Dice are of flagged ones.
        pixel_boxes: the masks that pixels are counted by, where they are others.

    Raises:
        ValueError: a threshold below the floor of `marked`, or a box that does not fit into the scan.
    """
    flagged = marked.above(threshold)
    masks = _masks(boxes, marked.shape)
    of_pixels = masks if pixel_boxes is None else _masks(pixel_boxes, marked.shape)
    mask = np.unique(np.concatenate(of_pixels)) if of_pixels else np.empty(0, dtype=np.int64)
    plane = marked.shape[1] * marked.shape[2]
    slices = np.unique(mask // plane)
    on_slices = np.searchsorted(flagged, (slices + 1) * plane) - np.searchsorted(flagged, slices * plane)
    tp = len(_meeting(flagged, mask))
    return SegmentedScan(
        voxels=math.prod(marked.shape),
        flagged=len(flagged),
        tp=tp,
        fp=int(on_slices.sum()) - tp,
        fn=len(mask) - tp,
        slices=len(slices),
        nodules=_score_nodules(flagged, marked.voxels, masks, marked.shape),
    )


def pool_segmentation(scans: Sequence[SegmentedScan]) -> SegmentationScore:
    """The scans' pixels together, and all of their nodules."""
    tp, fp, fn = (sum(getattr(scan, name) for scan in scans) for name in ("tp", "fp", "fn"))
    precision, recall, f1 = precision_recall_f1(tp, fp, fn)
    nodules = [nodule for scan in scans for nodule in scan.nodules]
    dice = [nodule.dice for nodule in nodules] or [math.nan]
    return SegmentationScore(
        slices=sum(scan.slices for scan in scans),
        precision=precision,
        recall=recall,
        f1=f1,
        nodules=len(nodules),
        touched=sum(nodule.touched for nodule in nodules),
        mean_dice=float(np.mean(dice)),
        median_dice=float(np.median(dice)),
    )


def label_voxels(voxels: npt.NDArray[np.int64], shape: tuple[int, int, int]) -> npt.NDArray[np.int32]:
    """To which 6-connected component each of some voxels belongs.

    Args:
        voxels: (n,) flat places in C order, ascending.
        shape: of the scan, (index, row, col).

    Returns:
        (n,) int32, from 0 without gaps.
    """
    _, rows, cols = shape
    # Runs along a row, of which there are several times fewer than voxels; [start, end).
    first = np.flatnonzero((np.diff(voxels, prepend=-2) != 1) | (voxels % cols == 0))
    lengths = np.diff(first, append=len(voxels))
    start = voxels[first]
    end = start + lengths
    pairs = []
    for step, has_next in ((cols, start // cols % rows < rows - 1), (rows * cols, np.ones(len(start), dtype=np.bool_))):
        run = np.flatnonzero(has_next)
        low = np.searchsorted(end, start[run] + step, side="right")
        count = np.searchsorted(start, end[run] + step) - low  # runs from `low` on that lie beside this one
        beside = np.repeat(low - np.cumsum(count) + count, count) + np.arange(count.sum())
        pairs.append(np.stack([np.repeat(run, count), beside]))
    one, other = np.concatenate(pairs, axis=1)
    joined = coo_array((np.ones(len(one), dtype=np.bool_), (one, other)), shape=(len(start), len(start)))
    return np.repeat(connected_components(joined, directed=False)[1], lengths)


def _masks(boxes: Sequence[NoduleBox | None], shape: tuple[int, int, int]) -> list[npt.NDArray[np.int64]]:
    """Flat places of each nodule's voxels, ascending."""
    return [np.empty(0, dtype=np.int64) if box is None else _voxels(box, shape) for box in boxes]


def _voxels(box: NoduleBox, shape: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    corner, inside = box
    index, row, col = (axis + part.start for axis, part in zip(np.nonzero(inside), corner))
    return np.ravel_multi_index((index, row, col), shape)


def _meeting(flagged: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions in `flagged` of the voxels that `mask` holds as well; both ascending."""
    places = np.searchsorted(flagged, mask)
    return places[np.append(flagged, -1)[places] == mask]


def _score_nodules(
    flagged: npt.NDArray[np.int64],
    marked: npt.NDArray[np.int64],
    masks: Sequence[npt.NDArray[np.int64]],
    shape: tuple[int, int, int],
) -> tuple[SegmentedNodule, ...]:
    touched = [len(_meeting(marked, mask)) > 0 for mask in masks]
    shared = [_meeting(flagged, mask) for mask in masks]
    if not any(map(len, shared)):
        return tuple(SegmentedNodule(touched=seen, dice=0.0) for seen in touched)
    labels = label_voxels(flagged, shape)
    sizes = np.bincount(labels)
    nodules = []
    for mask, both, seen in zip(masks, shared, touched):
        component_voxels = int(sizes[np.unique(labels[both])].sum())
        dice = 2 * len(both) / (component_voxels + len(mask)) if len(both) else 0.0
        nodules.append(SegmentedNodule(touched=seen, dice=dice))
    return tuple(nodules)
