"""A scan of 4 x 6 x 8 voxels, whose pixels can be counted by hand, and random ones beside a dense reckoning."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from lungml.groups import Box
from lungml.marked import Marked
from lungml.masks import NoduleBox
from lungml.segmentation_score import (
    SegmentationScore,
    SegmentedNodule,
    SegmentedScan,
    label_voxels,
    pool_segmentation,
    score_segmentation,
)

SHAPE = (4, 6, 8)
MISSED = SegmentedNodule(touched=False, dice=0.0)


def box(index: slice, row: slice, col: slice) -> Box:
    return index, row, col


def cube(index: tuple[int, int], row: tuple[int, int], col: tuple[int, int]) -> NoduleBox:
    sizes = [high - low for low, high in (index, row, col)]
    return box(slice(*index), slice(*row), slice(*col)), np.ones(sizes, dtype=np.bool_)


def marked(*boxes: NoduleBox, shape: tuple[int, int, int] = SHAPE) -> Marked:
    mask = np.zeros(shape, dtype=np.bool_)
    for where, inside in boxes:
        mask[where] |= inside
    return Marked.of_mask(mask)


NODULE = cube((1, 3), (2, 4), (2, 4))  # 8 voxels on slices 1 and 2


def test_pixels_are_counted_on_all_of_the_slices_that_hold_mask_and_on_no_other() -> None:
    # Half of the nodule; 3 pixels far from it on slice 2; 5 on slice 3, where there is no mask.
    found = marked(cube((1, 2), (2, 4), (2, 4)), cube((2, 3), (5, 6), (5, 8)), cube((3, 4), (0, 1), (0, 5)))
    score = score_segmentation(found, [NODULE], 0.5)
    assert (score.tp, score.fp, score.fn, score.slices) == (4, 3, 4, 2)
    assert (score.voxels, score.flagged) == (4 * 6 * 8, 4 + 3 + 5)
    # Only the half that touches the nodule is compared with it.
    assert score.nodules == (SegmentedNodule(touched=True, dice=2 * 4 / (4 + 8)),)


def test_nodules_that_overlap_are_one_mask_for_pixels_and_two_for_nodules() -> None:
    beside = cube((1, 3), (2, 4), (3, 5))  # shares 4 voxels with the first
    score = score_segmentation(marked(NODULE), [NODULE, beside], 0.5)
    assert (score.tp, score.fp, score.fn) == (8, 0, 4)
    assert [n.dice for n in score.nodules] == [1.0, 2 * 4 / (8 + 8)]


def test_a_component_that_runs_on_counts_whole_and_for_every_nodule_that_it_touches() -> None:
    other = cube((1, 3), (2, 4), (6, 8))
    flood = marked(cube((1, 3), (2, 4), (2, 8)))  # 24 voxels through both
    assert [n.dice for n in score_segmentation(flood, [NODULE, other], 0.5).nodules] == [2 * 8 / (24 + 8)] * 2


def test_several_components_on_one_nodule_are_compared_with_it_together() -> None:
    halves = marked(cube((1, 2), (2, 3), (2, 4)), cube((2, 3), (3, 4), (2, 4)))  # they share edges only
    assert score_segmentation(halves, [NODULE], 0.5).nodules[0].dice == 2 * 4 / (4 + 8)
    # One beside the nodule, which shares a face with it and no voxel, does not count.
    assert score_segmentation(marked(cube((1, 3), (2, 4), (4, 5))), [NODULE], 0.5).nodules == (MISSED,)


def test_a_nodule_outside_the_scan_has_no_box_and_is_not_touched() -> None:
    score = score_segmentation(marked(NODULE), [None, NODULE], 0.5)
    assert [n.touched for n in score.nodules] == [False, True]
    alone = score_segmentation(marked(NODULE), [None], 0.5)
    assert (alone.tp, alone.fp, alone.fn, alone.slices, alone.nodules) == (0, 0, 0, 0, (MISSED,))


def test_nothing_marked_and_nothing_annotated() -> None:
    nothing = marked()
    assert score_segmentation(nothing, [NODULE], 0.5) == SegmentedScan(
        voxels=192, flagged=0, tp=0, fp=0, fn=8, slices=2, nodules=(MISSED,)
    )
    healthy = score_segmentation(marked(NODULE), [], 0.5)
    assert (healthy.flagged, healthy.fp, healthy.slices, healthy.nodules) == (8, 0, 0, ())


def test_the_threshold_is_exclusive_and_not_below_the_floor() -> None:
    probs = np.full(SHAPE, 0.3, dtype=np.float32)
    probs[1, 2, 2:4] = 0.5, 0.7
    found = Marked.of(probs, 0.4)
    assert score_segmentation(found, [NODULE], 0.4).tp == 2
    assert score_segmentation(found, [NODULE], 0.5).tp == 1
    with pytest.raises(ValueError, match="only those above"):
        score_segmentation(found, [NODULE], 0.3)


def test_a_nodule_marked_below_the_threshold_is_touched_and_has_no_dice() -> None:
    other = cube((1, 3), (2, 4), (6, 8))
    probs = np.zeros(SHAPE, dtype=np.float32)
    probs[1, 2, 2], probs[1:3, 2:4, 6:8], probs[0, 0, 0] = 0.4, 0.9, 0.4
    found = Marked.of(probs, 0.3)
    score = score_segmentation(found, [NODULE, other, cube((3, 4), (0, 1), (0, 1))], 0.5)
    assert score.nodules == (SegmentedNodule(touched=True, dice=0.0), SegmentedNodule(touched=True, dice=1.0), MISSED)
    assert (score.flagged, score.tp, score.fn) == (8, 8, 8 + 1)
    # Where nothing at all reaches the threshold, too; and what reaches the floor only is not there.
    faint = Marked.of(np.where(probs > 0.5, 0, probs), 0.3)
    assert [n.touched for n in score_segmentation(faint, [NODULE, other], 0.5).nodules] == [True, False]
    assert [n.touched for n in score_segmentation(found.at(0.4), [NODULE, other], 0.5).nodules] == [False, True]


def test_pixels_may_be_counted_by_masks_of_their_own() -> None:
    wide = cube((1, 4), (2, 4), (0, 8))  # 48 voxels on slices 1 to 3, through the nodule
    found = marked(NODULE, cube((3, 4), (0, 1), (0, 5)))
    score = score_segmentation(found, [NODULE, None], 0.5, pixel_boxes=[wide, None])
    assert (score.tp, score.fp, score.fn, score.slices) == (8, 5, 40, 3)
    assert score.nodules == (SegmentedNodule(touched=True, dice=1.0), MISSED)


def test_a_box_of_another_scan_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid entry"):
        score_segmentation(marked(NODULE), [cube((3, 5), (0, 1), (0, 1))], 0.5)


def test_components_share_faces_and_do_not_wrap_around() -> None:
    def count(*voxels: tuple[int, int, int]) -> int:
        flat = np.sort(np.ravel_multi_index(np.array(voxels).T, SHAPE))
        return len(np.unique(label_voxels(flat, SHAPE)))

    assert count((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)) == 1
    assert count((0, 0, 0), (0, 1, 1)) == 2  # an edge
    assert count((0, 0, 7), (0, 1, 0)) == 2  # the end of a row and the start of the next
    assert count((0, 5, 3), (1, 0, 3)) == 2  # the last row of a slice and the first of the next
    assert count((0, 5, 7), (1, 0, 0)) == 2
    assert len(label_voxels(np.empty(0, dtype=np.int64), SHAPE)) == 0


@pytest.mark.parametrize("share", [0.02, 0.2, 0.35, 0.9])
def test_random_scans_give_what_whole_volumes_give(share: float) -> None:
    rng = np.random.default_rng(int(100 * share))
    shape = (9, 11, 13)
    mask = rng.random(shape) < share
    boxes = []
    for _ in range(5):
        low = [int(rng.integers(0, n - 3)) for n in shape]
        where = box(*(slice(a, a + 3) for a in low))
        boxes.append((where, rng.random((3, 3, 3)) < 0.6))
    score = score_segmentation(Marked.of_mask(mask), boxes, 0.5)

    labels, count = ndimage.label(mask)
    sparse = label_voxels(np.flatnonzero(mask), shape)
    assert len(np.unique(sparse)) == count == len({*zip(sparse.tolist(), labels[mask].tolist())})
    union = np.zeros(shape, dtype=np.bool_)
    for (where, inside), nodule in zip(boxes, score.nodules):
        alone: npt.NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        alone[where] = inside
        union |= alone
        touching = mask & np.isin(labels, labels[alone & mask])
        assert nodule.touched == (alone & mask).any()
        assert nodule.dice == pytest.approx(2 * (touching & alone).sum() / (touching.sum() + alone.sum()))
    full = union.any(axis=(1, 2))
    counts = (mask & union).sum(), (mask & ~union)[full].sum(), (union & ~mask).sum()
    assert (score.tp, score.fp, score.fn) == counts
    assert score.slices == full.sum()


# --- scans together ---


def test_the_pixels_of_all_scans_are_one_sum_and_nodules_count_one_by_one() -> None:
    scans = [
        SegmentedScan(
            voxels=10, flagged=9, tp=6, fp=2, fn=2, slices=3,
            nodules=(SegmentedNodule(touched=True, dice=0.8), MISSED),
        ),
        SegmentedScan(
            voxels=10, flagged=1, tp=0, fp=2, fn=4, slices=1, nodules=(SegmentedNodule(touched=True, dice=0.1),)
        ),
    ]  # fmt: skip
    score = pool_segmentation(scans)
    assert score == SegmentationScore(
        slices=4,
        precision=6 / 10,
        recall=6 / 12,
        f1=2 * 6 / (2 * 6 + 4 + 6),
        nodules=3,
        touched=2,
        mean_dice=pytest.approx(0.3),
        median_dice=0.1,
    )


def test_without_nodules_the_shares_are_not_defined() -> None:
    score = pool_segmentation([score_segmentation(marked(NODULE), [], 0.5)])
    assert all(math.isnan(v) for v in (score.precision, score.recall, score.f1, score.mean_dice, score.median_dice))
    assert json.loads(json.dumps(score.as_dict(), allow_nan=False))["recall"] is None
