"""The whole pipeline: prepare -> train three models -> evaluate end to end. Read this first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefect import flow
from prefect.runtime import flow_run

from flows.evaluate import evaluate
from flows.prepare import prepare
from flows.train import Trained, train
from lungml.home import Home
from lungml.masks import MaskRule
from tasks.data import make_phantoms
from tasks.evaluation import SplitScore, publish_summary
from tasks.training import Pipeline

LUNA16_STRIDE = 10  # the report's split: 80/10/10
DEMO_STRIDE = 5  # of some 36 scans a tenth would be too few to tell anything


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one run of the pipeline reached."""

    trained: Trained
    scores: tuple[SplitScore, ...]
    origin: Literal["real", "phantom"]


@flow(name="luna", flow_run_name="end-to-end {recipe}")
def end_to_end(
    luna_dir: str | None = None,
    tables_dir: str | None = None,
    recipe: Literal["demo", "report"] = "demo",
    val_stride: int | None = None,
    seed: int = 0,
    device: str = "auto",
    phantoms: int = 36,
    fresh: bool = False,
    lidc: str | None = None,
    more: str | None = None,
    masks: MaskRule | None = None,
) -> Summary:
    """Train and evaluate the three models on a LUNA16 tree, or on synthetic scans where none is given.

    Args:
        luna_dir: holds `**/<series_uid>.mhd`; None draws synthetic scans first.
        tables_dir: holds the csv tables, when they do not lie in `luna_dir`.
        recipe: "report" reproduces the report; "demo" is cut to minutes.
        val_stride: every n-th series validates, the one after it tests; when not given, 10 for a folder of scans
            and 5 for synthetic ones.
        seed: of everything random.
        device: auto, cpu or cuda.
        phantoms: how many synthetic scans to draw where no folder is given.
        fresh: train again even where a model of equal data, settings and code is finished.
        lidc: LIDC-IDRI's XML files, as of `prepare`.
        more: LIDC-IDRI's DICOM series, to train on those outside LUNA16, as of `prepare`.
        masks: another rule for the masks than the recipe's, as of `prepare`.
    """
    home = Home.from_env()
    folder = luna_dir or make_phantoms.submit(home, scans=phantoms, seed=seed).result()
    stride = val_stride or (LUNA16_STRIDE if luna_dir else DEMO_STRIDE)
    prepared = prepare(
        str(folder), tables_dir, recipe, stride, seed, for_training=True, lidc=lidc, more=more, masks=masks
    )
    pipeline = Pipeline(
        home=home,
        pipeline_id=str(flow_run.id),
        origin=prepared.origin,
        seed=seed,
        device=device,
        fresh=fresh,
    )
    trained = train(prepared.scans, recipe, pipeline)
    models = (trained.segmentation, trained.nodule, trained.malignancy)
    scores = evaluate(prepared.scans, prepared.set_aside, trained.bundle_uri, models, pipeline)
    publish_summary(scores, (*models, *trained.others), pipeline)
    return Summary(trained=trained, scores=scores, origin=pipeline.origin)
