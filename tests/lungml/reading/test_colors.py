from __future__ import annotations

import json

import pytest
from matplotlib.colors import to_rgb

from lungml.reading.colors import MARK_COLORS, css_variables, rgb
from lungml.reading.markups import markups_json
from lungml.reading.page import page_style
from lungml.scan_figures import KINDS
from tests.lungml.reading.page_readings import reading_with_truth


def test_a_colour_is_its_parts() -> None:
    assert rgb("#ff0080") == pytest.approx((1, 0, 128 / 255))


def test_the_page_names_each_colour_once_before_its_style_uses_them() -> None:
    assert page_style().startswith(css_variables())
    for kind, color in MARK_COLORS.items():
        assert f"--{kind}: {color};" in css_variables()
        assert f"--{kind}:" not in page_style().removeprefix(css_variables())


def test_slicer_and_figures_show_the_pages_colours() -> None:
    lists = json.loads(markups_json(reading_with_truth()))["markups"]
    kinds = {one["name"].split()[0]: one["display"]["color"] for one in lists}
    assert set(kinds) == {"malignant", "benign", "filtered", "truth", "excluded"}
    for kind, color in kinds.items():
        assert color == pytest.approx(rgb(MARK_COLORS[kind]), abs=1e-4)
    for kind, (color, _, _) in KINDS.items():
        assert to_rgb(color) == pytest.approx(rgb(MARK_COLORS[kind.replace("_", "-")]))
