"""How is a model kept in MLflow, and how does it come back?

Models travel as `models:/...` URIs; they are kept as an exported program (pt2) beside safetensors weights and a JSON
architecture, and are rebuilt from the latter two: no pickle. Whoever keeps or reads one waits for MLflow.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lungml.errors import one_line
from lungml.home import Home
from lungml.secrets import without_secrets
from tasks import spooled
from tasks.connection import (
    TrackingDown,
    TrackingError,
    client_of,
    first_line,
    patiently,
    plain,
    shown_uri,
    tracking_uri,
)
from tasks.run_log import Run

SCANS = "scans.json"  # of a training's run: series_uid -> split
CONTENT_TAG = "luna.content"  # of a model: digest of its weights, architecture and name


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

    Each step waits for MLflow and may be done twice. A run that already holds an equal model, because the process that
    kept it died, holds it once; a model that was left half kept is marked FAILED.

    Args:
        run: the run that made it.
        model: left as it is; a copy on the CPU in eval mode is exported.
        arch: JSON; `stage` and what rebuilds the module.
        example: float32 input of batch 2 or more; every axis but the second may differ later.
        name: shown in the UI.
        card: Markdown that says what the model is and is not for; kept as README.md beside the model and with the
            run, whose page shows it as its description.

    Raises:
        TrackingDown: MLflow stayed away; what is half kept is marked FAILED as soon as that can be.
    """
    still = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    weights = {key: value.contiguous() for key, value in still.state_dict().items()}
    card = card and without_secrets(card)
    content = _digest(weights, arch, name)
    uri = tracking_uri(run.home)
    kept, logged = patiently(uri, lambda: _begun(run, content) or (False, _create(run, arch, name, content)))
    if kept:
        _tell_run(run, logged.model_id, card)
        return f"models:/{logged.model_id}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder) / "extra"
            beside.mkdir()
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
        _tell_run(run, logged.model_id, card)
        run.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    except BaseException:
        # A full disk, which takes no spool either, or a refusal must not hide what happened.
        with suppress(OSError, MlflowException):
            run.outbox.put(spooled.failed_model(logged.model_id), insist=True)
        raise
    return f"models:/{logged.model_id}"


def load_model(
    home: Home, uri: str, *, expect_stage: str | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A model's architecture and weights, on the CPU; the caller rebuilds the module.

    Raises:
        TrackingError: when there is no such model, or it belongs to another stage.
        TrackingDown: MLflow did not say.
    """
    folder = download_model(home, uri)
    arch_file, weights_file = (next(folder.rglob(n), None) for n in ("arch.json", "weights.safetensors"))
    if arch_file is None or weights_file is None:
        raise TrackingError(f"{uri}: holds no luna model (arch.json, weights.safetensors)")
    try:
        arch, weights = json.loads(arch_file.read_text()), load_file(weights_file)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrackingError(f"{uri}: its files are damaged ({first_line(error)}); train or import it again") from error
    if expect_stage is not None and arch["stage"] != expect_stage:
        raise TrackingError(f"{uri}: is a {arch['stage']} model, a {expect_stage} model was asked for")
    return arch, weights


def model_scans(home: Home, uri: str) -> dict[str, str]:
    """The split of every series that a model was trained, chosen or tested on; empty where its run does not say."""
    client = client_of(home)
    try:
        run_id = client.get_logged_model(uri.removeprefix("models:/")).source_run_id
        text = patiently(tracking_uri(home), lambda: mlflow.artifacts.load_text(f"runs:/{run_id}/{SCANS}"))
        scans: dict[str, str] = json.loads(text)
    except (TrackingError, TrackingDown):  # an MLflow that is away has not said that there are none
        raise
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


def download_model(home: Home, uri: str) -> Path:
    """A model's folder; where artifacts are local files it is the folder itself, not a copy."""
    if not uri.startswith("models:/"):
        raise TrackingError(f"{uri}: is no model; give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-...")
    client_of(home)
    server = tracking_uri(home)
    try:
        return Path(
            patiently(server, lambda: mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=server))
        )
    except (TrackingError, TrackingDown):  # an MLflow that is away has not said that there is none
        raise
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(
            one_line(f"{uri[:200]}: no such model in {shown_uri(home)} ({first_line(error)})")
        ) from error


def _begun(run: Run, content: str) -> tuple[bool, LoggedModel] | None:
    """The equal model that the run holds already, and whether it is whole; others left half kept are marked FAILED."""
    client = plain(run.client)
    ready = half = None
    for model in client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'"):
        equal = model.tags.get(CONTENT_TAG) == content
        if model.status == LoggedModelStatus.READY:
            ready = model if equal else ready
        elif model.status == LoggedModelStatus.PENDING and CONTENT_TAG in model.tags:
            if equal:
                half = model
            else:
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
    if ready is not None:
        return True, ready
    return (False, half) if half is not None else None


def _create(run: Run, arch: Mapping[str, Any], name: str, content: str) -> LoggedModel:
    return plain(run.client).create_logged_model(
        run.experiment_id,
        name=name,
        source_run_id=run.run_id,
        tags={CONTENT_TAG: content},
        model_type=str(arch["stage"]),
        params={key: without_secrets(str(value)) for key, value in arch["config"].items()},
    )


def _tell_run(run: Run, model_id: str, card: str | None) -> None:
    """Name the model as an output of its run, once, and show its card there."""
    if card is not None:
        run.log_text(card, "README.md")
        run.log_tag(MLFLOW_RUN_NOTE, card)
    client = plain(run.client)

    def name_it() -> None:
        outputs = client.get_run(run.run_id).outputs
        if model_id not in {model.model_id for model in (outputs.model_outputs if outputs else ())}:
            client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step=0)])

    patiently(tracking_uri(run.home), name_it)


def _digest(weights: Mapping[str, torch.Tensor], arch: Mapping[str, Any], name: str) -> str:
    digest = hashlib.sha256(json.dumps([name, dict(arch)], sort_keys=True, default=str).encode())
    for key in sorted(weights):
        digest.update(f"{key} {weights[key].dtype} {tuple(weights[key].shape)}".encode())
        digest.update(weights[key].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _signature(model: torch.nn.Module, example: np.ndarray) -> ModelSignature:
    with torch.inference_mode():
        logits = model(torch.from_numpy(example)).numpy()
    free = (-1, example.shape[1], *([-1] * (example.ndim - 2) if logits.ndim == example.ndim else example.shape[2:]))
    answer = (-1, logits.shape[1], *([-1] * (logits.ndim - 2)))
    return ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), free)]), Schema([TensorSpec(np.dtype("float32"), answer)])
    )
