"""Three models from prepared scans, each an MLflow run with its best epoch's model as URI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import crop_cache, groups, store
from lungml.candidates import GroupingSettings, group_candidates
from lungml.devices import resolve_device
from lungml.errors import LunaError
from lungml.findings import segment
from lungml.geometry import irc_to_xyz
from lungml.leaks import check_splits
from lungml.recipes import Recipe
from lungml.recipes.data import PreparedScan
from lungml.recipes.malignancy import MalignancyRecipe, diameter_baseline
from tasks import tracking
from tasks.bundles import load_unet
from tasks.caching import INFERENCE_MODULES, code_digest, digest, kept
from tasks.fitting import better_of, train_model
from tasks.pipeline import Pipeline, TrainedModel

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


@task(name="check_data", cache_policy=NO_CACHE)
def check_data(scans: Sequence[PreparedScan]) -> None:
    """Stop the run where anything stands on two sides of the split."""
    check_splits(scans)


@task(name="train_segmentation", **ONCE_MORE)
def train_segmentation(scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline) -> State | TrainedModel:
    """Train the U-Net and log its best epoch."""
    return train_model(
        "segmentation", f"{recipe.name}-unet", recipe.segmentation, scans, pipeline, recipe_name=recipe.name
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
    return train_model(
        "classification",
        f"{recipe.name}-nodule",
        settings,
        scans,
        pipeline,
        recipe_name=recipe.name,
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

    def nodule_weights() -> Mapping[str, torch.Tensor]:
        return tracking.load_model(pipeline.home, nodule_uri, expect_stage="classification")[1]

    finetuned = settings.start == "nodule"
    return train_model(
        "malignancy",
        f"{recipe_name}-malignancy-{'finetuned' if finetuned else 'scratch'}",
        settings,
        scans,
        pipeline,
        recipe_name=recipe_name,
        parents={"classification": nodule_uri} if finetuned else {},
        parent_weights=nodule_weights if finetuned else None,
        extra={
            "val": {"diameter_auc": diameter_baseline(scans, "val")},
            "test": {"diameter_auc": diameter_baseline(scans, "test")},
        },
    )


@task(name="choose_malignancy", cache_policy=NO_CACHE)
def choose_malignancy(models: Sequence[TrainedModel]) -> TrainedModel:
    """The model with the higher validation AUC; the first wins a tie, and no AUC never wins."""
    best = better_of(models, "auc")
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
