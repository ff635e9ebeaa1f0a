"""How does any of the models learn? One loop for all recipes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lungml.checkpoint import load_checkpoint, save_checkpoint
from lungml.errors import LunaError
from lungml.metrics import is_better
from lungml.sampling import batches

log = logging.getLogger(__name__)


class TrainingError(LunaError):
    """Training cannot start or go on; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast to learn.

    Attributes:
        epochs: passes of `samples_per_epoch` samples.
        samples_per_epoch: drawn anew for every epoch.
        batch_size: samples a step.
        optimizer: "adam", "adamw" or "sgd" (without momentum).
        learning_rate: of the optimiser, or the peak of the schedule.
        weight_decay: of the optimiser.
        schedule: "constant", or "one_cycle" (PyTorch's OneCycleLR over all steps).
        later_rate: (epoch, learning rate) that holds from that epoch on, under the constant schedule only.
        select_by: the validation metric whose best epoch is kept; higher is better.
        validate_every: epochs between validations; the last epoch is always validated.
    """

    epochs: int
    samples_per_epoch: int
    batch_size: int
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: float
    weight_decay: float = 0.0
    schedule: Literal["constant", "one_cycle"] = "constant"
    later_rate: tuple[int, float] | None = None
    select_by: str
    validate_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "samples_per_epoch", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not a positive number")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, not a positive number")
        if self.later_rate and self.schedule != "constant":
            raise ValueError(f"later_rate goes with the constant schedule, not with {self.schedule}")


class Problem(Protocol):
    """What one model learns from: the recipes implement it."""

    @property
    def model(self) -> nn.Module:
        """The network, on its device."""

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> npt.NDArray[np.int64]:
        """The training rows of one epoch, counted from 1."""

    def loaded(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Any, None, None]:
        """The batches at those rows, on the model's device, the next ones being read while one is learned from."""

    def train_mode(self) -> None:
        """Put the model in training mode, frozen parts excepted."""

    def loss(self, batch: Any, generator: torch.Generator) -> torch.Tensor:
        """Forward one batch of `loaded`, augmented; remembers what the epoch's training metrics need."""

    def train_metrics(self) -> dict[str, float]:
        """Metrics over the batches since the last call, which it forgets."""

    def evaluate(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Metrics of the model as it stands on a split that is neither balanced nor augmented."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch, as it is shown and logged; metric names are bare (`loss`, `recall`, ...)."""

    epoch: int
    epochs: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    best_epoch: int
    best_score: float
    samples_per_s: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The best epoch by the validation metric; `weights` are its state on the CPU."""

    best_epoch: int
    best_score: float
    weights: dict[str, torch.Tensor]
    val: Mapping[str, float]


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; any other name is PyTorch's own.

    Raises:
        TrainingError: when the named device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"device {name!r} is not one that PyTorch knows; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {name!r} is not one that luna runs on; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device 'cuda' was asked for, but PyTorch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def fit(
    problem: Problem,
    settings: FitSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> FitResult:
    """Train a problem's model and leave it with the best epoch's weights.

    Every epoch draws from generators made of (seed, epoch), so an epoch that starts again after a kill is the same
    epoch. With a checkpoint path, finished epochs are never repeated.

    Args:
        problem: model, data and loss.
        settings: how long and how fast.
        seed: of sampling and augmentation; initial weights come with the model.
        checkpoint: file of the resumable state.
        on_epoch: called after every epoch.

    Raises:
        TrainingError: when the loss is not finite, or no validation ever gave a score.
    """
    model = problem.model
    device = next(model.parameters()).device
    if device.type == "cuda":
        # Equal seeds, equal weights. The backward of 3D max-pooling has no such kernel: PyTorch warns and goes on.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(settings, trainable)
    steps = len(list(batches(np.arange(settings.samples_per_epoch), settings.batch_size)))
    scheduler = _scheduler(settings, optimizer, steps)
    best_epoch, best_score, best_weights, best_val = 0, math.nan, _snapshot(model), dict[str, float]()
    first = 1
    state = load_checkpoint(checkpoint) if checkpoint else None
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if scheduler:
            scheduler.load_state_dict(state["scheduler"])
        best_epoch, best_score = state["best_epoch"], state["best_score"]
        best_weights, best_val = state["best_weights"], state["best_val"]
        first = state["epoch"] + 1
        log.info("going on after epoch %d of %d", first - 1, settings.epochs)
    for epoch in range(first, settings.epochs + 1):
        started = time.perf_counter()
        if settings.later_rate and epoch >= settings.later_rate[0]:
            for group in optimizer.param_groups:
                group["lr"] = settings.later_rate[1]
        rng = np.random.default_rng([seed, epoch])
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        problem.train_mode()
        losses = []
        order = problem.order(rng, settings.samples_per_epoch, epoch)
        with closing(problem.loaded(batches(order, settings.batch_size))) as loaded:
            for batch in loaded:
                loss = problem.loss(batch, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if scheduler:
                    scheduler.step()
                losses.append(loss.detach())
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            raise TrainingError(f"the loss is {mean_loss} in epoch {epoch}; lower the learning rate")
        trained_s = time.perf_counter() - started
        train = {"loss": mean_loss, **problem.train_metrics()}
        val: dict[str, float] = {}
        if epoch % settings.validate_every == 0 or epoch == settings.epochs:
            model.eval()
            val = problem.evaluate("val")
            if is_better(val[settings.select_by], best_score):
                best_epoch, best_score = epoch, val[settings.select_by]
                best_weights, best_val = _snapshot(model), val
        if checkpoint:
            save_checkpoint(
                checkpoint,
                {
                    "epoch": epoch,
                    "model": _snapshot(model),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict() if scheduler else None,
                    "best_epoch": best_epoch,
                    "best_score": best_score,
                    "best_weights": best_weights,
                    "best_val": best_val,
                },
            )
        if on_epoch:
            on_epoch(
                EpochReport(
                    epoch=epoch,
                    epochs=settings.epochs,
                    train=train,
                    val=val,
                    best_epoch=best_epoch,
                    best_score=best_score,
                    samples_per_s=steps * settings.batch_size / trained_s,
                    seconds_left=(time.perf_counter() - started) * (settings.epochs - epoch),
                )
            )
    if not best_epoch:
        raise TrainingError(
            f"no epoch has a validation {settings.select_by}: the validation split lacks one of the two classes"
        )
    model.load_state_dict(best_weights)
    model.eval()
    return FitResult(best_epoch=best_epoch, best_score=best_score, weights=best_weights, val=best_val)


def _optimizer(settings: FitSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[settings.optimizer](parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _scheduler(
    settings: FitSettings, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR | None:
    if settings.schedule == "constant":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=steps * settings.epochs
    )


def _snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
