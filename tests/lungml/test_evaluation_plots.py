"""What the figures say is asked of their texts and lines; how they look was looked at."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lungml.accounting import Funnel, Group, Losses, Lost
from lungml.evaluation_plots import (
    FUNNEL,
    LOST,
    draw_froc,
    draw_funnel,
    draw_groups,
    draw_losses,
    draw_roc_and_diameter,
)
from lungml.froc import FrocResult, froc
from lungml.luna import Annotation
from lungml.plots import write_figures
from lungml.score import ScoredFinding
from lungml.scored import Scored

NAN = (math.nan, math.nan)


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def result(nodules: int, findings: int) -> FrocResult:
    """Two scans; in the first, nodules 100 mm apart, the first ones found, and one false positive above the last."""
    places = [Annotation(series_uid="a", center_xyz=(100.0 * i, 0, 0), diameter_mm=8) for i in range(nodules)]
    marks = [ScoredFinding(center_xyz=(100.0 * i, 0, 0), prob_nodule=0.9 - 0.2 * i) for i in range(findings)]
    if findings:
        marks.append(ScoredFinding(center_xyz=(0, 500, 0), prob_nodule=0.9 - 0.2 * (findings - 1) + 0.1))
    return froc({"a": marks}, {"a": places}, {}, ["a", "b"])


def funnel(*values: float) -> Funnel:
    return Funnel(**dict(zip(FUNNEL, values)))


def losses(right: int, **lost: int) -> Losses:
    stages: dict[Lost, int] = {stage: lost.get(stage, 0) for stage in LOST}
    return Losses(nodules=right + sum(stages.values()), lost=stages, right=right)


def roc(targets: list[int]) -> Figure:
    scored = Scored(targets=np.array(targets), probs=np.full(len(targets), 0.2))
    return draw_roc_and_diameter(scored, [3.0] * len(targets), threshold=0.5, origin="real")


def test_the_froc_is_read_where_the_challenge_reads_it() -> None:
    one = result(4, 2)  # half of the nodules found, the second one after the false positive: 0.5 a scan
    band = np.array([[0.1, 1.0, 9.0], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]])
    figure = draw_froc({"this bundle": one, "champion": result(4, 4)}, band=band, threshold_fps=0.5, origin="phantom")
    said = texts(figure)
    assert f"this bundle: CPM {one.cpm:.3f}" in said
    assert "champion: CPM" in said
    assert "at the threshold used" in said
    assert "shaded: 95 % band over scans" in said
    assert "synthetic scans" in said
    (axes,) = figure.axes
    dots = next(line for line in axes.lines if line.get_marker() == ".")
    assert np.allclose(dots.get_xydata(), list(zip((1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8), one.sensitivity_at)))
    assert one.sensitivity_at == (0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1/8", "1/4", "1/2", "1", "2", "4", "8"]
    solid = axes.lines[0].get_xydata()
    assert solid[:, 0].max() <= 0.5  # beyond its last mark the curve is dotted
    assert len(axes.collections) == 1


def test_a_froc_without_a_band_speaks_of_none() -> None:
    for band in (None, np.full((3, 5), np.nan), np.empty((3, 0))):
        figure = draw_froc({"this bundle": result(2, 1)}, band=band, origin="real")
        assert "shaded" not in texts(figure)
        assert "threshold" not in texts(figure)
        assert not figure.axes[0].collections


def test_the_roc_has_the_diameters_line_and_both_areas() -> None:
    # 3 of 4 pairs by the model; by diameter 2 wins, one tie, one loss.
    scored = Scored(targets=np.array([1, 0, 1, 0]), probs=np.array([0.9, 0.5, 0.4, 0.1]))
    figure = draw_roc_and_diameter(scored, [20.0, 9.0, 9.0, 12.0], threshold=0.5, origin="phantom")
    said = texts(figure)
    assert "model: AUC 0.750" in said
    assert "diameter alone: AUC 0.625" in said
    assert "2 malignant and 2 benign nodules" in said
    marks = [line.get_xydata().tolist() for line in figure.axes[0].lines if len(line.get_xydata()) == 1]
    assert marks == [[[0.5, 0.5]]]  # at 0.5 one of each


def test_other_nodules_diameters_are_refused() -> None:
    scored = Scored(targets=np.array([1, 0]), probs=np.array([0.9, 0.5]))
    with pytest.raises(ValueError, match="2 nodules, but 3 diameters"):
        draw_roc_and_diameter(scored, [1, 2, 3], threshold=0.5, origin="real")


def test_groups_without_a_nodule_are_left_out() -> None:
    groups = {
        "diameter": (
            Group(name="below 6 mm", nodules=1200, found=3, sensitivity=0.6, band=(0.2, 0.9)),
            Group(name="huge", nodules=0, found=0, sensitivity=math.nan, band=NAN),
            Group(name="one", nodules=1, found=1, sensitivity=1.0, band=NAN),
        ),
        "texture": (Group(name="solid", nodules=0, found=0, sensitivity=math.nan, band=NAN),),
    }
    figure = draw_groups(groups, origin="real")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [
        "diameter",
        "below 6 mm (1,200)",
        "one (1)",
    ]
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert lines == [[[0.2, 1], [0.9, 1]], [[0.6, 1]], [[1.0, 2]]]


def test_the_funnel_has_its_numbers_and_the_reports_marks() -> None:
    figure = draw_funnel(
        {"this": funnel(33_554_432, 2e5, 40, 2.5, 0), "the report": funnel(2**25, 2**20, 2**10, 2**5, 2)}, origin="real"
    )
    said = texts(figure).splitlines()
    assert {"33.6 million", "200,000", "40.0", "2.5", "0.0", "the report"} <= set(said)
    (axes,) = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert np.allclose(ends, [33_554_432, 2e5, 40, 2.5])  # nothing has no bar
    assert axes.lines[0].get_xdata().tolist() == [2**25, 2**20, 2**10, 2**5, 2]


def test_losses_add_up_to_the_whole_bar() -> None:
    figure = draw_losses(
        {
            "all nodules": losses(80, segmentation=15, grouping=5),
            "malignant": losses(3, malignancy=1),
            "none": losses(0),
        },
        origin="phantom",
    )
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["all nodules (100)", "malignant (4)"]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert np.allclose(ends[5::6], 1)
    assert [text.get_text() for text in axes.texts] == ["80", "15", "3", "1"]  # 5 of 100 are too few to write in
    assert "lost in grouping" in texts(figure)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (draw_froc({"it": result(0, 0)}, origin="real"), "no nodules"),
        (draw_froc({"it": result(3, 0)}, origin="real"), "CPM 0.000"),
        (roc([]), "no nodules"),
        (roc([1]), "no benign nodules"),
        (roc([0]), "no malignant nodules"),
        (draw_groups({}, origin="real"), "no nodules"),
        (draw_funnel({"it": funnel(*[math.nan] * 5)}, origin="real"), "no scan was read"),
        (draw_funnel({"it": funnel(100, 0, 0, 0, 0)}, origin="real"), "100"),
        (draw_losses({"all": losses(0)}, origin="real"), "no nodules"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(figure: Figure, said: str, tmp_path: Path) -> None:
    assert said in texts(figure)
    assert not re.search(r"\b(nan|inf)\b", texts(figure))
    write_figures(tmp_path, {"it": figure})
