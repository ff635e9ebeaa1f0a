"""What can a run log, as a record that can wait, and how is each record sent?

A record is a dict with a `kind` and what belongs to it, JSON throughout.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, LoggedModelStatus, Metric, Param, RunTag

MAX_POINTS = 1000  # MLflow takes so many metrics in one request


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record that waited.

    Attributes:
        line: as it stands in the spool.
        server: the tracking URI that it is for.
        content: the record.
    """

    line: str
    server: str
    content: Mapping[str, Any]

    @property
    def points(self) -> list[Any]:
        """The points of metrics; none of another kind."""
        return list(self.content["points"]) if self.content["kind"] == "metrics" else []


def merged(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Neighbours that make one request together: an hour's metrics in one instead of hundreds."""
    group: list[Record] = []
    for record in records:
        fits = bool(record.points) and sum(len(r.points) for r in group) + len(record.points) <= MAX_POINTS
        if group and not (fits and group[-1].points):
            yield group
            group = []
        group.append(record)
    if group:
        yield group


def metrics(values: Mapping[str, float], step: int) -> dict[str, Any]:
    """Points of now."""
    now_ms = int(time.time() * 1000)
    return {"kind": "metrics", "points": [[name, float(value), now_ms, step] for name, value in values.items()]}


def settings(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    """Parameters and tags."""
    return {"kind": "settings", "params": dict(params), "tags": dict(tags)}


def text(content: str, name: str) -> dict[str, Any]:
    """A file of the run, as its text."""
    return {"kind": "text", "text": content, "name": name}


def files(folder: Path, under: str) -> dict[str, Any]:
    """A folder's files; see `kept_copy`."""
    return {"kind": "files", "folder": str(folder.absolute()), "under": under}


def inputs(data: Sequence[Mapping[str, str | None]], models: Sequence[str]) -> dict[str, Any]:
    """Data sets, each with name, digest, source, profile and context, and the ids of models."""
    return {"kind": "inputs", "data": [dict(one) for one in data], "models": list(models)}


def status(name: str) -> dict[str, Any]:
    """How the run ended, now."""
    return {"kind": "status", "status": name, "end_ms": int(time.time() * 1000)}


def failed_model(model_id: str) -> dict[str, Any]:
    """A model that could not be kept."""
    return {"kind": "failed_model", "model": model_id}


def kept_copy(record: Mapping[str, Any], beside: Path) -> Mapping[str, Any]:
    """The record as it can wait: files, which may change, as copies in a folder of their own."""
    if record["kind"] != "files":
        return record
    number = str(time.time_ns())
    shutil.copytree(record["folder"], beside / number, ignore=shutil.ignore_patterns(".*"))
    return {**record, "folder": number}


def send(client: MlflowClient, run_id: str, record: Mapping[str, Any], beside: Path) -> None:
    """Send a record; `beside` is the folder that a waiting record's files lie in.

    Raises:
        MlflowException: MLflow is away, or refuses it.
        KeyError, TypeError, ValueError: it is no whole record.
    """
    KINDS[record["kind"]](client, run_id, record, beside)


def _send_metrics(client: MlflowClient, run_id: str, record: Mapping[str, Any], _: Path) -> None:
    client.log_batch(run_id, metrics=[Metric(*point) for point in record["points"]])


def _send_settings(client: MlflowClient, run_id: str, record: Mapping[str, Any], _: Path) -> None:
    params = [Param(key, value) for key, value in record["params"].items()]
    client.log_batch(run_id, params=params, tags=[RunTag(key, value) for key, value in record["tags"].items()])


def _send_text(client: MlflowClient, run_id: str, record: Mapping[str, Any], _: Path) -> None:
    client.log_text(run_id, record["text"], record["name"])


def _send_files(client: MlflowClient, run_id: str, record: Mapping[str, Any], beside: Path) -> None:
    folder = beside / record["folder"]
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):  # a hidden one another run is just writing
            under = PurePosixPath(record["under"], *file.relative_to(folder).parent.parts)
            client.log_artifact(run_id, str(file), str(under) if under.parts else None)


def _send_inputs(client: MlflowClient, run_id: str, record: Mapping[str, Any], _: Path) -> None:
    data = [
        DatasetInput(
            MlflowDataset(
                name=one["name"],
                digest=one["digest"],
                source_type="luna",
                source=one["source"],
                profile=one["profile"],
            ),
            [InputTag("mlflow.data.context", one["context"])],
        )
        for one in record["data"]
    ]
    client.log_inputs(run_id, data, models=[LoggedModelInput(model) for model in record["models"]])


def _send_status(client: MlflowClient, run_id: str, record: Mapping[str, Any], _: Path) -> None:
    client.set_terminated(run_id, record["status"], record["end_ms"])


def _send_failed_model(client: MlflowClient, _: str, record: Mapping[str, Any], __: Path) -> None:
    client.finalize_logged_model(record["model"], LoggedModelStatus.FAILED)


KINDS: dict[str, Callable[[MlflowClient, str, Mapping[str, Any], Path], None]] = {
    "metrics": _send_metrics,
    "settings": _send_settings,
    "text": _send_text,
    "files": _send_files,
    "inputs": _send_inputs,
    "status": _send_status,
    "failed_model": _send_failed_model,
}
