"""Do the segmentation and the report say what the reading says, where it says it, and of the right patient?

The series has 5 slices of 6 x 8 pixels; that of the last tests is real.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from lungml.candidates import GroupingSettings
from lungml.dicom import PATIENT_FIELDS, SLICE_FIELDS, read_headers, read_series
from lungml.findings import Finding
from lungml.geometry import Grid, irc_to_xyz
from lungml.luna import read_luna
from lungml.marked import Marked
from lungml.masks import bounded_nodule
from lungml.reading import dicom_seg
from lungml.reading.colors import MARK_COLORS, rgb
from lungml.reading.dicom_objects import DicomObjectError
from lungml.reading.dicom_seg import make_segmentation, write_segmentation
from lungml.reading.dicom_sr import make_report, write_report
from lungml.reading.markups import markups_json
from lungml.reading.nodule_masks import nodule_masks
from lungml.reading.record import Opinion, Reading
from tests.dciodvfy import complaints
from tests.lungml.test_dicom import SHAPE, SPACING, save, series, slice_of, zipped

REAL_DATA = os.environ.get("LUNGML_REAL_DATA")
FRAME, STUDY = "1.2.4", "1.2.3"
# The scanner's axes, turned and mirrored: a series that is read from the feet, from behind, or oblique.
TURNS = {
    "straight": np.eye(3),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "prone": np.diag([-1.0, -1.0, 1.0]),
    "oblique": Rotation.from_euler("xyz", [20, -30, 50], degrees=True).as_matrix(),
}


def finding(center_irc: Sequence[float], grid: Grid, diameter_mm: float, **change: Any) -> Finding:
    index, row, col = center_irc
    x, y, z = irc_to_xyz(center_irc, grid).tolist()
    fields = {
        "center_irc": (index, row, col),
        "center_xyz": (x, y, z),
        "diameter_mm": diameter_mm,
        "prob_nodule": 0.93,
        "prob_malignant": 0.71,
        "stage": "malignant",
        "reason": "malignancy probability at least 0.5",
    }
    return Finding(**(fields | change))


def opinion_of(marked: np.ndarray, findings: Sequence[Finding], **change: Any) -> Opinion:
    fields = {
        "bundle": "models:/luna/3",
        "asked_as": "models:/luna@champion",
        "recipe": "r",
        "origin": "phantom",
        "nodule_threshold": 0.5,
        "malignant_threshold": 0.5,
        "grouping": GroupingSettings(),
        "findings": tuple(findings),
        "marked": Marked.of_mask(marked),
    }
    return Opinion(**(fields | change))


def reading_of(path: Path, **change: Any) -> Reading:
    """Two kept findings with voxels, one kept without, one filtered."""
    series_uid, hu, grid = read_series(path)
    marked = np.zeros(SHAPE, dtype=np.bool_)
    marked[1:3, 1:3, 1:4] = True
    marked[2:5, 4, 6:8] = True
    marked[2, 4, 5] = True
    findings = (
        finding((1.5, 1.5, 2), grid, 5.0),
        finding((3, 4, 6.4), grid, 4.6, stage="benign", prob_nodule=0.8, prob_malignant=0.04),
        finding((0, 5, 0), grid, 1.0, stage="benign", prob_nodule=0.6, prob_malignant=0.3),
        finding((2, 2, 2), grid, 3.0, stage="filtered", prob_nodule=0.1, prob_malignant=float("nan")),
    )
    fields = {
        "series_uid": series_uid,
        "hu": hu,
        "grid": grid,
        "opinions": (opinion_of(marked, findings),),
        "made": datetime(2026, 1, 31, 23, 59, 8, tzinfo=UTC),
    }
    return Reading(**(fields | change))


def slices(folder: Path, turn: np.ndarray | None = None, **change: Any) -> Path:
    """A series with a frame of reference and, as of a scanner, more of a patient than we may take over."""
    fields = {
        "FrameOfReferenceUID": FRAME,
        "InstitutionName": "SECRET-HOSPITAL",
        "PatientComments": "SECRET-COMMENT",
        "Manufacturer": "Maker",
        "ContrastBolusAgent": "AGENT",
    }
    return series(folder, **({} if turn is None else {"turn": turn}), **(fields | change))


def without_findings(reading: Reading) -> Reading:
    opinion = reading.opinions[0]
    filtered = tuple(replace(f, stage="filtered") for f in opinion.findings)
    return replace(reading, opinions=(replace(opinion, findings=filtered),))


def xyz_of_segments(path: Path) -> dict[int, np.ndarray]:
    """Segment number -> (n, 3) mm of its voxels, by the file's own words alone, sorted."""
    held = pydicom.dcmread(path)
    pixels = held.pixel_array.reshape(-1, held.Rows, held.Columns)
    shared = held.SharedFunctionalGroupsSequence[0]
    between_rows, between_cols = shared.PixelMeasuresSequence[0].PixelSpacing
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    found: dict[int, list[np.ndarray]] = {}
    for frame, about in zip(pixels, held.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(about.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        row, col = np.nonzero(frame)
        assert len(row)  # a frame without voxels is left out
        where = corner + np.outer(col * between_cols, cosines[:3]) + np.outer(row * between_rows, cosines[3:])
        of_segment = about if "SegmentIdentificationSequence" in about else shared  # there when there is but one
        found.setdefault(of_segment.SegmentIdentificationSequence[0].ReferencedSegmentNumber, []).append(where)
    return {number: in_order(np.concatenate(parts)) for number, parts in found.items()}


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.round(3).T)]


def xyz_of_masks(reading: Reading) -> dict[int, np.ndarray]:
    made = {}
    for number, mask in enumerate(nodule_masks(reading.opinions[0], reading.grid).masks, start=1):
        voxels = np.argwhere(mask.inside) + [axis.start for axis in mask.box]
        made[number] = in_order(irc_to_xyz(voxels, reading.grid))
    return made


def written(folder: Path, reading: Reading, headers: Sequence[Dataset]) -> tuple[Path, Path]:
    segmentation, report = folder / "seg.dcm", folder / "sr.dcm"
    write_report(report, reading, headers, write_segmentation(segmentation, reading, headers))
    return segmentation, report


def groups_of(path: Path) -> dict[str, dict[str, float]]:
    """Tracking identifier -> name of a measurement -> its value, of whichever template."""
    content = hd.sr.srread(path).content
    groups = [
        *content.get_volumetric_roi_measurement_groups(),
        *content.get_image_measurement_groups(),
    ]
    return {g.tracking_identifier: {m.name.meaning: m.value for m in g.get_measurements()} for g in groups}


def words_of(held: Dataset) -> str:
    """Every value of an object, in full."""
    return "\n".join(str(element.value) for element in held.iterall() if element.VR not in ("SQ", "OB", "OW"))


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_headers_come_in_the_order_of_the_slices(turn: np.ndarray, tmp_path: Path) -> None:
    folder = slices(tmp_path / "ct", turn)
    for path in (folder, zipped(folder)):
        _, hu, grid = read_series(path)
        headers = read_headers(path)
        corners = irc_to_xyz([(index, 0, 0) for index in range(len(hu))], grid)
        np.testing.assert_allclose([h.ImagePositionPatient for h in headers], corners, atol=1e-4)


def test_headers_hold_what_is_asked_for_and_no_pixels(tmp_path: Path) -> None:
    for header in read_headers(slices(tmp_path / "ct")):
        assert {element.keyword for element in header} <= {*PATIENT_FIELDS, *SLICE_FIELDS}
        assert header.PatientName == "Secret^Name"
        assert header.ContrastBolusAgent == "AGENT"


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_voxels_of_a_segment_lie_in_the_patient_where_the_mask_says(turn: np.ndarray, tmp_path: Path) -> None:
    path = slices(tmp_path / "ct", turn)
    reading = reading_of(path)
    segmentation, _ = written(tmp_path, reading, read_headers(path))
    said, meant = xyz_of_segments(segmentation), xyz_of_masks(reading)
    assert said.keys() == meant.keys() == {1, 2}
    for number, points in meant.items():
        np.testing.assert_allclose(said[number], points, atol=1e-3)


def test_a_segment_has_the_colour_of_its_kind_on_the_page(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    made = make_segmentation(reading_of(path), read_headers(path))
    assert made is not None
    for segment, kind in zip(made.SegmentSequence, ("malignant", "benign"), strict=True):
        color = hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        assert np.divide(color, 255) == pytest.approx(rgb(MARK_COLORS[kind]), abs=0.02)


def test_a_segment_read_again_is_the_mask(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct", TURNS["feet first"])
    reading, headers = reading_of(path), read_headers(path)
    held = hd.seg.segread(written(tmp_path, reading, headers)[0])
    pixels = held.get_pixels_by_source_instance(
        [h.SOPInstanceUID for h in headers], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    masks = nodule_masks(reading.opinions[0], reading.grid).masks
    assert pixels.shape == (*SHAPE, len(masks))
    for number, mask in enumerate(masks):
        drawn = np.zeros(SHAPE, dtype=np.bool_)
        drawn[mask.box] = mask.inside
        np.testing.assert_array_equal(pixels[..., number], drawn)
    one, two = (held.get_segment_description(number) for number in (1, 2))
    assert (one.segment_label, two.segment_label) == ("finding 1", "finding 2")
    assert one.segmented_property_type.meaning == "Nodule"
    assert one.algorithm_identification.parameters["bundle"] == "models:/luna/3"
    assert float(held.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == SPACING[2]


def test_the_report_holds_the_measurements(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading = reading_of(path)
    segmentation, report = written(tmp_path, reading, read_headers(path))
    first, second = nodule_masks(reading.opinions[0], reading.grid).masks
    assert groups_of(report) == {
        "finding 1": {
            "Diameter": 5.0,
            "Volume": pytest.approx(first.volume_mm3(reading.grid), abs=0.051),
            "Certainty of Finding": pytest.approx(93),
            "Probability of cancer": pytest.approx(71),
        },
        "finding 2": {
            "Diameter": 4.6,
            "Volume": pytest.approx(second.volume_mm3(reading.grid), abs=0.051),
            "Certainty of Finding": pytest.approx(80),
            "Probability of cancer": pytest.approx(4),
        },
        "finding 3": {  # it has no voxel
            "Diameter": 1.0,
            "Certainty of Finding": pytest.approx(60),
            "Probability of cancer": pytest.approx(30),
        },
    }
    held, seg = hd.sr.srread(report), pydicom.dcmread(segmentation)
    regions = [g.referenced_segment for g in held.content.get_volumetric_roi_measurement_groups()]
    assert [region.referenced_sop_instance_uid for region in regions] == [seg.SOPInstanceUID] * 2
    tracked = [g.tracking_uid for g in held.content.get_volumetric_roi_measurement_groups()]
    assert tracked == [segment.TrackingUID for segment in seg.SegmentSequence]
    assert (held.CompletionFlag, held.VerificationFlag, held.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "Without a segment: finding 3." in words_of(pydicom.dcmread(report))
    for file in (segmentation, report):
        assert "Not for clinical use" in words_of(pydicom.dcmread(file))


def test_the_report_is_incomplete_where_a_limit_left_candidates_out(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading = reading_of(path)
    reading = replace(reading, opinions=(replace(reading.opinions[0], left_out=12),))
    report = make_report(reading, read_headers(path), None)
    assert report.CompletionFlag == "PARTIAL"
    assert "12 candidates" in words_of(report)


def test_with_two_opinions_only_the_first_is_written(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading = reading_of(path)
    other = replace(reading.opinions[0], bundle="models:/luna/4", findings=reading.opinions[0].findings[:1])
    both = replace(reading, opinions=(reading.opinions[0], other))
    headers = read_headers(path)
    written(tmp_path / "one", reading, headers)
    written(tmp_path / "two", both, headers)
    for name in ("seg.dcm", "sr.dcm"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("case", ["kept", "none kept", "no candidate", "segmentation not made"])
def test_dciodvfy_finds_no_error(case: str, tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    if case == "none kept":
        reading = without_findings(reading)
    if case == "no candidate":
        reading = replace(reading, opinions=(replace(reading.opinions[0], findings=()),))
    segmentation = None
    if case != "segmentation not made":
        segmentation = write_segmentation(tmp_path / "seg.dcm", reading, headers)
    write_report(tmp_path / "sr.dcm", reading, headers, segmentation)
    assert (tmp_path / "seg.dcm").exists() == (case == "kept")
    for file in sorted(tmp_path.glob("*.dcm")):
        assert complaints(file) == []


def test_a_report_without_findings_says_so_and_no_older_segmentation_stays(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    segmentation, report = written(tmp_path, reading, headers)
    assert segmentation.exists()
    assert write_segmentation(segmentation, without_findings(reading), headers) is None
    assert not segmentation.exists()
    write_report(report, without_findings(reading), headers, None)
    assert "None of 4 candidates was taken for a nodule." in words_of(pydicom.dcmread(report))
    assert groups_of(report) == {}


def test_a_report_without_a_segmentation_refers_to_slices(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    headers = read_headers(path)
    write_report(tmp_path / "sr.dcm", reading_of(path), headers, None)
    groups = hd.sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    assert [g.tracking_identifier for g in groups] == ["finding 1", "finding 2", "finding 3"]
    # The second lies nearest to slice 3.
    assert groups[1].source_images[0].referenced_sop_instance_uid == headers[3].SOPInstanceUID


def test_a_reading_made_again_names_its_objects_alike_and_another_one_does_not(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    later = replace(reading, made=datetime(2027, 5, 6, tzinfo=UTC))
    once, again = make_segmentation(reading, headers), make_segmentation(later, headers)
    assert once is not None
    assert again is not None
    assert once.SOPInstanceUID == again.SOPInstanceUID
    assert once.PixelData == again.PixelData
    assert [made.ContentDate.isoformat() for made in (once, again)] == ["2026-01-31", "2027-05-06"]
    reports = [make_report(r, headers, s).SOPInstanceUID for r, s in ((reading, once), (later, again))]
    assert reports[0] == reports[1]
    other = replace(reading, opinions=(replace(reading.opinions[0], bundle="models:/luna/4"),))
    fewer = replace(reading, opinions=(replace(reading.opinions[0], findings=reading.opinions[0].findings[:2]),))
    named = {str(make_segmentation(r, headers).SOPInstanceUID) for r in (reading, other, fewer)}  # type: ignore[union-attr]
    assert len(named) == 3
    for made in (once, make_report(reading, headers, once)):
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
            assert made[keyword].value.startswith("2.25.")
            assert made[keyword].value.is_valid


def test_they_carry_the_patient_and_study_of_their_source_and_nothing_else_does(tmp_path: Path) -> None:
    given = {
        "PatientBirthDate": "19500203",
        "PatientSex": "F",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "StudyTime": "101112",
        "IssuerOfPatientID": "Issuer",
        "ReferringPhysicianName": "Doctor^Who",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "by hand",
    }
    path = slices(tmp_path / "ct", **given)
    reading = reading_of(path)
    segmentation, report = written(tmp_path, reading, read_headers(path))
    taken = {"PatientID": "SECRET-ID", "PatientName": "Secret^Name", "StudyInstanceUID": STUDY, "StudyDate": "20010203"}
    for file in (segmentation, report):
        held = pydicom.dcmread(file)
        assert {keyword: str(held[keyword].value) for keyword in given | taken} == given | taken
        assert "SECRET-HOSPITAL" not in words_of(held)
        assert "SECRET-COMMENT" not in words_of(held)
        assert "AGENT" not in words_of(held)
        assert complaints(file) == []
    assert pydicom.dcmread(segmentation).FrameOfReferenceUID == FRAME
    assert "secret" not in markups_json(reading).lower()


@pytest.mark.parametrize(
    "change",
    [
        {"PatientName": None, "PatientID": None, "StudyDate": None},
        {"PatientName": "", "PatientID": "", "StudyID": "", "AccessionNumber": ""},
        {"PatientSex": "X", "PatientBirthDate": "1950-02", "StudyDate": "yesterday", "StudyTime": "noon"},
        {"StudyDate": "2001.02.03", "PatientIdentityRemoved": "YES"},
        {"syntax": ImplicitVRLittleEndian},
        {"syntax": ExplicitVRBigEndian},
        {"syntax": DeflatedExplicitVRLittleEndian},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Νίκος^Παπαδόπουλος"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        {"SliceThickness": "", "ReferringPhysicianName": ""},
        {"SliceThickness": "1.25", "PositionReferenceIndicator": "SN"},
        {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "10",
            "LossyImageCompressionMethod": "ISO_15444_1",
        },
    ],
    ids=lambda change: " ".join(change),
)
def test_awkward_sources_give_valid_objects(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ct"
    path.mkdir()
    for index in range(SHAPE[0]):
        made = slice_of(index, FrameOfReferenceUID=FRAME, **change)
        pydicom.dcmwrite(path / f"{index}.dcm", made, enforce_file_format=True)
    reading = reading_of(path)
    for file in written(tmp_path, reading, read_headers(path)):
        held = pydicom.dcmread(file)
        name = change.get("PatientName", "Secret^Name")
        assert str(held.PatientName) == (name or "")
        for keyword in ("PatientSex", "PatientBirthDate", "StudyTime", "StudyID", "AccessionNumber"):
            assert not held[keyword].value  # there, if only empty
        assert complaints(file) == []
    assert set(xyz_of_segments(tmp_path / "seg.dcm")) == {1, 2}


def test_a_compressed_source_with_private_tags_gives_valid_objects(tmp_path: Path) -> None:
    for index in range(SHAPE[0]):
        made = slice_of(index, FrameOfReferenceUID=FRAME)
        made.private_block(0x0013, "SECRET-MAKER", create=True).add_new(1, "LO", "SECRET-VALUE")
        made.compress(RLELossless)
        save(made, tmp_path / "ct" / f"{index}.dcm")
    for file in written(tmp_path, reading_of(tmp_path / "ct"), read_headers(tmp_path / "ct")):
        assert complaints(file) == []
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert b"SECRET-MAKER" not in file.read_bytes()
        assert b"SECRET-VALUE" not in file.read_bytes()


def test_without_a_frame_of_reference_there_is_a_report_but_no_segmentation(tmp_path: Path) -> None:
    path = series(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    with pytest.raises(DicomObjectError, match="FrameOfReferenceUID"):
        write_segmentation(tmp_path / "seg.dcm", reading, headers)
    assert not (tmp_path / "seg.dcm").exists()
    write_report(tmp_path / "sr.dcm", reading, headers, None)
    assert complaints(tmp_path / "sr.dcm") == []


@pytest.mark.parametrize(
    ("keyword", "values", "said"),
    [
        ("StudyInstanceUID", ["1.2.3", "1.2.3", "1.2.9", "1.2.3", "1.2.3"], "differ in StudyInstanceUID"),
        ("StudyInstanceUID", [""] * 5, "no StudyInstanceUID"),
        ("StudyInstanceUID", ["Secret^Name"] * 5, "no StudyInstanceUID"),
        ("PatientID", ["a", "b", "a", "a", "a"], "differ in PatientID"),
        ("FrameOfReferenceUID", ["1.2.4", "1.2.5", "1.2.4", "1.2.4", "1.2.4"], "differ in FrameOfReferenceUID"),
        ("SOPInstanceUID", ["1.1", "1.2", "1.2", "1.3", "1.4"], "SOPInstanceUID"),
        ("SOPInstanceUID", ["", "1.2", "1.3", "1.4", "1.5"], "SOPInstanceUID"),
        ("SeriesInstanceUID", ["1.2.77"] * 5, "another series"),
        ("ImagePositionPatient", [[0, 0, 0]] * 5, "do not lie on the scan's grid"),
        ("ImagePositionPatient", [None] * 5, "its slices"),
        ("Rows", [7] * 5, "do not lie on the scan's grid"),
        ("SOPClassUID", ["1.2.3.4.5"] * 5, "cannot be made into DICOM"),
    ],
)
def test_headers_that_contradict_each_other_are_refused_in_one_line(
    keyword: str, values: list[Any], said: str, tmp_path: Path
) -> None:
    path = slices(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    for header, value in zip(headers, values, strict=True):
        setattr(header, keyword, value)
    with pytest.raises(DicomObjectError) as caught:
        written(tmp_path, reading, headers)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{reading.series_uid}: ")
    assert "\n" not in str(caught.value)
    assert "Secret" not in str(caught.value)
    assert not list(tmp_path.glob("*.dcm"))


def test_headers_of_fewer_slices_are_refused(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    with pytest.raises(DicomObjectError, match="4 headers for 5 slices"):
        make_segmentation(reading_of(path), read_headers(path)[1:])


def test_what_a_library_says_of_a_patient_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    path = slices(tmp_path / "ct", PatientName="Secret Name without a caret", PatientID="SECRET-ID " * 8)
    reading, headers = reading_of(path), read_headers(path)
    written(tmp_path, reading, headers)

    def fail(**_: Any) -> None:
        raise ValueError("Secret^Name is no name")

    monkeypatch.setattr(dicom_seg.hd.seg, "Segmentation", fail)
    with pytest.raises(DicomObjectError, match=r"ValueError") as caught:
        make_segmentation(reading, headers)
    out = capfd.readouterr()
    for said in (str(caught.value), caplog.text, out.out, out.err):
        assert "secret" not in said.lower()


def test_a_file_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = slices(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    segmentation, _ = written(tmp_path, reading, headers)
    before = segmentation.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_segmentation(segmentation, replace(reading, made=datetime(2027, 1, 1, tzinfo=UTC)), headers)
    assert segmentation.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_of_any_name_is_written(tmp_path: Path) -> None:
    path = slices(tmp_path / "ct")
    reading, headers = reading_of(path), read_headers(path)
    odd = replace(reading.opinions[0], bundle="models:/" + "Lünge\\\n" * 30, recipe="ü", origin="phantom\\real")
    for file in written(tmp_path, replace(reading, opinions=(odd,)), headers):
        assert complaints(file) == []


@pytest.mark.real
@pytest.mark.skipif(REAL_DATA is None, reason="LUNGML_REAL_DATA is not set")
def test_objects_of_the_real_series_lie_where_the_nodule_is(tmp_path: Path) -> None:
    assert REAL_DATA is not None
    path = Path(REAL_DATA) / "lidc" / "LIDC-IDRI-0001-dicom.zip"
    series_uid, hu, grid = read_series(path)
    (nodule,) = (n for n in read_luna(Path(REAL_DATA) / "luna16").nodules if n.series_uid == series_uid)
    inverse = np.asarray(grid.direction)
    center = ((np.array(nodule.center_xyz) - grid.origin_xyz) @ inverse / grid.spacing_xyz)[::-1]
    box, inside = bounded_nodule(hu, center, nodule.diameter_mm, grid)
    marked = np.zeros(hu.shape, dtype=np.bool_)
    marked[box] = inside
    volume = inside.sum() * grid.spacing_irc.prod()
    findings = (finding(center.tolist(), grid, float(np.cbrt(6 / np.pi * volume))),)
    reading = Reading(
        series_uid=series_uid,
        hu=hu,
        grid=grid,
        opinions=(opinion_of(marked, findings),),
        made=datetime(2026, 1, 31, tzinfo=UTC),
    )
    headers = read_headers(path)
    segmentation, report = written(tmp_path, reading, headers)
    (points,) = xyz_of_segments(segmentation).values()
    np.testing.assert_allclose(points, in_order(irc_to_xyz(np.argwhere(marked), grid)), atol=1e-3)
    np.testing.assert_allclose(points.mean(axis=0), nodule.center_xyz, atol=2.0)
    assert list(groups_of(report)) == ["finding 1"]
    for file in (segmentation, report):
        held = pydicom.dcmread(file)
        assert (held.PatientID, held.StudyInstanceUID) == (headers[0].PatientID, headers[0].StudyInstanceUID)
        assert complaints(file) == []
    assert headers[0].PatientID not in json.dumps(markups_json(reading))
