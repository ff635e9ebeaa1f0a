"""How do a scan's kept findings become a DICOM report of measurements (TID 1500)?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import Code, codes

from lungml.findings import Finding
from lungml.reading.dicom_objects import (
    LONG_STRING,
    MAKER,
    NOT_CLINICAL,
    ascii_text,
    content_of,
    derived_uid,
    finished,
    object_uid,
    parameters_of,
    refusing,
    source_of,
    tracking_id,
    tracking_uid,
    write_object,
)
from lungml.reading.nodule_masks import NoduleMask, NoduleMasks, kept_findings, nodule_masks
from lungml.reading.record import Opinion, Reading, luna_version

SERIES_NUMBER, SERIES_DESCRIPTION = 7202, "luna: measurements. Not for clinical use"
LANGUAGE = sr.CodedConcept("en-US", "RFC5646", "English (United States)")
CT_CHEST = Code("24627-2", "LN", "CT Chest")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
# PS3.16, TID 4104 and CID 6048, in percent: being a nodule is what the device is certain of.
CERTAINTY, CANCER = codes.DCM.CertaintyOfFinding, codes.DCM.ProbabilityOfCancer
CONTAINS = sr.RelationshipTypeValues.CONTAINS


def write_report(path: Path, reading: Reading, headers: Sequence[Dataset], segmentation: Dataset | None) -> None:
    """Write a DICOM SR, TID 1500, with what was measured of each kept finding of the first opinion.

    Each has its equivalent diameter and, where it has voxels, their volume; how certain it is to be a nodule and, where
    the malignancy models were asked, how probably a malignant one, in percent. It refers to its segment, and without
    one to the slice of its centre. Where nothing was kept, the report says so. It is nobody's verified opinion: the
    observer is a device, the report preliminary; it is complete unless a limit left candidates out.

    Args:
        path: of the file.
        reading: the first opinion counts.
        headers: of its series, from `lungml.dicom.read_headers`.
        segmentation: what `write_segmentation` gave for the same reading; None where there is none.

    Raises:
        DicomObjectError: no report can be made of these headers.
        OSError: the file cannot be written.
    """
    write_object(path, make_report(reading, headers, segmentation), reading)


def make_report(reading: Reading, headers: Sequence[Dataset], segmentation: Dataset | None) -> Dataset:
    """The report that `write_report` writes."""
    opinion = reading.opinions[0]
    source = source_of(reading, headers)
    of_segmentation = "" if segmentation is None else str(segmentation.SOPInstanceUID)
    with refusing(reading.series_uid, "its report"):
        made = sr.Comprehensive3DSR(
            evidence=source if segmentation is None else [*source, segmentation],
            content=_content(reading, source, segmentation),
            series_instance_uid=object_uid("report series", reading),
            series_number=SERIES_NUMBER,
            series_description=SERIES_DESCRIPTION,
            sop_instance_uid=object_uid("report", reading, content_of(reading), of_segmentation),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=luna_version(),
            device_serial_number=ascii_text(opinion.bundle, LONG_STRING),
            is_complete=not opinion.left_out,
            is_final=False,
            is_verified=False,
            specific_character_set=None,
        )
        finished(made, reading, source)
    return made


def _content(reading: Reading, source: Sequence[Dataset], segmentation: Dataset | None) -> Dataset:
    """The root of the tree; highdicom's own would allow no report without measurements."""
    masks = nodule_masks(reading.opinions[0], reading.grid)
    root = sr.ContainerContentItem(name=codes.DCM.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = sr.ContentSequence()
    root.ContentSequence.extend(sr.LanguageOfContentItemAndDescendants(LANGUAGE))
    root.ContentSequence.extend(sr.ObservationContext(observer_device_context=_observer(reading)))
    root.ContentSequence.append(
        sr.CodeContentItem(
            name=codes.DCM.ProcedureReported,
            value=CT_CHEST,
            relationship_type=sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    kept = kept_findings(reading.opinions[0])
    container = sr.ContainerContentItem(
        name=codes.DCM.ImagingMeasurements if kept else QUALITATIVE_EVALUATIONS, relationship_type=CONTAINS
    )
    container.ContentSequence = sr.ContentSequence()
    segments = {mask.finding: (n, mask) for n, mask in enumerate(masks.masks, start=1)}
    for number, finding in kept:
        container.ContentSequence.extend(_group(number, finding, segments, reading, source, segmentation))
    if not kept:
        none = f"None of {len(reading.opinions[0].findings)} candidates was taken for a nodule."
        container.ContentSequence.append(sr.TextContentItem(codes.DCM.Finding, none, CONTAINS))
    root.ContentSequence.append(container)
    root.ContentSequence.append(sr.TextContentItem(codes.DCM.Comment, _comment(reading.opinions[0], masks), CONTAINS))
    return root


def _observer(reading: Reading) -> sr.ObserverContext:
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", luna_version(), reading.opinions[0].bundle),
            name=f"{MAKER} {luna_version()}",
            manufacturer_name=MAKER,
            model_name=MAKER,
            serial_number=ascii_text(reading.opinions[0].bundle, LONG_STRING),
        ),
    )


def _group(
    number: int,
    finding: Finding,
    segments: Mapping[int, tuple[int, NoduleMask]],
    reading: Reading,
    source: Sequence[Dataset],
    segmentation: Dataset | None,
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations:
    """One finding's measurements: of its segment (TID 1411), or of no region (TID 1501) where it has none."""
    segment, mask = segments.get(number, (0, None))
    opinion = reading.opinions[0]
    about = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=tracking_uid(reading, number, finding), identifier=tracking_id(number)
        ),
        "finding_type": codes.SCT.Nodule,
        "finding_sites": [sr.FindingSite(codes.SCT.Lung)],
        "algorithm_id": sr.AlgorithmIdentification(
            name=MAKER,
            version=luna_version(),
            parameters=[f"{name}: {value}" for name, value in parameters_of(opinion).items()],
        ),
        "measurements": _measurements(finding, None if mask is None else mask.volume_mm3(reading.grid)),
    }
    if segmentation is not None and mask is not None:
        # By hand: highdicom's own way fails on a segmentation of a single segment.
        region = sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=segment,
            source_images=[sr.SourceImageForSegmentation.from_source_image(source[index]) for index in mask.slices()],
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=region, **about)
    index = min(max(round(finding.center_irc[0]), 0), len(source) - 1)
    image = sr.SourceImageForMeasurementGroup.from_source_image(source[index])
    return sr.MeasurementsAndQualitativeEvaluations(source_images=[image], **about)


def _measurements(finding: Finding, volume_mm3: float | None) -> list[sr.Measurement]:
    values = [
        (codes.SCT.Diameter, round(finding.diameter_mm, 2), codes.UCUM.Millimeter),
        (codes.SCT.Volume, math.nan if volume_mm3 is None else round(volume_mm3, 1), codes.UCUM.CubicMillimeter),
        (CERTAINTY, round(100 * finding.prob_nodule, 4), codes.UCUM.Percent),
        (CANCER, round(100 * finding.prob_malignant, 4), codes.UCUM.Percent),
    ]
    return [sr.Measurement(name, float(value), unit) for name, value, unit in values if math.isfinite(value)]


def _comment(opinion: Opinion, masks: NoduleMasks) -> str:
    said = [f"{NOT_CLINICAL}. The opinion of a program, {MAKER} {luna_version()}, bundle {opinion.bundle}."]
    if masks.without:
        said.append(f"Without a segment: {', '.join(map(tracking_id, masks.without))}.")
    if opinion.left_out:
        said.append(f"Incomplete: {opinion.left_out} candidates beyond the limit were not looked at.")
    return ascii_text(" ".join(said))
