"""How good is a recipe, judged on every scan by models that never saw it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import flow, unmapped
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.inner import inner_flow
from flows.prepare import Prepared, prepare
from flows.progress import gather
from flows.train import train
from flows.watched import watched
from lungml.devices import Precision
from lungml.folds import SUBSETS, Folds
from lungml.home import Home
from lungml.masks import MaskRule
from lungml.recipes.data import of_split
from lungml.recipes.variants import recipe_of
from tasks.data import make_phantoms
from tasks.evaluation import SplitScore
from tasks.finding import NamedBundle, find_nodules
from tasks.folds import FoldEvidence, check_fresh, find_folds, log_folds, report_folds, score_folds
from tasks.pipeline import Pipeline
from tasks.reporting import WrittenReport
from tasks.rounds import TRAININGS, open_round


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What some folds, or all, reached together.

    Attributes:
        folds: how the scans fall into folds.
        evidence: of the folds that were run, with their bundles.
        score: of all their test scans as one list, each scan at its own fold's thresholds.
        report: of the same.
        run_id: of the row in MLflow.
        origin: see `data_origin`.
    """

    folds: Folds
    evidence: tuple[FoldEvidence, ...]
    score: SplitScore
    report: WrittenReport
    run_id: str
    origin: Literal["real", "phantom"]

    @property
    def chosen(self) -> tuple[int, ...]:
        """The folds that were run."""
        return tuple(fold.fold for fold in self.evidence)


@flow(name="luna", flow_run_name="cross-validate {recipe}, seed {seed}")
@watched
def cross_validate(
    luna_dir: str | None = None,
    tables_dir: str | None = None,
    folds: int = SUBSETS,
    only: Sequence[int] | None = None,
    recipe: Literal["demo", "best", "report"] = "best",
    seed: int = 0,
    device: str = "auto",
    phantoms: int = 36,
    fresh: bool = False,
    lidc: str | None = None,
    more: str | None = None,
    masks: MaskRule | None = None,
    budget: float = 1.0,
    overrides: Mapping[str, Any] | None = None,
    devices: int = 1,
    precision: Precision = "fp32",
    time_limit_h: float | None = None,
) -> CrossValidation:
    """Train a bundle for each fold on the other folds' scans, and score them together on all scans.

    What is finished is kept: a run that was stopped goes on where it stopped, and one of more folds trains only those.
    The home's own split is neither used nor changed, and no bundle gets an alias.

    Args:
        luna_dir: holds `**/<series_uid>.mhd`; None draws synthetic scans first.
        tables_dir: holds the csv tables, when they do not lie in `luna_dir`.
        folds: how many: 10 are LUNA16's own subsets, see `lungml.folds.read_folds`.
        only: which of them to run; all when not given.
        recipe, seed, device, phantoms, fresh, lidc, more, masks, budget, overrides, devices, precision, time_limit_h:
            as of `end_to_end`.

    Raises:
        FoldError: these scans do not allow such folds.
        LeakError: a fold's models cannot be shown to be new to its test scans.
    """
    home, settings = Home.from_env(), recipe_of(recipe, budget=budget, overrides=overrides)
    folder = luna_dir or make_phantoms.submit(home, scans=phantoms, seed=seed).result()
    chosen = sorted(set(range(folds) if only is None else only))
    parts = find_folds(Path(folder), Path(tables_dir) if tables_dir else None, folds, chosen)
    # All of them first: what a fold lacks is said before any model is trained.
    prepared = {
        fold: prepare(
            str(folder),
            tables_dir,
            recipe,
            seed=seed,
            for_training=True,
            lidc=lidc,
            more=more,
            masks=masks,
            overrides=overrides,
            sides=parts.split(fold),
            corrections=0,  # every scan is tested in some fold, by the truth of its tables
        )
        for fold in chosen
    }
    again = open_round(home, TRAININGS if fresh else (), flow_run.parameters)
    pipeline = Pipeline(
        home=home,
        pipeline_id=str(flow_run.id),
        origin=prepared[chosen[0]].origin,
        seed=seed,
        device=device,
        devices=devices,
        precision=precision,
        round=again,
        time_limit_h=time_limit_h,
    )
    evidence = []
    for fold in chosen:
        trained = train(prepared[fold].scans, settings, pipeline)
        evidence.append(fold_evidence(fold, prepared[fold], trained.bundle_uri, pipeline))
    score = score_folds(evidence, pipeline)
    report = report_folds(score, evidence, parts, pipeline)
    run_id = log_folds(score, evidence, parts, recipe, pipeline, report)
    if again:
        again.close()
    return CrossValidation(
        folds=parts, evidence=tuple(evidence), score=score, report=report, run_id=run_id, origin=pipeline.origin
    )


# One scan at a time: the segmenter already uses every core.
@inner_flow(
    name="luna",
    flow_run_name="find nodules of fold {fold}",
    task_runner=ThreadPoolTaskRunner(max_workers=1),
)
@watched
def fold_evidence(fold: int, prepared: Prepared, bundle_uri: str, pipeline: Pipeline) -> FoldEvidence:
    """Prove that a fold's bundle is new to the scans that the fold tests, and find their nodules with it."""
    bundle = NamedBundle.of(pipeline.home, bundle_uri)
    check_fresh(bundle, prepared.scans, prepared.set_aside, pipeline.home)
    scans = of_split(prepared.scans, "test")
    finding = find_nodules.map(scans, bundle=unmapped(bundle), pipeline=unmapped(pipeline))
    return FoldEvidence(
        fold=fold,
        bundle=bundle,
        scans=tuple(scans),
        found=tuple(gather(finding, f"finding nodules, fold {fold}")),
        set_aside=tuple(truth for truth in prepared.set_aside if truth.split == "test"),
    )
