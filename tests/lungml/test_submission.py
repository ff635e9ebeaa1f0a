"""A submission to LUNA16 scores what its rules give by hand, and what is wrong with it is said in one line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from lungml.froc import FPS_PER_SCAN
from lungml.submission import SubmissionScore, read_challenge, read_submission, score_submission
from lungml.tables import TableError

HEADER = "seriesuid,coordX,coordY,coordZ,probability"
TABLE = "seriesuid,coordX,coordY,coordZ,diameter_mm"
# Two marks on the nodule of 1.1, one of the two nodules of 1.2 found, one mark on the excluded finding of 1.3 (10 mm),
# and false positives at 0.8 and 0.7.
MARKS = [
    "1.1,1,0,0,0.9", "1.1,2,0,0,0.95", "1.1,100,0,0,0.7", "1.2,0,0,0,0.6", "1.3,4,0,0,0.99", "1.4,0,0,0,0.8",
]  # fmt: skip


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Four scans, three nodules of 10 mm, one excluded finding without a size."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "annotations.csv").write_text(f"{TABLE}\n1.1,0,0,0,10\n1.2,0,0,0,10\n1.2,50,0,0,10\n")
    (folder / "annotations_excluded.csv").write_text(f"{TABLE}\n1.3,0,0,0,-1\n")
    (folder / "seriesuids.csv").write_text("1.1\n1.2\n1.3\n1.4\n")
    return folder


@pytest.fixture
def scored(tables: Path, tmp_path: Path) -> Callable[..., SubmissionScore]:
    def score(lines: Sequence[str], header: str = HEADER, end: str = "\n", **options: Any) -> SubmissionScore:
        path = tmp_path / "marks.csv"
        path.write_bytes(end.join([header, *lines, ""]).encode())
        return score_submission(path, tables, **options)

    return score


def test_a_submission_scores_what_a_hand_counts(scored: Callable[..., SubmissionScore]) -> None:
    said = scored(MARKS).as_dict()
    # The curve: (0, 1/3) at 0.95, two false positives to (1/2, 1/3) at 0.7, up to (1/2, 2/3) at 0.6.
    third = 1 / 3
    assert said["sensitivity_at"] == pytest.approx([third, third, *[2 * third] * 5])
    assert said["sensitivities"] == dict(zip(["0.125", "0.25", "0.5", "1", "2", "4", "8"], said["sensitivity_at"]))
    assert said["cpm"] == pytest.approx(4 / 7)
    counts = ("scans", "nodules", "marks", "true_positives", "misses", "false_positives")
    assert [said[name] for name in counts] == [4, 3, 6, 2, 1, 2]
    ignored = ("ignored_on_excluded", "ignored_double_hits", "ignored_beyond_limit", "duplicate_marks", "unknown_marks")
    assert [said[name] for name in ignored] == [1, 1, 0, 0, 0]
    assert said["cpm_band"][0] < said["cpm"] < said["cpm_band"][1]
    assert len(said["band_low"]) == len(said["band_high"]) == 7
    assert (said["bootstraps"], said["seed"], said["notes"]) == (1000, 0, ["not for clinical use"])
    json.dumps(said, allow_nan=False)


def test_the_band_is_that_of_the_seed(scored: Callable[..., SubmissionScore]) -> None:
    # Resamples of four scans take few values, so that percentiles of many would agree under any seed.
    one, again, other = (scored(MARKS, seed=seed, bootstraps=7).as_dict() for seed in (1, 1, 2))
    assert one == again
    assert one["cpm"] == other["cpm"]
    assert (one["cpm_band"], one["band_low"]) != (other["cpm_band"], other["band_low"])
    without = scored(MARKS, bootstraps=0).as_dict()
    assert (without["cpm"], without["cpm_band"], without["band_low"]) == (one["cpm"], [None, None], [])


@pytest.mark.parametrize(
    ("header", "end", "row"),
    [
        ("\ufeffprobability, coordZ , seriesuid,coordX,coordY", "\r\n", "{p}, {z} ,{u},{x}, {y}"),
        ("SERIESUID,coordx,coordy,coordz,class,reader", "\n", "{u},{x},{y},{z},{p},me"),
        ('"seriesuid","coordX","coordY","coordZ","probability","class"', "\n", '"{u}","{x}",{y},{z},{p},1'),
        (HEADER, "\n\n", " {u} ,{x}e0,{y},{z},{p}"),
    ],
)
def test_columns_stand_in_any_order_and_dress(
    header: str, end: str, row: str, scored: Callable[..., SubmissionScore]
) -> None:
    plain = scored(MARKS).as_dict()
    lines = [row.format(**dict(zip("uxyzp", mark.split(",")))) for mark in MARKS]
    assert scored(lines, header, end).as_dict() == plain


def test_a_score_need_be_no_probability(scored: Callable[..., SubmissionScore]) -> None:
    logits = [f"{place},{10 * float(prob) - 7}" for place, prob in (mark.rsplit(",", 1) for mark in MARKS)]
    assert scored(logits).result.sensitivity_at == scored(MARKS).result.sensitivity_at


def test_a_submission_without_marks_is_a_poor_one(scored: Callable[..., SubmissionScore]) -> None:
    said = scored([]).as_dict()
    assert (said["cpm"], said["cpm_band"], said["marks"], said["misses"]) == (0.0, [0.0, 0.0], 0, 3)


def test_every_row_counts_even_at_the_place_of_another(scored: Callable[..., SubmissionScore]) -> None:
    # On a nodule the best row is its score and the others are ignored; elsewhere each is one more false positive.
    repeated = scored([*MARKS, "1.4,0,0,0,0.75", "1.2,0,0,0,0.85", "1.2,0,0,-0.0,0.1", "1.3,4,0,0,0.99"])
    said = repeated.as_dict()
    counts = ("duplicate_marks", "marks", "false_positives", "ignored_double_hits", "ignored_on_excluded")
    assert [said[name] for name in counts] == [4, 10, 3, 3, 2]
    # (0, 1/3) at 0.95, (0, 2/3) at 0.85, then false positives at 0.8, 0.75 and 0.7 of four scans.
    assert repeated.result.fps_per_scan == (0.0, 0.0, 0.0, 0.75)
    assert said["cpm"] == pytest.approx(2 / 3)
    (note,) = repeated.notes
    assert note.startswith("4 marks repeat the place of another one: each row counts")
    assert note in said["notes"]


def test_a_repeated_false_positive_costs_as_much_as_another_one(scored: Callable[..., SubmissionScore]) -> None:
    twice, elsewhere = (scored([*MARKS, row]).as_dict() for row in ("1.4,0,0,0,0.8", "1.4,90,0,0,0.8"))
    assert (twice["cpm"], twice["false_positives"]) == (elsewhere["cpm"], elsewhere["false_positives"])
    assert twice["cpm"] < scored(MARKS).as_dict()["cpm"]


def test_marks_in_a_scan_that_is_not_listed_are_refused_unless_they_shall_be_left_out(
    scored: Callable[..., SubmissionScore],
) -> None:
    lines = [MARKS[0], "9.9,0,0,0,0.99", *MARKS[1:], "8.8,0,0,0,0.99"]
    with pytest.raises(TableError, match=r"2 marks are in series .* first of them '9\.9' in line 3; .*--ignore-unknow"):
        scored(lines)
    left_out = scored(lines, ignore_unknown=True)
    assert left_out.result == scored(MARKS).result
    assert left_out.as_dict()["unknown_marks"] == 2
    assert left_out.notes[0].startswith("2 marks in series that seriesuids.csv does not list")


def test_equal_marks_at_the_limit_are_said(scored: Callable[..., SubmissionScore]) -> None:
    lines = [f"1.4,{20 * i},0,0,0.5" for i in range(101)]
    tied = scored(lines)
    (note,) = tied.notes
    assert note.startswith(
        "in 1 scans the mark after the 100th is as probable as it: all that are equal to it are left"
    )
    assert (tied.result.marks, tied.result.ignored_beyond_limit) == (0, 101)
    assert scored(lines[:100]).notes == ()
    assert scored([*lines[:100], "1.4,9000,0,0,0.4"]).notes == ()


def test_the_order_of_more_than_a_hundred_equal_rows_decides_nothing(scored: Callable[..., SubmissionScore]) -> None:
    sure = [f"1.1,{100 + 20 * i},0,0,0.9" for i in range(60)]
    equal = ["1.1,0,0,0,0.5", *(f"1.1,{-100 - 20 * i},0,0,0.5" for i in range(110))]
    plain = scored([*sure, *equal, "1.2,0,0,0,0.4"])
    assert (plain.result.marks, plain.result.ignored_beyond_limit, plain.result.true_positives) == (61, 111, 1)
    rows, rng = [*sure, *equal, "1.2,0,0,0,0.4"], np.random.default_rng(0)
    for _ in range(3):
        shuffled = [rows[i] for i in rng.permutation(len(rows)).tolist()]
        assert scored(shuffled).as_dict() == plain.as_dict()


@pytest.mark.parametrize(
    ("lines", "header", "problem"),
    [
        (["1.1,0,0,0,nan"], HEADER, "line 2: probability 'nan' is not a finite number; correct it"),
        ([*MARKS, "", "1.1,0,-inf,0,0.5"], HEADER, "line 9: coordY '-inf' is not a finite number"),
        (["1.1,0,0,,0.5"], HEADER, "line 2: coordZ '' is not a finite number"),
        (["1.1,0,0,0,high"], HEADER, "line 2: probability 'high' is not a finite number"),
        (["1.1,0,0,0"], HEADER, "line 2: 4 values under 5 columns"),
        (["1.1,0,0,0,0.5,1"], HEADER, "line 2: 6 values under 5 columns"),
        ([], "seriesuid,coordX,coordY,score", f"line 1 has no column coordZ, probability but .*give it .* {HEADER}"),
        ([], "1.1,0,0,0,0.5", "line 1 has no column seriesuid, coordX, coordY, coordZ, probability but 1.1,0,0,0,0.5"),
        ([], "seriesuid;coordX;coordY;coordZ;probability", "line 1 has no column seriesuid"),
        ([], HEADER + ",Probability", "line 1 names probability twice"),
        ([], "", "it is empty; give it the header"),
        (['1.1,0,0,0,"0.5'], HEADER, "not a table"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_line(
    lines: list[str], header: str, problem: str, scored: Callable[..., SubmissionScore]
) -> None:
    with pytest.raises(TableError, match=problem) as said:
        scored(lines, header)
    assert "marks.csv: " in str(said.value)
    assert "\n" not in str(said.value)


def test_what_is_no_text_is_said(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.raw").write_bytes(b"\xff\xfe\x00\x01" * 8)
    with pytest.raises(TableError, match=r"scan\.raw: not a table"):
        read_submission(tmp_path / "scan.raw", ["1.1"])
    with pytest.raises(TableError, match=r"none\.csv: no such file"):
        read_submission(tmp_path / "none.csv", ["1.1"])
    with pytest.raises(TableError, match="not a plain file"):
        read_submission(tmp_path, ["1.1"])


def test_nodules_of_other_scans_are_left_out_and_counted(tables: Path, scored: Callable[..., SubmissionScore]) -> None:
    with (tables / "annotations.csv").open("a") as handle:
        handle.write("9.9,0,0,0,10\n")
    assert scored(MARKS).result.nodules == 3
    assert scored(MARKS).notes == ("1 nodules of annotations.csv are in series that seriesuids.csv does not list and are left out",)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("annotations.csv", None, "annotations.csv: missing; name the folder of annotations.csv, annotations_excl"),
        ("annotations_excluded.csv", None, "annotations_excluded.csv: missing"),
        ("seriesuids.csv", None, "seriesuids.csv: missing"),
        ("seriesuids.csv", "", "seriesuids.csv: it is empty"),
        ("annotations.csv", f"{TABLE}\n", "annotations.csv: it holds no nodule: there is nothing to be sensitive to"),
        ("annotations.csv", f"{TABLE}\n9.9,0,0,0,5\n", "none of its 1 nodules is in a listed scan"),
        ("annotations.csv", "", "annotations.csv: it is empty"),
        ("annotations.csv", f"{TABLE}\n1.1,0,0,0,-1\n", "line 2: diameter_mm is not positive"),
    ],
)
def test_tables_that_measure_nothing_are_refused(name: str, text: str | None, problem: str, tables: Path) -> None:
    if text is None:
        (tables / name).unlink()
    else:
        (tables / name).write_text(text)
    with pytest.raises(TableError, match=problem) as said:
        read_challenge(tables)
    assert "\n" not in str(said.value)
    with pytest.raises(TableError, match="no such folder"):
        read_challenge(tables / "none")


# The challenge's rules once more, as plain as they can be told.


def by_the_rules(folder: Path, submission: Path) -> tuple[list[float], dict[str, int]]:
    """Sensitivity at the seven rates, and counts."""

    def rows(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as handle:
            return list(csv.DictReader(handle))

    def distance(one: dict[str, str], other: dict[str, str]) -> float:
        return math.dist(*[[float(row[axis]) for axis in ("coordX", "coordY", "coordZ")] for row in (one, other)])

    def radius(place: dict[str, str]) -> float:
        diameter = float(place["diameter_mm"])
        return (10.0 if diameter < 0 else diameter) / 2

    series = (folder / "seriesuids.csv").read_text().split()
    truth, marks = rows(folder / "annotations.csv"), rows(submission)
    excluded = rows(folder / "annotations_excluded.csv")
    labels: list[int] = []
    probs: list[float] = []
    counts = dict.fromkeys(("misses", "false_positives", "ignored_on_excluded", "ignored_double_hits"), 0)
    for uid in series:
        own = sorted((m for m in marks if m["seriesuid"] == uid), key=lambda m: -float(m["probability"]))
        if len(own) > 100:
            own = [mark for mark in own if float(mark["probability"]) > float(own[100]["probability"])]
        left = list(own)
        for nodule in (row for row in truth if row["seriesuid"] == uid):
            on_it = [mark for mark in own if distance(mark, nodule) < radius(nodule)]
            left = [mark for mark in left if mark not in on_it]
            if on_it:
                labels.append(1)
                probs.append(max(float(mark["probability"]) for mark in on_it))
                counts["ignored_double_hits"] += len(on_it) - 1
            else:
                counts["misses"] += 1
        for place in (row for row in excluded if row["seriesuid"] == uid):
            on_it = [mark for mark in left if distance(mark, place) < radius(place)]
            left = [mark for mark in left if mark not in on_it]
            counts["ignored_on_excluded"] += len(on_it)
        labels += [0] * len(left)
        probs += [float(mark["probability"]) for mark in left]
        counts["false_positives"] += len(left)
    fpr, tpr, _ = roc_curve(labels, probs)
    fps, sensitivity = fpr * labels.count(0) / len(series), tpr * labels.count(1) / len(truth)
    return [float(value) for value in np.interp(FPS_PER_SCAN, fps, sensitivity)], counts


@pytest.mark.parametrize("seed", range(3))
def test_random_submissions_score_as_the_rules_say(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    uids = [f"1.{i}" for i in range(12)]
    nodules, excluded, marks = [], [], []
    for uid in uids:
        for i in range(int(rng.integers(0, 4))):
            nodules.append([uid, 60 * i, 0, 0, rng.uniform(4, 20)])
        excluded += [[uid, *rng.uniform(-25, 25, 3), rng.choice([-1, 8])] for _ in range(6)]
        for _, x, y, z, diameter in (row for row in nodules if row[0] == uid):
            for _ in range(int(rng.integers(0, 4))):
                marks.append([uid, *(np.array([x, y, z]) + rng.normal(0, diameter / 4, 3)), rng.beta(4, 2)])
        count = 140 if uid == "1.3" else int(rng.integers(0, 30))
        marks += [[uid, *rng.uniform(-25, 25, 3), round(rng.beta(2, 3), 2)] for _ in range(count)]
    marks += [marks[i] for i in rng.integers(len(marks), size=8).tolist()]
    for name, header, rows in (
        ("annotations.csv", TABLE, nodules),
        ("annotations_excluded.csv", TABLE, excluded),
        ("marks.csv", HEADER, marks),
    ):
        with (tmp_path / name).open("w", newline="") as handle:
            csv.writer(handle).writerows([header.split(","), *rows])
    (tmp_path / "seriesuids.csv").write_text("\n".join(uids))
    expected, counts = by_the_rules(tmp_path, tmp_path / "marks.csv")
    said = score_submission(tmp_path / "marks.csv", tmp_path, bootstraps=0).as_dict()
    np.testing.assert_allclose(said["sensitivity_at"], expected, atol=1e-12)
    assert said["cpm"] == pytest.approx(np.mean(expected))
    assert {name: said[name] for name in counts} == counts
    assert min(counts.values()) > 0
    assert said["ignored_beyond_limit"] >= 40
    assert said["duplicate_marks"] == 8
