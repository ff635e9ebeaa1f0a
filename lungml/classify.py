"""How probable is a nodule, or a malignant one, at these places of a scan?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lungml.crops import CROP_SHAPE, clip_hu, cut_box, cut_boxes, place_in_boxes, resample_mm
from lungml.geometry import Grid
from lungml.inference import InferenceSettings, prepare
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.segment import flip, mirror_axes

CROPS_PER_BATCH = 4
CUDA_CROPS_PER_BATCH = 256
IN_FULL = InferenceSettings()


@torch.inference_mode()
def classify(
    hu: npt.NDArray[np.int16],
    centers_irc: npt.NDArray[np.float64],
    models: Sequence[NoduleNet],
    *,
    grid: Grid | None = None,
    flips: bool | Sequence[bool] = False,
    inference: InferenceSettings = IN_FULL,
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
        inference: precision and compiled are heeded here; float32 without it.

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
    networks = [prepare(model, inference) for model in models]
    probs = torch.empty((len(models), len(centers_irc)), dtype=torch.float64, device=device)
    for start in range(0, len(centers_irc), batch):
        centers = centers_irc[start : start + batch]
        for rows in views.values():
            crops = _cut(hu, centers, models[rows[0]].config, grid, device)
            for row in rows:
                mirrors = mirror_axes(2, 3, 4) if flipped[row] else [()]
                answers = [torch.softmax(networks[row](flip(crops, axes)).double(), dim=1)[:, 1] for axes in mirrors]
                probs[row, start : start + len(centers)] = torch.stack(answers).mean(dim=0)
    return probs.cpu().numpy()  # only now: a GPU works on one batch while the next is cut


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
        return _send(boxes, device)
    if grid is None:
        raise ValueError("a model's crops are in mm; give the scan's grid")
    # As in training, which resamples what the crop cache holds: clipped boxes of this many voxels.
    boxes = clip_hu(cut_boxes(hu, centers_irc, CROP_SHAPE))
    crops = _send(boxes, device)
    places = torch.from_numpy(place_in_boxes(hu.shape, centers_irc, CROP_SHAPE)).to(device)
    spacings = torch.from_numpy(grid.spacing_irc).expand(len(boxes), 3).to(device)
    return resample_mm(crops, places, spacings, config.crop_shape, config.spacing_mm)


def _send(boxes: npt.NDArray[np.int16], device: torch.device) -> torch.Tensor:
    """(n, D, H, W) int16 to (n, 1, D, H, W) float32 on the device, without waiting for it."""
    crops = torch.from_numpy(boxes)
    if device.type == "cuda":
        crops = crops.pin_memory()
    return crops.to(device, non_blocking=True).float()[:, None]
