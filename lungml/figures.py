"""Which figures, and which figures of merit, does a finished training leave?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from lungml import augment, store
from lungml.crop_cache import BENIGN, MALIGNANT, NON_NODULE
from lungml.crops import clip_hu, cut_box
from lungml.fit import Problem
from lungml.pictures import Picture, draw_augmentation, draw_worst
from lungml.plots import Origin, draw_calibration, draw_confusion, draw_curves
from lungml.recipes.classification import CropProblem
from lungml.recipes.data import PreparedScan, Split, of_split, open_crops
from lungml.recipes.segmentation import SegmentationProblem
from lungml.scored import Scored, worst_errors

THRESHOLD = 0.5  # where precision, recall and F1 are read, as in the report
WORST = 8  # pictures of either kind of error
SHEET_ROWS, SHEET_VERSIONS = 4, 5
PICTURE_SIDE = 96  # pixels around an error of the U-Net
NEAR_VOXELS = 15.0  # errors of the U-Net nearer than this are one
ERROR_SCANS = 10  # validation scans that are looked through for errors of the U-Net
NOTES = {NON_NODULE: "non-nodule", BENIGN: "benign", MALIGNANT: "malignant"}
SPLITS: tuple[Split, Split] = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a classifier's probabilities are worth on one split, beside its metrics."""

    positives: int
    negatives: int
    ece: float
    brier: float
    average_precision: float


def judged(problem: CropProblem) -> dict[str, Scored]:
    """What the model says of the crops of the validation and test scans."""
    scored = {}
    for split in SPLITS:
        targets, probs = problem.predict(split)
        scored[str(split)] = Scored(targets=targets, probs=probs)
    return scored


def crop_figures(
    problem: CropProblem,
    scans: Sequence[PreparedScan],
    augmentation: augment.Augmentation,
    *,
    scored: Mapping[str, Scored],
    threshold: float,
    title: str,
    origin: Origin,
    rng: np.random.Generator,
) -> tuple[dict[str, Figure], dict[str, Quality]]:
    """Curves, confusion, calibration, the worst errors of the validation split, and what augmentation makes of crops.

    Args:
        problem: with the kept weights.
        scans: of all splits.
        augmentation: of the training crops.
        scored: see `judged`.
        threshold: from which probability on the model says yes.
        title: of the figures.
        origin: "phantom" labels them.
        rng: chooses and changes the crops of the augmentation sheet.
    """
    figures = {
        "roc_pr": draw_curves(scored, threshold=threshold, title=title, origin=origin),
        "confusion": draw_confusion(scored, threshold=threshold, title=title, origin=origin),
        "calibration": draw_calibration(scored, title=title, origin=origin),
    }
    alarms, missed = worst_errors(scored["val"], threshold=threshold, limit=WORST)
    _, fp, fn, _ = scored["val"].counts(threshold)
    for name, rows, total in (("false_positives", alarms, fp), ("false_negatives", missed, fn)):
        pictures = _crop_pictures(problem, scans, rows, scored["val"].probs)
        kind = name.replace("_", " ")
        figures[f"worst_{name}"] = draw_worst(
            pictures, title=f"{title}: worst validation {kind}", origin=origin, total=total
        )
    sheet = _crop_sheet(problem, augmentation, rng)
    figures["augmentation"] = draw_augmentation(*sheet, title=f"{title}: augmentation", origin=origin)
    quality: dict[str, Quality] = {
        split: Quality(
            positives=one.positives,
            negatives=one.negatives,
            ece=one.reliability.ece,
            brier=one.reliability.brier,
            average_precision=one.average_precision,
        )
        for split, one in scored.items()
    }
    return figures, quality


def slice_figures(
    problem: SegmentationProblem,
    scans: Sequence[PreparedScan],
    augmentation: augment.Augmentation,
    *,
    title: str,
    origin: Origin,
    rng: np.random.Generator,
) -> dict[str, Figure]:
    """The slices where the U-Net missed or invented most in validation, and slabs as augmentation makes them.

    Args as of `crop_figures`.
    """
    chosen = of_split(scans, "val")
    if len(chosen) > ERROR_SCANS:
        chosen = [chosen[i] for i in sorted(rng.choice(len(chosen), ERROR_SCANS, replace=False))]
    missed: list[tuple[int, Picture]] = []
    invented: list[tuple[int, Picture]] = []
    for scan in chosen:
        for wrong, pixels, picture in _slice_errors(problem, scan):
            (missed if wrong == "missed" else invented).append((pixels, picture))
    figures = {}
    for name, found in (("missed", missed), ("invented", invented)):
        worst = _apart([picture for _, picture in sorted(found, key=lambda item: -item[0])])[:WORST]
        figures[f"worst_{name}"] = draw_worst(
            worst, title=f"{title}: most {name} pixels, validation", origin=origin, total=len(found)
        )
    slabs, masks = _slab_batch(problem, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    versions = [augment.augment_slabs(slabs, masks, augmentation, generator) for _ in range(SHEET_VERSIONS)]
    middle = slabs.shape[1] // 2
    figures["augmentation"] = draw_augmentation(
        slabs[:, middle].numpy(),
        np.stack([s[:, middle].numpy() for s, _ in versions], axis=1),
        masks=masks[:, 0].numpy() > 0,
        augmented_masks=np.stack([m[:, 0].numpy() > 0 for _, m in versions], axis=1),
        title=f"{title}: augmentation",
        origin=origin,
    )
    return figures


def _apart(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures in their order, without those of an error that an earlier one shows in a slice close by."""
    kept: list[Picture] = []
    for picture in pictures:
        same = [other for other in kept if other.series_uid == picture.series_uid]
        if all(math.dist(picture.center, other.center) > NEAR_VOXELS for other in same):
            kept.append(picture)
    return kept


def _crop_pictures(
    problem: CropProblem, scans: Sequence[PreparedScan], rows: Sequence[int], probs: npt.NDArray[Any]
) -> list[Picture]:
    """Pictures of some of the validation crops that `predict` judged, by their place among them."""
    of = of_split(scans, "val")
    cache = open_crops(of, ["crops", "labels", "centers_xyz", "diameters_mm"])
    labels = cache.column("labels")
    judged = np.flatnonzero(np.isin(labels, problem.judged))[list(rows)]
    if not len(judged):
        return []
    centers, diameters = cache.rows("centers_xyz", judged), cache.rows("diameters_mm", judged)
    pictures = []
    for row, crop, center, diameter, label, folder in zip(
        rows, cache.rows("crops", judged), centers, diameters, labels[judged], cache.scan_of(judged)
    ):
        size = "" if math.isnan(diameter) else f" {diameter:.1f} mm"
        x, y, z = center.tolist()
        pictures.append(
            Picture(
                hu=crop,
                series_uid=of[folder].series_uid,
                center=(x, y, z),
                prob=float(probs[row]),
                note=NOTES[int(label)] + size,
            )
        )
    return pictures


def _crop_sheet(
    problem: CropProblem, augmentation: augment.Augmentation, rng: np.random.Generator
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rows = problem.order(rng, SHEET_ROWS, 1)
    with closing(problem.loaded([rows])) as loaded:
        crops = problem.view(next(loaded)).cpu()
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    versions = [augment.augment_crops(crops, augmentation, generator) for _ in range(SHEET_VERSIONS)]
    return crops[:, 0].numpy(), np.stack([version[:, 0].numpy() for version in versions], axis=1)


def _slab_batch(problem: Problem, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = problem.order(rng, SHEET_ROWS, 1)
    with closing(problem.loaded([rows])) as loaded:
        batch = next(loaded)
    return batch.arrays[0].cpu().float(), batch.arrays[1].cpu().view(torch.int8).float()[:, None]


@torch.inference_mode()
def _slice_errors(problem: SegmentationProblem, scan: PreparedScan) -> Iterator[tuple[str, int, Picture]]:
    """Of every slice that holds mask: "missed" or "invented", how many pixels, and a picture around them."""
    mask = store.read_mask(scan.store, scan.mask_name)
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(marked):
        return
    hu = clip_hu(store.read_volume(scan.store))
    volume = torch.from_numpy(hu).to(next(problem.model.parameters()).device)
    for middle in marked.tolist():
        flagged = (problem.logits(volume, np.array([middle]))[0, 0] > 0).cpu().numpy()
        target = mask[middle] > 0
        for name, wrong in (("missed", target & ~flagged), ("invented", flagged & ~target)):
            pixels = int(wrong.sum())
            if not pixels:
                continue
            row, col = (float(axis.mean()) for axis in np.nonzero(wrong))
            picture = Picture(
                hu=_around(hu[middle], row, col),
                series_uid=scan.series_uid,
                center=(float(middle), row, col),
                frame="irc",
                note=f"{pixels} pixels {name}",
                target=_around(target, row, col),
                flagged=_around(flagged, row, col),
            )
            yield name, pixels, picture


def _around(plane: npt.NDArray[Any], row: float, col: float) -> npt.NDArray[Any]:
    """The part of a slice that is shown around one of its pixels."""
    side = min(PICTURE_SIDE, *plane.shape)
    return cut_box(plane[None], (0, row, col), (1, side, side))[0]
