"""The report's recipe, constant by constant, as the report and the systems it descends from have them."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lungml import recipes
from lungml.augment import Augmentation
from lungml.candidates import GroupingSettings
from lungml.fit_settings import FitSettings
from lungml.groups import StoreError
from lungml.models.nodule_net import NoduleNetConfig
from lungml.recipes.data import PreparedScan, of_split, open_crops
from lungml.sampling import NegativePlan

SGD = {"optimizer": "sgd", "weight_decay": 1e-4, "batch_size": 48}


def test_the_reports_segmentation() -> None:
    segmentation = recipes.report().segmentation
    assert segmentation.fit == FitSettings(
        epochs=15,
        samples_per_epoch=300_000,
        batch_size=16,
        optimizer="adam",
        learning_rate=1e-3,
        select_by="recall",
    )
    assert (segmentation.loss, segmentation.mask_rule, segmentation.negative_share) == ("report", "report", 0.0)
    assert segmentation.augmentation == Augmentation(flip=True, shift=0.03, scale=0.2, rotate=True, noise_hu=25.0)
    assert asdict(segmentation.model) == {"context_slices": 3, "depth": 3, "width": 16, "pooling": "avg"}


def test_the_reports_classification() -> None:
    classification = recipes.report().classification
    expected = {"epochs": 95, "samples_per_epoch": 50_000, "learning_rate": 1e-3, "select_by": "f1"}
    assert classification.fit == FitSettings(**SGD, **expected, later_rate=(61, 3e-3))
    assert classification.augmentation == Augmentation(flip=True, shift=0.1, scale=0.2, rotate=True, noise_hu=25.0)
    assert classification.model == NoduleNetConfig(crop_shape=(32, 48, 48), depth=4, width=8)
    assert not classification.mined


def test_the_reports_two_malignancy_classifiers() -> None:
    recipe = recipes.report()
    common = {**SGD, "samples_per_epoch": 100_000, "select_by": "auc"}
    assert recipe.finetuned.fit == FitSettings(**common, epochs=10, learning_rate=3e-3)
    assert (recipe.finetuned.start, recipe.finetuned.trainable) == ("nodule", "last_block")
    assert recipe.scratch.fit == FitSettings(**common, epochs=30, learning_rate=1e-3)
    assert (recipe.scratch.start, recipe.scratch.trainable) == ("scratch", "all")
    assert recipe.finetuned.shares == recipe.scratch.shares == (0.5, 0.25, 0.25)


def test_the_reports_grouping() -> None:
    assert recipes.report().grouping == GroupingSettings(rule="report", threshold=0.5)


def test_negatives() -> None:
    assert recipes.report().negatives == NegativePlan(kind="per_epoch", per_scan=36, epochs=5)
    assert recipes.demo().negatives == NegativePlan(kind="fixed", per_scan=40)
    recipe = recipes.demo()
    with pytest.raises(ValueError, match="'demo': its classifiers ask for different negatives"):
        replace(recipe, scratch=replace(recipe.scratch, negatives=NegativePlan()))


def test_names() -> None:
    assert [recipes.by_name(name).name for name in ("best", "report", "demo")] == ["best", "report", "demo"]
    with pytest.raises(recipes.RecipeError, match=r"^unknown recipe 'better'; choose one of best, report, demo$"):
        recipes.by_name("better")


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"samples_per_epoch": -1}]
)
def test_settings_that_cannot_train_are_refused(change: dict) -> None:
    possible = {"epochs": 1, "samples_per_epoch": 1, "batch_size": 1, "optimizer": "sgd", "learning_rate": 1.0}
    with pytest.raises(ValueError, match=next(iter(change))):
        FitSettings(**{**possible, **change}, select_by="auc")


def test_a_split_keeps_its_order(tmp_path: Path) -> None:
    def scan(series_uid: str, split: str) -> PreparedScan:
        return PreparedScan(
            series_uid=series_uid, split=split, store=tmp_path, mask_name="mask", crops=tmp_path, crops_digest="",
            digest="",
            nodules=(), excluded=(),
        )  # fmt: skip

    scans = [scan("b", "val"), scan("c", "train"), scan("a", "val")]
    assert [s.series_uid for s in of_split(scans, "val")] == ["b", "a"]
    assert of_split(scans, "test") == []


def test_crops_that_another_run_replaced_are_refused(toy_scans: list[PreparedScan]) -> None:
    assert len(open_crops(toy_scans, ["labels"])) > 0
    stale = [*toy_scans[:-1], replace(toy_scans[-1], crops_digest="of another run")]
    with pytest.raises(StoreError, match="changed by another run since this one prepared it; run again"):
        open_crops(stale, ["labels"])
