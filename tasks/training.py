"""Three models from prepared scans, each an MLflow run with its best epoch's model as URI."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import crop_cache, groups, store
from lungml.candidates import GroupingSettings, group_candidates
from lungml.errors import LunaError
from lungml.files import write_text_atomic
from lungml.findings import segment
from lungml.devices import resolve_device
from lungml.fit import EpochReport, Problem, fit
from lungml.fit_settings import FitSettings
from lungml.geometry import irc_to_xyz
from lungml.home import Home
from lungml.metrics import is_better
from lungml.recipes import Recipe
from lungml.recipes.classification import classification_problem
from lungml.recipes.data import PreparedScan
from lungml.recipes.malignancy import MalignancyRecipe, diameter_baseline, malignancy_problem
from lungml.recipes.segmentation import SegmentationProblem
from tasks import tracking
from tasks.bundles import load_unet, stage_example
from tasks.caching import INFERENCE_MODULES, TRAINING_MODULES, code_digest, digest, kept

Stage = Literal["segmentation", "classification", "malignancy"]
MINED_NEAR_MM = 3.0  # a candidate this close to a small nodule's centre still shows the nodule


def _may_pass(_task: Any, _run: Any, state: State) -> bool:
    """Whether a failed training is worth another try: a finding about the data or the settings is not."""
    failure = state.result(raise_on_failure=False)
    return not isinstance(failure, LunaError)


# A second try goes on from the last epoch's checkpoint.
ONCE_MORE: Any = {
    "retries": 1,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _may_pass,
    "cache_policy": NO_CACHE,
}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What all stages of one pipeline run share."""

    home: Home
    pipeline_id: str
    origin: Literal["real", "phantom"]
    seed: int
    device: str = "auto"
    fresh: bool = False  # train again even where an equal model is finished


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A finished model: its URI and how its best epoch did; metric names are bare."""

    stage: Stage
    name: str
    uri: str
    best_epoch: int
    val: Mapping[str, float]
    test: Mapping[str, float]


@task(name="train_segmentation", **ONCE_MORE)
def train_segmentation(scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline) -> State | TrainedModel:
    """Train the U-Net and log its best epoch."""
    settings = recipe.segmentation

    def problem(device: torch.device, generator: torch.Generator) -> SegmentationProblem:
        return SegmentationProblem(settings, scans, device=device, generator=generator)

    return _train(
        "segmentation",
        f"{recipe.name}-unet",
        settings,
        scans,
        pipeline,
        problem,
    )


@task(name="mine_candidates", task_run_name="mine {scan.series_uid}", retries=2, cache_policy=NO_CACHE)
def mine_candidates(
    scan: PreparedScan, segmentation_uri: str, grouping: GroupingSettings, pipeline: Pipeline
) -> State | PreparedScan:
    """Cut crops at the segmenter's own candidates of a training scan: it is all the classifier sees at inference.

    A candidate within a nodule's radius shows that nodule; one within an excluded finding's radius is left out.
    The segmenter was trained on the same scan, so these candidates flatter it.
    """
    folder = scan.crops.parent.with_name(f"{scan.crops.parent.stem}-mined.zarr") / scan.series_uid
    key = {
        "crops": scan.digest,
        "excluded": digest([asdict(e) for e in scan.excluded]),
        "model": segmentation_uri,
        "grouping": asdict(grouping),
        "code": code_digest((*INFERENCE_MODULES, "crop_cache.py")),
        "near_mm": MINED_NEAR_MM,
    }
    mined = replace(scan, mined=folder, digest=digest(key))
    if groups.is_current(folder, key):
        return kept(mined)
    hu, grid = store.read_volume(scan.store), store.read_grid(scan.store)
    model = load_unet(pipeline.home, segmentation_uri, resolve_device(pipeline.device))
    centers = group_candidates(segment(hu, model, threshold=grouping.threshold), hu, grouping)
    sites = []
    for center, point in zip(centers, irc_to_xyz(centers, grid)):
        near = [n for n in scan.nodules if math.dist(point, n.center_xyz) < max(n.diameter_mm / 2, MINED_NEAR_MM)]
        nodule = min(near, key=lambda n: math.dist(point, n.center_xyz), default=None)
        if nodule is None and any(math.dist(point, e.center_xyz) < e.diameter_mm / 2 for e in scan.excluded):
            continue
        label = crop_cache.NON_NODULE
        if nodule:
            label = crop_cache.MALIGNANT if nodule.malignant else crop_cache.BENIGN
        index, row, col = center.tolist()
        sites.append(
            crop_cache.CropSite(
                center_irc=(index, row, col),
                label=label,
                diameter_mm=nodule.diameter_mm if nodule else math.nan,
                ratings=nodule.ratings if nodule else (),
            )
        )
    crop_cache.write_scan_crops(folder, hu, np.zeros(hu.shape, np.uint8), grid, sites, slab_sites=[], key=key)
    get_run_logger().info(
        "%s: %d candidates mined, %d of them nodules",
        scan.series_uid,
        len(sites),
        sum(s.label != crop_cache.NON_NODULE for s in sites),
    )
    return mined


@task(name="train_classification", **ONCE_MORE)
def train_classification(
    scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline, segmentation_uri: str
) -> State | TrainedModel:
    """Train the nodule classifier and log its best epoch."""
    settings = recipe.classification

    def problem(device: torch.device, generator: torch.Generator) -> Problem:
        return classification_problem(settings, scans, device=device, generator=generator)

    return _train(
        "classification",
        f"{recipe.name}-nodule",
        settings,
        scans,
        pipeline,
        problem,
        parents={"segmentation": segmentation_uri} if settings.mined else {},
    )


@task(name="train_malignancy", task_run_name="train_malignancy {settings.start}", **ONCE_MORE)
def train_malignancy(
    scans: Sequence[PreparedScan],
    recipe_name: str,
    settings: MalignancyRecipe,
    pipeline: Pipeline,
    nodule_uri: str,
) -> State | TrainedModel:
    """Train one malignancy classifier, fine-tuned or from scratch, and log its best epoch beside the diameter's AUC."""

    def problem(device: torch.device, generator: torch.Generator) -> Problem:
        _, weights = tracking.load_model(pipeline.home, nodule_uri, expect_stage="classification")
        return malignancy_problem(settings, scans, nodule_weights=weights, device=device, generator=generator)

    way = "finetuned" if settings.start == "nodule" else "scratch"
    return _train(
        "malignancy",
        f"{recipe_name}-malignancy-{way}",
        settings,
        scans,
        pipeline,
        problem,
        parents={"classification": nodule_uri} if settings.start == "nodule" else {},
        extra={
            "val": {"diameter_auc": diameter_baseline(scans, "val")},
            "test": {"diameter_auc": diameter_baseline(scans, "test")},
        },
    )


@task(name="choose_malignancy", cache_policy=NO_CACHE)
def choose_malignancy(models: Sequence[TrainedModel]) -> TrainedModel:
    """The model with the higher validation AUC; the first wins a tie, and no AUC never wins."""
    best = models[0]
    for model in models[1:]:
        if is_better(model.val["auc"], best.val["auc"]):
            best = model
    get_run_logger().info("kept %s: validation AUC %.4f", best.name, best.val["auc"])
    return best


@task(name="assemble_bundle", cache_policy=NO_CACHE)
def assemble_bundle(
    segmentation: TrainedModel,
    nodule: TrainedModel,
    malignancy: TrainedModel,
    recipe: Recipe,
    pipeline: Pipeline,
) -> str:
    """Register the three models and their settings as a version of `luna`; returns its URI."""
    bundle = {
        "segmentation": segmentation.uri,
        "nodule": nodule.uri,
        "malignancy": malignancy.uri,
        "grouping": asdict(recipe.grouping),
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "recipe": recipe.name,
        "origin": pipeline.origin,
    }
    aliases = ("demo",) if pipeline.origin == "phantom" else ()
    return tracking.register_bundle(pipeline.home, bundle, aliases=aliases)


def _train(
    stage: Stage,
    name: str,
    settings: Any,
    scans: Sequence[PreparedScan],
    pipeline: Pipeline,
    make_problem: Callable[[torch.device, torch.Generator], Problem],
    *,
    parents: Mapping[str, str] | None = None,
    extra: Mapping[str, Mapping[str, float]] | None = None,
) -> State | TrainedModel:
    """Train one model, or return the finished one of an equal key.

    Args:
        stage: which of the three.
        name: of the run.
        settings: the stage's recipe; its `fit` drives the loop.
        scans: of all splits.
        pipeline: what the stages share.
        make_problem: builds model, data and loss on a device with a generator of initial weights.
        parents: URIs of the models it starts from.
        extra: further metrics to log per split, baselines for example.
    """
    log = get_run_logger()
    home, fit_settings = pipeline.home, settings.fit
    key = digest(
        {
            "settings": asdict(settings),
            "scans": [scan.digest for scan in scans],
            "parents": dict(parents or {}),
            "seed": pipeline.seed,
            "code": code_digest(TRAINING_MODULES),
            "fresh": pipeline.pipeline_id if pipeline.fresh else None,
        }
    )
    folder = home.checkpoints / stage / key
    finished = _read_finished(folder)
    if finished and tracking.model_exists(home, finished.uri):
        log.info("%s: kept %s, trained before from the same data, settings and code", name, finished.uri)
        return kept(finished)
    device = resolve_device(pipeline.device)
    with tracking.open_run(
        home,
        stage,
        name=name,
        pipeline_id=pipeline.pipeline_id,
        params={
            **_flat(asdict(settings)),
            "seed": pipeline.seed,
            "device": str(device),
            "origin": pipeline.origin,
        },
        tags={"luna.origin": pipeline.origin},
    ) as run:
        run.log_dataset("scans", digest([scan.digest for scan in scans]), parents=dict(parents or {}))
        problem = make_problem(device, torch.Generator().manual_seed(pipeline.seed))
        progress = _Progress(name, fit_settings, log.info)

        def on_epoch(report: EpochReport) -> None:
            run.log_epoch(
                {
                    **{f"train/{metric}": value for metric, value in report.train.items()},
                    **{f"val/{metric}": value for metric, value in report.val.items()},
                },
                report.epoch,
            )
            progress.show(report)

        result = fit(problem, fit_settings, seed=pipeline.seed, checkpoint=folder / "state.pt", on_epoch=on_epoch)
        val = {**result.val, **(extra or {}).get("val", {})}
        test = {**problem.evaluate("test"), **(extra or {}).get("test", {})}
        run.log_metrics(
            {
                **{f"val/best_{metric}": value for metric, value in val.items()},
                **{f"test/{metric}": value for metric, value in test.items()},
                "best_epoch": result.best_epoch,
            }
        )
        arch = {"stage": stage, "config": asdict(problem.model.config)}  # type: ignore[call-overload]
        uri = tracking.log_model(run, problem.model, arch=arch, example=stage_example(stage), name=name)
    model = TrainedModel(stage=stage, name=name, uri=uri, best_epoch=result.best_epoch, val=val, test=test)
    write_text_atomic(folder / "finished.json", json.dumps(asdict(model), indent=1))
    (folder / "state.pt").unlink(missing_ok=True)  # a finished checkpoint is closed and never reused
    return model


def _read_finished(folder: Path) -> TrainedModel | None:
    path = folder / "finished.json"
    try:
        return TrainedModel(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none, or a damaged one: train
        return None


class _Progress:
    """One line per epoch in the log, and a Prefect progress artifact."""

    def __init__(self, name: str, settings: FitSettings, say: Callable[..., None]) -> None:
        self._name, self._say, self._select_by = name, say, settings.select_by
        self._artifact: Any = create_progress_artifact(0.0, description=f"{name}: training")

    def show(self, report: EpochReport) -> None:
        shown = [f"loss {report.train['loss']:.4f}"]
        if report.val:
            shown += [f"val {m} {report.val[m]:.3f}" for m in ("precision", "recall", "f1", "auc") if m in report.val]
        if report.best_epoch:
            shown.append(f"best {self._select_by} {report.best_score:.3f} (epoch {report.best_epoch})")
        shown.append(f"{report.samples_per_s:.0f} samples/s")
        if report.seconds_left >= 1:
            shown.append(f"{report.seconds_left:.0f} s left")
        self._say("%s %d/%d: %s", self._name, report.epoch, report.epochs, ", ".join(shown))
        update_progress_artifact(self._artifact, progress=100.0 * report.epoch / report.epochs)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `fit.epochs`-style names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
