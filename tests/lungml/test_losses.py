import math
import os
from pathlib import Path

import pytest
import torch
from torch import distributed

from lungml.losses import (
    batch_dice_loss,
    bce_batch_dice_loss,
    dice_loss,
    nodule_weights,
    report_segmentation_loss,
)


def test_dice_of_a_hand_computed_picture() -> None:
    probs = torch.tensor([[[[0.5, 1.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.tensor([[[[1, 1], [0, 0]]], [[[0, 0], [0, 0]]]])
    # First sample: 1 - (2 * 1.5 + 1) / (1.5 + 2 + 1); the second is empty and left empty.
    torch.testing.assert_close(dice_loss(probs, target), torch.tensor([1 - 4 / 4.5, 0.0]))


def test_dice_is_per_sample() -> None:
    probs = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    target = (probs > 0.4).float()
    alone = torch.cat([dice_loss(probs[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(dice_loss(probs, target), alone)


def test_dice_of_half_precision_is_summed_in_single() -> None:
    probs = torch.full((1, 1, 512, 512), 1.0, dtype=torch.bfloat16)
    assert dice_loss(probs, torch.ones_like(probs)).dtype == torch.float32
    assert dice_loss(probs, torch.ones_like(probs)).item() == pytest.approx(0, abs=1e-6)


def test_the_reports_loss_of_a_hand_computed_picture() -> None:
    logits = torch.zeros(1, 1, 1, 4)  # probability 1/2 everywhere
    target = torch.tensor([[[[1.0, 1, 0, 0]]]])
    plain = 1 - (2 * 1 + 1) / (2 + 2 + 1)
    missed = 1 - (2 * 1 + 1) / (1 + 2 + 1)
    assert report_segmentation_loss(logits, target).item() == pytest.approx(plain + 8 * missed)


def test_the_reports_loss_fears_misses_more_than_false_alarms() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :] = 1
    everything = report_segmentation_loss(torch.full_like(target, 9.0), target)
    nothing = report_segmentation_loss(torch.full_like(target, -9.0), target)
    assert nothing > 8 * everything


def test_bce_batch_dice_of_a_hand_computed_picture() -> None:
    logits = torch.zeros(2, 1, 1, 2)
    target = torch.tensor([[[[1.0, 0]]], [[[0, 0]]]])
    bce = (5 + 3) * math.log(2) / 4
    dice = 1 - (2 * 0.5 + 1) / (2 + 1 + 1)  # one sum over the whole batch
    assert bce_batch_dice_loss(logits, target).item() == pytest.approx(2 * bce + dice)


@pytest.mark.parametrize("loss", [report_segmentation_loss, bce_batch_dice_loss])
def test_losses_are_finite_with_gradients_where_logits_are_extreme(loss) -> None:
    logits = torch.tensor([-200.0, 200.0, 0.0, 200.0]).view(1, 1, 2, 2).requires_grad_()
    target = torch.tensor([1, 0, 1, 1]).view(1, 1, 2, 2)
    value = loss(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    perfect = loss((target * 2.0 - 1) * 200, target)
    assert perfect.item() == pytest.approx(0, abs=1e-5)


def test_a_focal_cost_fades_where_a_pixel_is_right_already() -> None:
    logits = torch.zeros(1, 1, 1, 2)
    target = torch.tensor([[[[1.0, 0]]]])
    dice = 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    plain = (5 + 1) * math.log(2) / 2
    assert bce_batch_dice_loss(logits, target, focus=2.0).item() == pytest.approx(2 * plain / 4 + dice)
    sure = torch.tensor([[[[4.0, -4.0]]]])
    fading = [bce_batch_dice_loss(sure, target, focus=focus, bce_weight=1e3).item() for focus in (0.0, 1.0, 2.0)]
    assert fading[0] > 10 * fading[1] > 100 * fading[2]


def test_misses_cost_their_share() -> None:
    probs = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])  # one hit, one false, two missed
    target = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    assert batch_dice_loss(probs, target).item() == pytest.approx(1 - 3 / 6)
    assert batch_dice_loss(probs, target, miss_share=1.0).item() == pytest.approx(1 - 3 / (2 + 4 + 1))
    assert batch_dice_loss(probs, target, miss_share=0.0).item() == pytest.approx(1 - 3 / (2 + 2 + 1))


def test_small_nodules_count_as_much_as_large_ones() -> None:
    target = torch.zeros(4, 1, 32, 32)
    target[0, :, :8, :20] = 1  # 160 pixels, twice the reference
    target[1, :, :8, :5] = 1  # 40
    target[2, :, 0, 0] = 1  # one: it would count 80
    weights = nodule_weights(target, 1.0)
    assert weights is not None
    assert [w[t > 0].unique().tolist() for w, t in zip(weights[:3], target)] == [[0.5], [2.0], [4.0]]
    assert (weights[target == 0] == 1).all()
    half = nodule_weights(target, 0.5)
    assert half is not None
    assert half[1, 0, 0, 0].item() == pytest.approx(math.sqrt(2))
    assert nodule_weights(target, 0.0) is None


def test_weights_reach_the_cross_entropy_and_the_dice() -> None:
    logits, target = torch.zeros(1, 1, 1, 80), torch.zeros(1, 1, 1, 80)
    target[..., :40] = 1  # weight 2
    bce = (40 * 2 * 5 + 40) * math.log(2) / 80
    dice = 1 - (2 * 40 + 1) / ((40 + 20) + 80 + 1)
    assert bce_batch_dice_loss(logits, target, size_balance=1.0).item() == pytest.approx(2 * bce + dice)


LOGITS = torch.linspace(-3, 3, 32, dtype=torch.float64).view(4, 1, 2, 4).flip(-1)
TARGET = (LOGITS.abs() > 1.2).double()


def _half(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    logits = LOGITS[rank::2].clone().requires_grad_()
    loss = bce_batch_dice_loss(logits, TARGET[rank::2], across=True)
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": logits.grad}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)  # an interpreter that ends while a thread of PyTorch's waits for its lock is aborted, if rarely


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    whole = LOGITS.clone().requires_grad_()
    loss = bce_batch_dice_loss(whole, TARGET)
    loss.backward()
    torch.multiprocessing.spawn(_half, args=(str(tmp_path),), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    # What averaging over the processes makes of losses and gradients.
    torch.testing.assert_close((halves[0]["loss"] + halves[1]["loss"]) / 2, loss.detach())
    assert whole.grad is not None
    for rank in range(2):
        torch.testing.assert_close(halves[rank]["gradient"] / 2, whole.grad[rank::2])
