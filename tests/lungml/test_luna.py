import os
from pathlib import Path

import numpy as np
import pytest

from lungml import luna
from lungml.frozen_split import freeze_split, split_series
from lungml.luna import (
    Annotation,
    Excluded,
    Nodule,
    TableError,
    by_series,
    read_luna,
    unrated,
)
from lungml.patients import patient_mark
from lungml.textures import Textured

MALIGNANCY = """\
seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details,bboxLowX
s2,-128.6994211,-175.5,-298.25,5.651470635,True,"[4, 2, 4, 2]",-131.8
s1,1.0,2.0,3.0,10,False,[3],0
s9,1.0,2.0,3.0,4,False,[],0
"""
ANNOTATIONS = "seriesuid,coordX,coordY,coordZ,diameter_mm\ns2,-128.7,-175.5,-298.25,5.65\n"
EXCLUDED = "seriesuid,coordX,coordY,coordZ,diameter_mm\ns1,1,2,3,-1\ns1,4,5,6,7.5\n"
CANDIDATES = """\
seriesuid,coordX,coordY,coordZ,class
s2,1,2,3,0
s1,4,5,6,0
s2,-128.7,-175.5,-298.25,1
s2,7,8,9.5,0
"""
SERIES = "s3\ns1\ns2\ns9\n"


def tree(folder: Path, **tables: str | None) -> Path:
    """A data set with scans s1 and s2 on disk; tables may be replaced or left out (None)."""
    defaults: dict[str, str | None] = {
        "annotations_with_malignancy": MALIGNANCY,
        "annotations": ANNOTATIONS,
        "annotations_excluded": EXCLUDED,
        "candidates": CANDIDATES,
        "seriesuids": SERIES,
    }
    (folder / "subset0").mkdir(parents=True, exist_ok=True)
    for series_uid in ("s1", "s2"):
        (folder / "subset0" / f"{series_uid}.mhd").touch()
    for name, text in (defaults | tables).items():
        if text is not None:
            (folder / f"{name}.csv").write_bytes(text.encode())
    return folder


def test_the_tables_become_records(tmp_path: Path) -> None:
    data = read_luna(tree(tmp_path))
    assert data.series_uids == ("s1", "s2", "s3", "s9")
    assert data.scans == {uid: tmp_path / "subset0" / f"{uid}.mhd" for uid in ("s1", "s2")}
    assert data.nodules[0] == Nodule(
        series_uid="s2",
        center_xyz=(-128.6994211, -175.5, -298.25),
        diameter_mm=5.651470635,
        malignant=True,
        ratings=(4, 2, 4, 2),
    )
    assert [(n.malignant, n.ratings) for n in data.nodules[1:]] == [(False, (3,)), (False, ())]
    assert [(a.series_uid, a.diameter_mm) for a in data.annotated] == [("s2", 5.65)]
    assert data.notes == (
        "2 of 4 series in the tables are not on disk (1 of 3 nodules); the 2 scans that are there are used",
    )


TEXTURES = """\
seriesuid,coordX,coordY,coordZ,diameter_mm,texture
s2,-128.6994211,-175.50001,-298.25,5.65,part-solid
s1,1,2,3.002,10,solid
s7,1,2,3,10,ground-glass
"""


def test_textures_are_read_where_there_are_any(tmp_path: Path) -> None:
    assert read_luna(tree(tmp_path)).textures == ()
    (tmp_path / "textures.csv").write_text(TEXTURES)
    data = read_luna(tmp_path)
    assert [row.texture for row in data.textures] == ["part-solid", "solid", "ground-glass"]
    assert data.textures[1] == Textured(series_uid="s1", center_xyz=(1, 2, 3.002), diameter_mm=10, texture="solid")
    # The row of s1 lies 2 micrometres too far, that of s7 is of no nodule, and s9's has none.
    assert data.notes[-1] == f"{tmp_path / 'textures.csv'} knows the textures of 1 of 3 nodules"


def test_an_annotated_nodule_is_unrated_when_no_row_lies_within_its_radius() -> None:
    rated = Nodule(series_uid="s", center_xyz=(0, 0, 0), diameter_mm=4, malignant=False, ratings=(1,))
    on_it, on_the_sphere, beside = (
        Annotation(series_uid="s", center_xyz=(x, 0, 0), diameter_mm=6) for x in (2.9, 3.0, 3.1)
    )
    assert unrated([on_it, on_the_sphere, beside], [rated]) == (on_the_sphere, beside)
    assert unrated([on_it], []) == (on_it,)
    assert unrated([], [rated]) == ()


def test_class_1_candidates_are_dropped_and_the_order_is_kept(tmp_path: Path) -> None:
    # They repeat annotated nodules: kept, they would be negatives on top of positives.
    data = read_luna(tree(tmp_path))
    assert list(data.negatives) == ["s1", "s2"]
    assert data.negatives["s1"].tolist() == [[4, 5, 6]]
    assert data.negatives["s2"].tolist() == [[1, 2, 3], [7, 8, 9.5]]
    assert data.negatives["s2"].dtype == np.float64
    assert data.negatives["s2"].tolist() == [[1, 2, 3], [7, 8, 9.5]]
    assert "s3" not in data.negatives


def test_candidates_v2_is_preferred(tmp_path: Path) -> None:
    v2 = "seriesuid,coordX,coordY,coordZ,class\ns1,9,9,9,0\n"
    assert read_luna(tree(tmp_path, candidates_V2=v2)).negatives["s1"].tolist() == [[9, 9, 9]]


def test_a_negative_excluded_diameter_means_10_mm(tmp_path: Path) -> None:
    assert read_luna(tree(tmp_path)).excluded == (
        Excluded(series_uid="s1", center_xyz=(1, 2, 3), diameter_mm=10.0),
        Excluded(series_uid="s1", center_xyz=(4, 5, 6), diameter_mm=7.5),
    )


def test_missing_tables_are_said(tmp_path: Path) -> None:
    data = read_luna(tree(tmp_path, annotations=None, annotations_excluded=None, candidates=None, seriesuids=None))
    assert data.negatives == {}
    assert data.excluded == ()
    assert [(a.series_uid, a.center_xyz) for a in data.annotated] == [
        (n.series_uid, n.center_xyz) for n in data.nodules
    ]
    assert data.series_uids == ("s1", "s2", "s9")  # tables and disk
    for name in ("annotations.csv", "annotations_excluded.csv", "candidates.csv", "seriesuids.csv"):
        assert sum(f"{name} is missing" in note for note in data.notes) == 1


def test_scans_that_the_list_does_not_name_are_left_out_aloud(tmp_path: Path) -> None:
    # Taking them in would move every later series of the split.
    data = read_luna(tree(tmp_path, seriesuids="s2\ns9\n"))
    assert list(data.scans) == ["s2"]
    assert data.series_uids == ("s2", "s9")
    assert any("1 scans on disk are not in seriesuids.csv" in note for note in data.notes)
    with pytest.raises(TableError, match="lists none of the scans"):
        read_luna(tree(tmp_path, seriesuids="s7\n"))


def test_a_scan_whose_name_is_no_text_costs_only_itself(tmp_path: Path) -> None:
    folder = tree(tmp_path, seriesuids=None)
    (folder / "subset0" / os.fsdecode(b"s\xff.mhd")).touch()
    data = read_luna(folder)
    assert set(data.scans) == {"s1", "s2"}
    assert "1 scans have names that are no UTF-8 text and are left out; rename them" in data.notes
    assert set(freeze_split(data.series_uids, 3, tmp_path / "split.csv")) == {"s1", "s2", "s9"}


def test_the_split_does_not_depend_on_what_is_on_disk(tmp_path: Path) -> None:
    # Mistake 15: a partial download moved scans between training and test.
    uids = "".join(f"s{n}\n" for n in range(10))
    full = read_luna(tree(tmp_path / "full", seriesuids=uids))
    part = read_luna(tree(tmp_path / "part", seriesuids=uids))
    for n in range(10):
        (tmp_path / "full" / f"s{n}.mhd").touch()
    (tmp_path / "full" / "subset0" / "s1.mhd").unlink()
    (tmp_path / "full" / "subset0" / "s2.mhd").unlink()
    (tmp_path / "part" / "subset0" / "s1.mhd").unlink()
    full, part = read_luna(tmp_path / "full"), read_luna(tmp_path / "part")
    assert (len(full.scans), len(part.scans)) == (10, 1)
    assert split_series(full.series_uids, 5) == split_series(part.series_uids, 5)


def test_tables_may_lie_elsewhere(tmp_path: Path) -> None:
    tree(tmp_path / "tables")
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "s1.mhd").touch()
    data = read_luna(scans, tmp_path / "tables")
    assert list(data.scans) == ["s1"]
    assert len(data.nodules) == 3


def test_bom_crlf_blank_lines_and_a_header_in_the_series_list(tmp_path: Path) -> None:
    plain = read_luna(tree(tmp_path / "plain"))
    odd = read_luna(
        tree(
            tmp_path / "odd",
            annotations_with_malignancy="\ufeff" + MALIGNANCY.replace("\n", "\r\n") + "\r\n\r\n",
            candidates="\ufeff" + CANDIDATES.replace("\n", "\r\n"),
            seriesuids="\ufeffseriesuid\r\n" + SERIES.replace("\n", "\r\n"),
        )
    )
    assert odd.nodules == plain.nodules
    assert odd.series_uids == plain.series_uids
    assert odd.negatives["s2"].tolist() == plain.negatives["s2"].tolist()


ROW = "seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details\n"
DAMAGE = {
    "no malignancy table": ({"annotations_with_malignancy": None}, "missing: without it"),
    "empty file": ({"candidates": ""}, "candidates.csv: it is empty"),
    "only blank lines": ({"seriesuids": "\n \n"}, "seriesuids.csv: it is empty"),
    "missing columns": ({"annotations": "seriesuid,x\ns1,2\n"}, "no column coordX, coordY, coordZ, diam"),
    "no header": ({"annotations": ANNOTATIONS.split("\n", 1)[1]}, "line 1 has no column seriesuid"),
    "text for a number": ({"annotations": ANNOTATIONS + "s1,1,2,abc,4\n"}, "line 3: coordZ is not"),
    "no coordinate": ({"candidates": CANDIDATES + "s1,,2,3,0\n"}, "line 6: coordX is not a finite"),
    "infinite": ({"candidates": CANDIDATES + "\ns1,1,2,inf,0\n"}, "line 7: coordZ is not a finite"),
    "cut off": ({"candidates": CANDIDATES + "s1,1"}, "line 6: coordY is not a finite number"),
    "too wide": ({"candidates": CANDIDATES + "s1,1,2,3,0,9\n"}, "line 6"),
    "all too wide": ({"annotations": ANNOTATIONS.rstrip() + ",9\n"}, "not a table"),
    "other class": ({"candidates": CANDIDATES + "s1,1,2,3,2\n"}, "line 6: class is neither 0 nor 1"),
    "a nodule as wide as a chest": (
        {"annotations": ANNOTATIONS + "s1,1,2,3,1e9\n"},
        "line 3: diameter_mm is above 300",
    ),
    "a nodule named twice": (
        {"annotations": ANNOTATIONS + ANNOTATIONS.splitlines()[1] + "\n"},
        "line 3: a nodule that an earlier line names already",
    ),
    "no diameter": ({"annotations": ANNOTATIONS + "s1,1,2,3,0\n"}, "line 3: diameter_mm is not positive"),
    "mal_bool": ({"annotations_with_malignancy": ROW + "s1,1,2,3,4,maybe,[3]\n"}, "line 2: mal_bool"),
    "code": ({"annotations_with_malignancy": ROW + "s1,1,2,3,4,True,exit()\n"}, "line 2: mal_details"),
    "rating 6": ({"annotations_with_malignancy": ROW + 's1,1,2,3,4,True,"[4, 6]"\n'}, "ratings 1..5"),
    "no ratings": ({"annotations_with_malignancy": ROW + "s1,1,2,3,4,True,\n"}, "mal_details is empty"),
    "no uid": ({"annotations": ANNOTATIONS + ",1,2,3,4\n"}, "line 3: seriesuid is empty"),
    "uid is a path": ({"annotations": ANNOTATIONS + "../../x,1,2,3,4\n"}, "'../../x' is no series_uid"),
    "uid twice": ({"seriesuids": "s1\ns2\ns1\n"}, "line 3 names s1 a second time"),
    "not text": ({"annotations": "\0\1\2\n"}, "annotations.csv"),
    "open quote": ({"annotations": ANNOTATIONS + 's1,"1,2,3,4\n'}, "annotations.csv"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_malformed_table_is_one_clear_line(tmp_path: Path, case: str) -> None:
    tables, message = DAMAGE[case]
    with pytest.raises(TableError) as caught:
        read_luna(tree(tmp_path, **tables))
    line = str(caught.value)
    assert message in line
    assert line.startswith(str(tmp_path))
    assert len(line.splitlines()) == 1


def test_latin_1_bytes_are_one_clear_line(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "annotations.csv").write_bytes(ANNOTATIONS.encode() + b"s\xe9,1,2,3,4\n")
    (tmp_path / "seriesuids.csv").write_bytes(b"s\xe9\n")
    for name in ("annotations.csv", "seriesuids.csv"):
        with pytest.raises(TableError, match=name):
            read_luna(tmp_path)
        (tmp_path / name).unlink()


def test_missing_folders_and_no_scans_are_one_clear_line(tmp_path: Path) -> None:
    # Mistake 17: an empty or partial download crashed with IndexError.
    with pytest.raises(TableError, match="none: no such folder; name"):
        read_luna(tmp_path / "none")
    with pytest.raises(TableError, match="no scans here"):
        read_luna(tmp_path)
    with pytest.raises(TableError, match="tables: no such folder"):
        read_luna(tree(tmp_path), tmp_path / "tables")
    (tmp_path / "s1.mhd").touch()
    with pytest.raises(TableError, match="the same series_uid"):
        read_luna(tmp_path)


def test_half_a_million_candidates_are_all_read(tmp_path: Path) -> None:
    rows = "".join(f"s{n % 888},{n}.25,-{n}.5,1.125,{int(n % 500 == 0)}\n" for n in range(551_065))
    data = read_luna(tree(tmp_path, candidates="seriesuid,coordX,coordY,coordZ,class\n" + rows))
    assert sum(len(places) for places in data.negatives.values()) == 551_065 - 1103
    assert data.negatives["s3"][1].tolist() == [891.25, -891.5, 1.125]


def test_by_series_groups_in_order(tmp_path: Path) -> None:
    data = read_luna(tree(tmp_path))
    assert by_series(data.excluded) == {"s1": data.excluded}
    assert list(by_series(data.nodules)) == ["s2", "s1", "s9"]


def test_the_patients_table_is_optional(tmp_path: Path) -> None:
    assert read_luna(tree(tmp_path)).patients == {}
    data = read_luna(tree(tmp_path, patients="series_uid,patient\ns1,P1\ns9,P1\ns2,P2\ns7,P2\n"))
    assert data.patients == {
        "s1": patient_mark("P1"), "s9": patient_mark("P1"), "s2": patient_mark("P2"), "s7": patient_mark("P2"),
    }  # fmt: skip
    assert any("names the patients of 3 of 4 series" in note for note in data.notes)
    assert not any("P1" in note or "P2" in note for note in data.notes)
    everybody = "series_uid,patient\n" + "".join(f"{uid},P\n" for uid in SERIES.split())
    assert not any("patients" in note for note in read_luna(tree(tmp_path, patients=everybody)).notes)


@pytest.mark.real
def test_the_real_tables_leave_four_nodules_unrated() -> None:
    where = os.environ.get("LUNGML_REAL_DATA")
    if not where:
        pytest.skip("LUNGML_REAL_DATA does not point at the real scans")
    data = luna.read_luna(Path(where) / "luna16")
    rated = by_series(data.nodules)
    without = [found for uid, own in by_series(data.annotated).items() for found in unrated(own, rated.get(uid, ()))]
    assert sorted(round(found.diameter_mm, 1) for found in without) == [7.9, 8.5, 9.7, 21.1]
