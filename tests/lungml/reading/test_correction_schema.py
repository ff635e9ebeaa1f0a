"""What the page exports is taken as it is; whatever else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lungml.reading.correction_schema import (
    MAX_BYTES,
    MAX_CORRECTIONS,
    MAX_TEXT,
    CorrectionError,
    parse_corrections,
)

BUNDLE = "models:/luna/3"


def row(**changes: Any) -> dict[str, Any]:
    """An accepted finding, with changes."""
    return {
        "kind": "accept",
        "time": "2026-01-31T12:00:00Z",
        "finding": 12,
        "center_xyz": [1.5, -20, 3e1],
        "diameter_mm": 8.25,
        "label": None,
        "text": "",
        **changes,
    }


def file(*rows: Any, **changes: Any) -> dict[str, Any]:
    """A file of corrections, with changes."""
    return {
        "format": "luna-corrections",
        "version": 1,
        "series_uid": "1.2.840.1",
        "bundle": BUNDLE,
        "reader": "r.one_2-x",
        "exported": "2026-01-31T12:30:00.123Z",
        "corrections": list(rows),
        **changes,
    }


def parsed(held: Any, reader: str | None = None) -> Any:
    return parse_corrections(json.dumps(held).encode(), reader)


def refusal(held: Any) -> str:
    with pytest.raises(CorrectionError) as refused:
        parse_corrections(held if isinstance(held, bytes) else json.dumps(held).encode())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_the_page_writes_is_read_exactly() -> None:
    added = row(kind="add", finding=None, label="malignant", text="behind the\nheart", bundle="models:/luna/7")
    read = parsed(file(row(), added))
    assert (read.series_uid, read.reader, read.bundles) == ("1.2.840.1", "r.one_2-x", (BUNDLE, "models:/luna/7"))
    first, second = read.corrections
    assert (first.kind, first.finding, first.center_xyz, first.diameter_mm) == ("accept", 12, (1.5, -20.0, 30.0), 8.25)
    assert (first.bundle, second.bundle) == (BUNDLE, "models:/luna/7")
    assert (second.finding, second.label, second.text) == (None, "malignant", "behind the\nheart")
    assert (first.nodule, second.nodule, parsed(file(row(kind="reject"))).corrections[0].nodule) == (True, True, False)
    assert parsed(read.as_dict()) == read  # there and back


def test_a_file_may_name_its_reading() -> None:
    made = "2026-01-31T11:00:00Z"
    read, other = parsed(file(row(), reading=made)), parsed(file(row()))
    assert (read.reading, other.reading) == (made, None)
    assert read.content != other.content
    assert (parsed(read.as_dict()), "reading" in other.as_dict()) == (read, False)
    assert 'reading is "now"' in refusal(file(reading="now"))
    # Kept versions hold it: of files that name none it is what it always was.
    added = row(kind="add", finding=None, bundle="models:/luna/7", text="é")
    content = "09e67baf0c3763c124ce97021c9594d59e5d5f93749b7004ca76beee82c2bad7"
    assert parsed(file(row(), added)).content == content


def test_half_a_character_is_refused() -> None:
    assert "text holds half a character" in refusal(file(row(text="a\ud83d")))
    assert parsed(file(row(text="a\U0001f600"))).corrections[0].text == "a\U0001f600"


def test_a_reader_given_by_hand_takes_the_place_of_the_files() -> None:
    assert parsed(file(reader=""), reader="two").reader == "two"
    assert "--reader" in refusal(file(reader=""))
    with pytest.raises(CorrectionError, match="reader is"):
        parsed(file(), reader="a@b")


def test_content_is_the_same_whenever_it_was_exported() -> None:
    one, later = parsed(file(row())), parsed(file(row(), exported="2027-01-31T12:30:00Z"))
    assert one.content == later.content
    assert parsed(file(row(text="x"))).content != one.content
    assert parsed(file(row()), reader="other").content != one.content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "luna-findings"}, "no file of corrections"),
        ({"version": 2}, "its version is 2"),
        ({"version": True}, "its version is true"),
        ({"version": 1.0}, "its version is 1.0"),
        ({"series_uid": 5}, "series_uid is 5"),
        ({"series_uid": "../1.2"}, 'series_uid is "../1.2"'),
        ({"bundle": "models:/luna@champion"}, 'bundle is "models:/luna@champion"'),
        ({"reader": "Jane Doe"}, 'reader is "Jane Doe"'),
        ({"reader": "a@b"}, 'reader is "a@b"'),
        ({"reader": "x" * 33}, "reader is"),
        ({"reader": "x\n"}, "reader is"),
        ({"exported": "yesterday"}, 'exported is "yesterday"'),
        ({"exported": "2026-02-30T12:00:00Z"}, "a time that no calendar has"),
        ({"exported": "2026-01-31T12:00:00+01:00"}, "not a time in UTC"),
        ({"patient": "x"}, 'the file has the unknown key "patient"'),
        ({"corrections": {}}, "corrections is {}"),
        ({"corrections": [[]]}, "correction 1: [] is no correction"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(file(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "delete"}, 'kind is "delete"'),
        ({"kind": []}, "kind is []"),
        ({"time": 5}, "time is 5"),
        ({"finding": True}, "finding is true"),
        ({"finding": 0}, "finding is 0"),
        ({"finding": 1.0}, "finding is 1.0"),
        ({"finding": None}, "finding is null"),
        ({"kind": "add"}, "must be null"),
        ({"kind": "add", "finding": None, "diameter_mm": None}, "add needs a diameter_mm"),
        ({"center_xyz": [1, 2]}, "center_xyz is [1, 2]"),
        ({"center_xyz": [1, 2, "3"]}, 'center_xyz holds "3"'),
        ({"center_xyz": [1, 2, False]}, "center_xyz holds false"),
        ({"center_xyz": [1, 2, 10**400]}, "center_xyz holds"),
        ({"center_xyz": [1, 2, 20_000]}, "no scan reaches that far"),
        ({"diameter_mm": 0}, "diameter_mm is 0"),
        ({"diameter_mm": -3}, "diameter_mm is -3"),
        ({"diameter_mm": 300.5}, "at most 300"),
        ({"diameter_mm": True}, "diameter_mm holds true"),
        ({"label": "cancer"}, 'label is "cancer"'),
        ({"label": False}, "label is false"),
        ({"kind": "relabel"}, "relabel needs a label"),
        ({"kind": "reject", "label": "benign"}, "reject has no label"),
        ({"text": None}, "text is no note"),
        ({"text": "x" * (MAX_TEXT + 1)}, "at most 2,000 characters"),
        ({"colour": 1}, 'it has the unknown key "colour"'),
        ({"bundle": None}, "bundle is null"),
    ],
)
def test_a_correction_that_is_none_is_refused_by_name_and_number(changes: dict[str, Any], words: str) -> None:
    said = refusal(file(row(), row(**changes)))
    assert said.startswith("correction 2: ")
    assert words in said


@pytest.mark.parametrize("lacking", ["series_uid", "reader", "corrections"])
def test_a_key_that_lacks_is_named(lacking: str) -> None:
    held = file()
    del held[lacking]
    assert refusal(held) == f"the file lacks {lacking}"
    short = row()
    del short["text"]
    assert refusal(file(short)) == "correction 1: it lacks text"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "no file of corrections"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps(file(row(diameter_mm=float("nan")))).encode(), "NaN is no number"),
        (json.dumps(file(row(diameter_mm=float("inf")))).encode(), "Infinity is no number"),
        (json.dumps(file(row())).replace("8.25", "1e999").encode(), "diameter_mm holds"),
        (json.dumps(file(row())).replace("8.25", "1" * 5000).encode(), "not JSON"),
        (b'{"format": 1, "format": 2}', '"format" stands there twice'),
    ],
)
def test_what_is_no_plain_json_is_refused(given: bytes, words: str) -> None:
    assert words in refusal(given)


def test_too_much_is_refused() -> None:
    assert "at most 5,000" in refusal(file(*[row()] * (MAX_CORRECTIONS + 1)))
    assert len(parsed(file(*[row()] * MAX_CORRECTIONS)).corrections) == MAX_CORRECTIONS
    assert "no page's corrections" in refusal(b" " * (MAX_BYTES + 1))
