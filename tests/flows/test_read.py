"""`luna read`: the report's own result on the real scans, and what a bad scan costs."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from flows import read as reading
from flows.read import ReadingError, read_in_background, read_scans
from lungml.errors import FindingError
from lungml.findings import FINDINGS_COLUMNS, Finding
from lungml.home import Home
from tasks.bundles import WeightsError, import_published, load_bundle
from tasks.registry import read_bundle
from tasks.tracking import TrackingError

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
COLUMNS = {"malignancy-finetuned": "prob_malignant_finetuned", "malignancy-scratch": "prob_malignant"}
# Candidates and those taken for nodules, as the report's own procedure has them.
EXPECTED = {
    "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192": (728, 9),
    "1.3.6.1.4.1.14519.5.2.1.6279.6001.272190966764020277652079081128": (960, 14),
}


@pytest.fixture(scope="module")
def data() -> Path:
    if not REAL_DATA:
        pytest.skip("LUNGML_REAL_DATA is not set")
    return Path(REAL_DATA)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("artifacts"))


def reference(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as handle:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)]


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weights", COLUMNS)
def test_the_published_weights_find_what_the_report_found(
    weights: str, data: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    state = data / "report-weights"
    uri = import_published(home, state / "segmentation.state", state / "nodule.state", state / f"{weights}.state")
    bundle = read_bundle(home, uri)
    assert (bundle["origin"], bundle["recipe"], bundle["grouping"]["rule"]) == ("real", "published", "report")
    series = list(EXPECTED) if weights == "malignancy-finetuned" else list(EXPECTED)[:1]
    scans = [data / "luna16" / "scans" / f"{series_uid}.mhd" for series_uid in series]
    found: dict[str, tuple[Finding, ...]] = {}

    def keep(series_uid: str, findings: tuple[Finding, ...] | None, _where: str) -> None:
        assert findings is not None
        found[series_uid] = findings

    assert read_scans(scans, uri, tmp_path, home=home, grouping="report", on_scan=keep) == 0
    for series_uid in series:
        candidates, nodules = EXPECTED[series_uid]
        findings = found[series_uid]
        expected = reference(state / f"reference-{series_uid}.csv")
        assert len(findings) == len(expected) == candidates
        assert sum(f.prob_nodule > 0.5 for f in findings) == nodules
        ours = np.array([f.center_irc for f in findings])
        nearest = []
        for row in expected:
            away = np.abs(ours - [row["index"], row["row"], row["col"]]).max(axis=1)
            nearest.append(int(away.argmin()))
            assert away.min() < 1
            same = findings[nearest[-1]]
            assert same.prob_nodule == pytest.approx(row["prob_nodule"], abs=1e-3)
            assert same.prob_malignant == pytest.approx(row[COLUMNS[weights]], abs=1e-3)
        assert len(set(nearest)) == candidates  # one to one
        with (tmp_path / series_uid / "findings.csv").open(newline="") as handle:
            rows = list(csv.reader(handle))
        assert tuple(rows[0]) == FINDINGS_COLUMNS
        assert len(rows) == candidates + 1  # what was filtered is there too


@pytest.mark.real
def test_a_bad_scan_costs_only_itself(data: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = data / "report-weights"
    uri = import_published(
        home, *(state / f"{name}.state" for name in ("segmentation", "nodule", "malignancy-scratch"))
    )
    told = []
    scans = [tmp_path / "gone.mhd", data / "odd" / "uint8_flipped.mha"]
    failed = read_scans(scans, uri, tmp_path / "out", home=home, on_scan=lambda *said: told.append(said))
    assert failed == 2
    assert [(uid, findings) for uid, findings, _ in told] == [("gone", None), ("uint8_flipped", None)]
    assert "no such file" in told[0][2]
    assert "8-bit" in told[1][2]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that finds nothing, at once."""
    monkeypatch.setattr("flows.read.load_bundle", lambda *_: None)
    nothing = SimpleNamespace(candidates=SimpleNamespace(left_out=0))
    monkeypatch.setattr("flows.read.ask", lambda *_, **__: nothing)
    monkeypatch.setattr("flows.read.judge", lambda *_: ())


def small_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray((np.arange(60) * 20 - 900).astype(np.int16).reshape(3, 4, 5)), str(path))
    return path


@pytest.mark.usefixtures("quick")
def test_a_scan_that_a_network_fails_on_costs_only_itself(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [small_scan(tmp_path / f"{number}.mha") for number in range(3)]

    def judge(*_: object) -> tuple[Finding, ...]:
        told.append(1)
        if len(told) == 2:
            raise FindingError("a nodule classifier gave a probability that is not a number")
        return ()

    told: list[int] = []
    monkeypatch.setattr("flows.read.judge", judge)
    out = tmp_path / "out"
    assert read_scans(scans, "models:/luna/1", out, home=home) == 1
    assert sorted(path.parent.name for path in out.rglob("findings.csv")) == ["0", "2"]


@pytest.mark.usefixtures("quick")
def test_two_scans_of_one_uid_do_not_overwrite_each_other(home: Home, tmp_path: Path) -> None:
    one, other = small_scan(tmp_path / "a/1.2.nii"), small_scan(tmp_path / "b/1.2.mha")
    told, notes = [], []
    out = tmp_path / "out"
    failed = read_scans([one, other], "", out, home=home, on_scan=lambda *s: told.append(s), on_warning=notes.append)
    assert failed == 1
    assert [uid for uid, _, _ in told] == ["1.2", "1.2"]
    assert told[0][2] == str(out / "1.2" / "findings.csv")
    assert f"the same series_uid as {one}" in told[1][2]
    assert notes[0].startswith("1.2: only 3 x 4 x 5 mm")


@pytest.mark.usefixtures("quick")
def test_every_kind_is_read_under_its_own_name_and_a_bad_folder_is_called_by_its_whole_name(
    home: Home, tmp_path: Path
) -> None:
    (tmp_path / "1.2.840").mkdir()
    scans = [small_scan(tmp_path / name) for name in ("a.mhd", "b.mha", "c.nii", "d.nii.gz")]
    told = []
    failed = read_scans(
        [*scans, tmp_path / "1.2.840"], "", tmp_path / "out", home=home, on_scan=lambda *s: told.append(s)
    )
    assert failed == 1
    assert [uid for uid, _, _ in told] == ["a", "b", "c", "d", "1.2.840"]
    assert "no DICOM image" in told[-1][2]
    assert sorted(file.parent.name for file in (tmp_path / "out").glob("*/findings.csv")) == ["a", "b", "c", "d"]


def test_a_wrong_out_is_said_before_a_bundle_or_a_scan_is_touched(home: Home, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="not a folder"):
        read_scans([tmp_path / "none.nii"], "models:/none/1", tmp_path / "out", home=home)


@pytest.mark.usefixtures("quick")
def test_a_file_is_no_folder_for_results(home: Home, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="not a folder"):
        read_scans([small_scan(tmp_path / "1.2.nii")], "", tmp_path / "out", home=home)


def test_what_is_no_bundle_is_one_line(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for uri in ("models:/luna/7", "models:/luna@champion", "runs:/x"):
        with pytest.raises(TrackingError) as error:
            load_bundle(home, uri)
        assert str(error.value).startswith(uri)
        assert "\n" not in str(error.value)


def test_what_is_no_weights_file_is_one_line(home: Home, tmp_path: Path) -> None:
    text = tmp_path / "nodule.state"
    text.write_text("no weights")
    for path, reason in ((text, "no PyTorch file"), (tmp_path / "none.state", "no such file")):
        with pytest.raises(WeightsError, match=reason) as error:
            import_published(home, path, path, path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_in_the_background_the_run_fails_at_the_end_and_its_table_names_no_path(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(scans: list[Path], bundle: str, out: Path, **how: Any) -> int:
        assert (scans, bundle, out) == ([Path("/data/JANE DOE"), Path("/data/b.mhd")], "models:/luna/1", Path("/out"))
        assert (how["home"], how["grouping"], how["device"]) == (home, "best", "cpu")
        how["on_scan"]("JANE DOE", None, "/data/JANE DOE: no scan")
        how["on_scan"]("1.2.3", (SimpleNamespace(stage="malignant"), SimpleNamespace(stage="filtered")), "/out/f.csv")
        return 1

    said: list[str] = []
    kept: dict[str, Any] = {}
    log = SimpleNamespace(info=lambda *line: None, warning=None, error=lambda line, *args: said.append(line % args))
    monkeypatch.setenv("LUNA_HOME", str(home.root))
    monkeypatch.setattr(reading, "read_scans", read)
    monkeypatch.setattr(reading, "get_run_logger", lambda: log)
    monkeypatch.setattr(reading, "create_table_artifact", lambda table, **how: kept.update(table=table, **how))
    scans = ["/data/JANE DOE", "/data/b.mhd"]
    with pytest.raises(ReadingError, match=r"^1 of 2 scans were not read; .* the others' findings are written$"):
        read_in_background.fn(scans, "/out", "models:/luna/1", "best", "cpu")
    assert said == ["scan 1 of 2 was not read: /data/JANE DOE: no scan"]
    assert [list(row.values()) for row in kept["table"]] == [[1, "", "not read", "", ""], [2, "1.2.3", 2, 1, 1]]
    assert "JANE" not in str(kept)


def test_in_the_background_a_gpu_is_held_as_by_any_other_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []

    @contextmanager
    def slots(device: str) -> Iterator[tuple[str, ...]]:
        held.append(device)
        yield ("the free one",)
        held.clear()

    def read(*_: Any, device: str, **how: Any) -> int:
        assert (held, device) == (["auto"], "the free one of auto")
        return 0

    monkeypatch.setenv("LUNA_HOME", str(home.root))
    monkeypatch.setattr(reading, "gpu_slots", slots)
    monkeypatch.setattr(reading, "cuda_name", lambda gpus, otherwise: f"{gpus[0]} of {otherwise}")
    monkeypatch.setattr(reading, "read_scans", read)
    monkeypatch.setattr(reading, "get_run_logger", lambda: SimpleNamespace(warning=None))
    monkeypatch.setattr(reading, "create_table_artifact", lambda *_, **how: None)
    read_in_background.fn(["/data/b.mhd"], "/out")
    assert not held
