from __future__ import annotations

from typing import Any

import pytest

from lungml import recipes
from lungml.recipes import RecipeError
from lungml.recipes.variants import parse_overrides, recipe_of


def test_nothing_asked_for_is_the_recipe_itself() -> None:
    assert recipe_of("report") == recipes.report()


def test_a_budget_scales_all_four_models() -> None:
    whole, part = recipes.report(), recipe_of("report", budget=0.1)
    for stage, epochs in (("segmentation", 2), ("classification", 10), ("finetuned", 1), ("scratch", 3)):
        fit = getattr(part, stage).fit
        assert fit.epochs == epochs
        assert fit.samples_per_epoch == getattr(whole, stage).fit.samples_per_epoch / 10


def test_single_settings_are_changed_after_the_scaling() -> None:
    changed = recipe_of(
        "report",
        budget=0.1,
        overrides={
            "segmentation.loss": "bce_dice",
            "segmentation.fit.epochs": 7,
            "segmentation.augmentation.rotate": False,
            "finetuned.shares": [0.5, 0.5, 0.0],
            "finetuned.fit.learning_rate": 1,
        },
    )
    assert (changed.segmentation.loss, changed.segmentation.fit.epochs) == ("bce_dice", 7)
    assert not changed.segmentation.augmentation.rotate
    assert changed.segmentation.fit.samples_per_epoch == 30_000
    assert changed.finetuned.shares == (0.5, 0.5, 0.0)
    assert changed.finetuned.fit.learning_rate == 1.0
    assert isinstance(changed.finetuned.fit.learning_rate, float)
    assert changed.scratch == recipe_of("report", budget=0.1).scratch


def test_settings_that_depend_on_each_other_are_changed_together() -> None:
    plan = {"kind": "fixed", "per_scan": 5, "epochs": 1}
    overrides = {
        f"{stage}.negatives.{name}": value
        for stage in ("classification", "finetuned", "scratch")
        for name, value in plan.items()
    }
    assert recipe_of("report", overrides=overrides).negatives.kept_per_scan == 5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"segmentation.los": "report"}, "no setting recipe.segmentation.los; choose one of "),
        ({"nothing": 1}, "no setting recipe.nothing"),
        ({"name": "mine"}, "no setting recipe.name"),
        ({"segmentation": 1}, "recipe.segmentation is a group of settings; choose one of segmentation."),
        ({"segmentation.loss.x": 1}, "recipe.segmentation.loss has no settings of its own"),
        ({"segmentation.fit.epochs": "many"}, "recipe.segmentation.fit.epochs is 15; 'many' is not of its kind"),
        ({"segmentation.fit.epochs": 1.5}, "1.5 is not of its kind"),
        ({"segmentation.augmentation.flip": 1}, "flip is True; 1 is not of its kind"),
        ({"segmentation.fit.epochs": 0}, "epochs is 0, not a positive number"),
        ({"finetuned.start": "nodules"}, "unknown start 'nodules'; choose one of nodule, scratch"),
        ({"finetuned.trainable": "last"}, "unknown trainable 'last'"),
        ({"finetuned.target": "rating"}, "unknown target 'rating'"),
        ({"finetuned.shares": (0.5, 0.2, 0.2)}, "are not three that sum to 1"),
        (
            {"classification.fit.select_by": "loss"},
            "unknown select_by 'loss'; choose one of precision, recall, f1, auc",
        ),
        ({"segmentation.fit.select_by": "auc"}, "unknown select_by 'auc'"),
        ({"classification.model.width": 16}, "fine-tuning starts from the nodule classifier, and their models differ"),
        ({"segmentation.negative_share": 0.5}, "negative_slabs_per_scan is 0"),
        ({"classification.label_smoothing": 2}, "a label smoothing of 2.0 is not in [0, 1)"),
        ({"scratch.fit.weight_decay": -1}, "weight_decay is -1.0"),
        ({"scratch.fit.later_rate": 5}, "recipe.scratch.fit: "),
        ({"nodule_sensitivity": "high"}, "recipe: "),
        ({"classification.negatives.per_scan": 3}, "its classifiers ask for different negatives"),
    ],
)
def test_what_cannot_be_set_is_one_line(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of("report", overrides=overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(RecipeError, match="budget is"):
        recipe_of("report", budget=budget)


def test_options_are_literals_or_text() -> None:
    given = ["a.b=1", "c = 0.5", "d=(1, 2)", "e=report", "f=True", "g=None", "h=x=y"]
    assert parse_overrides(given) == {
        "a.b": 1, "c": 0.5, "d": (1, 2), "e": "report", "f": True, "g": None, "h": "x=y",
    }  # fmt: skip


@pytest.mark.parametrize("given", [["a"], ["=1"], ["a=1", "a=2"]])
def test_options_that_say_nothing_are_refused(given: list[str]) -> None:
    with pytest.raises(RecipeError, match="--set"):
        parse_overrides(given)
