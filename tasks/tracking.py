"""What do runs and models leave in MLflow? Bundles are those of `tasks.registry`.

Runs are opened by experiment id through a client, never through MLflow's process-global current run or experiment, so
that two stages at once never write into each other's. How MLflow is waited for is in `tasks.connection`, what a run
takes in `tasks.run_log`, models in `tasks.logged_models`: all of it is reached through this module.
"""

from __future__ import annotations

import logging
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_RUN_NOTE

from lungml.files import locked
from lungml.home import Home
from lungml.secrets import without_secrets
from tasks import machine
from tasks.connection import client_of as client_of
from tasks.connection import patiently, plain
from tasks.connection import shown_uri as shown_uri
from tasks.connection import tracking_uri as tracking_uri
from tasks.logged_models import SCANS as SCANS
from tasks.logged_models import download_model as download_model
from tasks.logged_models import load_model as load_model
from tasks.logged_models import log_model as log_model
from tasks.logged_models import model_exists as model_exists
from tasks.logged_models import model_scans as model_scans
from tasks.orphans import OPENED_BY_TAG, end_orphans, this_process
from tasks.outbox import Outbox
from tasks.reachable import TrackingDown as TrackingDown
from tasks.reachable import TrackingError as TrackingError
from tasks.reachable import first_line
from tasks.run_log import MAX_TAG_CHARACTERS as MAX_TAG_CHARACTERS
from tasks.run_log import Run as Run
from tasks.spool import send_spooled as send_spooled

log = logging.getLogger(__name__)

EXPERIMENTS = ("segmentation", "classification", "malignancy", "end-to-end")
RUN_NOTE = MLFLOW_RUN_NOTE  # Markdown that a run's page shows as its description
MAX_PARAM_CHARACTERS = 6000  # MLflow cuts longer ones
OPENED_TAG = "luna.opened"  # tells a run that was made, though the answer was lost, from one that was not


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

    Raises:
        TrackingDown: MLflow stayed away. Once the run is open, what it logs waits instead, see `tasks.spool`.
        TrackingError: MLflow's database, or the stage's experiment, cannot be used.
    """
    client = client_of(home)
    send_spooled(home, client)
    experiment_id = experiment_id_of(home, stage)
    end_orphans(client, experiment_id)
    all_tags = {"luna.pipeline": pipeline_id, "luna.stage": stage, OPENED_BY_TAG: this_process(), **(tags or {})}
    commit = git_commit()
    if commit:
        all_tags["luna.commit"] = commit
        all_tags[MLFLOW_GIT_COMMIT] = commit.removesuffix("-dirty")  # the column Version
    all_tags |= {f"env.{key}": value for key, value in machine.environment().items()}
    all_params = {key: without_secrets(str(value))[:MAX_PARAM_CHARACTERS] for key, value in (params or {}).items()}
    reopened = run_id is not None and _reopen(client, run_id, experiment_id)
    if run_id is None or not reopened:
        run_id = _create_run(client, home, experiment_id, without_secrets(name))
    run = Run(client, home, stage, experiment_id, run_id, Outbox(client, home, run_id))
    try:
        _log_settings(run, all_params, all_tags, again=reopened)
        run.log_text(machine.requirements(), "environment/requirements.txt")
        with _sampled(run, sample_every_s):
            yield run
    except BaseException as error:
        killed = not isinstance(error, Exception)  # Ctrl-C, exit, or Prefect's cancelling signal
        try:
            run.end(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
        except (MlflowException, OSError) as problem:  # what happened first is what is told
            log.warning("the MLflow run %s stays open: %s", run_id, first_line(problem))
        raise
    run.end(RunStatus.to_string(RunStatus.FINISHED))


def _create_run(client: MlflowClient, home: Home, experiment_id: str, name: str) -> str:
    """Make a run, and not a second one where MLflow made it but its answer was lost."""
    mark, ask, opened_by = uuid.uuid4().hex, plain(client), {OPENED_BY_TAG: this_process()}

    def create() -> str:
        made = ask.search_runs([experiment_id], f"tags.`{OPENED_TAG}` = '{mark}'") if tries else ()
        tries.append(mark)
        run = made[0] if made else ask.create_run(experiment_id, run_name=name, tags={OPENED_TAG: mark, **opened_by})
        return str(run.info.run_id)

    tries: list[str] = []
    return patiently(tracking_uri(home), create)


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
    client.set_tag(run_id, OPENED_BY_TAG, this_process())  # first: whoever looks for orphans must not find one
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
    run.log_settings(new_params, new_tags)


def _sampled(run: Run, every_s: float | None) -> AbstractContextManager[Any]:
    """Samples of the machine into a run; MLflow's own monitor leaves none in a run shorter than its interval."""
    if every_s is None:
        return nullcontext()

    def log_sample(sample: Mapping[str, float], number: int) -> None:
        run.log_epoch({f"system/{name}": value for name, value in sample.items()}, number)

    before = run.logged_epochs("system/system_memory_usage_megabytes")
    return machine.Sampler(log_sample, disk=run.home.root, first=max(before, default=-1) + 1, every_s=every_s)


def experiment_id_of(home: Home, stage: str) -> str:
    """The id of a stage's experiment, which is made when there is none.

    Raises:
        TrackingError: an unknown stage, or the experiment was deleted.
    """
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
            f"MLFLOW_TRACKING_URI={shown_uri(home)} mlflow experiments restore -x {experiment.experiment_id}"
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
