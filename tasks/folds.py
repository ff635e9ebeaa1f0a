"""What do the models of several folds reach together, each on the scans that it never saw?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lungml.calibration import Calibration
from lungml.findings import read_findings
from lungml.folds import FoldError, Folds, read_folds
from lungml.home import Home
from lungml.leaks import LeakError
from lungml.recipes.data import PreparedScan
from lungml.score import Table, Thresholds, score_table
from lungml.scorecard import Evidence, score_scans
from tasks import registry, tracking
from tasks.caching import digest
from tasks.evaluation import SplitScore, log_score, score_of
from tasks.finding import FoundScan, NamedBundle, gather_evidence
from tasks.pipeline import Pipeline
from tasks.provenance import CHOSE, LEARNED, used_by
from tasks.reporting import WrittenReport, report_evaluation
from tasks.truth import ScanTruth, data_name

# What a model did with a scan, and the side that the fold has it on, so that it must not have.
FORBIDDEN = {(LEARNED, "val"), (LEARNED, "test"), (CHOSE, "test")}
HOLDS = {"val": "validates", "test": "tests"}
POOLED = "cross-validation"  # what the bundles of all folds are called together
OWN_BUNDLES = (
    "Every scan is judged by its own fold's bundle, whose models never saw it, at that bundle's thresholds. One curve "
    "ranks the probabilities of all bundles together: where these mean different things, it may lie below the curve of "
    "each bundle alone."
)


@dataclass(frozen=True, kw_only=True)
class FoldEvidence:
    """What one fold's bundle says of the scans that the fold tests; its findings lie in files.

    Attributes:
        fold: which.
        bundle: of the models that the fold trained.
        scans: that it tests and that could be read.
        found: of each of them.
        set_aside: test scans that could not be read; their nodules count as missed.
    """

    fold: int
    bundle: NamedBundle
    scans: tuple[PreparedScan, ...]
    found: tuple[FoundScan, ...]
    set_aside: tuple[ScanTruth, ...]

    @property
    def tested(self) -> tuple[PreparedScan | ScanTruth, ...]:
        """All scans that the fold tests."""
        return (*self.scans, *self.set_aside)

    @property
    def series_uids(self) -> tuple[str, ...]:
        """Theirs, sorted."""
        return tuple(sorted(scan.series_uid for scan in self.tested))

    @property
    def thresholds(self) -> Thresholds:
        """Those of its bundle, which mean something on that bundle's probabilities only."""
        nodule, malignant = (float(self.bundle.fields[name]) for name in registry.THRESHOLDS)
        return nodule, malignant


@task(name="find_folds", task_run_name="find {count} folds", cache_policy=NO_CACHE)
def find_folds(luna_dir: Path, tables_dir: Path | None, count: int, chosen: Sequence[int]) -> Folds:
    """Put the scans on disk into folds, see that each chosen one has scans on all three sides, and say what they are.

    Raises:
        FoldError: none is chosen; else see `read_folds` and `Folds.split`.
    """
    folds = read_folds(luna_dir, tables_dir, count)
    if not chosen:
        raise FoldError(f"none of {count} folds was asked for; give some, or leave them out for all")
    for fold in chosen:
        folds.split(fold)
    get_run_logger().info("%s: %d scans, %s", in_words(chosen, count), len(folds.fold_of), folds.words)
    return folds


@task(name="check_fresh", task_run_name="check {bundle.name} is fresh", cache_policy=NO_CACHE)
def check_fresh(bundle: NamedBundle, scans: Sequence[PreparedScan], set_aside: Sequence[ScanTruth], home: Home) -> None:
    """Refuse a fold's bundle unless the runs of all its models prove that the fold's test scans were new to them.

    No model, nor one that it started from, may have learned from a scan that the fold validates or tests, or from its
    patient, or have been chosen on one that it tests.

    Args:
        bundle: of the fold's models.
        scans: of all sides of the fold.
        set_aside: those of them that could not be read.
        home: where the models' runs lie.

    Raises:
        LeakError: a model saw such a scan, or its run does not say what it saw.
    """
    every: tuple[PreparedScan | ScanTruth, ...] = (*scans, *set_aside)
    patients = {scan.series_uid: scan.patient for scan in every if scan.patient}
    for used in used_by(home, bundle.fields, patients=patients):
        named = f"its {used.member} model {used.uri}"
        if used.silent:
            raise LeakError(
                f"{bundle.name}: the run of {named}, or of what it started from, does not say which scans it learned "
                "from, so nothing proves that this fold is new to it; train it again with --fresh"
            )
        for scan in every:
            deed = used.deed(scan.series_uid)
            if (deed, scan.split) in FORBIDDEN:
                raise LeakError(
                    f"{bundle.name}: {named} {deed} {scan.series_uid} or its patient, which this fold "
                    f"{HOLDS[scan.split]}; train it again with --fresh"
                )


def pooled_evidence(folds: Sequence[FoldEvidence]) -> list[Evidence]:
    """What is true of the test scans of several folds, and what each one's own bundle said of them, at its thresholds.

    Raises:
        LeakError: two folds test one series.
        ValueError: see `gather_evidence`.
    """
    tested: dict[str, int] = {}
    for fold in folds:
        for uid in fold.series_uids:
            if tested.setdefault(uid, fold.fold) != fold.fold:
                raise LeakError(f"folds {tested[uid]} and {fold.fold} both test {uid}; a pooled score counts it once")
    return [
        replace(one, thresholds=fold.thresholds)
        for fold in folds
        for one in gather_evidence(fold.scans, fold.found, fold.set_aside, fold.bundle)
    ]


def mean_thresholds(folds: Sequence[FoldEvidence]) -> Thresholds:
    """The folds' mean nodule and malignancy threshold, for what can only be drawn at one; it decides nothing."""
    nodule, malignant = (fmean(thresholds) for thresholds in zip(*(fold.thresholds for fold in folds)))
    return nodule, malignant


def pooled_bundle(folds: Sequence[FoldEvidence]) -> NamedBundle:
    """The bundles of all folds under one name, for a report to tell of: all their models, and settings that they share.

    It is not to be asked about a scan: the folds' models never judge one together. Its curves are those of the first
    fold that has any and tell the method only: each fold's own have made its probabilities.
    """
    every = [fold.bundle.fields for fold in folds]
    shared = {name: value for name, value in every[0].items() if all(fields.get(name) == value for fields in every)}
    members = {
        name: [uri for fields in every for uri in registry.member_uris(fields, name)]
        for name in registry.BUNDLE_MEMBERS
    }
    curves = [Calibration.from_dict(fields.get("calibration")) for fields in every]
    calibration = Calibration(
        nodule=next((curve.nodule for curve in curves if curve.nodule), None),
        malignancy=next((curve.malignancy for curve in curves if curve.malignancy), None),
    )
    thresholds = dict(zip(registry.THRESHOLDS, mean_thresholds(folds)))
    return NamedBundle(name=POOLED, fields={**shared, **members, **thresholds, "calibration": calibration.as_dict()})


def fold_table(fold: FoldEvidence) -> Table:
    """The report's table of one fold, at its own bundle's thresholds."""
    nodule, malignant = fold.thresholds
    return score_table(
        {scan.series_uid: read_findings(files.findings) for scan, files in zip(fold.scans, fold.found, strict=True)},
        {scan.series_uid: scan.nodules for scan in fold.tested},
        nodule_threshold=nodule,
        malignant_threshold=malignant,
    )


@task(name="score_folds", task_run_name="score folds", cache_policy=NO_CACHE)
def score_folds(folds: Sequence[FoldEvidence], pipeline: Pipeline) -> SplitScore:
    """Score the test scans of all folds as one list, as the challenge does: all models' probabilities side by side.

    What a threshold decides is decided by each fold's own, as its bundle does: the report's table is the sum of those
    of the folds.
    """
    evidence, (nodule, malignant) = pooled_evidence(folds), mean_thresholds(folds)
    card = score_scans(evidence, nodule_threshold=nodule, malignant_threshold=malignant, seed=pipeline.seed)
    return score_of("all", card, evidence)


def report_folds(
    score: SplitScore, evidence: Sequence[FoldEvidence], folds: Folds, pipeline: Pipeline
) -> WrittenReport:
    """The evaluation report of some folds together; equal bundles, scans and resamples have one folder."""
    chosen = [fold.fold for fold in evidence]
    told = [[fold.fold, fold.bundle.content, fold.series_uids] for fold in evidence]
    return report_evaluation(
        score.split,
        score.card,
        score.cases,
        {scan.series_uid: scan.store for fold in evidence for scan in fold.scans},
        pooled_bundle(evidence),
        pipeline,
        data=f"{data_name(score.card.series_uids, pipeline.origin)}, {in_words(chosen, folds.count)}",
        folder=pipeline.home.reports / "evaluations" / f"folds-{folds.count}-{digest([told, pipeline.seed])[:8]}",
        notes=[OWN_BUNDLES],
    )


@task(name="log_folds", task_run_name="log folds of {recipe_name}", cache_policy=NO_CACHE)
def log_folds(
    score: SplitScore,
    evidence: Sequence[FoldEvidence],
    folds: Folds,
    recipe_name: str,
    pipeline: Pipeline,
    report: WrittenReport | None = None,
) -> str:
    """One row in `luna-end-to-end`: which folds, their bundles, and what they reach together; returns the run's id."""
    chosen = [fold.fold for fold in evidence]
    with tracking.open_run(
        pipeline.home,
        "end-to-end",
        name=f"cross-validation, {in_words(chosen, folds.count)}",
        pipeline_id=pipeline.pipeline_id,
        params={
            "folds": in_words(chosen, folds.count),
            "folds_are": folds.words,
            "bundle": ", ".join(fold.bundle.name for fold in evidence),
            "recipe": recipe_name,
            "seed": str(pipeline.seed),
            "origin": pipeline.origin,
        },
        tags={"luna.origin": pipeline.origin, "luna.folds": f"{len(chosen)} of {folds.count}"},
    ) as run:
        log_score(run, score, "folds")
        run.log_text(json.dumps(_told(evidence, folds), indent=1), "folds/folds.json")
        if report:
            run.log_files(report.folder, "folds")
            run.log_tag(tracking.RUN_NOTE, report.markdown)
        return run.run_id


def in_words(chosen: Sequence[int], count: int) -> str:
    """Which folds: "all 10 folds", or "folds 0, 3 of 10"."""
    if len(chosen) == count:
        return f"all {count} folds"
    return f"fold{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))} of {count}"


def _told(evidence: Sequence[FoldEvidence], folds: Folds) -> Mapping[str, Any]:
    return {
        "folds": folds.count,
        "folds_are": folds.words,
        "run": {
            str(fold.fold): {
                "bundle": fold.bundle.name,
                **dict(zip(registry.THRESHOLDS, fold.thresholds)),
                "table": fold_table(fold).as_dict(),
                "series_uids": list(fold.series_uids),
                "set_aside": sorted(truth.series_uid for truth in fold.set_aside),
            }
            for fold in evidence
        },
    }
