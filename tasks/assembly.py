"""Which models go into the bundle, and what are their probabilities worth?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lungml import store
from lungml.calibration import Calibration, fit_platt
from lungml.geometry import irc_to_xyz
from lungml.metrics import is_better
from lungml.recipes import Keeps, Recipe
from lungml.score import OFFICIAL_REACH, Place, ScoredFinding, find_hits
from tasks import registry
from tasks.finding import FoundScan, NamedBundle, Readable
from tasks.pipeline import Pipeline, TrainedModel


@task(name="choose_malignancy", task_run_name="choose malignancy", cache_policy=NO_CACHE)
def choose_malignancy(ways: Sequence[Sequence[TrainedModel]], keeps: Keeps = "better") -> Sequence[TrainedModel]:
    """The way whose members have the higher mean validation AUC; the first wins a tie, and no AUC never wins.

    Where the recipe keeps both ways, all of their members; or those of the way that it names.
    """
    if keeps == "both":
        return [model for way in ways for model in way]
    if keeps != "better":
        return ways[0 if keeps == "finetuned" else 1]
    kept_way, best = ways[0], _mean(ways[0], "auc")
    for way in ways[1:]:
        auc = _mean(way, "auc")
        if is_better(auc, best):
            kept_way, best = way, auc
    get_run_logger().info("kept %s: validation AUC %.4f", ", ".join(model.name for model in kept_way), best)
    return kept_way


def draft_bundle(
    segmentation: TrainedModel,
    nodules: Sequence[TrainedModel],
    malignancies: Sequence[TrainedModel],
    recipe: Recipe,
    pipeline: Pipeline,
) -> NamedBundle:
    """The models and their settings before calibration, not registered.

    A threshold is the members' mean of those that reach the recipe's sensitivity on the validation crops.
    """
    fields = {
        "segmentation": segmentation.uri,
        "nodule": [model.uri for model in nodules],
        "malignancy": [model.uri for model in malignancies],
        "grouping": asdict(recipe.grouping),
        "nodule_threshold": _mean(nodules, "threshold"),
        "malignant_threshold": _mean(malignancies, "threshold"),
        "test_time_flips": list(recipe.test_time_flips),
        "inference": asdict(recipe.inference),
        "recipe": recipe.name,
        "origin": pipeline.origin,
    }
    return NamedBundle(name="the draft", fields=fields)


@task(name="calibrate", task_run_name="calibrate {draft.name}", cache_policy=NO_CACHE)
def calibrate(draft: NamedBundle, scans: Sequence[Readable], found: Sequence[FoundScan]) -> NamedBundle:
    """The draft with curves that make its probabilities those of the validation scans, and its thresholds moved along.

    The curve of the nodule probability is fitted to all candidates but those on an excluded finding only, the one of
    malignancy to the annotated nodules at their centres. These scans also chose the models, so that the curves are a
    little sure of themselves. Too few nodules of one kind fit none.
    """
    probs: list[float] = []
    is_nodule: list[bool] = []
    said: list[float] = []
    malignant: list[bool] = []
    for scan, files in zip(scans, found, strict=True):
        answers, annotated = files.read()
        points = irc_to_xyz(answers.candidates.centers_irc, store.read_grid(scan.store)).tolist()
        marks = [ScoredFinding(center_xyz=(x, y, z), prob_nodule=np.nan) for x, y, z in points]
        known: list[Place] = [*scan.nodules, *scan.unrated]
        on_nodule = np.asarray(find_hits(known, marks, OFFICIAL_REACH, scan.series_uid).any(axis=0))
        on_excluded = np.asarray(find_hits(scan.excluded, marks, OFFICIAL_REACH, scan.series_uid).any(axis=0))
        counted = np.flatnonzero(on_nodule | ~on_excluded)
        probs += answers.prob_nodule[counted].tolist()
        is_nodule += on_nodule[counted].tolist()
        said += annotated.prob_malignant.tolist()
        malignant += [nodule.malignant for nodule in scan.nodules]
    calibration = Calibration(nodule=fit_platt(is_nodule, probs), malignancy=fit_platt(malignant, said))
    _tell("nodule", calibration.nodule_probs(np.array(probs)), probs, is_nodule)
    _tell("malignancy", calibration.malignancy_probs(np.array(said)), said, malignant)
    nodule, malignancy = (
        float(curve(np.array([draft.fields[name]]))[0])
        for curve, name in (
            (calibration.nodule_probs, "nodule_threshold"),
            (calibration.malignancy_probs, "malignant_threshold"),
        )
    )
    fields = {
        **draft.fields,
        "calibration": calibration.as_dict(),
        "nodule_threshold": nodule,
        "malignant_threshold": malignancy,
    }
    return NamedBundle(name="the calibrated draft", fields=fields)


@task(name="register_bundle", task_run_name="register {bundle.name}", cache_policy=NO_CACHE)
def register_bundle(bundle: NamedBundle, pipeline: Pipeline) -> str:
    """Make a bundle a version of `luna`, without an alias; returns its URI."""
    return registry.register_bundle(pipeline.home, bundle.fields)


def _tell(name: str, after: Any, before: Sequence[float], targets: Sequence[bool]) -> None:
    """Say how far a mean probability was from the share of those that were true."""
    if len(targets):
        get_run_logger().info(
            "%s: %d of %d are true; the networks said %.3f on average, calibrated %.3f",
            name,
            sum(targets),
            len(targets),
            fmean(before),
            float(np.mean(after)),
        )


def _mean(models: Sequence[TrainedModel], metric: str) -> float:
    """A validation metric, averaged over the members of an ensemble; NaN where one has none."""
    return fmean(model.val[metric] for model in models)
