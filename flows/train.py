"""From prepared scans to three models and the bundle that holds them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import gather
from lungml.recipes import by_name
from lungml.recipes.data import PreparedScan, of_split
from tasks.training import (
    Pipeline,
    TrainedModel,
    assemble_bundle,
    choose_malignancy,
    mine_candidates,
    train_classification,
    train_malignancy,
    train_segmentation,
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training left: the models, the malignancy classifier that was kept, and the bundle's URI."""

    segmentation: TrainedModel
    nodule: TrainedModel
    malignancy: TrainedModel
    others: tuple[TrainedModel, ...]
    bundle_uri: str


# One scan at a time: the segmenter already uses every core.
@flow(
    name="luna",
    flow_run_name="train",
    task_runner=ThreadPoolTaskRunner(max_workers=1),
    validate_parameters=False,
)
def train(scans: Sequence[PreparedScan], recipe: str, pipeline: Pipeline) -> Trained:
    """Segmentation -> the segmenter's own candidates -> nodule classifier -> malignancy, two ways -> bundle."""
    settings = by_name(recipe)
    segmentation = train_segmentation.submit(scans, settings, pipeline).result()
    if settings.classification.mined:
        mining = mine_candidates.map(
            of_split(scans, "train"),
            segmentation_uri=unmapped(segmentation.uri),
            grouping=unmapped(settings.grouping),
            pipeline=unmapped(pipeline),
        )
        scans = [*gather(mining, "mining candidates"), *of_split(scans, "val"), *of_split(scans, "test")]
    nodule = train_classification.submit(scans, settings, pipeline, segmentation.uri).result()
    ways = [
        train_malignancy.submit(scans, settings.name, way, pipeline, nodule.uri).result()
        for way in (settings.finetuned, settings.scratch)
    ]
    malignancy = choose_malignancy(ways)
    return Trained(
        segmentation=segmentation,
        nodule=nodule,
        malignancy=malignancy,
        others=tuple(model for model in ways if model.uri != malignancy.uri),
        bundle_uri=assemble_bundle(segmentation, nodule, malignancy, settings, pipeline),
    )
