"""A recipe is everything that decides what a full retraining becomes, on one page per model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lungml.candidates import GroupingSettings
from lungml.errors import LunaError
from lungml.inference import InferenceSettings
from lungml.recipes import classification, malignancy, segmentation
from lungml.sampling import NegativePlan

PARTS = ("segmentation", "classification", "finetuned", "scratch")  # of a recipe: one a model
Keeps = Literal["better", "both", "finetuned", "scratch"]


class RecipeError(LunaError):
    """No recipe has that name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The three models' recipes and how their results meet.

    Attributes:
        negative_slabs_per_scan: of a training scan's kept non-nodules, how many also get a slab for the U-Net.
        ensemble: how many nodule classifiers, and malignancy classifiers of either way, are trained from seeds one
            apart; their probabilities are averaged.
        keeps: which malignancy classifiers go into the bundle: those of the "better" way by validation AUC, as in the
            report, those of "both" ways, whose probabilities are averaged, or those "finetuned" or from "scratch".
        nodule_sensitivity: share of the validation nodules that the nodule threshold shall keep, judged at their
            annotated centres; None leaves the threshold at 0.5.
        malignant_sensitivity: the same of the malignant validation nodules.
        inference: by which means scans are segmented.
        calibrated: whether a bundle's probabilities are calibrated on the validation scans.
        test_time_flips: members of the bundle ("segmentation", "nodule", "malignancy") that also judge mirrored inputs.

    Raises:
        ValueError: when the classifiers' recipes ask for different non-nodules: they learn from the same crops.
    """

    name: str
    segmentation: segmentation.SegmentationRecipe
    classification: classification.ClassificationRecipe
    finetuned: malignancy.MalignancyRecipe
    scratch: malignancy.MalignancyRecipe
    grouping: GroupingSettings = field(default_factory=GroupingSettings)
    negative_slabs_per_scan: int = 0
    ensemble: int = 1
    keeps: Keeps = "better"
    nodule_sensitivity: float | None = None
    malignant_sensitivity: float | None = None
    calibrated: bool = True
    test_time_flips: tuple[str, ...] = ()
    inference: InferenceSettings = field(default_factory=InferenceSettings)

    def __post_init__(self) -> None:
        if self.finetuned.start == "nodule" and self.finetuned.model != self.classification.model:
            raise ValueError(
                f"recipe {self.name!r}: fine-tuning starts from the nodule classifier, and their models differ"
            )
        if self.segmentation.negative_share and not self.negative_slabs_per_scan:
            raise ValueError(
                f"recipe {self.name!r}: windows without a nodule are asked for, but negative_slabs_per_scan is 0"
            )
        if self.keeps not in get_args(Keeps):
            raise ValueError(f"recipe {self.name!r} keeps {self.keeps!r}; choose one of {', '.join(get_args(Keeps))}")
        if self.ensemble < 1:
            raise ValueError(f"recipe {self.name!r}: no ensemble has {self.ensemble} members")
        for share in (self.nodule_sensitivity, self.malignant_sensitivity):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"recipe {self.name!r}: a sensitivity of {share} is not in (0, 1]")
        if not self.classification.negatives == self.finetuned.negatives == self.scratch.negatives:
            raise ValueError(f"recipe {self.name!r}: its classifiers ask for different negatives")

    @property
    def negatives(self) -> NegativePlan:
        """Which non-nodules of the training scans are cut."""
        return self.classification.negatives


def report() -> Recipe:
    """The report's system, every constant; only the pool of negatives is smaller, see `report_negatives`."""
    return Recipe(
        name="report",
        segmentation=segmentation.report(),
        classification=classification.report(),
        finetuned=malignancy.report_finetuned(),
        scratch=malignancy.report_scratch(),
        calibrated=False,
    )


def best() -> Recipe:
    """The default: as long as the report's, and measured to be better on synthetic scans; see docs/lab-log.md."""
    return Recipe(
        name="best",
        segmentation=segmentation.best(),
        classification=classification.best(),
        finetuned=malignancy.best_finetuned(),
        scratch=malignancy.best_scratch(),
        grouping=GroupingSettings(rule="best"),
        negative_slabs_per_scan=20,
        keeps="both",
    )


def demo() -> Recipe:
    """`best` cut to minutes on two cores."""
    return replace(
        best(),
        name="demo",
        segmentation=segmentation.demo(),
        classification=classification.demo(),
        finetuned=malignancy.demo_finetuned(),
        scratch=malignancy.demo_scratch(),
    )


RECIPES = {"best": best, "report": report, "demo": demo}


def by_name(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RecipeError: when there is none.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
