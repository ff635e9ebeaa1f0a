import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lungml.ct import read_scan
from lungml.geometry import irc_to_xyz
from lungml.lidc import LidcFiles, read_lidc
from lungml.lidc_grid import region_diameter_mm
from lungml.lidc_nodules import LidcNodule, all_nodules
from lungml.lidc_report import RATED_CSV, convert_lidc
from lungml.lidc_truth import consensus_boxes, scan_truth
from lungml.lidc_xml import LidcError
from lungml.luna import LunaData, by_series, read_luna
from lungml.tables import TableError
from lungml.textures import TEXTURES_CSV, match_textures, read_textures
from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
REAL_TEXTURES = {"": 878, "solid": 254, "part-solid": 9, "ground-glass": 36}


def at(row: int, malignancy: int) -> str:
    return nodule("".join(roi(z_mm, square(row, 10, 6)) for z_mm in (5, 7)), malignancy)


def luna_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,0,0,6,5\n1.2.3,0,0,90,5\n1.2.4,0,0,6,5\n1.2.4,0,0,7,5\n"
    )
    return folder


def test_both_tables_and_a_report_of_a_few_lines(tmp_path: Path) -> None:
    xml = tmp_path / "xml"
    xml.mkdir()
    (xml / "1.xml").write_bytes(lidc_xml(at(10, 5), at(10, 4)))
    (xml / "2.xml").write_bytes(b"<")
    (xml / "3.xml").write_bytes(lidc_xml(root="IdriReadMessage"))
    report = convert_lidc(xml, tmp_path / "out" / "nodules.csv", luna_folder(tmp_path / "luna"))
    assert (tmp_path / "out" / "nodules.csv").read_text().splitlines()[1:] == ['1.2.3,5.0,7.0,6.0,12.5,12.5,2,"[5, 4]"']
    assert (tmp_path / "out" / RATED_CSV).read_text().splitlines()[1:] == [
        '1.2.3,0.0,0.0,6.0,5.0,True,"[5, 4]",,,5.0,,,7.0,2'
    ]
    assert not (tmp_path / "luna" / RATED_CSV).exists()
    assert (tmp_path / "out" / TEXTURES_CSV).read_text().splitlines()[1:] == ["1.2.3,0.0,0.0,6.0,5.0,ground-glass"]
    first, *rest = report.lines
    assert first == "3 files: 1 scans, 1 skipped, 1 damaged"
    assert rest[0].startswith("2 readings of 1 nodules of 3 mm or more")
    assert rest[1] == "skipped 1: a reading of a chest X-ray (IdriReadMessage)"
    assert rest[2].startswith(f"damaged: {xml}/2.xml: not well-formed XML")
    assert rest[3].startswith("1 of 4 annotated nodules have their readings (1 malignant; 1 found by z alone, 0 with")
    assert rest[4].startswith("their textures: 0 solid, 0 part-solid, 1 ground-glass -> ")
    assert rest[5] == "1 annotated series: no LIDC file reads its series"
    assert rest[6].startswith("unmatched: 1.2.3 at (0.0, 0.0, 90.0) mm, 5.0 mm wide: no outlined nodule")
    assert len(rest) == 7


def textured(*ratings: int | None) -> bytes:
    """One nodule, and what each of its readers says of its texture."""
    rois = "".join(roi(z_mm, square(10, 10, 6)) for z_mm in (5, 7))
    rated = [nodule(rois, 3, texture=rating or 9).replace("<texture>9</texture>", "") for rating in ratings]
    return lidc_xml(*rated)


@pytest.mark.parametrize(
    ("ratings", "texture"),
    [((5, 5, 1), "solid"), ((1, 5), "part-solid"), ((2, 3), "part-solid"), ((None, 2), "ground-glass")],
)
def test_the_median_of_all_readings_is_the_texture(
    tmp_path: Path, ratings: tuple[int | None, ...], texture: str
) -> None:
    (tmp_path / "1.xml").write_bytes(textured(*ratings))
    convert_lidc(tmp_path, tmp_path / "nodules.csv", luna_folder(tmp_path / "luna"))
    (row,) = read_textures(tmp_path / TEXTURES_CSV)
    assert (row.series_uid, row.center_xyz, row.diameter_mm, row.texture) == ("1.2.3", (0, 0, 6), 5, texture)


def test_a_nodule_whose_texture_nobody_rates_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_bytes(textured(None, None))
    report = convert_lidc(tmp_path, tmp_path / "nodules.csv", luna_folder(tmp_path / "luna"))
    assert report.match
    assert len(report.match.rated) == 1
    assert read_textures(tmp_path / TEXTURES_CSV) == ()


def test_a_table_that_is_kept_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_bytes(textured(5))
    folder = luna_folder(tmp_path / "luna")
    report = convert_lidc(tmp_path, tmp_path / "nodules.csv", folder, keep=[tmp_path / RATED_CSV])
    assert not (tmp_path / RATED_CSV).exists()
    assert (report.rated_csv, report.textures_csv) == (None, tmp_path / TEXTURES_CSV)
    assert not any(RATED_CSV in line for line in report.lines)
    (tmp_path / TEXTURES_CSV).write_text("mine")
    convert_lidc(tmp_path, tmp_path / "nodules.csv", folder, keep=[tmp_path / TEXTURES_CSV])
    assert (tmp_path / RATED_CSV).exists()
    assert (tmp_path / TEXTURES_CSV).read_text() == "mine"


def test_without_luna_there_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_bytes(lidc_xml(at(10, 5)))
    report = convert_lidc(tmp_path, tmp_path / "nodules.csv")
    assert (report.nodules, report.match, report.rated_csv) == (1, None, None)
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["nodules.csv"]


def test_nothing_is_written_when_something_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LidcError):
        convert_lidc(tmp_path, tmp_path / "nodules.csv")
    (tmp_path / "1.xml").write_bytes(lidc_xml(at(10, 5)))
    (tmp_path / "luna").mkdir()
    with pytest.raises(TableError):
        convert_lidc(tmp_path, tmp_path / "nodules.csv", tmp_path / "luna")
    assert not (tmp_path / "nodules.csv").exists()


@dataclass(frozen=True)
class Real:
    folder: Path
    files: LidcFiles
    nodules: Mapping[str, tuple[LidcNodule, ...]]
    luna: LunaData


@pytest.fixture(scope="module")
def real() -> Real:
    if not REAL_DATA:
        pytest.skip("LUNGML_REAL_DATA is not set")
    folder = Path(REAL_DATA)
    files = read_lidc(folder / "lidc" / "lidc-xml-sample.zip")
    nodules = all_nodules(files.scans)
    return Real(folder, files, nodules, read_luna(folder / "luna16"))


@pytest.mark.real
def test_real_files(real: Real) -> None:
    assert (real.files.files, len(real.files.scans), real.files.damaged) == (317, 261, ())
    assert list(real.files.skipped_reasons.values()) == [55, 1]


@pytest.mark.real
def test_real_nodules_of_three_readers_are_luna16s(real: Real) -> None:
    ours = [n for uid in real.nodules.keys() & set(real.luna.series_uids) for n in real.nodules[uid] if n.readers >= 3]
    annotated = [a for a in real.luna.annotated if a.series_uid in real.nodules]
    assert len(ours) == len(annotated) == 299


@pytest.mark.real
def test_real_table_is_the_published_one(real: Real, tmp_path: Path) -> None:
    report = convert_lidc(
        real.folder / "lidc" / "lidc-xml-sample.zip", tmp_path / "nodules.csv", real.folder / "luna16"
    )
    assert report.rated_csv
    assert report.match
    assert len(report.match.rated) == 299
    assert report.match.by_z == 296
    assert {why for _, why in report.match.unmatched} == {"no LIDC file reads its series"}
    keys = ["seriesuid", "coordX", "coordY", "coordZ"]
    ours, published = (
        pd.read_csv(path).round(dict.fromkeys(keys[1:], 3)).set_index(keys)
        for path in (report.rated_csv, real.folder / "luna16" / RATED_CSV)
    )
    assert list(ours.columns) == list(published.columns)
    published = published.loc[ours.index]
    same_label, same_ratings = (ours[name] == published[name] for name in ("mal_bool", "mal_details"))
    same = same_label & same_ratings
    print(ours[~same], published[~same])
    assert same.mean() >= 0.99
    assert same_label.mean() >= 0.997
    boxes = [column for column in ours if column.startswith("bbox")]
    with_header = ours["bboxLowX"].notna()
    assert with_header.sum() == 3
    np.testing.assert_allclose(ours.loc[with_header, boxes], published.loc[with_header, boxes], atol=1e-5)
    # The published table writes other digits of the same places: each texture finds its nodule there.
    textures = read_textures(tmp_path / TEXTURES_CSV)
    of_series, found = by_series(textures), Counter[str]()
    for series_uid, own in by_series(real.luna.nodules).items():
        found.update(match_textures(own, of_series.get(series_uid, ())))
    print(found)
    assert len(textures) == 299 == found.total() - found[""]
    assert found == REAL_TEXTURES


@pytest.mark.real
def test_real_truth_and_consensus(real: Real) -> None:
    for series_uid, path in real.luna.scans.items():
        scan = read_scan(path)
        readings = real.nodules[series_uid]
        annotated = [n for n in real.luna.nodules if n.series_uid == series_uid]
        truth, excluded = scan_truth(real.files.scans[series_uid], readings, scan.grid)
        published = np.array([e.center_xyz for e in real.luna.excluded if e.series_uid == series_uid])
        for point in (e for e in excluded if e.diameter_mm == 10):
            assert np.linalg.norm(published - point.center_xyz, axis=1).min() < 0.01
        assert len(truth) == len(annotated)
        for nodule_ in annotated:
            ours = min(truth, key=lambda t: float(np.linalg.norm(np.subtract(t.center_xyz, nodule_.center_xyz))))
            assert np.linalg.norm(np.subtract(ours.center_xyz, nodule_.center_xyz)) < 0.3
            assert ours.diameter_mm == pytest.approx(nodule_.diameter_mm, rel=0.02)
            assert ours.ratings == nodule_.ratings
        boxes = consensus_boxes(annotated, readings, scan.grid)
        assert list(boxes) == list(range(len(annotated)))
        for position, (box, inside) in boxes.items():
            center_xyz = irc_to_xyz(np.argwhere(inside).mean(axis=0) + [s.start for s in box], scan.grid)
            assert np.linalg.norm(center_xyz - annotated[position].center_xyz) < 0.5
            volume = inside.sum() * np.prod(scan.grid.spacing_xyz)
            assert np.cbrt(6 * volume / np.pi) == pytest.approx(annotated[position].diameter_mm, rel=0.05)
            around = tuple(slice(s.start - 3, s.stop + 3) for s in box)
            assert np.median(scan.hu[box][inside]) > np.median(scan.hu[around]) + 200


@pytest.mark.real
def test_real_diameters_are_luna16s_running_means(real: Real) -> None:
    """Voxels are counted as LUNA16 did: its diameters are these, averaged from the last reading back to the first."""
    for series_uid, path in real.luna.scans.items():
        grid = read_scan(path).grid
        for found in real.nodules[series_uid]:
            if found.readers >= 3:
                *others, mean_mm = [region_diameter_mm(region, grid) for region in found.regions]
                for size_mm in reversed(others):
                    mean_mm = (mean_mm + size_mm) / 2
                sizes = [a.diameter_mm for a in real.luna.annotated if a.series_uid == series_uid]
                assert min(abs(size_mm - mean_mm) for size_mm in sizes) < 1e-3
