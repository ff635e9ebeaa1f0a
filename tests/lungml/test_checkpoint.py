"""States on disk; what a training does with them is in `test_resume.py`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lungml.checkpoint import LAST, CheckpointError, Checkpoints

STATE: dict[str, Any] = {"epoch": 3, "step": 0, "best_epoch": 0, "best_score": math.nan, "model": {"w": torch.ones(2)}}


def checkpoints(folder: Path, **identity: str) -> Checkpoints:
    return Checkpoints(folder=folder, identity={"seed": "1", **identity}, commit="abc")


def test_a_state_comes_back_with_what_it_belongs_to(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path / "stage" / "key")
    assert mine.load() is None
    mine.save(STATE)
    state = mine.load()
    assert state is not None
    assert (state["epoch"], state["identity"], state["commit"]) == (3, {"seed": "1"}, "abc")
    assert state["model"]["w"].tolist() == [1, 1]


def test_only_the_best_weights_that_the_state_names_are_kept(tmp_path: Path) -> None:
    mine = checkpoints(tmp_path)
    for epoch in (1, 2):
        mine.save_best(epoch, {"w": torch.full((1,), float(epoch))})
    assert len(list(tmp_path.glob("best-*.pt"))) == 2  # the state that names the second is not written yet
    mine.save({**STATE, "best_epoch": 2})
    assert [path.name for path in tmp_path.glob("best-*.pt")] == ["best-2.pt"]
    assert mine.load_best(2)["w"].tolist() == [2]
    with pytest.raises(CheckpointError, match=r"best-1.pt: gone or damaged"):
        mine.load_best(1)


@pytest.mark.parametrize(
    ("now", "said"),
    [({"seed": "2"}, "seed 1, not 2"), ({"data": "x"}, "data not set, not x")],
)
def test_the_difference_is_named(tmp_path: Path, now: dict[str, str], said: str) -> None:
    checkpoints(tmp_path).save(STATE)
    with pytest.raises(CheckpointError, match=said):
        Checkpoints(folder=tmp_path, identity={"seed": "1", **now}).load()


def test_a_state_of_another_version_is_not_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints(tmp_path).save({**STATE, "version": 1})
    assert checkpoints(tmp_path).load() is None
    assert "of another version" in caplog.text
    assert (tmp_path / LAST).exists()
