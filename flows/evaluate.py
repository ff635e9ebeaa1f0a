"""How well does a bundle find and judge the nodules of scans it was not trained on?"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import gather
from lungml.recipes.data import PreparedScan, of_split
from tasks.evaluation import SplitScore, find_nodules, log_end_to_end, score_findings
from tasks.training import Pipeline, TrainedModel
from tasks.truth import ScanTruth


# One scan at a time: the segmenter already uses every core.
@flow(
    name="luna",
    flow_run_name="evaluate",
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    validate_parameters=False,
)
def evaluate(
    scans: Sequence[PreparedScan],
    set_aside: Sequence[ScanTruth],
    bundle_uri: str,
    models: Sequence[TrainedModel],
    pipeline: Pipeline,
) -> tuple[SplitScore, ...]:
    """Find the nodules of the validation and test scans, score them, and log the pipeline's row."""
    scores = []
    for split in ("val", "test"):
        chosen = of_split(scans, split)
        finding = find_nodules.map(chosen, bundle_uri=unmapped(bundle_uri), pipeline=unmapped(pipeline))
        found = gather(finding, f"finding nodules, {split}")
        missing = [truth for truth in set_aside if truth.split == split]
        scores.append(score_findings(split, chosen, found, missing, bundle_uri, pipeline))
    log_end_to_end(scores, bundle_uri, models, pipeline)
    return tuple(scores)
