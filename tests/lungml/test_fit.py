from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lungml.checkpoint import Checkpoints
from lungml.devices import resolve_device
from lungml.errors import TrainingError
from lungml.fit import EpochReport, Net, fit
from lungml.fit_settings import FitSettings
from lungml.loading import Batch
from lungml.tally import Tally

SETTINGS = FitSettings(
    epochs=4, samples_per_epoch=12, batch_size=4, optimizer="adam", learning_rate=0.05, select_by="auc"
)


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x


class LineProblem:
    """Learns y = 3 x; validation scores are scripted, one per epoch."""

    def __init__(self, scores: list[float] | None = None, die_in_epoch: int = 0) -> None:
        self.model = Line()
        self.tally = Tally()
        self.scores = scores or [0.1, 0.2, 0.3, 0.4]
        self.die_in_epoch = die_in_epoch
        self.validated: list[float] = []
        self.epochs_started = self.epochs_closed = 0
        self.epochs_seen: list[int] = []

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> np.ndarray:
        self.epochs_started += 1
        self.epochs_seen.append(epoch)
        return rng.permutation(samples)

    def loaded(self, wanted: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        try:
            for rows in wanted:
                yield Batch(rows=rows, arrays=(torch.from_numpy(rows).float(),))
        finally:
            self.epochs_closed += 1

    def train_mode(self) -> None:
        self.model.train()

    def loss(self, net: Net, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if self.die_in_epoch and self.epochs_started == self.die_in_epoch:
            raise KeyboardInterrupt
        x = batch.arrays[0] + torch.rand(len(batch.rows), generator=generator)
        return ((net(x) - 3 * x) ** 2).mean()

    def train_metrics(self, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {}

    def evaluate(self, split: str) -> dict[str, float]:
        self.validated.append(float(self.model.slope.detach()))
        return {"auc": self.scores[len(self.validated) - 1]}


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.4, 0.4, 0.2], 2),  # a tie keeps the earlier epoch
        ([math.nan, 0.4, math.nan, 0.2], 2),  # NaN is never the best
        ([0.1, 0.2, 0.3, 0.4], 4),
    ],
)
def test_the_best_epochs_weights_are_kept(scores: list[float], best: int) -> None:
    problem = LineProblem(scores)
    result = fit(problem, SETTINGS, seed=1)
    assert result.best_epoch == best
    assert result.val == {"auc": scores[best - 1]}
    # What is scored on the test set afterwards is the best epoch, not the last.
    assert float(problem.model.slope.detach()) == problem.validated[best - 1] == float(result.weights["slope"])


def test_no_score_at_all_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no epoch has a validation auc"):
        fit(LineProblem([math.nan] * 4), SETTINGS, seed=1)


def test_the_seed_decides() -> None:
    slopes = []
    for seed in (1, 1, 2):
        problem = LineProblem()
        fit(problem, SETTINGS, seed=seed)
        slopes.append(float(problem.model.slope.detach()))
    assert slopes[0] == slopes[1] != slopes[2]


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, schedule: str) -> None:
    settings = FitSettings(**{**SETTINGS.__dict__, "schedule": schedule})
    whole = LineProblem()
    fit(whole, settings, seed=1)
    killed = LineProblem(die_in_epoch=3)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, settings, seed=1, checkpoints=Checkpoints(folder=tmp_path, identity={}))
    assert killed.epochs_closed == 3  # nothing goes on reading for an epoch that broke off
    resumed = LineProblem([0.3, 0.4])
    result = fit(resumed, settings, seed=1, checkpoints=Checkpoints(folder=tmp_path, identity={}))
    assert resumed.epochs_seen == [3, 4]  # what an epoch draws may depend on its number
    assert torch.equal(resumed.model.slope, whole.model.slope)
    assert result.best_epoch == 4


def test_a_loss_that_is_not_finite_stops() -> None:
    problem = LineProblem()
    problem.model.slope.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="loss is nan in epoch 1"):
        fit(problem, SETTINGS, seed=1)


def test_every_epoch_is_reported() -> None:
    reports: list[EpochReport] = []
    settings = FitSettings(**{**SETTINGS.__dict__, "validate_every": 3})
    fit(LineProblem(), settings, seed=1, on_epoch=reports.append)
    assert [r.epoch for r in reports] == [1, 2, 3, 4]
    assert [bool(r.val) for r in reports] == [False, False, True, True]
    assert reports[-1].train["loss"] < reports[0].train["loss"]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs is 0"):
        FitSettings(**{**SETTINGS.__dict__, "epochs": 0})
    with pytest.raises(TrainingError, match="not one that PyTorch knows"):
        resolve_device("gpu")


def test_a_later_rate_holds_from_its_epoch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def recorded(self: torch.optim.Adam) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    fit(LineProblem(), replace(SETTINGS, later_rate=(3, 0.5)), seed=1)
    assert rates == [0.05] * 6 + [0.5] * 6  # three steps an epoch
    with pytest.raises(ValueError, match="later_rate"):
        replace(SETTINGS, later_rate=(3, 0.5), schedule="one_cycle")
