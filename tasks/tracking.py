"""What do runs, models and bundles leave in MLflow? The only module that talks to it.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

EXPERIMENTS = ("segmentation", "classification", "malignancy", "end-to-end")
BUNDLE_NAME = "luna"
BUNDLE_MEMBERS = {"segmentation": "segmentation", "nodule": "classification", "malignancy": "malignancy"}
BUNDLE_FIELDS = (*BUNDLE_MEMBERS, "grouping", "nodule_threshold", "malignant_threshold", "recipe", "origin")
MAX_PARAM_CHARACTERS = 6000  # MLflow cuts longer ones


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

    def log_dataset(self, name: str, digest: str, parents: Mapping[str, str] | None = None) -> None:
        """Record what the run learned from: a data set's digest and the URIs of the models it started from."""
        data = MlflowDataset(name=name, digest=digest[:36], source_type="luna", source=json.dumps({"digest": digest}))
        models = [LoggedModelInput(uri.removeprefix("models:/")) for uri in (parents or {}).values()]
        self.client.log_inputs(
            self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])], models=models
        )
        for stage, uri in (parents or {}).items():
            self.client.set_tag(self.run_id, f"luna.parent.{stage}", uri)


def tracking_uri(home: Home) -> str:
    """Where runs go: MLFLOW_TRACKING_URI when set, else SQLite under the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow_db}"


@contextmanager
def open_run(
    home: Home,
    stage: str,
    *,
    name: str,
    pipeline_id: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Open a flat run in a stage's experiment; it ends FINISHED, FAILED on an error, KILLED when stopped from outside.

    Args:
        home: where MLflow's database lies.
        stage: one of `EXPERIMENTS`.
        name: shown in the UI.
        pipeline_id: the flow run that ties the runs of one pipeline together.
        params: settings; any value, kept as text.
        tags: further tags.
    """
    client = _client(home)
    experiment_id = _experiment_id(home, stage)
    all_tags = {"luna.pipeline": pipeline_id, "luna.stage": stage, **(tags or {})}
    commit = _git_commit()
    if commit:
        all_tags["luna.commit"] = commit
    run_id = client.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id
    run = Run(client, home, stage, experiment_id, run_id)
    try:
        logged = [Param(key, str(value)[:MAX_PARAM_CHARACTERS]) for key, value in (params or {}).items()]
        client.log_batch(run_id, params=logged)
        yield run
    except BaseException as error:
        killed = not isinstance(error, Exception)  # Ctrl-C, exit, or Prefect's cancelling signal
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
        raise
    client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))


def log_model(run: Run, model: torch.nn.Module, *, arch: Mapping[str, Any], example: np.ndarray, name: str) -> str:
    """Keep a model as pt2 + safetensors + architecture; returns its `models:/m-...` URI.

    Args:
        run: the run that made it.
        model: left as it is; a copy on the CPU in eval mode is exported.
        arch: JSON; `stage` and what rebuilds the module.
        example: float32 input of batch 2 or more; every axis but the second may differ later.
        name: shown in the UI.
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
            mlflow.pytorch.save_model(
                still,
                str(Path(folder) / "model"),
                mlflow_model=Model(run_id=run.run_id, model_id=logged.model_id),
                signature=_signature(still, example),
                input_example=example,
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
                extra_files=[str(beside / "weights.safetensors"), str(beside / "arch.json")],
                serialization_format="pt2",
            )
            run.client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
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
    folder = _download(home, uri)
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


def model_exists(home: Home, uri: str) -> bool:
    """Whether a model's files are still there."""
    try:
        load_model(home, uri)
    except TrackingError:
        return False
    return True


def register_bundle(home: Home, bundle: Mapping[str, Any], *, aliases: Sequence[str] = ()) -> str:
    """Make a bundle a version of the registered model `luna`, its members versions of theirs.

    A bundle that equals the newest version, the code's included, is that version: a repeated run adds none.

    Args:
        home: where MLflow's database lies.
        bundle: see `check_bundle`; the code's version is added as `code`.
        aliases: set on the new version; a phantom bundle may only be `demo`.

    Returns:
        `models:/luna/N`.

    Raises:
        TrackingError: when the bundle is not whole, a member is not there, or a phantom bundle asks for another alias.
    """
    check_bundle(bundle)
    if bundle["origin"] == "phantom" and set(aliases) - {"demo"}:
        raise TrackingError(f"a bundle of synthetic scans may only be @demo, not {', '.join(aliases)}")
    whole = {**bundle, "code": _git_commit()}
    client = _client(home)
    newest = _newest_version(client, BUNDLE_NAME)
    if newest and _holds(home, f"models:/{BUNDLE_NAME}/{newest}", whole):
        for alias in aliases:
            client.set_registered_model_alias(BUNDLE_NAME, alias, newest)
        return f"models:/{BUNDLE_NAME}/{newest}"
    for member, stage in BUNDLE_MEMBERS.items():
        _register(client, f"luna-{stage}", bundle[member])
    logged = client.create_logged_model(
        _experiment_id(home, "end-to-end"),
        name="luna-bundle",
        model_type="bundle",
        params={name: value if isinstance(value, str) else json.dumps(value) for name, value in whole.items()},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "bundle.json").write_text(json.dumps(whole, indent=1))
            Model(model_id=logged.model_id).save(str(Path(folder) / "MLmodel"))
            client.log_model_artifacts(logged.model_id, folder)
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    version = _register(client, BUNDLE_NAME, f"models:/{logged.model_id}")
    for alias in aliases:
        client.set_registered_model_alias(BUNDLE_NAME, alias, version)
    return f"models:/{BUNDLE_NAME}/{version}"


def read_bundle(home: Home, uri: str) -> dict[str, Any]:
    """The bundle behind `models:/luna/N` or `models:/luna@alias`.

    Raises:
        TrackingError: when there is none, or it is not whole.
    """
    file = next(_download(home, uri).rglob("bundle.json"), None)
    if file is None:
        raise TrackingError(f"{uri}: is not a bundle; give models:/luna/N")
    try:
        bundle: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise TrackingError(f"{file}: damaged ({error}); restore it, or train or import again") from error
    check_bundle(bundle)
    return bundle


def check_bundle(bundle: Mapping[str, Any]) -> None:
    """See that a bundle is whole: three member URIs, grouping, two thresholds, recipe, origin.

    Raises:
        TrackingError: naming what is wrong.
    """
    missing = [name for name in BUNDLE_FIELDS if name not in bundle]
    if missing:
        raise TrackingError(f"the bundle lacks {', '.join(missing)}")
    if bundle["origin"] not in ("real", "phantom"):
        raise TrackingError(f"the bundle's origin is {bundle['origin']!r}, not 'real' or 'phantom'")
    for member in BUNDLE_MEMBERS:
        if not str(bundle[member]).startswith("models:/m-"):
            raise TrackingError(f"the bundle's {member} is {bundle[member]!r}, not a models:/m-... URI")
    for threshold in ("nodule_threshold", "malignant_threshold"):
        if not 0.0 <= bundle[threshold] <= 1.0:
            raise TrackingError(f"the bundle's {threshold} is {bundle[threshold]!r}, not a probability")


def _register(client: MlflowClient, name: str, uri: str) -> str:
    """The version of a registered model that holds a logged model; made when there is none yet."""
    model_id = uri.removeprefix("models:/")
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        raise TrackingError(f"{uri}: no such model in {client.tracking_uri}") from error
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.source == uri:  # the SQL registry keeps the URI, not the model's id
            return str(version.version)
    return str(client.create_model_version(name, uri, model_id=model_id).version)


def _newest_version(client: MlflowClient, name: str) -> str | None:
    versions = [int(version.version) for version in client.search_model_versions(f"name = '{name}'")]
    return str(max(versions)) if versions else None


def _holds(home: Home, uri: str, bundle: Mapping[str, Any]) -> bool:
    """Whether an equal bundle is still there whole under that URI."""
    try:
        return read_bundle(home, uri) == json.loads(json.dumps(bundle))
    except TrackingError:
        return False


def _signature(model: torch.nn.Module, example: np.ndarray) -> ModelSignature:
    with torch.inference_mode():
        logits = model(torch.from_numpy(example)).numpy()
    free = (-1, example.shape[1], *([-1] * (example.ndim - 2) if logits.ndim == example.ndim else example.shape[2:]))
    answer = (-1, logits.shape[1], *([-1] * (logits.ndim - 2)))
    return ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), free)]), Schema([TensorSpec(np.dtype("float32"), answer)])
    )


def _download(home: Home, uri: str) -> Path:
    """A model's folder; where artifacts are local files it is the folder itself, not a copy."""
    if not uri.startswith("models:/"):
        raise TrackingError(f"{uri}: is no model; give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-...")
    client = _client(home)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=client.tracking_uri))
    except (MlflowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise TrackingError(f"{uri}: no such model in {client.tracking_uri} ({first})") from error


def _client(home: Home) -> MlflowClient:
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


def _experiment_id(home: Home, stage: str) -> str:
    if stage not in EXPERIMENTS:
        raise TrackingError(f"unknown stage {stage!r}; choose one of {', '.join(EXPERIMENTS)}")
    client, name = _client(home), f"luna-{stage}"
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
def _git_commit() -> str:
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
