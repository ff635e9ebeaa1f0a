import multiprocessing
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lungml.frozen_split import SplitError, check_nodules, check_split, freeze_split, frozen_patients, split_series
from lungml.luna import LunaData, Nodule, read_luna
from lungml.patients import patient_mark

MARK = "00112233445566ff"


def data_of(*on_disk: str) -> LunaData:
    """A data set of four series, some of them on disk."""
    scans = {uid: Path(f"{uid}.mhd") for uid in on_disk}
    return LunaData(
        series_uids=("s1", "s2", "s3", "s9"),
        scans=scans,
        nodules=(),
        negatives={},
        excluded=(),
        annotated=(),
        notes=(),
    )


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


def test_too_few_scans_say_how_many_are_needed() -> None:
    data = data_of("s1", "s2")
    split = split_series(data.series_uids, 10)
    with pytest.raises(SplitError) as caught:
        check_split(split, data, 10)
    assert str(caught.value) == (
        "2 scans are on disk (0 train, 1 val, 1 test); three splits at --val-stride 10 need at least 3, "
        "one of each; add s3 (train)"
    )
    with pytest.raises(SplitError, match=r"three splits need at least 3, one of each; add s3 \(train\)$"):
        check_split(split, data, None)
    check_split(split, data_of("s1", "s2", "s3"), 10)


@pytest.mark.parametrize(("lacking", "malignant"), [("malignant", False), ("benign", True)])
def test_both_kinds_of_nodules_are_needed_before_anything_is_trained(lacking: str, malignant: bool) -> None:
    both = [
        Nodule(series_uid="1", center_xyz=(0, 0, 0), diameter_mm=5, malignant=kind, ratings=())
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
    data = read_luna(Path(where) / "luna16")
    assert (len(data.series_uids), len(data.nodules), len(data.annotated)) == (888, 1177, 1181)
    assert all(n.malignant == (sum(r >= 4 for r in n.ratings) >= 2) for n in data.nodules)
    split = split_series(data.series_uids, 10)
    for name, malignant, benign, auc in [("val", 52, 102, 0.901395), ("test", 32, 58, 0.948815)]:
        nodules = [n for n in data.nodules if split[n.series_uid] == name]
        truth = [n.malignant for n in nodules]
        assert (sum(truth), len(truth) - sum(truth)) == (malignant, benign)
        assert roc_auc_score(truth, [n.diameter_mm for n in nodules]) == pytest.approx(auc, abs=5e-7)
