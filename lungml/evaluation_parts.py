"""Which words and tables tell each score of an evaluation?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from lungml.accounting import Group
from lungml.calibration import Probability
from lungml.evaluation_plots import FPS_NAMES, FUNNEL, LOST
from lungml.froc import FPS_PER_SCAN, MARKS_PER_SCAN
from lungml.pages import Beside, Block, Gallery, Image, Part, Sheet, Words
from lungml.report_facts import ReportFacts
from lungml.report_numbers import FUNNEL as REPORTED_FUNNEL
from lungml.report_numbers import Rates
from lungml.scorecard import Scorecard
from lungml.scored import Scored
from lungml.wording import (
    BAND,
    amount,
    edges,
    left_out,
    listed,
    p_value,
    percent,
    rate,
    sentences,
    signed,
    signed_edges,
    with_percent,
)

NO_BAND = math.nan, math.nan
UNCALIBRATED = "as the network said it"
OWN_THRESHOLDS = (
    "These are scans of several bundles, and each decided at its own thresholds. Only here, and where a figure marks a "
    "threshold, all are judged at the one shown."
)
LUNGS_ONLY = (
    "Only the lungs and a margin were segmented, where they could be told: pixels outside of them can be no false "
    "positives, those of the report's table can."
)


def detection(facts: ReportFacts, card: Scorecard, images: Sequence[Image]) -> Part:
    """FROC and CPM by LUNA16's rules."""
    result = card.froc
    cpm_band, bands = result.cpm_band, [*zip(result.band_low, result.band_high)]
    if not bands or not card.samples["cpm"].tells:
        cpm_band, bands = NO_BAND, [NO_BAND] * len(FPS_PER_SCAN)
    others = [(other.name, other.card.froc) for other in facts.compared]
    rows = [
        [name, rate(result.sensitivity_at[i]), edges(bands[i]), *(rate(o.sensitivity_at[i]) for _, o in others)]
        for i, name in enumerate(FPS_NAMES)
    ]
    rows.append(["CPM, their mean", rate(result.cpm), edges(cpm_band), *(rate(o.cpm) for _, o in others)])
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
                head=["false positives a scan", "this bundle", BAND, *(name for name, _ in others)],
                rows=rows,
            ),
            Sheet(caption="What was counted", head=["", ""], rows=[[name, f"{n:,}"] for name, n in counts]),
        ),
    )


def kinds(card: Scorecard, images: Sequence[Image]) -> Part:
    """Sensitivity by diameter, slice spacing and texture."""
    given = {"diameter": card.by_diameter, "slice spacing": card.by_spacing, "texture": card.by_texture}
    unknown = [name for name, groups in given.items() if not any(group.nodules for group in groups)]
    note = sentences(
        "Found: in the report's table. Sensitivity: by the challenge's rules, where all have one false positive a "
        "scan.",
        left_out(chain(*given.values()), len(card.samples["cpm"].resampled)),
    )
    sheets: list[Block] = [_groups(name, groups) for name, groups in given.items() if name not in unknown]
    blocks = _beside(images, *sheets, *([Words(text=note, kind="note")] if sheets else []))
    if unknown:
        blocks.append(Words(text=f"Not known of any nodule here: {', '.join(unknown)}.", kind="note"))
    return Part(heading="Which nodules are found", blocks=blocks)


def malignancy(card: Scorecard, images: Sequence[Image]) -> Part:
    """How well malignant nodules are told from benign ones, and how well the diameter alone tells them."""
    samples, over = card.samples, card.over_diameter
    judged, end_to_end = card.malignancy, samples["end_to_end_malignancy_auc"]
    rows = [
        ["model, at annotated centres", rate(over.second), edges(samples["malignancy_auc"].band)],
        ["diameter alone, same nodules", rate(over.first), edges(samples["diameter_auc"].band)],
        ["model less diameter", signed(over.difference), signed_edges(over.band)],
        [
            "end to end, 0 where not found",
            rate(end_to_end.observed),
            edges(end_to_end.band),
        ],
    ]
    return Part(
        heading="Malignant or benign",
        blocks=_beside(
            images,
            Sheet(caption="Area under the ROC curve", head=["", "AUC", BAND], rows=rows),
            Words(
                text=sentences(
                    f"Of {judged.positives:,} malignant and {judged.negatives:,} benign annotated nodules; p of the "
                    f"difference: {p_value(over.p_value)}. An AUC means nothing without the diameter's beside it.",
                    left_out((samples["malignancy_auc"], over, end_to_end), len(end_to_end.resampled)),
                ),
                kind="note",
            ),
        ),
    )


def at_thresholds(card: Scorecard, images: Sequence[Image]) -> Part:
    """Right and wrong decisions at the thresholds that are used."""
    rows = []
    for name, scored, threshold in (
        ("nodule or not, findings", card.nodule, card.nodule_threshold),
        ("malignant or benign, annotated nodules", card.malignancy, card.malignant_threshold),
    ):
        rates = Rates.at(scored, threshold)
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
                text=sentences(
                    "TP, FP: said yes, rightly and wrongly; FN, TN: said no, wrongly and rightly. A finding is on a "
                    "nodule within its radius: one with two findings counts twice here, one without any does not "
                    "count.",
                    OWN_THRESHOLDS if card.own_thresholds else "",
                ),
                kind="note",
            ),
        ],
    )


def calibration(facts: ReportFacts, card: Scorecard, images: Sequence[Image]) -> Part:
    """What the probabilities are worth, before and after calibration."""
    rows = []
    judged: dict[Probability, Scored] = {"nodule": card.nodule, "malignancy": card.malignancy}
    for name, shown in judged.items():
        if name in facts.uncalibrated:
            rows.append([f"{name}, {UNCALIBRATED}", *_worth(facts.uncalibrated[name])])
        rows.append([f"{name}, {method_of(facts, name)}", *_worth(shown)])
    fitted = [name for name in judged if facts.calibration[name] != "none"]
    if fitted:
        how = "A logistic curve (platt) was fitted to the probability of: " + ", ".join(fitted) + "."
        how += "" if len(fitted) == len(judged) else " None could be fitted to the other: it is the networks' own."
    else:
        how = "The probabilities are the networks' own."
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
        blocks=_beside(
            images,
            Sheet(caption="A scan, on average", head=["", "this bundle", "the report, roughly"], rows=rows),
        ),
    )


def losses(card: Scorecard, images: Sequence[Image]) -> Part:
    """Where each nodule was lost."""
    both = (card.losses, card.malignant_losses)
    rows = [["annotated", *(f"{one.nodules:,}" for one in both)]]
    rows += [[words, *(f"{one.lost.get(stage, 0):,}" for one in both)] for stage, (words, _) in LOST.items()]
    rows.append(["came through", *(listed(f"{one.right:,}", percent(one.right, one.nodules)) for one in both)])
    return Part(
        heading="Where nodules were lost",
        blocks=_beside(
            images,
            Sheet(caption="Of the annotated nodules", head=["", "all", "malignant"], rows=rows),
            Words(
                text="Each is counted once, at the first stage that lost it; a benign one called malignant is found. "
                "Not marked: no voxel of it is above the lowest probability at which grouping looks. Lost in grouping: "
                "some are, but no candidate lies near; one beyond the limit of candidates a scan, or outside the lungs "
                "where only these were read, counts as lost there too.",
                kind="note",
            ),
        ),
    )


def segmentation(facts: ReportFacts, card: Scorecard) -> Part:
    """Pixels and nodules that the segmentation marked."""
    score = card.segmentation
    if score is None:
        return Part(heading="Segmentation", blocks=[Words(text="No scan was read: there is nothing to score.")])
    rows = [
        ["slices that hold a nodule", f"{score.slices:,}"],
        ["precision, pixels of them", rate(score.precision)],
        ["recall", rate(score.recall)],
        ["F1", rate(score.f1)],
        ["nodules touched at all", with_percent(score.touched, score.nodules)],
        ["Dice of a nodule, mean", rate(score.mean_dice)],
        ["Dice of a nodule, median", rate(score.median_dice)],
    ]
    return Part(
        heading="Segmentation",
        blocks=[
            Sheet(caption="What the segmentation marked", head=["", "this bundle"], rows=rows),
            Words(
                text=sentences(
                    'Pixels: by masks of the rule "report", which grow from a nodule\'s centre as far as tissue goes, '
                    "vessels and wall included, as in the report's table. Touched and Dice: by masks of the rule "
                    '"bounded", tissue within the annotated diameter. A nodule is touched where a voxel of it is above '
                    "the lowest probability at which grouping looks; pixels and Dice are of voxels above the "
                    "threshold.",
                    LUNGS_ONLY if facts.lungs_only else "",
                ),
                kind="note",
            ),
        ],
    )


def method_of(facts: ReportFacts, name: Probability) -> str:
    """What was done to a probability."""
    method = facts.calibration[name]
    return UNCALIBRATED if method == "none" else f"calibrated ({method})"


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
        "calibration_nodule": f"Calibration of the nodule probability, ECE {rate(card.nodule.reliability.ece)}",
        "calibration_malignancy": f"Calibration of the malignancy probability, ECE "
        f"{rate(card.malignancy.reliability.ece)}",
        "funnel": f"Bars: of {amount(card.funnel.voxels)} voxels a scan {amount(card.funnel.candidates)} "
        f"candidates and {amount(card.funnel.nodules)} taken for nodules are left",
        "losses": f"Bars: {card.losses.right:,} of {card.losses.nodules:,} nodules came through, of the malignant "
        f"{card.malignant_losses.right:,} of {card.malignant_losses.nodules:,}",
    }[name]


def _groups(name: str, groups: Sequence[Group]) -> Sheet:
    rows = [
        [group.name, f"{group.nodules:,}", f"{group.found:,}", rate(group.sensitivity), edges(group.band)]
        for group in groups
        if group.nodules
    ]
    return Sheet(
        caption=f"By {name}",
        head=["", "nodules", "found", "sensitivity", BAND],
        rows=rows,
    )


def _worth(scored: Scored) -> list[str]:
    found = scored.reliability
    return [f"{int(found.samples.sum()):,}", rate(found.ece), rate(found.brier)]


def _gallery(images: Sequence[Image]) -> list[Block]:
    return [Gallery(images=images)] if images else []


def _beside(images: Sequence[Image], *blocks: Block) -> list[Block]:
    """Figures, and what belongs to them to their right."""
    return [Beside(columns=[_gallery(images), blocks])] if images and blocks else [*_gallery(images), *blocks]
