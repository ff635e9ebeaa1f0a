"""Flows of LUNA16's size: what is stored of their parameters is small, and what they get is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.runtime import flow_run
from prefect.testing.utilities import prefect_test_harness

from flows.evaluate import convert, evaluate
from flows.folds import fold_evidence
from flows.inner import InnerFlow, inner_flow
from flows.train import train
from flows.watched import watched
from lungml.home import Home
from lungml.luna import Excluded, Nodule
from lungml.recipes import demo
from lungml.recipes.data import PreparedScan
from tasks.pipeline import Pipeline

LIMIT = 524_288  # bytes: what a Prefect server takes, unless somebody set it otherwise
SCANS, EXCLUDED = 888, 40  # LUNA16's, and its excluded findings a scan


@dataclass(frozen=True)
class Data:
    scans: tuple[PreparedScan, ...]


@pytest.fixture(scope="module")
def scans() -> tuple[PreparedScan, ...]:
    place: dict[str, Any] = {"series_uid": "1." * 30, "center_xyz": (-100.56, 67.26, -231.81), "diameter_mm": 6.4}
    scan = PreparedScan(
        series_uid="0", split="train", store=Path("/a/scans/0"), mask_name="mask", crops=Path("/a/crops/0"),
        crops_digest="0" * 24, digest="0" * 24, nodules=(Nodule(**place, malignant=True, ratings=(4, 5)),),
        excluded=(Excluded(**place),) * EXCLUDED,
    )  # fmt: skip
    return tuple(replace(scan, series_uid=str(number)) for number in range(SCANS))


@inner_flow(name="luna", flow_run_name="count {pipeline.seed}")
@watched
def count(scans: Sequence[PreparedScan], data: Data, pipeline: Pipeline, stage: str = "val", more: None = None) -> int:
    assert len(data.scans) == len(scans)
    assert all(isinstance(scan, PreparedScan) for scan in scans)
    return len(scans)


def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(home=Home(tmp_path), pipeline_id="", origin="real", seed=7)


def test_long_parameters_are_stored_in_words_and_short_ones_as_they_are(
    scans: tuple[PreparedScan, ...], tmp_path: Path
) -> None:
    given = {"scans": scans, "data": Data(scans[:20]), "pipeline": pipeline(tmp_path), "stage": "val", "more": None}
    stored = count.serialize_parameters(given)
    assert list(stored) == list(given)
    assert (stored["scans"], stored["data"]) == ("888 x PreparedScan", "<Data>")
    assert (stored["stage"], stored["more"], stored["pipeline"]["seed"]) == ("val", None, 7)
    assert len(json.dumps(stored)) < 2_000


@pytest.mark.parametrize("inner", [train, evaluate, convert, fold_evidence], ids=lambda inner: inner.fn.__name__)
def test_every_flow_that_is_given_records_of_all_scans_is_an_inner_one(
    inner: Any, scans: tuple[PreparedScan, ...]
) -> None:
    assert isinstance(inner, InnerFlow)
    assert len(json.dumps(inner.serialize_parameters({"scans": scans, "recipe": demo()}))) < LIMIT / 20


@pytest.mark.slow
def test_scans_as_many_as_luna16s_come_through_a_server(scans: tuple[PreparedScan, ...], tmp_path: Path) -> None:
    stored: list[dict[str, Any]] = []

    @flow(name="luna")
    def outer() -> int:
        counted = count(scans, Data(scans), pipeline(tmp_path))
        with get_client(sync_client=True) as client:
            runs = [run for run in client.read_flow_runs() if str(run.id) != flow_run.id]
        stored.extend({"name": run.name, **run.parameters} for run in runs)
        return counted

    with prefect_test_harness(server_startup_timeout=180):
        assert outer() == SCANS
    (run,) = stored
    assert (run["name"], run["scans"]) == ("count 7", "888 x PreparedScan")
