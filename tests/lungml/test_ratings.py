import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from lungml.ratings import LEVEL_STEP, rating_loss

LOGITS = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.5, 1.0]])
CLASSES = torch.tensor([1, 0, 0])
COUNTS = torch.tensor([[0, 0, 0, 1, 2], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.uint8)


def loss(target: str, rows: slice = slice(None), seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return rating_loss(LOGITS[rows], CLASSES[rows], COUNTS[rows], target, drawn)  # type: ignore[arg-type]


def test_votes_are_the_class_whatever_the_ratings() -> None:
    assert loss("votes") == cross_entropy(LOGITS, CLASSES)


def test_ratings_are_the_soft_label_and_unrated_ones_keep_their_class() -> None:
    soft = torch.tensor([(3 + 4 + 4) / 12, (0 + 2) / 8, 0.0])  # the mean of (rating - 1) / 4
    expected = cross_entropy(LOGITS, torch.stack([1 - soft, soft], dim=1))
    torch.testing.assert_close(loss("ratings"), expected)


def test_a_reading_is_one_of_those_there_are() -> None:
    found = {round(loss("reading", slice(1, 2), seed).item(), 5) for seed in range(30)}
    each = [cross_entropy(LOGITS[1:2], torch.tensor([[1 - soft, soft]])).item() for soft in (0.0, 0.5)]
    assert found == {round(value, 5) for value in each}
    torch.testing.assert_close(loss("reading", slice(2, 3)), cross_entropy(LOGITS[2:], CLASSES[2:]))


def test_levels_hold_the_score_to_every_step() -> None:
    # Ratings 4, 5, 5: all readers above the first three steps, two of three above the last. The score is 2.
    steps = LEVEL_STEP * torch.tensor([2.0, 1.0, 0.0, -1.0])
    above = torch.tensor([1, 1, 1, 2 / 3])
    expected = -(above * logsigmoid(2 + steps) + (1 - above) * logsigmoid(-2 - steps)).mean()
    torch.testing.assert_close(loss("levels", slice(0, 1)), expected)


@pytest.mark.parametrize("target", ["votes", "ratings", "reading", "levels"])
def test_a_higher_score_is_better_for_a_malignant_one_alone(target: str) -> None:
    scores = LOGITS.clone().requires_grad_()
    rating_loss(scores, CLASSES, COUNTS, target, torch.Generator().manual_seed(0)).backward()  # type: ignore[arg-type]
    assert scores.grad is not None
    assert scores.grad[0, 1] < 0 < scores.grad[2, 1]
