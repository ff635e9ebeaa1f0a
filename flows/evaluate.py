"""How well does a bundle find and judge the nodules of scans it was not trained on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, unmapped
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.inner import inner_flow
from flows.progress import gather
from flows.revive import run_again_later
from flows.runners import MappedRunner
from flows.watched import watched
from lungml import compare
from lungml.devices import resolve_device
from lungml.drift_report import DriftReport
from lungml.gate import Decision, GateSettings
from lungml.home import Home
from lungml.recipes.data import PreparedScan, Split, of_split
from lungml.report_facts import Compared
from tasks.child import children_ended
from tasks.comparison import (
    BundleScore,
    EvaluatedScan,
    Evaluation,
    check_unseen,
    evaluation_key,
    log_evaluation,
    read_tree,
    without_folders,
)
from tasks.contenders import LooseModels, contenders
from tasks.data import convert_scan, publish_quarantine, warn_in_sum
from tasks.drift import watch_drift
from tasks.evaluation import SplitScore, log_end_to_end, score_findings
from tasks.finding import FoundScan, NamedBundle, find_nodules
from tasks.gate import gate, to_beat
from tasks.manifest import describe_bundle
from tasks.pipeline import Pipeline, TrainedModel
from tasks.promotion import OvertakenError
from tasks.reporting import WrittenReport, report_evaluation
from tasks.summaries import summarize_evaluation
from tasks.tracking import TrackingError
from tasks.truth import ScanTruth, data_name

HELD_OUT: tuple[Split, ...] = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What one pipeline run's bundle reached.

    Attributes:
        scores: on the validation and the test scans.
        reports: of the same.
        drift: whether scans and answers still are what the champion learned from.
        decision: the gate's; None where the bundle already stands where it could get.
    """

    scores: tuple[SplitScore, ...]
    reports: tuple[WrittenReport, ...]
    drift: DriftReport
    decision: Decision | None


# One scan at a time: the segmenter already uses every core.
@inner_flow(
    name="luna",
    flow_run_name="evaluate {bundle_uri}",
    task_runner=ThreadPoolTaskRunner(max_workers=1),
)
@watched
@children_ended()
def evaluate(
    scans: Sequence[PreparedScan],
    set_aside: Sequence[ScanTruth],
    bundle_uri: str,
    models: Sequence[TrainedModel],
    pipeline: Pipeline,
    gate_settings: GateSettings | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Score a bundle on validation and test scans, report and log it, and let it stand before the gate."""
    bundle, standing = NamedBundle.of(pipeline.home, bundle_uri), standing_bundle(bundle_uri, pipeline)
    found = {split: find_split(split, scans, bundle, pipeline) for split in HELD_OUT}
    val, test = (score_split(split, scans, found[split], set_aside, bundle, pipeline) for split in HELD_OUT)
    champion = score_standing(scans, set_aside, standing, pipeline)
    stores = {scan.series_uid: scan.store for scan in scans}
    beside = [against(test, standing, champion)] if standing and champion else []
    reports = tuple(
        report_evaluation(
            score.split,
            score.card,
            score.cases,
            stores,
            bundle,
            pipeline,
            data=data_name(score.card.series_uids, pipeline.origin),
            folder=pipeline.home.reports / "evaluations" / bundle.slug / score.split,
            compared=compared,
        )
        for score, compared in ((val, []), (test, beside))
    )
    drift = watch_drift(scans, [*found["val"], *found["test"]], bundle, standing, pipeline)
    run_id = log_end_to_end(
        (val, test),
        bundle_uri,
        models,
        pipeline,
        reports,
        drift=drift,
        scans=scans,
        set_aside=set_aside,
        parameters=parameters,
    )
    describe_bundle(bundle_uri, run_id, (val, test), pipeline)
    decision = None
    while decision is None and to_beat(pipeline.home, pipeline.origin) != bundle_uri:
        try:
            decision = gate(
                bundle_uri,
                standing.name if standing else None,  # whoever came meanwhile was not scored, and is not replaced
                test.card.samples,
                champion.card.samples if champion else None,
                series_uids=test.card.series_uids,
                malignant=test.table.malignant,
                set_aside=len(test.card.set_aside),
                pipeline=pipeline,
                settings=gate_settings,
            )
        except OvertakenError as error:  # another run was faster: judge against its bundle
            get_run_logger().warning("%s", error)
            standing = standing_bundle(bundle_uri, pipeline)
            champion = score_standing(scans, set_aside, standing, pipeline)
    summarize_evaluation(
        (val, test),
        bundle_uri,
        run_id,
        pipeline,
        champion=champion,
        champion_uri=standing.name if standing else None,
        decision=decision,
    )
    return Evaluated(scores=(val, test), reports=reports, drift=drift, decision=decision)


def standing_bundle(bundle_uri: str, pipeline: Pipeline) -> NamedBundle | None:
    """The bundle that another has to beat, where there is one whose models are still to be had."""
    beat = to_beat(pipeline.home, pipeline.origin)
    if beat is None or beat == bundle_uri:
        return None
    try:
        standing = NamedBundle.of(pipeline.home, beat)
        standing.build(pipeline.home, "cpu")  # only to see that it can be: no GPU is held here
    except TrackingError as error:
        get_run_logger().warning("%s cannot be scored beside %s: %s", beat, bundle_uri, error)
        return None
    return standing


def score_standing(
    scans: Sequence[PreparedScan], set_aside: Sequence[ScanTruth], standing: NamedBundle | None, pipeline: Pipeline
) -> SplitScore | None:
    """How the bundle to beat does on the test scans, where there is one."""
    if standing is None:
        return None
    return score_split("test", scans, find_split("test", scans, standing, pipeline), set_aside, standing, pipeline)


def against(score: SplitScore, other: NamedBundle, its_score: SplitScore) -> Compared:
    """A score beside another bundle's on the same scans."""
    return Compared(
        name="the other",
        bundle_uri=other.name,
        card=its_score.card,
        differences=compare.paired_differences(its_score.card.samples, score.card.samples),
    )


def find_split(
    split: Split, scans: Sequence[PreparedScan], bundle: NamedBundle, pipeline: Pipeline
) -> Sequence[FoundScan]:
    """What a bundle finds on one split's scans."""
    finding = find_nodules.map(of_split(scans, split), bundle=unmapped(bundle), pipeline=unmapped(pipeline))
    return gather(finding, f"finding nodules, {split}, {bundle.name}")


def score_split(
    split: Split,
    scans: Sequence[PreparedScan],
    found: Sequence[FoundScan],
    set_aside: Sequence[ScanTruth],
    bundle: NamedBundle,
    pipeline: Pipeline,
) -> SplitScore:
    """Score what was found on one split's scans, see `find_split`."""
    missing = [truth for truth in set_aside if truth.split == split]
    return score_findings(split, of_split(scans, split), found, missing, bundle, pipeline)


@inner_flow(name="luna", flow_run_name="convert", task_runner=MappedRunner())
@watched
def convert(truths: Sequence[ScanTruth]) -> tuple[EvaluatedScan, ...]:
    """The stores of some scans, whatever of them is not done yet: no masks, no crops, no scan that cannot be read."""
    home = Home.from_env()
    converted = gather(convert_scan.map(truths, home=unmapped(home)), "converting")
    publish_quarantine(truths, home)
    warn_in_sum(converted)
    return tuple(EvaluatedScan.of(stored) for stored in converted if stored)


def _judged() -> str:
    """evaluate models:/luna/1, models:/luna/2 on test"""
    given = flow_run.parameters
    return f"evaluate {', '.join(given['bundles']) or 'loose models'} on {given['split']}"


# One scan at a time: the segmenter already uses every core.
@flow(
    name="luna",
    flow_run_name=_judged,
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    on_failure=[run_again_later],
)
@watched
@children_ended()
def evaluate_bundles(
    bundles: list[str],
    luna_dir: str,
    tables_dir: str | None = None,
    split: Literal["all", "val", "test", "train"] = "all",
    device: str = "auto",
    seed: int = 0,
    out: str | None = None,
    loose: LooseModels | None = None,
) -> tuple[Evaluation, Path]:
    """Judge one bundle or several on a tree of scans, and each against the first, on the same resamples of the scans.

    Args:
        bundles: `models:/luna/N` or an alias each.
        luna_dir: holds `**/<series_uid>.mhd`; its series do not become training data by it.
        tables_dir: holds the csv tables, when they do not lie in `luna_dir`.
        split: which of the scans: all of them, which no bundle may have learned from, or one side of the home's split.
        device: auto, cpu or cuda.
        seed: of the resamples.
        out: folder of `evaluation.json`; under the home when not given.
        loose: models that no bundle holds, judged together after the bundles.

    Returns:
        what came out, and where it was written.
    """
    home, log = Home.from_env(), get_run_logger()
    resolve_device(device)  # one that is not there is told before any work
    folders = Path(luna_dir), Path(tables_dir) if tables_dir else None
    of_tree, tree = read_tree(*folders, split, home)
    named = contenders(home, bundles, loose)
    of_bundles = [check_unseen(tree, bundle, home) for bundle in named]
    notes = (*of_tree, *chain(*of_bundles))
    for note in notes:
        log.warning(note)
    scans = convert(tree.truths)
    pipeline = Pipeline(home=home, pipeline_id=str(flow_run.id), origin=tree.origin, seed=seed, device=device)
    read = {scan.series_uid for scan in scans}
    aside = [truth for truth in tree.truths if truth.series_uid not in read]
    scores = []
    for bundle in named:
        finding = find_nodules.map(scans, bundle=unmapped(bundle), pipeline=unmapped(pipeline))
        found = gather(finding, f"finding nodules with {bundle.name}")
        score = score_findings(tree.chosen, scans, found, aside, bundle, pipeline)
        scores.append(BundleScore(bundle=bundle, score=score))
    samples = [judged.score.card.samples for judged in scores]
    evaluation = Evaluation(
        tree=tree,
        bundles=tuple(scores),
        differences=tuple(compare.paired_differences(samples[0], other) for other in samples[1:]),
        seed=seed,
        set_aside=tuple(truth.series_uid for truth in aside),
        notes=without_folders(notes, *folders),
    )
    folder = Path(out) if out else home.reports / "evaluations" / evaluation_key(tree, named, seed)
    reports = [
        report_evaluation(
            tree.chosen,
            judged.score.card,
            judged.score.cases,
            {scan.series_uid: scan.store for scan in scans},
            judged.bundle,
            pipeline,
            data=tree.name,
            folder=folder / judged.bundle.slug,
            compared=[against(judged.score, scores[0].bundle, scores[0].score)] if place else [],
            notes=without_folders((*of_tree, *of_bundles[0], *of_bundles[place]), *folders),
        )
        for place, judged in enumerate(scores)
    ]
    return evaluation, log_evaluation(evaluation, folder, pipeline, reports)
