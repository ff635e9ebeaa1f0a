"""Which voxels of this scan may belong to a nodule?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from lungml.crops import clip_hu
from lungml.marked import Marked
from lungml.models.unet import UNet

SLICES_PER_BATCH = 1  # more slices at once are slower on a CPU: the activations leave the cache
CUDA_SLICES_PER_BATCH = 16


@torch.inference_mode()
def segment(
    hu: npt.NDArray[np.int16],
    models: UNet | Sequence[UNet],
    *,
    floor: float = 0.5,
    flips: bool = False,
    on_slice: Callable[[int, int], None] | None = None,
) -> Marked:
    """Segment every slice of a scan with its neighbours as channels; edge slices are repeated.

    Args:
        hu: (index, row, col) int16, any in-plane size.
        models: one, or several whose probabilities are averaged; in eval mode, on one device; the work runs there.
        floor: voxels of higher probability are kept, exclusive; in [0, 1).
        flips: average over each slice's four mirror images in plane as well; four times the work.
        on_slice: called with (slices done, slices in all).

    Raises:
        ValueError: when the floor is no such number.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor {floor} is not in [0, 1)")
    models = (models,) if isinstance(models, UNet) else tuple(models)
    device = next(models[0].parameters()).device
    batch = CUDA_SLICES_PER_BATCH if device.type == "cuda" else SLICES_PER_BATCH
    multiple = max(model.config.multiple for model in models)  # powers of two: the largest serves all
    context = max(model.config.context_slices for model in models)
    mirrors = mirror_axes(2, 3) if flips else [()]
    count, rows, cols = hu.shape
    pad = (0, -cols % multiple, 0, -rows % multiple)
    alone = len(models) == len(mirrors) == 1
    # Sigmoid is monotonic: where nothing is averaged it need only be taken of the few voxels that pass.
    limit = floor if not alone else math.log(floor / (1 - floor)) if floor > 0 else -math.inf
    volume = torch.from_numpy(clip_hu(hu)).to(device)
    voxels: list[npt.NDArray[np.int64]] = []
    probs: list[npt.NDArray[np.float32]] = []
    offsets = torch.arange(-context, context + 1, device=device)
    for start in range(0, count, batch):
        middles = torch.arange(start, min(start + batch, count), device=device)
        slabs = volume[(middles[:, None] + offsets).clamp(0, count - 1)].float()
        if any(pad):
            slabs = torch.nn.functional.pad(slabs, pad, mode="replicate")
        slabs = slabs.to(memory_format=torch.channels_last)
        scores = models[0](slabs) if alone else _mean_probs(slabs, models, mirrors)
        flat = scores[:, 0, :rows, :cols].reshape(-1)
        places = torch.nonzero(flat > limit)[:, 0]
        found = flat[places]
        voxels.append(places.cpu().numpy() + start * rows * cols)
        probs.append((torch.sigmoid(found) if alone else found).cpu().numpy())
        if on_slice:
            on_slice(start + len(middles), count)
    return Marked(
        shape=(count, rows, cols),
        voxels=np.concatenate(voxels) if voxels else np.empty(0, np.int64),
        probs=np.concatenate(probs) if probs else np.empty(0, np.float32),
        floor=floor,
    )


def _mean_probs(slabs: torch.Tensor, models: Sequence[UNet], mirrors: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """(B, 1, H, W) probabilities averaged over models and mirror images; each model sees its own context."""
    total = torch.zeros_like(slabs[:, :1])
    for axes in mirrors:
        seen = flip(slabs, axes)
        for model in models:
            spare = (seen.shape[1] - model.config.channels) // 2
            context = seen[:, spare : spare + model.config.channels].contiguous(memory_format=torch.channels_last)
            total += flip(torch.sigmoid(model(context)), axes)
    return total / (len(mirrors) * len(models))


def mirror_axes(*axes: int) -> list[tuple[int, ...]]:
    """Every set of axes to flip, the empty one first."""
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


def flip(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return torch.flip(x, axes) if axes else x
