"""How good was a bundle on some scans, told whole on one page, beside what the report says of its own?

`draw_figures` makes the pictures, `render_html` the page that has them, `render_markdown` the same page without. A scan
is named by its series uid and a place in mm, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lungml import evaluation_notes as notes
from lungml import evaluation_parts as parts
from lungml.calibration import Probability
from lungml.evaluation_plots import (
    WIDTH,
    draw_froc,
    draw_funnel,
    draw_groups,
    draw_losses,
    draw_roc_and_diameter,
)
from lungml.pages import Image, Page, to_html, to_markdown
from lungml.plots import draw_calibration, draw_confusion, png
from lungml.report_facts import ReportFacts
from lungml.report_numbers import FUNNEL
from lungml.scorecard import Scorecard
from lungml.scored import Scored

PNG_DPI = 180  # so that letters stay sharp where a screen has several pixels for one


def draw_figures(facts: ReportFacts, card: Scorecard) -> dict[str, Figure]:
    """Every figure of the report but the worst cases, by a name that can be a file's."""
    origin = facts.origin

    def calibration(name: Probability, shown: Scored) -> Figure:
        raw = facts.uncalibrated.get(name)
        curves = {} if raw is None else {parts.UNCALIBRATED: raw}
        curves[parts.method_of(facts, name)] = shown
        return draw_calibration(curves, title=f"{name.capitalize()} probability", origin=origin, width=WIDTH)

    return {
        "froc": draw_froc(
            {"this bundle": card.froc, **{other.name: other.card.froc for other in facts.compared}},
            band=card.curve_band if card.samples["cpm"].tells else None,
            threshold_fps=card.official_table.false_positives / max(1, card.official_table.scans),
            origin=origin,
        ),
        "groups": draw_groups(
            {"diameter": card.by_diameter, "slice spacing": card.by_spacing, "texture": card.by_texture}, origin=origin
        ),
        "roc": draw_roc_and_diameter(
            card.malignancy, card.diameters_mm, threshold=card.malignant_threshold, origin=origin
        ),
        "confusion_nodule": draw_confusion(
            {"findings": card.nodule},
            threshold=card.nodule_threshold,
            title="Nodule classifier",
            origin=origin,
            names=("non-nodule", "nodule"),
        ),
        "confusion_malignancy": draw_confusion(
            {"nodules": card.malignancy},
            threshold=card.malignant_threshold,
            title="Malignancy model",
            origin=origin,
            names=("benign", "malignant"),
        ),
        "calibration_nodule": calibration("nodule", card.nodule),
        "calibration_malignancy": calibration("malignancy", card.malignancy),
        "funnel": draw_funnel({"this bundle": card.funnel, "the report, roughly": FUNNEL}, origin=origin),
        "losses": draw_losses({"all nodules": card.losses, "malignant": card.malignant_losses}, origin=origin),
    }


def render_html(
    facts: ReportFacts, card: Scorecard, figures: Mapping[str, Figure], pictures: Sequence[Figure] = ()
) -> str:
    """The report as one HTML file that needs no network and no script.

    Args:
        facts: what is to be told beside the scores.
        card: the scores.
        figures: of `draw_figures`; what is left out is not shown.
        pictures: of `lungml.pictures.draw_case`, one for each of `facts.cases`, or none at all.

    Raises:
        ValueError: when there are pictures, but not one for each case.
    """
    if pictures and len(pictures) != len(facts.cases):
        raise ValueError(f"{len(pictures)} pictures of {len(facts.cases)} cases")
    drawn = {name: png(figure, PNG_DPI) for name, figure in figures.items()}
    return to_html(_page(facts, card, drawn, [png(picture, PNG_DPI) for picture in pictures]))


def render_markdown(facts: ReportFacts, card: Scorecard) -> str:
    """The report as Markdown, for the artifacts of a run: its words and tables, no picture and no link."""
    return to_markdown(_page(facts, card, {}, []))


def _page(facts: ReportFacts, card: Scorecard, figures: Mapping[str, bytes], pictures: Sequence[bytes]) -> Page:
    def images(*names: str) -> list[Image]:
        return [Image(png=figures[name], alt=parts.describe(name, card)) for name in names if name in figures]

    return Page(
        title=facts.title,
        opening=notes.opening(facts, card),
        parts=[
            notes.beside_the_report(facts, card),
            *([notes.comparisons(facts, card)] if facts.compared else []),
            parts.detection(facts, card, images("froc")),
            parts.kinds(card, images("groups")),
            parts.malignancy(card, images("roc")),
            parts.at_thresholds(card, images("confusion_nodule", "confusion_malignancy")),
            parts.calibration(facts, card, images("calibration_nodule", "calibration_malignancy")),
            parts.funnel(card, images("funnel")),
            parts.losses(card, images("losses")),
            parts.segmentation(facts, card),
            notes.worst(facts, pictures),
            notes.models(facts, card),
            notes.limits(facts),
            notes.method(facts, card),
        ],
    )
