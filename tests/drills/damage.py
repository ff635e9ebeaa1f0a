"""Is what was damaged between two runs made again, and nothing else?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.drills import moments, recorded
from tests.drills.kills import finish
from tests.drills.page import Step
from tests.drills.programs import DrillError
from tests.drills.scene import FINISHED, MINED, Scene


def outputs(scene: Scene) -> Iterator[Step]:
    """Cut files of several kinds in half, and run again."""
    for did, patterns, made_again in (
        (
            "a chunk of a scan's store, a scan's crops, a scan's answers and another one's findings",
            (
                "scans/*.zarr/volume/c/**/*",
                "crops/judged*.zarr/*/crops/c/**/*",
                "reports/answers/*/*/answers.npz",
                "reports/findings/*/*/findings.csv",
            ),
            ("convert_scan", "build_mask", "cache_crops", "find_nodules"),
        ),
        (
            "the weights of a malignancy classifier, where MLflow keeps them",
            ("mlruns/luna-malignancy/models/*/artifacts/**/weights.safetensors",),
            ("train_malignancy",),
        ),
    ):
        scene.begin(FINISHED)
        for pattern in patterns:
            file = _first(scene, pattern)
            os.truncate(file, file.stat().st_size // 2)
        last = recorded.now()
        scene.pipeline().succeed()
        counts = recorded.task_states(scene.api, last)
        again = {task: counts[task]["Completed"] for task in recorded.WORK if counts[task]["Completed"]}
        yield Step(
            did=f"truncated {did}, ran again",
            saw=f"made again: {', '.join(f'{task} {count}' for task, count in again.items()) or 'nothing'}",
            problems=(
                *(f"{task} was not done again" for task in made_again if task not in again),
                *scene.judge_outcome(),
            ),
        )


def checkpoint(scene: Scene) -> Iterator[Step]:
    """Kill a training, cut its checkpoint short, and run again."""
    scene.begin(MINED)
    since = recorded.now()
    program = scene.pipeline()
    program.until(lambda: moments.learned("demo-nodule", 1)(scene.home), "training the nodule classifier")
    program.kill()
    scene.orphans()
    file = _first(scene, "checkpoints/classification/*/last.pt")
    os.truncate(file, file.stat().st_size // 2)
    yield Step(did="kill -9 while training the nodule classifier, truncated its last.pt", saw="a damaged checkpoint")
    step = finish(scene, MINED, since, "ran it again")
    warned = "damaged" in scene.started[-1].text
    yield Step(
        did=step.did,
        saw=f"{'a warning of the damage; ' if warned else ''}{step.saw}",
        problems=(*step.problems, *(() if warned else ("nothing was said of the damage",))),
    )


def _first(scene: Scene, pattern: str) -> Path:
    files = sorted(file for file in scene.home.root.glob(pattern) if file.is_file() and file.stat().st_size > 1)
    if not files:
        raise DrillError(f"there is no {pattern} to damage")
    return files[0]
