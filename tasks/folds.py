"""What do the models of several folds reach together, each on the scans that it never saw?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lungml.findings import read_findings
from lungml.folds import FoldError, Folds, read_folds
from lungml.home import Home
from lungml.leaks import LeakError
from lungml.recipes.data import PreparedScan
from lungml.score import Table, score_table
from lungml.scorecard import Evidence, score_scans
from tasks import registry, tracking
from tasks.evaluation import SplitScore
from tasks.finding import FoundScan, NamedBundle, gather_evidence
from tasks.pipeline import Pipeline
from tasks.truth import ScanTruth

# What a model's run says of a series that this fold must not have shown it.
FORBIDDEN = {("train", "val"): "learned from", ("train", "test"): "learned from", ("val", "test"): "was chosen on"}
HOLDS = {"val": "validates", "test": "tests"}


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


@task(name="find_folds", cache_policy=NO_CACHE)
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


@task(name="check_fresh", task_run_name="check_fresh {bundle.name}", cache_policy=NO_CACHE)
def check_fresh(bundle: NamedBundle, scans: Sequence[PreparedScan], set_aside: Sequence[ScanTruth], home: Home) -> None:
    """Refuse a fold's bundle unless the runs of all its models prove that the fold's test scans were new to them.

    No model may have learned from a scan that the fold validates or tests, or have been chosen on one that it tests.

    Args:
        bundle: of the fold's models.
        scans: of all sides of the fold.
        set_aside: those of them that could not be read.
        home: where the models' runs lie.

    Raises:
        LeakError: a model saw such a scan, or its run does not say what it saw.
    """
    every: tuple[PreparedScan | ScanTruth, ...] = (*scans, *set_aside)
    sides = {scan.series_uid: scan.split for scan in every}
    for member in registry.BUNDLE_MEMBERS:
        for uri in registry.member_uris(bundle.fields, member):
            told = tracking.model_scans(home, uri)
            if not told:
                raise LeakError(
                    f"{bundle.name}: the run of its {member} model {uri} does not say which scans it learned from, so "
                    "nothing proves that this fold is new to it; train it again with --fresh"
                )
            for uid, side in told.items():
                deed = FORBIDDEN.get((side, sides.get(uid, "")))
                if deed:
                    raise LeakError(
                        f"{bundle.name}: its {member} model {uri} {deed} {uid}, which this fold {HOLDS[sides[uid]]}; "
                        "train it again with --fresh"
                    )


def pooled_evidence(folds: Sequence[FoldEvidence]) -> list[Evidence]:
    """What is true of the test scans of several folds, and what each one's own bundle said of them.

    Raises:
        LeakError: two folds test one series.
        ValueError: see `gather_evidence`.
    """
    tested: dict[str, int] = {}
    for fold in folds:
        for uid in fold.series_uids:
            if tested.setdefault(uid, fold.fold) != fold.fold:
                raise LeakError(f"folds {tested[uid]} and {fold.fold} both test {uid}; a pooled score counts it once")
    return [one for f in folds for one in gather_evidence(f.scans, f.found, f.set_aside, f.bundle)]


def pooled_thresholds(folds: Sequence[FoldEvidence]) -> tuple[float, float]:
    """One nodule and one malignancy threshold for tables of all folds together: the highest that a fold's bundle has.

    Below its own threshold a bundle was never asked about malignancy, so that no lower one can be had.
    """
    nodule, malignant = (max(float(fold.bundle.fields[name]) for fold in folds) for name in registry.THRESHOLDS)
    return nodule, malignant


def fold_table(fold: FoldEvidence) -> Table:
    """The report's table of one fold, at its own bundle's thresholds."""
    nodule, malignant = (float(fold.bundle.fields[name]) for name in registry.THRESHOLDS)
    return score_table(
        {scan.series_uid: read_findings(files.findings) for scan, files in zip(fold.scans, fold.found, strict=True)},
        {scan.series_uid: scan.nodules for scan in fold.tested},
        nodule_threshold=nodule,
        malignant_threshold=malignant,
    )


@task(name="score_folds", cache_policy=NO_CACHE)
def score_folds(folds: Sequence[FoldEvidence], pipeline: Pipeline) -> SplitScore:
    """Score the test scans of all folds as one list, as the challenge does: all models' probabilities side by side."""
    nodule, malignant = pooled_thresholds(folds)
    card = score_scans(
        pooled_evidence(folds), nodule_threshold=nodule, malignant_threshold=malignant, seed=pipeline.seed
    )
    return SplitScore(split="test", card=card)


@task(name="log_folds", cache_policy=NO_CACHE)
def log_folds(
    score: SplitScore, evidence: Sequence[FoldEvidence], folds: Folds, recipe_name: str, pipeline: Pipeline
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
        run.log_metrics({f"folds/{name}": value for name, value in score.metrics.items()})
        run.log_text(json.dumps(score.card.as_dict(), indent=1, allow_nan=False), "folds/scorecard.json")
        run.log_text(score.table.to_text(), "folds/table.txt")
        run.log_text(json.dumps(_told(evidence, folds), indent=1), "folds/folds.json")
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
                "table": fold_table(fold).as_dict(),
                "series_uids": list(fold.series_uids),
                "set_aside": sorted(truth.series_uid for truth in fold.set_aside),
            }
            for fold in evidence
        },
    }
