"""Which findings does this scan hold, and what did each stage think of them?"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lungml.candidates import GroupingSettings, group_candidates
from lungml.crops import CONTEXT_SLICES, CROP_SHAPE, clip_hu, cut_box
from lungml.files import write_csv_atomic
from lungml.geometry import Grid, irc_to_xyz
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet

Stage = Literal["filtered", "benign", "malignant"]
SLICES_PER_BATCH = 1  # more slices at once are slower on a CPU: the activations leave the cache
CROPS_PER_BATCH = 4
CUDA_SLICES_PER_BATCH, CUDA_CROPS_PER_BATCH = 16, 256
FINDINGS_COLUMNS = (
    "series_uid", "x_mm", "y_mm", "z_mm", "index", "row", "col", "prob_nodule", "prob_malignant", "stage",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One candidate with what the classifiers said; none is ever left out.

    Attributes:
        center_irc: fractional voxels.
        center_xyz: the same point, mm, LPS.
        prob_nodule: probability of being a nodule.
        prob_malignant: probability of malignancy, given that it is one.
        stage: where it ended: filtered (taken for no nodule), benign or malignant.
    """

    center_irc: tuple[float, float, float]
    center_xyz: tuple[float, float, float]
    prob_nodule: float
    prob_malignant: float
    stage: Stage


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Three models and the settings that make findings of them; the models are in eval mode on one device."""

    segmentation: UNet
    nodule: NoduleNet
    malignancy: NoduleNet
    grouping: GroupingSettings = field(default_factory=GroupingSettings)
    nodule_threshold: float = 0.5
    malignant_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("nodule_threshold", "malignant_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1]")
        for model in (self.segmentation, self.nodule, self.malignancy):
            model.eval()


@torch.inference_mode()
def segment(
    hu: npt.NDArray[np.int16],
    model: UNet,
    *,
    threshold: float = 0.5,
    on_slice: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.bool_]:
    """Segment every slice of a scan with its neighbours as channels; edge slices are repeated.

    Args:
        hu: (index, row, col) int16, any in-plane size.
        model: in eval mode; the work runs on its device.
        threshold: on the probability, exclusive.
        on_slice: called with (slices done, slices in all).

    Returns:
        (index, row, col) bool.
    """
    device = next(model.parameters()).device
    batch = CUDA_SLICES_PER_BATCH if device.type == "cuda" else SLICES_PER_BATCH
    multiple = model.config.multiple
    count, rows, cols = hu.shape
    pad = (0, -cols % multiple, 0, -rows % multiple)
    # sigmoid is monotonic: the threshold moves to the logits and no sigmoid runs over the scan.
    logit = float(np.log(threshold / (1 - threshold))) if threshold > 0 else -np.inf
    volume = torch.from_numpy(clip_hu(hu)).to(device)
    mask = np.empty(hu.shape, dtype=np.bool_)
    offsets = torch.arange(-CONTEXT_SLICES, CONTEXT_SLICES + 1, device=device)
    for start in range(0, count, batch):
        middles = torch.arange(start, min(start + batch, count), device=device)
        slabs = volume[(middles[:, None] + offsets).clamp(0, count - 1)].float()
        if any(pad):
            slabs = torch.nn.functional.pad(slabs, pad, mode="replicate")
        logits = model(slabs.to(memory_format=torch.channels_last))
        mask[start : start + len(middles)] = (logits[:, 0, :rows, :cols] > logit).cpu().numpy()
        if on_slice:
            on_slice(start + len(middles), count)
    return mask


@torch.inference_mode()
def classify(
    hu: npt.NDArray[np.int16], centers_irc: npt.NDArray[np.float64], models: tuple[NoduleNet, ...]
) -> npt.NDArray[np.float64]:
    """Probability of class 1 at every centre, by each model, on crops around the centre's voxel.

    Halves go to the even voxel, as in the report's published results.

    Args:
        hu: (index, row, col) int16.
        centers_irc: (n, 3) fractional voxels.
        models: in eval mode, on one device.

    Returns:
        (len(models), n) float64.
    """
    device = next(models[0].parameters()).device
    batch = CUDA_CROPS_PER_BATCH if device.type == "cuda" else CROPS_PER_BATCH
    probs = np.empty((len(models), len(centers_irc)))
    for start in range(0, len(centers_irc), batch):
        voxels = np.rint(centers_irc[start : start + batch])
        boxes = np.stack([clip_hu(cut_box(hu, voxel, CROP_SHAPE)) for voxel in voxels])
        crops = torch.from_numpy(boxes).to(device).float()[:, None].to(memory_format=torch.channels_last_3d)
        for row, model in enumerate(models):
            found = torch.softmax(model(crops).double(), dim=1)[:, 1]
            probs[row, start : start + len(boxes)] = found.cpu().numpy()
    return probs


def find_nodules(
    hu: npt.NDArray[np.int16],
    grid: Grid,
    bundle: Bundle,
    *,
    on_slice: Callable[[int, int], None] | None = None,
) -> tuple[Finding, ...]:
    """Scan in, every candidate out, the most probable nodule first.

    Args:
        hu: (index, row, col) int16, not clipped; left as it is.
        grid: the scan's sampling grid.
        bundle: models and settings.
        on_slice: progress of the segmentation, see `segment`.
    """
    mask = segment(hu, bundle.segmentation, threshold=bundle.grouping.threshold, on_slice=on_slice)
    centers = group_candidates(mask, hu, bundle.grouping)
    prob_nodule, prob_malignant = classify(hu, centers, (bundle.nodule, bundle.malignancy))
    points = irc_to_xyz(centers, grid)
    findings = []
    for position in np.argsort(-prob_nodule, kind="stable"):
        stage: Stage = "filtered"
        if prob_nodule[position] >= bundle.nodule_threshold:
            stage = "malignant" if prob_malignant[position] >= bundle.malignant_threshold else "benign"
        index, row, col = centers[position].tolist()
        x, y, z = points[position].tolist()
        findings.append(
            Finding(
                center_irc=(index, row, col),
                center_xyz=(x, y, z),
                prob_nodule=float(prob_nodule[position]),
                prob_malignant=float(prob_malignant[position]),
                stage=stage,
            )
        )
    return tuple(findings)


def write_findings(path: Path, series_uid: str, findings: tuple[Finding, ...]) -> None:
    """Write `findings.csv`, every candidate a row, whole or not at all; a scan without candidates has a header only."""
    rows = [
        (
            series_uid,
            *(f"{mm:.4f}" for mm in f.center_xyz),
            *(f"{voxel:.4f}" for voxel in f.center_irc),
            f"{f.prob_nodule:.9g}",  # as exact as float32: saturated scores keep their order
            f"{f.prob_malignant:.9g}",
            f.stage,
        )
        for f in findings
    ]
    write_csv_atomic(path, FINDINGS_COLUMNS, rows)


def read_findings(path: Path) -> tuple[Finding, ...]:
    """The findings of a `findings.csv`, in its order."""
    with path.open(newline="") as handle:
        return tuple(
            Finding(
                center_irc=(float(row["index"]), float(row["row"]), float(row["col"])),
                center_xyz=(float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"])),
                prob_nodule=float(row["prob_nodule"]),
                prob_malignant=float(row["prob_malignant"]),
                stage=row["stage"],  # type: ignore[arg-type]
            )
            for row in csv.DictReader(handle)
        )
