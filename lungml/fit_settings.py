"""How long and how fast does a model learn?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import nn

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "one_cycle", "cosine"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast to learn.

    Attributes:
        epochs: passes of `samples_per_epoch` samples.
        samples_per_epoch: drawn anew for every epoch.
        batch_size: samples a step, of all processes together.
        optimizer: "adam", "adamw" or "sgd" (without momentum).
        learning_rate: of the optimiser, or the peak of the schedule.
        weight_decay: of the optimiser.
        schedule: "constant", "one_cycle" (PyTorch's OneCycleLR over all steps), or "cosine" (a linear warm-up, then
            half a cosine down to nothing).
        warmup: share of all steps in which the rate rises, under "cosine" only.
        later_rate: (epoch, learning rate) that holds from that epoch on, under the constant schedule only.
        clip_norm: largest norm of all gradients together; 0 clips nothing.
        average: share of the old that a running average of the weights keeps at each step, such as 0.99; the average
            is what is validated and kept. 0 averages nothing.
        select_by: the validation metric whose best epoch is kept; higher is better.
        validate_every: epochs between validations; the last epoch is always validated.
    """

    epochs: int
    samples_per_epoch: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0.05
    later_rate: tuple[int, float] | None = None
    clip_norm: float = 0.0
    average: float = 0.0
    select_by: str
    validate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "samples_per_epoch", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not a positive number")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}, not a positive number")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; choose one of {', '.join(get_args(Optimizer))}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"unknown schedule {self.schedule!r}; choose one of {', '.join(get_args(Schedule))}")
        if self.later_rate and self.schedule != "constant":
            raise ValueError(f"later_rate goes with the constant schedule, not with {self.schedule}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}, not a number from 0 on")
        if self.later_rate is not None and not (self.later_rate[0] > 1 and self.later_rate[1] > 0):
            raise ValueError(f"later_rate is {self.later_rate}, not an epoch after the first and a learning rate")
        if not 0 <= self.warmup < 1 or not 0 <= self.average < 1 or not self.clip_norm >= 0:
            raise ValueError(f"no training has {self.warmup=}, {self.average=}, {self.clip_norm=}")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; an epoch smaller than a batch is one."""
        return max(1, self.samples_per_epoch // self.batch_size)

    def scaled(self, budget: float) -> FitSettings:
        """The same training with samples per epoch and epochs both scaled, at least one batch and one epoch of them.

        Args:
            budget: factor of each of the two, so that the work is scaled by its square.

        Raises:
            ValueError: when the budget is not a positive number.
        """
        if not 0 < budget < math.inf:
            raise ValueError(f"budget is {budget}, not a positive number")
        later = self.later_rate and (max(2, round((self.later_rate[0] - 1) * budget) + 1), self.later_rate[1])
        epochs = max(1, round(self.epochs * budget))
        return replace(
            self,
            epochs=epochs,
            samples_per_epoch=max(self.batch_size, round(self.samples_per_epoch * budget)),
            later_rate=later,
            validate_every=min(self.validate_every, epochs),
        )


def make_optimizer(settings: FitSettings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a model's parameters that learn."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # On a GPU one kernel instead of fifteen.
    fused = {"fused": True} if learning and learning[0].is_cuda else {}
    return kinds[settings.optimizer](learning, lr=settings.learning_rate, weight_decay=settings.weight_decay, **fused)


def make_scheduler(
    settings: FitSettings, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """What changes the learning rate at every step; None under the constant schedule."""
    steps = settings.steps_per_epoch * settings.epochs
    if settings.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=settings.learning_rate,
            total_steps=steps,
            cycle_momentum=settings.optimizer != "sgd",  # ours has none
        )
    if settings.schedule == "cosine":
        rising = math.ceil(settings.warmup * steps)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return None
