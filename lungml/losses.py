"""How far is a segmentation from its annotation mask? The classifiers take PyTorch's cross-entropy."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

DICE_SMOOTHING = 1.0  # the report's: an empty mask that is left empty costs nothing
FALSE_NEGATIVE_WEIGHT = 8.0  # the report's: a missed nodule pixel costs far more than a false one


def dice_loss(probs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Soft dice loss of each sample, `1 - (2 * sum(p * y) + 1) / (sum(p) + sum(y) + 1)`.

    Args:
        probs: (B, ...) float in [0, 1].
        target: same shape, 0 or 1, any dtype.

    Returns:
        (B,) float32 (float64 for float64 probabilities).
    """
    # Summing many pixels in half precision would lose the small ones.
    probs = probs.flatten(1) if probs.dtype == torch.float64 else probs.flatten(1).float()
    target = target.flatten(1).to(probs.dtype)
    overlap = (probs * target).sum(1)
    return 1 - (2 * overlap + DICE_SMOOTHING) / (probs.sum(1) + target.sum(1) + DICE_SMOOTHING)


def report_segmentation_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The report's loss, `mean(dice(p, y)) + 8 * mean(dice(p * y, y))`.

    The second term sees only the nodule's own pixels: false positives cost nothing in it.

    Args:
        logits: (B, 1, H, W) float, before the sigmoid.
        target: (B, 1, H, W) 0 or 1, any dtype.

    Returns:
        scalar.
    """
    probs = logits.sigmoid()
    missed = dice_loss(probs * target, target)
    return dice_loss(probs, target).mean() + FALSE_NEGATIVE_WEIGHT * missed.mean()


def bce_batch_dice_loss(
    logits: torch.Tensor, target: torch.Tensor, *, pos_weight: float = 5.0, bce_weight: float = 2.0
) -> torch.Tensor:
    """Weighted cross-entropy of every pixel plus one dice loss over the pixels of the whole batch.

    Every pixel outside the nodules has a cost here, so that windows without a nodule teach something; one
    dice over the batch is defined for them too. On phantoms the default weights gave fewer and better
    candidates than the report's loss.

    Args:
        logits: (B, 1, H, W) float, before the sigmoid.
        target: (B, 1, H, W) 0 or 1, any dtype.
        pos_weight: how many background pixels a nodule pixel counts for, in the cross-entropy.
        bce_weight: of the cross-entropy against the dice.

    Returns:
        scalar.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(logits.dtype)
    weight = torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
    bce = binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    return bce_weight * bce + dice_loss(logits.sigmoid()[None], target[None])[0]
