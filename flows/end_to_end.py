"""The whole pipeline: prepare -> train three models -> evaluate -> gate. Read this first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefect import flow
from prefect.runtime import flow_run

from flows.evaluate import Evaluated, evaluate
from flows.prepare import prepare
from flows.revive import run_again_later
from flows.train import Trained, train
from flows.watched import watched
from lungml.devices import Hardware, Precision
from lungml.gate import GateSettings
from lungml.home import Home
from lungml.masks import MaskRule
from lungml.recipes.variants import recipe_of
from tasks.data import make_phantoms
from tasks.evaluation import SplitScore
from tasks.gpus import check_training
from tasks.pipeline import Pipeline
from tasks.recorded import told_parameters
from tasks.reuse import parse_reused
from tasks.rounds import Redo, open_round, with_trainings
from tasks.summaries import publish_summary

LUNA16_STRIDE = 10  # the report's split: 80/10/10
DEMO_STRIDE = 5  # of some 36 scans a tenth would be too few to tell anything


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one run of the pipeline reached."""

    trained: Trained
    evaluated: Evaluated
    origin: Literal["real", "phantom"]

    @property
    def scores(self) -> tuple[SplitScore, ...]:
        """On the validation and the test scans."""
        return self.evaluated.scores


@flow(name="luna", flow_run_name="end-to-end {recipe}, seed {seed}", on_failure=[run_again_later])
@watched
def end_to_end(
    luna_dir: str | None = None,
    tables_dir: str | None = None,
    recipe: Literal["demo", "best", "report"] = "demo",
    val_stride: int | None = None,
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
    gate_settings: GateSettings | None = None,
    refresh: Sequence[Redo] = (),
    reuse_models: Mapping[str, list[str]] | None = None,
    corrections: int | None = None,
) -> Summary:
    """Train and evaluate the three models on a LUNA16 tree, or on synthetic scans where none is given.

    Args:
        luna_dir: holds `**/<series_uid>.mhd`; None draws synthetic scans first.
        tables_dir: holds the csv tables, when they do not lie in `luna_dir`.
        recipe: "best" is the one to use, "report" reproduces the report, "demo" is "best" cut to minutes.
        val_stride: every n-th series validates, the one after it tests; when not given, 10 for a folder of scans
            and 5 for synthetic ones.
        seed: of everything random.
        device: auto, cpu or cuda.
        phantoms: how many synthetic scans to draw where no folder is given.
        fresh: train all models again, even where one of equal data, settings and code is finished: `refresh` of the
            three trainings.
        lidc: LIDC-IDRI's XML files, a folder or a zip: for ratings and contours that the tables lack.
        more: LIDC-IDRI's DICOM series, to train on those outside LUNA16 too; their truth comes from `lidc`.
        masks: draw the nodules by this rule instead of the recipe's: report, bounded or consensus of the readers.
        budget: factor of both samples per epoch and epochs of every model.
        overrides: single settings of the recipe to change, such as {"segmentation.fit.batch_size": 8}.
        devices: GPUs, or processes on a CPU, that share each batch in training.
        precision: of training: fp32, or bf16 where autocast thinks it safe.
        time_limit_h: hours that the training of one model may take; none when not given.
        gate_settings: what the bundle must reach to become the champion, see `lungml.gate.GateSettings`.
        refresh: stages to do again though they are finished: prepare, segmentation, classification, malignancy,
            evaluate. A run that was cut short is gone on with by the next one of equal parameters.
        reuse_models: models to use instead of training, such as {"segmentation": ["models:/m-..."]}.
        corrections: use readers' corrections up to this version on training scans; 0 for none, all when not given.
    """
    home, settings = Home.from_env(), recipe_of(recipe, budget=budget, overrides=overrides)
    check_training(settings, Hardware(device=device, count=devices, precision=precision))
    reused = parse_reused(reuse_models or {}, refresh)
    again = open_round(home, with_trainings(fresh, refresh), flow_run.parameters)
    folder = luna_dir or make_phantoms.submit(home, scans=phantoms, seed=seed).result()
    stride = val_stride or (LUNA16_STRIDE if luna_dir else DEMO_STRIDE)
    prepared = prepare(
        str(folder),
        tables_dir,
        recipe,
        stride,
        seed,
        for_training=True,
        lidc=lidc,
        more=more,
        masks=masks,
        overrides=overrides,
        refresh=again is not None and again.due("prepare", "all of it"),
        corrections=corrections,
    )
    if again:
        again.done("prepare", "all of it")
    pipeline = Pipeline(
        home=home,
        pipeline_id=str(flow_run.id),
        origin=prepared.origin,
        seed=seed,
        device=device,
        devices=devices,
        precision=precision,
        round=again,
        time_limit_h=time_limit_h,
        corrections=prepared.corrections,
    )
    trained = train(prepared.scans, settings, pipeline, reused)
    judged = evaluate(
        prepared.scans,
        prepared.set_aside,
        trained.bundle_uri,
        trained.members,
        pipeline,
        gate_settings,
        # Of the corrections those that there were: later runs will find more.
        {**told_parameters(flow_run.parameters), "corrections": prepared.corrections.get("version", 0)},
    )
    publish_summary(
        judged.scores,
        (*trained.members, *trained.others),
        pipeline,
        trained.bundle_uri,
        decision=judged.decision,
        drift=judged.drift.verdict,
    )
    if again:
        again.close()
    return Summary(trained=trained, evaluated=judged, origin=pipeline.origin)
