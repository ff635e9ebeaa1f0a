import pickle

import pytest

from lungml.lidc_xml import MAX_XML_BYTES, Characteristics, LidcError, OtherKind, parse_lidc
from tests.lungml.fixtures.lidc import lidc_xml, nodule, non_nodule, roi, square

DOCUMENT_TYPE = b'<!DOCTYPE LidcReadMessage [<!ENTITY a "xxxxxxxxxx">%s]>'
BOMB = b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))


def test_every_kind_of_mark() -> None:
    first = [
        nodule(roi(-5.5, square(10, 20, 4)) + roi("-4.5", [(11, 21)]), 4, "big", subtlety=5, calcification=6),
        nodule(roi(7, [(30, 40)]), None, "small"),
    ]
    scan = parse_lidc(lidc_xml(first, non_nodule(8, 50, 60), ""), "x.xml")
    assert (scan.series_uid, scan.source, scan.readers, scan.read_at) == ("1.2.3", "x.xml", 3, "2006-06-05 10:00:00")
    (reading,) = scan.readings
    assert (reading.reader, reading.nodule_id) == (0, "big")
    assert reading.characteristics == Characteristics(
        subtlety=5, internal_structure=1, calcification=6, sphericity=1, margin=1, lobulation=1, spiculation=1,
        texture=1, malignancy=4,
    )  # fmt: skip
    contour, tip = reading.contours
    assert (contour.z_mm, contour.inclusion, contour.sop_uid) == (-5.5, True, "1.2.-5.5")
    assert contour.points.tolist() == [list(point) for point in square(10, 20, 4)]
    assert tip.points.tolist() == [[11, 21]]
    (small,) = scan.small_nodules
    assert (small.reader, small.z_mm, small.row, small.col) == (0, 7, 30, 40)
    (other,) = scan.non_nodules
    assert (other.reader, other.z_mm, other.row, other.col) == (1, 8, 50, 60)


@pytest.mark.parametrize("value", [0, 6, "", "high", "4.5", "-1", "٣"])
def test_a_rating_off_its_scale_is_none_and_the_outline_stays(value: int | str) -> None:
    (reading,) = parse_lidc(lidc_xml(nodule(roi(1, square(1, 1, 4)), value)), "x").readings
    assert reading.characteristics.malignancy is None
    assert reading.characteristics.texture == 1


def test_an_outline_that_nobody_rated_is_a_reading() -> None:
    (reading,) = parse_lidc(lidc_xml(nodule(roi(1, square(1, 1, 4)), None)), "x").readings
    assert reading.characteristics == Characteristics()


def test_namespaces() -> None:
    one = nodule(roi(1, square(1, 1, 4)))
    assert len(parse_lidc(lidc_xml(one, namespace=""), "x").readings) == 1
    prefixed = lidc_xml(one).replace(b"<", b"<l:").replace(b"<l:/", b"</l:").replace(b"<l:?", b"<?")
    assert len(parse_lidc(prefixed.replace(b"xmlns=", b"xmlns:l="), "x").readings) == 1
    with pytest.raises(OtherKind, match="no LidcReadMessage"):
        parse_lidc(lidc_xml(one, namespace='xmlns="http://elsewhere"'), "x")
    foreign = lidc_xml(one).replace(b"<readingSession>", b'<readingSession xmlns="http://elsewhere">')
    assert parse_lidc(foreign, "x").readings == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lidc_xml(root="IdriReadMessage", namespace='xmlns="http://www.nih.gov/idri"'), "a reading of a chest X-ray"),
        (b"<svg/>", "no LidcReadMessage"),
        (lidc_xml(series_uid=""), "it names no series"),
        (b'<LidcReadMessage xmlns="http://www.nih.gov"/>', "it names no series"),
        (
            lidc_xml(series_uid="1").replace(b"<DateS", b"<CTSeriesInstanceUID>2</CTSeriesInstanceUID><DateS"),
            "it names several series",
        ),
    ],
)
def test_files_of_another_kind(content: bytes, reason: str) -> None:
    with pytest.raises(OtherKind) as caught:
        parse_lidc(content, "x.xml")
    assert reason in caught.value.args[1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not well-formed XML"),
        (lidc_xml("")[:-9], "not well-formed XML"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "not well-formed XML"),
        (b"\x00" * 99, "not well-formed XML"),
        (b" " * (MAX_XML_BYTES + 1), "larger than"),
        (lidc_xml(series_uid="../../etc"), "is no series_uid"),
        (lidc_xml(nodule("")), "a nodule without a place"),
        (lidc_xml(nodule(roi(1, []))), "a mark without a pixel"),
        (lidc_xml(nodule(roi("nan", [(1, 1)]))), "imageZposition is 'nan'"),
        (lidc_xml(nodule(roi("high\nup", [(1, 1)]))), "imageZposition is 'high"),
        (lidc_xml(nodule(roi(1, [(1, 1), (1, -1)]))), "a pixel outside 0..4095"),
        (lidc_xml(nodule(roi(1, [(1, 10**9), (1, 1)]))), "a pixel outside 0..4095"),
        (lidc_xml(nodule(roi(1, [("x", 1)]))), "not two whole numbers"),  # type: ignore[list-item]
        (lidc_xml(nodule(roi(1, [(1, 1)], "MAYBE"))), "neither TRUE nor FALSE"),
    ],
)
def test_damaged_files_are_one_line(content: bytes, problem: str) -> None:
    with pytest.raises(LidcError) as caught:
        parse_lidc(content, "folder/x.xml")
    line = str(caught.value)
    assert line.startswith("folder/x.xml: ")
    assert problem in line
    assert line.isprintable()
    assert not isinstance(caught.value, OtherKind)
    assert str(pickle.loads(pickle.dumps(caught.value))) == line


@pytest.mark.parametrize(
    "document_type",
    [
        DOCUMENT_TYPE % BOMB,
        DOCUMENT_TYPE % b'<!ENTITY secret SYSTEM "file:///etc/hostname">',
        DOCUMENT_TYPE % b'<!ENTITY %% outside SYSTEM "http://127.0.0.1:9/x.dtd"> %%outside;',
        b'<!DOCTYPE LidcReadMessage SYSTEM "http://127.0.0.1:9/x.dtd">',
        b"<!DOCTYPE LidcReadMessage>",
    ],
    ids=["bomb", "file", "parameter", "external", "bare"],
)
def test_no_document_type_is_ever_read(document_type: bytes) -> None:
    declaration, _, rest = lidc_xml(nodule(roi(1, [(1, 1)]), None, "&j;&secret;")).partition(b"?>")
    with pytest.raises(LidcError, match="it declares a document type"):
        parse_lidc(declaration + b"?>" + document_type + rest, "x")


def test_deep_nesting_is_no_crash() -> None:
    with pytest.raises(OtherKind):
        parse_lidc(b"<a>" * 200_000 + b"</a>" * 200_000, "x")
