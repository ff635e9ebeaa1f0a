from dataclasses import replace

import numpy as np
import pytest
import torch

from lungml.fit import fit
from lungml.recipes import classification
from lungml.recipes.classification import binary_metrics, classification_problem
from lungml.recipes.data import PreparedScan

CPU = torch.device("cpu")


def test_training_is_balanced_and_validation_is_not(toy_scans: list[PreparedScan]) -> None:
    problem = classification_problem(
        classification.report(), toy_scans, device=CPU, generator=torch.Generator().manual_seed(0)
    )
    order = problem.order(np.random.default_rng(0), 40)
    assert (np.tile([1, 1] + [0] * 6, 3)[order] == 1).sum() == 20
    targets, _ = problem.predict("val")
    assert targets.tolist() == [1, 1] + [0] * 6


def test_it_learns_the_toy_nodules(toy_scans: list[PreparedScan]) -> None:
    recipe = classification.demo()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=3, samples_per_epoch=64, validate_every=1))
    problem = classification_problem(recipe, toy_scans, device=CPU, generator=torch.Generator().manual_seed(0))
    result = fit(problem, recipe.fit, seed=0)
    assert result.val["auc"] > 0.8


def test_binary_metrics_by_hand() -> None:
    metrics = binary_metrics(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1]))
    assert metrics == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "auc": 0.75})
