import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungml.folds import (
    FoldError,
    assign_folds,
    fold_split,
    parse_folds,
    read_folds,
    read_subsets,
)
from lungml.patients import divided
from lungml.tables import TableError

FOLD_OF = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 0}


def scans(*uids: str) -> dict[str, Path]:
    return {uid: Path(f"{uid}.mhd") for uid in uids}


def tree(folder: Path, **places: str) -> Path:
    """Headers of scans: series_uid -> folder."""
    for uid, place in places.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{uid}.mhd").touch()
    return folder


def test_a_fold_tests_its_part_and_validates_on_the_next() -> None:
    assert fold_split(FOLD_OF, 0, 4) == {"a": "test", "b": "val", "c": "train", "d": "train", "e": "test"}
    assert fold_split(FOLD_OF, 3, 4) == {"a": "val", "b": "train", "c": "train", "d": "test", "e": "val"}


@given(st.integers(3, 12), st.lists(st.integers(0, 11), min_size=1))
def test_over_all_folds_each_series_is_tested_once_and_validates_once(count: int, parts: list[int]) -> None:
    fold_of = {str(number): part % count for number, part in enumerate(parts)}
    sides = [fold_split(fold_of, fold, count) for fold in range(count)]
    for uid in fold_of:
        assert Counter(split[uid] for split in sides) == {"test": 1, "val": 1, "train": count - 2}


def test_a_subset_is_a_fold_and_fewer_folds_share_them() -> None:
    subsets = {str(n): n for n in range(10)}
    ten, five = (assign_folds(scans(*subsets), count, subsets) for count in (10, 5))
    assert (ten.fold_of, ten.by, ten.words) == (subsets, "subset", "LUNA16's own subsets")
    assert five.fold_of == {str(n): n % 5 for n in range(10)}
    assert five.words == "LUNA16's own subsets modulo 5"


def test_without_subsets_the_sorted_list_is_dealt_out_and_says_so() -> None:
    folds = assign_folds(scans("s4", "s0", "s3", "s1", "s2"), 3, {})
    assert (folds.fold_of, folds.by) == ({"s0": 0, "s1": 1, "s2": 2, "s3": 0, "s4": 1}, "order")
    assert folds.words == "the sorted list of series dealt out (no LUNA16 subset is known)"


def test_a_patients_later_series_follow_the_first_where_series_are_dealt_out() -> None:
    patients = {"s1": "JANE", "s3": "JANE", "s2": "JIM"}
    folds = assign_folds(scans("s0", "s1", "s2", "s3", "s4"), 3, {}, patients)
    assert folds.fold_of == {"s0": 0, "s1": 1, "s2": 2, "s3": 1, "s4": 1}
    assert not divided(folds.split(0), patients)


def test_of_a_patient_in_two_subsets_the_less_held_out_series_is_told() -> None:
    # LUNA16's subsets stay what they are: whoever prepares a fold leaves these out of it.
    folds = assign_folds(scans("a", "b", "c", "d"), 4, {"a": 0, "b": 1, "c": 2, "d": 3})
    assert divided(folds.split(0), {"a": "JANE", "b": "JANE", "c": "JIM", "d": "JIM"}) == {"b": "test"}
    assert divided(folds.split(1), {"a": "JANE", "b": "JANE"}) == {"a": "test"}


@pytest.mark.parametrize("count", [-1, 0, 2, 11])
def test_too_few_or_too_many_folds_are_refused(count: int) -> None:
    with pytest.raises(FoldError, match=rf"^{count} folds cannot be had: .*; give 3 to 10$"):
        assign_folds(scans("a", "b"), count, {"a": 0, "b": 1})
    with pytest.raises(FoldError, match=r"give 3 to 4$"):
        assign_folds(scans("a", "b", "c", "d"), 5, {})


def test_a_fold_without_scans_on_a_side_is_refused() -> None:
    folds = assign_folds(scans("a", "b", "c"), 10, {"a": 0, "b": 1, "c": 3})
    assert set(folds.split(0).values()) == {"test", "val", "train"}
    with pytest.raises(FoldError, match=r"^fold 1 of 10 has no val scan on disk: .*, validates on part 2 and"):
        folds.split(1)
    with pytest.raises(FoldError, match="fold 5 of 10 has no val and no test scan on disk"):
        folds.split(5)
    with pytest.raises(FoldError, match="there is no fold 10 of 10; give some of 0 to 9"):
        folds.split(10)


def test_the_folder_tells_the_subset(tmp_path: Path) -> None:
    # The tree's own place says nothing of its scans.
    luna_dir = tmp_path / "subset9" / "luna16"
    tree(luna_dir, a="subset0", b="more/Subset1/again", c="subset2")
    folds = read_folds(luna_dir, None, 10)
    assert (folds.fold_of, folds.by) == ({"a": 0, "b": 1, "c": 2}, "subset")
    assert read_folds(luna_dir / "subset2", None, 10).fold_of == {"c": 2}


def test_a_table_tells_the_subset_where_no_folder_does(tmp_path: Path) -> None:
    luna_dir = tree(tmp_path, a="scans", b="scans", c="subset7")
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "subset_to_series.csv").write_text("subset,seriesuid\n4,a\n5,b\n6,d\n")
    assert read_folds(luna_dir, tables, 10).fold_of == {"a": 4, "b": 5, "c": 7}
    (tables / "subset_to_series.csv").write_text("subset,seriesuid\n4,a\n5,b\n6,c\n")
    with pytest.raises(FoldError, match=r"c\.mhd: lies in subset7, .*subset_to_series\.csv says 6; correct one"):
        read_folds(luna_dir, tables, 10)
    (tables / "subset_to_series.csv").write_text("subset,seriesuid\n4,a\n")
    with pytest.raises(FoldError, match="the subsets of 1 of 3 scans are not known, such as b; put them into"):
        read_folds(luna_dir, tables, 10)


def test_patients_are_read_beside_the_tables(tmp_path: Path) -> None:
    tree(tmp_path, a=".", b=".", c=".", d=".")
    (tmp_path / "patients.csv").write_text("series_uid,patient\na,JANE\nd,JANE\nb,JIM\n")
    assert read_folds(tmp_path, None, 3).fold_of == {"a": 0, "b": 1, "c": 2, "d": 0}
    (tmp_path / "patients.csv").write_text("series_uid,patient\na,JANE\nc,JANE\n")
    assert read_folds(tmp_path, None, 3).fold_of == {"a": 0, "b": 1, "c": 0, "d": 0}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("subset,seriesuid\n10,a\n", "line 2: subset is none of 0 to 9"),
        ("subset,seriesuid\n1,a\n1.5,b\n", "line 3: subset is none of 0 to 9"),
        ("subset,seriesuid\n1,a\n2,a\n", "line 3: a series that an earlier line names already"),
    ],
)
def test_a_damaged_table_of_subsets_names_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "subset_to_series.csv").write_text(text)
    with pytest.raises(TableError, match=problem):
        read_subsets(tmp_path / "subset_to_series.csv")


def test_a_folder_without_scans_is_said(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no scans here"):
        read_folds(tmp_path, None, 10)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10", (10, tuple(range(10)))),
        ("5", (5, (0, 1, 2, 3, 4))),
        ("0,3", (10, (0, 3))),
        ("7-9, 0,8", (10, (0, 7, 8, 9))),
        ("3/10", (10, (3,))),
        ("4,1/5", (5, (1, 4))),
    ],
)
def test_what_folds_are_asked_for(text: str, meant: tuple[int, tuple[int, ...]]) -> None:
    assert parse_folds(text) == meant


@pytest.mark.parametrize("text", ["", "ten", "0,", "1/", "1/2/3", "-1", "0,10", "5/5", "3-1", "0.5", "1\n,2", "²"])
def test_what_no_fold_is_meant_by_is_one_line(text: str) -> None:
    with pytest.raises(FoldError) as refused:
        parse_folds(text)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("--folds")


@pytest.mark.real
def test_real_subsets() -> None:
    where = os.environ.get("LUNGML_REAL_DATA")
    if not where:
        pytest.skip("LUNGML_REAL_DATA does not point at the real scans")
    subsets = read_subsets(Path(where) / "luna16" / "subset_to_series.csv")
    assert Counter(subsets.values()) == {**dict.fromkeys(range(8), 89), 8: 88, 9: 88}
    listed = (Path(where) / "luna16" / "seriesuids.csv").read_text().split()
    assert subsets.keys() == set(listed)
    folds = assign_folds(scans(*listed), 10, subsets)
    assert Counter(folds.split(9).values()) == {"test": 88, "val": 89, "train": 711}
