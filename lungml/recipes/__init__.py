"""A recipe is everything that decides what a full retraining becomes, on one page per model."""

from __future__ import annotations

from dataclasses import dataclass, field

from lungml.candidates import GroupingSettings
from lungml.errors import LunaError
from lungml.recipes import classification, malignancy, segmentation
from lungml.sampling import NegativePlan


class RecipeError(LunaError):
    """No recipe has that name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The three models' recipes and how their results meet.

    Attributes:
        negative_slabs_per_scan: of a training scan's kept non-nodules, how many also get a slab for the U-Net.

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

    def __post_init__(self) -> None:
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
    )


def demo() -> Recipe:
    """Everything cut to minutes on two cores."""
    return Recipe(
        name="demo",
        segmentation=segmentation.demo(),
        classification=classification.demo(),
        finetuned=malignancy.demo_finetuned(),
        scratch=malignancy.demo_scratch(),
        grouping=GroupingSettings(rule="union"),
        negative_slabs_per_scan=20,
    )


RECIPES = {"report": report, "demo": demo}


def by_name(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RecipeError: when there is none.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
