"""How good is a bundle, in a few tables for its card?"""

from __future__ import annotations

from collections.abc import Mapping

from lungml.accounting import Group
from lungml.calibration import Method, Probability
from lungml.froc import FPS_PER_SCAN
from lungml.pages import Block, Sheet, Words
from lungml.report_facts import SPLITS
from lungml.scorecard import Scorecard
from lungml.scored import Scored
from lungml.wording import BAND, edges, rate, signed, signed_edges, with_percent


def quality(scores: Mapping[str, Scorecard]) -> list[Block]:
    """Every score that counts, split by split, with its band and beside the diameter."""
    blocks: list[Block] = []
    for split, score in scores.items():
        result, table, samples, over = score.froc, score.table, score.samples, score.over_diameter
        tells = samples["cpm"].tells
        bands = [*zip(result.band_low, result.band_high)] if tells else []
        rows = [
            ["CPM, the challenge's score", rate(result.cpm), edges(result.cpm_band) if tells else "none"],
            *(
                [f"sensitivity at {fps:g} false positives a scan", rate(at), edges(bands[i]) if bands else "none"]
                for i, (fps, at) in enumerate(zip(FPS_PER_SCAN, result.sensitivity_at))
            ),
            ["malignancy AUC, at annotated centres", rate(over.second), edges(samples["malignancy_auc"].band)],
            ["AUC of the diameter alone, same nodules", rate(over.first), edges(samples["diameter_auc"].band)],
            ["model less diameter", signed(over.difference), signed_edges(over.band)],
            [
                "malignancy AUC end to end, 0 where not found",
                rate(samples["end_to_end_malignancy_auc"].observed),
                edges(samples["end_to_end_malignancy_auc"].band),
            ],
        ]
        blocks += [
            Sheet(caption=f"On the {SPLITS[split]} scans", head=["", "score", BAND], rows=rows),
            Words(
                text=f"{with_percent(table.found, table.nodules)}, of the nodules found; "
                f"{with_percent(table.malignant_flagged, table.malignant)}, of the malignant ones flagged; "
                f"{table.false_positives:,} false positives in {table.scans:,} scans, of which "
                f"{len(score.set_aside):,} could not be read."
            ),
        ]
    blocks.append(
        Words(
            text="Bands: 95 % over resampled scans; none where too few scans tell. An AUC means nothing without the "
            "diameter's beside it. The run's report has every other number, and how they are made."
        )
    )
    return blocks


def kinds(scores: Mapping[str, Scorecard]) -> list[Block]:
    """Sensitivity by diameter, slice spacing and texture, on the test scans where there are any."""
    split = "test" if "test" in scores else next(iter(scores), "")
    if not split:
        return [Words(text="Nothing says how it does.")]
    score = scores[split]
    given = {"diameter": score.by_diameter, "slice spacing": score.by_spacing, "texture": score.by_texture}
    known = {name: groups for name, groups in given.items() if any(group.nodules for group in groups)}
    unknown = [name for name in given if name not in known]
    blocks: list[Block] = [_groups(f"By {name}, {SPLITS[split]} scans", groups) for name, groups in known.items()]
    blocks.append(Words(text="Sensitivity at one false positive a scan over all nodules."))
    if unknown:
        blocks.append(Words(text=f"Not known of any nodule here: {', '.join(unknown)}."))
    return blocks


def _groups(caption: str, groups: tuple[Group, ...]) -> Sheet:
    rows = [
        [group.name, f"{group.nodules:,}", rate(group.sensitivity), edges(group.band)]
        for group in groups
        if group.nodules
    ]
    return Sheet(caption=caption, head=["", "nodules", "sensitivity", BAND], rows=rows)


def calibration(scores: Mapping[str, Scorecard], methods: Mapping[Probability, Method]) -> list[Block]:
    """How far the probabilities are from what came true."""
    rows = []
    for split, score in scores.items():
        judged: dict[Probability, Scored] = {"nodule": score.nodule, "malignancy": score.malignancy}
        for name, shown in judged.items():
            method = methods[name]
            how = "as the networks said it" if method == "none" else f"calibrated ({method})"
            found = shown.reliability
            rows.append(
                [f"{name}, {split}, {how}", f"{int(found.samples.sum()):,}", rate(found.ece), rate(found.brier)]
            )
    return [
        Sheet(caption="Errors of the probabilities, lower is better", head=["", "samples", "ECE", "Brier"], rows=rows),
        Words(
            text="The validation scans fitted the curves: their errors are flattered, those of the test scans count."
        ),
    ]
