"""How fast do the networks learn, and how fast the book's own way?

The peer reads pickled float32 arrays from diskcache's FanoutCache; what it does with them is in `book.py`. Both sides
run in this process, with the same threads, allocator settings, batch size, initial weights and random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

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
from lungml.recipes.segmentation import SegmentationProblem
from tests.benchmarks.book import BookCrops, BookWindows, book_classifier, book_u_net
from tests.benchmarks.crop_path import NOT_INSTALLED, fanout_cache, random_centers
from tests.benchmarks.measure import Row, Settings, compare, skipped
from tests.benchmarks.scenes import long_scan, specks

PEER = "the book: FanoutCache, sample by sample"
SCANS, SITES, SLABS = 2, 96, 64  # crops of each scan, and how many of them have a slab too
CLASSIFIER_STEPS, U_NET_STEPS = 2, 15
# Sums come in another order on the two sides, and rounding grows from step to step: fast under Adam, which divides
# gradients that are nothing but rounding (a bias before a batch norm) by themselves.
FIRST, LATER = 1e-3, {"sgd": 1e-2, "adam": 0.2}  # relative differences of losses


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

    row = compare(
        stage,
        PEER,
        ours,
        book,
        disagree=lambda one, other: _other_losses(one, other, LATER[how.optimizer]),
        repeats=max(settings.repeats, 5),
    )
    if row.ours_s is None or row.peer_s is None:
        return row
    rates = [how.samples_per_epoch / seconds for seconds in (row.ours_s, row.peer_s)]
    agreed = f"first loss within {FIRST:.1%}, later ones within {LATER[how.optimizer]:.0%}"
    note = f"{agreed}; {rates[0]:.3g} and {rates[1]:.3g} samples/s, reading to metrics; the peer without workers"
    return replace(row, note=note)


def _other_losses(ours: Sequence[float], peer: Sequence[float], later: float) -> str:
    """The first loss holds order, windows, matrices, noise and network; the later ones gradients and updates, too."""
    if len(ours) != len(peer):
        return f"{len(ours)} and {len(peer)} steps"
    off = np.abs(np.subtract(ours, peer)) / np.abs(peer)
    if off[0] <= FIRST and (off <= later).all():  # written so that a NaN disagrees
        return ""
    return f"the first losses differ by {off[0]:.2%}, later ones by up to {off.max():.1%}"


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
