"""A report of four small scans, whose every number a person can count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lungml.calibration import Calibration, Method, Platt, Probability
from lungml.compare import paired_differences
from lungml.evaluation_parts import describe
from lungml.evaluation_report import draw_figures, render_html, render_markdown
from lungml.evidence import Evidence
from lungml.findings import Finding
from lungml.geometry import Grid
from lungml.luna import Nodule
from lungml.pictures import draw_case
from lungml.plots import png
from lungml.report_facts import BundleMember, Compared, ReportFacts, undo_calibration
from lungml.report_numbers import TEST, VALIDATION
from lungml.scorecard import Scorecard, score_scans
from lungml.scored import Scored
from lungml.segmentation_score import SegmentedNodule, SegmentedScan
from lungml.worst_cases import choose_worst

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.{}"
SPACE = "\N{NO-BREAK SPACE}"


def nodule(scan: int, x: float, diameter_mm: float, malignant: bool) -> Nodule:
    return Nodule(
        series_uid=UID.format(scan),
        center_xyz=(x, 0.0, 0.0),
        diameter_mm=diameter_mm,
        malignant=malignant,
        ratings=(5, 5) if malignant else (1, 1),
    )


def finding(x: float, prob: float, malignant: float) -> Finding:
    return Finding(
        center_irc=(0.0, 0.0, 0.0),
        center_xyz=(x, 0.0, 0.0),
        prob_nodule=prob,
        prob_malignant=malignant,
        stage="benign",
    )


def segmented(*dice: float) -> SegmentedScan:
    nodules = tuple(SegmentedNodule(touched=one > 0, dice=one) for one in dice)
    return SegmentedScan(voxels=2_000_000, flagged=3000, tp=60, fp=20, fn=40, slices=5, nodules=nodules)


def evidence() -> list[Evidence]:
    """Of six nodules, three of them malignant: three found, one filtered out, one missed, one in a scan not read."""
    return [
        Evidence(
            series_uid=UID.format(1),
            nodules=(nodule(1, 0, 20, True), nodule(1, 100, 5, False)),
            findings=(finding(1, 0.9, 0.8), finding(100, 0.2, 0.1), finding(300, 0.7, 0.6), finding(400, 0.1, 0.1)),
            segmented=segmented(0.75, 0.5),
            prob_malignant=(0.8, 0.1),
            slice_spacing_mm=2.5,
        ),
        Evidence(
            series_uid=UID.format(2),
            nodules=(nodule(2, 0, 12, True), nodule(2, 100, 9, False), nodule(2, 200, 7, False)),
            findings=(finding(0, 0.8, 0.3), finding(101, 0.6, 0.2)),
            segmented=segmented(0.6, 0.4, 0.0),
            prob_malignant=(0.3, 0.2, 0.4),
            slice_spacing_mm=1.0,
        ),
        Evidence(
            series_uid=UID.format(3),
            nodules=(),
            findings=(),
            segmented=segmented(),
            prob_malignant=(),
            slice_spacing_mm=1.0,
        ),
        Evidence(
            series_uid=UID.format(4),
            nodules=(nodule(4, 0, 30, True),),
            findings=None,
            segmented=None,
            prob_malignant=None,
        ),
    ]


def score(scans: list[Evidence], **changes: Any) -> Scorecard:
    settings = {"nodule_threshold": 0.5, "malignant_threshold": 0.5, "seed": 0, "resamples": 50, "bootstraps": 20}
    return score_scans(scans, **(settings | changes))


def many() -> list[Evidence]:
    """The same three times over: enough scans for every band."""
    return [replace(one, series_uid=f"{one.series_uid}.{copy}") for copy in range(3) for one in evidence()]


CARD = score(evidence())
MANY = score(many())
# One scan without a nodule or a finding; one set aside; benign nodules only.
EMPTY = score(evidence()[2:3])
NOT_READ = score(evidence()[3:])
ONE_CLASS = score(
    [replace(evidence()[0], nodules=(nodule(1, 100, 5, False),), prob_malignant=(0.1,), segmented=segmented(0.5))]
)


def facts(**changes: Any) -> ReportFacts:
    given: dict[str, Any] = {
        "title": "luna 7",
        "origin": "real",
        "split": "test",
        "data": "LUNA16",
        "bundle_uri": "models:/luna/7",
        "bundle_origin": "real",
        "bundle_commit": "0123456789abcdef-dirty",
        "members": (
            BundleMember(stage="segmentation", uri="models:/m-1", recipe="best"),
            BundleMember(stage="nodule", uri="models:/m-2"),
        ),
        "grouping": {"rule": "best", "min_voxels": 3},
        "calibration": {"nodule": "platt", "malignancy": "platt"},
        "when": datetime(2026, 3, 4, 1, 7, tzinfo=timezone(timedelta(hours=2))),
        "seed": 5,
    }
    return ReportFacts(**(given | changes))


class Reader(HTMLParser):
    """Text, tables and pictures of a page; fails on a tag that another one closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.alts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append(dict(attrs)["alt"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(about: ReportFacts, card: Scorecard, pictures: Sequence[Figure] = ()) -> Reader:
    return Reader(render_html(about, card, {}, pictures))


@pytest.fixture(scope="module")
def page() -> Reader:
    return Reader(render_html(facts(), CARD, draw_figures(facts(), CARD)))


def test_the_report_says_of_itself_what_its_text_says() -> None:
    said = [
        (
            one.table.found,
            one.table.nodules,
            one.table.malignant_flagged,
            one.table.malignant,
            one.table.false_positives,
        )
        for one in (VALIDATION, TEST)
    ]
    assert said == [(129, 154, 37, 52, 754), (68, 92, 16, 32, 632)]
    assert VALIDATION.table.counts[0][1] == 162_825
    for one, detected in ((VALIDATION, 142), (TEST, 80)):  # table 2.2 has the counts beside the recall
        assert round(one.classifier.recall * one.table.nodules) == detected
    # What it prints of its models agrees with itself: F1 is the harmonic mean of the two others.
    for one in (VALIDATION, TEST):
        for rates in (one.segmentation, one.classifier, one.fine_tuned, one.scratch):
            if rates is not VALIDATION.scratch:  # whose printed precision does not fit
                f1 = 2 * rates.precision * rates.recall / (rates.precision + rates.recall)
                assert rates.f1 == pytest.approx(f1, abs=2e-4)
    # Section 2.3.2: 28 and 25 of 32 malignant, 48 and 53 of 60 benign on test.
    assert (TEST.fine_tuned.recall, TEST.scratch.recall) == (28 / 32, pytest.approx(25 / 32, abs=1e-4))
    assert TEST.scratch.precision == pytest.approx(25 / (25 + 60 - 53), abs=1e-4)


def test_the_parts_come_in_their_order(page: Reader) -> None:
    assert page.headings == [
        "Beside the report",
        "Finding nodules",
        "Which nodules are found",
        "Malignant or benign",
        "At the thresholds",
        "What a probability is worth",
        "From voxels to findings",
        "Where nodules were lost",
        "Segmentation",
        "The worst cases",
        "Models and settings",
        "Limits",
        "How the numbers are made",
    ]


def test_what_matters_comes_first() -> None:
    lines = render_markdown(facts(), MANY).splitlines()
    assert lines[:3] == ["# luna 7", "", "> **Not for clinical use. CT scans of patients: LUNA16, test, 12 scans.**"]
    low, high = MANY.samples["malignancy_auc"].band
    assert "- nodules found: **9 of 18**, 50 %" in lines
    assert any(line.startswith("- malignant nodules flagged: **3 of 9**, 33 %, band ") for line in lines)
    assert any(line.startswith("- false positives a scan: **0.2**, band ") for line in lines)
    # Of the five nodules in scans that were read; both malignant ones are larger, one is said less than a benign one.
    assert f"- malignancy AUC: **0.833**, band {low:.3f} to {high:.3f}, diameter alone 1.000" in lines
    assert "- scans: **12**, 3 set aside, their nodules missed" in lines
    assert any(line.endswith("is not known of them, stands under Limits.") for line in lines)


def test_what_too_few_scans_tell_has_no_band() -> None:
    lines = render_markdown(facts(), CARD).splitlines()
    # Malignant nodules were judged in two scans only.
    assert "- malignancy AUC: **0.833**, diameter alone 1.000" in lines
    assert "| model less diameter | -0.167 | none |" in lines
    assert any(line.startswith("| CPM, their mean | 0.619 | 0.") for line in lines)
    # One nodule of 20 mm or more was found, one was not, in two scans.
    assert "| 20 mm or more | 2 | 1 | 0.500 | none |" in lines
    assert "no p, where fewer than 3 scans hold" in "\n".join(lines)
    assert "shares near 0 or 1 are too narrow" in "\n".join(lines)


def test_resamples_that_were_left_out_are_counted_where_their_bands_stand() -> None:
    words = "Resamples on which a score is not defined are left out of its band, at most {} of 50."
    assert "left out of its band" not in render_markdown(facts(), EMPTY).split("## How the numbers")[0]
    auc = MANY.samples["malignancy_auc"]
    holes = np.where(np.arange(50) < 7, np.nan, auc.resampled)
    samples = {**MANY.samples, "malignancy_auc": replace(auc, resampled=holes)}
    kinds = tuple(replace(group, left_out=50 if np.isnan(group.band[0]) else 4) for group in MANY.by_diameter)
    over = replace(MANY.over_diameter, left_out=7)
    card = replace(MANY, samples=samples, over_diameter=over, by_diameter=kinds)
    reader = read(facts(), card)
    assert sum(words.format(7) in text for text in reader.words) == 2  # below the tiles, and beside the AUC
    assert any("one false positive a scan. " + words.format(4) in text for text in reader.words)


def test_the_table_stands_beside_the_reports(page: Reader) -> None:
    at = page.rows.index(["", "missed", "filtered out", "predicted benign", "predicted malignant"])
    assert page.rows[at + 1 : at + 4] == [
        ["non-nodule", "", "1", "0", "1"],
        ["benign", "1", "1", "1", "0"],
        ["malignant", "1", "0", "1", "1"],
    ]
    assert page.rows[at + 5 : at + 8] == [
        ["non-nodule", "", "144,659", "552", "80"],
        ["benign", "12", "3", "39", "6"],
        ["malignant", "2", "7", "7", "16"],
    ]
    for row in (
        ["nodules found", f"3 of 6, 50{SPACE}%", f"129 of 154, 84{SPACE}%", f"68 of 92, 74{SPACE}%"],
        ["malignant flagged", f"1 of 3, 33{SPACE}%", f"37 of 52, 71{SPACE}%", f"16 of 32, 50{SPACE}%"],
        ["false positives a scan", "0.2", "8.5", "7.1"],
        ["segmentation, pixels: F1", "0.6667", "0.0466", "0.1088"],
        ["malignancy AUC *", "0.8333", "0.8989 / 0.9110", "0.9258 / 0.8964"],
        ["… of the diameter alone", "1.000", "0.901", "0.950"],
    ):
        assert row in page.rows


@pytest.mark.parametrize(("split", "shown"), [("val", [162_825]), ("test", [144_659]), ("all", [162_825, 144_659])])
def test_the_reports_table_is_that_of_the_split(split: str, shown: list[int]) -> None:
    text = render_markdown(facts(split=split), CARD)
    assert [count for count in (162_825, 144_659) if f"{count:,}" in text] == shown


def test_it_is_said_on_what_the_reports_numbers_can_be_compared() -> None:
    real, synthetic = render_markdown(facts(), CARD), render_markdown(facts(origin="phantom", data="phantoms"), CARD)
    for text in (real, synthetic):
        assert "89 scans of LUNA16 each" in text
        assert "only if that is of the same scans" in text
    assert "no number of the report is a measure for it" in synthetic
    assert "Synthetic scans (phantoms, test, 4 scans): nothing here says anything about patients" in synthetic
    assert "ynthetic" not in real


def test_losses_and_funnel_are_counted(page: Reader) -> None:
    for row in (
        ["annotated", "6", "3"],
        ["scan not read", "1", "1"],
        ["not marked", "1", "0"],
        ["lost in grouping", "0", "0"],
        ["filtered out", "1", "0"],
        ["called benign", "1", "1"],
        ["came through", f"2, 33{SPACE}%", f"1, 33{SPACE}%"],
        ["voxels", "2.0 million", "33.6 million"],
        ["flagged voxels", "3,000", "1.0 million"],
        ["candidates", "2.0", "1,024"],
        ["taken for nodules", "1.3", "32.0"],
        ["called malignant", "0.67", "2.0"],
        ["nodules touched at all", f"4 of 5, 80{SPACE}%"],
        ["Dice of a nodule, mean", "0.450"],
    ):
        assert row in page.rows


def test_every_picture_has_words_of_its_own(page: Reader) -> None:
    assert len(page.alts) == len(set(page.alts)) == 9
    assert "ROC curves: malignancy model, AUC 0.833, and diameter alone, AUC 1.000" in page.alts
    assert "Bars: 2 of 6 nodules came through, of the malignant 1 of 3" in page.alts


@pytest.mark.parametrize("card", [CARD, EMPTY, NOT_READ, ONE_CLASS])
@pytest.mark.parametrize("origin", ["real", "phantom"])
def test_nothing_reads_nan_whatever_there_is_to_score(card: Scorecard, origin: str) -> None:
    about = facts(origin=origin)
    figures = draw_figures(about, card)
    reader, text = Reader(render_html(about, card, {})), render_markdown(about, card)
    alts = [describe(name, card) for name in figures]
    drawn = [text.get_text() for figure in figures.values() for text in figure.findobj(Text)]
    for words in (reader.text, text, *alts, *drawn):
        assert not re.search(r"\b(nan|inf|NaN|None)\b", words)
    assert "Not for clinical use." in text
    assert "Not for clinical use." in reader.text
    assert ("synthetic scans" in drawn) == (origin == "phantom")


@pytest.mark.parametrize("card", [EMPTY, NOT_READ, ONE_CLASS])
def test_every_figure_can_be_drawn_whatever_there_is_to_score(card: Scorecard) -> None:
    for figure in draw_figures(facts(), card).values():
        assert png(figure, 30).startswith(b"\x89PNG")


def test_what_there_is_none_of_is_said() -> None:
    empty = render_markdown(facts(), EMPTY)
    assert "- nodules found: **0 of 0**\n" in empty
    assert "- malignancy AUC: **none**, diameter alone none" in empty
    assert "Not known of any nodule here: diameter, slice spacing, texture." in empty
    assert "No scan was read: there is nothing to score." in render_markdown(facts(), NOT_READ)
    assert "| CPM, their mean | 0.000 | none |" in render_markdown(facts(), NOT_READ)
    assert "| model, at annotated centres | none | none |" in render_markdown(facts(), ONE_CLASS)


def test_another_bundle_is_compared_on_the_same_scans() -> None:
    weaker = [replace(one, findings=() if one.findings else one.findings) for one in evidence()]
    other = score(weaker)
    compared = Compared(
        name="champion",
        bundle_uri="models:/luna/4",
        card=other,
        differences=paired_differences(other.samples, CARD.samples),
    )
    about = facts(compared=(compared,))
    reader = read(about, CARD)
    assert reader.headings[1] == "Compared"
    at = reader.rows.index(["", "this bundle", "champion", "difference", f"95{SPACE}%{SPACE}band", "p"])
    rows = {row[0]: row[1:4] for row in reader.rows[at + 1 : at + 10]}
    assert rows["CPM"] == [f"{CARD.froc.cpm:.3f}", "0.000", f"+{CARD.froc.cpm:.3f}"]
    assert rows["nodules found"] == ["3", "0", "+3"]
    assert rows["false positives"] == rows["false malignant findings, benign nodules included"] == ["1", "0", "+1"]
    assert "not corrected for how many there are" in reader.text
    assert rows["malignant nodules flagged, share"] == ["0.333", "0.000", "+0.333"]
    assert rows["malignancy AUC, at annotated centres"] == ["0.833", "0.833", "0.000"]
    assert "This bundle and champion (models:/luna/4)" in reader.text
    assert any(row[0] == "CPM, their mean" and row[3] == "0.000" for row in reader.rows)
    legend = draw_figures(about, CARD)["froc"].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][1] == "champion: CPM 0.000"


def test_calibration_is_told_before_and_after() -> None:
    none: dict[Probability, Method] = {"nodule": "none", "malignancy": "none"}
    alone = render_markdown(facts(calibration=none), CARD)
    assert "The probabilities are the networks' own." in alone
    assert "| malignancy, as the network said it | 5 |" in alone
    assert "calibrated" not in alone
    raw = Scored(targets=CARD.malignancy.targets, probs=np.full(5, 1.0))
    both = render_markdown(facts(uncalibrated={"malignancy": raw}), CARD)
    assert "| malignancy, as the network said it | 5 | 0.600 | 0.600 |" in both  # two of five are malignant
    assert f"| malignancy, calibrated (platt) | 5 | {CARD.malignancy.reliability.ece:.3f} |" in both
    assert "was fitted to the probability of: nodule, malignancy." in both


def test_a_probability_without_a_curve_is_not_called_calibrated() -> None:
    one: dict[Probability, Method] = {"nodule": "platt", "malignancy": "none"}
    about = facts(calibration=one, uncalibrated={"nodule": CARD.nodule})
    text = render_markdown(about, CARD)
    assert "was fitted to the probability of: nodule. None could be fitted to the other" in text
    assert "| malignancy, as the network said it | 5 |" in text
    assert "malignancy, calibrated" not in text
    assert "- calibration: nodule platt, malignancy none" in text
    figures = draw_figures(about, CARD)
    legends = [figures[f"calibration_{name}"].axes[0].get_legend() for name in one]
    said = [[text.get_text().split(",")[0] for text in legend.get_texts()] for legend in legends if legend]
    raw = "as the network said it"
    assert said == [["perfect", raw, "calibrated (platt)"], ["perfect", raw]]


def test_calibration_is_undone_curve_by_curve() -> None:
    curve = Platt(slope=0.5, intercept=-1.0)
    raw = undo_calibration(Calibration(malignancy=curve), CARD)
    assert list(raw) == ["malignancy"]
    np.testing.assert_allclose(curve(raw["malignancy"].probs), CARD.malignancy.probs)
    assert raw["malignancy"].targets is CARD.malignancy.targets
    assert undo_calibration(Calibration(), CARD) == {}
    # Of scans of several bundles each has curves of its own.
    pooled = score([replace(one, thresholds=(0.4, 0.3)) for one in evidence()])
    assert undo_calibration(Calibration(nodule=curve, malignancy=curve), pooled) == {}


def test_thresholds_of_several_bundles_are_told_apart() -> None:
    each = [(0.4, 0.3), (0.6, 0.5), (0.6, 0.5), (0.5, 0.2)]
    pooled = score([replace(one, thresholds=own) for one, own in zip(evidence(), each)])
    text = render_markdown(facts(), pooled)
    assert "- thresholds: each bundle's own, nodule 0.4 to 0.6, malignant 0.2 to 0.5; reached counts" in text
    assert "each decided at its own thresholds" in text
    assert "own thresholds" not in render_markdown(facts(), CARD)


def test_what_flatters_a_score_is_among_the_limits() -> None:
    note = "3 of 4 scans helped to choose models:/luna/7: they flatter it"
    said = {split: render_markdown(facts(split=split, limits=(note,)), CARD) for split in ("val", "test", "all")}
    limits = {split: text.split("## Limits")[1].split("##")[0] for split, text in said.items()}
    assert all(f"- {note}" in text for text in limits.values())
    chosen = {split: "choose the models of a bundle and fit its calibration" in text for split, text in limits.items()}
    promoted = {split: "promoted by their scores on these scans" in text for split, text in limits.items()}
    assert chosen == {"val": True, "test": False, "all": False}
    assert promoted == {"val": False, "test": True, "all": False}


def test_which_masks_and_which_voxels_count_is_said() -> None:
    text = render_markdown(facts(), CARD)
    part = text.split("## Segmentation")[1].split("##")[0]
    assert 'Pixels: by masks of the rule "report"' in part
    assert 'Touched and Dice: by masks of the rule "bounded"' in part
    assert "Only the lungs" not in text
    assert "pixels outside of them can be no false positives" in render_markdown(facts(lungs_only=True), CARD)
    assert "beyond the limit of candidates a scan, or outside the lungs" in text
    assert "on a nodule that nobody rated is a non-nodule" in text


def test_cases_are_named_by_series_and_place_only() -> None:
    cases = tuple(choose_worst(evidence(), 0.5, 0.5))
    grid = Grid(shape_irc=(3, 40, 40), spacing_xyz=(1, 1, 2), origin_xyz=(-20, -20, 0))
    pictures = [draw_case(case, np.zeros(grid.shape_irc, dtype=np.int16), grid) for case in cases]
    reader, text = read(facts(cases=cases), CARD, pictures), render_markdown(facts(cases=cases), CARD)
    place = f"benign nodule of 7.0 mm; no candidate here. {UID.format(2)}, x 200.0, y 0.0, z 0.0 mm (LPS)"
    assert place in reader.words
    assert f"- {place}" in text.splitlines()
    assert "CT slice, missed: benign nodule of 7.0 mm; no candidate here" in reader.alts
    assert len(reader.alts) == len(cases) == 4
    assert "No case was chosen." in render_markdown(facts(), CARD)
    with pytest.raises(ValueError, match="1 pictures of 4 cases"):
        render_html(facts(cases=cases), CARD, {}, pictures[:1])


def test_models_and_settings_are_named() -> None:
    text = render_markdown(facts(limits=("No scan of a child was among these.",)), CARD)
    assert "| segmentation | models:/m-1 | best |" in text
    assert "| nodule | models:/m-2 | unknown |" in text
    assert "- bundle: models:/luna/7, put together by code 0123456789ab-dirty" in text
    assert "- learned from: scans of patients" in text
    assert "- learned from: synthetic scans" in render_markdown(facts(bundle_origin="phantom"), CARD)
    assert "- evaluated: 2026-03-03 23:07 UTC, code of no known commit" in text
    assert "- grouping: rule best, min_voxels 3" in text
    assert "- No scan of a child was among these." in text
    assert "seed 5" in text


def test_a_foreign_name_is_shown_and_never_obeyed() -> None:
    nasty = '<img src=x onerror="alert(1)"> | & "quoted"'
    about = facts(title=nasty, bundle_uri=nasty, limits=(nasty,), grouping={nasty: nasty})
    reader = read(about, CARD)
    assert reader.words.count(nasty) >= 3  # h1, title, limit
    assert reader.alts == []
    text = render_markdown(about, CARD)
    assert '\\<img src=x onerror="alert(1)"\\> \\|' in text
    assert "<img" not in text.replace("\\<img", "")


def test_every_markdown_table_has_rows_of_one_length() -> None:
    lines = render_markdown(facts(), CARD).splitlines()
    assert sum(line.startswith("| ---") for line in lines) >= 12
    for line, after in pairwise(lines):
        if line.startswith("|") and after.startswith("|"):
            assert line.count("|") == after.count("|")


def test_equal_reports_are_equal_files() -> None:
    about = facts()
    first, second = ({"froc": draw_figures(about, CARD)["froc"]} for _ in range(2))
    assert render_html(about, CARD, first) == render_html(about, CARD, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "holdout"}, "unknown split 'holdout'"),
        ({"data": "/home/someone/luna"}, "names no folder"),
        ({"data": "C:\\luna"}, "names no folder"),
        ({"when": datetime(2026, 1, 1)}, "time zone"),
    ],
)
def test_facts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        facts(**changes)
    assert "someone" not in str(caught.value)
    assert facts(when=datetime(2026, 1, 1, tzinfo=UTC)).split_name == "test"
