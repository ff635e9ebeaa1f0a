"""How probable is a nodule, or a malignant one, at these places of a scan?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lungml.crops import (
    CROP_SHAPE,
    HU_MAX,
    HU_MIN,
    clip_hu,
    cut_box,
    cut_boxes,
    index_boxes,
    place_in_boxes,
    resample_mm,
)
from lungml.devices import send
from lungml.geometry import Grid
from lungml.inference import InferenceSettings, float32_products, prepare
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.segment import flip, mirror_axes

CROPS_PER_BATCH = 4
CUDA_CROPS_PER_BATCH = 256
IN_FULL = InferenceSettings()


@torch.inference_mode()
@float32_products()
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
    # Many crops are cut on a GPU: that is less to copy than the crops, and no work for Python.
    many = device.type == "cuda" and len(centers_irc) * np.prod(CROP_SHAPE) > hu.size
    scan = send(np.ascontiguousarray(hu), device) if many else None
    for start in range(0, len(centers_irc), batch):
        centers = centers_irc[start : start + batch]
        for rows in views.values():
            crops = _cut(hu, scan, centers, models[rows[0]].config, grid, device)
            for row in rows:
                mirrors = mirror_axes(2, 3, 4) if flipped[row] else [()]
                answers = [torch.softmax(networks[row](flip(crops, axes)).double(), dim=1)[:, 1] for axes in mirrors]
                probs[row, start : start + len(centers)] = torch.stack(answers).mean(dim=0)
    return probs.cpu().numpy()  # only now: a GPU works on one batch while the next is cut


def _cut(
    hu: npt.NDArray[np.int16],
    scan: torch.Tensor | None,
    centers_irc: npt.NDArray[np.float64],
    config: NoduleNetConfig,
    grid: Grid | None,
    device: torch.device,
) -> torch.Tensor:
    """(n, 1, D, H, W) float32 clipped HU around each centre, on the device, as a configuration has its crops.

    They are cut there where the scan is there, too.
    """
    if config.spacing_mm is None:
        if scan is not None:
            return _cut_there(scan, np.rint(centers_irc), config.crop_shape)
        boxes = np.stack([clip_hu(cut_box(hu, voxel, config.crop_shape)) for voxel in np.rint(centers_irc)])
        return _floats(send(boxes, device))
    if grid is None:
        raise ValueError("a model's crops are in mm; give the scan's grid")
    # As in training, which resamples what the crop cache holds: clipped boxes of this many voxels.
    if scan is not None:
        crops = _cut_there(scan, centers_irc, CROP_SHAPE)
    else:
        crops = _floats(send(clip_hu(cut_boxes(hu, centers_irc, CROP_SHAPE)), device))
    places = send(place_in_boxes(hu.shape, centers_irc, CROP_SHAPE), device)
    spacings = send(grid.spacing_irc, device).expand(len(crops), 3)
    return resample_mm(crops, places, spacings, config.crop_shape, config.spacing_mm)


def _cut_there(scan: torch.Tensor, centers_irc: npt.NDArray[np.float64], shape: tuple[int, int, int]) -> torch.Tensor:
    """The clipped boxes of `cut_boxes` around each centre, cut on the scan's device; (n, 1, *shape) float32."""
    index, row, col = (send(axis, scan.device) for axis in index_boxes(tuple(scan.shape), centers_irc, shape))
    return _floats(scan[index, row, col].clamp_(HU_MIN, HU_MAX))


def _floats(boxes: torch.Tensor) -> torch.Tensor:
    """(n, D, H, W) int16 to (n, 1, D, H, W) float32."""
    return boxes.float()[:, None]
