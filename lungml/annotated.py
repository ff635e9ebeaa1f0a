"""What did the networks say of the places where a scan's annotated nodules lie?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lungml.answers import read_arrays, write_arrays
from lungml.geometry import Grid
from lungml.luna import Nodule
from lungml.marked import Marked
from lungml.masks import MaskRule, NoduleBox, nodule_boxes
from lungml.scorecard import SegmentedNodule, SegmentedScan
from lungml.segmentation_score import score_segmentation


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotated:
    """What they said of the places where a scan's annotated nodules lie.

    Attributes:
        prob_malignant: (n,) float64, at each annotated centre, averaged over the models.
        segmented: how well the segmentation met the annotation masks.
    """

    prob_malignant: npt.NDArray[np.float64]
    segmented: SegmentedScan


def meet_masks(
    marked: Marked, hu: npt.NDArray[np.int16], nodules: Sequence[Nodule], grid: Grid, threshold: float
) -> SegmentedScan:
    """How well a segmentation met the annotation masks of a scan, whatever masks it was trained on.

    Pixels are counted by the rule "report", whose own scores are of its own masks; nodules are met one by one by the
    rule "bounded", which follows no vessel.

    Args:
        marked: by the segmentation, down to the lowest probability at which grouping looks: a nodule is touched by
            whatever it holds.
        hu: (index, row, col) int16.
        nodules: annotated.
        grid: the scan's sampling grid.
        threshold: above which a voxel counts as marked, for pixels and Dice.
    """

    def drawn(rule: MaskRule) -> list[NoduleBox | None]:
        boxes = nodule_boxes(hu, nodules, grid, rule).boxes
        return [boxes.get(number) for number in range(len(nodules))]

    return score_segmentation(marked, drawn("bounded"), threshold, pixel_boxes=drawn("report"))


def write_annotated(path: Path, annotated: Annotated, key: str) -> None:
    """The same for what depends on the annotations."""
    seen = annotated.segmented
    write_arrays(
        path,
        key,
        prob_malignant=annotated.prob_malignant,
        counts=np.array([seen.voxels, seen.flagged, seen.tp, seen.fp, seen.fn, seen.slices]),
        touched=np.array([nodule.touched for nodule in seen.nodules], dtype=np.bool_),
        dice=np.array([nodule.dice for nodule in seen.nodules], dtype=np.float64),
    )


def read_annotated(path: Path, key: str | None = None) -> Annotated | None:
    """What `write_annotated` kept; None as of `read_answers`."""
    held = read_arrays(path, key)
    if held is None:
        return None
    voxels, flagged, tp, fp, fn, slices = held["counts"].tolist()
    nodules = tuple(SegmentedNodule(touched=t, dice=d) for t, d in zip(held["touched"].tolist(), held["dice"].tolist()))
    return Annotated(
        prob_malignant=held["prob_malignant"],
        segmented=SegmentedScan(voxels=voxels, flagged=flagged, tp=tp, fp=fp, fn=fn, slices=slices, nodules=nodules),
    )
