from collections.abc import Sequence
from pathlib import Path

import pytest

from lungml.geometry import Grid, irc_to_xyz
from lungml.lidc_luna import RATED_COLUMNS, LunaMatch, match_annotations, match_luna, write_rated_csv
from lungml.lidc_nodules import LidcNodule, lidc_nodules
from lungml.lidc_xml import parse_lidc
from lungml.luna import Annotation, read_annotations, read_luna
from lungml.tables import TableError
from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square

UID = "1.2.3"
GRID = Grid(shape_irc=(40, 64, 64), spacing_xyz=(1, 1, 1), origin_xyz=(-30, -20, 0))


def at(row: int, col: int, z: Sequence[float], malignancy: int | None = 3) -> str:
    return nodule("".join(roi(z_mm, square(row, col, 6)) for z_mm in z), malignancy)


def read(*sessions: str) -> dict[str, tuple[LidcNodule, ...]]:
    return {UID: lidc_nodules(parse_lidc(lidc_xml(*sessions, series_uid=UID), "x"))}


def annotation(index: float, row: float, col: float, diameter_mm: float = 6, series_uid: str = UID) -> Annotation:
    x, y, z = irc_to_xyz((index, row, col), GRID).tolist()
    return Annotation(series_uid=series_uid, center_xyz=(x, y, z), diameter_mm=diameter_mm)


def chosen(match: LunaMatch) -> list[tuple[int, ...]]:
    return [rated.nodule.ratings for rated in match.rated]


THREE = [at(10, 10, (5, 6), rating) + at(40, 40, (5, 6), 1) + at(40, 10, (20, 21), 2) for rating in (5, 4, 1)]


def test_with_a_grid_the_nearest_within_the_radius_counts() -> None:
    rows = [annotation(5.5, 42, 42), annotation(5.5, 12.4, 12.6), annotation(20.5, 12, 12)]
    match = match_annotations(rows, read(*THREE), {UID: GRID})
    assert chosen(match) == [(1, 1, 1), (5, 4, 1)]
    assert [r.nodule.malignant for r in match.rated] == [False, True]
    assert match.unmatched == ((rows[2], "no outlined nodule within its radius"),)
    assert (match.by_z, match.ambiguous) == (0, 0)


def test_without_a_grid_z_decides_and_a_choice_is_counted() -> None:
    rows = [annotation(20.4, 0, 0), annotation(30, 0, 0), annotation(5.5, 0, 0)]
    match = match_annotations(rows, read(*THREE), {})
    assert chosen(match)[0] == (2, 2, 2)
    assert match.unmatched == ((rows[1], "no outlined nodule within its radius of its z"),)
    assert (match.by_z, match.ambiguous) == (2, 1)


def test_each_nodule_serves_once_and_the_sum_of_distances_is_least() -> None:
    nodules = read(*[at(10, 10, (4, 6), 1) + at(40, 40, (5, 7), 2)] * 3)  # centres at 5 and 6
    rows = [annotation(5.4, 0, 0), annotation(4.9, 0, 0)]  # the first alone would take 5
    assert chosen(match_annotations(rows, nodules, {})) == [(2, 2, 2), (1, 1, 1)]
    assert chosen(match_annotations(rows[::-1], nodules, {})) == [(1, 1, 1), (2, 2, 2)]


def test_nodules_of_three_readers_come_first() -> None:
    nodules = read(at(10, 10, (4, 6), 1), at(40, 40, (5, 7), 2), at(40, 40, (5, 7), 2), at(40, 40, (5, 7), 2))
    assert chosen(match_annotations([annotation(5, 0, 0)], nodules, {})) == [(2, 2, 2)]
    both = [annotation(5, 0, 0), annotation(5.9, 0, 0)]
    assert chosen(match_annotations(both, nodules, {})) == [(1,), (2, 2, 2)]


def test_what_cannot_be_rated_is_listed() -> None:
    rows = [annotation(5, 12, 12, series_uid="9.9"), annotation(5, 12, 12)]
    unrated = read(*[at(10, 10, (5,), None)] * 3)
    assert [why for _, why in match_annotations(rows, unrated, {UID: GRID}).unmatched] == [
        "no LIDC file reads its series",
        "none of its readings rates malignancy",
    ]
    (only,) = match_annotations(rows[1:], {UID: ()}, {}).unmatched
    assert only[1].startswith("no outlined nodule")


def luna_dir(folder: Path, rows: Sequence[Annotation], spacing: str = "1 1 1", axes: str = "1 0 0 0 1 0 0 0 1") -> Path:
    lines = [f"{a.series_uid},{','.join(map(str, a.center_xyz))},{a.diameter_mm}" for a in rows]
    (folder / "annotations.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,diameter_mm", *lines]))
    (folder / f"{UID}.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"TransformMatrix = {axes}\nOffset = -30 -20 0\n"
        f"ElementSpacing = {spacing}\nDimSize = 64 64 40\n"
        f"ElementType = MET_SHORT\nElementDataFile = {UID}.raw\n"
    )
    return folder


def test_the_table_is_as_published_and_luna_reads_it(tmp_path: Path) -> None:
    rows = [annotation(5.5, 12.4, 12.6), annotation(20.5, 42, 12)]
    match = match_luna(read(*THREE), luna_dir(tmp_path, rows))
    write_rated_csv(tmp_path / "annotations_with_malignancy.csv", match)
    header, first, second = (tmp_path / "annotations_with_malignancy.csv").read_text().splitlines()
    assert header == (
        "seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details,"
        "bboxLowX,bboxLowY,bboxLowZ,bboxHighX,bboxHighY,bboxHighZ,len_mal_details"
    )
    assert header.split(",") == RATED_COLUMNS
    assert first.endswith(',True,"[5, 4, 1]",-20.0,-10.0,5.0,-15.0,-5.0,6.0,3')
    assert second.endswith(',False,"[2, 2, 2]",-20.0,20.0,20.0,-15.0,25.0,21.0,3')
    back = read_luna(tmp_path).nodules
    assert [(n.center_xyz, n.diameter_mm, n.malignant, n.ratings) for n in back] == [
        (rows[0].center_xyz, 6, True, (5, 4, 1)),
        (rows[1].center_xyz, 6, False, (2, 2, 2)),
    ]


@pytest.mark.parametrize("damage", [{"spacing": "0 1 1"}, {"axes": "1 0 0 0 0 1 0 -1 0"}], ids=["spacing", "coronal"])
def test_a_header_that_cannot_be_used_leaves_z(tmp_path: Path, damage: dict[str, str]) -> None:
    match = match_luna(read(*THREE), luna_dir(tmp_path, [annotation(20.5, 42, 12)], **damage))
    assert match.by_z == 1
    assert len(match.notes) == 1
    write_rated_csv(tmp_path / "annotations_with_malignancy.csv", match)
    assert (tmp_path / "annotations_with_malignancy.csv").read_text().endswith(',"[2, 2, 2]",,,20.0,,,21.0,3\n')


def test_annotations_csv_must_be_sound(tmp_path: Path) -> None:
    with pytest.raises(TableError):
        read_annotations(tmp_path / "annotations.csv")
    luna_dir(tmp_path, [annotation(5, 12, 12, diameter_mm=0)])
    with pytest.raises(TableError, match="line 2: diameter_mm is not positive"):
        read_annotations(tmp_path / "annotations.csv")
