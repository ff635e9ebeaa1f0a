"""What must be known to read an evaluation's scores: what matters, beside what, of which models, made how?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from itertools import chain
from typing import get_args

from lungml.compare import LEAST_SCANS, P_VALUE, Statistic
from lungml.froc import MARKS_PER_SCAN
from lungml.pages import Beside, Block, Figures, Gallery, Image, Items, Part, Sheet, Words
from lungml.plots import Origin
from lungml.report_facts import ReportFacts
from lungml.report_numbers import TEST, VALIDATION, Rates
from lungml.score import COLUMNS, ROWS, Table
from lungml.scorecard import Scorecard
from lungml.scored import CALIBRATION_BINS
from lungml.wording import (
    BAND,
    banded,
    commit,
    four,
    left_out,
    listed,
    mean,
    p_value,
    part_of,
    percent,
    percent_banded,
    rate,
    sentences,
    signed,
    signed_edges,
    with_percent,
)
from lungml.worst_cases import Case, Kind

NOT_CLINICAL = "Not for clinical use."
SCORES: dict[Statistic, str] = {
    "cpm": "CPM",
    "sensitivity_at_1_fps": "sensitivity at 1 false positive a scan",
    "found": "nodules found",
    "false_positives": "false positives",
    "malignant_sensitivity": "malignant nodules flagged, share",
    "malignant_false_positives": "false malignant findings, benign nodules included",
    "malignancy_auc": "malignancy AUC, at annotated centres",
    "diameter_auc": "AUC of the diameter alone",
    "end_to_end_malignancy_auc": "malignancy AUC, end to end",
}
COUNTS: tuple[Statistic, ...] = ("found", "false_positives", "malignant_false_positives")
HEADINGS: dict[Kind, str] = {
    "missed": "Missed, without a candidate",
    "filtered out": "Filtered out by the nodule classifier",
    "malignant called benign": "Malignant, called benign",
    "false positive": "False positives, the most probable",
}
ORIGINS: dict[Origin, str] = {"real": "scans of patients", "phantom": "synthetic scans"}
LIMITS_OF = {
    "val": "Validation scans choose the models of a bundle and fit its calibration and thresholds: on them this page "
    "flatters it.",
    "test": "Bundles are promoted by their scores on these scans: the more bundles were tried, the more the score of "
    "the best one flatters it.",
}
LIMITS = (
    "The truth is what radiologists marked and rated in the scans, not what a pathologist found.",
    "A nodule that none of them marked counts as a false positive where it is found.",
    "Bands tell how much other scans of the same kind could change a score; they know nothing of other scanners, "
    "hospitals or people.",
    "Scores at a threshold hold for that threshold; a threshold chosen on these very scans would flatter.",
)


def opening(facts: ReportFacts, card: Scorecard) -> list[Block]:
    """What matters most, and what it must not be used for."""
    table, samples = card.table, card.samples
    scans = f"{len(card.series_uids):,} {'scan' if len(card.series_uids) == 1 else 'scans'}"
    if facts.origin == "phantom":
        data = (
            f"Synthetic scans ({facts.data}, {facts.split_name}, {scans}): nothing here says anything about patients."
        )
    else:
        data = f"CT scans of patients: {facts.data}, {facts.split_name}, {scans}."
    over, alarms, cpm = card.over_diameter, samples["false_positives"].band, samples["cpm"]
    shown = samples["malignant_sensitivity"], samples["false_positives"], samples["malignancy_auc"]
    aside = len(card.set_aside)
    return [
        Words(text=f"{NOT_CLINICAL} {data}", kind="warning"),
        Figures(
            figures=[
                ("CPM, the challenge's score", rate(card.froc.cpm), banded(card.froc.cpm_band) if cpm.tells else ""),
                ("nodules found", part_of(table.found, table.nodules), percent(table.found, table.nodules)),
                (
                    "malignant nodules flagged",
                    part_of(table.malignant_flagged, table.malignant),
                    listed(
                        percent(table.malignant_flagged, table.malignant),
                        percent_banded(samples["malignant_sensitivity"].band),
                    ),
                ),
                (
                    "false positives a scan",
                    mean(table.false_positives, table.scans),
                    banded((alarms[0] / max(1, table.scans), alarms[1] / max(1, table.scans)), digits=1),
                ),
                (
                    "malignancy AUC",
                    rate(over.second),
                    listed(banded(samples["malignancy_auc"].band), f"diameter alone {rate(over.first)}"),
                ),
                (
                    "scans",
                    f"{len(card.series_uids):,}",
                    f"{aside:,} set aside, their nodules missed" if aside else "all read",
                ),
            ]
        ),
        Words(
            text=sentences(
                "Bands are 95 % bootstrap bands over scans.",
                left_out(shown, len(cpm.resampled)),
                "What flatters these scores, or is not known of them, stands under Limits.",
            ),
            kind="note",
        ),
    ]


def beside_the_report(facts: ReportFacts, card: Scorecard) -> Part:
    """The report's table and its other numbers, with the report's own."""
    reported = {"val": [VALIDATION], "test": [TEST]}.get(facts.split, [VALIDATION, TEST])
    note = (
        "The report is the one whose system this software implements. Its numbers are of 89 scans of LUNA16 each, its "
        "validation and its test split; they can be compared with this page's only if that is of the same scans. "
    )
    if facts.origin == "phantom":
        note += "This page is of synthetic scans: no number of the report is a measure for it."
    else:
        note += f"This page is of {facts.data}, {facts.split_name}."
    return Part(
        heading="Beside the report",
        blocks=[
            Words(text=note),
            Beside(
                columns=[
                    [_ends(card.table, f"This bundle, {facts.split_name}")],
                    *([_ends(one.table, f"The report, {one.name}")] for one in reported),
                    [_ends(card.official_table, "This bundle by the challenge's rule")],
                ]
            ),
            Words(text=_rules(card), kind="note"),
            _numbers(card),
            Words(
                text="* The report's two models: fine-tuned / from scratch. Pixels are of full slices that hold a "
                "nodule, by the report's own masks. The report judged its nodule classifier on LUNA16's own list of "
                "candidates; here it is judged on what the segmentation offered: other places. The diameter AUC of "
                "test is not in the report: it was computed from LUNA16's table.",
                kind="note",
            ),
        ],
    )


def comparisons(facts: ReportFacts, card: Scorecard) -> Part:
    """Every score beside another bundle's on the same scans."""
    sheets = []
    for other in facts.compared:
        rows = []
        for name, one in other.differences.items():
            digits = 0 if name in COUNTS else 3
            rows.append(
                [
                    SCORES.get(name, name.replace("_", " ")),
                    rate(one.second, digits),
                    rate(one.first, digits),
                    signed(one.difference, digits),
                    signed_edges(one.band, digits),
                    p_value(one.p_value),
                ]
            )
        head = ["", "this bundle", other.name, "difference", BAND, "p"]
        sheets.append(Sheet(caption=f"This bundle and {other.name} ({other.bundle_uri})", head=head, rows=rows))
    return Part(
        heading="Compared",
        blocks=[
            Words(
                text=sentences(
                    "Paired: both bundles on the same scans and on the same resamples of them. The p values are not "
                    "corrected for how many there are.",
                    left_out(
                        chain(*(other.differences.values() for other in facts.compared)),
                        len(card.samples["cpm"].resampled),
                    ),
                )
            ),
            *sheets,
        ],
    )


def worst(facts: ReportFacts, pictures: Sequence[bytes]) -> Part:
    """Where the bundle was most wrong."""
    blocks: list[Block] = []
    if pictures:
        blocks.append(
            Words(
                text="Axial slices through the middle, -1000 to 400 HU, as a person sees them who looks from the feet; "
                "the ring has the nodule's size, the bar is 10 mm.",
                kind="note",
            )
        )
    for kind in get_args(Kind):
        chosen = [number for number, case in enumerate(facts.cases) if case.kind == kind]
        if not chosen:
            continue
        captions = [_place(facts.cases[number]) for number in chosen]
        blocks.append(Words(text=f"{HEADINGS[kind]}:"))
        if pictures:
            images = [
                Image(png=pictures[number], alt=f"CT slice, {kind}: {facts.cases[number].words}", caption=caption)
                for number, caption in zip(chosen, captions)
            ]
            blocks.append(Gallery(images=images, kind="scans"))
        else:
            blocks.append(Items(texts=captions))
    return Part(heading="The worst cases", blocks=blocks or [Words(text="No case was chosen.")])


def models(facts: ReportFacts, card: Scorecard) -> Part:
    """What was evaluated, on what, when."""
    members = [[m.stage, m.uri, m.recipe or "unknown"] for m in facts.members]
    grouping = ", ".join(f"{name} {value}" for name, value in facts.grouping.items())
    items = [
        f"bundle: {facts.bundle_uri}, put together by code {commit(facts.bundle_commit, 'of no known commit')}",
        f"learned from: {ORIGINS[facts.bundle_origin]}",
        f"grouping: {grouping or 'unknown'}",
        f"thresholds: {_thresholds(card)}; reached counts",
        "calibration: " + ", ".join(f"{name} {method}" for name, method in facts.calibration.items()),
        f"evaluated: {facts.when.astimezone(UTC):%Y-%m-%d %H:%M} UTC, "
        f"code {commit(facts.commit, 'of no known commit')}",
    ]
    return Part(
        heading="Models and settings",
        blocks=[
            Sheet(caption="Models", head=["stage", "model", "recipe"], rows=members, words=frozenset({1, 2})),
            Items(texts=items),
        ],
    )


def limits(facts: ReportFacts) -> Part:
    """What the page cannot tell."""
    first: tuple[str, ...] = (f"{NOT_CLINICAL} A person looks at every result; nothing is decided by it.",)
    if facts.origin == "phantom":
        first += (
            "Synthetic scans are far simpler than patients: a score on them tells that the software works, no more.",
        )
    of_split = [LIMITS_OF[facts.split]] if facts.split in LIMITS_OF else []
    return Part(heading="Limits", blocks=[Items(texts=[*first, *of_split, *facts.limits, *LIMITS])])


def method(facts: ReportFacts, card: Scorecard) -> Part:
    """How the numbers are made."""
    resamples = max((len(one.resampled) for one in card.samples.values()), default=0)
    return Part(
        heading="How the numbers are made",
        blocks=[
            Items(
                texts=[
                    "The report's table: a finding belongs to a nodule when it is nearer than 0.7 of its diameter; of "
                    "several the one that came furthest decides. Found: taken for a nodule, whatever its malignancy.",
                    "The challenge's rules (LUNA16): nearer than the radius; findings that were excluded are neither "
                    f"hits nor false positives; the {MARKS_PER_SCAN} most probable marks of a scan count; sensitivity "
                    "is interpolated linearly at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan, and CPM is the "
                    "mean of the seven. Band: percentiles 2.5 and 97.5 of bootstraps over scans.",
                    f"Other bands and differences: the same percentiles of {resamples:,} resamples of whole scans, the "
                    f"same ones for every bundle; seed {facts.seed}. p = {P_VALUE}; not corrected for how many "
                    "p values there are.",
                    f"No band, and no p, where fewer than {LEAST_SCANS} scans hold what a score is made of (of an AUC: "
                    "a nodule of the rarer kind), or it is defined on fewer than half of the resamples. No band of a "
                    "score, other than of a difference, where all of them give the same. Percentile bands of shares "
                    "near 0 or 1 are too narrow.",
                    "Nodules of scans that were set aside count as missed; the AUC at annotated centres leaves them "
                    "out, for the model and for the diameter alike.",
                    "AUC: exact, over all pairs, ties half. ECE: mean distance of the probability from the share that "
                    f"came true, over {CALIBRATION_BINS} equal bins. Brier: mean squared error of the probability.",
                    "Dice of a nodule: of the marked components that touch it and its mask; 0 without any.",
                ]
            )
        ],
    )


def _thresholds(card: Scorecard) -> str:
    own = card.own_thresholds
    if not own:
        return f"nodule {card.nodule_threshold:.3g}, malignant {card.malignant_threshold:.3g}"
    nodule, malignant = zip(*own)
    return (
        f"each bundle's own, nodule {min(nodule):.3g} to {max(nodule):.3g}, "
        f"malignant {min(malignant):.3g} to {max(malignant):.3g}"
    )


def _ends(table: Table, caption: str) -> Sheet:
    rows = [[name, *(f"{count:,}" for count in counts)] for name, counts in zip(ROWS, table.counts)]
    rows[0][1] = ""  # what is no nodule cannot be missed
    return Sheet(caption=caption, head=["", *COLUMNS], rows=rows)


def _rules(card: Scorecard) -> str:
    text = (
        "A finding belongs to a nodule when it is nearer than 0.7 of the diameter, by the report's rule, or than the "
        "radius, by the challenge's."
    )
    text += (
        " The report's rule knows the rated nodules only: in its table, what was found on an excluded finding or on a "
        "nodule that nobody rated is a non-nodule. The challenge's leaves it out"
    )
    return f"{text}: {card.official_table.ignored_on_excluded:,} here."


def _numbers(card: Scorecard) -> Sheet:
    """This bundle's numbers in a line with the report's."""
    score, over = card.segmentation, card.over_diameter
    nodule = Rates.at(card.nodule, card.nodule_threshold)
    malignant = Rates.at(card.malignancy, card.malignant_threshold)
    nothing = Rates(f1=math.nan, precision=math.nan, recall=math.nan)
    pixels = nothing if score is None else Rates(f1=score.f1, precision=score.precision, recall=score.recall)
    tables = (card.table, VALIDATION.table, TEST.table)
    reported = (VALIDATION, TEST)

    def two(fine_tuned: float, scratch: float) -> str:
        return f"{rate(fine_tuned, 4)} / {rate(scratch, 4)}"

    rows = [
        ["nodules found", *(with_percent(t.found, t.nodules) for t in tables)],
        [
            "malignant flagged",
            *(with_percent(t.malignant_flagged, t.malignant) for t in tables),
        ],
        ["false positives a scan", *(mean(t.false_positives, t.scans) for t in tables)],
        ["non-nodules filtered out a scan", *(mean(t.counts[0][1], t.scans, 0) for t in tables)],
        ["segmentation, pixels: F1", *four(pixels.f1, *(one.segmentation.f1 for one in reported))],
        ["… precision", *four(pixels.precision, *(one.segmentation.precision for one in reported))],
        ["… recall", *four(pixels.recall, *(one.segmentation.recall for one in reported))],
        ["nodule classifier: F1", *four(nodule.f1, *(one.classifier.f1 for one in reported))],
        ["… precision", *four(nodule.precision, *(one.classifier.precision for one in reported))],
        ["… recall", *four(nodule.recall, *(one.classifier.recall for one in reported))],
        ["malignancy AUC *", rate(over.second, 4), *(two(one.fine_tuned_auc, one.scratch_auc) for one in reported)],
        ["… of the diameter alone", rate(over.first), *(rate(one.diameter_auc) for one in reported)],
        ["malignancy F1 *", rate(malignant.f1, 4), *(two(one.fine_tuned.f1, one.scratch.f1) for one in reported)],
    ]
    return Sheet(
        caption="Number by number",
        head=["", "this bundle", "the report, validation", "the report, test"],
        rows=rows,
    )


def _place(case: Case) -> str:
    x, y, z = (f"{mm:.1f}" for mm in case.center_xyz)
    return f"{case.words}. {case.series_uid}, x {x}, y {y}, z {z} mm (LPS)"
