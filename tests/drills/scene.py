"""Where does a drill play: which home, which code, which scans, and what would have come out undisturbed?

Everything lies in one folder. All drills use one home, since MLflow keeps absolute paths: before a drill it is put back
to how the undisturbed run had left it at some point (a scene), so that a drill need not live through all of a pipeline.
The code is a copy, so that an edit during a drill is none of its disturbances.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungml.files import write_text_atomic
from lungml.home import Home
from lungml.phantom import PhantomSettings, write_phantoms
from tests.drills import moments, outcome, recorded
from tests.drills.programs import (
    GONE_S,
    MARK,
    DrillError,
    Program,
    answers,
    clean_environment,
    end_all,
    free_port,
    living,
    wait_until,
)

PROJECT = Path(__file__).resolve().parents[2]
CODE = ("flows", "tasks", "lungml", "prefect.yaml", "pyproject.toml")
PHANTOMS = PhantomSettings(size_irc=(40, 96, 96), nodules=(3, 4), malignant_share=0.5, negatives_per_nodule=6)
SCANS, SEED, STRIDE = 9, 3, 4  # three validate, two test, four train
# The demo's recipe in seconds; the U-Net learns just enough not to mark every voxel.
SETTINGS: Mapping[str, Any] = {
    "segmentation.fit.epochs": 2,
    "segmentation.fit.samples_per_epoch": 480,
    "segmentation.fit.validate_every": 2,
    "classification.fit.epochs": 2,
    "classification.fit.samples_per_epoch": 64,
    "classification.fit.validate_every": 2,
    "finetuned.fit.epochs": 2,
    "finetuned.fit.samples_per_epoch": 48,
    "finetuned.fit.validate_every": 2,
    "scratch.fit.epochs": 2,
    "scratch.fit.samples_per_epoch": 48,
    "scratch.fit.validate_every": 2,
}
LUNA = "import sys; from flows.cli import main; sys.argv[0] = 'luna'; main()"
EMPTY, PREPARED, MINED, TRAINED, FINISHED = "empty", "prepared", "mined", "trained", "finished"
DONE = {EMPTY: 0, PREPARED: 3, MINED: 5, TRAINED: 7, FINISHED: 8}  # so many of `recorded.WORK`, in that order


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The undisturbed run.

    Attributes:
        outcome: what it came to.
        seconds: that it took.
        completed: task -> task runs that ended as Completed.
        total: task -> task runs.
    """

    outcome: outcome.Outcome
    seconds: float
    completed: Mapping[str, int]
    total: Mapping[str, int]

    def left(self, scene: str) -> dict[str, int]:
        """Task -> task runs that a scene leaves to be done."""
        done = recorded.WORK[: DONE[scene]]
        return {task: 0 if task in done else count for task, count in self.completed.items()}


class Scene:
    """The folder of all drills, with a Prefect server of its own.

    Args:
        folder: absolute; what is there already is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, Home(folder / "home")
        self.code, self.luna_dir, self.scenes = folder / "code", folder / "luna16", folder / "scenes"
        self.mark = str(folder)
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.started: list[Program] = []
        self._server: Program | None = None
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference:
        """The undisturbed run; only once `make_ready` was called."""
        assert self._reference is not None
        return self._reference

    @property
    def commit(self) -> str:
        """That the copied code was at."""
        return (self.folder / "commit").read_text()

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the flow `end_to_end`."""
        return {
            "luna_dir": str(self.luna_dir),
            "recipe": "demo",
            "val_stride": STRIDE,
            "device": "cpu",
            "overrides": dict(SETTINGS),
        }

    def env(self, **more: str) -> dict[str, str]:
        """The environment of what runs in the home."""
        base = {"HOME": str(self.folder / "user"), "PYTHONPATH": str(self.code), "LUNA_HOME": str(self.home.root)}
        return clean_environment(**base, **{MARK: self.mark}, **more)

    def luna(self, name: str, *arguments: str, prefix: Sequence[str] = (), **more: str) -> Program:
        """Start `luna arguments`, with further environment variables, behind another command's words if need be."""
        command = [*prefix, sys.executable, "-c", LUNA, *arguments]
        log = self.folder / "logs" / f"{len(self.started):03} {name}.log"
        self.started.append(Program(name, command, self.env(**more), self.code, log))
        return self.started[-1]

    def pipeline(self, name: str = "the pipeline", *, prefix: Sequence[str] = (), **more: str) -> Program:
        """Start the whole pipeline as a user does."""
        arguments = ["run", "--luna-dir", str(self.luna_dir), "--recipe", "demo", "--val-stride", str(STRIDE)]
        arguments += ["--device", "cpu"]
        for setting, value in SETTINGS.items():
            arguments += ["--set", f"{setting}={value}"]
        return self.luna(name, *arguments, prefix=prefix, **{"PREFECT_API_URL": self.api, **more})

    def begin(self, scene: str) -> None:
        """End whatever a drill before left running and put the home back to a scene."""
        end_all(self.mark)
        shutil.rmtree(self.home.root, ignore_errors=True)
        if scene != EMPTY:
            shutil.copytree(self.scenes / scene, self.home.root, symlinks=True)

    def keep(self, scene: str) -> None:
        """Keep the home as it is now as a scene."""
        shutil.rmtree(self.scenes / scene, ignore_errors=True)
        shutil.copytree(self.home.root, self.scenes / scene, symlinks=True)

    def judge(
        self, scene: str, since: str, *, last: str | None = None, api: str | None = None, at_once: int = 1
    ) -> list[str]:
        """What is wrong at the end of a drill, a line each; none where all is as if nothing had happened.

        Args:
            scene: that the drill began with.
            since: when it began; what was Completed from then on must not be more than the scene left to be done.
            last: when its last run began, in which every task must have been Completed or found Cached.
            api: of the Prefect server that knows the runs.
            at_once: how many runs went on at once: each may do what is done scan by scan, a training is done once.
        """
        left = self.reference.left(scene)
        allowed = {task: count if task.startswith("train_") else count * at_once for task, count in left.items()}
        problems = [*self.judge_outcome(), *outcome.doubles(self.home)]
        problems += recorded.repeated(recorded.task_states(api or self.api, since), allowed)
        if last:
            states = recorded.task_states(api or self.api, last)
            for task, wanted in self.reference.total.items():
                seen = states.get(task, Counter())
                if seen["Completed"] + seen["Cached"] != wanted:
                    problems.append(f"{task} ended as {dict(seen)} in the last run, {wanted} were wanted")
        return problems

    def judge_outcome(self) -> list[str]:
        """What of the home is not as the undisturbed run left it, or hangs loose, a line each."""
        differing = outcome.differences(outcome.Outcome.of(self.home), self.reference.outcome)
        return [*differing, *outcome.loose_ends(self.home)]

    def orphans(self) -> str:
        """Wait for what outlived a kill to end by itself; a line where it does not, else empty."""
        with suppress(DrillError):
            wait_until(lambda: not living(self.mark), "every process gone", GONE_S)
        left = living(self.mark)
        names = [" ".join(process.cmdline())[-60:] for process in left]
        return f"{len(left)} processes live on, such as {names[0]}" if left else ""

    def make_ready(self) -> Reference:
        """Start the server; draw the scans and run the undisturbed pipeline where that was not done in this folder."""
        kept = self.folder / "reference.json"
        if not kept.exists():
            self._copy_code()
            write_phantoms(self.luna_dir, scans=SCANS, seed=SEED, settings=PHANTOMS, workers=2)
        self.start_server()
        if not kept.exists():
            write_text_atomic(kept, json.dumps(self._undisturbed(), indent=1))
        held = json.loads(kept.read_text())
        self._reference = Reference(**{**held, "outcome": outcome.Outcome(**held["outcome"])})
        return self._reference

    def start_server(self) -> None:
        """Start the standing Prefect server, or start it again."""
        env = clean_environment(
            HOME=str(self.folder / "user"),
            PREFECT_HOME=str(self.folder / "server"),
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            **{MARK: f"{self.mark} server"},
        )
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        (self.folder / "user").mkdir(parents=True, exist_ok=True)
        self._server = Program("the server", command, env, self.folder, self.folder / "logs" / "server.log")
        self._server.until(lambda: answers(f"{self.api}/health"), "answering")

    def close(self) -> None:
        """End every process of the drills."""
        end_all(self.mark)
        if self._server:
            self._server.process.terminate()
            with suppress(DrillError):
                self._server.finish(GONE_S)
        end_all(f"{self.mark} server")

    def _copy_code(self) -> None:
        self.code.mkdir(parents=True, exist_ok=True)
        for name in CODE:
            source = PROJECT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, self.code / name, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy2(source, self.code / name)
        write_text_atomic(self.folder / "commit", code_commit())

    def _undisturbed(self) -> dict[str, Any]:
        """Run the pipeline, and keep its home at some points while it stands still for a moment."""
        self.begin(EMPTY)
        since, start = recorded.now(), time.monotonic()
        program, kept_still = self.pipeline("the undisturbed run"), 0.0
        for scene, moment in (
            (PREPARED, lambda: "scans prepared (" in program.text),
            (MINED, lambda: moments.mined(self.home) == 4),
            (TRAINED, lambda: len(list(self.home.checkpoints.glob("malignancy/*/finished.json"))) == 2),
        ):
            program.until(moment, scene)
            before = time.monotonic()
            with program.paused():
                self.keep(scene)
            kept_still += time.monotonic() - before
        program.succeed()
        seconds = time.monotonic() - start - kept_still
        self.keep(FINISHED)
        states = recorded.task_states(self.api, since)
        completed = {task: states[task]["Completed"] for task in recorded.WORK}
        reached = outcome.Outcome.of(self.home)
        if not (reached.weights and reached.metrics and reached.bundle and reached.scorecards and reached.findings):
            raise DrillError("the undisturbed run left no models, metrics, bundle, scorecards or findings")
        total = {task: sum(states[task].values()) for task in recorded.WORK}
        return {"outcome": reached.as_dict(), "seconds": seconds, "completed": completed, "total": total}


def code_commit() -> str:
    """The commit this code is at, shortened, with `-dirty` where files differ; empty without git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        answer = subprocess.run(describe, cwd=PROJECT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
