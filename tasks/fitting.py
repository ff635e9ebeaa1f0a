"""One training: found finished, gone on with, or begun; its epochs and its model in MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.states import State

from lungml.checkpoint import Checkpoints
from lungml.crops import CROP_SHAPE
from lungml.errors import one_line
from lungml.files import write_text_atomic
from lungml.fit import identity_of
from lungml.frozen_split import SPLITS
from lungml.job import FIGURES, JOB, PARENT, RESULT, WEIGHTS, JobResult, TrainingJob, read_result, write_job
from lungml.leaks import too_good
from lungml.model_card import ModelCard, write_card
from lungml.readiness import check_ready
from lungml.recipes.data import PreparedScan, Stage, data_read, of_split
from lungml.recipes.malignancy import MalignancyRecipe
from lungml.wording import duration
from tasks import tracking
from tasks.bundles import stage_example
from tasks.caching import TRAINING_MODULES, code_digest, digest, kept
from tasks.child import one_at_a_time, run_child
from tasks.corrections import metrics_of
from tasks.gpu_locks import Gpu, child_environment
from tasks.gpus import gpu_slots
from tasks.members import build_model
from tasks.pipeline import LOGGED, Pipeline, TrainedModel
from tasks.recorded import READ, digests_of, sizes_of

FINISHED, RUN = "finished.json", "mlflow-run.json"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model to be trained.

    Attributes:
        stage: which of the three.
        name: of the run.
        settings: the stage's recipe; its `fit` drives the loop.
        scans: of all splits.
        pipeline: what the stages share.
        recipe_name: of the whole recipe.
        sensitivity: that its threshold shall reach on the validation crops; 0.5 is the threshold when None.
        parents: URIs of the models it starts from.
        parent_weights: reads the weights it begins with.
        extra: further metrics to log per split, baselines for example.
    """

    stage: Stage
    name: str
    settings: Any
    scans: Sequence[PreparedScan]
    pipeline: Pipeline
    recipe_name: str
    sensitivity: float | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    parent_weights: Callable[[], Mapping[str, torch.Tensor]] | None = None
    extra: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def hardware(self) -> dict[str, Any]:
        """What of the hardware decides the model."""
        hardware = self.pipeline.hardware
        return {"device": hardware.check().type, "devices": hardware.count, "precision": hardware.precision}

    @cached_property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Scans, nodules and malignant nodules of each split."""
        return sizes_of(self.scans)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the data of each split."""
        return digests_of(self.scans)

    @cached_property
    def read(self) -> dict[str, str]:
        """Split -> a digest of what this stage reads of its data: equal ones teach, and judge, alike."""
        settings = self.settings
        return {
            split: digest(
                [
                    data_read(
                        scan,
                        self.stage,
                        mined=getattr(settings, "mined", False),
                        non_nodules=not isinstance(settings, MalignancyRecipe) or settings.shares[2] > 0,
                    )
                    for scan in of_split(self.scans, split)
                ]
            )
            for split in SPLITS
        }

    @cached_property
    def identity(self) -> dict[str, str]:
        """What makes it the training it is, but for the code."""
        return identity_of(
            self.settings,
            data=digest(self.read),
            parents=json.dumps(dict(self.parents), sort_keys=True),
            seed=self.pipeline.seed,
            sensitivity=self.sensitivity,
            **self.hardware,
        )


def train_model(training: Training) -> State | TrainedModel:
    """Train one model in a process of its own, or return the finished one of an equal key.

    An unfinished training of an equal key goes on from its last checkpoint, in the MLflow run that it began.
    """
    log, pipeline, identity = get_run_logger(), training.pipeline, training.identity
    home = pipeline.home
    key = digest([identity, code_digest(TRAINING_MODULES), pipeline.round_of(training.stage)])
    folder = home.checkpoints / training.stage / key
    with one_at_a_time(folder):  # a second run at once waits, and finds it finished
        finished = _read_finished(folder)
        if finished and tracking.model_exists(home, finished.uri):
            log.info("%s: kept %s, trained before from the same data, settings and code", training.name, finished.uri)
            return kept(finished)
        params = {
            **identity_of(training.settings),
            "recipe": training.recipe_name,
            "seed": pipeline.seed,
            "origin": pipeline.origin,
            **training.hardware,
            "device": str(pipeline.hardware.check()),
        }
        with tracking.open_run(
            home,
            training.stage,
            name=f"{training.name} seed {pipeline.seed}",  # runs of one name look alike in a chart's legend
            pipeline_id=pipeline.pipeline_id,
            params=params,
            tags={"luna.origin": pipeline.origin, **{f"{READ}{split}": of for split, of in training.read.items()}},
            run_id=_read_run(folder),
        ) as run:
            write_text_atomic(folder / RUN, json.dumps({"run_id": run.run_id}))
            _log_data(run, training)
            result, weights = read_result(folder) or _learn(training, folder, run)
            if (folder / FIGURES).exists():
                run.log_figures(folder / FIGURES)
            trained = _log_model(run, training, result, weights)
        write_text_atomic(folder / FINISHED, json.dumps(asdict(trained), indent=1))
        # A finished training is closed: nothing of it is ever gone on with.
        Checkpoints(folder=folder, identity=identity).close()
        for file in (JOB, PARENT, WEIGHTS, RESULT, RUN):
            (folder / file).unlink(missing_ok=True)
        return trained


def _log_data(run: tracking.Run, training: Training) -> None:
    """Log what is learned from and judged on, and refuse what there is too little of."""
    scans = training.scans
    run.log_datasets("scans", training.digests, sizes=training.sizes, parents=training.parents)
    run.log_text(json.dumps({scan.series_uid: scan.split for scan in scans}, indent=1), tracking.SCANS)
    run.log_metrics(metrics_of(training.pipeline.corrections))
    notes = check_ready(
        training.stage,
        scans,
        batch_size=training.settings.fit.batch_size,
        crop_shape=None if training.stage == "segmentation" else CROP_SHAPE,
        mined=getattr(training.settings, "mined", False),
    )
    for note in notes:
        get_run_logger().warning(note)


def _learn(training: Training, folder: Path, run: tracking.Run) -> tuple[JobResult, dict[str, torch.Tensor]]:
    """Run the training, or what is left of it, in its own process; its epochs go to the run."""
    pipeline = training.pipeline
    with gpu_slots(pipeline.device, pipeline.devices) as gpus:
        _run(training, folder, run, gpus)
    done = read_result(folder)
    if done is None:
        raise FileNotFoundError(f"{folder / RESULT}: the training left no result; run again")
    return done


def _run(training: Training, folder: Path, run: tracking.Run, gpus: Sequence[Gpu]) -> None:
    pipeline = training.pipeline
    job = TrainingJob(
        stage=training.stage,
        settings=training.settings,
        scans=tuple(training.scans),
        seed=pipeline.seed,
        # It sees those GPUs alone, and counts them from 0.
        hardware=replace(pipeline.hardware, device="cuda") if gpus else pipeline.hardware,
        identity=training.identity,
        commit=tracking.git_commit(),
        origin=pipeline.origin,
        from_parent=training.parent_weights is not None,
        sensitivity=training.sensitivity,
        checkpoint_steps=pipeline.checkpoint_steps,
    )
    write_job(folder, job, training.parent_weights() if training.parent_weights else None)
    events = _Events(training.name, training.settings.fit.select_by, run, get_run_logger())
    limit = pipeline.time_limit_h
    run_child(folder, events, time_limit_s=limit and 3600 * limit, environment=child_environment(gpus))


def _log_model(
    run: tracking.Run, training: Training, result: JobResult, weights: Mapping[str, torch.Tensor]
) -> TrainedModel:
    """Log the kept epoch's metrics and its model, with its card."""
    stage = training.stage
    val = {**result.val, **training.extra.get("val", {})}
    if result.quality:
        val["threshold"] = result.threshold
    test = {**result.test, **training.extra.get("test", {})}
    logged = {
        LOGGED["val"]: {**val, **result.quality.get("val", {})},
        LOGGED["test"]: {**test, **result.quality.get("test", {})},
    }
    metrics = {f"{split}{name}": value for split, one in logged.items() for name, value in one.items()}
    run.log_metrics({**metrics, "best_epoch": result.best_epoch})
    _warn_of_perfection(run, stage, result, training.sizes["val"]["nodules"])
    model = build_model(stage, result.config, weights)
    card = ModelCard(
        name=training.name,
        stage=stage,
        origin=training.pipeline.origin,
        digests=training.digests,
        sizes=training.sizes,
        recipe=training.recipe_name,
        settings=identity_of(training.settings),
        best_epoch=result.best_epoch,
        selected_by=training.settings.fit.select_by,
        metrics={"val": result.val, "test": result.test},
        baselines=training.extra,
        threshold=result.threshold,
        calibration={split: (one["ece"], one["brier"]) for split, one in result.quality.items()},
        parameters=sum(weight.numel() for weight in model.parameters()),
        parents=training.parents,
        commit=tracking.git_commit(),
    )
    uri = tracking.log_model(
        run,
        model,
        arch={"stage": stage, "config": dict(result.config)},
        example=stage_example(model),
        name=training.name,
        card=write_card(card),
    )
    return TrainedModel(stage=stage, name=training.name, uri=uri, best_epoch=result.best_epoch, val=val, test=test)


def _warn_of_perfection(run: tracking.Run, stage: Stage, result: JobResult, nodules: int) -> None:
    judged = result.quality.get("val", {"positives": nodules, "negatives": nodules})  # pixels are not counted
    sentence = too_good(stage, result.val, int(judged["positives"]), int(judged["negatives"]))
    if sentence:
        get_run_logger().warning(sentence)
        run.log_tag("luna.warning", sentence)


def _read_finished(folder: Path) -> TrainedModel | None:
    try:
        return TrainedModel(**json.loads((folder / FINISHED).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none, or a damaged one: train
        return None


def _read_run(folder: Path) -> str | None:
    """The MLflow run that an unfinished training began."""
    try:
        return str(json.loads((folder / RUN).read_text())["run_id"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


class _Events:
    """What the training process tells, in the log, in MLflow and on a Prefect progress artifact."""

    def __init__(self, name: str, select_by: str, run: tracking.Run, log: Any) -> None:
        self._name, self._select_by, self._run, self._log = name, select_by, run, log
        self._logged, self._said = run.logged_epochs(), False
        self._artifact: Any = None
        self._drawn = False
        self._show(0.0, "starting")

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "epoch":
            self._epoch(event)
        elif kind == "step":
            self._step(event)
        elif kind == "log":
            self._log.log(event["level"], "%s: %s", self._name, event["text"])

    def _epoch(self, report: Mapping[str, Any]) -> None:
        epoch, epochs = report["epoch"], report["epochs"]
        if epoch in self._logged:  # before this process began, by the one that was killed
            self._show(100.0 * epoch / epochs, f"epoch {epoch} of {epochs}")
            return
        self._logged.add(epoch)
        metrics = {
            **{f"train/{metric}": value for metric, value in report["train"].items()},
            **{f"val/{metric}": value for metric, value in report["val"].items()},
            "samples_per_s": report["samples_per_s"],
        }
        self._run.log_epoch(metrics, epoch)
        shown = [f"loss {report['train']['loss']:.4f}"]
        val = report["val"]
        shown += [f"val {m} {val[m]:.3f}" for m in SHOWN if m in val and not math.isnan(val[m])]
        if self._select_by in val and self._select_by not in SHOWN:
            shown.append(f"val {self._select_by} {val[self._select_by]:.3f}")
        if report["best_epoch"]:
            shown.append(f"best {self._select_by} {report['best_score']:.3f} (epoch {report['best_epoch']})")
        shown.append(f"{report['samples_per_s']:.0f} samples/s")
        if report["seconds_left"] >= 1:
            shown.append(f"{duration(report['seconds_left'])} left")
        self._log.info("%s %d/%d: %s", self._name, epoch, epochs, ", ".join(shown))
        self._show(100.0 * epoch / epochs, ", ".join([f"epoch {epoch} of {epochs}", *shown]))

    def _step(self, report: Mapping[str, Any]) -> None:
        done = report["epoch"] - 1 + report["step"] / report["steps"]
        self._show(
            100.0 * done / report["epochs"],
            f"epoch {report['epoch']} of {report['epochs']}, step {report['step']} of {report['steps']}, "
            f"loss {report['loss']:.4f}, {report['samples_per_s']:.0f} samples/s, "
            f"{duration(report['seconds_left'])} left",
        )

    def _show(self, percent: float, text: str) -> None:
        said = f"{self._name}: {text}"
        try:
            if self._drawn:
                update_progress_artifact(self._artifact, progress=percent, description=said)
            else:
                self._artifact = create_progress_artifact(percent, description=said)
                self._drawn = True
        except Exception as error:  # a bar that stands still costs no training
            if not self._said:
                self._log.warning("%s: no progress is shown: %s", self._name, one_line(str(error)))
            self._said = True


SHOWN = ("precision", "recall", "f1", "auc")
