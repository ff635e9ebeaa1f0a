"""What the figures say is asked of their texts and lines; how they look was looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from lungml.plots import draw_calibration, draw_confusion, draw_curves, png, write_figures
from lungml.scored import Scored


def of(targets: list[int], probs: list[float]) -> Scored:
    return Scored(targets=np.array(targets, dtype=int), probs=np.array(probs))


SIX = of([1, 0, 1, 1, 0, 0], [0.9, 0.8, 0.8, 0.3, 0.3, 0.1])
FOUR = of([1, 0, 0, 0], [0.7, 0.6, 0.2, 0.1])
NONE, NEGATIVES, POSITIVES = of([], []), of([0, 0], [0.2, 0.7]), of([1, 1], [0.2, 0.7])


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def curves(**splits: Scored) -> Figure:
    return draw_curves(splits, threshold=0.5, title="a model", origin="phantom")


def confusion(**splits: Scored) -> Figure:
    return draw_confusion(splits, threshold=0.5, title="a model", origin="phantom")


def calibration(**splits: Scored) -> Figure:
    return draw_calibration(splits, title="a model", origin="phantom")


def test_curves_name_counts_and_areas_and_mark_the_threshold() -> None:
    figure = curves(val=SIX, test=FOUR)
    said = texts(figure)
    assert f"val: 3 of 6 positive, AUC {SIX.auc:.3f}" in said
    assert "test: 1 of 4 positive, AUC 1.000" in said
    assert f"val: average precision {SIX.average_precision:.3f}" in said
    assert "at threshold 0.5" in said
    roc, pr = figure.axes
    marks = [[line.get_xydata()[0].tolist() for line in a.lines if len(line.get_xydata()) == 1] for a in (roc, pr)]
    # Of SIX two hits and a false alarm, of FOUR one hit and one false alarm, reach 0.5.
    assert np.allclose(marks[0], [[1 / 3, 2 / 3], [1 / 3, 1]])
    assert np.allclose(marks[1], [[2 / 3, 2 / 3], [1, 1 / 2]])


def test_confusion_tells_counts_and_shares() -> None:
    said = texts(confusion(val=SIX))
    assert "val, positive: 3 of 6" in said
    for cell in ("2\n66.7%", "1\n33.3%", "negative\n(3)", "positive\n(3)"):
        assert cell in said
    figure = confusion(val=SIX)
    assert [t.get_text() for t in figure.axes[0].texts] == ["2\n66.7%", "1\n33.3%", "1\n33.3%", "2\n66.7%"]


def test_confusion_names_its_classes() -> None:
    figure = draw_confusion({"nodules": SIX}, threshold=0.5, title="a", origin="real", names=("benign", "malignant"))
    said = texts(figure)
    assert all(word in said for word in ("nodules, malignant: 3 of 6", "said benign", "malignant\n(3)"))
    assert "said malignant: probability of at least 0.5" in said
    assert "positive" not in said


def test_calibration_names_its_errors_and_counts_its_samples() -> None:
    figure = calibration(val=SIX)
    found = SIX.reliability
    assert f"val, 6 samples: ECE {found.ece:.3f}, Brier {found.brier:.3f}" in texts(figure)
    upper, lower = figure.axes
    line = next(line for line in upper.lines if str(line.get_label()).startswith("val"))
    assert np.allclose(line.get_xydata(), [[0.1, 0], [0.3, 0.5], [0.8, 0.5], [0.9, 1]])
    assert [bar.get_height() for bar in lower.patches] == [0, 1, 0, 2, 0, 0, 0, 0, 2, 1]


@pytest.mark.parametrize("draw", [curves, confusion, calibration])
def test_only_synthetic_scans_are_labelled(draw: Callable[..., Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "synthetic scans" in texts(draw(val=SIX))
    real = draw_curves({"val": SIX}, threshold=0.5, title="a", origin="real")
    assert "synthetic" not in texts(real)


@pytest.mark.parametrize("draw", [curves, confusion, calibration])
@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({}, "no samples"),
        ({"val": NONE}, "val: no samples"),
        ({"val": NONE, "test": SIX}, "val: no samples"),
        ({"val": NEGATIVES}, "0 of 2|no positives"),
        ({"val": POSITIVES, "test": SIX}, "2 of 2|no negatives"),
    ],
)
def test_empty_and_one_class_splits_are_said(
    draw: Callable[..., Figure], splits: dict[str, Scored], said: str, tmp_path: Path
) -> None:
    figure = draw(**splits)
    assert any(part in texts(figure) for part in said.split("|"))
    (path,) = write_figures(tmp_path, {"it": figure})
    assert imread(path).min() < 0.5  # it can be drawn, and something is


def test_figures_are_whole_files_and_equal_ones_equal(tmp_path: Path) -> None:
    paths = write_figures(tmp_path / "new", {"b": curves(val=SIX), "a": confusion(val=SIX)})
    assert paths == [tmp_path / "new" / "b.png", tmp_path / "new" / "a.png"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]
    assert imread(paths[0]).shape == (506, 990, 4)  # 9 x 4.6 inches at 110
    (again,) = write_figures(tmp_path, {"b": curves(val=SIX)})
    assert again.read_bytes() == paths[0].read_bytes()


def test_a_narrow_calibration_keeps_its_words_off_its_curves() -> None:
    names = {"as the networks said it": SIX, "calibrated": SIX}
    figure = draw_calibration(names, title="a", origin="phantom", width=5.0)
    figure.canvas.draw()
    upper = figure.axes[0]
    legend = upper.get_legend()
    assert legend is not None
    words, curves = legend.get_window_extent(), upper.get_window_extent()
    assert words.y0 >= curves.y1
    assert words.x1 <= figure.bbox.x1


def test_a_sharper_png_has_more_pixels(tmp_path: Path) -> None:
    figure = confusion(val=SIX)
    for dpi, pixels in ((100, 450), (200, 900)):
        (tmp_path / "it.png").write_bytes(png(figure, dpi))
        assert imread(tmp_path / "it.png").shape[1] == pixels


def test_threads_draw_at_once_without_pyplot(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda n: write_figures(tmp_path, {f"{n}": curves(val=SIX)})[0].read_bytes(), range(8)))
    assert len(set(drawn)) == 1
    pyplot = sys.modules.get("matplotlib.pyplot")  # another library may have imported it
    assert pyplot is None or not pyplot.get_fignums()
