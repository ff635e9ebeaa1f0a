"""`luna read`: the report's own result on the real scans, and what a bad scan costs."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from flows import read as reading
from flows.read import ReadingError, ReadScan, read_in_background, read_scans
from lungml.candidates import GroupingSettings
from lungml.ct import Scan
from lungml.errors import FindingError
from lungml.findings import Finding
from lungml.geometry import Grid, irc_to_xyz
from lungml.home import Home
from lungml.marked import Marked
from lungml.reading.deliver import Delivered
from lungml.reading.record import READING_COLUMNS, Opinion
from tasks.bundles import WeightsError, import_published, load_bundle
from tasks.registry import read_bundle
from tasks.tracking import TrackingError
from tests.dciodvfy import complaints

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
    # Once both scans as LUNA16 has them, once the first as the DICOM series that it was made of.
    luna16 = weights == "malignancy-finetuned"
    series = list(EXPECTED) if luna16 else list(EXPECTED)[:1]
    scans = [data / "luna16" / "scans" / f"{series_uid}.mhd" for series_uid in series]
    if not luna16:
        scans = [data / "lidc" / "LIDC-IDRI-0001-dicom.zip"]
    told: list[ReadScan] = []
    assert read_scans(scans, uri, tmp_path, home=home, grouping="report", on_scan=told.append) == 0
    found = {one.series_uid: one.opinions[0].findings for one in told}
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
        assert tuple(rows[0]) == READING_COLUMNS
        assert len(rows) == candidates + 1  # what was filtered is there too
        left = {path.name: path for path in (tmp_path / series_uid).iterdir()}
        assert left["index.html"].stat().st_size < 15e6
        assert {"findings.json", "submission.csv", "markups.mrk.json"} < set(left)
        objects = [path for name, path in left.items() if name.endswith(".dcm")]
        assert len(objects) == (0 if luna16 else 2)
        for path in objects:
            assert complaints(path) == []


@pytest.mark.real
def test_a_bad_scan_costs_only_itself(data: Path, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = data / "report-weights"
    uri = import_published(
        home, *(state / f"{name}.state" for name in ("segmentation", "nodule", "malignancy-scratch"))
    )
    told = []
    scans = [tmp_path / "gone.mhd", data / "odd" / "uint8_flipped.mha"]
    failed = read_scans(scans, uri, tmp_path / "out", home=home, on_scan=told.append)
    assert failed == 2
    assert [(one.series_uid, one.folder, one.opinions) for one in told] == [
        ("gone", None, ()),
        ("uint8_flipped", None, ()),
    ]
    assert "no such file" in told[0].problems[0]
    assert "8-bit" in told[1].problems[0]
    assert not (tmp_path / "out").exists()


class QuickReader:
    """Says the same of every scan, at once: a nodule in its middle and something that was filtered."""

    uri = "models:/luna/1"

    def read(self, scan: Scan, on_slice: Any = None) -> Opinion:
        index, row, col = (float(size // 2) for size in scan.hu.shape)
        x, y, z = irc_to_xyz((index, row, col), scan.grid).tolist()
        kept = Finding(
            center_irc=(index, row, col),
            center_xyz=(x, y, z),
            diameter_mm=4.0,
            prob_nodule=0.9,
            prob_malignant=0.8,
            stage="malignant",
        )
        return Opinion(
            bundle=self.uri,
            asked_as=self.uri,
            recipe="best",
            origin="real",
            nodule_threshold=0.5,
            malignant_threshold=0.5,
            grouping=GroupingSettings(),
            findings=(kept, replace(kept, prob_nodule=0.1, prob_malignant=math.nan, stage="filtered")),
            marked=Marked.of_mask(scan.hu > 200),
        )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles that say the same of every scan."""
    monkeypatch.setattr("flows.read.open_reader", lambda *_, **__: QuickReader())
    monkeypatch.setattr("flows.read.resolve", lambda _home, uri: uri)


SCAN = Scan(
    series_uid="1.2.3",
    hu=np.full((3, 4, 5), -900, np.int16),
    grid=Grid(shape_irc=(3, 4, 5), spacing_xyz=(1, 1, 1), origin_xyz=(0, 0, 0)),
)


def small_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray((np.arange(60) * 20 - 900).astype(np.int16).reshape(3, 4, 5)), str(path))
    return path


@pytest.mark.usefixtures("quick")
def test_a_scan_that_a_network_fails_on_costs_only_itself(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [small_scan(tmp_path / f"{number}.mha") for number in range(3)]

    told: list[int] = []
    plain = QuickReader.read

    def read(self: QuickReader, *scan: Any) -> Opinion:
        told.append(1)
        if len(told) == 2:
            raise FindingError("a nodule classifier gave a probability that is not a number")
        return plain(self, *scan)

    monkeypatch.setattr(QuickReader, "read", read)
    out = tmp_path / "out"
    assert read_scans(scans, "models:/luna/1", out, home=home) == 1
    assert sorted(path.parent.name for path in out.rglob("findings.csv")) == ["0", "2"]


@pytest.mark.usefixtures("quick")
def test_two_scans_of_one_uid_do_not_overwrite_each_other(home: Home, tmp_path: Path) -> None:
    one, other = small_scan(tmp_path / "a/1.2.nii"), small_scan(tmp_path / "b/1.2.mha")
    told: list[ReadScan] = []
    out = tmp_path / "out"
    failed = read_scans([one, other], "", out, home=home, on_scan=told.append)
    assert failed == 1
    assert [one.series_uid for one in told] == ["1.2", "1.2"]
    assert told[0].page == out / "1.2" / "index.html"
    assert told[0].summary == "2 candidates, 1 taken for nodules, 1 of them for malignant"
    assert f"the same series_uid as {one}" in told[1].problems[0]
    assert told[1].folder is None
    assert told[0].warnings[0].startswith("only 3 x 4 x 5 mm")


@pytest.mark.usefixtures("quick")
def test_every_kind_is_read_under_its_own_name_and_a_bad_folder_is_called_by_its_whole_name(
    home: Home, tmp_path: Path
) -> None:
    (tmp_path / "1.2.840").mkdir()
    scans = [small_scan(tmp_path / name) for name in ("a.mhd", "b.mha", "c.nii", "d.nii.gz")]
    told: list[ReadScan] = []
    failed = read_scans([*scans, tmp_path / "1.2.840"], "", tmp_path / "out", home=home, on_scan=told.append)
    assert failed == 1
    assert [one.series_uid for one in told] == ["a", "b", "c", "d", "1.2.840"]
    assert "no DICOM image" in told[-1].problems[0]
    assert sorted(file.parent.name for file in (tmp_path / "out").glob("*/findings.csv")) == ["a", "b", "c", "d"]


@pytest.mark.usefixtures("quick")
def test_two_bundles_and_the_truth_stand_side_by_side(home: Home, tmp_path: Path) -> None:
    scan = small_scan(tmp_path / "1.2.mha")
    # The middle voxel is (1, 2, 2) of spacing 1 mm, so that it lies at (2, 2, 1).
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,2,2,1,3\n1.2,4,3,2,2\n")
    told: list[ReadScan] = []
    out = tmp_path / "out"
    lacking = read_scans(
        [scan, small_scan(tmp_path / "1.3.mha")],
        "models:/luna/1",
        out,
        home=home,
        compare="models:/luna/2",
        truth=tmp_path,
        on_scan=told.append,
    )
    assert lacking == 0
    assert [one.known for one in told] == [(2, (1, 1)), None]
    assert told[0].summary.count("1 of 2 known nodules found") == 2
    assert "no table of the truth names this scan" in told[1].warnings[-1]
    found = json.loads((out / "1.2/findings.json").read_text())
    assert len(found["bundles"]) == 2
    assert [finding["truth"]["kind"] for finding in found["bundles"][0]["findings"]] == ["nodule", "nodule"]
    assert (out / "1.2/submission-compared.csv").exists()


@pytest.mark.usefixtures("quick")
def test_what_of_a_scan_cannot_be_written_is_told_and_counts(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(*_: Any) -> Delivered:
        return Delivered(files=(), problems=("1.2: no frame of reference",))

    monkeypatch.setattr(reading, "deliver", half)
    told: list[ReadScan] = []
    assert read_scans([small_scan(tmp_path / "1.2.mha")], "", tmp_path / "out", home=home, on_scan=told.append) == 1
    assert told[0].problems == ("1.2: no frame of reference",)
    assert told[0].folder == tmp_path / "out" / "1.2"


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
        how["on_scan"](ReadScan(path=scans[0], series_uid="JANE DOE", problems=("/data/JANE DOE: no scan",)))
        opinion = QuickReader().read(SCAN)
        how["on_scan"](ReadScan(path=scans[1], series_uid="1.2.3", folder=out / "1.2.3", opinions=(opinion,)))
        return 1

    said: list[str] = []
    kept: dict[str, Any] = {}
    log = SimpleNamespace(info=lambda *line: None, warning=None, error=lambda line, *args: said.append(line % args))
    monkeypatch.setenv("LUNA_HOME", str(home.root))
    monkeypatch.setattr(reading, "read_scans", read)
    monkeypatch.setattr(reading, "get_run_logger", lambda: log)
    monkeypatch.setattr(reading, "create_table_artifact", lambda table, **how: kept.update(table=table, **how))
    scans = ["/data/JANE DOE", "/data/b.mhd"]
    with pytest.raises(ReadingError, match=r"^1 of 2 scans were not read, or not wholly; .* the rest is written$"):
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
