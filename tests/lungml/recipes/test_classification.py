from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from lungml import store
from lungml.augment import Augmentation
from lungml.classify import classify
from lungml.fit import fit
from lungml.geometry import xyz_to_irc
from lungml.loading import DeviceBatches
from lungml.recipes import classification
from lungml.recipes.classification import binary_metrics, classification_problem
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan

CPU = torch.device("cpu")
GENERATOR = torch.Generator()


def test_training_is_balanced_and_validation_is_not(toy_scans: list[PreparedScan]) -> None:
    problem = classification_problem(
        classification.report(), toy_scans, device=CPU, generator=torch.Generator().manual_seed(0)
    )
    order = problem.order(np.random.default_rng(0), 40, 1)
    assert (np.tile([1, 1] + [0] * 6, 3)[order] == 1).sum() == 20
    targets, _ = problem.predict("val")
    assert targets.tolist() == [1, 1] + [0] * 6


TURNS = NegativePlan(kind="per_epoch", per_scan=2, epochs=3)


def drawn_negatives(scans: list[PreparedScan], epoch: int, *, mined: bool = False) -> np.ndarray:
    """The non-nodules of one epoch; of each of three scans rows 0 and 1 are nodules, 2 to 7 are not."""
    recipe = replace(classification.report(), negatives=TURNS, mined=mined)
    problem = classification_problem(recipe, scans, device=CPU, generator=torch.Generator().manual_seed(0))
    order = problem.order(np.random.default_rng(epoch), 12, epoch)
    return np.unique(order[order % 8 >= 2])


def test_epochs_draw_from_other_negatives_in_turns(toy_scans: list[PreparedScan]) -> None:
    for epoch, slots in ((1, [0, 1]), (2, [2, 3]), (3, [4, 5]), (4, [0, 1])):
        expected = [8 * scan + 2 + slot for scan in range(3) for slot in slots]
        assert drawn_negatives(toy_scans, epoch).tolist() == expected


def test_every_epoch_draws_from_all_mined_ones(toy_scans: list[PreparedScan]) -> None:
    mined = [replace(scan, mined=scan.crops, digest=scan.crops_digest) for scan in toy_scans]
    seen = np.concatenate([drawn_negatives(mined, epoch, mined=True) for epoch in range(1, 30, 3)])
    own, of_segmenter = seen[seen < 24], seen[seen >= 24]
    assert set((own % 8).tolist()) == {2, 3}
    assert set((of_segmenter % 8).tolist()) == {2, 3, 4, 5, 6, 7}


def test_where_the_crops_lie_does_not_change_what_is_learned(
    toy_scans: list[PreparedScan], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = classification.demo()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=1, samples_per_epoch=16))
    weights = []
    for budget_bytes in (0, 2**30):
        kept = partial(DeviceBatches, budget_bytes=budget_bytes)
        with monkeypatch.context() as patch:
            patch.setattr(classification, "DeviceBatches", kept)
            problem = classification_problem(recipe, toy_scans, device=CPU, generator=torch.Generator().manual_seed(0))
        assert problem._batches.is_resident == bool(budget_bytes)
        weights.append(fit(problem, recipe.fit, seed=0).weights)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_it_learns_the_toy_nodules(toy_scans: list[PreparedScan]) -> None:
    recipe = classification.demo()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=3, samples_per_epoch=64, validate_every=1))
    problem = classification_problem(recipe, toy_scans, device=CPU, generator=torch.Generator().manual_seed(0))
    result = fit(problem, recipe.fit, seed=0)
    assert result.val["auc"] > 0.8


def test_binary_metrics_by_hand() -> None:
    metrics = binary_metrics(np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.6, 0.1]))
    assert metrics == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "auc": 0.75})


def in_mm() -> classification.ClassificationRecipe:
    recipe = classification.demo()
    return replace(recipe, model=replace(recipe.model, crop_shape=(16, 16, 16)))


def test_crops_in_mm_are_judged_as_inference_sees_them(toy_scans: list[PreparedScan]) -> None:
    problem = classification_problem(in_mm(), toy_scans, device=CPU, generator=torch.Generator().manual_seed(0))
    _, probs = problem.predict("val")
    scan = toy_scans[3]
    hu, grid = store.read_volume(scan.store), store.read_grid(scan.store)
    centers = xyz_to_irc(np.array([nodule.center_xyz for nodule in scan.nodules]), grid)
    found = classify(hu, centers, [problem.model.eval()], grid=grid)
    np.testing.assert_allclose(found[0], probs[:2], atol=1e-6)


def test_smoothed_labels_by_hand(toy_scans: list[PreparedScan]) -> None:
    losses = []
    for share in (0.0, 0.2):
        recipe = replace(in_mm(), augmentation=Augmentation(), label_smoothing=share)
        problem = classification_problem(recipe, toy_scans, device=CPU, generator=torch.Generator().manual_seed(0))
        with closing(problem.loaded([np.array([0, 2])])) as loaded:
            losses.append(problem.loss(lambda _: torch.tensor([[0.0, 3.0], [0.0, 3.0]]), next(loaded), GENERATOR))
    right, wrong = np.log1p(np.exp(-3)), np.log1p(np.exp(3))  # a nodule, then none
    assert losses[0].item() == pytest.approx((right + wrong) / 2, rel=1e-6)
    assert losses[1].item() == pytest.approx((0.9 * right + 0.1 * wrong + 0.9 * wrong + 0.1 * right) / 2, rel=1e-6)


def test_the_demo_is_the_better_recipe_cut_short() -> None:
    full, demo = classification.best(), classification.demo()
    assert replace(demo, fit=full.fit, negatives=full.negatives) == full
    assert (full.fit.epochs, full.fit.samples_per_epoch) == (95, 50_000)
    assert (demo.fit.epochs, demo.fit.samples_per_epoch) == (6, 1_000)
