"""What random networks say of a toy scan, asked once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungml import findings as finding
from lungml import store
from lungml.answers import read_answers
from lungml.calibration import Calibration, Platt
from lungml.candidates import GroupingSettings
from lungml.findings import asked_from, read_findings
from lungml.home import Home
from lungml.inference import InferenceSettings
from lungml.marked import Marked
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan
from tasks import finding as finding_tasks
from tasks import registry, tracking
from tasks.bundles import stage_example
from tasks.data import build_mask, cache_crops, convert_scan
from tasks.finding import FoundScan, NamedBundle, find_nodules, gather_evidence
from tasks.pipeline import Pipeline
from tasks.promotion import promote
from tasks.rounds import open_round
from tasks.truth import ScanTruth
from tests.tasks.outcomes import done, kept


def pipeline_in(home: Home) -> Pipeline:
    return Pipeline(home=home, pipeline_id="p1", origin="phantom", seed=0, device="cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]) -> Home:
    return new_home(tmp_path_factory.mktemp("finding"))


@pytest.fixture(scope="module")
def scan(home: Home, toy: Callable[..., ScanTruth], no_prefect_run: None) -> PreparedScan:
    stored = convert_scan.fn(toy(home.root / "luna16", "1.0", "val"), home)
    build_mask.fn(stored, "bounded")
    settings = {"negatives": NegativePlan(kind="fixed", per_scan=4), "negative_slabs_per_scan": 2, "seed": 0}
    return cache_crops.fn(stored, home, recipe_name="tiny", rule="bounded", **settings)


@pytest.fixture(scope="module")
def fields(home: Home) -> dict[str, Any]:
    """A bundle that is not registered."""

    def log(stage: str, model: Any) -> str:
        with tracking.open_run(home, stage, name="toy") as run:
            arch = {"stage": stage, "config": asdict(model.config)}
            return tracking.log_model(run, model, arch=arch, example=stage_example(model), name="toy")

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    return {
        "segmentation": log("segmentation", UNet(generator=seeded(1))),
        "nodule": log("classification", NoduleNet(generator=seeded(2))),
        "malignancy": log("malignancy", NoduleNet(generator=seeded(3))),
        "grouping": asdict(GroupingSettings(rule="report")),
        "nodule_threshold": 0.0,
        "malignant_threshold": 0.5,
        "recipe": "toy",
        "origin": "phantom",
    }


@pytest.fixture(scope="module")
def bundle(fields: dict[str, Any]) -> NamedBundle:
    return NamedBundle(name="toy", fields=fields)


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network of random weights marks hundreds of places; here it marks two boxes of 27 voxels, and is counted."""
    calls: list[str] = []

    def segment(hu: np.ndarray, models: tuple[UNet, ...], **_: Any) -> Marked:
        calls.append("segment")
        mask = np.zeros(hu.shape, dtype=bool)
        mask[7:10, 13:16, 13:16] = mask[15:18, 33:36, 29:32] = True
        return Marked.of_mask(mask)

    monkeypatch.setattr(finding, "segment", segment)
    return calls


def test_a_scans_findings_are_written_once(home: Home, scan: PreparedScan, bundle: NamedBundle) -> None:
    pipeline = pipeline_in(home)
    found = done(find_nodules.fn(scan, bundle, pipeline))
    assert found.findings.is_relative_to(home.reports)
    assert (found.findings.parent.name, found.findings.name) == ("1.0", "findings.csv")
    findings = read_findings(found.findings)
    assert sorted(tuple(np.rint(f.center_irc)) for f in findings) == [(8, 14, 14), (16, 34, 30)]
    assert all(f.stage in ("benign", "malignant") for f in findings)  # the bundle's nodule threshold is 0
    assert kept(find_nodules.fn(scan, bundle, pipeline)) == found


def test_damaged_findings_are_written_anew_without_asking(
    home: Home, scan: PreparedScan, bundle: NamedBundle, asked: list[str]
) -> None:
    pipeline = pipeline_in(home)
    found = finding_of(find_nodules.fn(scan, bundle, pipeline))
    text = found.findings.read_text()
    asked.clear()
    for damage in (text[: len(text) // 2], text.replace("benign", "malignant").replace("0.", "0.9")):
        found.findings.write_text(damage)
        assert done(find_nodules.fn(scan, bundle, pipeline)) == found
        assert found.findings.read_text() == text
    found.findings.unlink()
    done(find_nodules.fn(scan, bundle, pipeline))
    assert found.findings.read_text() == text
    assert asked == []


def test_damaged_answers_are_asked_anew(home: Home, scan: PreparedScan, bundle: NamedBundle, asked: list[str]) -> None:
    pipeline = pipeline_in(home)
    found = finding_of(find_nodules.fn(scan, bundle, pipeline))
    asked.clear()
    held = found.answers.read_bytes()
    found.answers.write_bytes(held[:-40])
    done(find_nodules.fn(scan, bundle, pipeline))
    assert asked == ["segment"]
    assert found.answers.read_bytes() == held


def test_another_threshold_or_calibration_judges_anew_and_asks_nothing(
    home: Home, scan: PreparedScan, fields: dict[str, Any], bundle: NamedBundle, asked: list[str]
) -> None:
    pipeline = pipeline_in(home)
    first = finding_of(find_nodules.fn(scan, bundle, pipeline))
    asked.clear()
    alarmed = NamedBundle(name="alarmed", fields={**fields, "malignant_threshold": 0.0})
    calibration = Calibration(malignancy=Platt(slope=1, intercept=3)).as_dict()
    curved = NamedBundle(name="curved", fields={**fields, "calibration": calibration})
    second, third = (done(find_nodules.fn(scan, b, pipeline)) for b in (alarmed, curved))
    assert asked == []
    assert len({first.findings, second.findings, third.findings}) == 3
    assert first.answers == second.answers == third.answers
    assert {f.stage for f in read_findings(first.findings)} == {"benign"}
    assert {f.stage for f in read_findings(second.findings)} == {"malignant"}  # mistake 13: the threshold was ignored
    pairs = list(zip(read_findings(first.findings), read_findings(third.findings), strict=True))
    assert all(after.prob_malignant > before.prob_malignant for before, after in pairs)


def test_a_calibrated_bundle_takes_the_drafts_answers(
    home: Home, scan: PreparedScan, fields: dict[str, Any], asked: list[str]
) -> None:
    # Thresholds move with the curve: the same candidates are asked about malignancy.
    pipeline = pipeline_in(home)
    curve = Platt(slope=0.7, intercept=-2)
    draft = {**fields, "nodule_threshold": 0.5}
    done(find_nodules.fn(scan, NamedBundle(name="draft", fields=draft), pipeline))
    asked.clear()
    after = {
        **draft,
        "calibration": Calibration(nodule=curve).as_dict(),
        "nodule_threshold": float(curve([0.5])[0]),
    }
    done(find_nodules.fn(scan, NamedBundle(name="calibrated", fields=after), pipeline))
    # Registering says the same in another form.
    said = {**after, "test_time_flips": [], "nodule": [after["nodule"]], "inference": asdict(InferenceSettings())}
    uri = registry.register_bundle(home, said)
    kept(find_nodules.fn(scan, NamedBundle.of(home, uri), pipeline))
    assert asked == []


def test_what_is_asked_is_the_same_before_and_after_calibration() -> None:
    rng = np.random.default_rng(4)
    for slope, intercept, raw in zip(rng.uniform(0.2, 3, 300), rng.uniform(-6, 4, 300), rng.uniform(0.02, 0.98, 300)):
        curve = Platt(slope=slope, intercept=intercept)
        shown = float(curve([raw])[0])
        before, after = asked_from(Calibration(), raw), asked_from(Calibration(nodule=curve), shown)
        assert before == pytest.approx(after, abs=2e-6)


def test_a_candidate_exactly_at_the_threshold_is_asked_and_judged_after_calibration(
    home: Home, scan: PreparedScan, fields: dict[str, Any]
) -> None:
    pipeline = pipeline_in(home)
    everything = NamedBundle(name="all", fields={**fields, "nodule_threshold": 0.0})
    answers, _ = finding_of(find_nodules.fn(scan, everything, pipeline)).read()
    for raw in answers.prob_nodule.tolist():
        for curve in (Platt(slope=0.37, intercept=-1.9), Platt(slope=1.7, intercept=0.3)):
            after = {
                **fields,
                "calibration": Calibration(nodule=curve).as_dict(),
                "nodule_threshold": float(curve([raw])[0]),
            }
            draft = finding_of(
                find_nodules.fn(scan, NamedBundle(name="draft", fields={**fields, "nodule_threshold": raw}), pipeline)
            )
            judged = finding_of(find_nodules.fn(scan, NamedBundle(name="after", fields=after), pipeline))
            assert [f.stage for f in read_findings(draft.findings)] == [f.stage for f in read_findings(judged.findings)]


def test_malignancy_is_asked_only_of_what_is_taken_for_a_nodule(
    home: Home, scan: PreparedScan, fields: dict[str, Any]
) -> None:
    pipeline = pipeline_in(home)
    doubting = Calibration(nodule=Platt(slope=1, intercept=-40)).as_dict()  # these networks are very sure
    none = NamedBundle(name="none", fields={**fields, "nodule_threshold": 0.5, "calibration": doubting})
    found = done(find_nodules.fn(scan, none, pipeline))
    findings = read_findings(found.findings)
    assert {f.stage for f in findings} == {"filtered"}
    assert all(math.isnan(f.prob_malignant) for f in findings)
    assert all("below 0.5" in f.reason for f in findings)
    everything = NamedBundle(name="all", fields={**none.fields, "judge_all": True})
    found = done(find_nodules.fn(scan, everything, pipeline))
    assert not any(math.isnan(f.prob_malignant) for f in read_findings(found.findings))


def test_newer_code_or_data_asks_anew(
    home: Home, scan: PreparedScan, bundle: NamedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(home)
    find_nodules.fn(scan, bundle, pipeline)
    kept(find_nodules.fn(replace(scan, digest="other"), bundle, pipeline))  # crops for training change no finding
    other = home.scans / "other.zarr"
    store.write_scan(other, store.read_volume(scan.store), store.read_grid(scan.store), key=store.scan_key("other"))
    changed = replace(scan, store=other, series_uid="1.7")
    done(find_nodules.fn(changed, bundle, pipeline))
    kept(find_nodules.fn(changed, bundle, pipeline))
    monkeypatch.setattr(finding_tasks, "code_digest", lambda modules: "newer")
    find_nodules.fn(changed, bundle, pipeline)
    answers = list(home.reports.rglob("1.7/answers.npz"))
    assert len(answers) == 1
    assert read_answers(answers[0]) is not None


def test_an_alias_that_moved_on_is_judged_by_its_newer_bundle(
    home: Home, scan: PreparedScan, fields: dict[str, Any]
) -> None:
    pipeline = pipeline_in(home)
    for threshold, stage in ((0.5, "benign"), (0.0, "malignant")):
        promote(home, registry.register_bundle(home, {**fields, "malignant_threshold": threshold}), "demo", "newest")
        found = finding_of(find_nodules.fn(scan, NamedBundle.of(home, "models:/luna@demo"), pipeline))
        assert {f.stage for f in read_findings(found.findings)} == {stage}


def test_a_scan_that_fails_leaves_nothing(
    home: Home, scan: PreparedScan, bundle: NamedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(scan, series_uid="1.9")

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(finding, "classify", out_of_memory)
        with pytest.raises(MemoryError):
            find_nodules.fn(broken, bundle, pipeline_in(home))
    assert list(home.reports.rglob("1.9/*")) == []
    done(find_nodules.fn(broken, bundle, pipeline_in(home)))


def test_evidence_joins_truth_and_findings(
    home: Home, scan: PreparedScan, bundle: NamedBundle, toy: Callable[..., ScanTruth]
) -> None:
    found = finding_of(find_nodules.fn(scan, bundle, pipeline_in(home)))
    aside = toy(home.root / "aside", "2.0", "val")
    seen, missing = gather_evidence([scan], [found], [aside], bundle)
    assert seen.findings == read_findings(found.findings)
    assert seen.prob_malignant is not None
    assert len(seen.prob_malignant) == len(scan.nodules)
    assert seen.segmented is not None
    assert [nodule.touched for nodule in seen.segmented.nodules] == [True, True]
    assert seen.segmented.flagged == 54
    assert seen.slice_spacing_mm == 1.5
    assert (missing.findings, missing.segmented, missing.prob_malignant) == (None, None, None)
    assert missing.nodules == aside.nodules
    with pytest.raises(ValueError, match="not of"):
        gather_evidence([replace(scan, series_uid="3.0")], [found], [], bundle)


def finding_of(state: Any) -> FoundScan:
    """What a task left, whether it was kept or done."""
    return state if isinstance(state, FoundScan) else state.result()


def test_a_round_asks_anew_once(home: Home, scan: PreparedScan, bundle: NamedBundle, asked: list[str]) -> None:
    pipeline = pipeline_in(home)
    find_nodules.fn(scan, bundle, pipeline)
    found = kept(find_nodules.fn(scan, bundle, pipeline))
    asked.clear()
    again = replace(pipeline, round=open_round(home, ["evaluate"], {}))
    assert done(find_nodules.fn(scan, bundle, again)) == found
    assert asked == ["segment"]
    assert kept(find_nodules.fn(scan, bundle, again)) == found
    other = replace(pipeline, round=open_round(home, ["segmentation"], {}))
    assert kept(find_nodules.fn(scan, bundle, other)) == found
