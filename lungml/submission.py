"""How good is anybody's submission to LUNA16, by the challenge's own score?"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lungml import luna
from lungml.errors import one_line
from lungml.froc import FPS_PER_SCAN, MARKS_PER_SCAN, FrocResult, froc
from lungml.luna import CENTER_COLUMNS, Annotation, Excluded, by_series
from lungml.score import finite_or_none
from lungml.tables import SERIES_COLUMN, TableError

TABLES = ("annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
SCORE_COLUMNS = ("probability", "class")  # LUNA16's submissions have the former, its table of candidates the latter
SUBMISSION_HEADER = ",".join([SERIES_COLUMN, *CENTER_COLUMNS, SCORE_COLUMNS[0]])
BOOTSTRAPS = 1000  # LUNA16
RULE = (
    f"LUNA16: a mark hits a nodule nearer than its radius, and the most probable one on a nodule is its score; of a "
    f"scan the {MARKS_PER_SCAN} most probable marks count, without those as probable as the next one; marks on "
    "excluded findings only are ignored; false positives are counted a listed scan; CPM is the mean sensitivity at "
    "1/8, 1/4, 1/2, 1, 2, 4 and 8 of them"
)
COUNTS = (
    "scans", "nodules", "marks", "true_positives", "misses", "false_positives", "ignored_on_excluded",
    "ignored_double_hits", "ignored_beyond_limit",
)  # fmt: skip


class SubmittedMark(NamedTuple):
    """One row of a submission; of its score only the order among all marks counts."""

    center_xyz: tuple[float, float, float]
    prob_nodule: float


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What a submission is held against.

    Attributes:
        series_uids: the scans that are scored, sorted.
        nodules: by series_uid, those of annotations.csv.
        excluded: by series_uid, neither hits nor false positives.
        unlisted_nodules: annotated in scans that are not scored.
    """

    series_uids: tuple[str, ...]
    nodules: Mapping[str, tuple[Annotation, ...]]
    excluded: Mapping[str, tuple[Excluded, ...]]
    unlisted_nodules: int


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The marks of one submission.

    Attributes:
        name: of its file.
        marks: by series_uid, as they were listed.
        duplicates: of them, further rows at the very place of another one.
        unknown: marks left out for being in scans that are not scored.
    """

    name: str
    marks: Mapping[str, tuple[SubmittedMark, ...]]
    duplicates: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class SubmissionScore:
    """How good a submission is; `result` has NaN bands without bootstraps."""

    challenge: Challenge
    submission: Submission
    result: FrocResult
    bootstraps: int
    seed: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should be told beside the figures, a line each."""
        notes = []
        if self.submission.duplicates:
            notes.append(
                f"{self.submission.duplicates} marks repeat the place of another one: each row counts, as in the "
                "challenge's script: on a nodule the most probable one is its score, elsewhere each is a false positive"
            )
        if self.submission.unknown:
            notes.append(f"{self.submission.unknown} marks in series that seriesuids.csv does not list are left out")
        if self.challenge.unlisted_nodules:
            notes.append(
                f"{self.challenge.unlisted_nodules} nodules of annotations.csv are in series that seriesuids.csv does "
                "not list and are left out"
            )
        tied = sum(_is_tied_at_the_limit(marks) for marks in self.submission.marks.values())
        if tied:
            notes.append(
                f"in {tied} scans the mark after the {MARKS_PER_SCAN}th is as probable as it: all that are equal to it "
                "are left out, as by the challenge's script, so that fewer count"
            )
        return tuple(one_line(note) for note in notes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; None for what is not a number."""
        result = self.result
        rates = [f"{fps:g}" for fps in FPS_PER_SCAN]
        sensitivities = [finite_or_none(value) for value in result.sensitivity_at]
        return {
            "submission": self.submission.name,
            "cpm": finite_or_none(result.cpm),
            "cpm_band": [finite_or_none(value) for value in result.cpm_band],
            "fps_per_scan": list(FPS_PER_SCAN),
            "sensitivity_at": sensitivities,
            "sensitivities": dict(zip(rates, sensitivities)),
            "band_low": [finite_or_none(value) for value in result.band_low],
            "band_high": [finite_or_none(value) for value in result.band_high],
            **{name: getattr(result, name) for name in COUNTS},
            "duplicate_marks": self.submission.duplicates,
            "unknown_marks": self.submission.unknown,
            "unlisted_nodules": self.challenge.unlisted_nodules,
            "bootstraps": self.bootstraps,
            "seed": self.seed,
            "band": "95 %, percentiles of resamples of whole scans",
            "rule": RULE,
            "notes": [*self.notes, "not for clinical use"],
        }


def score_submission(
    path: Path, tables_dir: Path, *, ignore_unknown: bool = False, bootstraps: int = BOOTSTRAPS, seed: int = 0
) -> SubmissionScore:
    """Score a submission to LUNA16.

    Args:
        path: see `read_submission`.
        tables_dir: holds annotations.csv, annotations_excluded.csv and seriesuids.csv.
        ignore_unknown: leave out marks in scans that are not listed, as the challenge's script does.
        bootstraps: over scans, for the band; 0 for none.
        seed: of the bootstraps.

    Raises:
        TableError: one of the four files is missing or malformed, there is no nodule to find, or a mark is in a scan
            that is not listed.
    """
    challenge = read_challenge(tables_dir)
    submission = read_submission(path, challenge.series_uids, ignore_unknown=ignore_unknown)
    generator = np.random.default_rng(seed)
    result = froc(
        submission.marks,
        challenge.nodules,
        challenge.excluded,
        challenge.series_uids,
        bootstraps=bootstraps,
        generator=generator,
    )
    return SubmissionScore(challenge=challenge, submission=submission, result=result, bootstraps=bootstraps, seed=seed)


def read_challenge(tables_dir: Path) -> Challenge:
    """Read what submissions are held against.

    Raises:
        TableError: a table is missing or malformed, or no listed scan has a nodule.
    """
    if not tables_dir.is_dir():
        raise TableError(tables_dir, "no such folder", f"name the folder of {', '.join(TABLES)}")
    files = [tables_dir / name for name in TABLES]
    for file in files:
        if not file.exists():  # without the excluded findings the score would be another one, and nobody would see it
            raise TableError(file, "missing", f"name the folder of {', '.join(TABLES)}")
    annotations = luna.read_annotations(files[0])
    excluded = luna.read_excluded(files[1], [])
    listed = luna.read_series_list(files[2]) or ()
    scored = set(listed)
    inside = [nodule for nodule in annotations if nodule.series_uid in scored]
    if not inside:
        problem = f"none of its {len(annotations)} nodules is in a listed scan" if annotations else "it holds no nodule"
        raise TableError(files[0], f"{problem}: there is nothing to be sensitive to", "copy the tables again")
    return Challenge(
        series_uids=listed,
        nodules=by_series(inside),
        excluded=by_series(finding for finding in excluded if finding.series_uid in scored),
        unlisted_nodules=len(annotations) - len(inside),
    )


def read_submission(path: Path, series_uids: Sequence[str], *, ignore_unknown: bool = False) -> Submission:
    """Read a csv file of marks: a header, and of each mark its series, place (mm, LPS) and probability, or any score.

    The columns are seriesuid, coordX, coordY, coordZ and probability or class, in any order and case; further ones,
    blanks around values, blank lines, CRLF and a byte-order mark are fine. A file of a header alone has no marks.

    Args:
        path: the file.
        series_uids: the scans that are scored.
        ignore_unknown: leave out marks in other scans instead of refusing them.

    Raises:
        TableError: which line is wrong, or how many marks are in other scans.
    """
    if not path.is_file():
        problem = "not a plain file" if path.exists() else "no such file"
        raise TableError(path, problem, "give a submission as a csv file")
    scored = set(series_uids)
    found: dict[str, list[SubmittedMark]] = {}
    places_in: dict[str, set[tuple[float, float, float]]] = {}
    repeated, strangers, first = 0, 0, ""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(rows, [])]
            series, *places = _columns_of(header, path)
            for row in rows:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(header):
                    raise _wrong(path, rows.line_num, f"{len(row)} values under {len(header)} columns")
                series_uid = row[series].strip()
                x, y, z, prob = (_number(row[place], header[place], path, rows.line_num) for place in places)
                if series_uid not in scored:
                    strangers += 1
                    first = first or f"{series_uid[:80]!r} in line {rows.line_num}"
                    continue
                mark, taken = SubmittedMark((x, y, z), prob), places_in.setdefault(series_uid, set())
                repeated += mark.center_xyz in taken
                taken.add(mark.center_xyz)
                found.setdefault(series_uid, []).append(mark)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(path, f"not a table ({' '.join(str(error).split())})", "give a csv file") from error
    if strangers and not ignore_unknown:
        raise TableError(
            path,
            f"{strangers} marks are in series that seriesuids.csv does not list, the first of them {first}",
            "correct them, or leave them out as the challenge's script does with --ignore-unknown",
        )
    return Submission(
        name=path.name,
        marks={uid: tuple(marks) for uid, marks in found.items()},
        duplicates=repeated,
        unknown=strangers,
    )


def _columns_of(header: Sequence[str], path: Path) -> list[int]:
    """Where a row holds the series, x, y, z and the score."""
    advice = f"give it the header {SUBMISSION_HEADER}"
    if not header:
        raise TableError(path, "it is empty", f"{advice}, which is enough for a submission without marks")
    names = [name.lower() for name in header]
    score = next((name for name in SCORE_COLUMNS if name in names), SCORE_COLUMNS[0])
    wanted = (SERIES_COLUMN, *CENTER_COLUMNS, score)
    missing = [name for name in wanted if name.lower() not in names]
    if missing:
        raise TableError(path, f"line 1 has no column {', '.join(missing)} but {','.join(header)[:120]}", advice)
    twice = [name for name in wanted if names.count(name.lower()) > 1]
    if twice:
        raise TableError(path, f"line 1 names {twice[0]} twice", advice)
    return [names.index(name.lower()) for name in wanted]


def _number(text: str, column: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(path, line, f"{column} {text.strip()[:40]!r} is not a finite number")
    return value


def _wrong(path: Path, line: int, problem: str) -> TableError:
    return TableError(path, f"line {line}: {problem}", "correct it")


def _is_tied_at_the_limit(marks: Sequence[SubmittedMark]) -> bool:
    if len(marks) <= MARKS_PER_SCAN:
        return False
    probs = sorted((mark.prob_nodule for mark in marks), reverse=True)
    return probs[MARKS_PER_SCAN - 1] == probs[MARKS_PER_SCAN]
