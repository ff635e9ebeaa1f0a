"""How does the 3D network learn to tell a nodule from what looks like one?"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from lungml import augment
from lungml.crop_cache import BENIGN, MALIGNANT, NODULES, NON_NODULE, NON_NODULES, CropCache
from lungml.crops import resample_mm
from lungml.devices import send
from lungml.errors import TrainingError
from lungml.fit_settings import FitSettings
from lungml.loading import Batch, DeviceBatches
from lungml.metrics import BinaryCounts, roc_auc
from lungml.models import place
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.ratings import Target, rating_loss
from lungml.recipes.data import PreparedScan, Split, of_split, open_crops
from lungml.sampling import NegativePlan, balanced_order, seen_in_epoch
from lungml.tally import Tally

EVALUATION_BATCH, CUDA_EVALUATION_BATCH = 8, 256
CLASSIFIER_METRICS = ("precision", "recall", "f1", "auc")  # of validation, higher being better
COLUMNS = ["labels", "rating_counts", "places_irc", "spacings_mm"]
LABEL_NAMES = {NON_NODULE: "non-nodule", BENIGN: "benign nodule", MALIGNANT: "malignant nodule"}  # without corrections


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe:
    """Everything that decides what the nodule classifier becomes.

    Attributes:
        fit: the loop's settings.
        model: the network's.
        augmentation: of the training crops.
        negatives: which non-nodules of the training scans are cut, and which of them an epoch draws from.
        mined: whether the segmenter's own candidates of the training scans join the training crops.
        label_smoothing: share of each label that is spread over both classes.
    """

    fit: FitSettings
    model: NoduleNetConfig = field(default_factory=NoduleNetConfig)
    augmentation: augment.Augmentation = field(default_factory=augment.report_classification)
    negatives: NegativePlan = field(default_factory=NegativePlan)
    mined: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_classifier(self.fit, self.label_smoothing)


def check_classifier(fit: FitSettings, label_smoothing: float) -> None:
    """Refuse what no classifier's recipe can have.

    Raises:
        ValueError: the epoch is chosen by no metric of a classifier, or the smoothing is no share.
    """
    if fit.select_by not in CLASSIFIER_METRICS:
        raise ValueError(f"unknown select_by {fit.select_by!r}; choose one of {', '.join(CLASSIFIER_METRICS)}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"a label smoothing of {label_smoothing} is not in [0, 1)")


def report() -> ClassificationRecipe:
    """The report's classifier: 95 epochs of 50 000 crops, half of them nodules, the epoch with the highest F1.

    After its 60th epoch the report went on at three times the learning rate.
    """
    return ClassificationRecipe(
        negatives=report_negatives(),
        fit=FitSettings(
            epochs=95,
            samples_per_epoch=50_000,
            batch_size=48,
            optimizer="sgd",
            learning_rate=1e-3,
            later_rate=(61, 3e-3),
            weight_decay=1e-4,
            select_by="f1",
        ),
    )


def best() -> ClassificationRecipe:
    """What was measured to be better than `report` on synthetic scans, at its full length; see `docs/lab-log.md`.

    AdamW with one cycle, crops in mm with the candidate in their middle, batch norm throughout, measures along rays,
    and the segmenter's own mistakes to learn from.
    """
    return ClassificationRecipe(
        fit=FitSettings(
            epochs=95,
            samples_per_epoch=50_000,
            batch_size=32,
            optimizer="adamw",
            learning_rate=5e-3,
            weight_decay=1e-2,
            schedule="one_cycle",
            select_by="auc",
        ),
        model=best_model(),
        augmentation=best_augmentation(),
        negatives=report_negatives(),
        mined=True,
    )


def demo() -> ClassificationRecipe:
    """`best` in minutes instead of days."""
    full = best()
    fit = replace(full.fit, epochs=6, samples_per_epoch=1_000, batch_size=16, validate_every=2)
    return replace(full, fit=fit, negatives=demo_negatives())


def best_model() -> NoduleNetConfig:
    """Of all three classifiers of `best`: fine-tuning needs one shape."""
    return NoduleNetConfig(crop_shape=(32, 32, 32), spacing_mm=(1.0, 1.0, 1.0), norm="batch", head="pool", rays=96)


def best_augmentation() -> augment.Augmentation:
    """A fifth of the report's shift and a quarter of its scaling: crops in mm are centred, and size tells much."""
    return replace(augment.report_classification(), shift=0.02, scale=0.05)


def report_negatives() -> NegativePlan:
    """Five epochs' worth of another 36 non-nodules a scan; the 6th epoch sees those of the first again.

    The report drew 25 000 an epoch from all of its 551 065 candidates, which is 36 of each of 710 training scans.
    All of them take 81 GB on disk. These are 180 a training scan, 19 GB at most, beside 16 GB for validation and test
    scans, which keep all.
    """
    return NegativePlan(kind="per_epoch", per_scan=36, epochs=5)


def demo_negatives() -> NegativePlan:
    """The same 40 of each training scan in every epoch."""
    return NegativePlan(kind="fixed", per_scan=40)


class CropProblem:
    """Crops in classes to learn from, all crops of a split to be judged on; both 3D classifiers use it.

    Args:
        model: on its device already.
        augmentation: of the training crops.
        scans: of all splits.
        groups: which crop labels form one sampling group of the training set each.
        shares: of an epoch, one per group.
        positive: crop labels that are class 1.
        judged: crop labels that validation and test count.
        negatives: which of the kept non-nodules an epoch draws from.
        mined: whether mined crops of the training scans are used; every epoch draws from all of them.
        target: what a crop's answer is held to, see `rating_loss`.
        label_smoothing: share of each label that is spread over both classes, with the target "votes".

    Raises:
        TrainingError: when a group with a share has no training crop.
    """

    def __init__(
        self,
        model: NoduleNet,
        augmentation: augment.Augmentation,
        scans: Sequence[PreparedScan],
        *,
        groups: Sequence[tuple[int, ...]],
        shares: Sequence[float],
        positive: tuple[int, ...],
        judged: tuple[int, ...],
        negatives: NegativePlan,
        mined: bool = False,
        target: Target = "votes",
        label_smoothing: float = 0.0,
    ) -> None:
        self.model = model
        self._device = next(model.parameters()).device
        self._augmentation = augmentation
        self._scans = scans
        self._positive, self.judged = positive, judged
        train = of_split(scans, "train")
        cache = open_crops(train, ["crops", *COLUMNS], mined=mined)
        self._batches = DeviceBatches(cache, ["crops"], self._device)
        self._labels = cache.column("labels")
        self._ratings = torch.from_numpy(cache.column("rating_counts"))
        self.view = _View(model, cache)
        self._target, self._smoothing = target, label_smoothing
        self._folder_of = cache.scan_of(np.arange(len(cache)))
        self._negatives, self._mined_from = negatives, len(train)
        self._groups = [np.flatnonzero(np.isin(self._labels, group)) for group in groups]
        self._shares = list(shares)
        for group, rows in zip(groups, self._groups):
            if not len(rows):
                kinds = " or ".join(LABEL_NAMES[label] for label in group if label in LABEL_NAMES)
                raise TrainingError(f"the training scans have no {kinds}; add scans that have some")
        self.tally = Tally()

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> npt.NDArray[np.int64]:
        """The training rows of one epoch, each group at its share."""
        groups = [
            self._drawn_from(rows, epoch, math.ceil(samples * share)) for rows, share in zip(self._groups, self._shares)
        ]
        return balanced_order(groups, self._shares, samples, rng)

    def _drawn_from(self, rows: npt.NDArray[np.int64], epoch: int, wanted: int) -> npt.NDArray[np.int64]:
        """The rows of one group that an epoch draws from: only the scans' own non-nodules take turns.

        Places that a reader rejected do not: each weighs as much as an own non-nodule of this epoch, and of a plan of
        n epochs n times as much as one of all.
        """
        folders = self._folder_of[rows]
        in_turns = (self._labels[rows] == NON_NODULE) & (folders < self._mined_from)
        seen = np.ones(len(rows), dtype=np.bool_)
        seen[in_turns] = seen_in_epoch(folders[in_turns], self._negatives, epoch, wanted)
        return rows[seen]

    def loaded(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """The crops at those rows, on the model's device."""
        return self._batches(wanted)

    def train_mode(self) -> None:
        """What learns is in training mode; a frozen part stays in eval mode, batch norm statistics included."""
        self.model.train()
        for part in self.model.modules():
            own = list(part.parameters())
            if own and not any(p.requires_grad for p in own):
                part.eval()

    def loss(
        self, net: Callable[[torch.Tensor], torch.Tensor], batch: Batch, generator: torch.Generator
    ) -> torch.Tensor:
        """Forward one batch of augmented crops; cross-entropy on the logits."""
        crops = augment.augment_crops(self.view(batch), self._augmentation, generator)
        target = send(np.isin(self._labels[batch.rows], self._positive), self._device).long()
        logits = net(crops.contiguous(memory_format=torch.channels_last_3d))
        self.tally.note(targets=target, probs=torch.softmax(logits.detach(), dim=1)[:, 1])
        if self._target == "votes":
            return cross_entropy(logits, target, label_smoothing=self._smoothing)
        ratings = self._ratings[torch.from_numpy(batch.rows)].to(self._device, non_blocking=True)
        return rating_loss(logits, target, ratings, self._target, generator)

    def train_metrics(self, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Precision, recall, F1 and AUC over the epoch's augmented crops."""
        return binary_metrics(seen["targets"].numpy(), seen["probs"].numpy())

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss, precision, recall, F1 and AUC over every judged crop of a split, neither balanced nor augmented."""
        return judged_metrics(*self.predict(split))

    @torch.inference_mode()
    def predict(self, split: Split) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Class (n,) and probability of class 1 (n,) of every judged crop of a split."""
        self.model.eval()
        cache = open_crops(of_split(self._scans, split), ["crops", *COLUMNS])
        labels, view = cache.column("labels"), _View(self.model, cache)
        rows = np.flatnonzero(np.isin(labels, self.judged))
        probs = np.empty(len(rows))
        size = CUDA_EVALUATION_BATCH if self._device.type == "cuda" else EVALUATION_BATCH
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        done = 0
        for batch in DeviceBatches(cache, ["crops"], self._device, budget_bytes=0)(parts):
            crops = view(batch)
            logits = self.model(crops.contiguous(memory_format=torch.channels_last_3d))
            probs[done : done + len(crops)] = torch.softmax(logits.double(), dim=1)[:, 1].cpu().numpy()
            done += len(crops)
        return np.isin(labels[rows], self._positive).astype(np.int64), probs


class _View:
    """What the model sees of cached crops: their voxels, or these resampled to its spacing."""

    def __init__(self, model: NoduleNet, cache: CropCache) -> None:
        self._config = model.config
        self._places = torch.from_numpy(cache.column("places_irc"))
        self._spacings = torch.from_numpy(cache.column("spacings_mm"))

    def __call__(self, batch: Batch) -> torch.Tensor:
        """(B, 1, D, H, W) float HU on the batch's device."""
        crops, shape = batch.arrays[0].float()[:, None], self._config.crop_shape
        if self._config.spacing_mm is None:
            return crops
        rows = torch.from_numpy(batch.rows)
        places, spacings = (
            column[rows].to(crops.device, non_blocking=True) for column in (self._places, self._spacings)
        )
        return resample_mm(crops, places, spacings, shape, self._config.spacing_mm)


def judged_metrics(targets: npt.NDArray[Any], probs: npt.NDArray[Any]) -> dict[str, float]:
    """The loss of what `CropProblem.predict` says, and its `binary_metrics`; the loss of nothing is NaN."""
    picked = np.where(targets == 1, probs, 1 - probs)
    loss = float(-np.log(np.maximum(picked, 1e-12)).mean()) if len(targets) else math.nan
    return {"loss": loss, **binary_metrics(targets, probs)}


def binary_metrics(targets: npt.NDArray[np.int64], probs: npt.NDArray[np.floating]) -> dict[str, float]:
    """Precision, recall and F1 at 0.5, and the exact ROC AUC.

    Args:
        targets: (n,) 0 or 1.
        probs: (n,) probability of class 1.
    """
    counts = BinaryCounts()
    counts.add(torch.from_numpy(np.asarray(probs) >= 0.5), torch.from_numpy(np.asarray(targets) == 1))
    return {
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "auc": roc_auc(targets, probs),
    }


def classification_problem(
    recipe: ClassificationRecipe,
    scans: Sequence[PreparedScan],
    *,
    device: torch.device,
    generator: torch.Generator,
) -> CropProblem:
    """Nodules and non-nodules 1 : 1 to learn from, readers' corrections among them; validation and test as they are."""
    return CropProblem(
        place(NoduleNet(recipe.model, generator=generator), device),
        recipe.augmentation,
        scans,
        groups=[NODULES, NON_NODULES],
        shares=[0.5, 0.5],
        positive=NODULES,
        judged=(*NON_NODULES, *NODULES),
        negatives=recipe.negatives,
        mined=recipe.mined,
        label_smoothing=recipe.label_smoothing,
    )
