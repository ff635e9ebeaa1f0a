"""Three models from prepared scans, each an MLflow run with its best epoch's model as URI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml import crop_cache, groups, store
from lungml.candidates import GroupingSettings, group_candidates
from lungml.devices import resolve_device
from lungml.geometry import irc_to_xyz
from lungml.leaks import check_splits
from lungml.luna import Annotation, Nodule
from lungml.recipes import Recipe
from lungml.recipes.data import PreparedScan
from lungml.recipes.malignancy import MalignancyRecipe, diameter_baseline
from lungml.segment import segment
from tasks import tracking
from tasks.bundles import load_unet
from tasks.caching import INFERENCE_MODULES, code_digest, digest, kept
from tasks.fitting import Training, train_model
from tasks.gpus import cuda_name, gpu_slots
from tasks.pipeline import Pipeline, TrainedModel, may_pass

Way = Literal["finetuned", "scratch"]
MINED_NEAR_MM = 3.0  # a candidate this close to a small nodule's centre still shows the nodule


# A second try goes on from the last epoch's checkpoint.
ONCE_MORE: Any = {
    "retries": 1,
    "retry_delay_seconds": 5,
    "retry_condition_fn": may_pass,
    "cache_policy": NO_CACHE,
}


@task(name="check_data", task_run_name="check splits", cache_policy=NO_CACHE)
def check_data(scans: Sequence[PreparedScan]) -> None:
    """Stop the run where anything stands on two sides of the split."""
    check_splits(scans)


@task(name="train_segmentation", task_run_name="train segmentation", **ONCE_MORE)
def train_segmentation(scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline) -> State | TrainedModel:
    """Train the U-Net and log its best epoch."""
    return train_model(
        Training(
            stage="segmentation",
            name=f"{recipe.name}-unet",
            settings=recipe.segmentation,
            scans=scans,
            pipeline=pipeline,
            recipe_name=recipe.name,
        )
    )


@task(name="mine_candidates", task_run_name="mine {scan.series_uid}", retries=2, cache_policy=NO_CACHE)
def mine_candidates(
    scan: PreparedScan, segmentation_uri: str, grouping: GroupingSettings, pipeline: Pipeline
) -> State | PreparedScan:
    """Cut crops at the segmenter's own candidates of a training scan: it is all the classifier sees at inference.

    A candidate within a nodule's radius shows that nodule, one of unknown malignancy too; one within an excluded
    finding's radius is left out.
    The segmenter was trained on the same scan, not on other folds of the training scans, so that these candidates
    flatter it: folds would train it as many times.
    """
    # Runs of other seeds or folds share this home: each segmenter's crops lie apart.
    mined_by = digest(segmentation_uri)[:8]
    folder = scan.crops.parent.with_name(f"{scan.crops.parent.stem}-mined-{mined_by}.zarr") / scan.series_uid
    key = {
        "series_uid": scan.series_uid,
        "crops": scan.digest,
        "excluded": digest([asdict(e) for e in scan.excluded]),
        "model": segmentation_uri,
        "grouping": asdict(grouping),
        "code": code_digest((*INFERENCE_MODULES, "crop_cache.py")),
        "near_mm": MINED_NEAR_MM,
    }
    mined = replace(scan, mined=folder, digest=digest(key))
    if groups.is_current(folder, key):
        groups.touch(folder)
        return kept(mined)
    hu, grid = store.read_volume(scan.store), store.read_grid(scan.store)
    with gpu_slots(pipeline.device) as gpus:
        device = resolve_device(cuda_name(gpus, pipeline.device))
        model = load_unet(pipeline.home, segmentation_uri, device)
        marked = segment(hu, model, floor=grouping.floor)
    centers = group_candidates(marked, hu, grid, grouping).centers_irc
    sites: list[crop_cache.CropSite] = []
    known: tuple[Nodule | Annotation, ...] = (*scan.nodules, *scan.unjudged)
    for center, point in zip(centers, irc_to_xyz(centers, grid)):
        near = [n for n in known if math.dist(point, n.center_xyz) < max(n.diameter_mm / 2, MINED_NEAR_MM)]
        nodule = min(near, key=lambda n: math.dist(point, n.center_xyz), default=None)
        if nodule is None and any(math.dist(point, e.center_xyz) < e.diameter_mm / 2 for e in scan.excluded):
            continue
        label = crop_cache.NON_NODULE
        if isinstance(nodule, Nodule):
            label = crop_cache.MALIGNANT if nodule.malignant else crop_cache.BENIGN
        elif nodule:
            label = crop_cache.UNJUDGED
        index, row, col = center.tolist()
        sites.append(
            crop_cache.CropSite(
                center_irc=(index, row, col),
                label=label,
                diameter_mm=nodule.diameter_mm if nodule else math.nan,
                ratings=nodule.ratings if isinstance(nodule, Nodule) else (),
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


def _classification(parameters: dict[str, Any]) -> str:
    return f"train classification {parameters['member'] + 1}"


def _malignancy(parameters: dict[str, Any]) -> str:
    return f"train malignancy {parameters['way']} {parameters['member'] + 1}"


@task(name="train_classification", task_run_name=_classification, **ONCE_MORE)  # type: ignore[arg-type]
def train_classification(
    scans: Sequence[PreparedScan], recipe: Recipe, pipeline: Pipeline, segmentation_uri: str, member: int = 0
) -> State | TrainedModel:
    """Train the nodule classifier, or one member of an ensemble of them, and log its best epoch."""
    settings = recipe.classification
    return train_model(
        Training(
            stage="classification",
            name=f"{recipe.name}-nodule{_suffix(member)}",
            settings=settings,
            scans=scans,
            pipeline=_seeded(pipeline, member),
            recipe_name=recipe.name,
            sensitivity=recipe.nodule_sensitivity,
            parents={"segmentation": segmentation_uri} if settings.mined else {},
        )
    )


@task(name="train_malignancy", task_run_name=_malignancy, **ONCE_MORE)  # type: ignore[arg-type]
def train_malignancy(
    scans: Sequence[PreparedScan],
    recipe: Recipe,
    way: Way,
    pipeline: Pipeline,
    nodule_uri: str,
    member: int = 0,
) -> State | TrainedModel:
    """Train one malignancy classifier, fine-tuned or from scratch, and log its best epoch beside the diameter's AUC."""
    settings: MalignancyRecipe = getattr(recipe, way)

    def nodule_weights() -> Mapping[str, torch.Tensor]:
        return tracking.load_model(pipeline.home, nodule_uri, expect_stage="classification")[1]

    from_nodule = settings.start == "nodule"
    return train_model(
        Training(
            stage="malignancy",
            name=f"{recipe.name}-malignancy-{way}{_suffix(member)}",
            settings=settings,
            scans=scans,
            pipeline=_seeded(pipeline, member),
            recipe_name=recipe.name,
            sensitivity=recipe.malignant_sensitivity,
            parents={"classification": nodule_uri} if from_nodule else {},
            parent_weights=nodule_weights if from_nodule else None,
            extra={
                "val": {"diameter_auc": diameter_baseline(scans, "val")},
                "test": {"diameter_auc": diameter_baseline(scans, "test")},
            },
        )
    )


def _suffix(member: int) -> str:
    return f"-{member + 1}" if member else ""


def _seeded(pipeline: Pipeline, member: int) -> Pipeline:
    return replace(pipeline, seed=pipeline.seed + member)
