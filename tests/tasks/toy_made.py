"""Toy bundles whose run says how they were made: as after a pipeline run, in a second instead of minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lungml.home import Home
from lungml.luna import Nodule
from lungml.recipes.data import PreparedScan
from tasks.evaluation import SplitScore, log_end_to_end
from tasks.manifest import describe_bundle
from tasks.pipeline import Pipeline
from tasks.recorded import told_parameters
from tests.lungml.test_evaluation_report import CARD as FEW
from tests.lungml.test_evaluation_report import MANY
from tests.tasks.toy_bundles import toy_bundle

ASKED: Mapping[str, Any] = {
    "luna_dir": "/data/named after somebody",
    "tables_dir": None,
    "recipe": "demo",
    "seed": 4,
    "device": "auto",
    "devices": 1,
    "precision": "fp32",
    "overrides": {"classification.fit.epochs": 2},
}
SCORES = (SplitScore(split="val", card=FEW), SplitScore(split="test", card=MANY))


def toy_scan(uid: str, split: str, digest: str = "") -> PreparedScan:
    """A scan of which nothing is read: two nodules, one of them malignant."""
    nodules = tuple(
        Nodule(series_uid=uid, center_xyz=(0, 0, 0), diameter_mm=9, malignant=malignant, ratings=())
        for malignant in (True, False)
    )
    return PreparedScan(
        series_uid=uid,
        split=split,  # type: ignore[arg-type]
        store=Path("nowhere"),
        mask_name="mask",
        crops=Path("nowhere"),
        crops_digest="",
        digest=digest or f"digest of {uid}",
        nodules=nodules,
        excluded=(),
    )


SCANS = (toy_scan("9.1", "train"), toy_scan("9.4", "train"), toy_scan("9.2", "val"), toy_scan("9.3", "test"))


def pipeline_in(home: Home, pipeline_id: str = "flow1") -> Pipeline:
    """A pipeline run on synthetic scans."""
    return Pipeline(home=home, pipeline_id=pipeline_id, origin="phantom", seed=4, device="cpu")


def judge(
    home: Home,
    uri: str,
    *,
    scans: Sequence[PreparedScan] = SCANS,
    asked: Mapping[str, Any] | None = ASKED,
    pipeline_id: str = "flow1",
    corrections: Mapping[str, int] | None = None,
) -> str:
    """Log a bundle's scores and describe it, as the pipeline does; returns the run's id."""
    pipeline = replace(pipeline_in(home, pipeline_id), corrections=corrections or {})
    parameters = None if asked is None else told_parameters(asked)
    run_id: str = log_end_to_end.fn(SCORES, uri, [], pipeline, scans=scans, parameters=parameters)
    describe_bundle.fn(uri, run_id, SCORES, pipeline)
    return run_id


def made_bundle(home: Home, *, asked: Mapping[str, Any] | None = ASKED, **given: Any) -> str:
    """A toy bundle of synthetic scans that was judged; returns its URI."""
    uri = toy_bundle(home, **{"origin": "phantom", **given})
    judge(home, uri, asked=asked)
    return uri
