"""How does the 3D network learn to tell a malignant nodule from a benign one?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch

from lungml import augment
from lungml.crop_cache import BENIGN, MALIGNANT, NON_NODULES
from lungml.errors import TrainingError
from lungml.fit_settings import FitSettings
from lungml.metrics import diameter_auc
from lungml.models import place
from lungml.models.nodule_net import NoduleNet, NoduleNetConfig
from lungml.ratings import Target
from lungml.recipes.classification import (
    CropProblem,
    best_augmentation,
    best_model,
    check_classifier,
    demo_negatives,
    report_negatives,
)
from lungml.recipes.data import PreparedScan, Split, of_split, open_crops
from lungml.sampling import NegativePlan


@dataclass(frozen=True, kw_only=True)
class MalignancyRecipe:
    """Everything that decides what a malignancy classifier becomes.

    Attributes:
        fit: the loop's settings.
        start: "nodule" begins with the nodule classifier's weights and a fresh head, "scratch" with fresh weights.
        trainable: which part learns; the rest is frozen, batch norm statistics included.
        augmentation: of the training crops.
        shares: of an epoch: malignant, benign, non-nodule (labelled benign).
        negatives: which non-nodules of the training scans are cut, and which of them an epoch draws from.
        target: what a nodule's answer is held to: the readers' "votes" (malignant or not), their mean "ratings" as a
            soft label, one "reading" drawn each time, or the five "levels"; see `rating_loss`.
        label_smoothing: share of each label that is spread over both classes, with the target "votes".
    """

    fit: FitSettings
    start: Literal["nodule", "scratch"]
    trainable: Literal["all", "last_block"] = "all"
    model: NoduleNetConfig = field(default_factory=NoduleNetConfig)
    augmentation: augment.Augmentation = field(default_factory=augment.report_classification)
    shares: tuple[float, float, float] = (0.5, 0.25, 0.25)
    negatives: NegativePlan = field(default_factory=NegativePlan)
    target: Target = "votes"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        known = {"start": ("nodule", "scratch"), "trainable": ("all", "last_block"), "target": get_args(Target)}
        for name, kinds in known.items():
            if getattr(self, name) not in kinds:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(kinds)}")
        if len(self.shares) != 3 or min(self.shares) < 0 or not math.isclose(sum(self.shares), 1):
            raise ValueError(f"shares {self.shares} are not three that sum to 1")
        check_classifier(self.fit, self.label_smoothing)


def report_finetuned() -> MalignancyRecipe:
    """The report's fine-tuning: last block and head only, 10 epochs of 100 000 crops."""
    return MalignancyRecipe(
        fit=FitSettings(
            epochs=10,
            samples_per_epoch=100_000,
            batch_size=48,
            optimizer="sgd",
            learning_rate=3e-3,
            weight_decay=1e-4,
            select_by="auc",
        ),
        start="nodule",
        trainable="last_block",
        negatives=report_negatives(),
    )


def report_scratch() -> MalignancyRecipe:
    """The report's training from scratch: 30 epochs of 100 000 crops."""
    finetuned = report_finetuned()
    return replace(
        finetuned,
        fit=replace(finetuned.fit, epochs=30, learning_rate=1e-3),
        start="scratch",
        trainable="all",
    )


def best_scratch() -> MalignancyRecipe:
    """What was measured to be better than `report_scratch` on synthetic scans, at its full length; nodules only."""
    return MalignancyRecipe(
        fit=FitSettings(
            epochs=30,
            samples_per_epoch=100_000,
            batch_size=32,
            optimizer="adamw",
            learning_rate=5e-3,
            weight_decay=1e-2,
            schedule="one_cycle",
            select_by="auc",
        ),
        start="scratch",
        model=best_model(),
        augmentation=best_augmentation(),
        shares=(0.5, 0.5, 0.0),
        negatives=report_negatives(),
    )


def best_finetuned() -> MalignancyRecipe:
    """All layers learn, more gently, from the nodule classifier's weights."""
    scratch = best_scratch()
    return replace(scratch, fit=replace(scratch.fit, epochs=10, learning_rate=2e-3), start="nodule")


def demo_finetuned() -> MalignancyRecipe:
    """`best_finetuned` in minutes."""
    return _in_minutes(best_finetuned())


def demo_scratch() -> MalignancyRecipe:
    """`best_scratch` in minutes."""
    return _in_minutes(best_scratch())


def _in_minutes(full: MalignancyRecipe) -> MalignancyRecipe:
    fit = replace(full.fit, epochs=5, samples_per_epoch=500, batch_size=16)
    return replace(full, fit=fit, negatives=demo_negatives())


def malignancy_problem(
    recipe: MalignancyRecipe,
    scans: Sequence[PreparedScan],
    *,
    nodule_weights: Mapping[str, torch.Tensor],
    device: torch.device,
    generator: torch.Generator,
) -> CropProblem:
    """Malignant and benign nodules (and non-nodules) to learn from; annotated nodules only to be judged on.

    A nodule of unknown malignancy is neither.

    Args:
        recipe: settings.
        scans: of all splits.
        nodule_weights: the best nodule classifier's state, used when the recipe starts from it.
        device: where to train.
        generator: of the fresh weights, on the CPU.

    Raises:
        TrainingError: when the recipe starts from a nodule classifier of another shape, or a class has no crop.
    """
    model = NoduleNet(recipe.model, generator=generator)
    if recipe.start == "nodule":
        fresh = model.state_dict()
        if {n: v.shape for n, v in fresh.items()} != {n: v.shape for n, v in nodule_weights.items()}:
            raise TrainingError("the nodule classifier has another network; give both recipes the same model settings")
        body = {name: value for name, value in nodule_weights.items() if not name.startswith("head.")}
        model.load_state_dict({**fresh, **body})
    if recipe.trainable == "last_block":
        model.requires_grad_(False)
        model.blocks[-1].requires_grad_(True)
        model.head.requires_grad_(True)
    groups: list[tuple[int, ...]] = [(MALIGNANT,), (BENIGN,)]
    shares = list(recipe.shares)
    if shares[2]:
        groups.append(NON_NODULES)
    return CropProblem(
        place(model, device),
        recipe.augmentation,
        scans,
        groups=groups,
        shares=shares[: len(groups)],
        positive=(MALIGNANT,),
        judged=(BENIGN, MALIGNANT),
        negatives=recipe.negatives,
        target=recipe.target,
        label_smoothing=recipe.label_smoothing,
    )


def diameter_baseline(scans: Sequence[PreparedScan], split: Split) -> float:
    """ROC AUC of the annotated diameter alone on a split's nodules; NaN when a class is absent."""
    cache = open_crops(of_split(scans, split), ["labels", "diameters_mm"])
    labels, diameters = cache.column("labels"), cache.column("diameters_mm")
    nodules = np.flatnonzero(np.isin(labels, (BENIGN, MALIGNANT)))
    return diameter_auc(diameters[nodules], labels[nodules] == MALIGNANT)
