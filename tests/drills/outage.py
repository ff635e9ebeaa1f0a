"""Does an MLflow server that goes away take anything with it?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from tests.drills import moments, recorded
from tests.drills.page import Step
from tests.drills.programs import Program, answers, free_port
from tests.drills.scene import PREPARED, Scene

AWAY_S = 15.0
PATIENCE_S = 300


def mlflow_away(scene: Scene) -> Iterator[Step]:
    """Let the server be away when the pipeline begins, while it trains, and while it logs the evaluation."""
    scene.begin(PREPARED)
    since, port = recorded.now(), free_port()
    url = f"http://127.0.0.1:{port}"
    program = scene.pipeline(MLFLOW_TRACKING_URI=url, LUNA_MLFLOW_PATIENCE_S=str(PATIENCE_S))
    program.until(lambda: "no MLflow answers" in program.text, "saying that no MLflow answers")
    time.sleep(AWAY_S)
    said = next(line for line in program.text.splitlines() if "no MLflow answers" in line)
    server = serve(scene, port)
    yield Step(did="began without a server; started it later", saw=said)

    program.until(lambda: moments.learned("demo-unet", 1)(scene.home), "training the U-Net")
    server.kill_session()
    program.until(lambda: "demo-unet 2/2" in program.text, "through the next epoch")
    time.sleep(AWAY_S)
    problems = ("the pipeline ended",) if program.ended else ()
    server = serve(scene, port)
    yield Step(
        did="kill -9 of the server while the U-Net was trained; started it again",
        saw="the training went on to its next epoch without it",
        problems=problems,
    )

    program.until(lambda: moments.logging_row(scene.home), "logging the evaluation")
    server.kill_session()
    time.sleep(AWAY_S)
    problems = ("the pipeline ended",) if program.ended else ()
    server = serve(scene, port)
    yield Step(
        did="kill -9 of the server while the evaluation was logged; started it again",
        saw="the pipeline waited",
        problems=problems,
    )
    program.succeed()
    yield Step(
        did="let the pipeline come to its end",
        saw=f"{recorded.in_words(recorded.task_states(scene.api, since))}; compared with the undisturbed run",
        problems=tuple(scene.judge(PREPARED, since)),
    )


def serve(scene: Scene, port: int) -> Program:
    """Start an MLflow server on the home's database; it keeps its clients' artifacts under the home."""
    root = scene.home.root
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", f"{root}/mlartifacts"]
    env = scene.env(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    log = scene.folder / "logs" / "mlflow.log"
    server = Program("the MLflow server", command, env, scene.folder, log)
    server.until(lambda: answers(f"http://127.0.0.1:{port}/health"), "answering")
    return server
