"""How well does a bundle do, end to end, on scans it was not trained on?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from lungml.drift_report import DriftReport
from lungml.evidence import Evidence
from lungml.froc import FPS_PER_SCAN, FrocResult
from lungml.recipes.data import PreparedScan
from lungml.score import Table
from lungml.scorecard import Scorecard, score_scans
from lungml.worst_cases import Case, choose_worst
from tasks import tracking
from tasks.corrections import metrics_of
from tasks.drift import log_drift
from tasks.finding import FoundScan, Known, NamedBundle, Readable, gather_evidence, slug_of
from tasks.pipeline import Pipeline, TrainedModel
from tasks.recorded import log_recorded
from tasks.reporting import Chosen, WrittenReport
from tasks.truth import ScanTruth

ASKED = ("recipe", "val_stride")  # of a run's parameters, what two runs are told apart by; all are in a file


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """One bundle on one split, or on the scans of several: everything that is known of how well it did.

    Attributes:
        split: which.
        card: every score.
        cases: the worst of them, to be looked at one by one.
    """

    split: Chosen
    card: Scorecard
    cases: tuple[Case, ...] = ()

    @property
    def table(self) -> Table:
        """The report's."""
        return self.card.table

    @property
    def froc(self) -> FrocResult:
        """The challenge's official score."""
        return self.card.froc

    @property
    def cpm_band(self) -> tuple[float, float]:
        """95 % band of the CPM; NaN where too few scans tell, see `lungml.compare.Sampled.tells`."""
        return self.froc.cpm_band if self.card.samples["cpm"].tells else (math.nan, math.nan)

    @property
    def metrics(self) -> dict[str, float]:
        """What MLflow charts."""
        card, table, result = self.card, self.card.table, self.card.froc
        by_fps = {f"sensitivity_at_{fps:g}_fps": value for fps, value in zip(FPS_PER_SCAN, result.sensitivity_at)}
        touched = {}
        if card.segmentation is not None:
            touched = {
                "pixel_precision": card.segmentation.precision,
                "pixel_recall": card.segmentation.recall,
                "pixel_f1": card.segmentation.f1,
                "nodules_touched": card.segmentation.touched,
                "nodule_dice": card.segmentation.mean_dice,
            }
        return {
            "cpm": result.cpm,
            "cpm_low": self.cpm_band[0],
            "cpm_high": self.cpm_band[1],
            **by_fps,
            "nodules": table.nodules,
            "found": table.found,
            "malignant": table.malignant,
            "malignant_flagged": table.malignant_flagged,
            "false_positives_per_scan": table.false_positives / table.scans,
            "candidates_per_scan": card.funnel.candidates,
            "malignancy_auc": card.samples["malignancy_auc"].observed,
            "diameter_auc": card.samples["diameter_auc"].observed,
            "end_to_end_malignancy_auc": card.samples["end_to_end_malignancy_auc"].observed,
            "malignant_sensitivity": card.samples["malignant_sensitivity"].observed,
            "malignancy_over_diameter_low": card.over_diameter.band[0],
            "malignancy_over_diameter_high": card.over_diameter.band[1],
            **{f"lost_to_{stage}": count for stage, count in card.losses.lost.items()},
            **touched,
        }


@task(name="score_findings", task_run_name="score {split} {bundle.name}", cache_policy=NO_CACHE)
def score_findings(
    split: Chosen,
    scans: Sequence[Readable],
    found: Sequence[FoundScan],
    set_aside: Sequence[Known],
    bundle: NamedBundle,
    pipeline: Pipeline,
) -> SplitScore:
    """Score a bundle on some scans; the nodules of those that were set aside count as missed."""
    evidence = gather_evidence(scans, found, set_aside, bundle)
    card = score_scans(
        evidence,
        nodule_threshold=bundle.fields["nodule_threshold"],
        malignant_threshold=bundle.fields["malignant_threshold"],
        seed=pipeline.seed,
    )
    return score_of(split, card, evidence)


def score_of(split: Chosen, card: Scorecard, evidence: Sequence[Evidence]) -> SplitScore:
    """A score and its worst cases; the evidence, every finding of every scan, stays behind."""
    cases = choose_worst(evidence, card.nodule_threshold, card.malignant_threshold)
    return SplitScore(split=split, card=card, cases=tuple(cases))


@task(name="log_end_to_end", task_run_name="log {bundle_uri}", cache_policy=NO_CACHE)
def log_end_to_end(
    scores: Sequence[SplitScore],
    bundle_uri: str,
    models: Sequence[TrainedModel],
    pipeline: Pipeline,
    reports: Sequence[WrittenReport] = (),
    *,
    scans: Sequence[PreparedScan] = (),
    set_aside: Sequence[ScanTruth] = (),
    parameters: Mapping[str, Any] | None = None,
    drift: DriftReport | None = None,
) -> str:
    """One row in `luna-end-to-end`: the bundle, its members and what they reach together; returns the run's id.

    Where `parameters` are given, see `tasks.recorded.told_parameters`, what it takes to make the bundle again is kept
    as well: they, and the data, which are `scans` and those `set_aside`.
    """
    with tracking.open_run(
        pipeline.home,
        "end-to-end",
        name=slug_of(bundle_uri),
        pipeline_id=pipeline.pipeline_id,
        params={
            "bundle": bundle_uri,
            **{stage: ", ".join(m.uri for m in models if m.stage == stage) for stage in {m.stage for m in models}},
            "seed": str(pipeline.seed),
            "origin": pipeline.origin,
            **{name: str(value) for name, value in (parameters or {}).items() if name in ASKED},
        },
        tags={"luna.origin": pipeline.origin},
        sample_every_s=None,  # it is open for a moment: all the work was done before
    ) as run:
        if parameters is not None:
            log_recorded(run, pipeline, scans, set_aside, parameters)
            run.log_metrics(metrics_of(pipeline.corrections))
        for score in scores:
            log_score(run, score, score.split)
        for report in reports:
            run.log_files(report.folder, report.split)
        if reports:
            run.log_tag(tracking.RUN_NOTE, reports[-1].markdown)
        if drift:
            log_drift(run, drift)
        return run.run_id


def log_score(run: tracking.Run, score: SplitScore, under: str) -> None:
    """Keep a score with a run: metrics to chart, and everything as files below `under`."""
    run.log_metrics({f"{under}/{name}": value for name, value in score.metrics.items()})
    run.log_text(json.dumps(score.card.as_dict(), indent=1, allow_nan=False), f"{under}/scorecard.json")
    run.log_text(score.table.to_text(), f"{under}/table.txt")
