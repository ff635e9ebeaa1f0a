"""How far is a segmentation from its annotation mask? The classifiers take PyTorch's cross-entropy."""

from __future__ import annotations

import torch
import torch.distributed
from torch.nn.functional import binary_cross_entropy_with_logits

DICE_SMOOTHING = 1.0  # the report's: an empty mask that is left empty costs nothing
REFERENCE_PIXELS = 80.0  # a nodule of 7 mm where a pixel is 0.7 mm
MAX_SIZE_WEIGHT = 4.0  # of a small nodule's pixel, and by as much the pixels of large ones are held back
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
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    pos_weight: float = 5.0,
    bce_weight: float = 2.0,
    size_balance: float = 0.0,
    focus: float = 0.0,
    miss_share: float = 0.5,
    across: bool = False,
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
        size_balance: from 0, where every nodule pixel counts alike, to 1, where every nodule does, see
            `nodule_weights`.
        focus: the exponent of a focal loss: 0 is plain cross-entropy, 2 all but forgets pixels that are right already.
        miss_share: of the dice, see `batch_dice_loss`.
        across: where several processes train, one dice over all of their batches, as one process with all of the
            windows has. All of them must call it then. Equal batches are taken for granted.

    Returns:
        scalar.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = target.to(logits.dtype)
    weights = nodule_weights(target, size_balance)
    probs = logits.sigmoid()
    costs = binary_cross_entropy_with_logits(
        logits, target, pos_weight=logits.new_full((), pos_weight), weight=weights, reduction="none"
    )
    if focus:
        costs = costs * (probs - target).abs() ** focus
    dice = batch_dice_loss(probs, target, weights, miss_share=miss_share, across=across)
    return bce_weight * costs.mean() + dice


def batch_dice_loss(
    probs: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    miss_share: float = 0.5,
    across: bool = False,
) -> torch.Tensor:
    """One soft dice loss over all pixels of a batch, or of the batches of all processes; defined where all are empty.

    With another `miss_share` than 1/2 it is a Tversky loss (Salehi et al. 2017), of soft counts and smoothed alike:
    `1 - (2 tp + 1) / (2 tp + 2 a fn + 2 (1 - a) fp + 1)`.

    Args:
        probs: any shape, float in [0, 1].
        target: same shape, 0 or 1, of the same dtype.
        weights: same shape: how much a pixel counts.
        miss_share: `a`: above 1/2 a missed pixel costs more than a false one.
        across: see `bce_batch_dice_loss`.

    Returns:
        scalar.
    """
    if weights is not None:
        probs = probs * weights
    there = target if weights is None else target * weights
    sums = torch.stack([(probs * target).sum(), probs.sum(), there.sum()])
    if across and torch.distributed.is_available() and torch.distributed.is_initialized():
        sums = all_sums(sums)
    hits, flagged, nodule = sums.unbind()
    missed, wrong = nodule - hits, flagged - hits
    price = 2 * miss_share * missed + 2 * (1 - miss_share) * wrong
    return 1 - (2 * hits + DICE_SMOOTHING) / (2 * hits + price + DICE_SMOOTHING)


def all_sums(sums: torch.Tensor) -> torch.Tensor:
    """Sums over all processes, with gradients.

    Its backward adds up the gradients of all processes' losses. These losses are equal, so that each process gets the
    gradient times their number, which averaging the gradients between the processes divides out again.
    """
    from torch.distributed.nn.functional import all_reduce  # not there in every build of PyTorch

    return all_reduce(sums)


def nodule_weights(target: torch.Tensor, size_balance: float) -> torch.Tensor | None:
    """How much each pixel counts, so that a small nodule is not lost beside a large one.

    A nodule pixel of a window with `a` of them counts `(REFERENCE_PIXELS / a) ** size_balance`, at least 1/4 and at
    most 4; any other pixel counts 1. The reference is fixed, so that a window weighs the same in any batch.

    Args:
        target: (B, 1, H, W) float, 0 or 1; a window holds one nodule, as a rule.
        size_balance: 0 to 1.

    Returns:
        the target's shape and dtype; None for a balance of 0.
    """
    if not size_balance:
        return None
    pixels = target.flatten(1).sum(1).clamp(min=1)
    weight = ((REFERENCE_PIXELS / pixels) ** size_balance).clamp(1 / MAX_SIZE_WEIGHT, MAX_SIZE_WEIGHT)
    return 1 + (weight.view(-1, 1, 1, 1) - 1) * target
