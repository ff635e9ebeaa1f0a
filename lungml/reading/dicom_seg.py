"""How do the voxels of a scan's kept findings become a DICOM segmentation?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lungml.findings import Finding
from lungml.reading.colors import MARK_COLORS
from lungml.reading.dicom_objects import (
    LONG_STRING,
    MAKER,
    NOT_CLINICAL,
    ascii_text,
    check_frame_of_reference,
    content_of,
    finished,
    object_uid,
    parameters_of,
    refusing,
    source_of,
    tracking_id,
    tracking_uid,
    write_object,
)
from lungml.reading.nodule_masks import NoduleMask, labelled, nodule_masks
from lungml.reading.record import Opinion, Reading, luna_version

SERIES_NUMBER, SERIES_DESCRIPTION = 7201, "luna: nodules. Not for clinical use"


def write_segmentation(path: Path, reading: Reading, headers: Sequence[Dataset]) -> Dataset | None:
    """Write a DICOM SEG: one binary segment for each kept finding of the first opinion, in the order of their numbers.

    A finding without voxels (see `nodule_masks`) has no segment. Where none has any, no file is written, since a
    segmentation without segments is not allowed, and an older one at `path` goes. Only slices with voxels have frames.

    Args:
        path: of the file.
        reading: the first opinion counts.
        headers: of its series, from `lungml.dicom.read_headers`.

    Returns:
        what was written, for `write_report` to refer to; its SOPInstanceUID is equal for equal findings and voxels.

    Raises:
        DicomObjectError: no segmentation can be made of these headers.
        OSError: the file cannot be written.
    """
    made = make_segmentation(reading, headers)
    if made is None:
        path.unlink(missing_ok=True)
    else:
        write_object(path, made, reading)
    return made


def make_segmentation(reading: Reading, headers: Sequence[Dataset]) -> Dataset | None:
    """The segmentation that `write_segmentation` writes."""
    opinion, grid = reading.opinions[0], reading.grid
    masks = nodule_masks(opinion, grid).masks
    if not masks:
        return None
    source = source_of(reading, headers)
    check_frame_of_reference(reading, source)
    slices = sorted({index for mask in masks for index in mask.slices()})
    pixels = labelled(masks, slices, grid)
    voxels = [f"{mask.finding} {mask.box} {mask.inside.tobytes().hex()}" for mask in masks]
    with refusing(reading.series_uid, "its segmentation"):
        made = hd.seg.Segmentation(
            source_images=[source[index] for index in slices],
            pixel_array=pixels,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(n, mask, reading) for n, mask in enumerate(masks, start=1)],
            pixel_measures=hd.PixelMeasuresSequence(
                pixel_spacing=[float(mm) for mm in source[0].PixelSpacing],
                slice_thickness=grid.spacing_xyz[2],
                spacing_between_slices=grid.spacing_xyz[2],
            ),
            series_instance_uid=object_uid("segmentation series", reading),
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            sop_instance_uid=object_uid("segmentation", reading, content_of(reading), *voxels),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=luna_version(),
            device_serial_number=ascii_text(opinion.bundle, LONG_STRING),
            content_label="LUNA_NODULES",
            content_description=f"Nodules that luna found. {NOT_CLINICAL}",
            specific_character_set=None,
        )
        finished(made, reading, source)
        _organized(made, object_uid("dimensions", reading))
    return made


def _organized(made: Dataset, uid: str) -> None:
    """Name how the frames are ordered by a UID that does not change; highdicom would draw one by lot."""
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _segment(number: int, mask: NoduleMask, reading: Reading) -> hd.seg.SegmentDescription:
    opinion = reading.opinions[0]
    finding = opinion.findings[mask.finding - 1]
    made = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=tracking_id(mask.finding),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        anatomic_regions=[codes.SCT.Lung],
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(opinion),
        tracking_id=tracking_id(mask.finding),
        tracking_uid=tracking_uid(reading, mask.finding, finding),
        display_color=CIELabColor.from_string(MARK_COLORS[finding.stage]),
    )
    made.SegmentDescription = _words(finding)
    return made


def _algorithm(opinion: Opinion) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=luna_version(),
        source=MAKER,
        parameters=parameters_of(opinion),
    )


def _words(finding: Finding) -> str:
    words = f"{finding.stage}: nodule {finding.prob_nodule:.3f}, malignant {finding.prob_malignant:.3f}"
    return ascii_text(f"{words}, {finding.diameter_mm:.1f} mm. {NOT_CLINICAL}")
