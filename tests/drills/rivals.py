"""Do two pipelines in one home get in each other's way?"""

from __future__ import annotations

from collections.abc import Iterator

from tests.drills import moments, recorded
from tests.drills.page import Step
from tests.drills.scene import EMPTY, Scene


def two_at_once(scene: Scene) -> Iterator[Step]:
    """Start two equal pipelines on an empty home."""
    scene.begin(EMPTY)
    since = recorded.now()
    both = [scene.pipeline(f"pipeline {number}") for number in (1, 2)]
    for program in both:
        program.succeed()
    counts = recorded.task_states(scene.api, since)
    [(versions,)] = moments.ask(scene.home.mlflow_db, "select count(*) from model_versions where name = 'luna'")
    yield Step(
        did="started two, waited for both",
        saw=f"{recorded.in_words(counts)} of both together; {versions} version of the bundle",
        problems=tuple(scene.judge(EMPTY, since, at_once=2)),
    )
