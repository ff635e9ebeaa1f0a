"""Which colour has each kind of mark: on the page, in figures, in Slicer and in a DICOM segmentation?

One kind has one colour wherever it is seen, and it is always seen on a dark picture. Colour never tells a kind alone:
strokes, shapes and words say the same again. Benign and missed are of Okabe and Ito's (2008) colours, the others near
them and lighter, so that they stand out from the page's panels as WCAG AA asks.
"""

from __future__ import annotations

MARK_COLORS: dict[str, str] = {  # #rrggbb
    "malignant": "#ff8a4c",
    "benign": "#56b4e9",
    "filtered": "#b6bfc8",
    "truth": "#e79fcb",
    "truth-malignant": "#d6409f",  # in figures alone: the page says it in words
    "missed": "#f0e442",
    "excluded": "#8f7fb0",  # neither a hit nor a false positive
    "reader": "#40e0aa",  # what the reader says, adds and measures
    "mask-a": "#40e0aa",  # the U-Net's, of the first bundle
    "mask-b": "#f0a0d6",
}
# Where the page is printed, its marks beside the pictures stand on white.
PAPER_COLORS: dict[str, str] = {
    "malignant": "#aa3300",
    "benign": "#005599",
    "filtered": "#555555",
    "truth": "#882266",
    "missed": "#665500",
    "reader": "#006644",
}


def rgb(color: str) -> tuple[float, float, float]:
    """Red, green and blue of a #rrggbb, each in 0..1."""
    red, green, blue = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue


def css_variables() -> str:
    """The table as a style sheet: `--kind` for each, others where it is printed."""

    def root(colors: dict[str, str]) -> str:
        return ":root { " + " ".join(f"--{kind}: {color};" for kind, color in colors.items()) + " }"

    return f"{root(MARK_COLORS)}\n@media print {{ {root(PAPER_COLORS)} }}\n"
