from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lungml.fit_settings import FitSettings, make_optimizer, make_scheduler

SETTINGS = FitSettings(
    epochs=10, samples_per_epoch=100, batch_size=8, optimizer="sgd", learning_rate=0.4, select_by="auc"
)


@pytest.mark.parametrize(
    ("budget", "epochs", "samples"), [(1, 10, 100), (0.5, 5, 50), (0.04, 1, 8), (0.26, 3, 26), (2, 20, 200)]
)
def test_a_budget_scales_epochs_and_samples(budget: float, epochs: int, samples: int) -> None:
    scaled = SETTINGS.scaled(budget)
    assert (scaled.epochs, scaled.samples_per_epoch) == (epochs, samples)
    assert replace(scaled, epochs=10, samples_per_epoch=100) == SETTINGS  # and nothing else


def test_a_later_rate_comes_after_the_same_share_of_the_epochs() -> None:
    report = replace(SETTINGS, epochs=95, later_rate=(61, 3e-3))
    assert report.scaled(0.1).later_rate == (7, 3e-3)  # after six of ten
    assert report.scaled(0.1).epochs == 10
    assert report.scaled(0.001).later_rate == (2, 3e-3)  # never from the beginning


def test_validation_is_never_scaled_away() -> None:
    assert replace(SETTINGS, validate_every=4).scaled(0.2).validate_every == 2


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget is"):
        SETTINGS.scaled(budget)


@pytest.mark.parametrize(
    "change",
    [{"optimizer": "rmsprop"}, {"schedule": "step"}, {"warmup": 1.0}, {"average": 1.0}, {"clip_norm": -1.0},
     {"learning_rate": math.nan}, {"learning_rate": math.inf}],
)  # fmt: skip
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SETTINGS, **change)


def rates(settings: FitSettings) -> list[float]:
    model = torch.nn.Linear(1, 1)
    optimizer = make_optimizer(settings, model)
    scheduler = make_scheduler(settings, optimizer)
    seen = []
    for _ in range(settings.steps_per_epoch * settings.epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    return seen


def test_the_cosine_by_hand() -> None:
    # 10 steps, 2 of them rising: 1/3, 2/3, then the cosine from the peak over 8 steps.
    settings = replace(SETTINGS, epochs=2, samples_per_epoch=40, schedule="cosine", warmup=0.2)
    expected = [0.4 / 3, 0.8 / 3, *(0.2 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]
    assert rates(settings) == pytest.approx(expected)
    assert rates(replace(settings, warmup=0.0))[0] == pytest.approx(0.4)


def test_the_constant_rate_is_constant() -> None:
    assert rates(replace(SETTINGS, epochs=1)) == [0.4] * 12


def test_only_what_learns_is_given_to_the_optimizer() -> None:
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    optimizer = make_optimizer(replace(SETTINGS, optimizer="adamw", weight_decay=0.1), model)
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(1, 2)]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert isinstance(optimizer, torch.optim.AdamW)


def test_one_kernel_for_all_weights_is_for_gpus_only() -> None:
    optimizer = make_optimizer(SETTINGS, torch.nn.Linear(2, 2))
    assert not optimizer.defaults["fused"]
