"""How does one train in the way of "Deep Learning with PyTorch", part 2, written down in a few lines?

A Dataset that augments one sample after the other, contiguous float32 tensors, an eager network. Imports what a GPU
machine has. Samples of a batch share one draw, in our order, so that both ways see the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.utils.data import Dataset

from lungml.augment import draw_affines, report_classification, report_segmentation
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet

WINDOW = 64


class BookCrops(Dataset):
    """Crops of a cache, each augmented by itself; batches of 48 share one draw of matrices, as ours do."""

    def __init__(
        self, read: Callable[[int], Any], targets: torch.Tensor, generator: torch.Generator, batch: int = 48
    ) -> None:
        self._read, self._targets, self._generator, self._batch = read, targets, generator, batch
        self._matrices: list[torch.Tensor] = []

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        settings, generator = report_classification(), self._generator
        if not self._matrices:
            self._matrices = list(draw_affines(settings, self._batch, 3, generator))
        crop = torch.from_numpy(self._read(number))[None, None]
        grid = affine_grid(self._matrices.pop(0)[None], list(crop.shape), align_corners=False)
        moved = grid_sample(crop, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        moved += settings.noise_hu * torch.randn(moved.shape, generator=generator)
        return moved, self._targets[number]


class BookWindows(Dataset):
    """Random windows of a cache's slabs, each augmented by itself; 16 share one draw, as ours do."""

    def __init__(self, read: Callable[[int], Any], generator: torch.Generator, batch: int = 16) -> None:
        self._read, self._generator, self._batch = read, generator, batch
        self._draws: list[tuple[list[int], torch.Tensor]] = []

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        settings, generator = report_segmentation(), self._generator
        if not self._draws:
            offsets = torch.randint(0, 32, (self._batch, 2), generator=generator).tolist()
            self._draws = list(zip(offsets, draw_affines(settings, self._batch, 2, generator)))
        (row, col), matrix = self._draws.pop(0)
        both = torch.from_numpy(self._read(number))[None, :, row : row + WINDOW, col : col + WINDOW]
        grid = affine_grid(matrix[None], list(both.shape), align_corners=False)
        moved = grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        slab, mask = moved[:-1], (moved[-1:] > 0.5).float()
        return slab + settings.noise_hu * torch.randn(slab.shape, generator=generator), mask


def book_classifier(net: NoduleNet, batches: Iterable[Any]) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, weight_decay=1e-4)
    losses, seen = [], []
    for crops, targets in batches:
        optimizer.zero_grad()
        # Layer by layer: whatever our forward does better is none of the book's.
        logits = net.head(net.blocks(net.input_norm(crops)).flatten(1))
        loss = cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append((targets, torch.softmax(logits.detach(), dim=1)[:, 1]))
    return losses


def book_u_net(net: UNet, batches: Iterable[Any]) -> list[float]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses, seen = [], []
    for slabs, masks in batches:
        optimizer.zero_grad()
        probs = torch.sigmoid(_u_net_layers(net, slabs))
        loss = book_dice(probs, masks).mean() + 8 * book_dice(probs * masks, masks).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        marked = probs.detach() > 0.5
        seen.append([(marked * masks).sum(), (marked * (1 - masks)).sum(), (~marked * masks).sum()])
    return losses


def _u_net_layers(net: UNet, slabs: torch.Tensor) -> torch.Tensor:
    x, skips = net.input_norm(slabs), []
    for number, block in enumerate(net.down):
        x = block(net.pool(x) if number else x)
        skips.append(x)
    for up, skip in zip(net.up, skips[-2::-1]):
        x = up(x, skip)
    return net.head(x)


def book_dice(probs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    both, one, other = (part.sum(dim=[1, 2, 3]) for part in (probs * masks, probs, masks))
    return 1 - (2 * both + 1) / (one + other + 1)
