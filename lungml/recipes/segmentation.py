"""How does the U-Net learn to mark nodules, slice by slice?"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lungml import augment, losses, store
from lungml.crop_cache import NON_NODULE
from lungml.crops import CONTEXT_SLICES, clip_hu
from lungml.errors import TrainingError
from lungml.fit_settings import FitSettings
from lungml.loading import Batch, DeviceBatches
from lungml.masks import MaskRule
from lungml.metrics import BinaryCounts, precision_recall_f1
from lungml.models import place
from lungml.models.unet import UNet, UNetConfig
from lungml.recipes.data import PreparedScan, Split, of_split, open_crops
from lungml.sampling import balanced_order
from lungml.tally import Tally

WINDOW = 64  # the random in-plane window out of a 96 x 96 slab: offsets 0..31


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe:
    """Everything that decides what the U-Net becomes.

    Attributes:
        fit: the loop's settings.
        model: the network's.
        augmentation: of the training windows.
        loss: "report" is dice + 8 x dice of the false negatives; "bce_dice" weighs every pixel.
        mask_rule: which annotation mask is the target.
        negative_share: of the training windows that hold no nodule's centre.
    """

    fit: FitSettings
    model: UNetConfig = field(default_factory=UNetConfig)
    augmentation: augment.Augmentation = field(default_factory=augment.report_segmentation)
    loss: Literal["report", "bce_dice"] = "report"
    mask_rule: MaskRule = "report"
    negative_share: float = 0.0


def report() -> SegmentationRecipe:
    """The report's U-Net: 15 epochs of 300 000 windows, the epoch with the highest pixel recall."""
    return SegmentationRecipe(
        fit=FitSettings(
            epochs=15,
            samples_per_epoch=300_000,
            batch_size=16,
            optimizer="adam",
            learning_rate=1e-3,
            select_by="recall",
        )
    )


def demo() -> SegmentationRecipe:
    """Minutes instead of days: a loss that also weighs what is not a nodule, and windows without one."""
    recipe = report()
    return replace(
        recipe,
        fit=FitSettings(
            epochs=8,
            samples_per_epoch=1_600,
            batch_size=16,
            optimizer="adamw",
            learning_rate=4e-3,
            weight_decay=1e-4,
            schedule="one_cycle",
            select_by="f1",
            validate_every=2,
        ),
        loss="bce_dice",
        mask_rule="bounded",
        negative_share=0.5,
    )


class SegmentationProblem:
    """Windows around nodules (and other places) to learn from, full slices to be judged on.

    Args:
        recipe: settings.
        scans: of all splits.
        device: where the model lives.
        generator: of the initial weights, on the CPU.

    Raises:
        TrainingError: when the training scans hold no nodule.
    """

    def __init__(
        self,
        recipe: SegmentationRecipe,
        scans: Sequence[PreparedScan],
        *,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        self.recipe = recipe
        self.model = place(UNet(recipe.model, generator=generator), device)
        self._device = device
        self._scans = scans
        cache = open_crops(of_split(scans, "train"), ["slabs", "slab_masks", "slab_labels"])
        self._batches = DeviceBatches(cache, ["slabs", "slab_masks"], device)
        labels = cache.column("slab_labels")
        self._positives = np.flatnonzero(labels != NON_NODULE)
        self._negatives = np.flatnonzero(labels == NON_NODULE)
        if not len(self._positives):
            raise TrainingError("the training scans hold no annotated nodule; add scans that have some")
        self.tally = Tally()

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> npt.NDArray[np.int64]:
        """The training rows of one epoch, cycling over the nodules; all epochs draw from the same rows."""
        share = self.recipe.negative_share if len(self._negatives) else 0.0
        return balanced_order([self._positives, self._negatives], [1 - share, share], samples, rng)

    def train_mode(self) -> None:
        """All of the U-Net learns."""
        self.model.train()

    def loaded(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """The slabs and their masks at those rows, on the model's device."""
        return self._batches(wanted)

    def loss(
        self, net: Callable[[torch.Tensor], torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> torch.Tensor:
        """Forward one batch of augmented 64 x 64 windows."""
        slabs, masks = _random_windows(batch.arrays[0], batch.arrays[1][:, None], generator)
        slabs, masks = slabs.float(), masks.float()
        slabs, masks = augment.augment_slabs(slabs, masks, self.recipe.augmentation, generator)
        logits = net(slabs.contiguous(memory_format=torch.channels_last))
        flagged, there = logits.detach() > 0, masks > 0.5
        counts = [(flagged & there).sum(), flagged.sum(), there.sum()]
        self.tally.note(counts=torch.stack(counts)[None])
        if self.recipe.loss == "report":
            return losses.report_segmentation_loss(logits, masks)
        return losses.bce_batch_dice_loss(logits, masks)

    def train_metrics(self, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Pixel precision, recall and F1 over the epoch's windows."""
        hits, flagged, there = seen["counts"].sum(0).tolist()
        precision, recall, f1 = precision_recall_f1(hits, flagged - hits, there - hits)
        return {"precision": precision, "recall": recall, "f1": f1}

    @torch.inference_mode()
    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss and pixel metrics over the full slices that hold mask voxels, three slices of context on each side."""
        self.model.eval()
        counts, total, slices = BinaryCounts(), 0.0, 0
        multiple = self.recipe.model.multiple
        for scan in of_split(self._scans, split):
            mask = store.read_mask(scan.store, scan.mask_name)
            marked = np.flatnonzero(mask.any(axis=(1, 2)))
            if not len(marked):
                continue
            volume = clip_hu(store.read_volume(scan.store))
            for middle in marked.tolist():
                around = np.clip(np.arange(middle - CONTEXT_SLICES, middle + CONTEXT_SLICES + 1), 0, len(volume) - 1)
                slab = torch.from_numpy(volume[around]).to(self._device).float()[None]
                target = torch.from_numpy(mask[middle]).to(self._device).float()[None, None]
                rows, cols = slab.shape[-2:]
                slab = torch.nn.functional.pad(slab, (0, -cols % multiple, 0, -rows % multiple), mode="replicate")
                logits = self.model(slab.contiguous(memory_format=torch.channels_last))[..., :rows, :cols]
                counts.add(logits > 0, target > 0.5)
                total += float(losses.report_segmentation_loss(logits, target))
                slices += 1
        if not slices:
            return {"loss": float("nan"), **_pixel_metrics(counts)}
        return {"loss": total / slices, **_pixel_metrics(counts)}


def _pixel_metrics(counts: BinaryCounts) -> dict[str, float]:
    return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}


def _random_windows(
    slabs: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut each sample's own 64 x 64 window out of its (96, 96) slab and mask; does not wait for a GPU."""
    side = slabs.shape[-1]
    offsets = torch.randint(0, side - WINDOW, (len(slabs), 2), generator=generator, device=slabs.device)
    steps = torch.arange(WINDOW, device=slabs.device)
    rows, cols = offsets[:, :1] + steps, offsets[:, 1:] + steps
    flat = (rows[:, :, None] * side + cols[:, None]).flatten(1)[:, None]  # (B, 1, 64 * 64) positions in a plane

    def cut(planes: torch.Tensor) -> torch.Tensor:
        found = planes.flatten(2).gather(2, flat.expand(-1, planes.shape[1], -1))
        return found.unflatten(2, (WINDOW, WINDOW))

    return cut(slabs), cut(masks)
