"""Does a pipeline come through what real life does to it? `make drills` disturbs one and writes docs/drills.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lungml.files import write_text_atomic
from tests.drills.page import Result, Step, page, verdict_of

if TYPE_CHECKING:
    from tests.drills.scene import Scene

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "drills.md"


@dataclass(frozen=True, kw_only=True)
class Drill:
    """One drill: its name, what is told of it, and what it does, a step at a time."""

    name: str
    title: str
    about: str
    play: Callable[[Scene], Iterator[Step]]


def all_drills() -> tuple[Drill, ...]:
    """Every drill, in the order of the page."""
    from tests.drills import damage, disk, kills, locks, outage, rivals, services, stalls

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
            about="A run of the deployment is cancelled while it trains.",
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


def play(drill: Drill, scene: Scene, say: Callable[[str], object]) -> Result:
    """Run one drill to its end, or to the first thing that goes wrong."""
    from tests.drills.programs import CannotRun, DrillError

    steps: list[Step] = []
    began = before = time.monotonic()
    blank = Result(name=drill.name, title=drill.title, about=drill.about, verdict="not run")
    try:
        for step in drill.play(scene):
            steps.append(replace(step, seconds=time.monotonic() - before))
            before = time.monotonic()
            say(f"    {steps[-1].seconds:4.0f} s  {step.did}: {step.saw}")
            for problem in step.problems:
                say(f"            WRONG: {problem}")
    except CannotRun as reason:
        return replace(blank, why=str(reason))
    except DrillError as error:
        problem = " ".join(str(error).split())
        say(f"            WRONG: {problem}")
        seconds = time.monotonic() - before
        steps.append(Step(did="the next step", saw="the drill ended here", problems=(problem,), seconds=seconds))
    return replace(
        blank,
        verdict=verdict_of(steps),
        steps=tuple(steps),
        seconds=time.monotonic() - began,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        commit=commit(),
    )


def facts(seconds: float) -> dict[str, str]:
    """What the seconds on the page depend on."""
    import psutil
    import torch

    from tests.benchmarks.run import machine

    known = machine()
    return {
        "machine": f"{known['cpu']}, {known['cores']} cores, {psutil.virtual_memory().total / 1e9:.0f} GB",
        "software": f"{platform.system()}, Python {known['python']}, torch {torch.__version__}",
        "pipeline": f"nine scans of 40 x 96 x 96 voxels, the recipe `demo` cut to seconds; undisturbed {seconds:.0f} s",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {commit() or 'unknown'}",
    }


def commit() -> str:
    """The commit this code is at, shortened, with `-dirty` where files differ; empty without git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        answer = subprocess.run(describe, cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run drills, write the page after each, and return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills to run; all without any")
    parser.add_argument("--list", action="store_true", help="list the drills and end")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write the page (default docs/drills.md)")
    parser.add_argument(
        "--folder", type=Path, help="work here and keep it: another run there adds to its results (default: temporary)"
    )
    options = parser.parse_args(arguments)
    drills = all_drills()
    if options.list:
        print("\n".join(f"{drill.name:20}{drill.title}" for drill in drills))
        return 0
    unknown = sorted(set(options.names) - {drill.name for drill in drills})
    if unknown:
        parser.error(f"no such drill: {', '.join(unknown)}; --list names them")
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="luna-drills-")))
        return _run([d for d in drills if not options.names or d.name in options.names], drills, folder, options.page)


def _run(chosen: Sequence[Drill], drills: Sequence[Drill], folder: Path, file: Path) -> int:
    from tests.drills.programs import DrillError
    from tests.drills.scene import Scene

    scene, start = Scene(folder.absolute()), time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    kept = folder / "results.json"
    results = {name: _result(held) for name, held in (json.loads(kept.read_text()) if kept.exists() else {}).items()}
    try:
        say("the undisturbed run")
        try:
            seconds = scene.make_ready().seconds
        except DrillError as error:
            say(f"no drill can be run: {' '.join(str(error).split())}")
            return 1
        for drill in chosen:
            say(drill.title)
            results[drill.name] = play(drill, scene, say)
            say(f"{drill.name}: {results[drill.name].verdict} {results[drill.name].why}")
            write_text_atomic(kept, json.dumps({name: asdict(one) for name, one in results.items()}, indent=1))
            blanks = [Result(name=d.name, title=d.title, about=d.about, verdict="not run") for d in drills]
            write_text_atomic(file, page([results.get(blank.name, blank) for blank in blanks], facts(seconds)))
    finally:
        scene.close()
    return int(any(results[drill.name].verdict == "failed" for drill in chosen))


def _result(held: dict[str, object]) -> Result:
    steps = [Step(**{**step, "problems": tuple(step["problems"])}) for step in held.pop("steps")]  # type: ignore[attr-defined]
    return Result(**held, steps=tuple(steps))  # type: ignore[arg-type]


if __name__ == "__main__":
    os.chdir(PROJECT)
    sys.exit(main())
