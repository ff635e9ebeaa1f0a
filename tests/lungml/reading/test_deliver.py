from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import Dataset

from lungml import files
from lungml.reading import dicom_seg, dicom_sr
from lungml.reading.deliver import deliver, header_warnings, prepare_folder
from lungml.reading.dicom_objects import DicomObjectError
from tests.lungml.reading.toy import toy_opinion, toy_reading

PROJECT = Path(__file__).parents[3]
ALWAYS = ["findings.csv", "findings.json", "index.html", "markups.mrk.json", "submission.csv"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_scan_that_is_no_dicom_series_leaves_five_files(tmp_path: Path) -> None:
    delivered = deliver(tmp_path / "1.2.3", toy_reading(), None)
    assert (names(tmp_path / "1.2.3"), delivered.problems) == (ALWAYS, ())
    assert sorted(file.name for file in delivered.files) == ALWAYS
    assert json.loads((tmp_path / "1.2.3/findings.json").read_text())["series_uid"] == "1.2.3"


def test_a_second_bundle_has_a_submission_of_its_own_and_nothing_of_it_stays_without_it(tmp_path: Path) -> None:
    other = toy_opinion(bundle="models:/luna/4", findings=())
    deliver(tmp_path, toy_reading(opinions=(toy_opinion(), other)), None)
    assert names(tmp_path) == sorted([*ALWAYS, "submission-compared.csv"])
    assert len((tmp_path / "submission-compared.csv").read_text().splitlines()) == 1
    deliver(tmp_path, toy_reading(), None)
    assert names(tmp_path) == ALWAYS


def test_a_dicom_object_that_cannot_be_made_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DicomObjectError("1.2.3", "no frame of reference")

    def write(path: Path, _reading: object, _headers: object, segmentation: object) -> None:
        assert segmentation is None
        path.touch()

    monkeypatch.setattr(dicom_seg, "write_segmentation", refuse)
    monkeypatch.setattr(dicom_sr, "write_report", write)
    (tmp_path / "segmentation.dcm").write_text("of an earlier reading")
    (tmp_path / "notes.txt").write_text("somebody's own")
    delivered = deliver(tmp_path, toy_reading(), [Dataset()])
    assert delivered.problems == ("segmentation.dcm: 1.2.3: no frame of reference",)
    assert names(tmp_path) == sorted([*ALWAYS, "notes.txt", "report.dcm"])
    monkeypatch.setattr(dicom_sr, "write_report", refuse)
    assert len(deliver(tmp_path, toy_reading(), [Dataset()]).problems) == 2
    assert names(tmp_path) == sorted([*ALWAYS, "notes.txt"])


def test_what_writes_dicom_is_loaded_for_a_dicom_series_alone(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import flows.read; from lungml.reading.deliver import deliver; "
        "from tests.lungml.reading.toy import toy_reading; deliver(Path(sys.argv[1]), toy_reading(), None); "
        "sys.exit('highdicom' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=PROJECT, check=False).returncode == 0


def test_a_contrast_agent_is_told_of_and_its_name_is_not() -> None:
    plain, enhanced = Dataset(), Dataset()
    enhanced.ContrastBolusAgent = "OMNIPAQUE for JANE DOE"
    assert header_warnings(None) == header_warnings([plain]) == ()
    (line,) = header_warnings([plain, enhanced])
    assert line.startswith("a contrast agent was given")
    assert "OMNIPAQUE" not in line


def test_a_folder_that_nothing_can_be_written_to_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="not a folder: name another --out"):
        prepare_folder(tmp_path / "file")

    def read_only(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    prepare_folder(tmp_path / "new" / "folder")
    assert names(tmp_path) == ["file"]  # the trial leaves nothing
    monkeypatch.setattr(files.os, "open", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: name another --out: '.*folder'"):
        prepare_folder(tmp_path / "new" / "folder")
