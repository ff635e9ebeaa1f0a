from dataclasses import replace

import numpy as np
import pytest
import torch

from lungml.errors import TrainingError
from lungml.fit import fit
from lungml.recipes import segmentation
from lungml.recipes.data import PreparedScan
from lungml.recipes.segmentation import SegmentationProblem


def problem(scans: list[PreparedScan], recipe: segmentation.SegmentationRecipe) -> SegmentationProblem:
    return SegmentationProblem(recipe, scans, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))


def test_the_report_only_sees_nodules_and_the_demo_half(toy_scans: list[PreparedScan]) -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([2, 1] + [0] * 6, 3)
    assert (labels[problem(toy_scans, segmentation.report()).order(rng, 40, 1)] > 0).all()
    assert (labels[problem(toy_scans, segmentation.demo()).order(rng, 40, 1)] > 0).sum() == 20


def test_it_learns_the_toy_nodules(toy_scans: list[PreparedScan]) -> None:
    recipe = segmentation.demo()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=2, samples_per_epoch=192, validate_every=1))
    learning = problem(toy_scans, recipe)
    before = learning.evaluate("val")
    result = fit(learning, recipe.fit, seed=0)
    assert result.val["f1"] > max(0.5, before["f1"])
    assert learning.evaluate("test")["f1"] > 0.5


def test_only_training_scans_are_learned_from(toy_scans: list[PreparedScan]) -> None:
    held_out = [scan for scan in toy_scans if scan.split != "train"]
    with pytest.raises(TrainingError, match="no annotated nodule"):
        problem(held_out, segmentation.report())
