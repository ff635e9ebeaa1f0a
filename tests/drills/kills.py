"""Does `kill -9` of the pipeline cost more than the work in hand, wherever it falls?"""

from __future__ import annotations

from collections.abc import Iterator

from tests.drills import moments, outcome, recorded
from tests.drills.moments import Moment
from tests.drills.page import Step
from tests.drills.scene import EMPTY, TRAINED, Scene

WHOLE = "end-to-end"  # so the flow run's name begins
STAGES: tuple[tuple[str, Moment], ...] = (
    ("converting scans", moments.converting),
    ("drawing masks", moments.drawing_masks),
    ("cutting crops", moments.cutting_crops),
    ("in the middle of training the U-Net", moments.learned("demo-unet", 1)),
    ("logging the U-Net", moments.keeping_model("demo-unet")),
    ("mining candidates", moments.mining),
    ("in the middle of training the nodule classifier", moments.learned("demo-nodule", 1)),
    ("in the middle of fine-tuning for malignancy", moments.learned("demo-malignancy-finetuned", 1)),
    ("in the middle of training malignancy from scratch", moments.learned("demo-malignancy-scratch", 1)),
    ("asking the bundle for calibration", moments.asking),
    ("registering the bundle", moments.registering),
    ("writing the reports", moments.reporting),
    ("logging the evaluation", moments.logging_row),
    ("recording the gate's decision", moments.recording_gate),
)


def each_stage(scene: Scene) -> Iterator[Step]:
    """Kill the pipeline in one stage after the other, in one home, and let it finish at last."""
    scene.begin(EMPTY)
    since = recorded.now()
    for stage, moment in STAGES:
        began, program = recorded.now(), scene.pipeline()
        program.until(lambda moment=moment: moment(scene.home), stage)
        program.kill()
        statuses = outcome.runs_by_status(scene.home)
        halves = len(moments.half_written(scene.home.root))
        orphans = scene.orphans()
        seen = [f"{halves} half-written beside the whole files", f"MLflow runs: {_in_words(statuses)}"]
        told = [state for name, state in recorded.flow_states(scene.api, began) if name.startswith(WHOLE)]
        seen += [f"Prefect says {state}" for state in told]
        seen += [] if orphans else ["no process lived on"]
        yield Step(did=f"kill -9 while {stage}", saw="; ".join(seen), problems=(orphans,) if orphans else ())
    yield finish(scene, EMPTY, since, "ran it again to its end")


def promotion(scene: Scene) -> Iterator[Step]:
    """Kill the pipeline between the first and the last alias of a promotion."""
    scene.begin(TRAINED)
    since = recorded.now()
    program = scene.pipeline()
    program.until(lambda: moments.moving_aliases(scene.home), "moving aliases")
    program.kill()
    moved = [
        f"@{alias} of {name}"
        for name, alias in moments.ask(scene.home.mlflow_db, "select name, alias from registered_model_aliases")
    ]
    problems = ["luna bears @demo: the kill came too late"] if moments.promoted(scene.home) else []
    yield Step(
        did="kill -9 after a promotion was written down, before `luna` bears @demo",
        saw=f"moved so far: {', '.join(moved) or 'nothing'}",
        problems=tuple(problems),
    )
    yield finish(scene, TRAINED, since, "ran it again")
    borne = {n for (n,) in moments.ask(scene.home.mlflow_db, "select name from registered_model_aliases")}
    wanted = {"luna", "luna-segmentation", "luna-classification", "luna-malignancy"}
    yield Step(
        did="looked at the registry",
        saw=f"@demo is borne by {', '.join(sorted(borne))}",
        problems=() if wanted <= borne else (f"no alias on {', '.join(sorted(wanted - borne))}",),
    )


def finish(scene: Scene, began_with: str, since: str, did: str, **more: str) -> Step:
    """Run the pipeline to its end and compare."""
    last = recorded.now()
    scene.pipeline(**more).succeed()
    counts = recorded.task_states(scene.api, last)
    return Step(
        did=did,
        saw=f"{recorded.in_words(counts)}; compared with the undisturbed run",
        problems=tuple(scene.judge(began_with, since, last=last)),
    )


def _in_words(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
