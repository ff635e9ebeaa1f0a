"""Who a patient is never shows: not in a mark, not in an error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lungml.dicom import patient_digest
from lungml.patients import divided, is_mark, patient_mark, read_patients
from lungml.tables import TableError
from tests.lungml.test_dicom import series

A, B = "a" * 16, "b" * 16


def test_a_mark_is_what_a_dicom_header_gives(tmp_path: Path) -> None:
    mark = patient_mark(" DOE^JANE ")
    assert mark == hashlib.sha256(b"DOE^JANE").hexdigest()[:16]
    assert is_mark(mark)
    assert not is_mark("DOE^JANE")
    assert patient_mark("  ") == ""
    series(tmp_path / "ct", SeriesInstanceUID="1.2", PatientID="DOE^JANE")
    assert patient_digest(tmp_path / "ct") == mark


@pytest.mark.parametrize(
    "text",
    [
        "series_uid,patient\n1.2,P1\n1.3,P2\n1.4,\n",
        "\ufeffseriesuid,patient\r\n1.2,P1\r\n\r\n1.3, P2\r\n",
        "age,Patient,series_uid\n61,P1,1.2\n47,P2,1.3\n47,P2,1.3\n",
    ],
)
def test_a_table_of_patients(text: str, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text(text, encoding="utf-8", newline="")
    assert read_patients(tmp_path / "patients.csv") == {"1.2": patient_mark("P1"), "1.3": patient_mark("P2")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line has no columns"),
        ("1.2,SECRET\n", "its first line has no columns"),
        ("series_uid;patient\n1.2;SECRET\n", "its first line has no columns"),
        ("series_uid,seriesuid,patient\n1.2,1.2,SECRET\n", "one of each"),
        ("series_uid,patient\nSECRET^JANE,1.2\n", "line 2: its series_uid is none"),
        ("series_uid,patient\n1.2,SECRET,JANE\n", "line 2 has 3 fields, its first line 2"),
        ("series_uid,patient\n1.2,SECRET\n1.2,SECRET2\n", "line 3 gives 1.2 to a second patient"),
        ('series_uid,patient\n1.2,"SECRET\n', "not a csv table"),
    ],
)
def test_a_malformed_table_is_one_line_without_names(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_patients(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert "SECRET" not in line
    assert "JANE" not in line
    assert len(line.splitlines()) == 1


def test_other_bytes_than_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_bytes(b"series_uid,patient\n1.2,J\xfcrgen\n")
    with pytest.raises(TableError, match=r"not a csv table \(UnicodeDecodeError\)"):
        read_patients(tmp_path / "patients.csv")


def test_a_patient_on_two_sides_keeps_the_more_held_out_one() -> None:
    split = {"1": "train", "2": "val", "3": "test", "4": "train", "5": "train", "6": "val", "7": "train"}
    assert divided(split, {}) == {}
    assert divided(split, {"4": A, "5": A, "7": B}) == {}
    assert divided(split, {"1": A, "2": A, "4": B, "6": B, "5": B}) == {"1": "val", "4": "val", "5": "val"}
    assert divided(split, {"1": A, "2": A, "3": A}) == {"1": "test", "2": "test"}
    assert divided(split, {"1": A, "9": A, "2": "", "3": ""}) == {}  # not of the split; not known
