"""LIDC's readings: a malignancy table where there is none, contours for masks, and scans outside LUNA16."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from lungml import frozen_split, groups, luna, store
from lungml.home import Home
from lungml.lidc_xml import LidcError
from lungml.patients import patient_mark
from lungml.quarantine import read_quarantine
from lungml.recipes.data import PreparedScan
from lungml.sampling import NegativePlan
from tasks.data import StoredScan, build_mask, cache_crops, convert_scan
from tasks.truth import rate_nodules, read_truths
from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square
from tests.lungml.test_dicom import series
from tests.tasks.outcomes import done, kept

UID, OTHER = "1.2.3", "1.2.4"
Z_MM = (10.0, 11.0, 12.0)
CENTER_XYZ = (24.0, 20.0, 11.0)  # of the pixels inside the readers' squares, at 1 mm a voxel


def readings(*ratings: int, uid: str = UID, side: int = 9) -> bytes:
    """A reader for each rating, all with the same square on three slices."""
    rois = "".join(roi(z, square(20 - side // 2, 24 - side // 2, side)) for z in Z_MM)
    return lidc_xml(*[nodule(rois, rating) for rating in ratings], series_uid=uid)


@pytest.fixture
def luna_dir(tmp_path: Path) -> Path:
    """Two scans of 24 x 40 x 48 voxels of 1 mm, a nodule in the first, and no malignancy table."""
    folder = tmp_path / "luna16"
    folder.mkdir()
    for number, uid in enumerate((UID, OTHER)):
        hu = np.random.default_rng(number).normal(-850, 20, (24, 40, 48))
        hu[:, :4] = 40
        hu[9:14, 16:25, 20:29] = 60
        sitk.WriteImage(sitk.GetImageFromArray(hu.astype(np.int16)), str(folder / f"{uid}.mhd"))
    x, y, z = CENTER_XYZ
    (folder / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{UID},{x},{y},{z},8\n")
    (folder / "seriesuids.csv").write_text(f"{UID}\n{OTHER}\n1.2.5\n")
    return folder


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    folder = tmp_path / "xml"
    folder.mkdir()
    (folder / "1.xml").write_bytes(readings(4, 5, 2))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "artifacts")


def test_the_malignancy_table_is_made_where_there_is_none(luna_dir: Path, xml: Path) -> None:
    rated = luna_dir / "annotations_with_malignancy.csv"
    assert kept(rate_nodules.fn(luna_dir, None, None)) == rated  # no XML: whoever needs the table says so
    assert not rated.exists()
    assert done(rate_nodules.fn(luna_dir, None, xml)) == rated
    (found,) = luna.read_luna(luna_dir).nodules
    assert (found.series_uid, found.ratings, found.malignant) == (UID, (4, 5, 2), True)
    assert found.center_xyz == CENTER_XYZ
    assert kept(rate_nodules.fn(luna_dir, None, xml)) == rated
    (xml / "1.xml").write_bytes(readings(1, 1, 1))
    done(rate_nodules.fn(luna_dir, None, xml))
    assert luna.read_luna(luna_dir).nodules[0].ratings == (1, 1, 1)
    # A table that is not ours, or was edited, is nobody's to replace.
    rated.write_text(rated.read_text().replace("[1, 1, 1]", "[2, 1, 1]"))
    (xml / "1.xml").write_bytes(readings(5, 5, 5))
    done(rate_nodules.fn(luna_dir, None, xml))  # of the textures, which are ours
    assert luna.read_luna(luna_dir).nodules[0].ratings == (2, 1, 1)
    assert kept(rate_nodules.fn(luna_dir, None, xml)) == rated
    with pytest.raises(LidcError, match="no such folder or file"):
        rate_nodules.fn(luna_dir, None, luna_dir / "none")


PUBLISHED = "seriesuid,coordX,coordY,coordZ,diameter_mm,mal_bool,mal_details\n"


def test_textures_are_made_beside_a_published_malignancy_table(luna_dir: Path, xml: Path, home: Home) -> None:
    x, y, z = CENTER_XYZ
    rated, textures = luna_dir / "annotations_with_malignancy.csv", luna_dir / "textures.csv"
    rated.write_text(f'{PUBLISHED}{UID},{x + 5e-9},{y},{z},8,True,"[4, 5, 2]"\n')
    before = rated.read_text()
    done(rate_nodules.fn(luna_dir, None, xml))
    assert rated.read_text() == before
    assert kept(rate_nodules.fn(luna_dir, None, xml)) == rated
    _, truths = read_truths(luna_dir, None, 3, home, for_training=False)
    assert [(t.series_uid, t.textures) for t in truths] == [(UID, ("ground-glass",)), (OTHER, ())]
    # What somebody else wrote stays, whatever the readers say.
    textures.write_text(textures.read_text().replace("ground-glass", "solid"))
    (xml / "1.xml").write_bytes(readings(1, 1, 1))
    assert kept(rate_nodules.fn(luna_dir, None, xml)) == rated
    assert luna.read_luna(luna_dir).textures[0].texture == "solid"
    textures.unlink()
    done(rate_nodules.fn(luna_dir, None, xml))
    assert luna.read_luna(luna_dir).textures[0].texture == "ground-glass"


def test_a_published_table_alone_needs_nothing_else(luna_dir: Path, xml: Path) -> None:
    rated = luna_dir / "annotations_with_malignancy.csv"
    rated.write_text(PUBLISHED)
    (luna_dir / "annotations.csv").unlink()  # there is then nothing to find textures for
    assert kept(rate_nodules.fn(luna_dir, None, xml)) == rated
    assert not (luna_dir / "textures.csv").exists()


def test_what_was_downloaded_with_luna16_is_used(luna_dir: Path, xml: Path) -> None:
    (luna_dir / "lidc_xml.zip").write_bytes(b"no zip")
    with pytest.raises(LidcError, match=r"lidc_xml\.zip"):
        rate_nodules.fn(luna_dir, None, None)
    assert not (luna_dir / "annotations_with_malignancy.csv").exists()
    with zipfile.ZipFile(luna_dir / "lidc_xml.zip", "w") as archive:
        archive.write(xml / "1.xml", "tcia-lidc-xml/157/1.xml")
    done(rate_nodules.fn(luna_dir, None, None))
    assert luna.read_luna(luna_dir).nodules[0].ratings == (4, 5, 2)


def stored(luna_dir: Path, home: Home, xml: Path | None) -> StoredScan:
    _, truths = read_truths(luna_dir, None, 3, home, for_training=False, lidc=xml)
    scan = convert_scan.fn(next(truth for truth in truths if truth.series_uid == UID), home)
    return scan if isinstance(scan, StoredScan) else kept(scan)


def test_the_readers_contours_are_the_mask_and_follow_the_xml(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    done(build_mask.fn(stored(luna_dir, home, xml), "consensus"))
    mask = store.read_mask(home.scans / f"{UID}.zarr", "mask_consensus")
    # Inside the line of 9 x 9 pixels lie 7 x 7, on three slices.
    assert mask.sum() == mask[10:13, 17:24, 21:28].sum() == 3 * 49
    kept(build_mask.fn(stored(luna_dir, home, xml), "consensus"))
    (xml / "1.xml").write_bytes(readings(4, 5, 2, side=7))
    done(build_mask.fn(stored(luna_dir, home, xml), "consensus"))
    assert store.read_mask(home.scans / f"{UID}.zarr", "mask_consensus").sum() == 3 * 25
    # Other rules do not depend on it.
    done(build_mask.fn(stored(luna_dir, home, xml), "bounded"))
    kept(build_mask.fn(stored(luna_dir, home, None), "bounded"))
    assert groups.find_damage(home.scans / f"{UID}.zarr" / "mask") == ""


def test_a_nodule_whose_malignancy_readers_dispute_keeps_its_contours(luna_dir: Path, xml: Path, home: Home) -> None:
    """Its place and size are the same, so that the mask's key is; the mask must be too."""
    rate_nodules.fn(luna_dir, None, xml)
    scan = stored(luna_dir, home, xml)
    (only,) = scan.truth.nodules
    unjudged = luna.Annotation(series_uid=UID, center_xyz=only.center_xyz, diameter_mm=only.diameter_mm)
    disputed = replace(scan, truth=replace(scan.truth, nodules=(), unjudged=(unjudged,)))
    done(build_mask.fn(disputed, "consensus"))
    assert store.read_mask(home.scans / f"{UID}.zarr", "mask_consensus").sum() == 3 * 49
    kept(build_mask.fn(scan, "consensus"))


def test_an_outline_that_does_not_fit_costs_only_itself(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    scan = stored(luna_dir, home, xml)
    far = "".join(roi(z, square(500, 500, 9)) for z in Z_MM)
    near = readings(4).decode().partition("<readingSession>")[2].partition("</readingSession>")[0]
    (xml / "1.xml").write_bytes(lidc_xml(near, nodule(near and far, 3), series_uid=UID))
    done(build_mask.fn(stored(luna_dir, home, xml), "consensus"))
    assert store.read_mask(home.scans / f"{UID}.zarr", "mask_consensus")[11, 20, 24] == 1
    assert scan.truth.series_uid == UID


def test_a_validation_scans_mask_is_part_of_what_a_model_depends_on(luna_dir: Path, xml: Path, home: Home) -> None:
    def digest() -> str:
        scan = stored(luna_dir, home, xml)
        build_mask.fn(scan, "consensus")
        plan = NegativePlan(kind="fixed", per_scan=2)
        settings = {
            "recipe_name": "toy",
            "rule": "consensus",
            "negatives": plan,
            "negative_slabs_per_scan": 0,
            "seed": 0,
        }
        prepared = cache_crops.fn(scan, home, **settings)
        prepared = prepared if isinstance(prepared, PreparedScan) else kept(prepared)
        assert prepared.split == "val"
        return prepared.digest

    rate_nodules.fn(luna_dir, None, xml)
    first = digest()
    (xml / "1.xml").write_bytes(readings(4, 5, 2, side=7))
    assert digest() != first


def test_a_damaged_series_among_the_others_stops_nothing(luna_dir: Path, xml: Path, home: Home, tmp_path: Path) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    more = tmp_path / "LIDC-IDRI"
    for uid, patient in (("7.1", "A"), ("7.2", "")):
        series(more / uid, SeriesInstanceUID=uid, PatientID=patient)
        (xml / f"{uid}.xml").write_bytes(lidc_xml(nodule(roi(-337.75, square(0, 1, 5)), 5), series_uid=uid))
    damaged = sorted((more / "7.1").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:300])
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False, lidc=xml, more=more)
    # 7.2 stays out: whose patient is not known may validate. 7.1 is set aside by its conversion.
    (joined,) = [truth for truth in truths if truth.series_uid not in (UID, OTHER)]
    assert (joined.series_uid, joined.nodules) == ("7.1", ())
    assert convert_scan.fn(joined, home) is None
    assert [row["series_uid"] for row in read_quarantine(home.quarantine_csv)] == ["7.1"]
    assert any("cannot be seen" in note for note in notes)


def test_series_outside_luna16_train_and_a_patient_never_does_both(
    luna_dir: Path, xml: Path, home: Home, tmp_path: Path
) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    more = tmp_path / "LIDC-IDRI"
    for uid, patient in (("7.1", "A"), ("7.2", "B"), ("7.3", "C"), (UID, "B"), (OTHER, "D")):
        series(more / patient / uid, SeriesInstanceUID=uid, PatientID=patient)
    # All but 7.3 have been read; the slices of a series are 2.5 mm apart, from z = -340.25 mm on.
    for uid in ("7.1", "7.2"):
        rois = "".join(roi(z, square(0, 1, 5)) for z in (-337.75, -335.25))
        content = lidc_xml(nodule(rois, 5), nodule(rois, 4), nodule(rois, 1), series_uid=uid)
        (xml / f"{uid}.xml").write_bytes(content)
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False, lidc=xml, more=more)
    split, marks = frozen_split.frozen_patients(home.split_csv)
    assert split == {UID: "val", OTHER: "test", "1.2.5": "train"}  # 7.1 is not of the list and moves nothing
    assert marks == {UID: patient_mark("B"), OTHER: patient_mark("D")}
    (joined,) = [truth for truth in truths if truth.series_uid not in split]
    assert (joined.series_uid, joined.split, joined.negatives_xyz) == ("7.1", "train", None)
    assert {truth.series_uid: truth.patient for truth in truths} == {**marks, "7.1": patient_mark("A")}
    assert joined.path == more / "A" / "7.1"
    (found,) = joined.nodules
    assert (found.ratings, found.malignant) == ((5, 4, 1), True)
    said = "\n".join(notes)
    assert "1 LIDC series outside LUNA16 join the training scans" in said
    assert "1 LIDC series outside LUNA16 have no XML file" in said
    assert "1 are left out: another series of their patients validates or tests, or may" in said
    scan = done(convert_scan.fn(joined, home))
    assert store.read_volume(scan.store).shape == (5, 6, 8)


def test_more_scans_need_the_xml(luna_dir: Path, home: Home, tmp_path: Path, xml: Path) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    with pytest.raises(LidcError, match="without LIDC's XML nothing is known of these series; give it with --lidc"):
        read_truths(luna_dir, None, 3, home, for_training=False, more=tmp_path)


def patients(luna_dir: Path, *rows: tuple[str, str]) -> None:
    text = "".join(f"{uid},{patient}\n" for uid, patient in rows)
    (luna_dir / "patients.csv").write_text(f"series_uid,patient\n{text}")


def test_series_of_one_patient_are_first_frozen_on_one_side(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    patients(luna_dir, (UID, "JANE"), (OTHER, "JANE"), ("1.2.5", "JOHN"))
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False)
    mark = patient_mark("JANE")
    assert [(t.series_uid, t.split, t.patient) for t in truths] == [(UID, "val", mark), (OTHER, "val", mark)]
    said = "\n".join(notes)
    assert "1 series stand in the split of their patient's first series" in said
    for text in (said, home.split_csv.read_text()):
        assert "JANE" not in text
        assert "JOHN" not in text
    assert read_truths(luna_dir, None, 3, home, for_training=False)[0] == notes


def test_of_a_patient_on_two_sides_the_less_held_out_scan_is_left_out(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    read_truths(luna_dir, None, 3, home, for_training=False)
    assert home.split_csv.read_text() == f"series_uid,split\n{UID},val\n{OTHER},test\n1.2.5,train\n"
    patients(luna_dir, (UID, "JANE"), (OTHER, "JANE"), ("1.2.5", "JOHN"))
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False)
    assert [(t.series_uid, t.split) for t in truths] == [(OTHER, "test")]  # a test set stays what it was
    (note,) = [note for note in notes if "left out" in note]
    assert note == (
        "1 series are left out: another series of their patients tests or validates, and the split was frozen before "
        f"that was known; such as {UID} (val, the other in test)"
    )
    # Once the marks are frozen, it stays so without the table.
    (luna_dir / "patients.csv").unlink()
    assert [t.series_uid for t in read_truths(luna_dir, None, 3, home, for_training=False)[1]] == [OTHER]


SIDES: dict[str, frozen_split.Split] = {UID: "test", OTHER: "train"}


def test_given_sides_leave_the_homes_split_alone(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    patients(luna_dir, (UID, "JANE"), (OTHER, "JIM"), ("1.2.5", "JOHN"))
    _, truths = read_truths(luna_dir, None, 3, home, for_training=False, sides=SIDES)
    assert {t.series_uid: t.split for t in truths} == SIDES
    assert not home.split_csv.exists()
    read_truths(luna_dir, None, 3, home, for_training=False)
    before = home.split_csv.read_bytes()
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False, sides=SIDES)
    assert {t.series_uid: t.split for t in truths} == SIDES
    assert home.split_csv.read_bytes() == before
    assert not any("split" in note for note in notes)
    with pytest.raises(frozen_split.SplitError, match=rf"1 scans were given no side, such as {OTHER}; run again"):
        read_truths(luna_dir, None, 3, home, for_training=False, sides={UID: "test"})


def test_with_given_sides_a_patient_stands_on_one_too(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    patients(luna_dir, (UID, "JANE"), (OTHER, "JANE"), ("1.2.5", "JOHN"))
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False, sides=SIDES)
    assert [(t.series_uid, t.split) for t in truths] == [(UID, "test")]
    (note,) = [note for note in notes if "left out" in note]
    assert note == (
        "1 series are left out: another series of their patients tests or validates; "
        f"such as {OTHER} (train, the other in test)"
    )


def test_series_that_join_from_dicom_are_no_luna16_series_that_is_not_on_disk(
    luna_dir: Path, xml: Path, home: Home, tmp_path: Path
) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    rois = "".join(roi(z, square(0, 1, 5)) for z in (-337.75, -335.25))
    for uid, patient in (("7.1", "A"), ("1.2.5", "B"), (UID, "C"), (OTHER, "D")):
        series(tmp_path / "more" / uid, SeriesInstanceUID=uid, PatientID=patient)
    for uid in ("7.1", "1.2.5"):
        (xml / f"{uid}.xml").write_bytes(lidc_xml(nodule(rois, 5), series_uid=uid))
    _, truths = read_truths(luna_dir, None, 3, home, for_training=False, lidc=xml, more=tmp_path / "more", sides=SIDES)
    assert {t.series_uid: t.split for t in truths} == {**SIDES, "7.1": "train"}


def test_a_training_scan_stays_out_though_the_other_scan_is_not_on_disk(luna_dir: Path, xml: Path, home: Home) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    (luna_dir / "seriesuids.csv").write_text(f"1.0\n1.1\n{UID}\n{OTHER}\n")
    read_truths(luna_dir, None, 4, home, for_training=False)
    patients(luna_dir, ("1.1", "JANE"), (OTHER, "JANE"))
    truths = read_truths(luna_dir, None, 4, home, for_training=False)[1]
    assert [(t.series_uid, t.split) for t in truths] == [(UID, "train")]


def test_a_table_of_patients_guards_what_joins_from_dicom(
    luna_dir: Path, xml: Path, home: Home, tmp_path: Path
) -> None:
    rate_nodules.fn(luna_dir, None, xml)
    more = tmp_path / "LIDC-IDRI"
    rois = "".join(roi(z, square(0, 1, 5)) for z in (-337.75, -335.25))
    for uid, patient in (("7.1", "A"), ("7.2", "B"), ("7.3", "")):
        series(more / uid, SeriesInstanceUID=uid, PatientID=patient)
        (xml / f"{uid}.xml").write_bytes(lidc_xml(nodule(rois, 5), series_uid=uid))
    # The validation and test scans lie nowhere as DICOM; 7.3's header names nobody, the table does.
    patients(luna_dir, (UID, "B"), (OTHER, "E"), ("1.2.5", "F"), ("7.3", "C"))
    notes, truths = read_truths(luna_dir, None, 3, home, for_training=False, lidc=xml, more=more)
    joined = {t.series_uid: t.patient for t in truths if t.series_uid.startswith("7")}
    assert joined == {"7.1": patient_mark("A"), "7.3": patient_mark("C")}
    assert not any("cannot be seen" in note for note in notes)
