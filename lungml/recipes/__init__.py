"""A recipe is everything that decides what a full retraining becomes, on one page per model."""

from __future__ import annotations

from dataclasses import dataclass, field

from lungml.candidates import GroupingSettings
from lungml.errors import LunaError
from lungml.recipes import classification, malignancy, segmentation


class RecipeError(LunaError):
    """No recipe has that name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The three models' recipes and how their results meet.

    Attributes:
        negatives_per_scan: non-nodule crops kept of each training scan, a seeded sample; None keeps all.
            Validation and test always keep all.
        negative_slabs_per_scan: of them, how many also get a slab for the U-Net.
    """

    name: str
    segmentation: segmentation.SegmentationRecipe
    classification: classification.ClassificationRecipe
    finetuned: malignancy.MalignancyRecipe
    scratch: malignancy.MalignancyRecipe
    grouping: GroupingSettings = field(default_factory=GroupingSettings)
    negatives_per_scan: int | None = None
    negative_slabs_per_scan: int = 0


def report() -> Recipe:
    """The report's system, every constant; 100 of a scan's candidates are cached instead of 620."""
    return Recipe(
        name="report",
        segmentation=segmentation.report(),
        classification=classification.report(),
        finetuned=malignancy.report_finetuned(),
        scratch=malignancy.report_scratch(),
        negatives_per_scan=100,
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
        negatives_per_scan=40,
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
