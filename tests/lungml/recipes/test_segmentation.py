from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lungml import store
from lungml.crop_cache import IGNORED
from lungml.errors import TrainingError
from lungml.fit import fit
from lungml.loading import Batch
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


def test_judging_slices_looks_at_those_with_a_nodule_and_judging_scans_at_all(toy_scans: list[PreparedScan]) -> None:
    recipe = replace(segmentation.report(), fit=replace(segmentation.report().fit, select_by="f1"))
    by_slices = problem(toy_scans, recipe)
    with torch.no_grad():  # a network that flags every pixel
        by_slices.model.head.weight.zero_()
        by_slices.model.head.bias.fill_(9.0)
    whole = problem(toy_scans, replace(recipe, judge="scans"))
    whole.model.load_state_dict(by_slices.model.state_dict())
    mask = store.read_mask(toy_scans[3].store, "mask")
    marked = mask.any(axis=(1, 2)).sum()
    some, all_of_it = by_slices.evaluate("val"), whole.evaluate("val")
    assert some.keys() == {"loss", "precision", "recall", "f1"}
    assert some["precision"] == pytest.approx(mask.sum() / (marked * mask[0].size))
    assert all_of_it["precision"] == pytest.approx(mask.mean())
    assert all_of_it["recall"] == some["recall"] == 1
    # All of the scan is one candidate, its centre of mass; it lies in none of the two nodules.
    assert (all_of_it["candidate_recall"], all_of_it["candidates_per_scan"]) == (0, 1)


def test_no_more_scans_are_judged_than_the_bound(toy_scans: list[PreparedScan]) -> None:
    many = [replace(toy_scans[3], series_uid=str(number)) for number in range(7)]
    recipe = replace(segmentation.best(), judge_scans=3)
    seen = [scan.series_uid for scan in problem([*toy_scans[:3], *many], recipe)._judged("val")]
    assert seen == ["0", "2", "4"]
    everything = problem([*toy_scans[:3], *many], replace(recipe, judge_scans=0))._judged("val")
    assert [scan.series_uid for scan in everything] == [str(number) for number in range(7)]


@pytest.mark.parametrize("window", [64, 96])
def test_windows_are_cut_alike_from_slab_and_mask(window: int) -> None:
    masks = torch.arange(2 * 96 * 96).view(2, 1, 96, 96)
    slabs = masks.expand(2, 7, 96, 96)
    cut, cut_masks = segmentation._random_windows(slabs, masks, window, torch.Generator().manual_seed(0))
    assert cut.shape == (2, 7, window, window)
    assert (cut == cut_masks).all()
    rows, cols = cut_masks[:, 0, 0, 0] % 9216 // 96, cut_masks[:, 0, 0, 0] % 96
    assert ((rows + window <= 96) & (cols + window <= 96)).all()
    assert (cut_masks[:, 0, 1, 0] - cut_masks[:, 0, 0, 0] == 96).all()


@pytest.mark.parametrize("recipe", [segmentation.report(), segmentation.best()], ids=["report", "best"])
def test_nothing_is_learned_where_readers_disagree(
    toy_scans: list[PreparedScan], recipe: segmentation.SegmentationRecipe
) -> None:
    of, rng = problem(toy_scans, recipe), torch.Generator().manual_seed(1)
    slabs = torch.randint(-1000, 400, (4, 7, 96, 96), generator=rng).to(torch.int16)
    masks = torch.zeros((4, 96, 96), dtype=torch.uint8)
    masks[:, 40:48, 40:48] = 1
    disputed = masks.clone()
    disputed[:2, 52:60, 44:56] = IGNORED
    logits = torch.randn((4, 1, 64, 64), generator=rng)

    def learned(masks: torch.Tensor, added: torch.Tensor | float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of what a network says whatever it sees, and its gradient."""
        said = (logits + added).requires_grad_()
        batch = Batch(rows=np.arange(4), arrays=[slabs, masks])
        loss = of.loss(lambda _: said, batch, torch.Generator().manual_seed(2))
        (gradient,) = torch.autograd.grad(loss, said)
        return loss.detach(), gradient

    (plain, everywhere), (loss, gradient) = learned(masks), learned(disputed)
    nowhere = gradient == 0
    assert 0.005 < nowhere[:2].float().mean() < 0.06  # of 8 x 12 in 64 x 64 pixels what is left once it is moved
    assert loss != plain
    # Whatever is said there, all else is learned as it was.
    again, same = learned(disputed, torch.where(nowhere, 5.0, 0.0))
    assert torch.equal(again, loss)
    assert torch.equal(same, gradient)
    assert everywhere[2:][nowhere[2:]].abs().sum() == 0  # the other two windows are as ever


def test_settings_that_cannot_be_are_refused() -> None:
    recipe = segmentation.report()
    changes: tuple[dict[str, Any], ...] = (
        {"window": 98}, {"window": 63}, {"miss_share": 1.5}, {"focus": 0.5}, {"focus": -1.0}, {"loss": "dice"},
        {"judge": "pixels"},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(recipe, **change)
    with pytest.raises(ValueError, match="candidate_score is known of whole scans only"):
        replace(recipe, fit=replace(recipe.fit, select_by="candidate_score"))


def test_it_learns_the_toy_nodules(toy_scans: list[PreparedScan]) -> None:
    recipe = segmentation.demo()
    recipe = replace(recipe, fit=replace(recipe.fit, epochs=2, samples_per_epoch=192, validate_every=1))
    learning = problem(toy_scans, recipe)
    before = learning.evaluate("val")
    result = fit(learning, recipe.fit, seed=0)
    assert result.val["recall"] > 0.5
    assert result.val["f1"] > 10 * before["f1"]  # of whole scans
    assert result.val["candidate_score"] == 1
    assert result.val["candidates_per_scan"] < before["candidates_per_scan"]
    assert learning.evaluate("test")["candidate_recall"] == 1


def test_only_training_scans_are_learned_from(toy_scans: list[PreparedScan]) -> None:
    held_out = [scan for scan in toy_scans if scan.split != "train"]
    with pytest.raises(TrainingError, match="no annotated nodule"):
        problem(held_out, segmentation.report())
