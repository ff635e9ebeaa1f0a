"""How does the U-Net learn to mark nodules, slice by slice?"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from lungml import augment, losses, store
from lungml.candidate_recall import CandidateRecall
from lungml.candidates import GroupingSettings
from lungml.crop_cache import NODULES, NON_NODULES
from lungml.crops import CONTEXT_SLICES, SLAB_SIDE, clip_hu
from lungml.errors import TrainingError
from lungml.fit_settings import FitSettings
from lungml.loading import Batch, DeviceBatches
from lungml.masks import MaskRule
from lungml.metrics import BinaryCounts, precision_recall_f1
from lungml.models import place
from lungml.models.unet import UNet, UNetConfig
from lungml.recipes.data import PreparedScan, Split, of_split, open_crops
from lungml.sampling import balanced_order
from lungml.segment import CUDA_SLICES
from lungml.tally import Tally

Loss = Literal["report", "bce_dice"]
Judge = Literal["slices", "scans"]
JUDGED_GROUPING = GroupingSettings(rule="union")  # what candidates are counted by
NO_NODULE = -30.0  # a logit whose probability adds nothing to any sum
WINDOW = 64  # the report's random in-plane window out of a 96 x 96 slab: offsets 0..31


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe:
    """Everything that decides what the U-Net becomes.

    Attributes:
        fit: the loop's settings.
        model: the network's.
        augmentation: of the training windows.
        loss: "report" is dice + 8 x dice of the false negatives; "bce_dice" weighs every pixel.
        pos_weight, bce_weight, size_balance, focus, miss_share: of "bce_dice", see `losses.bce_batch_dice_loss`.
        mask_rule: which annotation mask is the target.
        negative_share: of the training windows that hold no nodule's centre.
        window: side of the random window that is learned from, cut out of a slab of 96 x 96 pixels.
        judge: what validation looks at. "slices": pixels of the slices that hold a nodule, as the report does. "scans":
            whole scans, with the candidates they give and pixels of all slices.
        judge_scans: how many scans of a split "scans" looks at, evenly spread over it; 0 for all. One of
            256 x 256 x 72 takes 4 s on one core.
    """

    fit: FitSettings
    model: UNetConfig = field(default_factory=UNetConfig)
    augmentation: augment.Augmentation = field(default_factory=augment.report_segmentation)
    loss: Loss = "report"
    pos_weight: float = 5.0
    bce_weight: float = 2.0
    size_balance: float = 0.0
    focus: float = 0.0
    miss_share: float = 0.5
    mask_rule: MaskRule = "report"
    negative_share: float = 0.0
    window: int = WINDOW
    judge: Judge = "slices"
    judge_scans: int = 24

    def __post_init__(self) -> None:
        for name, kinds in (("loss", Loss), ("judge", Judge), ("mask_rule", MaskRule)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(get_args(kinds))}")
        if not 1 <= self.window <= SLAB_SIDE or self.window % self.model.multiple:
            raise ValueError(f"a window of {self.window} is no multiple of {self.model.multiple} up to {SLAB_SIDE}")
        if not 0 <= self.negative_share < 1 or not 0 <= self.size_balance <= 1 or not 0 <= self.miss_share <= 1:
            raise ValueError(f"no share is {self.negative_share=}, {self.size_balance=}, {self.miss_share=}")
        if not (self.focus == 0 or self.focus >= 1):  # in between, the gradient has no bound where a pixel is right
            raise ValueError(f"a focus of {self.focus} is neither 0 nor at least 1")
        if not self.pos_weight > 0 or not self.bce_weight >= 0 or self.judge_scans < 0:
            raise ValueError(f"no training has {self.pos_weight=}, {self.bce_weight=}, {self.judge_scans=}")
        pixels, scans = ("precision", "recall", "f1"), ("candidate_score", "candidate_recall")
        if self.fit.select_by not in (*pixels, *scans):
            raise ValueError(f"unknown select_by {self.fit.select_by!r}; choose one of {', '.join((*pixels, *scans))}")
        if self.fit.select_by in scans and self.judge != "scans":
            raise ValueError(f"{self.fit.select_by} is known of whole scans only: it goes with judge=scans")


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


def best() -> SegmentationRecipe:
    """As long as the report's, and the default: each change was measured against it, see docs/lab-log.md.

    A loss that also weighs what is not a nodule, and small nodules more than large ones; half of the windows without
    one; targets that stay within the annotated diameter; the epoch whose candidates find the most nodules.
    """
    return SegmentationRecipe(
        fit=FitSettings(
            epochs=15,
            samples_per_epoch=300_000,
            batch_size=16,
            optimizer="adamw",
            learning_rate=4e-3,
            weight_decay=1e-4,
            schedule="cosine",
            average=0.99,
            select_by="candidate_score",
        ),
        loss="bce_dice",
        size_balance=0.5,
        mask_rule="bounded",
        negative_share=0.5,
        judge="scans",
    )


def demo() -> SegmentationRecipe:
    """`best` in minutes instead of days; judged once, at the end: a pass over a whole scan takes seconds on a CPU."""
    recipe = best()
    return replace(recipe, fit=replace(recipe.fit, epochs=8, samples_per_epoch=1_600, validate_every=8), judge_scans=6)


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
        self._positives = np.flatnonzero(np.isin(labels, NODULES))
        self._negatives = np.flatnonzero(np.isin(labels, NON_NODULES))
        if not len(self._positives):
            raise TrainingError("the training scans hold no annotated nodule; add scans that have some")
        self.tally = Tally()

    @property
    def replays(self) -> bool:
        """Whether a GPU replays steps, see `lungml.replay`: with the loss that was seen to give equal weights."""
        return self.recipe.loss == "report"

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
        """Forward one batch of augmented windows, 64 x 64 in the report."""
        slabs, masks = _random_windows(batch.arrays[0], batch.arrays[1][:, None], self.recipe.window, generator)
        slabs, masks = slabs.float(), masks.view(torch.int8).float()  # IGNORED is -1
        slabs, masks = augment.augment_slabs(slabs, masks, self.recipe.augmentation, generator)
        logits = net(slabs.contiguous(memory_format=torch.channels_last))
        # Surely no nodule where none is asked for: no loss looks at such a pixel, and nothing is learned from it.
        logits, masks = logits.masked_fill(masks < 0, NO_NODULE), masks.clamp(min=0)
        flagged, there = logits.detach() > 0, masks > 0.5
        counts = [(flagged & there).sum(), flagged.sum(), there.sum()]
        self.tally.note(counts=torch.stack(counts)[None])
        return self._loss_of(logits, masks, across=True)

    def _loss_of(self, logits: torch.Tensor, masks: torch.Tensor, *, across: bool = False) -> torch.Tensor:
        recipe = self.recipe
        if recipe.loss == "report":
            return losses.report_segmentation_loss(logits, masks)
        return losses.bce_batch_dice_loss(
            logits,
            masks,
            pos_weight=recipe.pos_weight,
            bce_weight=recipe.bce_weight,
            size_balance=recipe.size_balance,
            focus=recipe.focus,
            miss_share=recipe.miss_share,
            across=across,
        )

    def train_metrics(self, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Pixel precision, recall and F1 over the epoch's windows."""
        hits, flagged, there = seen["counts"].sum(0).tolist()
        precision, recall, f1 = precision_recall_f1(hits, flagged - hits, there - hits)
        return {"precision": precision, "recall": recall, "f1": f1}

    @torch.inference_mode()
    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss and pixel metrics of a split, three slices of context on each side; see `SegmentationRecipe.judge`.

        Whole scans also give what `CandidateRecall.metrics` tells. The loss is a mean over slices, "slices" takes the
        report's whatever is learned from.
        """
        self.model.eval()
        whole = self.recipe.judge == "scans"
        counts, total, slices = BinaryCounts(), torch.zeros((), dtype=torch.float64, device=self._device), 0
        recall = CandidateRecall(JUDGED_GROUPING)
        for scan in self._judged(split):
            mask = store.read_mask(scan.store, scan.mask_name)
            looked_at = np.arange(len(mask)) if whole else np.flatnonzero(mask.any(axis=(1, 2)))
            if not len(looked_at):
                continue
            hu = store.read_volume(scan.store)
            volume = torch.from_numpy(clip_hu(hu)).to(self._device)
            probs = np.empty(hu.shape, np.float32) if whole else None
            for middles in np.split(looked_at, range(self._slices, len(looked_at), self._slices)):
                target = torch.from_numpy(mask[middles]).to(self._device).float()[:, None]
                logits = self.logits(volume, middles)
                counts.add(logits > 0, target > 0.5)
                for one, there in zip(logits.split(1), target.split(1)):
                    total += self._loss_of(one, there) if whole else losses.report_segmentation_loss(one, there)
                slices += len(middles)
                if probs is not None:
                    probs[middles] = logits[:, 0].sigmoid().float().cpu().numpy()
            if probs is not None:
                recall.add(probs, hu, store.read_grid(scan.store), scan.nodules, scan.excluded, scan.series_uid)
        metrics = {"loss": float(total) / slices if slices else float("nan"), **_pixel_metrics(counts)}
        return {**metrics, **recall.metrics()} if whole else metrics

    @property
    def _slices(self) -> int:
        """How many are judged at once: more than one is slower on a CPU, see `segment.CUDA_SLICES`."""
        return CUDA_SLICES if self._device.type == "cuda" else 1

    def _judged(self, split: Split) -> list[PreparedScan]:
        """The scans of a split that are looked at: all, or as many as the recipe bounds, evenly spread."""
        scans = of_split(self._scans, split)
        bound = self.recipe.judge_scans
        if self.recipe.judge == "slices" or not bound or len(scans) <= bound:
            return scans
        return [scans[number * len(scans) // bound] for number in range(bound)]

    def logits(self, volume: torch.Tensor, middles: npt.NDArray[np.int64]) -> torch.Tensor:
        """(B, 1, rows, cols) logits of some slices of a clipped volume, which lies on the model's device."""
        multiple = self.recipe.model.multiple
        around = np.clip(middles[:, None] + np.arange(-CONTEXT_SLICES, CONTEXT_SLICES + 1), 0, len(volume) - 1)
        slabs = volume[torch.from_numpy(around).to(self._device)].float()
        rows, cols = slabs.shape[-2:]
        slabs = torch.nn.functional.pad(slabs, (0, -cols % multiple, 0, -rows % multiple), mode="replicate")
        logits: torch.Tensor = self.model(slabs.contiguous(memory_format=torch.channels_last))
        return logits[..., :rows, :cols]


def _pixel_metrics(counts: BinaryCounts) -> dict[str, float]:
    return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}


def _random_windows(
    slabs: torch.Tensor, masks: torch.Tensor, window: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut each sample's own square window out of its (96, 96) slab and mask; does not wait for a GPU."""
    side = slabs.shape[-1]
    offsets = torch.randint(0, max(1, side - window), (len(slabs), 2), generator=generator, device=slabs.device)
    steps = torch.arange(window, device=slabs.device)
    rows, cols = offsets[:, :1] + steps, offsets[:, 1:] + steps
    flat = (rows[:, :, None] * side + cols[:, None]).flatten(1)[:, None]  # (B, 1, window * window) places in a plane

    def cut(planes: torch.Tensor) -> torch.Tensor:
        found = planes.flatten(2).gather(2, flat.expand(-1, planes.shape[1], -1))
        return found.unflatten(2, (window, window))

    return cut(slabs), cut(masks)
