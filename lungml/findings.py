"""Which findings does this scan hold, and what did each stage think of them?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lungml.candidates import GroupingSettings, group_candidates
from lungml.crops import CROP_SHAPE, clip_hu, cut_box, cut_boxes, place_in_boxes, resample_mm
from lungml.files import write_csv_atomic
from lungml.geometry import Grid, irc_to_xyz
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.models.unet import UNet

Stage = Literal["filtered", "benign", "malignant"]
Member = Literal["segmentation", "nodule", "malignancy"]
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
    """Trained models and the settings that make findings of them; the models are in eval mode on one device.

    Of several models for one question, such as those of several seeds, the probabilities are averaged. Each costs
    what one costs.

    Attributes:
        segmentation, nodule, malignancy: one model or more each; a model given alone becomes a tuple of one.
        grouping: how voxels become candidates.
        nodule_threshold: on the averaged probability, inclusive.
        malignant_threshold: the same.
        flips: whose answers are averaged over mirror images as well: the U-Net sees each slice in its four mirror
            images in plane and so costs four times as much, a classifier sees each crop in all eight and costs
            eight times as much.

    Raises:
        ValueError: when a member has no model, a threshold is no probability, or `flips` names no member.
    """

    segmentation: tuple[UNet, ...]
    nodule: tuple[NoduleNet, ...]
    malignancy: tuple[NoduleNet, ...]
    grouping: GroupingSettings = field(default_factory=GroupingSettings)
    nodule_threshold: float = 0.5
    malignant_threshold: float = 0.5
    flips: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        for name in ("nodule_threshold", "malignant_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1]")
        object.__setattr__(self, "flips", tuple(self.flips))  # JSON gives a list
        unknown = sorted(set(self.flips) - set(get_args(Member)))
        if unknown:
            raise ValueError(f"flips names {', '.join(unknown)}; choose from {', '.join(get_args(Member))}")
        for name in get_args(Member):
            given = getattr(self, name)
            models = (given,) if isinstance(given, torch.nn.Module) else tuple(given)
            if not models:
                raise ValueError(f"the bundle has no {name} model")
            for model in models:
                model.eval()
            object.__setattr__(self, name, models)


@torch.inference_mode()
def segment(
    hu: npt.NDArray[np.int16],
    models: UNet | Sequence[UNet],
    *,
    threshold: float = 0.5,
    flips: bool = False,
    on_slice: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.bool_]:
    """Segment every slice of a scan with its neighbours as channels; edge slices are repeated.

    Args:
        hu: (index, row, col) int16, any in-plane size.
        models: one, or several whose probabilities are averaged; in eval mode, on one device; the work runs there.
        threshold: on the probability, exclusive.
        flips: average over each slice's four mirror images in plane as well; four times the work.
        on_slice: called with (slices done, slices in all).

    Returns:
        (index, row, col) bool.
    """
    models = (models,) if isinstance(models, UNet) else tuple(models)
    device = next(models[0].parameters()).device
    batch = CUDA_SLICES_PER_BATCH if device.type == "cuda" else SLICES_PER_BATCH
    multiple = max(model.config.multiple for model in models)  # powers of two: the largest serves all
    context = max(model.config.context_slices for model in models)
    mirrors = _mirrors(2, 3) if flips else [()]
    count, rows, cols = hu.shape
    pad = (0, -cols % multiple, 0, -rows % multiple)
    alone = len(models) == len(mirrors) == 1
    # sigmoid is monotonic: where nothing is averaged the threshold moves to the logits and no sigmoid runs.
    limit = threshold
    if alone:
        limit = float(np.log(threshold / (1 - threshold))) if threshold > 0 else -np.inf
    volume = torch.from_numpy(clip_hu(hu)).to(device)
    mask = np.empty(hu.shape, dtype=np.bool_)
    offsets = torch.arange(-context, context + 1, device=device)
    for start in range(0, count, batch):
        middles = torch.arange(start, min(start + batch, count), device=device)
        slabs = volume[(middles[:, None] + offsets).clamp(0, count - 1)].float()
        if any(pad):
            slabs = torch.nn.functional.pad(slabs, pad, mode="replicate")
        slabs = slabs.to(memory_format=torch.channels_last)
        scores = models[0](slabs) if alone else _mean_probs(slabs, models, mirrors)
        mask[start : start + len(middles)] = (scores[:, 0, :rows, :cols] > limit).cpu().numpy()
        if on_slice:
            on_slice(start + len(middles), count)
    return mask


def _mean_probs(slabs: torch.Tensor, models: Sequence[UNet], mirrors: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """(B, 1, H, W) probabilities averaged over models and mirror images; each model sees its own context."""
    total = torch.zeros_like(slabs[:, :1])
    for axes in mirrors:
        seen = _flip(slabs, axes)
        for model in models:
            spare = (seen.shape[1] - model.config.channels) // 2
            context = seen[:, spare : spare + model.config.channels].contiguous(memory_format=torch.channels_last)
            total += _flip(torch.sigmoid(model(context)), axes)
    return total / (len(mirrors) * len(models))


@torch.inference_mode()
def classify(
    hu: npt.NDArray[np.int16],
    centers_irc: npt.NDArray[np.float64],
    models: Sequence[NoduleNet],
    *,
    grid: Grid | None = None,
    flips: bool | Sequence[bool] = False,
) -> npt.NDArray[np.float64]:
    """Probability of class 1 at every centre, by each model, on crops as its configuration has them.

    A crop of voxels lies around the centre's voxel; halves go to the even voxel, as in the report's published
    results. A crop in mm is resampled, see `lungml.crops.resample_mm`. Models that see the same crop share it.

    Args:
        hu: (index, row, col) int16.
        centers_irc: (n, 3) fractional voxels.
        models: in eval mode, on one device.
        grid: the scan's sampling grid; only crops in mm need it.
        flips: of each model, or of all: average over the crop's eight mirror images; eight times the work.

    Returns:
        (len(models), n) float64.

    Raises:
        ValueError: when a model's crops are in mm and there is no grid.
    """
    device = next(models[0].parameters()).device
    batch = CUDA_CROPS_PER_BATCH if device.type == "cuda" else CROPS_PER_BATCH
    flipped = [flips] * len(models) if isinstance(flips, bool) else list(flips)
    views: dict[tuple[Any, ...], list[int]] = {}  # what is seen: the models that see it
    for row, model in enumerate(models):
        views.setdefault((model.config.crop_shape, model.config.spacing_mm), []).append(row)
    probs = np.empty((len(models), len(centers_irc)))
    for start in range(0, len(centers_irc), batch):
        centers = centers_irc[start : start + batch]
        for rows in views.values():
            crops = _cut(hu, centers, models[rows[0]].config, grid, device)
            crops = crops.to(memory_format=torch.channels_last_3d)
            for row in rows:
                mirrors = _mirrors(2, 3, 4) if flipped[row] else [()]
                answers = [torch.softmax(models[row](_flip(crops, axes)).double(), dim=1)[:, 1] for axes in mirrors]
                probs[row, start : start + len(centers)] = torch.stack(answers).mean(dim=0).cpu().numpy()
    return probs


def _cut(
    hu: npt.NDArray[np.int16],
    centers_irc: npt.NDArray[np.float64],
    config: NoduleNetConfig,
    grid: Grid | None,
    device: torch.device,
) -> torch.Tensor:
    """(n, 1, D, H, W) float32 clipped HU around each centre, on the device, as a configuration has its crops."""
    if config.spacing_mm is None:
        boxes = np.stack([clip_hu(cut_box(hu, voxel, config.crop_shape)) for voxel in np.rint(centers_irc)])
        return torch.from_numpy(boxes).to(device).float()[:, None]
    if grid is None:
        raise ValueError("a model's crops are in mm; give the scan's grid")
    # As in training, which resamples what the crop cache holds: clipped boxes of this many voxels.
    boxes = clip_hu(cut_boxes(hu, centers_irc, CROP_SHAPE))
    crops = torch.from_numpy(boxes).to(device).float()[:, None]
    places = torch.from_numpy(place_in_boxes(hu.shape, centers_irc, CROP_SHAPE)).to(device)
    spacings = torch.from_numpy(grid.spacing_irc).expand(len(boxes), 3).to(device)
    return resample_mm(crops, places, spacings, config.crop_shape, config.spacing_mm)


def _mirrors(*axes: int) -> list[tuple[int, ...]]:
    """Every set of axes to flip, the empty one first."""
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


def _flip(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return torch.flip(x, axes) if axes else x


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
        bundle: models and settings; where a member has several models, their probabilities are averaged.
        on_slice: progress of the segmentation, see `segment`.
    """
    mask = segment(
        hu,
        bundle.segmentation,
        threshold=bundle.grouping.threshold,
        flips="segmentation" in bundle.flips,
        on_slice=on_slice,
    )
    centers = group_candidates(mask, hu, bundle.grouping)
    nodule, malignancy = len(bundle.nodule), len(bundle.malignancy)
    flips = ["nodule" in bundle.flips] * nodule + ["malignancy" in bundle.flips] * malignancy
    probs = classify(hu, centers, (*bundle.nodule, *bundle.malignancy), grid=grid, flips=flips)
    prob_nodule, prob_malignant = probs[:nodule].mean(axis=0), probs[nodule:].mean(axis=0)
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
