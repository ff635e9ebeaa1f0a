"""What should a malignancy model answer where the readers disagree?"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

Target = Literal["votes", "ratings", "reading", "levels"]
LEVEL_STEP = 1.5  # logits between two rating levels: a reader who is a level off is off by this much


def rating_loss(
    logits: torch.Tensor,
    classes: torch.Tensor,
    rating_counts: torch.Tensor,
    target: Target,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean loss of a batch against what its readers said; samples without ratings are held to their class.

    * "votes": cross-entropy with the class, whatever the ratings.
    * "ratings": cross-entropy with the soft label mean((rating - 1) / 4), the five steps of Armato et al. 2011 taken
      as equally wide. It keeps what the class drops: [1, 1, 4, 4] and [5, 5, 5, 5] are both malignant, 0.375 and 1.
    * "reading": the same with one reader's rating, drawn anew each time.
    * "levels": the difference s of the logits is held to all five levels (proportional odds): for each of the four
      steps between levels a cross-entropy of s + (1.5, 0.5, -0.5, -1.5) * `LEVEL_STEP` with the share of readers
      above the step. s = 0 lies between ratings 3 and 4 after a further half step: 4 and 5 are malignant.

    Args:
        logits: (B, 2) float, before the softmax.
        classes: (B,) int64, 0 or 1.
        rating_counts: (B, 5) how many readers rated 1..5, on the logits' device.
        target: which of these.
        generator: draws the readers, on its own device.

    Returns:
        scalar.
    """
    if target == "votes":
        return cross_entropy(logits, classes)
    counts = rating_counts.to(logits.dtype)
    rated = counts.sum(1) > 0
    if target == "reading":
        drawn = torch.multinomial((counts + ~rated[:, None]).to(generator.device), 1, generator=generator)[:, 0]
        counts = torch.nn.functional.one_hot(drawn.to(logits.device), 5).to(logits.dtype)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    score = logits[:, 1] - logits[:, 0]
    if target == "levels":
        above = shares.flip(1).cumsum(1).flip(1)[:, 1:]  # (B, 4): rated 2 or more, .. 5
        above = torch.where(rated[:, None], above, classes[:, None].to(logits.dtype))
        # The step from 3 to 4, the third, parts the classes: it lies at 0.
        steps = LEVEL_STEP * torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=logits.dtype, device=logits.device)
        return binary_cross_entropy_with_logits(score[:, None] + steps, above)
    levels = torch.linspace(0, 1, 5, dtype=logits.dtype, device=logits.device)
    soft = torch.where(rated, shares @ levels, classes.to(logits.dtype))
    return binary_cross_entropy_with_logits(score, soft)
