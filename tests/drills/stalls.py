"""Is a training that lives and says nothing noticed?"""

from __future__ import annotations

from collections.abc import Iterator

from tests.drills import moments, recorded
from tests.drills.page import Step
from tests.drills.programs import DrillError, living
from tests.drills.scene import MINED, Scene

STALL_S = 20


def hang(scene: Scene) -> Iterator[Step]:
    """Stop the process that trains, and nothing else."""
    scene.begin(MINED)
    since = recorded.now()
    program = scene.pipeline(LUNA_STALL_S=str(STALL_S))
    program.until(lambda: moments.learned("demo-nodule", 1)(scene.home), "training the nodule classifier")
    training = [process for process in living(scene.mark) if "lungml.job" in process.cmdline()]
    if not training:
        raise DrillError("no training process is there to stop")
    for process in training:
        process.suspend()
    program.until(lambda: not any(process.is_running() for process in training), "rid of the one that hangs")
    yield Step(did=f"SIGSTOP to the training process, LUNA_STALL_S={STALL_S}", saw="it was ended")
    program.succeed()
    counts = recorded.task_states(scene.api, since)
    yield Step(
        did="let the pipeline come to its end",
        saw=f"{recorded.in_words(counts)}; compared with the undisturbed run",
        problems=tuple(scene.judge(MINED, since)),
    )
