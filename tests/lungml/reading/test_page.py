from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from lungml.reading.colors import MARK_COLORS, PAPER_COLORS
from lungml.reading.page import SCRIPTS, json_in_html, page_html, page_style, write_page
from lungml.reading.record import reading_dict
from tests.lungml.reading.page_readings import compared_reading, reading_with_truth, small_reading

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028"


def block(html: str, name: str) -> str:
    found = re.search(rf'id="{name}">(.*?)</script>', html, re.DOTALL)
    assert found
    return found[1]


def test_the_page_holds_the_reading_and_every_slice() -> None:
    reading = reading_with_truth()
    html = page_html(reading)
    data = json.loads(block(html, "reading-data"))
    facts = data.pop("page")
    assert data == json.loads(json.dumps(reading_dict(reading)))
    slices = block(html, "slice-data").split("\n")
    assert [len(text) for text in slices] == facts["slice_lengths"]
    assert len(slices) == len(reading.hu)
    assert all(base64.b64decode(text)[:2] == b"\xff\xd8" for text in slices)
    assert len(page_html(compared_reading()).split('id="mask-data">')[1].split("</script>")[0].split("\n")) == 2


def test_nothing_is_asked_of_a_network() -> None:
    html = page_html(small_reading())
    style, script = (
        re.findall(r"<style>(.*?)</style>", html, re.DOTALL),
        re.findall(r"<script>(.*?)</script>", html, re.DOTALL),
    )
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe" not in policy
    for text in (*style, *script):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy
    assert len(style) == len(script) == 1
    assert not re.search(r"""(?:src|href)=|url\(|@import|fetch\(|XMLHttp|WebSocket|innerHTML|https?://""", html)


def test_no_word_of_a_scan_becomes_markup() -> None:
    reading = replace(small_reading(), series_uid=HOSTILE, warnings=(HOSTILE,))
    html = page_html(reading)
    assert "<img" not in html
    assert html.count("</script>") == 4
    assert json.loads(block(html, "reading-data"))["series_uid"] == HOSTILE
    assert json_in_html({"a": HOSTILE}).isascii()


def test_every_script_of_the_folder_is_in_the_page() -> None:
    assert sorted(SCRIPTS) == sorted(
        path.name for path in files("lungml.reading").joinpath("page").iterdir() if path.name.endswith(".js")
    )


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "index.html", small_reading())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["index.html"]
    with pytest.raises(OSError, match=r"index\.html"):
        write_page(tmp_path / "new" / "index.html" / "index.html", small_reading())


# ---------------------------------------------------------------- colours
def luminance(color: str) -> float:
    """Relative, of WCAG 2."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLORS = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", page_style())) | MARK_COLORS
MARKS = ("malignant", "benign", "filtered", "truth", "missed", "reader")


@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        *((ink, ground) for ink in ("text", "soft") for ground in ("page", "panel", "raised")),
        *((ink, "panel") for ink in MARKS),
        ("pressed-text", "pressed"),
        ("soft-pressed", "pressed"),
        *((ink, "pressed") for ink in ("reader", "missed", "truth")),
        ("warn-text", "warn"),
        ("warn-text", "page"),
    ],
)
def test_words_stand_out_as_wcag_aa_asks(ink: str, ground: str) -> None:
    assert contrast(COLORS[ink], COLORS[ground]) >= 4.5


@pytest.mark.parametrize("ground", ["page", "panel", "pressed"])
def test_marks_and_focus_stand_out_from_what_is_around_them(ground: str) -> None:
    assert all(contrast(COLORS[ink], COLORS[ground]) >= 3 for ink in (*MARKS, "accent"))


def test_printed_marks_stand_out_from_paper() -> None:
    assert set(PAPER_COLORS) == set(MARKS)
    assert all(contrast(color, "#ffffff") >= 4.5 for color in PAPER_COLORS.values())


# Brettel's, Viénot's and Mollon's deuteranopia, as Machado et al. (2009) give it for full severity, linear RGB.
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


def test_kinds_of_one_shape_differ_for_the_colour_blind() -> None:
    """Malignant, benign and candidate are all rings: they keep apart in hue or lightness, beside their strokes.

    So do the kinds that figures draw with one line.
    """

    def seen(color: str) -> list[float]:
        linear = [(int(color[k : k + 2], 16) / 255) ** 2.2 for k in (1, 3, 5)]
        return [max(0.0, sum(w * v for w, v in zip(row, linear))) ** (1 / 2.2) for row in DEUTERANOPIA]

    rings = ("malignant", "benign", "filtered", "missed")
    figures = ("malignant", "benign", "truth", "truth-malignant")  # all of one line; filtered is dashed
    for together in (rings, figures):
        for one, other in combinations([seen(COLORS[name]) for name in together], 2):
            assert sum((a - b) ** 2 for a, b in zip(one, other)) ** 0.5 > 0.2
