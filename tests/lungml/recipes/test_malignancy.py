from dataclasses import replace

import numpy as np
import pytest
import torch

from lungml.errors import TrainingError
from lungml.fit import fit
from lungml.models.nodule_net import NoduleNet
from lungml.recipes import malignancy
from lungml.recipes.classification import CropProblem, best_model
from lungml.recipes.data import PreparedScan
from lungml.recipes.malignancy import MalignancyRecipe, diameter_baseline, malignancy_problem


def nodule_weights() -> dict[str, torch.Tensor]:
    return NoduleNet(generator=torch.Generator().manual_seed(5)).state_dict()


def better_weights() -> dict[str, torch.Tensor]:
    return NoduleNet(best_model(), generator=torch.Generator().manual_seed(5)).state_dict()


def problem(scans: list[PreparedScan], recipe: MalignancyRecipe) -> CropProblem:
    return malignancy_problem(
        recipe,
        scans,
        nodule_weights=better_weights() if recipe.model == best_model() else nodule_weights(),
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
    )


def test_an_epoch_is_half_malignant_and_judges_nodules_only(toy_scans: list[PreparedScan]) -> None:
    scratch = problem(toy_scans, malignancy.report_scratch())
    labels = np.tile([2, 1] + [0] * 6, 3)[scratch.order(np.random.default_rng(0), 40, 1)]
    assert np.bincount(labels).tolist() == [10, 10, 20]
    targets, _ = scratch.predict("val")
    assert targets.tolist() == [1, 0]


def test_fine_tuning_starts_from_the_nodule_classifier_with_a_fresh_head(
    toy_scans: list[PreparedScan],
) -> None:
    model = problem(toy_scans, malignancy.report_finetuned()).model
    weights = nodule_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]) != (name == "head.weight"), name


def test_what_is_frozen_stays_as_it_was_batch_norm_statistics_included(toy_scans: list[PreparedScan]) -> None:
    recipe = malignancy.report_finetuned()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=1, samples_per_epoch=8, batch_size=4))
    tuned = problem(toy_scans, recipe)
    before = {name: value.clone() for name, value in tuned.model.state_dict().items()}
    fit(tuned, recipe.fit, seed=0)
    changed = {name for name, value in tuned.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("blocks.3.", "head.")) for name in changed)


def test_from_scratch_everything_learns(toy_scans: list[PreparedScan]) -> None:
    recipe = malignancy.report_scratch()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=1, samples_per_epoch=8, batch_size=4))
    scratch = problem(toy_scans, recipe)
    before = {name: value.clone() for name, value in scratch.model.state_dict().items()}
    fit(scratch, recipe.fit, seed=0)
    assert not any(torch.equal(value, before[name]) for name, value in scratch.model.state_dict().items())


def test_the_diameter_alone(toy_scans: list[PreparedScan]) -> None:
    assert diameter_baseline(toy_scans, "val") == 1.0


def test_another_network_than_the_nodule_classifiers_is_refused(toy_scans: list[PreparedScan]) -> None:
    recipe = replace(malignancy.best_finetuned(), model=replace(best_model(), norm="none"))
    with pytest.raises(TrainingError, match=r"another network; give both recipes the same model settings$"):
        problem(toy_scans, recipe)


def test_what_is_measured_along_rays_goes_on_from_the_nodule_classifier(toy_scans: list[PreparedScan]) -> None:
    model = problem(toy_scans, malignancy.best_finetuned()).model
    assert torch.equal(model.state_dict()["rays.mix.weight"], better_weights()["rays.mix.weight"])


def test_the_demo_is_the_better_recipe_cut_short() -> None:
    for full, demo in (
        (malignancy.best_scratch(), malignancy.demo_scratch()),
        (malignancy.best_finetuned(), malignancy.demo_finetuned()),
    ):
        assert replace(demo, fit=full.fit, negatives=full.negatives) == full
        assert (demo.fit.epochs, demo.fit.samples_per_epoch) == (5, 500)


@pytest.mark.parametrize("target", ["votes", "ratings", "reading", "levels"])
def test_it_learns_from_every_kind_of_target(toy_scans: list[PreparedScan], target: str) -> None:
    recipe = malignancy.best_scratch()
    recipe = replace(recipe, target=target, fit=replace(recipe.fit, epochs=1, samples_per_epoch=8, batch_size=4))
    scratch = problem(toy_scans, recipe)
    assert np.isfinite(fit(scratch, recipe.fit, seed=0).val["loss"])
