"""From prepared scans to three models and the bundle that holds them together; or to one of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from prefect import flow, unmapped
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.inner import inner_flow
from flows.prepare import prepare
from flows.progress import gather
from flows.revive import run_again_later
from flows.watched import watched
from lungml.devices import Hardware, Precision
from lungml.home import Home
from lungml.recipes import Recipe, RecipeError
from lungml.recipes.data import PreparedScan, Stage, of_split
from lungml.recipes.variants import recipe_of
from tasks import tracking
from tasks.assembly import calibrate, choose_malignancy, draft_bundle, register_bundle
from tasks.child import children_ended
from tasks.finding import NamedBundle, find_nodules
from tasks.gpus import check_training
from tasks.pipeline import Pipeline, TrainedModel
from tasks.reuse import parse_reused, reuse_models
from tasks.rounds import open_round
from tasks.summaries import summarize_model
from tasks.training import (
    Way,
    check_data,
    mine_candidates,
    train_classification,
    train_malignancy,
    train_segmentation,
)

WAYS: tuple[Way, ...] = ("finetuned", "scratch")
# One scan at a time: the segmenter already uses every core.
ONE_AT_A_TIME: Any = ThreadPoolTaskRunner(max_workers=1)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training left: the models, the malignancy classifiers of the way that was kept, and the bundle's URI."""

    segmentation: TrainedModel
    nodules: tuple[TrainedModel, ...]
    malignancies: tuple[TrainedModel, ...]
    others: tuple[TrainedModel, ...]
    bundle_uri: str

    @property
    def members(self) -> tuple[TrainedModel, ...]:
        """The models that the bundle holds."""
        return (self.segmentation, *self.nodules, *self.malignancies)


@inner_flow(
    name="luna",
    flow_run_name="train {recipe.name}, seed {pipeline.seed}",
    task_runner=ONE_AT_A_TIME,
)
@watched
def train(
    scans: Sequence[PreparedScan],
    recipe: Recipe,
    pipeline: Pipeline,
    reused: Mapping[str, Sequence[str]] | None = None,
) -> Trained:
    """Segmentation -> its own candidates -> nodule classifier -> malignancy, two ways -> calibrated bundle.

    A stage whose models are given is not trained: they take its place.
    """
    with children_ended():
        check_data(scans)
        given = {
            stage: reuse_models(pipeline.home, cast(Stage, stage), uris, scans, pipeline.origin)
            for stage, uris in parse_reused(reused or {}).items()
        }
        if "segmentation" in given:
            (segmentation,) = given["segmentation"]
        else:
            segmentation = train_segmentation.submit(scans, recipe, pipeline).result()
        summarize_model([segmentation], pipeline)
        nodules = given.get("classification")
        if nodules is None:
            scans = mine(scans, recipe, pipeline, segmentation.uri)
            nodules = [
                train_classification.submit(scans, recipe, pipeline, segmentation.uri, member).result()
                for member in range(recipe.ensemble)
            ]
        summarize_model(nodules, pipeline)
        ways = [given["malignancy"]] if "malignancy" in given else train_ways(scans, recipe, pipeline, nodules)
        malignancies = ways[0] if "malignancy" in given else choose_malignancy(ways, recipe.keeps)
        kept = [model.uri for model in malignancies]
        others = tuple(model for way in ways for model in way if model.uri not in kept)
        summarize_model(malignancies, pipeline, others)
        draft = draft_bundle(segmentation, nodules, malignancies, recipe, pipeline)
        bundle = calibrated(draft, scans, pipeline) if recipe.calibrated else draft
        return Trained(
            segmentation=segmentation,
            nodules=tuple(nodules),
            malignancies=tuple(malignancies),
            others=others,
            bundle_uri=register_bundle(bundle, pipeline),
        )


def train_ways(
    scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline, nodules: Sequence[TrainedModel]
) -> list[list[TrainedModel]]:
    """The malignancy classifiers of every way, one for each nodule classifier."""
    return [
        [
            train_malignancy.submit(scans, recipe, way, pipeline, nodule.uri, member).result()
            for member, nodule in enumerate(nodules)
        ]
        for way in WAYS
    ]


def calibrated(draft: NamedBundle, scans: Sequence[PreparedScan], pipeline: Pipeline) -> NamedBundle:
    """The bundle with probabilities that are those of the validation scans."""
    judging = of_split(scans, "val")
    finding = find_nodules.map(judging, bundle=unmapped(draft), pipeline=unmapped(pipeline))
    return calibrate(draft, judging, gather(finding, "finding nodules, val"))


def mine(
    scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline, segmentation_uri: str
) -> Sequence[PreparedScan]:
    """The scans, those to learn from with crops at the segmenter's own candidates, where the recipe wants them."""
    if not recipe.classification.mined:
        return scans
    mining = mine_candidates.map(
        of_split(scans, "train"),
        segmentation_uri=unmapped(segmentation_uri),
        grouping=unmapped(recipe.grouping),
        pipeline=unmapped(pipeline),
    )
    scans = [*gather(mining, "mining candidates"), *of_split(scans, "val"), *of_split(scans, "test")]
    check_data(scans)  # crops have joined them
    return scans


@dataclass(frozen=True, kw_only=True)
class Models:
    """What training one stage left, and on what kind of scans."""

    models: tuple[TrainedModel, ...]
    origin: Literal["real", "phantom"]


@flow(
    name="luna",
    flow_run_name="train {stage} {recipe}, seed {seed}",
    task_runner=ONE_AT_A_TIME,
    on_failure=[run_again_later],
)
@watched
def train_stage(
    stage: Stage,
    luna_dir: str,
    tables_dir: str | None = None,
    recipe: str = "best",
    budget: float = 1.0,
    overrides: Mapping[str, Any] | None = None,
    val_stride: int = 10,
    seed: int = 0,
    segmentation: str | None = None,
    nodule: str | None = None,
    device: str = "auto",
    devices: int = 1,
    precision: Precision = "fp32",
    fresh: bool = False,
    time_limit_h: float | None = None,
    corrections: int | None = None,
) -> Models:
    """Train one of the three models on a LUNA16 tree, from given models where it needs any.

    Args:
        stage: which of the three.
        luna_dir: holds `**/<series_uid>.mhd`.
        tables_dir: holds the csv tables, when they do not lie in `luna_dir`.
        recipe: "best" is the one to use, "report" reproduces the report, "demo" is "best" cut to minutes.
        budget: factor of both samples per epoch and epochs.
        overrides: single settings of the recipe to change, such as {"segmentation.fit.batch_size": 8}.
        val_stride: every n-th series validates, the one after it tests.
        seed: of everything random.
        segmentation: URI of the U-Net whose candidates the nodule classifier also learns from.
        nodule: URI of the nodule classifier that malignancy is fine-tuned from; without it only the way from scratch
            is trained.
        device: auto, cpu or cuda.
        devices: GPUs, or processes on a CPU, that share each batch.
        precision: fp32, or bf16 where autocast thinks it safe.
        fresh: train again even where a model of equal data, settings and code is finished.
        time_limit_h: hours that the training may take; none when not given.
        corrections: use readers' corrections up to this version on training scans; 0 for none, all when not given.

    Raises:
        RecipeError: when a model that the recipe needs is not given.
    """
    settings = recipe_of(recipe, budget=budget, overrides=overrides)
    check_training(settings, Hardware(device=device, count=devices, precision=precision))
    if stage == "classification" and settings.classification.mined and not segmentation:
        raise RecipeError(
            f"recipe {recipe!r} learns from a U-Net's own candidates; give the U-Net with --segmentation models:/..., "
            "or do without: --set classification.mined=False"
        )
    home = Home.from_env()
    again = open_round(home, [stage] if fresh else [], flow_run.parameters)
    for uri, of in ((segmentation, "segmentation"), (nodule, "classification")):
        if uri and not uri.startswith("models:/m-"):  # an alias moves on, and the training would not notice
            raise RecipeError(f"{uri}: is no model's own URI; give models:/m-..., as its run shows it")
        if uri:
            tracking.load_model(home, uri, expect_stage=of)  # before hours of work, not after
    prepared = prepare(
        luna_dir,
        tables_dir,
        recipe,
        val_stride,
        seed,
        for_training=True,
        overrides=overrides,
        corrections=corrections,
    )
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
    with children_ended():
        models = _train_stage(stage, prepared.scans, settings, pipeline, segmentation, nodule)
    summarize_model(models, pipeline)
    if again:
        again.close()
    return Models(models=models, origin=prepared.origin)


def _train_stage(
    stage: Stage,
    scans: Sequence[PreparedScan],
    recipe: Recipe,
    pipeline: Pipeline,
    segmentation: str | None,
    nodule: str | None,
) -> tuple[TrainedModel, ...]:
    check_data(scans)
    if stage == "segmentation":
        return (train_segmentation.submit(scans, recipe, pipeline).result(),)
    if stage == "classification":
        if segmentation:
            scans = mine(scans, recipe, pipeline, segmentation)
        return (train_classification.submit(scans, recipe, pipeline, segmentation or "").result(),)
    ways = [way for way in WAYS if nodule or getattr(recipe, way).start == "scratch"]
    if not ways:
        raise RecipeError("both ways start from a nodule classifier; give it with --nodule models:/...")
    return tuple(train_malignancy.submit(scans, recipe, way, pipeline, nodule or "").result() for way in ways)
