import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lungml import luna
from lungml.luna import (
    Annotation,
    Excluded,
    Nodule,
    SplitError,
    TableError,
    by_series,
    check_nodules,
    check_split,
    freeze_split,
    frozen_patients,
    read_luna,
    split_series,
    unrated,
)
from lungml.patients import patient_mark
from lungml.textures import Textured

MARK = "00112233445566ff"
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


def test_the_stride_by_hand() -> None:
    uids = [f"u{n:02}" for n in range(12)]
    split = split_series(reversed(uids), 5)
    assert [uid for uid in uids if split[uid] == "val"] == ["u00", "u05", "u10"] == uids[0::5]
    assert [uid for uid in uids if split[uid] == "test"] == ["u01", "u06", "u11"] == uids[1::5]
    assert Counter(split.values()) == {"train": 6, "val": 3, "test": 3}


@pytest.mark.parametrize("stride", [2, 1, 0, -10])
def test_a_stride_that_leaves_no_training_is_refused(tmp_path: Path, stride: int) -> None:
    with pytest.raises(SplitError, match="give 3 or more"):
        split_series(["a"], stride)
    with pytest.raises(SplitError, match="give 3 or more"):
        freeze_split([], stride, tmp_path / "split.csv")
    assert not (tmp_path / "split.csv").exists()


def test_a_frozen_series_never_moves_and_later_ones_continue_the_stride(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    first = freeze_split(["b", "d", "f", "h"], 3, path)
    assert first == split_series(["b", "d", "f", "h"], 3)
    assert path.read_text() == "series_uid,split\nb,val\nd,test\nf,train\nh,val\n"
    before = path.stat()
    assert freeze_split(["h", "d"], 3, path) == {"d": "test", "h": "val"}
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    # "a" and "c" sort before the rest, and "a" would have been validation in a fresh split.
    grown = freeze_split(["a", "b", "c", "d", "f", "h"], 3, path)
    assert grown == {**first, "a": "test", "c": "train"}
    # Another stride and another data set in the same file: the old ones stay, the new ones start at 0.
    assert freeze_split(["x", "y", "z"], 10, path) == {"x": "val", "y": "test", "z": "train"}
    assert freeze_split(["b"], 10, path) == {"b": "val"}


@given(
    lists=st.lists(st.sets(st.sampled_from("abcdefghijklmnop"), min_size=1), min_size=1, max_size=5),
    stride=st.integers(3, 6),
)
def test_growing_in_any_order_moves_nobody(
    tmp_path_factory: pytest.TempPathFactory, lists: list[set[str]], stride: int
) -> None:
    path = tmp_path_factory.mktemp("split") / "split.csv"
    seen: dict[str, str] = {}
    for uids in lists:
        split = freeze_split(uids, stride, path)
        assert set(split) == uids
        assert all(split[uid] == seen[uid] for uid in uids & seen.keys())
        if not seen:
            assert split == split_series(uids, stride)
        seen |= split


def test_further_columns_stay(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("series_uid,split,patient\r\na,train,P1\r\n")
    assert freeze_split(["a", "b"], 3, path) == {"a": "train", "b": "test"}
    assert path.read_text() == "series_uid,split,patient\na,train,P1\nb,test,\n"


def test_a_patient_goes_where_the_first_series_goes(tmp_path: Path) -> None:
    uids = [f"s{n}" for n in range(10)]  # stride 5: s0 and s5 validate, s1 and s6 test
    marks = {"s0": MARK, "s2": MARK, "s6": MARK, "s3": "b" * 16, "s5": "b" * 16}
    split = freeze_split(uids, 5, tmp_path / "split.csv", marks)
    assert split == split_series(uids, 5, marks)
    plain = split_series(uids, 5)
    assert {uid: name for uid, name in split.items() if name != plain[uid]} == {
        "s2": "val", "s6": "val", "s5": "train",
    }  # fmt: skip
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert lines[:4] == ["series_uid,split,patient", f"s0,val,{MARK}", "s1,test,", f"s2,val,{MARK}"]
    assert frozen_patients(tmp_path / "split.csv") == (split, marks)
    # Without the table the marks stay, and so does everybody.
    before = (tmp_path / "split.csv").read_bytes()
    assert freeze_split(uids, 5, tmp_path / "split.csv") == split
    assert (tmp_path / "split.csv").read_bytes() == before


def test_patients_that_are_known_later_move_nobody_but_draw_new_series(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    first = freeze_split(["a", "b", "c"], 3, path)
    assert first == {"a": "val", "b": "test", "c": "train"}
    assert path.read_text() == "series_uid,split\na,val\nb,test\nc,train\n"
    marks = {"a": MARK, "c": MARK, "d": MARK, "e": ""}
    # d would validate by its place, and does by its patient, who stands on two sides: the more held-out one counts.
    assert freeze_split(["a", "b", "c", "d", "e"], 3, path, marks) == {**first, "d": "val", "e": "test"}
    assert path.read_text() == (
        f"series_uid,split,patient\na,val,{MARK}\nb,test,\nc,train,{MARK}\nd,val,{MARK}\ne,test,\n"
    )
    # Another data set with a series of the same patient, and of one who tests.
    freeze_split(["b"], 3, path, {"b": "b" * 16})
    assert freeze_split(["x", "y", "z"], 3, path, {"y": MARK, "z": "b" * 16}) == {"x": "val", "y": "val", "z": "test"}


def test_a_name_written_by_hand_becomes_a_mark_once_patients_are_known(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("series_uid,split,patient\na,test,DOE^JANE\n")
    assert freeze_split(["b"], 3, path, {"b": patient_mark("DOE^JANE")}) == {"b": "test"}
    assert "DOE" not in path.read_text()


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line is not"),
        ("uid,split\na,val\n", "its first line is not"),
        ("series_uid,split\na,validation\n", "line 2 is not a series and"),
        ("series_uid,split\na,val\nb\n", "line 3 is not a series and"),
        ("series_uid,split\na,val\na,test\n", "line 3 names a a second time"),
        ('series_uid,split\na,"val\n', "not a csv file"),
    ],
)
def test_a_damaged_split_is_one_clear_line_and_stays(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(SplitError) as caught:
        freeze_split(["a", "b"], 10, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_text() == text


def _freeze(uids: list[str], path: Path) -> None:
    for uid in uids:
        freeze_split([uid], 10, path)


def test_two_processes_freeze_one_split(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_freeze, args=([f"{n:02}" for n in range(k, 40 + k)], path)) for k in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 1 + 60
    assert sorted(os.listdir(tmp_path)) == ["split.csv", "split.csv.lock"]


def test_too_few_scans_say_how_many_are_needed(tmp_path: Path) -> None:
    data = read_luna(tree(tmp_path))
    split = split_series(data.series_uids, 10)
    with pytest.raises(SplitError) as caught:
        check_split(split, data, 10)
    assert str(caught.value) == (
        "2 scans are on disk (0 train, 1 val, 1 test); three splits at --val-stride 10 need at least 3, "
        "one of each; add s3 (train)"
    )
    with pytest.raises(SplitError, match=r"three splits need at least 3, one of each; add s3 \(train\)$"):
        check_split(split, data, None)
    (tmp_path / "s3.mhd").touch()
    check_split(split, read_luna(tmp_path), 10)


@pytest.mark.parametrize(("lacking", "malignant"), [("malignant", False), ("benign", True)])
def test_both_kinds_of_nodules_are_needed_before_anything_is_trained(lacking: str, malignant: bool) -> None:
    both = [
        luna.Nodule(series_uid="1", center_xyz=(0, 0, 0), diameter_mm=5, malignant=kind, ratings=())
        for kind in (True, False)
    ]
    one_kind = [nodule for nodule in both if nodule.malignant == malignant]
    check_nodules([("train", both), ("val", one_kind), ("val", both), ("test", ())])
    for split, scans in (
        ("val", [("train", both), ("val", one_kind)]),
        ("train", [("train", one_kind), ("val", both)]),
    ):
        with pytest.raises(SplitError, match=rf"^the 1 {split} scans on disk hold no {lacking} nodule.*; add scans$"):
            check_nodules(scans)


@pytest.mark.real
def test_the_published_table_gives_the_published_split() -> None:
    where = os.environ.get("LUNGML_REAL_DATA")
    if not where:
        pytest.skip("LUNGML_REAL_DATA does not point at the real scans")
    data = luna.read_luna(Path(where) / "luna16")
    assert (len(data.series_uids), len(data.nodules), len(data.annotated)) == (888, 1177, 1181)
    assert all(n.malignant == (sum(r >= 4 for r in n.ratings) >= 2) for n in data.nodules)
    split = split_series(data.series_uids, 10)
    for name, malignant, benign, auc in [("val", 52, 102, 0.901395), ("test", 32, 58, 0.948815)]:
        nodules = [n for n in data.nodules if split[n.series_uid] == name]
        truth = [n.malignant for n in nodules]
        assert (sum(truth), len(truth) - sum(truth)) == (malignant, benign)
        assert roc_auc_score(truth, [n.diameter_mm for n in nodules]) == pytest.approx(auc, abs=5e-7)


@pytest.mark.real
def test_the_real_tables_leave_four_nodules_unrated() -> None:
    where = os.environ.get("LUNGML_REAL_DATA")
    if not where:
        pytest.skip("LUNGML_REAL_DATA does not point at the real scans")
    data = luna.read_luna(Path(where) / "luna16")
    rated = by_series(data.nodules)
    without = [found for uid, own in by_series(data.annotated).items() for found in unrated(own, rated.get(uid, ()))]
    assert sorted(round(found.diameter_mm, 1) for found in without) == [7.9, 8.5, 9.7, 21.1]
