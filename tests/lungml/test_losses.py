import math

import pytest
import torch

from lungml.losses import bce_batch_dice_loss, dice_loss, report_segmentation_loss


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
