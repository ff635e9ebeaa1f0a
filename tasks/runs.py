"""What does MLflow still say of a run, a model and a bundle's version, and how is a word added to the last?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from lungml.home import Home
from tasks import tracking
from tasks.connection import patiently
from tasks.pipeline import LOGGED
from tasks.provenance import MISSING, PARENT
from tasks.registry import BUNDLE_NAME

MAX_DESCRIPTION = 5000  # characters of a version's description that MLflow's database has room for
OURS = re.compile(r"luna\.|env\.")  # tags that we wrote


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a run says of the data of one split: their digest, and how many scans, nodules and malignant ones."""

    digest: str
    sizes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run says.

    Attributes:
        run_id: of the run.
        name: of the run.
        params: as they were logged, as text.
        tags: those of ours.
        metrics: the last value of each.
        data: split -> what it learned from or was judged on.
    """

    run_id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    data: Mapping[str, DataFacts]

    @property
    def stage(self) -> str:
        """Of which experiment; empty where it does not say."""
        return self.tags.get("luna.stage", "")

    @property
    def pipeline_id(self) -> str:
        """The flow run that it was part of; empty where it does not say."""
        return self.tags.get("luna.pipeline", "")

    @property
    def commit(self) -> str:
        """Of the code, `-dirty` behind it where files differed; empty where it was not known."""
        return self.tags.get("luna.commit", "")

    @property
    def environment(self) -> dict[str, str]:
        """See `tasks.machine.environment`."""
        return {name.removeprefix("env."): value for name, value in self.tags.items() if name.startswith("env.")}

    def scores(self, split: str) -> dict[str, float]:
        """Of a training's run: its model's metrics on a split, val or test, by their bare names."""
        prefix = LOGGED[split]
        return {name.removeprefix(prefix): value for name, value in self.metrics.items() if name.startswith(prefix)}

    def told_data(self) -> dict[str, dict[str, Any]]:
        """Split -> digest and sizes of its data; JSON-able."""
        return {split: {"digest": one.digest, **one.sizes} for split, one in self.data.items()}

    @property
    def parents(self) -> dict[str, str]:
        """Stage -> URI of the models that it started from or whose candidates it learned from."""
        return {name.removeprefix(PARENT): uri for name, uri in self.tags.items() if name.startswith(PARENT)}


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """What the registry says of a version of `luna`: its tags, and the model that it holds."""

    tags: Mapping[str, str]
    model_uri: str


def facts_of_run(home: Home, run_id: str) -> RunFacts | None:
    """What a run says; None where there is no such run."""
    try:
        return _facts(tracking.client_of(home).get_run(run_id))
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        return None


def facts_of_model(home: Home, uri: str) -> RunFacts | None:
    """What the run that made a model says; None where there is no such model or run."""
    try:
        run_id = tracking.client_of(home).get_logged_model(uri.removeprefix("models:/")).source_run_id
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
        return None
    return facts_of_run(home, run_id) if run_id else None


def facts_of_version(home: Home, uri: str) -> VersionFacts:
    """What the registry says of `models:/luna/N`, which is there."""
    version = tracking.client_of(home).get_model_version(BUNDLE_NAME, uri.rpartition("/")[2])
    return VersionFacts(tags=dict(version.tags), model_uri=str(version.source))


def read_json(home: Home, run_id: str, name: str) -> Any:
    """A JSON file of a run; None where there is none, or it is damaged.

    Raises:
        TrackingDown: MLflow did not say.
    """
    tracking.client_of(home)  # points MLflow at this home's store
    try:
        uri = tracking.tracking_uri(home)
        return json.loads(patiently(uri, lambda: mlflow.artifacts.load_text(f"runs:/{run_id}/{name}")))
    except (tracking.TrackingError, tracking.TrackingDown):  # an MLflow that is away has not said that there is none
        raise
    except (MlflowException, OSError, ValueError):
        return None


def add_files(home: Home, uri: str, run_id: str, folder: Path) -> None:
    """Put a folder's files beside the model of a version of `luna`, and with a run; equal names are replaced."""
    client = tracking.client_of(home)
    client.log_artifacts(run_id, str(folder))
    client.log_model_artifacts(facts_of_version(home, uri).model_uri.removeprefix("models:/"), str(folder))


def describe_version(home: Home, uri: str, markdown: str) -> None:
    """Let the registry's page show a text as the description of `models:/luna/N`; longer ones are cut."""
    client = tracking.client_of(home)
    client.update_model_version(BUNDLE_NAME, uri.rpartition("/")[2], markdown[:MAX_DESCRIPTION])


def _facts(run: MlflowRun) -> RunFacts:
    data = {}
    for given in run.inputs.dataset_inputs if run.inputs else ():
        split = given.dataset.name.rpartition("-")[2]
        try:
            digest = json.loads(given.dataset.source)["digest"]
        except (ValueError, TypeError, KeyError):
            digest = given.dataset.digest
        data[split] = DataFacts(digest=str(digest), sizes=json.loads(given.dataset.profile or "{}"))
    return RunFacts(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        params=dict(run.data.params),
        tags={name: value for name, value in run.data.tags.items() if OURS.match(name)},
        metrics={name: float(value) for name, value in run.data.metrics.items()},
        data=data,
    )
