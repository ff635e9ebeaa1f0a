"""What a training's events look like on its progress bar."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import fitting
from tasks.fitting import _Events

EPOCH = {
    "event": "epoch",
    "epoch": 2,
    "epochs": 2,
    "train": {"loss": 0.5},
    "val": {"auc": 0.9},
    "samples_per_s": 10.0,
    "best_epoch": 1,
    "best_score": 0.95,
    "seconds_left": 0.0,
}
STEP = {
    "event": "step",
    "epoch": 2,
    "epochs": 2,
    "step": 5,
    "steps": 10,
    "loss": 0.6,
    "samples_per_s": 10.0,
    "seconds_left": 7200.0,
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    shown: list[tuple[float, str]] = []

    def create(percent: float, description: str) -> str:
        shown.append((percent, description))
        return "the bar"

    def update(artifact: str, progress: float, description: str) -> None:
        assert artifact == "the bar"
        shown.append((progress, description))

    monkeypatch.setattr(fitting, "create_progress_artifact", create)
    monkeypatch.setattr(fitting, "update_progress_artifact", update)
    return shown


def events(logged: set[int]) -> _Events:
    run: Any = SimpleNamespace(logged_epochs=lambda: logged, log_epoch=lambda metrics, epoch: logged.add(epoch))
    return _Events("best-nodule", "auc", run, logging.getLogger("tests.fitting"))


def test_the_bar_shows_the_epoch_and_the_time_left_and_ends_full(drawn: list[tuple[float, str]]) -> None:
    told = events({1})
    told(STEP)
    told(EPOCH)
    assert drawn == [
        (0.0, "best-nodule: starting"),
        (75.0, "best-nodule: epoch 2 of 2, step 5 of 10, loss 0.6000, 10 samples/s, 2.0 h left"),
        (
            100.0,
            "best-nodule: epoch 2 of 2, loss 0.5000, val auc 0.900, best auc 0.950 (epoch 1), 10 samples/s",
        ),
    ]


def test_an_epoch_that_was_logged_before_still_moves_the_bar(drawn: list[tuple[float, str]]) -> None:
    events({1, 2})(EPOCH)
    assert drawn[-1] == (100.0, "best-nodule: epoch 2 of 2")


def test_a_bar_that_cannot_be_made_costs_one_line(
    drawn: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(fitting, "create_progress_artifact", refuse)
    logged: set[int] = set()
    told = events(logged)
    told(STEP)
    told(EPOCH)
    assert logged == {2}
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "best-nodule: no progress is shown: nobody there"
    ]
