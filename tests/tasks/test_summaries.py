"""The pages of a run's stages: what they count, what they set side by side, and what they never say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lungml.gate import Decision
from lungml.home import Home
from lungml.recipes.data import PreparedScan
from lungml.score import Table
from lungml.wording import BAND
from tasks import model_page as model_module
from tasks import summaries, tracking
from tasks.corrections import metrics_of
from tasks.links import MLFLOW_URL, UNLINKED
from tasks.model_page import model_page
from tasks.pipeline import Pipeline, TrainedModel
from tasks.recorded import READ
from tasks.summaries import publish_summary, summarize_prepare
from tasks.summary_pages import evaluation_page, prepare_page, summary_page
from tasks.tracking import TrackingError
from tasks.truth import ScanTruth

KIND = "?workflowType=machine_learning"


@pytest.fixture
def pipeline(home: Home, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv(MLFLOW_URL, "http://ui:1")
    return Pipeline(home=home, pipeline_id="this-run", origin="phantom", seed=0)


def rows(page: str, heading: str = "") -> list[list[str]]:
    """The cells of the first table below a heading, its head first."""
    lines = page[page.index(heading) :].splitlines() if heading else page.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return [table[0], *table[2:]]


# prepare


def prepared(truth: ScanTruth) -> PreparedScan:
    return PreparedScan(
        series_uid=truth.series_uid,
        split=truth.split,
        store=Path("s"),
        mask_name="mask",
        crops=Path("c"),
        crops_digest="",
        digest="",
        nodules=truth.nodules,
        excluded=(),
    )


@pytest.fixture
def truths(tmp_path: Path, toy: Callable[..., ScanTruth]) -> list[ScanTruth]:
    """Each has one malignant and one benign nodule."""
    return [toy(tmp_path / "Doe, John", f"1.{n}", split) for n, split in enumerate(["train", "train", "val", "test"])]


def test_every_scan_and_nodule_is_counted_once(truths: list[ScanTruth]) -> None:
    aside = [replace(truths[3], reason="1.3.mhd: 1.3.raw is too short: 5 bytes, the header says 6; copy it again")]
    page = prepare_page([prepared(t) for t in truths[:3]], aside, {"converting": 2, "drawing masks": 0}, "real")
    assert rows(page)[1:] == [
        ["training", "2", "0", "4", "2", "0"],
        ["validation", "1", "0", "2", "1", "0"],
        ["test", "1", "1", "2", "1", "0"],
        ["all", "4", "1", "8", "4", "0"],
    ]
    assert "- converting: 2 scans kept from before\n- drawing masks: nothing" in page
    assert "Real scans. **Not for clinical use.**" in page


def test_reasons_that_differ_in_names_and_numbers_are_one(truths: list[ScanTruth]) -> None:
    aside = [
        replace(truths[0], reason="1.0.mhd: 1.0.raw is too short: 5 bytes, the header says 6; copy it again"),
        replace(truths[1], reason="1.1.mhd: 1.1.raw is too short: 17 bytes, the header says 66; copy it again"),
        replace(truths[2], reason="1.2.mhd: no spacing; mend the header"),
    ]
    page = prepare_page([prepared(truths[3])], aside, {}, "phantom")
    assert rows(page, "## Set aside: 3 of 4 scans")[1:] == [
        ["its file is too short: … bytes, the header says …; copy it again", "2", "`1.0`"],
        ["no spacing; mend the header", "1", "`1.2`"],
    ]
    assert "Doe" not in page


def test_a_page_that_cannot_be_shown_costs_no_run(truths: list[ScanTruth], monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    log = SimpleNamespace(warning=lambda text, *values: said.append(text % values))

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(summaries, "get_run_logger", lambda: log)
    monkeypatch.setattr(summaries, "create_markdown_artifact", refuse)
    summarize_prepare.fn([prepared(t) for t in truths], [], {}, "real")
    assert said == [r"no summary luna-prepare: ConnectionError: nobody\nthere"]


def test_a_page_has_its_key(truths: list[ScanTruth], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(
        summaries, "create_markdown_artifact", lambda text, **fields: shown.append({"text": text, **fields})
    )
    summarize_prepare.fn([prepared(t) for t in truths], [], {}, "real")
    (artifact,) = shown
    assert artifact["key"] == "luna-prepare"
    assert "Every scan reads well." in artifact["text"]


# models


def trained(
    home: Home,
    name: str,
    val: Mapping[str, float],
    *,
    pipeline_id: str = "this-run",
    data: str = "d1",
    read: str = "",
    corrections: Mapping[str, int] | None = None,
    stage: str = "malignancy",
) -> TrainedModel:
    """A model with a run that says how it did, without files."""
    with tracking.open_run(home, stage, name=f"{name} seed 0", pipeline_id=pipeline_id, sample_every_s=None) as run:
        run.log_datasets("scans", {"val": data}, sizes={"val": {"scans": 2, "nodules": 7, "malignant": 3}})
        run.log_metrics({f"val/best_{metric}": value for metric, value in val.items()})
        run.log_metrics(metrics_of(corrections or {}))
        if read:
            run.log_tag(f"{READ}val", read)
        logged = run.client.create_logged_model(run.experiment_id, name=name, source_run_id=run.run_id)
    uri = f"models:/{logged.model_id}"
    return TrainedModel(stage=stage, name=name, uri=uri, best_epoch=3, val=val, test={})  # type: ignore[arg-type]


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a bundle of some malignancy models be the one in use."""

    def stand(*models: TrainedModel) -> None:
        monkeypatch.setattr(model_module, "to_beat", lambda home, origin: "models:/luna/3")
        fields = {"malignancy": [model.uri for model in models]}
        monkeypatch.setattr(model_module.registry, "read_bundle", lambda home, uri: fields)

    return stand


def test_models_stand_beside_those_in_use(pipeline: Pipeline, standing: Callable[..., None]) -> None:
    home = pipeline.home
    standing(
        trained(home, "old", {"auc": 0.5, "f1": 0.2, "threshold": 0.3}, pipeline_id="another"),
        trained(home, "old-2", {"auc": 0.7, "threshold": 0.3}, pipeline_id="another"),
    )
    new = trained(home, "new", {"auc": 0.9, "f1": 0.5, "threshold": 0.5})
    kept = trained(home, "new-2", {"auc": 0.6, "f1": math.nan, "threshold": 0.4}, pipeline_id="another")
    out = trained(home, "scratch", {"auc": 0.1, "f1": 0.1, "threshold": 0.5})
    page = model_page([new, kept], pipeline, [out])
    assert rows(page, "## On the validation scans") == [
        ["metric", "mean of the 2 that go on", "in use: models:/luna/3", "difference", "new", "new-2", "scratch"],
        ["auc", "0.750", "0.600", "+0.150", "0.900", "0.600", "0.100"],
        ["f1", "none", "", "", "0.500", "none", "0.100"],
        ["threshold", "0.450", "0.300", "", "0.500", "0.400", "0.500"],
    ]
    assert "Both were judged on the same validation scans." in page
    assert [row[1:4] for row in rows(page)[1:]] == [
        ["goes on", "in this run", "3"],
        ["goes on", "before, and kept", "3"],
        ["is left out", "in this run", "3"],
    ]
    experiment = tracking.experiment_id_of(home, "malignancy")
    assert f"(http://ui:1/#/experiments/{experiment}/models/{new.uri.removeprefix('models:/')}{KIND})" in page
    assert f"[new seed 0](http://ui:1/#/experiments/{experiment}/runs/" in page
    assert rows(page, "## What it learned from")[1] == ["validation", "2", "7", "3"]
    assert "Synthetic scans. **Not for clinical use.**" in page


def test_other_scans_are_no_comparison(pipeline: Pipeline, standing: Callable[..., None]) -> None:
    standing(trained(pipeline.home, "old", {"auc": 0.5}, data="others"))
    page = model_page([trained(pipeline.home, "new", {"auc": 0.9})], pipeline)
    assert "judged on other validation scans" in page
    assert "mean of the" not in page  # of one there is none


@pytest.mark.parametrize(
    ("data", "read", "same"),
    [
        (("d1", "d1"), ("r1", "r2"), False),
        (("d1", "d2"), ("r1", "r1"), True),  # what differs, such as a label, is nothing that this stage reads
        (("d1", "d1"), ("", "r1"), True),  # of an older run only all of its data is known
        (("d1", "d2"), ("r1", ""), False),
    ],
)
def test_what_a_stage_reads_of_the_scans_makes_them_the_same(
    pipeline: Pipeline, standing: Callable[..., None], data: tuple[str, str], read: tuple[str, str], same: bool
) -> None:
    old, new = (trained(pipeline.home, f"m{n}", {"auc": 0.5}, data=data[n], read=read[n]) for n in (0, 1))
    standing(old)
    assert ("Both were judged on the same validation scans." in model_page([new], pipeline)) == same


def test_the_page_tells_the_corrections_that_a_model_learned_from(pipeline: Pipeline) -> None:
    new = trained(pipeline.home, "new", {"auc": 0.9})
    corrected = trained(
        pipeline.home, "old", {"auc": 0.9}, pipeline_id="before", corrections={"version": 4, "labels": 2}
    )
    assert "corrections" not in model_page([new], pipeline)
    assert "before this run" not in model_page([new], pipeline)
    page = model_page([corrected], pipeline)
    assert "These are the counts of when it was trained, before this run." in page
    assert (
        "It learned from readers' corrections up to version 4: 0 used as positives, 0 as hard negatives, 2 as "
        "malignancy labels; 0 disputed, 0 kept of validation and test scans." in page
    )


def test_without_anything_in_use_the_models_stand_alone(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    new = trained(pipeline.home, "new", {"auc": 0.9})
    page = model_page([new], pipeline)
    assert "There is no @demo yet to compare with." in page
    assert rows(page, "## On the validation scans") == [["metric", "new"], ["auc", "0.900"]]

    def gone(home: Home, uri: str) -> None:
        raise TrackingError("models:/luna/3: no such model")

    monkeypatch.setattr(model_module, "to_beat", lambda home, origin: "models:/luna/3")
    monkeypatch.setattr(model_module.registry, "read_bundle", gone)
    assert "@demo cannot be compared with: models:/luna/3: no such model." in model_page([new], pipeline)


def test_a_bundle_of_weights_from_elsewhere_says_nothing_to_compare(
    pipeline: Pipeline, standing: Callable[..., None]
) -> None:
    standing(replace(trained(pipeline.home, "old", {}), uri="models:/m-0123"))
    assert "has models whose runs do not say how they did" in model_page(
        [trained(pipeline.home, "new", {"auc": 0.9})], pipeline
    )


def test_without_a_ui_runs_are_named_and_the_page_says_why(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MLFLOW_URL)
    page = model_page([trained(pipeline.home, "new", {"auc": 0.9})], pipeline)
    assert "`new seed 0`" in page
    assert UNLINKED in page
    assert str(pipeline.home.root) not in page


# evaluation


def score(split: str, cpm: float, counts: tuple[tuple[int, int, int, int], ...]) -> Any:
    table = Table(counts=counts, scans=4, scans_without_findings=0, ignored_on_excluded=0)  # type: ignore[arg-type]
    metrics = {
        "cpm": cpm,
        "found": table.found,
        "malignant_flagged": table.malignant_flagged,
        "false_positives_per_scan": table.false_positives / 4,
        "malignancy_auc": 0.8,
        "diameter_auc": 0.9,
        "end_to_end_malignancy_auc": math.nan,
    }
    band = (cpm - 0.1, cpm + 0.1)
    return SimpleNamespace(split=split, table=table, froc=SimpleNamespace(cpm=cpm), cpm_band=band, metrics=metrics)


VAL = score("val", 0.5, ((0, 3, 2, 1), (1, 0, 4, 0), (0, 1, 1, 3)))
TEST = score("test", 0.6, ((0, 3, 1, 1), (0, 0, 4, 0), (0, 1, 0, 4)))
OLD = score("test", 0.4, ((0, 3, 6, 2), (1, 0, 3, 0), (2, 1, 0, 2)))


def test_a_bundle_stands_beside_the_one_in_use_on_the_test_scans(pipeline: Pipeline) -> None:
    decision = Decision(
        challenger="models:/luna/7",
        champion="models:/luna/3",
        alias="demo",
        promoted=False,
        reasons=("too few scans", "worse"),
        checks=(),
    )
    page = evaluation_page([VAL, TEST], "models:/luna/7", "abc", pipeline, OLD, "models:/luna/3", decision)  # type: ignore[arg-type]
    assert rows(page) == [
        ["", "validation (4 scans)", "test (4 scans)", "test, models:/luna/3", "difference"],
        ["CPM", "0.500 (0.400 to 0.600)", "0.600 (0.500 to 0.700)", "0.400 (0.300 to 0.500)", "+0.200"],
        ["nodules found", "8 of 10", "8 of 9", "5 of 9", "+3"],
        ["malignant nodules flagged", "3 of 5", "4 of 5", "2 of 5", "+2"],
        ["false positives a scan", "0.8", "0.5", "2.0", "-1.5"],
        ["malignancy AUC", "0.800", "0.800", "0.800", "0.000"],
        ["AUC of the diameter alone", "0.900", "0.900", "0.900", "0.000"],
        ["end-to-end malignancy AUC", "none", "none", "none", "none"],
    ]
    assert "- gate: it does not become @demo\n    - too few scans\n    - worse" in page
    assert f"[models:/luna/7](http://ui:1/#/models/luna/versions/7{KIND})" in page
    assert rows(page, "## Test scans")[3] == ["malignant", "0", "1", "0", "4"]


def test_the_first_bundle_has_nothing_beside_it(pipeline: Pipeline) -> None:
    few = SimpleNamespace(**{**vars(TEST), "cpm_band": (math.nan, math.nan)})
    page = evaluation_page([VAL, few], "models:/luna/1", "abc", pipeline)  # type: ignore[list-item]
    assert rows(page)[1] == ["CPM", "0.500 (0.400 to 0.600)", "0.600"]
    assert rows(page)[0] == ["", "validation (4 scans)", "test (4 scans)"]
    assert "there is nothing to compare with" in page
    assert "gate" not in page


def test_the_runs_page_names_its_models_and_tables(pipeline: Pipeline) -> None:
    new = trained(pipeline.home, "new", {"auc": 0.9})
    page = summary_page([VAL, TEST], [new], pipeline, "models:/luna/7")
    assert rows(page)[1][:5] == ["new", "3", "auc", "0.900", ""]
    assert f"CPM 0.600, {BAND} 0.500 to 0.700" in page
    assert rows(page, "## Validation scans")[1] == ["non-nodule", "", "3", "2", "1"]


def test_the_runs_page_and_its_log_say_first_what_became_of_the_bundle(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shown: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: said.append(text % values), warning=pytest.fail)
    monkeypatch.setattr(summaries, "get_run_logger", lambda: log)
    monkeypatch.setattr(summaries, "create_markdown_artifact", lambda text, **_: shown.append(text))
    decision = Decision(
        challenger="models:/luna/7", champion=None, alias="demo", promoted=True, reasons=("better",), checks=()
    )
    publish_summary.fn([TEST], [], pipeline, "models:/luna/7", decision=decision, drift="none")
    publish_summary.fn([TEST], [], pipeline, "models:/luna/7")
    assert said == [
        "models:/luna/7 becomes @demo: better",
        "test: CPM 0.600, 8 of 9 nodules found",
        "models:/luna/7 is in use already",
        "test: CPM 0.600, 8 of 9 nodules found",
    ]
    assert shown[0].startswith("# `models:/luna/7` becomes @demo\n")
    assert "- better\n- drift: none\n" in shown[0]
    assert shown[1].startswith("# `models:/luna/7` is in use already\n")
    assert "drift:" not in shown[1]
