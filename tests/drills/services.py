"""Does `luna up` bring a run through the death of what it started, and of itself?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil

from tests.drills import moments, outcome, recorded
from tests.drills.page import Step
from tests.drills.programs import PATIENCE_S, DrillError, Program, end_all, free_port, living, wait_until
from tests.drills.scene import MINED, Scene

DEPLOYMENT = "luna/end-to-end"
TAKEN_UP_S = 300.0


class Up:
    """`luna up` on free ports.

    Args:
        scene: where.
        ports: of Prefect and MLflow; those of an earlier life, to be found again.
    """

    def __init__(self, scene: Scene, ports: tuple[int, int] | None = None) -> None:
        self.scene = scene
        self.ports = ports or (free_port(), free_port())
        self.api = f"http://127.0.0.1:{self.ports[0]}/api"
        arguments = ("up", "--prefect-port", str(self.ports[0]), "--mlflow-port", str(self.ports[1]))
        self.program: Program = scene.luna("luna up", *arguments)
        self.program.until(lambda: "Ctrl-C stops everything" in self.program.text, "up")

    def ask_for_run(self) -> str:
        """Ask for a run of the pipeline; returns its id."""
        return recorded.ask_for_run(self.api, DEPLOYMENT, {**self.scene.parameters, "fresh": False})

    def state(self, run_id: str) -> str:
        """The name of a run's state; how the question failed where the server is away."""
        try:
            return str(recorded.flow_run(self.api, run_id)["state_name"])
        except httpx.HTTPError as error:
            return type(error).__name__

    def until(self, moment: moments.Moment, what: str) -> None:
        """Wait for a moment of the run."""
        self.program.until(lambda: moment(self.scene.home), what, PATIENCE_S)

    def until_state(self, run_id: str, wanted: str, seconds: float) -> float:
        """Wait for a run's state; returns the seconds it took."""
        took = wait_until(lambda: self.state(run_id) in (wanted, *BAD_ENDS), f"the run is {wanted}", seconds)
        if self.state(run_id) != wanted:
            run = recorded.flow_run(self.api, run_id)
            raise DrillError(f"the run is {run['state_name']}, not {wanted}: {run['state']['message']}")
        return took

    def processes(self, *words: str) -> list[psutil.Process]:
        """The processes whose command holds all of some words."""
        return [process for process in living(self.scene.mark) if set(words) <= set(process.cmdline())]

    def kill(self, *words: str) -> None:
        """`kill -9` of those."""
        found = self.processes(*words)
        if not found:
            raise DrillError(f"no process `{' '.join(words)}` to kill")
        for process in found:
            process.kill()

    def compared(self, since: str, did: str) -> Step:
        """The last step: everything as if nothing had happened."""
        counts = recorded.task_states(self.api, since)
        return Step(
            did=did,
            saw=f"{recorded.in_words(counts)}; compared with the undisturbed run",
            problems=tuple(self.scene.judge(MINED, since, api=self.api)),
        )


ON_ITS_WAY = ("Running", "AwaitingRetry", "Completed")
BAD_ENDS = ("Failed", "Crashed", "Cancelled", "Completed")


@contextmanager
def luna_up(scene: Scene) -> Iterator[Up]:
    """`luna up` in a home where the nodule classifier is the next to be trained; ended at the end."""
    scene.begin(MINED)
    up = Up(scene)
    try:
        yield up
    finally:
        end_all(scene.mark)


def worker(scene: Scene) -> Iterator[Step]:
    """Kill the worker while a run of it trains."""
    yield from _killed(scene, ("worker", "start"), "the worker", "demo-nodule")


def server(scene: Scene) -> Iterator[Step]:
    """Kill the Prefect server while a run trains."""
    yield from _killed(scene, ("server", "start"), "the Prefect server", "demo-nodule")


def _killed(scene: Scene, words: tuple[str, ...], what: str, model: str) -> Iterator[Step]:
    with luna_up(scene) as up:
        since = recorded.now()
        run_id = up.ask_for_run()
        up.until(moments.learned(model, 1), f"training {model}")
        up.kill(*words)
        up.program.until(lambda: up.processes(*words), "starting it again", TAKEN_UP_S)
        wait_until(lambda: up.state(run_id) in ON_ITS_WAY, "the run is on its way", TAKEN_UP_S)
        yield Step(
            did=f"kill -9 of {what} while the nodule classifier was trained",
            saw=f"`luna up` started it again; the run is {up.state(run_id)}",
        )
        up.until_state(run_id, "Completed", PATIENCE_S)
        yield up.compared(since, "waited for the run's end")


def cancel(scene: Scene) -> Iterator[Step]:
    """Cancel a run while it trains; ask for another."""
    with luna_up(scene) as up:
        since = recorded.now()
        run_id = up.ask_for_run()
        up.until(moments.learned("demo-nodule", 1), "training the nodule classifier")
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        httpx.post(f"{up.api}/flow_runs/{run_id}/set_state", json=body, timeout=30.0).raise_for_status()
        took = up.until_state(run_id, "Cancelled", TAKEN_UP_S)
        wait_until(lambda: not up.processes("lungml.job"), "the training process is gone", 30.0)
        statuses = outcome.runs_by_status(scene.home)
        problems = outcome.loose_ends(scene.home)
        problems += [] if {"KILLED", "FAILED"} & statuses.keys() else ["its MLflow run is neither KILLED nor FAILED"]
        running = [name for name, state in recorded.flow_states(up.api, since) if state == "Running"]
        problems += [f"flow runs stay Running: {', '.join(running)}"] if running else []
        yield Step(
            did="set the run to Cancelling while it trained",
            saw=f"Cancelled after {took:.0f} s; MLflow runs: "
            + ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())),
            problems=tuple(problems),
        )
        up.until_state(up.ask_for_run(), "Completed", PATIENCE_S)
        yield up.compared(since, "asked for another run: the deployment's slot was free")


def reboot(scene: Scene) -> Iterator[Step]:
    """Kill everything at once while a run trains; start `luna up` again."""
    with luna_up(scene) as up:
        since = recorded.now()
        run_id = up.ask_for_run()
        up.until(moments.learned("demo-nodule", 1), "training the nodule classifier")
        count = len(living(scene.mark))
        end_all(scene.mark)
        yield Step(
            did=f"kill -9 of all {count} processes at once while the nodule classifier was trained",
            saw="MLflow runs: " + ", ".join(f"{n} {s}" for s, n in sorted(outcome.runs_by_status(scene.home).items())),
        )
        again = Up(scene, up.ports)
        again.until_state(run_id, "Completed", PATIENCE_S)
        yield again.compared(since, "started `luna up` again, and nothing else")
