import os
from pathlib import Path

import pandas as pd
import pytest

from lungml.tables import TableError, check_uid, read_table, refuse_where

HEADER = "seriesuid,note,x_mm\n"


def read(folder: Path, content: str | bytes) -> pd.DataFrame:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, ["x_mm"], ["note"])


def test_rows_carry_their_line_and_their_kind(tmp_path: Path) -> None:
    # A blank line is skipped, and counts; a further column is left out.
    table = read(tmp_path, "note,x_mm,more,seriesuid\n7,1.5,a,1.2.3\n\n007,-2,b, 1.2.4 \n")
    assert table.to_dict("index") == {
        2: {"seriesuid": "1.2.3", "note": "7", "x_mm": 1.5},
        4: {"seriesuid": "1.2.4", "note": "007", "x_mm": -2.0},
    }


def test_a_uid_of_digits_stays_text(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + "1.20,n,3\n")["seriesuid"].tolist() == ["1.20"]


@pytest.mark.parametrize("content", [HEADER, HEADER + "\n\n", HEADER + ",,\n"])
def test_a_table_may_have_no_rows(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content).empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        (b"\xff\xfes\x00", "not a table ('utf-8' codec can't decode byte 0xff"),
        ("seriesuid,x_mm\ns1,1\n", "line 1 has no column note but seriesuid,x_mm"),
        ("\n" + HEADER + "s1,n,1\n", "line 1 has no column"),
        (HEADER + "s1,n,1\ns1,n,one\n", "line 3: x_mm is not a finite number"),
        (HEADER + "s1,n,1\n\ns1,n,\n", "line 4: x_mm is not a finite number"),
        (HEADER + "s1,n,nan\n", "line 2: x_mm is not a finite number"),
        (HEADER + "s1,n,1e400\n", "line 2: x_mm is not a finite number"),
        (HEADER + 's1,n,"1,5"\n', "line 2: x_mm is not a finite number"),
        (HEADER + "s1,n,1_000\n", "line 2: x_mm is not a finite number"),
        (HEADER + "s1,,1\n", "line 2: note is empty"),
        (HEADER + ",n,1\n", "line 2: seriesuid is empty"),
        (HEADER + "../s1,n,1\n", "line 2: '../s1' is no series_uid"),
        (HEADER + "s1,n,1\n..,n,1\n", "line 3: '..' is no series_uid"),
        (HEADER + "s1,n,1\ns1,n,1,2\n", "line 3"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line_with_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read(tmp_path, content)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'table.csv'}: ")
    assert message in line
    assert "copy the table again" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_is_named(tmp_path: Path, mark: str) -> None:
    with pytest.raises(TableError, match=r"line 1 has no column .*; save it with commas between its columns"):
        read(tmp_path, HEADER.replace(",", mark) + f"s1{mark}n{mark}1\n")


def test_a_truth_value_is_no_coordinate(tmp_path: Path) -> None:
    # A column of nothing but True would be read as 1 mm.
    with pytest.raises(TableError, match="line 2: x_mm is not a finite number"):
        read(tmp_path, HEADER + "s1,n,True\n")


def test_a_line_break_within_a_field_moves_no_later_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="line 4: x_mm is not a finite number"):
        read(tmp_path, HEADER + 's1,"two\nlines",1\ns1,n,one\n')


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.csv: not a table \(.*No such file") as caught:
        read_table(tmp_path / "none.csv", [])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("series_uid", ["1.3.6.1", "scan_7", "a-b", "...x"])
def test_these_can_be_file_names(series_uid: str) -> None:
    check_uid(series_uid, Path("t.csv"), 1)


@pytest.mark.parametrize("series_uid", ["", ".", "..", "a/b", "a\\b", "a b", "a\nb", "a\0", "~/x", "C:x"])
def test_these_cannot(series_uid: str) -> None:
    with pytest.raises(TableError, match=r"line 9: .* is no series_uid"):
        check_uid(series_uid, Path("t.csv"), 9)


def test_the_first_wrong_row_is_named() -> None:
    rows = pd.Series([False, True, True], index=[2, 5, 6])
    with pytest.raises(TableError, match=r"^t\.csv: line 5: too small; correct it, or copy the table again$"):
        refuse_where(rows, Path("t.csv"), "too small")
    refuse_where(rows & False, Path("t.csv"), "too small")


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "annotations.csv")
    with pytest.raises(TableError, match="not a plain file"):
        read_table(tmp_path / "annotations.csv", ["coordX"])
