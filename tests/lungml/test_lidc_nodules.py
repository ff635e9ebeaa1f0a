import csv
import itertools
from pathlib import Path

import pytest

from lungml.lidc_nodules import LidcNodule, lidc_nodules, write_nodules_csv
from lungml.lidc_xml import parse_lidc
from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square


def grouped(*sessions: str) -> tuple[LidcNodule, ...]:
    return lidc_nodules(parse_lidc(lidc_xml(*sessions), "x"))


def at(row: int, col: int, malignancy: int | None = 3, z: tuple[float, ...] = (1.0,), side: int = 6) -> str:
    return nodule("".join(roi(z_mm, square(row, col, side)) for z_mm in z), malignancy)


def test_two_readers_of_one_nodule() -> None:
    (found,) = grouped(at(10, 20, 4, z=(1, 2)), at(11, 22, 2, z=(2, 3)))
    assert (found.series_uid, found.readers, found.ratings) == ("1.2.3", 2, (4, 2))
    assert (found.z_min_mm, found.z_max_mm, found.z_mm) == (1, 3, 2)
    assert (found.row, found.col) == (13, 23.5)  # the means of 12.5 and 13.5, 22.5 and 24.5


def test_neighbours_and_other_slices_stay_apart() -> None:
    found = grouped(at(10, 20, 1) + at(10, 60, 2), at(10, 60, 3) + at(10, 20, 4, z=(9,)))
    assert [(n.z_mm, n.col, n.ratings) for n in found] == [(1, 22.5, (1,)), (1, 62.5, (2, 3)), (9, 22.5, (4,))]


def test_outlines_whose_lines_only_cross_are_two() -> None:
    assert len(grouped(at(0, 0, side=4), at(2, 2, side=4))) == 2


def test_a_reader_with_two_outlines_of_one_nodule_counts_once_and_rates_twice() -> None:
    (found,) = grouped(at(10, 10, 5) + at(12, 12, 4), at(11, 11, 1))
    assert (found.readers, found.ratings, len(found.readings)) == (2, (5, 4, 1), 3)
    assert found.malignant
    first, second = found.reader_regions
    assert first[1.0].inside.sum() == 16 + 16 - 4
    assert second[1.0].inside.sum() == 16


def test_an_outline_that_spans_two_joins_them() -> None:
    apart = at(10, 10, 1) + at(10, 20, 2)
    assert [n.ratings for n in grouped(apart)] == [(1,), (2,)]
    assert [n.ratings for n in grouped(apart, at(8, 8, 3, side=24))] == [(1, 2, 3)]


def test_groups_do_not_depend_on_the_readers_order() -> None:
    sessions = [at(10, 10), at(13, 13) + at(50, 50), at(16, 16), at(52, 52)]
    for order in itertools.permutations(sessions):
        assert [(n.readers, n.z_mm) for n in grouped(*order)] == [(3, 1), (2, 1)]


def test_points_and_unrated_outlines() -> None:
    (found,) = grouped(at(10, 10, None), nodule(roi(1, [(12, 12)]), None), at(10, 10, 2))
    assert (found.readers, found.ratings, found.malignant) == (2, (2,), False)


@pytest.mark.parametrize(
    ("ratings", "malignant"),
    [((), False), ((5,), False), ((4, 3), False), ((4, 4), True), ((5, 1, 4, 1), True), ((3, 3, 3, 3), False)],
)
def test_the_label_is_two_or_more_of_4_or_5(ratings: tuple[int, ...], malignant: bool) -> None:
    (found,) = grouped(*(at(10, 10, rating) for rating in ratings or (None,)))
    assert found.malignant == malignant


def test_nodules_csv(tmp_path: Path) -> None:
    write_nodules_csv(tmp_path / "nodules.csv", grouped(at(10, 20, 4, z=(-1.5, 2)), at(10, 20, 2, z=(2,))))
    with (tmp_path / "nodules.csv").open() as handle:
        header, row = csv.reader(handle)
    assert header == ["series_uid", "z_min_mm", "z_max_mm", "z_mm", "row", "col", "readers", "ratings"]
    assert row == ["1.2.3", "-1.5", "2.0", "1.125", "12.5", "22.5", "2", "[4, 2]"]
