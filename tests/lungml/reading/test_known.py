from pathlib import Path

import pytest

from lungml.reading.known import read_known
from lungml.reading.record import KnownNodule, KnownTruth
from lungml.tables import TableError

RATED = 'seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details\n1.1,1,2,3,8,True,"[5, 4]"\n'
ANNOTATED = "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.1,1.5,2,3,8\n1.1,50,2,3,6\n1.2,0,0,0,5\n"


def test_a_nodule_that_no_row_rates_is_one_of_unknown_malignancy(tmp_path: Path) -> None:
    (tmp_path / "annotations_with_malignancy.csv").write_text(RATED)
    (tmp_path / "annotations.csv").write_text(ANNOTATED)
    known = read_known(tmp_path)
    assert known.of("1.1") == KnownTruth(
        nodules=(
            KnownNodule(center_xyz=(1, 2, 3), diameter_mm=8, malignant=True),
            KnownNodule(center_xyz=(50, 2, 3), diameter_mm=6),
        )
    )
    assert known.of("1.2") == KnownTruth(nodules=(KnownNodule(center_xyz=(0, 0, 0), diameter_mm=5),))


@pytest.mark.parametrize("table", ["annotations.csv", "annotations_with_malignancy.csv"])
def test_one_of_the_two_tables_is_enough(table: str, tmp_path: Path) -> None:
    (tmp_path / table).write_text(RATED if "malignancy" in table else ANNOTATED)
    truth = read_known(tmp_path).of("1.1")
    assert truth
    assert truth.nodules[0].malignant is (True if "malignancy" in table else None)


def test_a_listed_scan_without_a_row_has_no_nodule_and_an_unlisted_one_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text(ANNOTATED)
    assert read_known(tmp_path).of("1.3") is None
    (tmp_path / "seriesuids.csv").write_text("1.1\n1.3\n")
    known = read_known(tmp_path)
    assert known.of("1.3") == KnownTruth()
    assert known.of("1.4") is None


def test_what_nobody_counts_is_excluded(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text(ANNOTATED)
    (tmp_path / "annotations_excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.9,1,1,1,-1\n")
    truth = read_known(tmp_path).of("1.9")
    assert truth
    assert (truth.nodules, truth.excluded[0].diameter_mm) == ((), 10.0)


def test_a_folder_without_truth_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="neither annotations_with_malignancy"):
        read_known(tmp_path)
