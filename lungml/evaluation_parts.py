"""Which words and tables tell each side of an evaluation?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC
from typing import get_args

from lungml.compare import P_VALUE, Statistic
from lungml.evaluation_plots import FPS_NAMES, FUNNEL, LOST
from lungml.froc import FPS_PER_SCAN, MARKS_PER_SCAN
from lungml.pages import Beside, Block, Figures, Gallery, Image, Items, Part, Sheet, Words
from lungml.report_facts import ReportFacts
from lungml.report_numbers import FUNNEL as REPORTED_FUNNEL
from lungml.report_numbers import TEST, VALIDATION, Rates
from lungml.score import COLUMNS, ROWS, Table
from lungml.scorecard import Group, Losses, Scorecard
from lungml.scored import CALIBRATION_BINS, Scored
from lungml.worst_cases import Case, Kind

NOT_CLINICAL = "Not for clinical use."
SCORES: dict[Statistic, str] = {
    "cpm": "CPM",
    "sensitivity_at_1_fps": "sensitivity at 1 false positive a scan",
    "found": "nodules found",
    "false_positives": "false positives",
    "malignant_sensitivity": "malignant nodules flagged, share",
    "malignant_false_positives": "false positives called malignant",
    "malignancy_auc": "malignancy AUC, at annotated centres",
    "diameter_auc": "AUC of the diameter alone",
    "end_to_end_malignancy_auc": "malignancy AUC, end to end",
}
COUNTS: tuple[Statistic, ...] = ("found", "false_positives", "malignant_false_positives")
HEADINGS: dict[Kind, str] = {
    "missed": "Missed: no candidate",
    "filtered out": "Filtered out by the nodule classifier",
    "malignant called benign": "Malignant, called benign",
    "false positive": "False positives, the most probable",
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
    over, alarms = card.over_diameter, samples["false_positives"].band
    aside = len(card.set_aside)
    return [
        Words(text=f"{NOT_CLINICAL} {data}", kind="warning"),
        Figures(
            figures=[
                ("CPM, the challenge's score", rate(card.froc.cpm), banded(card.froc.cpm_band)),
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
        Words(text="Bands are 95 % bootstrap bands over scans.", kind="note"),
    ]


def beside_the_report(facts: ReportFacts, card: Scorecard) -> Part:
    """The report's table and its other numbers, with the report's own."""
    reported = {"val": [VALIDATION], "test": [TEST]}.get(facts.split, [VALIDATION, TEST])
    note = (
        "The report's numbers are of 89 scans of LUNA16 each, its validation and its test split. They can be compared "
        "with this page's only where that ran on LUNA16 with the report's split. "
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
            *_left_out(card),
            _numbers(card),
            Words(
                text="Pixels are those of full slices that hold a nodule. The report judged its nodule classifier on "
                "LUNA16's own list of candidates; here it is judged on what the segmentation offered, so the two lines "
                "are of different places. Its diameter AUC for test was computed from LUNA16's table.",
                kind="note",
            ),
        ],
    )


def comparisons(facts: ReportFacts) -> Part:
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
        head = ["", "this bundle", other.name, "difference", "95 % band", "p"]
        sheets.append(Sheet(caption=f"This bundle and {other.name} ({other.bundle_uri})", head=head, rows=rows))
    return Part(
        heading="Compared",
        blocks=[
            Words(text="Paired: both bundles on the same scans and on the same resamples of them."),
            *sheets,
        ],
    )


def detection(facts: ReportFacts, card: Scorecard, images: Sequence[Image]) -> Part:
    """FROC and CPM by LUNA16's rules."""
    result = card.froc
    bands = [*zip(result.band_low, result.band_high)] or [(math.nan, math.nan)] * len(FPS_PER_SCAN)
    others = [(other.name, other.card.froc) for other in facts.compared]
    rows = [
        [name, rate(result.sensitivity_at[i]), edges(bands[i]), *(rate(o.sensitivity_at[i]) for _, o in others)]
        for i, name in enumerate(FPS_NAMES)
    ]
    rows.append(["CPM, their mean", rate(result.cpm), edges(result.cpm_band), *(rate(o.cpm) for _, o in others)])
    counts = [
        ("nodules", result.nodules),
        ("with a mark", result.true_positives),
        ("without", result.misses),
        (f"marks, at most {MARKS_PER_SCAN} a scan", result.marks),
        ("false positives", result.false_positives),
        ("ignored: on an excluded finding", result.ignored_on_excluded),
        ("ignored: a second mark on a nodule", result.ignored_double_hits),
        (f"ignored: beyond {MARKS_PER_SCAN} in its scan", result.ignored_beyond_limit),
    ]
    return Part(
        heading="Finding nodules",
        blocks=_beside(
            images,
            Sheet(
                caption="Sensitivity by the challenge's rules",
                head=["false positives a scan", "this bundle", "95 % band", *(name for name, _ in others)],
                rows=rows,
            ),
            Sheet(caption="What was counted", head=["", ""], rows=[[name, f"{n:,}"] for name, n in counts]),
        ),
    )


def kinds(card: Scorecard, images: Sequence[Image]) -> Part:
    """Sensitivity by diameter, slice spacing and texture."""
    given = {"diameter": card.by_diameter, "slice spacing": card.by_spacing, "texture": card.by_texture}
    unknown = [name for name, groups in given.items() if not any(group.nodules for group in groups)]
    blocks = _beside(images, *(_groups(name, groups) for name, groups in given.items() if name not in unknown))
    if unknown:
        blocks.append(Words(text=f"Not known of any nodule here: {', '.join(unknown)}.", kind="note"))
    return Part(heading="Which nodules are found", blocks=blocks)


def malignancy(card: Scorecard, images: Sequence[Image]) -> Part:
    """How well malignant nodules are told from benign ones, and how well the diameter alone tells them."""
    samples, over = card.samples, card.over_diameter
    judged = card.malignancy
    rows = [
        ["model, at annotated centres", rate(over.second), edges(samples["malignancy_auc"].band)],
        ["diameter alone, same nodules", rate(over.first), edges(samples["diameter_auc"].band)],
        ["model less diameter", signed(over.difference), signed_edges(over.band)],
        [
            "end to end, 0 where not found",
            rate(samples["end_to_end_malignancy_auc"].observed),
            edges(samples["end_to_end_malignancy_auc"].band),
        ],
    ]
    return Part(
        heading="Malignant or benign",
        blocks=[
            *_gallery(images),
            Sheet(caption="Area under the ROC curve", head=["", "AUC", "95 % band"], rows=rows),
            Words(
                text=f"Of {judged.positives:,} malignant and {judged.negatives:,} benign annotated nodules; p of the "
                f"difference: {p_value(over.p_value)}. An AUC means nothing without the diameter's beside it.",
                kind="note",
            ),
        ],
    )


def at_thresholds(card: Scorecard, images: Sequence[Image]) -> Part:
    """Right and wrong decisions at the thresholds that are used."""
    rows = []
    for name, scored, threshold in (
        ("nodule or not, findings", card.nodule, card.nodule_threshold),
        ("malignant or benign, annotated nodules", card.malignancy, card.malignant_threshold),
    ):
        rates = _rates(scored, threshold)
        tp, fp, fn, tn = (f"{count:,}" for count in scored.counts(threshold))
        rows.append([name, f"{threshold:.3g}", tp, fp, fn, tn, *map(rate, (rates.precision, rates.recall, rates.f1))])
    return Part(
        heading="At the thresholds",
        blocks=[
            *_gallery(images),
            Sheet(
                caption="Decisions",
                head=["", "threshold", "TP", "FP", "FN", "TN", "precision", "recall", "F1"],
                rows=rows,
            ),
            Words(
                text="TP, FP: said yes, rightly and wrongly; FN, TN: said no, wrongly and rightly. A nodule with two "
                "findings on it counts twice among the findings, one without any does not count there.",
                kind="note",
            ),
        ],
    )


def calibration(facts: ReportFacts, card: Scorecard, images: Sequence[Image]) -> Part:
    """What the probabilities are worth, before and after calibration."""
    rows = []
    for name, shown, raw in (
        ("nodule", card.nodule, facts.uncalibrated.get("nodule")),
        ("malignancy", card.malignancy, facts.uncalibrated.get("malignancy")),
    ):
        if raw is not None:
            rows.append([f"{name}, as the network said it", *_worth(raw)])
        rows.append([name if raw is None else f"{name}, calibrated", *_worth(shown)])
    how = "The probabilities are the networks' own." if facts.calibration == "none" else f"Method: {facts.calibration}."
    return Part(
        heading="What a probability is worth",
        blocks=[
            Words(text=how),
            *_gallery(images),
            Sheet(
                caption="Errors of the probabilities, lower is better", head=["", "samples", "ECE", "Brier"], rows=rows
            ),
        ],
    )


def funnel(card: Scorecard, images: Sequence[Image]) -> Part:
    """What is left of a scan after each stage."""
    rows = [
        [words, amount(getattr(card.funnel, name)), amount(getattr(REPORTED_FUNNEL, name))]
        for name, words in FUNNEL.items()
    ]
    return Part(
        heading="From voxels to findings",
        blocks=[
            *_gallery(images),
            Sheet(caption="A scan, on average", head=["", "this bundle", "the report, roughly"], rows=rows),
        ],
    )


def losses(card: Scorecard, images: Sequence[Image]) -> Part:
    """Where each nodule was lost."""
    both = (card.losses, card.malignant_losses)
    rows = [["annotated", *(f"{one.nodules:,}" for one in both)]]
    rows += [[f"lost: {words}", *(f"{one.lost.get(stage, 0):,}" for one in both)] for stage, (words, _) in LOST.items()]
    rows.append(["came through", *(listed(f"{one.right:,}", percent(one.right, one.nodules)) for one in both)])
    return Part(
        heading="Where nodules were lost",
        blocks=[
            *_gallery(images),
            Sheet(caption="Of the annotated nodules", head=["", "all", "malignant"], rows=rows),
            Words(text="Each is counted once, at the first stage that lost it.", kind="note"),
        ],
    )


def segmentation(card: Scorecard) -> Part:
    """Pixels and nodules that the segmentation marked."""
    score = card.segmentation
    if score is None:
        return Part(heading="Segmentation", blocks=[Words(text="No scan was read: there is nothing to score.")])
    rows = [
        ["slices that hold a nodule", f"{score.slices:,}"],
        ["precision, pixels of them", rate(score.precision)],
        ["recall", rate(score.recall)],
        ["F1", rate(score.f1)],
        ["nodules touched at all", listed(part_of(score.touched, score.nodules), percent(score.touched, score.nodules))],
        ["Dice of a nodule, mean", rate(score.mean_dice)],
        ["Dice of a nodule, median", rate(score.median_dice)],
    ]
    return Part(
        heading="Segmentation",
        blocks=[Sheet(caption="What the segmentation marked", head=["", "this bundle"], rows=rows)],
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
    return Part(heading="The worst cases", blocks=blocks or [Words(text="None were chosen.")])


def models(facts: ReportFacts, card: Scorecard) -> Part:
    """What was evaluated, on what, when."""
    members = [[m.stage, m.uri, m.recipe or "unknown", m.commit[:12] or "unknown"] for m in facts.members]
    grouping = ", ".join(f"{name} {value}" for name, value in facts.grouping.items())
    items = [
        f"bundle: {facts.bundle_uri}",
        f"grouping: {grouping or 'unknown'}",
        f"thresholds: nodule {card.nodule_threshold:.3g}, malignant {card.malignant_threshold:.3g}; reached counts",
        f"calibration: {facts.calibration}",
        f"evaluated: {facts.when.astimezone(UTC):%Y-%m-%d %H:%M} UTC, code {facts.commit[:12] or 'of no known commit'}",
    ]
    if facts.durations_s:
        items.append("time: " + ", ".join(f"{name} {duration(s)}" for name, s in facts.durations_s.items()))
    return Part(
        heading="Models and settings",
        blocks=[
            Sheet(
                caption="Models", head=["stage", "model", "recipe", "code"], rows=members, words=frozenset({1, 2, 3})
            ),
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
    return Part(heading="Limits", blocks=[Items(texts=[*first, *LIMITS, *facts.limits])])


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
                    f"same ones for every bundle; seed {facts.seed}. p = {P_VALUE}.",
                    "Nodules of scans that were set aside count as missed; the AUC at annotated centres leaves them "
                    "out, for the model and for the diameter alike.",
                    "AUC: exact, over all pairs, ties half. ECE: mean distance of the probability from the share that "
                    f"came true, over {CALIBRATION_BINS} equal bins. Brier: mean squared error of the probability.",
                    "Dice of a nodule: of the marked components that touch it and its annotation mask; 0 without any.",
                ]
            )
        ],
    )


def describe(name: str, card: Scorecard) -> str:
    """What a figure shows, for whoever does not see it; the tables beside it have the numbers."""
    at = card.froc.sensitivity_at
    return {
        "froc": f"FROC curve: sensitivity {rate(at[0])} at 1/8, {rate(at[3])} at 1 and {rate(at[-1])} at 8 false "
        f"positives a scan; CPM {rate(card.froc.cpm)}",
        "groups": "Sensitivity at one false positive a scan of nodules by diameter, slice spacing and texture",
        "roc": f"ROC curves: malignancy model, AUC {rate(card.over_diameter.second)}, and diameter alone, AUC "
        f"{rate(card.over_diameter.first)}",
        "confusion_nodule": f"Confusion table of the findings at nodule threshold {card.nodule_threshold:.3g}",
        "confusion_malignancy": f"Confusion table of nodules at malignancy threshold {card.malignant_threshold:.3g}",
        "calibration_nodule": f"Calibration of the nodule probability, ECE {rate(card.nodule.calibration.ece)}",
        "calibration_malignancy": f"Calibration of the malignancy probability, ECE "
        f"{rate(card.malignancy.calibration.ece)}",
        "funnel": f"Bars: of {amount(card.funnel.voxels)} voxels a scan {amount(card.funnel.candidates)} "
        f"candidates and {amount(card.funnel.nodules)} taken for nodules are left",
        "losses": f"Bars: {card.losses.right:,} of {card.losses.nodules:,} nodules came through, of the malignant "
        f"{card.malignant_losses.right:,} of {card.malignant_losses.nodules:,}",
    }[name]


def _ends(table: Table, caption: str) -> Sheet:
    rows = [[name, *(f"{count:,}" for count in counts)] for name, counts in zip(ROWS, table.counts)]
    rows[0][1] = ""  # what is no nodule cannot be missed
    return Sheet(caption=caption, head=["", *COLUMNS], rows=rows)


def _left_out(card: Scorecard) -> list[Block]:
    ignored = card.official_table.ignored_on_excluded
    return (
        [Words(text=f"On excluded findings, in no cell of the last table: {ignored:,}.", kind="note")]
        if ignored
        else []
    )


def _numbers(card: Scorecard) -> Sheet:
    """This bundle's numbers in a line with the report's."""
    score, over = card.segmentation, card.over_diameter
    nodule = _rates(card.nodule, card.nodule_threshold)
    malignant = _rates(card.malignancy, card.malignant_threshold)
    nothing = Rates(f1=math.nan, precision=math.nan, recall=math.nan)
    pixels = nothing if score is None else Rates(f1=score.f1, precision=score.precision, recall=score.recall)
    tables = (card.table, VALIDATION.table, TEST.table)
    reported = (VALIDATION, TEST)
    rows = [
        ["nodules found", *(listed(part_of(t.found, t.nodules), percent(t.found, t.nodules)) for t in tables)],
        [
            "malignant flagged",
            *(listed(part_of(t.malignant_flagged, t.malignant), percent(t.malignant_flagged, t.malignant)) for t in tables),
        ],
        ["false positives a scan", *(mean(t.false_positives, t.scans) for t in tables)],
        ["non-nodules filtered out a scan", *(mean(t.counts[0][1], t.scans, 0) for t in tables)],
        ["segmentation, pixels: F1", *four(pixels.f1, *(one.segmentation.f1 for one in reported))],
        ["… precision", *four(pixels.precision, *(one.segmentation.precision for one in reported))],
        ["… recall", *four(pixels.recall, *(one.segmentation.recall for one in reported))],
        ["nodule classifier: F1", *four(nodule.f1, *(one.classifier.f1 for one in reported))],
        ["… precision", *four(nodule.precision, *(one.classifier.precision for one in reported))],
        ["… recall", *four(nodule.recall, *(one.classifier.recall for one in reported))],
        ["malignancy AUC (report: fine-tuned)", *four(over.second, *(one.fine_tuned_auc for one in reported))],
        ["malignancy AUC (report: from scratch)", *four(over.second, *(one.scratch_auc for one in reported))],
        ["… of the diameter alone", rate(over.first), *(rate(one.diameter_auc) for one in reported)],
        ["malignancy F1 (report: fine-tuned)", *four(malignant.f1, *(one.fine_tuned.f1 for one in reported))],
        ["malignancy F1 (report: from scratch)", *four(malignant.f1, *(one.scratch.f1 for one in reported))],
    ]
    return Sheet(
        caption="Number by number",
        head=["", "this bundle", "the report, validation", "the report, test"],
        rows=rows,
    )


def _groups(name: str, groups: Sequence[Group]) -> Sheet:
    rows = [
        [group.name, f"{group.nodules:,}", f"{group.found:,}", rate(group.sensitivity), edges(group.band)]
        for group in groups
        if group.nodules
    ]
    return Sheet(
        caption=f"By {name}",
        head=["", "nodules", "found", "sensitivity at 1 false positive a scan", "95 % band"],
        rows=rows,
    )


def _rates(scored: Scored, threshold: float) -> Rates:
    """NaN where nothing is to be counted."""
    tp, fp, fn, _ = scored.counts(threshold)
    return Rates(
        f1=2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
        precision=tp / (tp + fp) if tp + fp else math.nan,
        recall=tp / (tp + fn) if tp + fn else math.nan,
    )


def _worth(scored: Scored) -> list[str]:
    found = scored.calibration
    return [f"{int(found.samples.sum()):,}", rate(found.ece), rate(found.brier)]


def _place(case: Case) -> str:
    x, y, z = (f"{mm:.1f}" for mm in case.center_xyz)
    return f"{case.words}. {case.series_uid}, x {x}, y {y}, z {z} mm (LPS)"


def _gallery(images: Sequence[Image]) -> list[Block]:
    return [Gallery(images=images)] if images else []


def _beside(images: Sequence[Image], *blocks: Block) -> list[Block]:
    """Figures, and what belongs to them to their right."""
    return [Beside(columns=[_gallery(images), blocks])] if images and blocks else [*_gallery(images), *blocks]
