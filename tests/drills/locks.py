"""Does a database that another process has locked for a while stop a pipeline?"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.drills import moments, recorded
from tests.drills.page import Step
from tests.drills.programs import Program
from tests.drills.scene import MINED, Scene

LOCKED_S = 45.0


def mlflow(scene: Scene) -> Iterator[Step]:
    """Lock MLflow's database while the nodule classifier is trained, and again when the next model begins."""
    scene.begin(MINED)
    since = recorded.now()
    program = scene.pipeline()
    for model in ("demo-nodule", "demo-malignancy-scratch"):
        program.until(lambda model=model: moments.learned(model, 1)(scene.home), f"training {model}")
        with locked(scene.home.mlflow_db):
            pass
        yield Step(
            did=f"BEGIN EXCLUSIVE on mlflow.db for {LOCKED_S:.0f} s while training {model}",
            saw=_said(program),
            problems=_problems(program),
        )
        if _problems(program):
            program = scene.pipeline()
    yield _end(scene, program, since)


def prefect(scene: Scene) -> Iterator[Step]:
    """Lock the Prefect server's database while the nodule classifier is trained."""
    scene.begin(MINED)
    since = recorded.now()
    program = scene.pipeline()
    program.until(lambda: moments.learned("demo-nodule", 1)(scene.home), "training the nodule classifier")
    with locked(scene.folder / "server" / "prefect.db"):
        pass
    yield Step(
        did=f"BEGIN EXCLUSIVE on prefect.db for {LOCKED_S:.0f} s while training",
        saw=_said(program),
        problems=_problems(program),
    )
    if _problems(program):
        program = scene.pipeline()
    yield _end(scene, program, since)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold a database's write lock until the time is over; taking it waits for whoever writes at the moment."""
    held, failed = threading.Event(), []

    def hold() -> None:
        connection = sqlite3.connect(database, timeout=60.0, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(LOCKED_S)
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            failed.append(error)
            held.set()
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        yield
    finally:
        holder.join()
    if failed:
        raise failed[0]


def _said(program: Program) -> str:
    return f"the pipeline ended: {program.last_words}" if _problems(program) else "the pipeline held out"


def _problems(program: Program) -> tuple[str, ...]:
    return ("the pipeline failed",) if program.ended and program.finish() else ()


def _end(scene: Scene, program: Program, since: str) -> Step:
    program.succeed()
    counts = recorded.task_states(scene.api, since)
    return Step(
        did="let it come to its end",
        saw=f"{recorded.in_words(counts)}; compared with the undisturbed run",
        problems=tuple(scene.judge(MINED, since)),
    )
