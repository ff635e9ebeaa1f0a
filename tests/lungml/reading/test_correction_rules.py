"""Every rule of what is learned from corrections, by hand: one scan, a nodule and an excluded finding in its tables."""

from __future__ import annotations

from typing import Any

import pytest

from lungml.luna import Annotation, Excluded, Nodule
from lungml.reading.corrected_scan import Corrected, Outcome, Tables, same_place
from lungml.reading.correction_rules import Resolved, replaced_by, resolve
from lungml.reading.correction_schema import check_given
from lungml.reading.corrections import Undo, Version
from tests.lungml.reading.test_correction_schema import file, row

UID = "1.2"
BENIGN = Nodule(series_uid=UID, center_xyz=(0, 0, 0), diameter_mm=10, malignant=False, ratings=(2, 1))
MALIGNANT = Nodule(series_uid=UID, center_xyz=(50, 0, 0), diameter_mm=6, malignant=True, ratings=(5,))
LEFT_OUT = Excluded(series_uid=UID, center_xyz=(0, 50, 0), diameter_mm=10)
UNRATED = Annotation(series_uid=UID, center_xyz=(0, 0, 50), diameter_mm=7)
MIRRORED = Excluded(series_uid=UID, center_xyz=(0, 0, 50), diameter_mm=7)
TABLES = Tables(nodules=(BENIGN, MALIGNANT), excluded=(LEFT_OUT, MIRRORED), unrated=(UNRATED,))
NOWHERE = (-50.0, 0.0, 0.0)  # the tables know of nothing there
DISPUTED = "nobody learns from this place"


def said(kind: str, at: tuple[float, float, float] = NOWHERE, **more: Any) -> dict[str, Any]:
    added = {"finding": None} if kind == "add" else {}
    return row(**{"kind": kind, "center_xyz": list(at), "diameter_mm": 8, **added, **more})


def versions(*given: tuple[str, list[dict[str, Any]]] | Undo, uid: str = UID) -> list[Version]:
    """A version for each (reader, rows) or undoing."""
    kept = []
    for number, one in enumerate(given, start=1):
        if isinstance(one, Undo):
            kept.append(Version(number=number, added="", undoes=one))
            continue
        reader, rows = one
        held = check_given(file(*rows, reader=reader, series_uid=uid))
        kept.append(Version(number=number, added="", file=held))
    return kept


def decided(*given: tuple[str, list[dict[str, Any]]] | Undo, split: str = "train") -> Resolved:
    tables = {UID: TABLES} if split == "train" else {}
    return resolve(versions(*given), {UID: split} if split else {}, tables)


def words(resolved: Resolved) -> list[str]:
    return [outcome.words for outcome in resolved.outcomes]


def scan(resolved: Resolved) -> Corrected:
    return resolved.scans[UID]


def nodule(at: tuple[float, float, float], diameter_mm: float, malignant: bool) -> Nodule:
    return Nodule(series_uid=UID, center_xyz=at, diameter_mm=diameter_mm, malignant=malignant, ratings=())


@pytest.mark.parametrize(
    ("apart", "first", "second", "same"),
    [(2.99, 1, 1, True), (3.0, 1, 1, False), (3.0, None, None, False), (2.9, None, None, True), (4.9, 10, 2, True),
     (4.9, 2, 10, True), (5.0, 10, 10, False)],
)  # fmt: skip
def test_one_place_is_half_the_larger_diameter_and_at_least_3_mm(
    apart: float, first: float | None, second: float | None, same: bool
) -> None:
    one, other = (
        check_given(file(row(center_xyz=[x, 1, 1], diameter_mm=d))).corrections[0]
        for x, d in ((0, first), (apart, second))
    )
    assert same_place(one, other) is same


def test_nothing_changes_nothing() -> None:
    assert resolve([], {}, {}) == Resolved(version=0)
    resolved = decided(("r", [said("note"), said("accept", (0, 0, 0)), said("relabel", (0, 0, 1), label="benign")]))
    assert words(resolved) == ["a note, kept", "superseded by 1.3", "the tables say so already"]
    assert resolved.scans == {}
    assert set(resolved.counts().values()) == {0}


def test_what_the_tables_do_not_know_becomes_a_positive_or_a_hard_negative() -> None:
    far = (-50.0, 40.0, 0.0)
    resolved = decided(("r", [said("add"), said("reject", far), said("accept", (90, 0, 0), label="malignant")]))
    assert words(resolved) == [
        "used as positive, malignancy unknown", "used as hard negative", "used as positive, malignant",
    ]  # fmt: skip
    change = scan(resolved)
    assert change.nodules == (BENIGN, MALIGNANT, nodule((90, 0, 0), 8, True))
    assert change.from_tables == (0, 1, None)
    assert change.unjudged == (Annotation(series_uid=UID, center_xyz=NOWHERE, diameter_mm=8),)
    assert change.rejected_xyz == (far,)
    assert change.excluded == TABLES.excluded
    assert change.new == ((NOWHERE, 8.0), ((90.0, 0.0, 0.0), 8.0))
    assert resolved.counts() == {"positives": 2, "negatives": 1, "labels": 1, "disputed": 0, "held_out": 0}
    assert resolved.counts(["other"]) == {"positives": 0, "negatives": 0, "labels": 0, "disputed": 0, "held_out": 0}


def test_a_label_replaces_the_tables_and_their_place_and_size_stay() -> None:
    resolved = decided(("r", [said("relabel", (1, 1, 0), label="malignant", diameter_mm=30)]))
    assert words(resolved) == ["used as malignancy label, malignant"]
    assert scan(resolved).nodules == (nodule((0, 0, 0), 10, True), MALIGNANT)
    assert scan(resolved).from_tables == (0, 1)
    assert (scan(resolved).excluded, scan(resolved).unjudged, scan(resolved).new) == (TABLES.excluded, (), ())
    assert resolved.counts()["labels"] == 1


def test_one_who_accepts_what_the_tables_exclude_makes_a_positive() -> None:
    resolved = decided(
        ("r", [said("accept", (0, 51, 0), diameter_mm=None), said("relabel", (0, 0, 51), label="benign")])
    )
    assert words(resolved) == ["used as positive, malignancy unknown", "used as positive, benign"]
    change = scan(resolved)
    assert change.unjudged == (Annotation(series_uid=UID, center_xyz=(0, 50, 0), diameter_mm=10),)  # the tables' size
    assert change.nodules[2:] == (nodule((0, 0, 50), 7, False),)  # an annotated one that only lacked a rating
    assert change.excluded == ()


def test_one_who_measured_what_the_tables_exclude_has_the_last_word() -> None:
    change = scan(decided(("r", [said("accept", (0, 51, 0), diameter_mm=4)])))
    assert change.unjudged == (Annotation(series_uid=UID, center_xyz=(0, 51, 0), diameter_mm=4),)


def test_a_nodule_without_a_size_cannot_be_drawn() -> None:
    resolved = decided(("r", [said("accept", diameter_mm=None)]))
    assert words(resolved) == [f"its size is not known: {DISPUTED}"]
    assert scan(resolved).excluded == (*TABLES.excluded, Excluded(series_uid=UID, center_xyz=NOWHERE, diameter_mm=6))
    assert (scan(resolved).unjudged, scan(resolved).nodules) == ((), TABLES.nodules)


def test_one_who_rejects_what_the_tables_annotate_excludes_it() -> None:
    resolved = decided(("r", [said("reject", (51, 0, 0)), said("reject", (0, 50, 0))]))
    assert words(resolved) == [
        f"the tables say otherwise: {DISPUTED}",
        "the tables exclude this place already: nobody learns from it",
    ]
    change = scan(resolved)
    assert (change.nodules, change.from_tables, change.rejected_xyz) == ((BENIGN,), (0,), ())
    left_out = Excluded(series_uid=UID, center_xyz=MALIGNANT.center_xyz, diameter_mm=6)
    assert change.excluded == (*TABLES.excluded, left_out)
    assert resolved.counts()["disputed"] == 1


def test_a_small_nodule_that_is_excluded_is_so_as_far_as_its_place_reaches() -> None:
    small = Nodule(series_uid=UID, center_xyz=(0, 0, 0), diameter_mm=4, malignant=False, ratings=())
    given = versions(("r", [said("reject", (0, 0, 2.9), diameter_mm=2)]))
    (left_out,) = resolve(given, {UID: "train"}, {UID: Tables(nodules=(small,))}).scans[UID].excluded
    assert (left_out.center_xyz, left_out.diameter_mm) == ((0, 0, 0), 6)  # a candidate at 2.9 mm is not mined


def test_the_same_reader_s_later_word_counts() -> None:
    resolved = decided(("r", [said("add")]), ("r", [said("reject", (-50, 1, 0))]), ("r", [said("add", (-50, 2, 0))]))
    assert words(resolved) == ["superseded by 2.1", "superseded by 3.1", "used as positive, malignancy unknown"]
    assert [one.center_xyz for one in scan(resolved).unjudged] == [(-50, 2, 0)]
    within = decided(("r", [said("relabel", label="benign"), said("relabel", label="malignant")]))
    assert words(within) == ["superseded by 1.2", "used as positive, malignant"]


def exported(day: int, *rows: dict[str, Any], number: int, reading: str | None = "2026-01-01T00:00:00Z") -> Version:
    """A version that reader r exported on a day of February."""
    more = {} if reading is None else {"reading": reading}
    held = file(*rows, reader="r", series_uid=UID, exported=f"2026-02-{day:02}T00:00:00Z", **more)
    return Version(number=number, added="", file=check_given(held))


def of(*versions: Version) -> list[str]:
    return words(resolve(versions, {UID: "train"}, {UID: TABLES}))


def test_a_later_export_of_a_reading_takes_back_what_it_no_longer_says() -> None:
    far, positive = said("reject", (90, 0, 0)), "used as positive, malignancy unknown"
    first, second = exported(1, said("add"), far, number=1), exported(2, far, number=2)
    assert of(first, second) == ["superseded by version 2"] * 2 + ["used as hard negative"]
    assert of(second, first) == ["used as hard negative", *["superseded by version 2"] * 2]  # added late, said early
    undone = Version(number=3, added="", undoes=Undo(version=2))
    assert of(first, second, undone) == [positive, "used as hard negative", "undone by version 3"]
    assert replaced_by([first, second]) == {1: 2}
    assert replaced_by([first, exported(1, number=2)]) == {1: 2}  # within a second the version tells


@pytest.mark.parametrize("reading", ["2026-01-01T00:00:01Z", None])
def test_files_of_several_readings_or_of_an_unknown_one_count_place_by_place(reading: str | None) -> None:
    far = said("reject", (90, 0, 0))
    both = exported(1, said("add"), far, number=1, reading=reading), exported(2, far, number=2)
    assert of(*both) == ["used as positive, malignancy unknown", "superseded by 2.1", "used as hard negative"]
    early = exported(1, said("add"), number=2, reading=reading)  # it came late
    assert of(exported(2, said("reject"), number=1), early) == ["used as hard negative", "superseded by 1.1"]


def test_what_was_undone_stays_so_in_a_later_file() -> None:
    undone = Version(number=2, added="", undoes=Undo(version=1, correction=1))
    first, again = exported(1, said("add"), number=1), exported(2, said("add"), said("reject", (90, 0, 0)), number=3)
    assert of(first, undone, again) == ["undone by version 2"] * 2 + ["used as hard negative"]
    back = Version(number=4, added="", undoes=Undo(version=2))
    assert of(first, undone, again, back)[1] == "used as positive, malignancy unknown"
    anew = exported(3, said("add", time="2026-02-02T00:00:00Z"), number=4)  # said once more, after the undoing
    assert of(first, undone, anew) == ["undone by version 2", "used as positive, malignancy unknown"]


def test_a_large_mark_that_is_none_takes_no_nodule_beside_it_away() -> None:
    beside = said("reject", (20, 0, 0), diameter_mm=60)  # 20 mm from a nodule of 10 mm, 30 mm from one of 6 mm
    resolved = decided(("r", [said("accept", (0, 20, 0)), beside]), ("s", [said("accept", (20, 20, 0))]))
    assert words(resolved)[1] == "used as hard negative"
    assert scan(resolved).nodules == TABLES.nodules
    assert scan(resolved).rejected_xyz == ((20, 0, 0),)
    assert len(scan(resolved).unjudged) == 2


def test_in_one_file_a_nodule_outweighs_a_second_mark_on_it() -> None:
    second = said("reject", (-50, 2, 0), finding=13)
    resolved = decided(("r", [said("accept", label="benign"), second]))
    assert words(resolved) == ["used as positive, benign", "superseded by 1.1"]
    apart = decided(("r", [said("accept", (-3.5, 0, 0), diameter_mm=2), said("reject", (3.5, 0, 0), diameter_mm=2)]))
    assert words(apart) == ["the tables say so already", "superseded by 1.1"]  # both are on the tables' nodule


def test_readers_who_disagree_exclude_the_place_also_from_the_tables() -> None:
    resolved = decided(("a", [said("accept"), said("accept", (0, 0, 0))]), ("b", [said("reject", (-50, 3, 0))]),
                       ("b", [said("reject", (0, 0, 4), diameter_mm=None)]))  # fmt: skip
    assert words(resolved) == [f"disputed by a and b: {DISPUTED}"] * 4
    change = scan(resolved)
    assert (change.nodules, change.unjudged, change.rejected_xyz) == ((MALIGNANT,), (), ())
    new = {(e.center_xyz, e.diameter_mm) for e in change.excluded[2:]}
    expected = {(NOWHERE, 8), ((-50, 3, 0), 6), (BENIGN.center_xyz, 10), (BENIGN.center_xyz, 8), ((0, 0, 4), 6)}
    assert new == expected
    assert resolved.counts()["disputed"] == 4


def test_readers_who_agree_on_the_nodule_but_not_on_its_malignancy() -> None:
    rows = ("a", [said("relabel", label="benign")]), ("b", [said("relabel", (-50, 1, 0), label="malignant")])
    resolved = decided(*rows)
    assert words(resolved) == ["used as positive, readers disagree on its malignancy"] * 2
    assert scan(resolved).unjudged == (Annotation(series_uid=UID, center_xyz=(-50, 1, 0), diameter_mm=8),)
    third = decided(*rows, ("b", [said("accept", (-50, 1, 0))]))  # b takes the label back
    assert words(third) == ["used as positive, benign", "superseded by 3.1", "used as positive, benign"]

    annotated = decided(("a", [said("relabel", (0, 0, 0), label="benign")]),
                        ("b", [said("relabel", (0, 1, 0), label="malignant")]))  # fmt: skip
    assert scan(annotated).nodules == (MALIGNANT,)
    assert scan(annotated).unjudged == (Annotation(series_uid=UID, center_xyz=(0, 0, 0), diameter_mm=10),)


def test_readers_who_agree_on_a_rejection_make_one_hard_negative() -> None:
    resolved = decided(("a", [said("reject")]), ("b", [said("reject", (-50, 1, 0))]))
    assert words(resolved) == ["used as hard negative"] * 2
    assert scan(resolved).rejected_xyz == ((-50, 1, 0),)


def test_places_that_chain_are_one_place() -> None:
    first, between, last = said("add", (-60, 0, 0)), said("add", (-56.5, 0, 0)), said("reject", (-53, 0, 0))
    assert (
        words(decided(("a", [first]), ("b", [between]), ("c", [last])))
        == [f"disputed by a and b and c: {DISPUTED}"] * 3
    )
    assert words(decided(("a", [first]), ("c", [last]))) == [
        "used as positive, malignancy unknown",
        "used as hard negative",
    ]


def test_undone_is_undone_until_that_is_undone() -> None:
    given: list[Any] = [("r", [said("add"), said("reject", (90, 0, 0))]), Undo(version=1, correction=1)]
    assert words(decided(*given)) == ["undone by version 2", "used as hard negative"]
    given.append(Undo(version=2))
    assert words(decided(*given)) == ["used as positive, malignancy unknown", "used as hard negative"]
    given.append(Undo(version=1))
    assert words(decided(*given)) == ["undone by version 4"] * 2
    assert decided(*given).scans == {}
    assert decided(*given).version == 4


def test_undoing_what_superseded_brings_the_earlier_back() -> None:
    given: list[Any] = [("r", [said("add")]), ("r", [said("reject")]), Undo(version=2)]
    assert words(decided(*given)) == ["used as positive, malignancy unknown", "undone by version 3"]


@pytest.mark.parametrize(
    ("split", "outcome", "held"),
    [
        ("val", "kept, not trained on (validation scan)", 1),
        ("test", "kept, not trained on (test scan)", 1),
        ("", "kept, not trained on (its scan has no split here)", 0),
    ],
)
def test_held_out_scans_are_never_learned_from(split: str, outcome: str, held: int) -> None:
    resolved = decided(("a", [said("add"), said("note")]), split=split)
    assert words(resolved) == [outcome, "a note, kept"]
    assert resolved.scans == {}
    assert resolved.counts([])["held_out"] == held


def test_a_training_scan_that_is_not_here_changes_nothing() -> None:
    resolved = resolve(versions(("a", [said("add")])), {UID: "train"}, {})
    assert resolved.outcomes == (Outcome(words="kept, not trained on (no run learns from its scan here)"),)
    assert resolved.scans == {}
