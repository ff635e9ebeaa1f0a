"""One training in a process of its own: `python -m lungml.job FOLDER`.

Fabric starts the processes of several devices by running the same command again, which must not be a whole pipeline;
and a training that hangs or dies must not take one with it. So whoever wants a model writes the job into a folder, runs
this module on it, and reads JSON lines from its output: one per event, anything else being some library's talk. The
process ends when its standard input does, so that it never outlives who started it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lungml.checkpoint import Checkpoints
from lungml.devices import Hardware
from lungml.errors import LunaError, TrainingError, one_line
from lungml.figures import THRESHOLD, crop_figures, judged, slice_figures
from lungml.files import whole_file, write_text_atomic
from lungml.fit import CHECKPOINT_STEPS, Problem, fit
from lungml.plots import write_figures
from lungml.pulse import pulse
from lungml.recipes.classification import (
    ClassificationRecipe,
    CropProblem,
    classification_problem,
    judged_metrics,
)
from lungml.recipes.data import PreparedScan, Stage
from lungml.recipes.malignancy import MalignancyRecipe, malignancy_problem
from lungml.recipes.segmentation import SegmentationProblem, SegmentationRecipe
from lungml.records import RecordError, record_from_text, record_to_text
from lungml.thresholds import threshold_at_sensitivity

JOB, WEIGHTS, RESULT, PARENT = "job.json", "best.safetensors", "result.json", "parent.safetensors"
FIGURES = "figures"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """All that a training is made from.

    Attributes:
        stage: which of the three models.
        settings: that stage's recipe.
        scans: of all splits.
        seed: of everything random.
        hardware: what to train on.
        identity: what a checkpoint must agree with, see `Checkpoints`.
        commit: of the code.
        origin: "phantom" where the scans are synthetic: figures say so.
        from_parent: whether it starts from the weights in `parent.safetensors`.
        sensitivity: that a classifier's threshold shall reach on the validation crops; None leaves it at 0.5.
        checkpoint_steps: steps between two checkpoints.
    """

    stage: Stage
    settings: SegmentationRecipe | ClassificationRecipe | MalignancyRecipe
    scans: tuple[PreparedScan, ...]
    seed: int
    hardware: Hardware
    identity: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    origin: Literal["real", "phantom"] = "real"
    from_parent: bool = False
    sensitivity: float | None = None
    checkpoint_steps: int = CHECKPOINT_STEPS


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a finished training left beside `best.safetensors` and its figures; metric names are bare.

    Attributes:
        best_epoch: whose weights were kept.
        val: its validation metrics.
        test: its test metrics.
        config: what rebuilds the network.
        quality: split -> what else its probabilities are worth, see `figures.Quality`; empty for the U-Net.
        threshold: from which probability on it says yes.
    """

    best_epoch: int
    val: Mapping[str, float]
    test: Mapping[str, float]
    config: Mapping[str, Any]
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    threshold: float = THRESHOLD


Tell = Callable[..., None]


def write_job(folder: Path, job: TrainingJob, parent: Mapping[str, torch.Tensor] | None = None) -> None:
    """Put a job, and the weights it starts from, where `run_job` looks for them."""
    if parent is not None:
        _write_weights(folder / PARENT, parent)
    write_text_atomic(folder / JOB, record_to_text(job))


def run_job(folder: Path, tell: Tell) -> None:
    """Train, keep the best epoch's weights, score them on the test split, and write `result.json` last.

    Args:
        folder: holds the job, and the states of a training that goes on.
        tell: called with an event's name and its fields: `step` and `epoch`, those of `StepReport` and `EpochReport`.

    Raises:
        LunaError: what a person can mend.
        OSError: when something cannot be written.
    """
    job = _read_job(folder / JOB)
    fabric = job.hardware.launch()
    torch.manual_seed(job.seed)  # of dropout; the process is ours alone
    problem = make_problem(job, folder, fabric.device)
    checkpoints = Checkpoints(folder=folder, identity=job.identity, commit=job.commit)
    result = fit(
        problem,
        job.settings.fit,
        seed=job.seed,
        fabric=fabric,
        checkpoints=checkpoints,
        checkpoint_steps=job.checkpoint_steps,
        on_epoch=lambda report: tell("epoch", **asdict(report)),
        on_step=lambda report: tell("step", **asdict(report)),
    )
    if fabric.global_rank:
        return
    _write_weights(folder / WEIGHTS, result.weights)
    about = JobResult(
        best_epoch=result.best_epoch,
        val=result.val,
        config=asdict(problem.model.config),  # type: ignore[call-overload]
        **_judge(job, problem, folder / FIGURES),
    )
    write_text_atomic(folder / RESULT, json.dumps(asdict(about), indent=1))


def make_problem(job: TrainingJob, folder: Path, device: torch.device) -> Problem:
    """Model, data and loss of a job, on a device."""
    generator, settings = torch.Generator().manual_seed(job.seed), job.settings
    if isinstance(settings, SegmentationRecipe):
        return SegmentationProblem(settings, job.scans, device=device, generator=generator)
    if isinstance(settings, ClassificationRecipe):
        return classification_problem(settings, job.scans, device=device, generator=generator)
    weights = load_file(folder / PARENT) if job.from_parent else {}
    return malignancy_problem(settings, job.scans, nodule_weights=weights, device=device, generator=generator)


def _judge(job: TrainingJob, problem: Problem, figures: Path) -> dict[str, Any]:
    """What the kept weights reach on the test split and what else a `JobResult` tells of them; draws the figures."""
    about: Any = {
        "title": job.stage,
        "origin": job.origin,
        "rng": np.random.default_rng([job.seed, 0]),  # epochs are counted from 1: no epoch draws the same
    }
    augmentation = job.settings.augmentation
    if isinstance(problem, SegmentationProblem):
        write_figures(figures, slice_figures(problem, job.scans, augmentation, **about))
        return {"test": problem.evaluate("test")}
    assert isinstance(problem, CropProblem)
    scored, threshold = judged(problem), THRESHOLD
    if job.sensitivity is not None:
        found = threshold_at_sensitivity(scored["val"].targets, scored["val"].probs, job.sensitivity)
        threshold = THRESHOLD if math.isnan(found) else found
    drawn, quality = crop_figures(problem, job.scans, augmentation, scored=scored, threshold=threshold, **about)
    write_figures(figures, drawn)
    return {
        "test": judged_metrics(scored["test"].targets, scored["test"].probs),
        "quality": {split: asdict(one) for split, one in quality.items()},
        "threshold": threshold,
    }


def read_result(folder: Path) -> tuple[JobResult, dict[str, torch.Tensor]] | None:
    """A finished training's result and its weights; None when there is none, or not all of it."""
    try:
        return JobResult(**json.loads((folder / RESULT).read_text())), load_file(folder / WEIGHTS)
    except (FileNotFoundError, ValueError, TypeError, SafetensorError):
        return None


def _read_job(path: Path) -> TrainingJob:
    try:
        return record_from_text(TrainingJob, path.read_text(encoding="utf-8"))
    except (RecordError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: {one_line(str(error))}; run the training again, which writes it anew") from error


def _write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    with whole_file(path) as handle:
        handle.write(save({name: value.contiguous() for name, value in weights.items()}))


def main(folder: Path) -> int:
    """Run the job in a folder; events go to standard output."""
    _end_with_standard_input()
    talk = _Talk()
    logging.basicConfig(level=logging.INFO, handlers=[talk], force=True)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    try:
        with pulse(partial(talk.tell, "alive")):
            run_job(folder, talk.tell)
    except LunaError as error:
        talk.tell("error", kind=type(error).__name__, text=str(error))
        return 1
    except OSError as error:
        talk.tell("error", kind="OSError", errno=error.errno, text=error.strerror or str(error), file=error.filename)
        return 1
    return 0


class _Talk(logging.Handler):
    """Events and log records as JSON lines; only the first process speaks."""

    def __init__(self) -> None:
        super().__init__()
        self._lines, self._guard = os.fdopen(os.dup(1), "w", buffering=1), threading.Lock()
        self._speaks = os.environ.get("LOCAL_RANK", "0") == "0"

    def tell(self, event: str, **fields: Any) -> None:
        if self._speaks or event == "error":
            line = json.dumps({"event": event, **fields}, default=str) + "\n"
            with self._guard:  # several threads speak
                self._lines.write(line)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("lungml") or record.levelno >= logging.WARNING:
            self.tell("log", level=record.levelno, text=record.getMessage())


def _end_with_standard_input() -> None:
    """Kill this process and those it started when whoever holds the other end of standard input is gone."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-stdin").start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
