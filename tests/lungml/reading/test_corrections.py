"""Versions of corrections only grow: none is rewritten, lost without a word, or half there."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lungml.reading.correction_schema import CorrectionFile, check_given
from lungml.reading.corrections import (
    CorrectionStoreError,
    Undo,
    Version,
    add_versions,
    read_versions,
    taken_back,
    undo_version,
)
from tests.lungml.reading.test_correction_schema import file, row


def given(*texts: str) -> CorrectionFile:
    """A file with a correction for each text."""
    return check_given(file(*(row(text=text) for text in texts)))


def add_version(folder: Path, file: CorrectionFile) -> tuple[Version, bool]:
    (added,) = add_versions(folder, [file])
    return added


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "corrections"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_versions_come_one_after_the_other_and_stay_as_they_are(folder: Path) -> None:
    assert read_versions(folder) == ()
    first, new = add_version(folder, given("a"))
    assert (first.number, new) == (1, True)
    before = (folder / "000001.json").read_bytes()
    second, _ = add_version(folder, given("b"))
    assert [v.number for v in read_versions(folder)] == [1, 2]
    assert read_versions(folder) == (first, second)
    assert second.file == given("b")
    assert (folder / "000001.json").read_bytes() == before
    assert names(folder) == ["000001.json", "000002.json"]


def test_equal_content_is_kept_once(folder: Path) -> None:
    first, _ = add_version(folder, given("a"))
    again = check_given(file(row(text="a"), exported="2027-01-01T00:00:00Z"))
    assert add_version(folder, again) == (first, False)
    add_version(folder, check_given(file(row(text="b"), exported="2026-06-01T00:00:00Z")))
    assert add_version(folder, given("a")) == (first, False)  # the very same export
    assert len(read_versions(folder)) == 2


def test_one_who_returns_to_what_he_said_first_has_said_something_new(folder: Path) -> None:
    add_version(folder, given("a"))
    add_version(folder, check_given(file(row(text="b"), exported="2026-06-01T00:00:00Z")))
    other = check_given(file(row(text="c"), reader="s", exported="2026-06-02T00:00:00Z"))
    back = check_given(file(row(text="a"), exported="2027-01-01T00:00:00Z"))
    added = add_versions(folder, [other, back, back])
    assert [(version.number, new) for version, new in added] == [(3, True), (4, True), (4, False)]
    assert read_versions(folder)[3].file == back


def test_an_older_state_is_had_by_its_number(folder: Path) -> None:
    for text in "abc":
        add_version(folder, given(text))
    assert [v.number for v in read_versions(folder, 2)] == [1, 2]
    assert read_versions(folder, 0) == ()
    for beyond in (4, -1):
        with pytest.raises(CorrectionStoreError, match=f"no version {beyond} of the corrections, the last one is 3"):
            read_versions(folder, beyond)


def test_undoing_is_a_version_and_can_be_undone(folder: Path) -> None:
    add_version(folder, given("a", "b"))
    assert undo_version(folder, Undo(version=1, correction=2)).number == 2
    assert taken_back(read_versions(folder)) == {Undo(version=1, correction=2): 2}
    undo_version(folder, Undo(version=2))  # the second correction is back
    assert taken_back(read_versions(folder)) == {Undo(version=2): 3}
    undo_version(folder, Undo(version=3))  # and gone again
    assert taken_back(read_versions(folder)) == {Undo(version=3): 4, Undo(version=1, correction=2): 2}
    assert taken_back(read_versions(folder, 3)) == {Undo(version=2): 3}  # the past stays as it was
    undo_version(folder, Undo(version=1))
    assert Undo(version=1) in taken_back(read_versions(folder))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (Undo(version=4), "no version 4 of the corrections, only 3"),
        (Undo(version=1, correction=3), "version 1 has no correction 3, only 2"),
        (Undo(version=2, correction=1), "version 2 is an undoing and has no parts"),
        (Undo(version=1, correction=2), "1.2 is undone already, by version 2"),
        (Undo(version=3, correction=1), "3.1 is undone already, by version 4"),
        (Undo(version=3), "3 is undone already, by version 4"),
    ],
)
def test_what_cannot_be_undone_is_said(folder: Path, what: Undo, words: str) -> None:
    add_version(folder, given("a", "b"))
    undo_version(folder, Undo(version=1, correction=2))
    add_version(folder, given("c"))
    if what.version == 3:
        undo_version(folder, Undo(version=3))
    count = len(names(folder))
    with pytest.raises(CorrectionStoreError, match=words):
        undo_version(folder, what)
    assert len(names(folder)) == count


@pytest.mark.parametrize("harm", ["missing", "cut", "edited", "swapped", "not text", "other number", "wrong undoing"])
def test_damage_is_one_line_and_nothing_is_added_on_top(folder: Path, harm: str) -> None:
    for text in "abc":
        add_version(folder, given(text))
    path = folder / "000002.json"
    text = path.read_text()
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        path.write_text(text[:100])
    elif harm == "edited":  # sound in itself, but its successor knows the old one
        path.write_text(text.replace("2026-01-31T12:30:00.123Z", "2026-01-31T12:30:01.123Z"))
    elif harm == "swapped":
        path.write_text((folder / "000003.json").read_text())
    elif harm == "not text":
        path.write_bytes(b"\xff\x00")
    elif harm == "other number":
        path.write_text(text.replace('"number": 2', '"number": 5'))
    else:
        path.write_text(json.dumps({**json.loads(text), "file": None, "undoes": {"version": 2, "correction": None}}))
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    for attempt in (lambda: read_versions(folder), lambda: add_version(folder, given("d"))):
        with pytest.raises(CorrectionStoreError) as damage:
            attempt()
        assert "restore it from a copy" in str(damage.value)
        assert "\n" not in str(damage.value)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert [v.number for v in read_versions(folder, 1)] == [1]


KILLED = """
import os, sys
from pathlib import Path
from tests.lungml.reading.test_corrections import add_version, given

name, real = sys.argv[2], getattr(os, sys.argv[2])
def die(*arguments, **keywords):
    real(*arguments, **keywords)
    os._exit(9)
setattr(os, name, die)
add_version(Path(sys.argv[1]), given("killed"))
"""


@pytest.mark.parametrize(("where", "there"), [("fsync", False), ("replace", True)])
def test_one_who_is_killed_leaves_a_whole_version_or_none(folder: Path, where: str, there: bool) -> None:
    add_version(folder, given("a"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), where], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    kept = read_versions(folder)
    assert [v.file for v in kept] == [given("a"), given("killed")] if there else [given("a")]
    version, new = add_version(folder, given("killed"))  # the lock of the dead is free
    assert (version.number, new) == (2, not there)


def test_adders_at_once_lose_nothing(folder: Path) -> None:
    """Threads here, each with a lock of its own, as processes have."""
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda number: add_version(folder, given(f"{number % 12}")), range(24)))
    assert sum(new for _, new in added) == 12
    kept = read_versions(folder)
    assert [v.number for v in kept] == list(range(1, 13))
    assert sorted(v.file.corrections[0].text for v in kept if v.file) == sorted(map(str, range(12)))


def test_two_processes_at_once_lose_nothing(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from tests.lungml.reading.test_corrections import add_version, given;"
        "[add_version(Path(sys.argv[1]), given(sys.argv[2] + str(n))) for n in range(10)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(folder), name]) for name in ("x", "y")]
    assert [process.wait(120) for process in running] == [0, 0]
    assert [v.number for v in read_versions(folder)] == list(range(1, 21))
