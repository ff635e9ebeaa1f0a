"""Which MLflow runs did a process leave open that is gone?

A killed process cannot end its runs, and MLflow would show them as running for ever. So each run says who has it open:
machine, process id and when that process began. Whoever opens the next run of the experiment ends those of processes
of this machine that are no more.
"""

from __future__ import annotations

import logging

import psutil
from mlflow import MlflowClient
from mlflow.entities import RunStatus

from lungml.files import this_machine

log = logging.getLogger(__name__)

OPENED_BY_TAG = "luna.opened_by"


def this_process() -> str:
    """This process as the tag names it: machine, process id, second of its begin."""
    process = psutil.Process()
    return f"{this_machine()}-{process.pid}-{process.create_time():.0f}"


def end_orphans(client: MlflowClient, experiment_id: str) -> list[str]:
    """Set an experiment's runs KILLED whose process ran on this machine and is gone; returns their ids.

    One that another machine has open is left alone, and so is one that does not say who has it open. A training that
    goes on later reopens its run.
    """
    ended = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if _is_gone(run.data.tags.get(OPENED_BY_TAG, "")):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))
            ended.append(str(run.info.run_id))
    if ended:
        log.info("%d MLflow runs of killed processes are ended: %s", len(ended), ", ".join(ended))
    return ended


def _is_gone(opened_by: str) -> bool:
    machine, _, rest = opened_by.partition("-")
    pid, _, began = rest.partition("-")
    if machine != this_machine() or not (pid.isdecimal() and began.isdecimal()):
        return False
    try:
        # The clock may have been set meanwhile, and a number is given to another process only much later.
        return abs(psutil.Process(int(pid)).create_time() - int(began)) > 2
    except psutil.NoSuchProcess:
        return True
