"""How does a reading become one page that a radiologist can open, offline, and correct?

The page holds everything: the scan as lossy pictures, what the bundles said, its style and its script. It asks nothing
of a network, and its policy forbids it. Whatever comes from a scan or a bundle is data: it lies in a block of JSON that
the script shows as text, and never becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from lungml.files import write_text_atomic
from lungml.reading.colors import css_variables
from lungml.reading.pixels import (
    PackedMarks,
    PackedSlices,
    Upright,
    level_hu,
    pack_marks,
    pack_slices,
    to_levels,
    upright,
)
from lungml.reading.record import Reading, reading_dict

SCRIPTS = (
    "scan.js", "findings.js", "history.js", "reader.js", "pictures.js", "draw.js", "marks.js", "views.js", "rows.js",
    "list.js", "judge.js", "work.js", "controls.js", "keys.js", "page.js",
)  # fmt: skip  # in this order
# Nothing but what the file holds; the hashes are of its one style and its one script.
POLICY = (
    "default-src 'none'; img-src blob: data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; "
    "form-action 'none'"
)


def write_page(path: Path, reading: Reading) -> None:
    """Write a reading's page, whole or not at all; errors as of `whole_file`."""
    write_text_atomic(path, page_html(reading))


def page_html(reading: Reading) -> str:
    """A reading as one HTML file.

    A scan of 512 x 512 x 133 makes about 10 MB; a longer one 79 kB a slice at most, as real ones are. Noise that no
    scanner makes is packed in the lowest quality, whatever its size.
    """
    turn = upright(reading.grid)
    slices = pack_slices(to_levels(turn.apply(reading.hu)))
    marks = [pack_marks(opinion.marked, turn) for opinion in reading.opinions]
    style, script = page_style(), page_script()
    policy = POLICY.format(style=_hash(style), script=_hash(script))
    return Template(_asset("page.html")).substitute(
        policy=escape(policy),
        title=escape(f"Reading of {reading.series_uid}"),
        style=style,
        script=script,
        reading=json_in_html(reading_dict(reading) | {"page": _page_facts(turn, slices, marks)}),
        slices="\n".join(slices.texts),
        marks="\n".join(mark.text for mark in marks),
    )


def page_style() -> str:
    """The page's style sheet, the colours of its marks first."""
    return css_variables() + _asset("page.css")


def page_script() -> str:
    """The page's script: its parts in order."""
    return "\n".join(_asset(name) for name in SCRIPTS)


def json_in_html(value: Any) -> str:
    """JSON that no HTML parser finds a tag in and no old script parser a line end: those signs are escaped."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII, so no U+2028 either
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_facts(turn: Upright, slices: PackedSlices, marks: list[PackedMarks]) -> dict[str, Any]:
    """What the script needs beside the reading itself."""
    return {
        "grid": turn.grid.to_json(),
        "turned_round": turn.turned_round,
        "level_hu": level_hu(),
        "quality": slices.quality,
        "slice_lengths": [len(text) for text in slices.texts],
        "marks": [
            {"length": len(mark.text), "count": mark.count, "long_steps": mark.long_steps, "floor": mark.floor}
            for mark in marks
        ],
    }


def _asset(name: str) -> str:
    return files("lungml.reading").joinpath("page", name).read_text("utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline block."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
