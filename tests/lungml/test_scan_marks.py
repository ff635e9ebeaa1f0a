"""A few marks, by hand; places inside and outside grids that are flipped or tilted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lungml.ct import Scan
from lungml.findings import Finding, write_findings
from lungml.geometry import Grid
from lungml.scan_marks import (
    MarksError,
    PlaceError,
    extent_xyz,
    find_place,
    finding_marks,
    middle_xyz,
    parse_place,
    truth_marks,
)
from lungml.tables import TableError

GRID = Grid(shape_irc=(10, 20, 30), spacing_xyz=(1.0, 1.0, 2.0), origin_xyz=(0.5, 0.5, 1.0))
FLIPPED = Grid(
    shape_irc=(10, 20, 30),
    spacing_xyz=(1.0, 1.0, 2.0),
    origin_xyz=(0, 0, 0),
    direction=((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
)
COLUMNS = "seriesuid,coordX,coordY,coordZ,diameter_mm"


def finding(x: float, stage: str = "benign", diameter_mm: float = 6.0) -> Finding:
    return Finding(
        center_irc=(5, 10, x),
        center_xyz=(x, 10, 10),
        diameter_mm=diameter_mm,
        prob_nodule=0.9,
        prob_malignant=0.2,
        stage=stage,  # type: ignore[arg-type]
    )


def scan(grid: Grid = GRID) -> Scan:
    hu = np.full(grid.shape_irc, -850, dtype=np.int16)
    hu[4:7, 8:13, 13:18] = 40
    return Scan(series_uid="1.2", hu=hu, grid=grid)


def test_findings_keep_their_row_stage_and_size(tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    write_findings(path, "1.2", [finding(3, "malignant"), finding(4, "filtered", math.nan)])
    first, second = finding_marks(path, "1.2")
    assert (first.number, first.kind, first.diameter_mm, first.center_xyz) == (1, "malignant", 6.0, (3, 10, 10))
    assert (second.number, second.kind, math.isnan(second.diameter_mm)) == (2, "filtered", True)
    write_findings(path, "1.2", [])
    assert finding_marks(path, "1.9") == ()  # a table without rows is any scan's


def test_of_two_bundles_the_first_ones_findings_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    write_findings(path, "1.2", [finding(3, "malignant"), finding(4, "filtered", math.nan), finding(5, "benign")])
    head, *rows = path.read_text().splitlines()
    compared = [f"{head},bundle", *(f"{row},models:/luna/{n}" for row, n in zip(rows, (1, 1, 2)))]
    path.write_text("\n".join(compared))
    assert [(mark.number, mark.kind) for mark in finding_marks(path, "1.2")] == [(1, "malignant"), (2, "filtered")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "it has no column series_uid, x_mm"),
        ("", "it has no column series_uid"),
        ("{good}".replace("{good}", "HEAD\n9.9,1,1,1,1,1,1,0.5,,benign,6,\n"), "findings of series 9.9, not of 1.2"),
        ("HEAD\n1.2,one,1,1,1,1,1,0.5,,benign,6,\n", "not a findings.csv"),
        ("HEAD\n1.2,nan,1,1,1,1,1,0.5,,benign,6,\n", "row 1 has a place that is not a number"),
        ("HEAD\n1.2,1,1,1,1,1,1,0.5,,nice,6,\n", "row 1 ends at 'nice'"),
        ("HEAD\n1.2,1\n", "not a findings.csv"),
    ],
)
def test_what_is_no_findings_csv_of_this_scan_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "findings.csv"
    head = "series_uid,x_mm,y_mm,z_mm,index,row,col,prob_nodule,prob_malignant,stage,diameter_mm,reason"
    path.write_text(text.replace("HEAD", head))
    with pytest.raises(MarksError) as refused:
        finding_marks(path, "1.2")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_findings_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(MarksError, match=r"nope\.csv: cannot be read \(No such file"):
        finding_marks(tmp_path / "nope.csv", "1.2")


def test_the_truth_is_rated_and_unrated_nodules_with_their_voxels(tmp_path: Path) -> None:
    rated = f"{COLUMNS},mal_bool,mal_details\n1.2,15.5,10.5,11,5,True,[]\n3.4,1,1,1,5,False,[]\n"
    (tmp_path / "annotations_with_malignancy.csv").write_text(rated)
    (tmp_path / "annotations.csv").write_text(f"{COLUMNS}\n1.2,15.5,10.5,11,5\n1.2,3.5,3.5,5,4\n1.2,900,0,0,4\n")
    malignant, other, outside = truth_marks(tmp_path, scan())
    assert (malignant.kind, malignant.diameter_mm, malignant.number) == ("truth_malignant", 5.0, None)
    assert malignant.box is not None
    assert malignant.box[1].any()
    assert (other.kind, other.center_xyz) == ("truth", (3.5, 3.5, 5.0))
    assert outside.box is None
    (tmp_path / "annotations_with_malignancy.csv").unlink()
    assert [mark.kind for mark in truth_marks(tmp_path, scan())] == ["truth"] * 3


def test_tables_that_are_not_there_or_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="neither annotations_with_malignancy"):
        truth_marks(tmp_path, scan())
    (tmp_path / "annotations_with_malignancy.csv").write_text(
        f"{COLUMNS},mal_bool,mal_details\n1.2,15.5,10.5,11,5,perhaps,[]\n"
    )
    with pytest.raises(TableError, match="line 2: mal_bool is neither True nor False"):
        truth_marks(tmp_path, scan())


def test_a_place_is_a_row_or_three_numbers() -> None:
    assert parse_place("3") == 3
    assert parse_place("-1.5, 2,3e1") == (-1.5, 2.0, 30.0)
    for text in ("", "0", "-3", "1,2", "1,2,3,4", "a,b,c", "nan,1,2", "inf,1,2", "1;2;3"):
        with pytest.raises(PlaceError, match="is no place"):
            parse_place(text)


def test_a_row_is_the_place_of_that_finding(tmp_path: Path) -> None:
    write_findings(tmp_path / "f.csv", "1.2", [finding(3), finding(4)])
    marks = finding_marks(tmp_path / "f.csv", "1.2")
    assert find_place(2, marks, GRID) == (4, 10, 10)
    with pytest.raises(PlaceError, match="there are 2 findings"):
        find_place(3, marks, GRID)
    with pytest.raises(PlaceError, match="name its file with --findings"):
        find_place(1, None, GRID)


def test_a_place_outside_is_told_the_extent() -> None:
    # Voxel edges: columns 0..30 mm, rows 0..20 mm, slices 0..20 mm.
    assert extent_xyz(GRID) == ((0, 0, 0), (30, 20, 20))
    assert find_place((0, 0, 0), None, GRID) == (0, 0, 0)
    assert find_place((29.9, 19.9, 19.9), None, GRID) == (29.9, 19.9, 19.9)
    with pytest.raises(PlaceError) as refused:
        find_place((30, 5, 5), None, GRID)
    spans = "spans x 0.0 to 30.0, y 0.0 to 20.0, z 0.0 to 20.0 mm (LPS)"
    assert str(refused.value) == f"30,5,5 mm lies outside the scan, which {spans}; give a point inside"


def test_a_flipped_grid_extends_the_other_way() -> None:
    assert extent_xyz(FLIPPED) == ((-29.5, -19.5, -1), (0.5, 0.5, 19))
    assert middle_xyz(FLIPPED) == (-14.5, -9.5, 9)
    assert find_place((-29, -19, 0), None, FLIPPED) == (-29, -19, 0)
    with pytest.raises(PlaceError, match="outside"):
        find_place((5, 5, 5), None, FLIPPED)


def test_a_corner_of_a_tilted_grids_extent_may_lie_outside_and_it_is_said_why() -> None:
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))
    tilted = Grid(
        shape_irc=(10, 20, 30),
        spacing_xyz=(1, 1, 2),
        origin_xyz=(0, 0, 0),
        direction=((1, 0, 0), (0, cos, -sin), (0, sin, cos)),
    )
    low, high = extent_xyz(tilted)
    with pytest.raises(PlaceError, match="its grid tilted within"):
        find_place((1, low[1] + 0.1, low[2] + 0.1), None, tilted)
    assert high[2] > 18
