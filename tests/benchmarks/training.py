"""How fast do the networks learn, and how fast the book's own way?

The peer is "Deep Learning with PyTorch", part 2, in a few lines: pickled float32 arrays in diskcache's FanoutCache, a
Dataset that augments one sample after the other, a DataLoader, a contiguous float32 network, an optimiser. Both sides
run in this process, with the same threads, allocator settings, batch size, initial weights and random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.utils.data import DataLoader, Dataset

from lungml.augment import draw_affines, report_classification, report_segmentation
from lungml.crop_cache import BENIGN, MALIGNANT, NON_NODULE, CropCache, CropSite, write_scan_crops
from lungml.devices import Hardware
from lungml.fit import fit
from lungml.fit_settings import FitSettings
from lungml.groups import key_digest
from lungml.models import place
from lungml.models.nodule_net import NoduleNet
from lungml.recipes import classification, segmentation
from lungml.recipes.classification import CropProblem
from lungml.recipes.data import PreparedScan
from lungml.recipes.segmentation import WINDOW, SegmentationProblem
from tests.benchmarks.crop_path import NOT_INSTALLED, fanout_cache, random_centers
from tests.benchmarks.measure import Row, Settings, compare, skipped
from tests.benchmarks.scenes import long_scan, specks

PEER = "the book: FanoutCache, sample by sample"
SCANS, SITES, SLABS = 2, 96, 64  # crops of each scan, and how many of them have a slab too
CLASSIFIER_STEPS, U_NET_STEPS = 3, 30
TOLERANCE = 1e-2  # of a loss: sums in another order, over a few steps; the first losses lie near 1 and 8


class _Recorded:
    """Catches what both sides must share, as the product draws it; validation is left out: it is no training."""

    ordered: npt.NDArray[np.int64]
    state: torch.Tensor | None
    losses: list[torch.Tensor]

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> npt.NDArray[np.int64]:
        self.state, self.losses = None, []
        self.ordered = super().order(rng, samples, epoch)  # type: ignore[misc]
        return self.ordered

    def loss(self, net: Any, batch: Any, generator: torch.Generator) -> torch.Tensor:
        if self.state is None:
            self.state = generator.get_state()
        loss = super().loss(net, batch, generator)  # type: ignore[misc]
        self.losses.append(loss.detach())
        return loss

    def evaluate(self, split: Any) -> dict[str, float]:
        return {"f1": 1.0, "recall": 1.0}

    def generator(self) -> torch.Generator:
        """As it was before the first batch."""
        return torch.Generator().set_state(self.state)


class _Crops(_Recorded, CropProblem):
    pass


class _Windows(_Recorded, SegmentationProblem):
    pass


def train_classifier(settings: Settings) -> list[Row]:
    """A few batches of the report's recipe for the nodule classifier."""
    recipe = classification.report()
    scans = prepared(settings.folder / "crops")
    cache = CropCache([scan.crops for scan in scans], ["crops", "labels"])
    crops = cache.rows("crops", np.arange(len(cache))).astype(np.float32)
    targets = torch.from_numpy(cache.column("labels") != NON_NODULE).long()
    peer = fanout_cache(settings.folder / "fanout", crops)
    nodules = (BENIGN, MALIGNANT)
    net = NoduleNet(generator=torch.Generator().manual_seed(0))
    problem = _Crops(
        place(deepcopy(net), torch.device("cpu")),
        recipe.augmentation,
        scans,
        groups=[nodules, (NON_NODULE,)],
        shares=[0.5, 0.5],
        positive=nodules,
        judged=(NON_NODULE, *nodules),
        negatives=recipe.negatives,
    )
    how = _cut_short(recipe.fit, CLASSIFIER_STEPS)

    def book() -> list[float]:
        samples = BookCrops(peer.read, targets, problem.generator())
        return book_classifier(deepcopy(net), DataLoader(samples, how.batch_size, sampler=problem.ordered.tolist()))

    stage = f"train classifier, {CLASSIFIER_STEPS} x {how.batch_size} crops"
    return [_row(stage, problem, how, book, settings) if peer.read else skipped(stage, PEER, NOT_INSTALLED)]


def train_u_net(settings: Settings) -> list[Row]:
    """A few batches of the report's recipe for the U-Net."""
    recipe = segmentation.report()
    scans = prepared(settings.folder / "crops")
    cache = CropCache([scan.crops for scan in scans], ["slabs", "slab_masks"])
    slabs, masks = (cache.column(name).astype(np.float32) for name in ("slabs", "slab_masks"))
    both = np.concatenate([slabs, masks[:, None]], axis=1)
    peer = fanout_cache(settings.folder / "fanout", both)
    problem = _Windows(recipe, scans, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    net = deepcopy(problem.model).to(memory_format=torch.contiguous_format)
    how = _cut_short(recipe.fit, U_NET_STEPS)

    def book() -> list[float]:
        samples = BookWindows(peer.read, problem.generator())
        return book_u_net(deepcopy(net), DataLoader(samples, how.batch_size, sampler=problem.ordered.tolist()))

    stage = f"train U-Net, {U_NET_STEPS} x {how.batch_size} windows"
    return [_row(stage, problem, how, book, settings) if peer.read else skipped(stage, PEER, NOT_INSTALLED)]


def _cut_short(fit_settings: FitSettings, steps: int) -> FitSettings:
    return replace(fit_settings, epochs=1, samples_per_epoch=steps * fit_settings.batch_size, later_rate=None)


def _row(stage: str, problem: Any, how: FitSettings, book: Callable[[], list[float]], settings: Settings) -> Row:
    first = deepcopy(problem.model.state_dict())
    fabric = Hardware(device="cpu").launch()

    def ours() -> list[float]:
        problem.model.load_state_dict(first)
        fit(problem, how, seed=0, fabric=fabric)
        return torch.stack(problem.losses).tolist()

    row = compare(stage, PEER, ours, book, disagree=_other_losses, repeats=max(settings.repeats, 5))
    if row.ours_s is None or row.peer_s is None:
        return row
    rates = [how.samples_per_epoch / seconds for seconds in (row.ours_s, row.peer_s)]
    each = f"every step's loss within {TOLERANCE:g}; {rates[0]:.0f} and {rates[1]:.0f} samples/s"
    return replace(row, note=f"{each}; reading, augmentation, metrics included; the peer without workers")


def _other_losses(ours: Sequence[float], peer: Sequence[float]) -> str:
    """A step's loss holds all that went before: order, windows, matrices, noise, gradients and updates."""
    if len(ours) != len(peer):
        return f"{len(ours)} and {len(peer)} steps"
    worst = float(np.abs(np.subtract(ours, peer)).max())
    return "" if worst <= TOLERANCE else f"losses differ by {worst:.3g}: {ours} and {peer}"


# ---------------------------------------------------------------- the book's own way
class BookCrops(Dataset):
    """Crops of a cache, each augmented by itself; batches of 48 share one draw of matrices, as ours do."""

    def __init__(self, read: Any, targets: torch.Tensor, generator: torch.Generator, batch: int = 48) -> None:
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

    def __init__(self, read: Any, generator: torch.Generator, batch: int = 16) -> None:
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


def book_classifier(net: nn.Module, batches: Iterable[Any]) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, weight_decay=1e-4)
    losses, seen = [], []
    for crops, targets in batches:
        optimizer.zero_grad()
        logits = net(crops)
        loss = cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append((targets, torch.softmax(logits.detach(), dim=1)[:, 1]))
    return losses


def book_u_net(net: nn.Module, batches: Iterable[Any]) -> list[float]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses, seen = [], []
    for slabs, masks in batches:
        optimizer.zero_grad()
        probs = torch.sigmoid(net(slabs))
        loss = book_dice(probs, masks).mean() + 8 * book_dice(probs * masks, masks).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        marked = probs.detach() > 0.5
        seen.append([(marked * masks).sum(), (marked * (1 - masks)).sum(), (~marked * masks).sum()])
    return losses


def book_dice(probs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    both, one, other = ((part).sum(dim=[1, 2, 3]) for part in (probs * masks, probs, masks))
    return 1 - (2 * both + 1) / (one + other + 1)


# ---------------------------------------------------------------- what is learned from
def prepared(folder: Path) -> list[PreparedScan]:
    """Training scans as a recipe wants them, cut from one scan at random places with random labels."""
    hu, grid, _ = long_scan()
    mask = specks(hu.shape, 20_000).astype(np.uint8)
    scans = []
    for number in range(SCANS):
        centers = random_centers(hu.shape, SITES, seed=number).tolist()
        sites = [
            CropSite(center_irc=(i, r, c), label=(NON_NODULE, BENIGN, NON_NODULE, MALIGNANT)[at % 4], diameter_mm=8)
            for at, (i, r, c) in enumerate(centers)
        ]
        group = folder / str(number)
        write_scan_crops(group, hu, mask, grid, sites, slab_sites=range(SLABS), key={})
        scans.append(
            PreparedScan(
                series_uid=str(number),
                split="train",
                store=folder,
                mask_name="",
                crops=group,
                crops_digest=key_digest({}),
                digest="",
                nodules=(),
                excluded=(),
            )
        )
    return scans
