"""Which voxels of this scan may belong to a nodule?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from lungml.crops import HU_MAX, HU_MIN, clip_hu
from lungml.devices import send
from lungml.errors import FindingError
from lungml.inference import InferenceSettings, Network, float32_products, prepare
from lungml.lungs import LungField
from lungml.marked import Marked
from lungml.models.unet import UNet

CUDA_SLICES = 16  # at once; on a CPU more than one are slower, because the activations leave the cache
SLICES_PER_BLOCK = 8  # are read at once, and share one box around the lungs
BOX_MULTIPLE = 16  # sides of such boxes: each new size costs a CPU as much as a seventh of a slice
Box = tuple[slice, slice]  # rows and columns
PLAIN = InferenceSettings()


@torch.inference_mode()
@float32_products()
def segment(
    hu: npt.NDArray[np.int16],
    models: UNet | Sequence[UNet],
    *,
    floor: float = 0.5,
    flips: bool = False,
    on_slice: Callable[[int, int], None] | None = None,
    field: LungField | None = None,
    inference: InferenceSettings = PLAIN,
) -> Marked:
    """Segment every slice of a scan with its neighbours as channels; edge slices are repeated.

    Args:
        hu: (index, row, col) int16, any in-plane size.
        models: one, or several whose probabilities are averaged; in eval mode, on one device; the work runs there.
        floor: voxels of higher probability are kept, exclusive; in [0, 1).
        flips: average over each slice's four mirror images in plane as well; four times the work.
        on_slice: called with (slices done, slices in all); slices that are left out count as done.
        field: where to look, see `lungml.field.field_to_read`. Blocks of slices are segmented in the box that holds
            all of it, where every voxel gets the probability that it gets without a field; elsewhere none is kept.
        inference: precision and compiled are heeded here; float32, not compiled, without it.

    Raises:
        ValueError: when the floor is no such number, or a model gives a probability that is not a number.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor {floor} is not in [0, 1)")
    models = (models,) if isinstance(models, UNet) else tuple(models)
    device = next(models[0].parameters()).device
    batch, block = (CUDA_SLICES, CUDA_SLICES) if device.type == "cuda" else (1, SLICES_PER_BLOCK)
    networks = [prepare(model, inference) for model in models]
    mirrors = mirror_axes(2, 3) if flips else [()]
    alone = len(models) == len(mirrors) == 1
    # Sigmoid is monotonic: where nothing is averaged it need only be taken of the few voxels that pass.
    limit = floor if not alone else math.log(floor / (1 - floor)) if floor > 0 else -math.inf
    count, rows, cols = hu.shape
    planes = _Planes(hu, models, block, device)
    voxels: list[torch.Tensor] = []
    probs: list[torch.Tensor] = []
    numbers = torch.tensor(True, device=device)
    for first in range(0, count, block):
        end = min(first + block, count)
        box = field.box(first, end) if field else (slice(0, rows), slice(0, cols))
        if box is None:
            if on_slice:
                on_slice(end, count)
            continue
        slabs, (high, wide) = planes.read(first, end, box)
        for start in range(first, end, batch):
            stop = min(start + batch, end)
            chosen = slabs[start - first : stop - first]
            scores = networks[0](chosen) if alone else _mean_probs(chosen, models, networks, mirrors)
            scores = scores[:, 0, high, wide]
            numbers &= ~torch.isnan(scores).any()
            index, row, col = torch.nonzero(scores > limit, as_tuple=True)
            found = scores[index, row, col]
            voxels.append(((index + start) * rows + row + box[0].start) * cols + col + box[1].start)
            probs.append(torch.sigmoid(found) if alone else found)
            if on_slice:
                on_slice(stop, count)
    if not numbers:  # NaN is above no floor: nothing would be found, and nothing said
        raise FindingError("a segmentation model gave a probability that is not a number; train or import it again")
    places = torch.cat(voxels).cpu().numpy() if voxels else np.empty(0, np.int64)
    said = torch.cat(probs).cpu().numpy() if probs else np.empty(0, np.float32)
    return Marked(shape=(count, rows, cols), voxels=places, probs=said, floor=floor)


class _Planes:
    """Clipped float32 slices of a part of the scan, in memory that one part after the other is read into.

    What surrounds the part is read as far as the networks look, so that they answer in it as on the full slice. Sizes
    that they cannot halve are padded by repeating the last row or column of the scan.
    """

    def __init__(self, hu: npt.NDArray[np.int16], models: Sequence[UNet], block: int, device: torch.device) -> None:
        self._hu = hu
        # A GPU gets the whole scan at once and clips it: block by block, the CPU would not keep up with it.
        self._there = send(np.ascontiguousarray(hu), device) if device.type == "cuda" else None
        self._context = max(model.config.context_slices for model in models)
        self._multiple = max(model.config.multiple for model in models)  # powers of two: the largest serves all
        self._reach = max(model.config.reach for model in models)
        sides = [size + -size % self._multiple for size in hu.shape[1:]]
        self._kept = torch.empty((min(block, len(hu)) + 2 * self._context, *sides), device=device)

    def read(self, first: int, end: int, box: Box) -> tuple[torch.Tensor, Box]:
        """Each of these slices with its neighbours, and where the box lies in what was read around it.

        (end - first, 2 * context + 1, H, W) float32, a view of one memory that holds each slice once.
        """
        slices = np.arange(first - self._context, end + self._context).clip(0, len(self._hu) - 1)
        (top, bottom), (left, right) = (self._side(axis, side) for axis, side in enumerate(box))
        rows, cols = box
        inner = slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left)
        if self._there is None:
            part = self._hu[slices, top:bottom, left:right]  # at the end less than asked for
            there = torch.from_numpy(clip_hu(part))
        else:
            chosen = self._there[send(slices, self._there.device), top:bottom, left:right]
            there = chosen.clamp_(HU_MIN, HU_MAX)
        planes = self._kept[: len(slices), : bottom - top, : right - left]
        high, wide = there.shape[1:]
        planes[:, :high, :wide] = there
        planes[:, high:, :wide] = planes[:, high - 1 : high, :wide]
        planes[:, :, wide:] = planes[:, :, wide - 1 : wide]
        return planes.unfold(0, 2 * self._context + 1, 1).permute(0, 3, 1, 2), inner

    def _side(self, axis: int, box: slice) -> tuple[int, int]:
        """Where what is seen from the box begins and ends along rows or columns of the padded slice."""
        size = self._kept.shape[1 + axis]
        start = max(0, box.start - self._reach) // self._multiple * self._multiple
        length = min(box.stop + self._reach, size) - start
        step = max(BOX_MULTIPLE, self._multiple)
        return start, min(start + length + -length % step, size)


def _mean_probs(
    slabs: torch.Tensor,
    models: Sequence[UNet],
    networks: Sequence[Network],
    mirrors: Sequence[tuple[int, ...]],
) -> torch.Tensor:
    """(B, 1, H, W) probabilities averaged over models and mirror images; each model sees its own context."""
    total = torch.zeros_like(slabs[:, :1])
    for axes in mirrors:
        seen = flip(slabs, axes)
        for model, network in zip(models, networks):
            spare = (seen.shape[1] - model.config.channels) // 2
            total += flip(torch.sigmoid(network(seen[:, spare : spare + model.config.channels])), axes)
    return total / (len(mirrors) * len(models))


def mirror_axes(*axes: int) -> list[tuple[int, ...]]:
    """Every set of axes to flip, the empty one first."""
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


def flip(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return torch.flip(x, axes) if axes else x
