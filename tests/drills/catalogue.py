"""Which drills are there, and what does each show?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.drills import damage, disk, kills, locks, outage, rivals, services, stalls
from tests.drills.page import Step
from tests.drills.scene import Scene


@dataclass(frozen=True, kw_only=True)
class Drill:
    """One drill: its name, what is told of it, and what it does, a step at a time."""

    name: str
    title: str
    about: str
    play: Callable[[Scene], Iterator[Step]]


def all_drills() -> tuple[Drill, ...]:
    """Every drill, in the order of the page."""
    return (
        Drill(
            name="kill",
            title="`kill -9` of the pipeline in each stage",
            about="One home, one stage after the other: the pipeline is killed, run again, killed a stage later, and "
            "so on, until it may finish. Nothing of what a stage had finished is repeated; a training goes on from its "
            "last epoch in the MLflow run it began.",
            play=kills.each_stage,
        ),
        Drill(
            name="promotion",
            title="`kill -9` in the middle of a promotion",
            about="Killed after the move was written into the registry's history and before `luna` itself bears the "
            "alias. Whoever loads a bundle asks for that last alias, so that a half-moved set is never served; the "
            "next run moves the rest.",
            play=kills.promotion,
        ),
        Drill(
            name="two-at-once",
            title="two end-to-end runs at once in one home",
            about="Both start from an empty home. A model is trained by one of them; the other waits and finds it. "
            "What is done scan by scan may be done by both, since the same bytes come out.",
            play=rivals.two_at_once,
        ),
        Drill(
            name="damage",
            title="truncated stores, crops, answers, models and records between two runs",
            about="What is damaged is made again, never trusted, and nothing else is.",
            play=damage.outputs,
        ),
        Drill(
            name="damaged-checkpoint",
            title="a truncated checkpoint of a killed training",
            about="A state that cannot be read is left aside with a warning, and the training begins anew: the same "
            "weights come out.",
            play=damage.checkpoint,
        ),
        Drill(
            name="disk-full",
            title="disk full while converting, cutting crops, writing a checkpoint, logging a model",
            about="The home lies on a small tmpfs in a mount namespace of its own, which a ballast file fills up at "
            "the moment in question. The run ends with one line that says where there was no space; with the ballast "
            "gone, the next run goes on.",
            play=disk.full,
        ),
        Drill(
            name="mlflow-locked",
            title="MLflow's SQLite database locked for 45 s",
            about="Another process holds `BEGIN EXCLUSIVE` on `mlflow.db` while models are trained.",
            play=locks.mlflow,
        ),
        Drill(
            name="prefect-locked",
            title="Prefect's SQLite database locked for 45 s",
            about="Another process holds `BEGIN EXCLUSIVE` on the server's database while a pipeline runs.",
            play=locks.prefect,
        ),
        Drill(
            name="hang",
            title="a training that hangs",
            about="The training process is stopped with SIGSTOP: it lives and says nothing. After `LUNA_STALL_S` it is "
            "ended, and the task's second try goes on from its checkpoint.",
            play=stalls.hang,
        ),
        Drill(
            name="cancel",
            title="cancelled through the API, as the UI's button does",
            about="A run of the deployment is cancelled while it trains: its MLflow run ends, its process is gone, and "
            "the deployment's only slot is free for the next run, which goes on from the checkpoint. On a CPU no GPU's "
            "slot is held; `tests/tasks` tries those.",
            play=services.cancel,
        ),
        Drill(
            name="reboot",
            title="everything killed at once in the middle of a run",
            about="Server, worker, MLflow UI, flow and training die in the same moment, `luna up` with them; then "
            "`luna up` is started again and nothing else is done.",
            play=services.reboot,
        ),
        Drill(
            name="worker",
            title="`kill -9` of the worker under `luna up`",
            about="While a run of the deployment trains the U-Net. Nobody does anything.",
            play=services.worker,
        ),
        Drill(
            name="server",
            title="`kill -9` of the Prefect server under `luna up`",
            about="While a run of the deployment trains the nodule classifier. Nobody does anything.",
            play=services.server,
        ),
        Drill(
            name="mlflow-down",
            title="MLflow server away at the start, in the middle, at the end",
            about="Runs go to an `mlflow server` of its own process (`MLFLOW_TRACKING_URI`), which is not there when "
            "the pipeline begins, is killed while a model is trained, and again while the evaluation is logged; each "
            "time it comes back after a while.",
            play=outage.mlflow_away,
        ),
    )
