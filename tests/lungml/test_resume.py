"""A training that is killed and goes on, is given to the wrong folder, or is shared by two processes."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lungml import checkpoint
from lungml.averaging import WeightAverage
from lungml.checkpoint import BAD_BATCH, LAST, CheckpointError, Checkpoints
from lungml.errors import TrainingError
from lungml.fit import EpochReport, fit
from lungml.loading import Batch

SCRIPT = Path(__file__).parent / "fixtures" / "toy_training.py"


def load_toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = load_toy()


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *options],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )


def train(folder: Path | None = None, **options: Any) -> tuple[dict[str, torch.Tensor], list[EpochReport]]:
    """Train in this process; returns the kept weights and what was told of the epochs."""
    problem, told = toy.ToyProblem(), []
    checkpoints = Checkpoints(folder=folder, identity={"toy": "1"}) if folder else None
    fit(problem, toy.SETTINGS, seed=3, checkpoints=checkpoints, checkpoint_steps=5, on_epoch=told.append, **options)
    return problem.model.state_dict(), told


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def told_of(reports: list[EpochReport]) -> list[Any]:
    return [{"train": dict(r.train), "val": dict(r.val), "best_epoch": r.best_epoch} for r in reports]


def test_killed_at_step_17_of_40_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, told = train()
    killed = run(tmp_path, "--die-at", "17")
    assert killed.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "states" / LAST, weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 5)  # the last of the states, which come every five steps
    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert equal(torch.load(tmp_path / "weights.pt", weights_only=True), whole)
    # The epoch in which it was killed has the metrics of all its steps, and the finished one is told again.
    assert json.loads((tmp_path / "epochs.json").read_text()) == told_of(told)
    assert [r.train["seen"] for r in told] == [40] * 4


@pytest.mark.parametrize("dies_after", range(1, 12))
def test_wherever_a_write_breaks_off_it_goes_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    whole, told = train()
    writes, write = 0, checkpoint._write

    def dying(path: Path, state: Any) -> None:
        nonlocal writes
        writes += 1
        if writes > dies_after:
            raise KeyboardInterrupt
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    weights, again = train(tmp_path)
    assert equal(weights, whole)
    assert told_of(again) == told_of(told)


def test_a_finished_training_told_again_trains_nothing(tmp_path: Path) -> None:
    whole, told = train(tmp_path)
    problem = toy.ToyProblem(die_at=0)
    again: list[EpochReport] = []
    checkpoints = Checkpoints(folder=tmp_path, identity={"toy": "1"})
    fit(problem, toy.SETTINGS, seed=3, checkpoints=checkpoints, on_epoch=again.append)
    assert equal(problem.model.state_dict(), whole)
    assert told_of(again) == told_of(told)
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []


def test_another_trainings_state_is_refused_with_the_difference(tmp_path: Path) -> None:
    identity = {"fit.learning_rate": "0.001", "data": "abc", "seed": "1"}
    mine = Checkpoints(folder=tmp_path, identity=identity)
    fit(toy.ToyProblem(), replace(toy.SETTINGS, epochs=1), seed=1, checkpoints=mine)
    other = Checkpoints(folder=tmp_path, identity={**identity, "fit.learning_rate": "0.002", "data": "xyz"})
    with pytest.raises(CheckpointError, match=r"fit.learning_rate 0.001, not 0.002; data abc, not xyz;") as caught:
        fit(toy.ToyProblem(), toy.SETTINGS, seed=1, checkpoints=other)
    assert "\n" not in str(caught.value)
    assert (tmp_path / LAST).exists()


@pytest.mark.parametrize("damage", ["garbled", "cut", "empty", "best gone"])
def test_a_damaged_state_is_said_and_training_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    whole, _ = train(tmp_path)
    last = tmp_path / LAST
    if damage == "garbled":
        last.write_bytes(b"\x80\x02garbage" * 100)
    elif damage == "cut":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "empty":
        last.write_bytes(b"")
    else:
        for file in tmp_path.glob("best-*.pt"):
            file.unlink()
    weights, told = train(tmp_path)
    assert equal(weights, whole)
    assert len(told) == 4
    assert "training begins anew" in caplog.text


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = train()
    save, saved = torch.save, 0

    def full(state: Any, buffer: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            train(tmp_path)
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-1.pt", "best-2.pt", LAST]
    assert equal(train(tmp_path)[0], whole)


def test_two_processes_share_a_batch_and_learn_the_same(tmp_path: Path) -> None:
    """Batch norm held, without dropout and noise, which two processes draw apart; sums in another order: 1e-5."""
    for name, devices in (("one", "1"), ("two", "2")):
        done = run(tmp_path / name, "--devices", devices, "--held")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / name / "epochs.json").read_text()) for name in ("one", "two"))
    assert [e["train"]["seen"] for e in two] == [e["train"]["seen"] for e in one] == [40] * 4  # nothing twice
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["train"]["loss"] == pytest.approx(mine["train"]["loss"], rel=1e-5)
        assert theirs["train"]["accuracy"] == mine["train"]["accuracy"]
        assert theirs["val"]["score"] == pytest.approx(mine["val"]["score"], rel=1e-5)
    assert one[0]["train"]["loss"] > one[-1]["train"]["loss"]
    weights = [torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("one", "two")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-5)


def test_a_batch_that_two_cannot_share_is_refused() -> None:
    class Two:
        world_size = 2

    with pytest.raises(TrainingError, match="a batch of 3 cannot be shared by 2 devices"):
        fit(toy.ToyProblem(), replace(toy.SETTINGS, batch_size=3), seed=1, fabric=Two())


class Bad(toy.ToyProblem):  # type: ignore[misc]
    """One of its samples is not a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._x[7] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(tmp_path: Path, value: float) -> None:
    checkpoints = Checkpoints(folder=tmp_path, identity={})
    with pytest.raises(
        TrainingError, match=r"the loss is nan in epoch \d, step \d+; its batch is kept in .*bad-batch.pt"
    ):
        fit(Bad(value), toy.SETTINGS, seed=3, checkpoints=checkpoints, checkpoint_steps=2)
    kept = torch.load(tmp_path / BAD_BATCH, weights_only=True)
    assert 7 in kept["rows"].tolist()
    assert len(kept["arrays"][0]) == 4
    assert math.isnan(kept["loss"])
    if (tmp_path / LAST).exists():  # the last good one: before the batch
        state = torch.load(tmp_path / LAST, weights_only=True)
        assert state["step"] <= kept["step"]
        assert all(torch.isfinite(v).all() for v in state["model"].values())


class Exploding(toy.ToyProblem):  # type: ignore[misc]
    """Its loss is finite, its gradient is not."""

    def loss(self, net: Any, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        loss = super().loss(net, batch, generator)
        return loss + (net(batch.arrays[0]).sum() * 0.0).sqrt()


def test_weights_that_are_no_numbers_are_never_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder=tmp_path, identity={})
    settings = replace(toy.SETTINGS, samples_per_epoch=4)  # one step an epoch: no later loss tells of it
    with pytest.raises(TrainingError, match="the weights are not finite in epoch 1; lower the learning rate"):
        fit(Exploding(), settings, seed=3, checkpoints=checkpoints)
    assert not (tmp_path / LAST).exists()


class Large(toy.ToyProblem):  # type: ignore[misc]
    """A device on which no more than `fits` samples have a place."""

    def __init__(self, fits: int) -> None:
        super().__init__(held=True)  # batch norm cannot learn from one sample
        self.fits = fits

    def loss(self, net: Any, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if len(batch.rows) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(net, batch, generator)


@pytest.mark.parametrize(
    ("fits", "said"),
    [
        (1, "out of memory at a batch of 16; 1 fits"),
        (5, "16; 4 fits: give it as fit.batch_size"),
        (0, "any smaller one"),
    ],
)
def test_too_large_a_batch_names_the_one_that_fits(fits: int, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        fit(Large(fits), replace(toy.SETTINGS, batch_size=16), seed=3)


def test_the_average_of_weights_by_hand() -> None:
    line = torch.nn.Linear(1, 1, bias=False)
    line.weight.data.fill_(0.0)
    average = WeightAverage(line, 0.5)
    kept = []
    for value in (11.0, 22.0):
        line.weight.data.fill_(value)
        average.update()
        with average.in_place():
            kept.append(float(line.weight.detach()))
        assert float(line.weight.detach()) == value  # its own again
    # Step 1 keeps 2/11 of the old, step 2 3/12: 9/11 * 11 = 9, then 0.25 * 9 + 0.75 * 22.
    assert kept == pytest.approx([9.0, 18.75])
