"""A champion's profile is kept as it was, and the next run's scans and answers are held against it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungml import store
from lungml.drift_report import DriftReport
from lungml.findings import Finding, write_findings
from lungml.geometry import Grid
from lungml.groups import is_current
from lungml.home import Home
from lungml.profiles import read_bundle_profile
from lungml.recipes.data import PreparedScan
from tasks import drift as watching
from tasks import tracking
from tasks.drift import log_drift, profile_path, watch_drift
from tasks.finding import FoundScan, NamedBundle
from tasks.pipeline import Pipeline
from tests.tasks.toy_bundles import toy_fields, toy_model

SIDES = {f"1.{n}": "train" if n < 14 else "val" if n < 20 else "test" for n in range(26)}
LATER = {f"2.{n}": "train" for n in range(14)}
OF_BOTH = {**SIDES, **LATER}


@pytest.fixture(scope="module")
def stocked(
    tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[Path], Home]
) -> tuple[Home, NamedBundle, NamedBundle]:
    """A home, the bundle of the first scans and the one of all of them."""
    home = new_home(tmp_path_factory.mktemp("drift"))
    bundles = []
    for number, sides in ((3, SIDES), (4, OF_BOTH)):
        members = {
            name: toy_model(home, stage, scans=sides)
            for name, stage in (("segmentation", "segmentation"), ("nodule", "classification"))
        }
        fields = toy_fields(home, **members, malignancy=toy_model(home, "malignancy", scans=sides))
        bundles.append(NamedBundle(name=f"models:/luna/{number}", fields=fields))
    return home, bundles[0], bundles[1]


@pytest.fixture
def home(stocked: tuple[Home, NamedBundle, NamedBundle]) -> Home:
    shutil.rmtree(stocked[0].reports, ignore_errors=True)
    return stocked[0]


@pytest.fixture
def champion(stocked: tuple[Home, NamedBundle, NamedBundle]) -> NamedBundle:
    return stocked[1]


@pytest.fixture
def challenger(stocked: tuple[Home, NamedBundle, NamedBundle]) -> NamedBundle:
    return stocked[2]


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Prefect would have shown, by key; the log is this module's."""
    tables: dict[str, Any] = {}
    monkeypatch.setattr(watching, "create_table_artifact", lambda rows, key, **_: tables.update({key: rows}))
    monkeypatch.setattr(watching, "get_run_logger", lambda: logging.getLogger("drift"))
    return tables


def prepared(home: Home, sides: dict[str, str], *, slice_mm: float = 1.25, added_hu: int = 0) -> list[PreparedScan]:
    """Scans in their stores, of noise whose level differs from scan to scan; what lies there already is taken."""
    scans = []
    for uid, side in sides.items():
        rng = np.random.default_rng(int(uid.replace(".", "")))
        hu = rng.normal(rng.normal(-300, 15) + added_hu, 30, (10 + int(rng.integers(4)), 24, 24)).astype(np.int16)
        grid = Grid(shape_irc=hu.shape, spacing_xyz=(0.7, 0.7, slice_mm), origin_xyz=(0, 0, 0))
        volume = Path(str(home.scans)) / f"{uid}.zarr"
        key = {"of": uid, "mm": slice_mm, "hu": added_hu}
        if not is_current(volume, key):
            store.write_scan(volume, hu, grid, key=key)
        scans.append(
            PreparedScan(
                series_uid=uid,
                split=side,  # type: ignore[arg-type]
                store=volume,
                mask_name="mask",
                crops=volume,
                crops_digest="",
                digest="",
                nodules=(),
                excluded=(),
            )
        )
    return scans


def answered(home: Home, scans: Sequence[PreparedScan], *, times: int = 1) -> list[FoundScan]:
    """Findings of the scans held out."""
    found = []
    for scan in scans:
        if scan.split == "train":
            continue
        rng = np.random.default_rng(int(scan.series_uid.replace(".", "")))
        probs = rng.random(times * int(rng.integers(8, 14)))
        path = home.reports / "findings" / scan.series_uid / "findings.csv"
        findings = [
            Finding(
                center_irc=(0, 0, 0),
                center_xyz=(0, 0, 0),
                prob_nodule=prob,
                prob_malignant=prob / 2,
                stage="filtered" if prob < 0.5 else "benign",
            )
            for prob in probs.tolist()
        ]
        write_findings(path, scan.series_uid, findings)
        found.append(
            FoundScan(series_uid=scan.series_uid, answers=path, annotated=path, findings=path, key="", truth_key="")
        )
    return found


def watch(
    home: Home, scans: Sequence[PreparedScan], bundle: NamedBundle, standing: NamedBundle | None, **kind: int
) -> DriftReport:
    pipeline = Pipeline(home=home, pipeline_id="p1", origin="real", seed=0, device="cpu")
    return watch_drift.fn(scans, answered(home, scans, **kind), bundle, standing, pipeline)


def test_the_first_bundle_is_compared_with_nothing_and_kept(home: Home, champion: NamedBundle) -> None:
    report = watch(home, prepared(home, SIDES), champion, None)
    assert (report.reference, dict(report.comparisons), report.warnings) == ("", {}, ())
    assert report.notes == ("no other bundle is in use yet: there is nothing to compare with",)
    kept = read_bundle_profile(home.reports / "profiles" / "bundles" / "luna-3.json")
    assert kept
    assert [len(part) for part in (kept.train, kept.held_out, kept.answers)] == [14, 12, 12]


def test_scans_of_the_same_kind_are_no_warning(home: Home, champion: NamedBundle, challenger: NamedBundle) -> None:
    watch(home, prepared(home, SIDES), champion, None)
    report = watch(home, prepared(home, OF_BOTH), challenger, champion)
    assert (report.reference, report.warnings, report.notes) == ("models:/luna/3", (), ())
    now = {name: comparison.now for name, comparison in report.comparisons.items()}
    assert now == {"new_scans": 14, "training_scans": 28, "answers": 12}
    assert {shift.psi for shift in report.comparisons["answers"].shifts} == {0}  # the same findings


def test_new_scans_of_another_kind_are_named(
    home: Home,
    champion: NamedBundle,
    challenger: NamedBundle,
    shown: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch(home, prepared(home, SIDES), champion, None)
    scans = [*prepared(home, SIDES), *prepared(home, LATER, slice_mm=2.5, added_hu=100)]
    with caplog.at_level(logging.WARNING, "drift"):
        report = watch(home, scans, challenger, champion)
    new = {shift.quantity for shift in report.comparisons["new_scans"].drifted}
    assert new >= {"slice_spacing_mm", "height_mm", "hu_p25", "hu_p50", "hu_p75"}
    assert not new & {"slices", "pixel_spacing_mm", "noise_hu"}
    assert caplog.messages == list(report.warnings)
    assert any("slice spacing now 2.5 mm (median), before 1.25 mm" in line for line in caplog.messages)
    rows = shown["luna-drift"]
    assert rows[0]["verdict"] == "drifted"
    assert {row["quantity"] for row in rows if row["verdict"] == "drifted"} >= {"slice spacing", "HU percentile 50"}
    json.dumps(rows, allow_nan=False)


def test_twice_the_candidates_are_named(home: Home, champion: NamedBundle, challenger: NamedBundle) -> None:
    scans = prepared(home, SIDES)
    watch(home, scans, champion, None)
    report = watch(home, scans, challenger, champion, times=2)
    assert {shift.quantity for shift in report.comparisons["answers"].drifted} == {"candidates", "nodules"}
    assert "new scans: there are none" in report.notes
    assert set(report.comparisons) == {"training_scans", "answers"}


def test_a_profile_stays_as_it_was(home: Home, champion: NamedBundle) -> None:
    """A champion whose models are used again is held against what it was, not against what it says now."""
    scans = prepared(home, SIDES)
    watch(home, scans, champion, None)
    before = profile_path(home, champion).read_bytes()
    report = watch(home, scans, champion, None, times=2)
    assert report.reference == champion.name
    assert report.verdict == "answers: candidates a scan, candidates taken for nodules a scan"
    assert profile_path(home, champion).read_bytes() == before


def test_a_champion_without_a_profile_is_known_by_its_scans(
    home: Home, champion: NamedBundle, challenger: NamedBundle
) -> None:
    scans = prepared(home, OF_BOTH)
    shutil.rmtree(scans[0].store)  # type: ignore[arg-type]
    report = watch(home, scans[1:], challenger, champion)
    assert report.notes == (
        "no profile of models:/luna/3 is known",
        "no answers of models:/luna/3 are kept from when it was made: none are compared with it",
    )
    assert {name: comparison.before for name, comparison in report.comparisons.items()} == {
        "new_scans": 13,
        "training_scans": 13,
    }


def test_an_imported_champion_is_no_error(home: Home, stocked: Any, challenger: NamedBundle) -> None:
    silent = {
        name: toy_model(home, stage, scans=None)
        for name, stage in (
            ("segmentation", "segmentation"),
            ("nodule", "classification"),
            ("malignancy", "malignancy"),
        )
    }
    imported = NamedBundle(name="models:/luna/1", fields=toy_fields(home, **silent))
    report = watch(home, prepared(home, OF_BOTH), challenger, imported)
    assert dict(report.comparisons) == {}
    assert report.verdict == "not known"
    assert "what models:/luna/1 learned from is not known or gone: no scans are compared with it" in report.notes


def test_a_damaged_profile_is_told_and_made_again(home: Home, champion: NamedBundle) -> None:
    scans = prepared(home, SIDES)
    watch(home, scans, champion, None)
    whole = profile_path(home, champion).read_bytes()
    profile_path(home, champion).write_text("{")
    report = watch(home, scans, champion, None)
    assert report.notes[0] == "the kept profile of models:/luna/3 is damaged or of another version of luna"
    assert profile_path(home, champion).read_bytes() == whole


def test_too_few_new_scans_are_said(home: Home, champion: NamedBundle, challenger: NamedBundle) -> None:
    watch(home, prepared(home, SIDES), champion, None)
    report = watch(home, prepared(home, {**SIDES, "2.1": "train"}), challenger, champion)
    assert report.notes == ("new scans: 1 now, 14 before: too few scans to tell anything from chance",)


def test_voxels_are_read_once(home: Home, champion: NamedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    given = store.read_volume

    def counted(path: Any, **settings: Any) -> Any:
        read.append(path.stem)
        return given(path, **settings)

    monkeypatch.setattr(store, "read_volume", counted)
    scans = prepared(home, SIDES)
    watch(home, scans, champion, None)
    watch(home, scans, champion, None)
    assert sorted(read) == sorted(SIDES)
    prepared(home, {"1.3": "train"}, added_hu=5)  # other voxels under the same name
    watch(home, scans, champion, None)
    assert read[len(SIDES) :] == ["1.3"]


def test_a_run_holds_metrics_tag_and_files(home: Home, champion: NamedBundle, challenger: NamedBundle) -> None:
    scans = prepared(home, SIDES)
    watch(home, scans, champion, None)
    report = watch(home, scans, challenger, champion, times=2)
    with tracking.open_run(home, "end-to-end", name="toy", sample_every_s=None) as run:
        log_drift(run, report)
    held = run.client.get_run(run.run_id).data
    assert held.metrics["drift/warnings"] == 2
    assert held.metrics["drift/answers/candidates/psi"] > 0.25
    assert held.metrics["drift/answers/candidates/p"] < 0.01
    assert held.metrics["drift/training_scans/slice_spacing_mm/median"] == 1.25
    assert held.tags["luna.drift"] == report.verdict
    told = json.loads(Path(run.client.download_artifacts(run.run_id, "drift/drift.json")).read_text())
    assert told["warnings"] == list(report.warnings)
    profile = Path(run.client.download_artifacts(run.run_id, "drift/profile.json"))
    assert read_bundle_profile(profile) == read_bundle_profile(profile_path(home, challenger))
    assert str(home.root) not in json.dumps(told) + profile.read_text()
