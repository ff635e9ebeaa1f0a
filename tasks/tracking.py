"""What do runs and models leave in MLflow? Bundles are those of `tasks.registry`.

Runs are opened by experiment id through a client, never through MLflow's process-global current run or experiment, so
that two stages at once never write into each other's. Models travel as `models:/...` URIs; they are kept as an exported
program (pt2) beside safetensors weights and a JSON architecture, and are rebuilt from the latter two: no pickle.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lungml.errors import LunaError
from lungml.files import locked
from lungml.home import Home

# Telemetry starts while MLflow is imported, so this cannot wait; a worker or a notebook does not come through the
# `luna` command and must get the same answers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for every file of a model

import mlflow
import mlflow.pytorch
from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import (
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NOTE

from tasks import machine

log = logging.getLogger(__name__)

EXPERIMENTS = ("segmentation", "classification", "malignancy", "end-to-end")
SCANS = "scans.json"  # of a training's run: series_uid -> split
RUN_NOTE = MLFLOW_RUN_NOTE  # Markdown that a run's page shows as its description
MAX_PARAM_CHARACTERS = 6000  # MLflow cuts longer ones
MAX_TAG_CHARACTERS = 8000  # MLflow refuses longer ones
DIGEST_CHARACTERS = 12  # of a data set's digest, as MLflow's pages show it; all of it is kept as the source
CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}  # MLflow's words for what data are for


class TrackingError(LunaError):
    """A model or bundle is not there or not what it was asked for as; the message is one line."""


@dataclass(frozen=True)
class Run:
    """An open MLflow run."""

    client: MlflowClient
    home: Home
    stage: str
    experiment_id: str
    run_id: str

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Log one epoch's metrics in one request; what is not a number is left out, as MLflow cannot chart it."""
        now = int(time.time() * 1000)
        logged = [Metric(name, float(v), now, epoch) for name, v in metrics.items() if not math.isnan(v)]
        self.client.log_batch(self.run_id, metrics=logged)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log the run's final metrics."""
        self.log_epoch(metrics, 0)

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as a file of the run."""
        self.client.log_text(self.run_id, text, name)

    def log_files(self, folder: Path, under: str = "") -> None:
        """Keep all files of a folder as files of the run, below `under`."""
        self.client.log_artifacts(self.run_id, str(folder), under or None)

    def log_figures(self, folder: Path) -> None:
        """Keep a folder of figures, where the run's page shows them as pictures."""
        self.log_files(folder, "figures")

    def log_tag(self, name: str, value: str) -> None:
        """Set a tag; unlike a parameter it may be set again."""
        self.client.set_tag(self.run_id, name, value[:MAX_TAG_CHARACTERS])

    def logged_epochs(self, metric: str = "train/loss") -> set[int]:
        """The epochs that a metric was logged for, by whichever process: a resumed training logs each only once."""
        return {point.step for point in self.client.get_metric_history(self.run_id, metric)}

    def log_datasets(
        self,
        name: str,
        digests: Mapping[str, str],
        *,
        sizes: Mapping[str, Mapping[str, int]] | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        """Record what the run learned from and was judged on, and the models it started from.

        Args:
            name: of the data; each split is a data set `<name>-<split>` of its own.
            digests: split (train, val, test) -> digest of its data.
            sizes: split -> what is counted (scans, nodules) -> how many.
            parents: stage -> `models:/m-...` URI.
        """
        data = [
            _dataset(f"{name}-{split}", digest, CONTEXTS[split], (sizes or {}).get(split, {}))
            for split, digest in digests.items()
        ]
        models = [LoggedModelInput(uri.removeprefix("models:/")) for uri in (parents or {}).values()]
        self.client.log_inputs(self.run_id, data, models=models)
        for stage, uri in (parents or {}).items():
            self.log_tag(f"luna.parent.{stage}", uri)


def tracking_uri(home: Home) -> str:
    """Where runs go: MLFLOW_TRACKING_URI when set, else SQLite under the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow_db}"


def experiment_page(home: Home, stage: str) -> str:
    """Where MLflow's UI shows a stage's runs as charts, behind the UI's own address."""
    return f"#/experiments/{experiment_id_of(home, stage)}/runs?compareRunsMode=CHART&workflowType=machine_learning"


@contextmanager
def open_run(
    home: Home,
    stage: str,
    *,
    name: str,
    pipeline_id: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    sample_every_s: float | None = 10.0,
) -> Iterator[Run]:
    """Open a flat run in a stage's experiment; it ends FINISHED, FAILED on an error, KILLED when stopped from outside.

    What it runs on is kept as tags `env.*` and as `environment/requirements.txt`; how busy the machine is, as metrics
    `system/*` under the names that MLflow's own page of system metrics knows.

    Args:
        home: where MLflow's database lies.
        stage: one of `EXPERIMENTS`.
        name: shown in the UI.
        pipeline_id: the flow run that ties the runs of one pipeline together.
        params: settings; any value, kept as text.
        tags: further tags.
        run_id: of the run that a killed training left; it goes on in that one. When it was deleted or belongs to
            another stage, a new run is opened, and said.
        sample_every_s: seconds between samples of the machine; None takes none.
    """
    client = client_of(home)
    experiment_id = experiment_id_of(home, stage)
    all_tags = {"luna.pipeline": pipeline_id, "luna.stage": stage, **(tags or {})}
    commit = git_commit()
    if commit:
        all_tags["luna.commit"] = commit
        all_tags[MLFLOW_GIT_COMMIT] = commit.removesuffix("-dirty")  # the column Version
    all_tags |= {f"env.{key}": value for key, value in machine.environment().items()}
    all_params = {key: str(value)[:MAX_PARAM_CHARACTERS] for key, value in (params or {}).items()}
    reopened = run_id is not None and _reopen(client, run_id, experiment_id)
    if run_id is None or not reopened:
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
    run = Run(client, home, stage, experiment_id, run_id)
    try:
        _log_settings(run, all_params, all_tags, again=reopened)
        run.log_text(machine.requirements(), "environment/requirements.txt")
        with _sampled(run, sample_every_s):
            yield run
    except BaseException as error:
        killed = not isinstance(error, Exception)  # Ctrl-C, exit, or Prefect's cancelling signal
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
        raise
    client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))


def _reopen(client: MlflowClient, run_id: str, experiment_id: str) -> bool:
    """Set a run that ended or was killed back to RUNNING; False, and said, when it cannot go on."""
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        log.warning("the MLflow run %s is gone: training goes on in a new one", run_id)
        return False
    if info.lifecycle_stage != LifecycleStage.ACTIVE:
        log.warning("the MLflow run %s was deleted: training goes on in a new one", run_id)
        return False
    if info.experiment_id != experiment_id:
        log.warning("the MLflow run %s belongs to another stage: training goes on in a new one", run_id)
        return False
    client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    return True


def _log_settings(run: Run, params: Mapping[str, str], tags: Mapping[str, str], *, again: bool) -> None:
    """Log parameters and tags in one request; of a run that goes on, only what it does not hold yet."""
    new_params, new_tags = dict(params), dict(tags)
    if again:
        held = run.client.get_run(run.run_id).data
        # A parameter is set once and for all; what it is now is told beside it.
        changed = {key: value for key, value in params.items() if held.params.get(key, value) != value}
        new_params = {key: value for key, value in params.items() if key not in held.params}
        new_tags |= {f"luna.changed.{key}": value for key, value in changed.items()}
        new_tags["luna.resumed"] = str(int(held.tags.get("luna.resumed", "0")) + 1)
        new_tags = {key: value for key, value in new_tags.items() if held.tags.get(key) != value}
        if changed:
            log.warning("the MLflow run %s goes on with another %s", run.run_id, ", ".join(changed))
    run.client.log_batch(
        run.run_id,
        params=[Param(key, value) for key, value in new_params.items()],
        tags=[RunTag(key, value[:MAX_TAG_CHARACTERS]) for key, value in new_tags.items()],
    )


def _sampled(run: Run, every_s: float | None) -> AbstractContextManager[Any]:
    """Samples of the machine into a run; MLflow's own monitor leaves none in a run shorter than its interval."""
    if every_s is None:
        return nullcontext()

    def log_sample(sample: Mapping[str, float], number: int) -> None:
        run.log_epoch({f"system/{name}": value for name, value in sample.items()}, number)

    before = run.logged_epochs("system/system_memory_usage_megabytes")
    return machine.Sampler(log_sample, disk=run.home.root, first=max(before, default=-1) + 1, every_s=every_s)


def _dataset(name: str, digest: str, context: str, sizes: Mapping[str, int]) -> DatasetInput:
    source = json.dumps({"digest": digest})
    profile = json.dumps(dict(sizes)) if sizes else None
    data = MlflowDataset(
        name=name, digest=digest[:DIGEST_CHARACTERS], source_type="luna", source=source, profile=profile
    )
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])


def log_model(
    run: Run,
    model: torch.nn.Module,
    *,
    arch: Mapping[str, Any],
    example: np.ndarray,
    name: str,
    card: str | None = None,
) -> str:
    """Keep a model as pt2 + safetensors + architecture; returns its `models:/m-...` URI.

    Args:
        run: the run that made it.
        model: left as it is; a copy on the CPU in eval mode is exported.
        arch: JSON; `stage` and what rebuilds the module.
        example: float32 input of batch 2 or more; every axis but the second may differ later.
        name: shown in the UI.
        card: Markdown that says what the model is and is not for; kept as README.md beside the model and with the
            run, whose page shows it as its description.
    """
    still = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    logged = run.client.create_logged_model(
        run.experiment_id,
        name=name,
        source_run_id=run.run_id,
        model_type=str(arch["stage"]),
        params={key: str(value) for key, value in arch["config"].items()},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder) / "extra"
            beside.mkdir()
            weights = {key: value.contiguous() for key, value in still.state_dict().items()}
            save_file(weights, beside / "weights.safetensors")
            (beside / "arch.json").write_text(json.dumps(dict(arch)))
            if card is not None:
                (beside / "README.md").write_text(card, encoding="utf-8")
            mlflow.pytorch.save_model(
                still,
                str(Path(folder) / "model"),
                mlflow_model=Model(run_id=run.run_id, model_id=logged.model_id),
                signature=_signature(still, example),
                input_example=example,
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
                extra_files=[str(path) for path in sorted(beside.iterdir())],
                serialization_format="pt2",
            )
            run.client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
        if card is not None:
            run.log_text(card, "README.md")
            run.log_tag(MLFLOW_RUN_NOTE, card)
        run.client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        run.client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    run.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return f"models:/{logged.model_id}"


def load_model(
    home: Home, uri: str, *, expect_stage: str | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A model's architecture and weights, on the CPU; the caller rebuilds the module.

    Raises:
        TrackingError: when there is no such model, or it belongs to another stage.
    """
    folder = download_model(home, uri)
    arch_file, weights_file = (next(folder.rglob(n), None) for n in ("arch.json", "weights.safetensors"))
    if arch_file is None or weights_file is None:
        raise TrackingError(f"{uri}: holds no luna model (arch.json, weights.safetensors)")
    try:
        arch, weights = json.loads(arch_file.read_text()), load_file(weights_file)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise TrackingError(f"{uri}: its files are damaged ({first}); train or import it again") from error
    if expect_stage is not None and arch["stage"] != expect_stage:
        raise TrackingError(f"{uri}: is a {arch['stage']} model, a {expect_stage} model was asked for")
    return arch, weights


def model_scans(home: Home, uri: str) -> dict[str, str]:
    """The split of every series that a model was trained, chosen or tested on; empty where its run does not say."""
    client = client_of(home)
    try:
        run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/{SCANS}")
        scans: dict[str, str] = json.loads(text)
    except (MlflowException, OSError, ValueError):
        return {}
    return scans


def model_exists(home: Home, uri: str) -> bool:
    """Whether a model's files are still there."""
    try:
        load_model(home, uri)
    except TrackingError:
        return False
    return True


def _signature(model: torch.nn.Module, example: np.ndarray) -> ModelSignature:
    with torch.inference_mode():
        logits = model(torch.from_numpy(example)).numpy()
    free = (-1, example.shape[1], *([-1] * (example.ndim - 2) if logits.ndim == example.ndim else example.shape[2:]))
    answer = (-1, logits.shape[1], *([-1] * (logits.ndim - 2)))
    return ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), free)]), Schema([TensorSpec(np.dtype("float32"), answer)])
    )


def download_model(home: Home, uri: str) -> Path:
    """A model's folder; where artifacts are local files it is the folder itself, not a copy."""
    if not uri.startswith("models:/"):
        raise TrackingError(f"{uri}: is no model; give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-...")
    client = client_of(home)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=client.tracking_uri))
    except (MlflowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise TrackingError(f"{uri}: no such model in {client.tracking_uri} ({first})") from error


def client_of(home: Home) -> MlflowClient:
    uri = tracking_uri(home)
    home.root.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with locked(home.mlflow_db):  # two processes must not create the tables at once
        given = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)  # models:/ URIs are resolved through the process-wide setting
        if given is None:  # it also writes the environment, where the next home would take it for the user's wish
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        return MlflowClient(tracking_uri=uri)


def experiment_id_of(home: Home, stage: str) -> str:
    if stage not in EXPERIMENTS:
        raise TrackingError(f"unknown stage {stage!r}; choose one of {', '.join(EXPERIMENTS)}")
    client, name = client_of(home), f"luna-{stage}"
    # A server that somebody else runs keeps artifacts where it likes; ours must not depend on the current folder.
    remote = client.tracking_uri.startswith(("http", "databricks"))
    location = None if remote else (home.mlruns / name).as_uri()
    with locked(home.mlflow_db):
        if client.get_experiment_by_name(name) is None:
            try:
                client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
                    raise
        experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise TrackingError(
            f"the MLflow experiment {name} was deleted; bring it back with: "
            f"MLFLOW_TRACKING_URI={client.tracking_uri} mlflow experiments restore -x {experiment.experiment_id}"
        )
    return str(experiment.experiment_id)


@cache
def git_commit() -> str:
    """The commit this code is at, `-dirty` behind it when files differ; empty for an installed copy or without git."""
    project = Path(__file__).resolve().parents[1]
    if not (project / ".git").exists():  # git itself would answer for any repository around it
        return ""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(describe, cwd=project, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
